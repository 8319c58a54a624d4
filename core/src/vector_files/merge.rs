//! Puts the files of all shards together: the same bytes as one job over all documents would have written.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::part::finished;
use super::records::Records;
use super::{Counts, FileMeta, Format, IdCheck, Shard, binary};
use crate::{Cancel, Error, Progress, Result, files};

/// Documents between two looks at the user's wish to stop.
const DOCUMENTS: u64 = 256;

/// Merges shards, given in any order, into a file with its meta. A file that is there already and holds the same is
/// left as it is; the second value says whether one was written.
///
/// # Errors
/// If a shard is missing, comes twice, was cut off or changed, or was made by another job or from another input than
/// the others; if an id stands in two of them; if another file is in the way and `force` is not set.
pub fn merge(
    shards: &[PathBuf],
    out: &Path,
    force: bool,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(FileMeta, bool)> {
    let parts = sorted(shards)?;
    let (first_path, first) = &parts[0];
    let job = first.job.whole();
    if !force && let Some(meta) = finished(out, &job)? {
        if meta.input != first.input {
            return Err(Error::invalid_with_hint(
                format!("`{}` was made from other documents than these shards", out.display()),
                "write to another file, or replace it with --force",
            ));
        }
        return Ok((meta, false));
    }
    let mut counts = Counts::default();
    for (_, meta) in &parts {
        counts.add(&meta.counts);
    }
    let mut readers = Vec::new();
    for (path, _) in &parts {
        let reader = Records::open(path, job.format)?;
        if readers.first().is_some_and(|first: &Records| first.head() != reader.head()) {
            return Err(Error::file(path, format!("its header is another than that of `{}`", first_path.display())));
        }
        readers.push(reader);
    }
    let mut ids = IdCheck::new();
    let mut hasher = Sha256::new();
    let mut bytes = 0;
    let task = progress.start("Merging", counts.documents);
    files::write_atomic(out, |file| {
        let mut put = |data: &[u8]| {
            hasher.update(data);
            bytes += data.len() as u64;
            file.write_all(data).map_err(|e| Error::io("write", out, e))
        };
        put(readers[0].head())?;
        for ordinal in 0..counts.documents {
            let index = (ordinal / job.block % parts.len() as u64) as usize;
            let Some((id, record)) = readers[index].next_record()? else {
                return Err(changed(&parts[index].0));
            };
            ids.push(&id, ordinal)?;
            put(record)?;
            if (ordinal + 1).is_multiple_of(DOCUMENTS) {
                cancel.check()?;
                task.advance(DOCUMENTS);
            }
        }
        task.advance(counts.documents % DOCUMENTS);
        for (reader, (path, meta)) in readers.iter_mut().zip(&parts) {
            let is_at_end = reader.next_record()?.is_none();
            if !is_at_end || reader.digest() != (meta.bytes, meta.sha256.clone()) {
                return Err(changed(path));
            }
        }
        if let Some((one, other)) = ids.finish()? {
            return Err(twice(&parts, job.format, [one, other], job.block)?);
        }
        if job.format == Format::Binary {
            let tail = binary::footer(counts.documents, counts.active, &hasher);
            hasher.update(&tail);
            bytes += tail.len() as u64;
            file.write_all(&tail).map_err(|e| Error::io("write", out, e))?;
        }
        Ok(())
    })?;
    let meta = FileMeta { job, counts, bytes, sha256: files::hex(&hasher.finalize()), input: first.input.clone() };
    meta.save(out)?;
    Ok((meta, true))
}

/// The shards in order, each with its meta, checked against each other.
fn sorted(shards: &[PathBuf]) -> Result<Vec<(PathBuf, FileMeta)>> {
    let mut parts: Vec<(Shard, PathBuf, FileMeta)> = Vec::new();
    for path in shards {
        if !path.is_file() {
            return Err(Error::invalid_with_hint(
                format!("`{}` is no file", path.display()),
                "a shard that was stopped is not finished: run its command again",
            ));
        }
        let meta = FileMeta::load(path)?;
        let Some(shard) = meta.job.shard else {
            return Err(Error::file(path, "it is no shard: it was written by one job over all documents"));
        };
        if !meta.fits(path) {
            return Err(changed(path));
        }
        parts.push((shard, path.clone(), meta));
    }
    parts.sort_by_key(|(shard, ..)| shard.index);
    let Some((_, first_path, first)) = parts.first() else {
        return Err(Error::invalid("No shard is named"));
    };
    let of = parts[0].0.of;
    for (shard, path, meta) in &parts {
        let (there, here) = (&first.job, &super::Job { shard: first.job.shard, ..meta.job.clone() });
        if shard.of != of || there != here {
            let differences = if shard.of == of {
                there.differences(here)
            } else {
                format!("shard is {} there and {shard} here", parts[0].0)
            };
            return Err(Error::invalid_with_hint(
                format!("`{}` and `{}` are of different jobs: {differences}", first_path.display(), path.display()),
                "merge the shards of one model with the same settings",
            ));
        }
        if meta.input != first.input {
            return Err(Error::invalid_with_hint(
                format!(
                    "`{}` and `{}` were made from different documents: {} and {}, or other lines",
                    first_path.display(),
                    path.display(),
                    first.input.documents,
                    meta.input.documents
                ),
                "encode those of the older input again, with --force",
            ));
        }
        if meta.counts.documents != shard.share(meta.input.documents, meta.job.block) {
            return Err(changed(path));
        }
    }
    if let Some(pair) = parts.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        let (shard, one, other) = (pair[0].0, &pair[0].1, &pair[1].1);
        return Err(Error::invalid(format!(
            "Shard {shard} comes twice: `{}` and `{}`",
            one.display(),
            other.display()
        )));
    }
    let missing: Vec<String> = (1..=of)
        .filter(|index| parts.iter().all(|(shard, ..)| shard.index != *index))
        .map(|index| Shard { index, of }.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(Error::invalid_with_hint(
            format!("{} of {of} shards are missing: {}", missing.len(), missing.join(", ")),
            "name the files of all shards",
        ));
    }
    Ok(parts.into_iter().map(|(_, path, meta)| (path, meta)).collect())
}

fn changed(path: &Path) -> Error {
    Error::invalid_with_hint(
        format!("`{}` is not what its meta says: it was cut off or changed", path.display()),
        "copy it once more, or encode it again with --force",
    )
}

/// The error about an id that stands at two places of the merged file.
fn twice(parts: &[(PathBuf, FileMeta)], format: Format, places: [u64; 2], block: u64) -> Result<Error> {
    let of = parts.len() as u64;
    let shard = |ordinal: u64| &parts[(ordinal / block % of) as usize].0;
    let ordinal = places[1];
    let mut records = Records::open(shard(ordinal), format)?;
    let before = ordinal / block / of * block + ordinal % block;
    let id = records.id_at(before)?;
    Ok(Error::invalid_with_hint(
        format!("The id `{id}` comes twice: in `{}` and in `{}`", shard(places[0]).display(), shard(ordinal).display()),
        "give each document an id of its own and encode again",
    ))
}

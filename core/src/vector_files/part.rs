//! The file of a job that can be stopped at any moment: `FILE.part` grows block by block, `FILE.journal` says how far
//! it is good, and `FILE` appears whole.
//!
//! The journal's first line is the job, each further line what stands in the part after a block, as JSON. The part is
//! on the disk before its line is; so after a kill the last whole line tells the truth, and what the part has beyond
//! it is cut off. The finished file gets its meta first and its name second: whatever a kill leaves behind, the next
//! run knows what to do with it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::job::beside;
use super::records::Records;
use super::{Counts, FileMeta, IdCheck, InputPosition, Job, Layout};
use crate::{Error, Result, files};

/// What stands in a part after a block.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// What is in the part.
    pub counts: Counts,
    /// Its size.
    pub bytes: u64,
    /// sha256 (hex) of it.
    pub sha256: String,
    /// The input behind the block.
    pub input: InputPosition,
}

/// What there is of a job's file.
pub enum Opened {
    /// Nothing or a part: to be written, from its last checkpoint on.
    Part(Box<PartFile>),
    /// All: the same job made it from the input that the meta describes.
    Finished(Box<FileMeta>),
}

/// A file of vectors that is being written.
pub struct PartFile {
    path: PathBuf,
    job: Job,
    journal: File,
    part: File,
    hasher: Sha256,
    ids: IdCheck,
    /// What stands in the part now; noted in the journal only behind a block.
    last: Checkpoint,
}

impl PartFile {
    /// Opens a job's file: goes on with a part, starts one, or finds it finished. With `force` whatever is there is
    /// made anew; a finished file stays until it is replaced.
    ///
    /// # Errors
    /// If the file is of another job, was not written by one, or another process writes it now; if the part is not
    /// what the journal says, or the disk fails.
    pub fn open(path: &Path, job: &Job, layout: &Layout, force: bool) -> Result<Opened> {
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        if path.is_dir() {
            return Err(Error::invalid_with_hint(format!("`{}` is a folder", path.display()), "name a file in it"));
        }
        let (journal_path, part_path) = (beside(path, "journal"), beside(path, "part"));
        let mut journal = lock(&journal_path, path)?;
        if force {
            journal.set_len(0).map_err(|e| Error::io("write", &journal_path, e))?;
        }
        let checkpoints = read_journal(&mut journal, &journal_path, path, job)?;
        if checkpoints.is_none() && !force {
            // No job has begun, so the journal is empty and of this call.
            let found = finished(path, job).and_then(|meta| match meta {
                None if part_path.exists() => Err(part_alone(&part_path)),
                meta => Ok(meta),
            });
            if !matches!(found, Ok(None)) {
                remove(&journal_path)?;
            }
            if let Some(meta) = found? {
                return Ok(Opened::Finished(Box::new(meta)));
            }
        }
        if checkpoints.is_some() && !part_path.exists() {
            // Killed between the last two steps of a job, or its part was removed.
            if let Ok(Some(meta)) = finished(path, job) {
                remove(&journal_path)?;
                return Ok(Opened::Finished(Box::new(meta)));
            }
        }
        let part = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&part_path);
        let part = part.map_err(|e| Error::io("write", &part_path, e))?;
        let size = part.metadata().map_err(|e| Error::io("read", &part_path, e))?.len();
        let good = checkpoints.unwrap_or_default().into_iter().rfind(|c| c.bytes <= size);
        let mut out = Self {
            path: path.to_path_buf(),
            job: job.clone(),
            journal,
            part,
            hasher: Sha256::new(),
            ids: IdCheck::new(),
            last: Checkpoint::default(),
        };
        match good {
            None => out.begin(layout)?,
            Some(checkpoint) => out.go_on(checkpoint)?,
        }
        Ok(Opened::Part(Box::new(out)))
    }

    /// Writes journal and part from their first byte.
    fn begin(&mut self, layout: &Layout) -> Result<()> {
        let (journal_path, part_path) = (beside(&self.path, "journal"), beside(&self.path, "part"));
        self.journal
            .set_len(0)
            .and_then(|()| self.journal.seek(SeekFrom::Start(0)))
            .map_err(|e| Error::io("write", &journal_path, e))?;
        self.note(&self.job.clone())?;
        let head = layout.head();
        self.part
            .set_len(0)
            .and_then(|()| self.part.seek(SeekFrom::Start(0)))
            .and_then(|_| self.part.write_all(&head))
            .map_err(|e| Error::io("write", &part_path, e))?;
        self.hasher.update(&head);
        self.last.bytes = head.len() as u64;
        Ok(())
    }

    /// Cuts the part to a checkpoint, having looked whether it is what was written then.
    fn go_on(&mut self, checkpoint: Checkpoint) -> Result<()> {
        let part_path = beside(&self.path, "part");
        self.part
            .set_len(checkpoint.bytes)
            .and_then(|()| self.part.seek(SeekFrom::End(0)))
            .map_err(|e| Error::io("write", &part_path, e))?;
        let not_what_it_was = || {
            Error::invalid_with_hint(
                format!("`{}` is not what its journal says: something else has written to it", part_path.display()),
                "start anew with --force",
            )
        };
        let mut records =
            Records::open_prefix(&part_path, self.job.format, checkpoint.bytes).map_err(|_| not_what_it_was())?;
        loop {
            match records.next_record() {
                Ok(Some((id, _))) => self.ids.push(&id, self.ids.len())?,
                Ok(None) => break,
                Err(_) => return Err(not_what_it_was()),
            }
        }
        if records.digest() != (checkpoint.bytes, checkpoint.sha256.clone())
            || records.documents() != checkpoint.counts.documents
        {
            return Err(not_what_it_was());
        }
        self.hasher = records.into_hasher();
        self.last = checkpoint;
        Ok(())
    }

    /// What stands in the part, and where the input stood when it was noted last.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.last
    }

    /// Adds documents: their ids, their bytes by the layout, and their counts.
    ///
    /// # Errors
    /// If the disk fails; the next run cuts off what was written.
    pub fn push(&mut self, ids: &[String], bytes: &[u8], counts: &Counts) -> Result<()> {
        debug_assert_eq!(ids.len() as u64, counts.documents);
        for id in ids {
            self.ids.push(id, self.ids.len())?;
        }
        self.last.counts.add(counts);
        self.append(bytes)
    }

    /// Notes what was pushed as done: once this returns, no kill can undo it. `input` is the end of a full block.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn commit(&mut self, input: InputPosition) -> Result<()> {
        self.part.sync_data().map_err(|e| Error::io("write", &beside(&self.path, "part"), e))?;
        self.last.input = input;
        self.last.sha256 = files::hex(&self.hasher.clone().finalize());
        self.note(&self.last.clone())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.part.write_all(bytes).map_err(|e| Error::io("write", &beside(&self.path, "part"), e))?;
        self.hasher.update(bytes);
        self.last.bytes += bytes.len() as u64;
        Ok(())
    }

    fn note(&mut self, line: &impl Serialize) -> Result<()> {
        let path = beside(&self.path, "journal");
        let mut bytes = serde_json::to_vec(line).map_err(|e| Error::json(&path, e))?;
        bytes.push(b'\n');
        self.journal.write_all(&bytes).and_then(|()| self.journal.sync_data()).map_err(|e| Error::io("write", &path, e))
    }

    /// Adds what ends the file and gives it its name. `input` is the end of the input.
    ///
    /// # Errors
    /// If an id stands in it twice, or the disk fails.
    pub fn finish(mut self, input: InputPosition, layout: &Layout) -> Result<FileMeta> {
        if let Some((first, second)) = std::mem::take(&mut self.ids).finish()? {
            return Err(self.twice(first, second));
        }
        let tail = layout.tail(&self.last.counts, &self.hasher);
        self.append(&tail)?;
        let sha256 = files::hex(&self.hasher.clone().finalize());
        let meta = FileMeta { job: self.job, counts: self.last.counts, bytes: self.last.bytes, sha256, input };
        let part = beside(&self.path, "part");
        self.part.sync_all().map_err(|e| Error::io("write", &part, e))?;
        meta.save(&self.path)?;
        std::fs::rename(&part, &self.path).map_err(|e| Error::io("write", &self.path, e))?;
        // The new name is durable once the folder is; a file system without that still has the file.
        let folder = self.path.parent().filter(|f| !f.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
        remove(&beside(&self.path, "journal"))?;
        Ok(meta)
    }

    /// Gives up for now. What is noted as done stays; where nothing is, no file is left behind.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub fn leave(self) -> Result<()> {
        if self.last.input.documents == 0 {
            remove(&beside(&self.path, "part"))?;
            remove(&beside(&self.path, "journal"))?;
        }
        Ok(())
    }

    /// The error about an id that stands at two places, counted from 0.
    fn twice(&self, first: u64, second: u64) -> Error {
        let id = Records::open_prefix(&beside(&self.path, "part"), self.job.format, self.last.bytes)
            .and_then(|mut records| records.id_at(second));
        let id = id.map_or_else(|_| String::new(), |id| format!(" `{id}`"));
        Error::invalid_with_hint(
            format!("The id{id} comes twice: documents {} and {} of this job have it", first + 1, second + 1),
            "give each document an id of its own, then encode them anew with --force",
        )
    }
}

/// The meta of a finished file of this job; `None` where no file is.
///
/// # Errors
/// If a file is there that this job did not make.
pub(super) fn finished(path: &Path, job: &Job) -> Result<Option<FileMeta>> {
    if !path.exists() {
        return Ok(None);
    }
    let meta_path = beside(path, "meta");
    if !meta_path.exists() {
        return Err(Error::invalid_with_hint(
            format!("`{}` is there, and nothing says what made it", path.display()),
            "write to another file, or replace it with --force",
        ));
    }
    let meta = FileMeta::load(path)?;
    if meta.job != *job {
        return Err(another_job(path, &meta.job, job));
    }
    if !meta.fits(path) {
        return Err(Error::invalid_with_hint(
            format!("`{}` has not the size of the file that was written: it was cut off or changed", path.display()),
            "make it again with --force",
        ));
    }
    Ok(Some(meta))
}

fn part_alone(part: &Path) -> Error {
    Error::invalid_with_hint(
        format!("`{}` is there, but no journal that says how far it is good", part.display()),
        "remove it, start anew with --force, or write to another file",
    )
}

pub(super) fn another_job(path: &Path, there: &Job, here: &Job) -> Error {
    Error::invalid_with_hint(
        format!("`{}` is of another job: {}", path.display(), there.differences(here)),
        "write to another file, or replace it with --force",
    )
}

/// Opens the journal for this process alone.
fn lock(journal: &Path, path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(journal);
    let file = file.map_err(|e| Error::io("write", journal, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::invalid_with_hint(
            format!("Another process is writing `{}`", path.display()),
            "wait until it is done, or write to another file",
        )),
        Err(TryLockError::Error(e)) => Err(Error::io("write", journal, e)),
    }
}

/// The checkpoints of a journal, and its file cut behind the last whole line; `None` if it has no first line.
fn read_journal(file: &mut File, journal: &Path, path: &Path, job: &Job) -> Result<Option<Vec<Checkpoint>>> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(|e| Error::io("read", journal, e))?;
    let mut end = 0;
    let mut lines = bytes.split_inclusive(|&b| b == b'\n').filter(|line| line.ends_with(b"\n"));
    let Some(first) = lines.next() else { return Ok(None) };
    let there: Job = serde_json::from_slice(first).map_err(|e| {
        Error::file(journal, format!("it is no journal of a file of vectors ({e}); remove it, or use --force"))
    })?;
    if there != *job {
        return Err(another_job(path, &there, job));
    }
    end += first.len();
    let mut checkpoints = Vec::new();
    for line in lines {
        let Ok(checkpoint) = serde_json::from_slice(line) else { break };
        checkpoints.push(checkpoint);
        end += line.len();
    }
    file.set_len(end as u64).and_then(|()| file.seek(SeekFrom::End(0))).map_err(|e| Error::io("write", journal, e))?;
    Ok(Some(checkpoints))
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|e| Error::io("write", path, e))
}

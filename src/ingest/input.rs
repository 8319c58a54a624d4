//! Where documents come from: a file or standard input, as it is or compressed; told by its first bytes, not by its name.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use nsparse_core::Error;
use nsparse_opensearch::ingest::documents::{Documents, Lines};
use nsparse_opensearch::ingest::ready::Members;

use super::zstd;

/// What a file begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Plain,
    Gzip,
    Zstandard,
    Parquet,
}

impl Form {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before the first.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstandard,
            [b'P', b'A', b'R', b'1', ..] => Self::Parquet,
            _ => Self::Plain,
        }
    }
}

/// Whether a path stands for standard input.
pub(crate) fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

/// Opens a file, or standard input for `-`, decompressed.
///
/// # Errors
/// If it cannot be read, or is Parquet, which is no stream of lines.
pub(crate) fn open(path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    let (input, form) = look(path)?;
    stream(input, form, path)
}

fn look(path: &Path) -> anyhow::Result<(Box<dyn BufRead + Send>, Form)> {
    let mut input: Box<dyn BufRead + Send> = if is_stdin(path) {
        Box::new(BufReader::with_capacity(1 << 18, std::io::stdin()))
    } else {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        Box::new(BufReader::with_capacity(1 << 18, file))
    };
    let form = Form::of(input.fill_buf().map_err(|e| Error::io("read", path, e))?);
    Ok((input, form))
}

fn stream(input: Box<dyn BufRead + Send>, form: Form, path: &Path) -> anyhow::Result<Box<dyn Read + Send>> {
    Ok(match form {
        Form::Plain => Box::new(input),
        // Several members one after another are one stream, as gzip has it.
        Form::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Form::Zstandard => Box::new(zstd::Decoder::new(input)),
        Form::Parquet => return Err(no_lines(path)),
    })
}

/// The documents in a file or in standard input, read ahead by so many threads.
///
/// # Errors
/// As [`open`]; Parquet is read where the program was built with it.
pub(crate) fn documents(path: &Path, members: &Members, workers: usize) -> anyhow::Result<Box<dyn Documents>> {
    let (input, form) = look(path)?;
    let name = if is_stdin(path) { Path::new("standard input") } else { path };
    if form == Form::Parquet && !is_stdin(path) {
        return parquet(path, members);
    }
    Ok(Box::new(Lines::new(stream(input, form, name)?, name, members, workers, is_stdin(path))))
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, members: &Members) -> anyhow::Result<Box<dyn Documents>> {
    Ok(Box::new(super::parquet::Rows::open(path, members)?))
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _members: &Members) -> anyhow::Result<Box<dyn Documents>> {
    Err(crate::failure::usage(
        format!("`{}` is Parquet, and this nsparse was built without it", path.display()),
        "build it with `cargo build --release --features parquet`, or make jsonl of it",
    ))
}

fn no_lines(path: &Path) -> anyhow::Error {
    crate::failure::usage(
        format!("`{}` is Parquet, which has to be read as a file of documents", path.display()),
        "give the file's name, not a pipe; ids and texts are read from jsonl",
    )
}

/// How much more documents are than their compressed file, about: gzip and zstd make a third to a quarter of BEIR's corpora.
const COMPRESSED: u64 = 4;

/// Bytes of the documents in a file, about; `None` for standard input and what cannot be read.
pub(crate) fn bytes(path: &Path) -> Option<u64> {
    if is_stdin(path) {
        return None;
    }
    let (_, form) = look(path).ok()?;
    let size = std::fs::metadata(path).ok()?.len();
    Some(if form == Form::Plain { size } else { size * COMPRESSED })
}

/// Ids, one a line; a line that is a JSON object has its id in the field named.
///
/// # Errors
/// As [`open`]; the items are errors of lines.
pub(crate) fn ids(path: &Path, id_field: &str) -> anyhow::Result<impl Iterator<Item = nsparse_core::Result<String>>> {
    let name = path.to_path_buf();
    let members = Members { id: id_field.to_owned(), checked: None, replaced: None, bound: Vec::new() };
    let lines = BufReader::with_capacity(1 << 18, open(path)?).lines().enumerate();
    Ok(lines.filter_map(move |(at, line)| {
        let line = match line {
            Ok(line) => line,
            Err(e) => return Some(Err(Error::line(&name, at + 1, e.to_string()))),
        };
        let text = line.trim();
        if text.is_empty() {
            return None;
        }
        if !text.starts_with('{') {
            return Some(Ok(text.to_owned()));
        }
        let read = nsparse_opensearch::ingest::ready::read(text.as_bytes(), &members, &mut Vec::new());
        Some(read.map(|read| read.id).map_err(|message| Error::line(&name, at + 1, message)))
    }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::io::Write as _;

    #[test]
    fn told_by_the_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let text = "{\"_id\":\"a\"}\n\nplain\n{\"_id\":7}\n";
        let path = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&text.as_bytes()[..12]).unwrap();
        let mut second = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        second.write_all(&text.as_bytes()[12..]).unwrap();
        let gzip = [gzip.finish().unwrap(), second.finish().unwrap()].concat();
        let zstd = ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
        for (name, bytes) in [("plain.gz", text.as_bytes()), ("gzip", &gzip), ("zstd.jsonl", &zstd)] {
            let path = path(name, bytes);
            let mut read = String::new();
            open(&path).unwrap().read_to_string(&mut read).unwrap();
            assert_eq!(read, text, "{name}");
            let ids: Vec<String> = ids(&path, "_id").unwrap().map(Result::unwrap).collect();
            assert_eq!(ids, ["a", "plain", "7"], "{name}");
            let size = std::fs::metadata(&path).unwrap().len();
            assert_eq!(super::bytes(&path), Some(if name == "plain.gz" { size } else { 4 * size }), "{name}");
        }
        let error = ids(&path("wrong", b"{\"id\":1}\n"), "_id").unwrap().next().unwrap().unwrap_err().to_string();
        assert!(error.contains("no field `_id`"), "{error}");
        assert!(open(&path("p", b"PAR1....")).is_err());
        assert_eq!((bytes(Path::new("-")), bytes(&folder.path().join("none"))), (None, None));
    }
}

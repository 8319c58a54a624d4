//! A file of any form, read record by record without looking into the vectors: for joining shards, and for finding
//! out whether a part of a file is what a journal says.

use std::fs::File;
use std::io::{BufReader, Read as _, Take};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::Format;
use super::binary::{Header, Source};
use crate::{Error, Result, files};

/// Reads records: a document's id and the bytes it stands in.
#[derive(Debug)]
pub struct Records {
    source: Source<BufReader<Take<File>>>,
    form: Form,
    /// Bytes before the first record.
    head: Vec<u8>,
    is_prefix: bool,
}

#[derive(Debug)]
enum Form {
    Lines,
    Binary(Header),
}

impl Records {
    /// Opens a whole file.
    ///
    /// # Errors
    /// If it cannot be read or is not of that form.
    pub fn open(path: &Path, format: Format) -> Result<Self> {
        Self::new(path, format, None)
    }

    /// Opens the first `bytes` of a file that is still being written.
    ///
    /// # Errors
    /// As [`Records::open`].
    pub fn open_prefix(path: &Path, format: Format, bytes: u64) -> Result<Self> {
        Self::new(path, format, Some(bytes))
    }

    fn new(path: &Path, format: Format, limit: Option<u64>) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?.take(limit.unwrap_or(u64::MAX));
        let mut source = Source::new(BufReader::with_capacity(1 << 18, file), path);
        let is_prefix = limit.is_some();
        let mut head = Vec::new();
        let form = match format {
            Format::Jsonl | Format::Anserini => Form::Lines,
            Format::Binary => {
                let header = Header::read(&mut source)?;
                head.clone_from(&source.raw);
                source.settle();
                Form::Binary(header)
            }
        };
        Ok(Self { source, form, head, is_prefix })
    }

    /// Bytes before the first record.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// The next record's id and its bytes, which include the line feed where records are lines; `None` at the end.
    ///
    /// # Errors
    /// If the file is cut off or is not what it should be.
    pub fn next_record(&mut self) -> Result<Option<(String, &[u8])>> {
        self.source.settle();
        if let Form::Lines = self.form
            && self.source.is_at_end()?
        {
            return Ok(None);
        }
        if self.is_prefix && self.source.is_at_end()? {
            return Ok(None);
        }
        let id = match &self.form {
            Form::Lines => {
                self.source.line()?;
                self.source.documents += 1;
                let number = self.source.documents;
                line_id(&self.source.raw)
                    .ok_or_else(|| self.source.error(format!("line {number} is cut off, or none that nsparse wrote")))?
            }
            Form::Binary(header) => {
                let document = self.source.document(header)?;
                let Some((id, _)) = document else {
                    self.source.settle();
                    return Ok(None);
                };
                id
            }
        };
        Ok(Some((id, &self.source.raw)))
    }

    /// The id of the record with so many before it, counted from where the reader is.
    ///
    /// # Errors
    /// As [`Records::next_record`]; also if there are not so many.
    pub fn id_at(&mut self, place: u64) -> Result<String> {
        for _ in 0..place {
            self.next_record()?;
        }
        let id = self.next_record()?.map(|(id, _)| id);
        id.ok_or_else(|| self.source.error(format!("it has no document {}", place + 1)))
    }

    /// Documents read so far.
    pub fn documents(&self) -> u64 {
        self.source.documents
    }

    /// The hash of what was read, to go on with.
    pub(super) fn into_hasher(mut self) -> Sha256 {
        self.source.settle();
        self.source.hasher
    }

    /// Size and sha256 (hex) of what was read so far.
    pub fn digest(&mut self) -> (u64, String) {
        self.source.settle();
        (self.source.bytes, files::hex(&self.source.hasher.clone().finalize()))
    }
}

/// The id of a line as [`super::Layout`] writes it: the first field.
fn line_id(line: &[u8]) -> Option<String> {
    let rest = line.strip_prefix(br#"{"id":"#)?.strip_suffix(b"}\n")?;
    serde_json::Deserializer::from_slice(rest).into_iter::<String>().next()?.ok()
}

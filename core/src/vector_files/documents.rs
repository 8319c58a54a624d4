//! Documents from jsonl as a stream: never more than a block of them in memory.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{IdCheck, InputPosition, Job};
use crate::beir::{Document, FieldNames, parse_document};
use crate::{Cancel, DocumentTemplate, Error, Progress, Result, files};

/// Lines between two looks at the user's wish to stop.
const LINES: u64 = 1024;

/// Reads documents line by line, knows how far it is, and hashes what it has read.
pub struct DocumentStream<R> {
    input: BufReader<R>,
    name: PathBuf,
    fields: FieldNames,
    hasher: Sha256,
    documents: u64,
    lines: u64,
    bytes: u64,
    line: Vec<u8>,
}

impl<R: Read> DocumentStream<R> {
    /// A stream from its start; `name` is what messages call it.
    pub fn new(input: R, name: &Path, fields: &FieldNames) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 18, input),
            name: name.to_path_buf(),
            fields: fields.clone(),
            hasher: Sha256::new(),
            documents: 0,
            lines: 0,
            bytes: 0,
            line: Vec::new(),
        }
    }

    /// Goes from the start to where an earlier run was.
    ///
    /// # Errors
    /// If the input up to there is another than it was then.
    pub fn skip_to(&mut self, position: &InputPosition) -> Result<()> {
        debug_assert_eq!(self.bytes, 0, "only a stream at its start can skip");
        let mut left = position.bytes;
        while left > 0 {
            let buffer = self.input.fill_buf().map_err(|e| Error::io("read", &self.name, e))?;
            let taken = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if taken == 0 {
                break;
            }
            self.hasher.update(&buffer[..taken]);
            self.input.consume(taken);
            left -= taken as u64;
        }
        (self.documents, self.lines, self.bytes) = (position.documents, position.lines, position.bytes - left);
        if left > 0 || self.position().sha256 != position.sha256 {
            return Err(Error::invalid_with_hint(
                format!(
                    "`{}` is not what it was: its first {} lines, which are encoded already, have changed",
                    self.name.display(),
                    position.lines
                ),
                "start anew with --force, or write to another file",
            ));
        }
        Ok(())
    }

    /// The next document; empty lines are skipped. `None` at the end.
    ///
    /// # Errors
    /// A broken line, by name and number.
    pub fn next_document(&mut self) -> Result<Option<Document>> {
        loop {
            self.line.clear();
            let read = self.input.read_until(b'\n', &mut self.line).map_err(|e| Error::io("read", &self.name, e))?;
            if read == 0 {
                return Ok(None);
            }
            self.hasher.update(&self.line);
            self.bytes += read as u64;
            self.lines += 1;
            let number = usize::try_from(self.lines).unwrap_or(usize::MAX);
            let text =
                std::str::from_utf8(&self.line).map_err(|_| Error::line(&self.name, number, "it is not UTF-8"))?;
            if text.trim().is_empty() {
                continue;
            }
            let document = parse_document(&self.name, number, text, &self.fields)?;
            self.documents += 1;
            return Ok(Some(document));
        }
    }

    /// How far the stream is.
    pub fn position(&self) -> InputPosition {
        InputPosition {
            documents: self.documents,
            lines: self.lines,
            bytes: self.bytes,
            sha256: files::hex(&self.hasher.clone().finalize()),
        }
    }
}

/// Documents that are encoded and noted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Ids, in the input's order.
    pub ids: Vec<String>,
    /// Texts by the template.
    pub texts: Vec<String>,
    /// The input behind the block.
    pub end: InputPosition,
    /// Whether it has as many documents as a block holds: only the input's last may have fewer.
    pub is_full: bool,
}

/// Cuts a stream into blocks and keeps those of a job's shard.
pub struct Blocks<R> {
    stream: DocumentStream<R>,
    job: Job,
    template: DocumentTemplate,
}

impl<R: Read> Blocks<R> {
    /// From a stream that is at its start or behind a block.
    pub fn new(stream: DocumentStream<R>, job: &Job, template: &DocumentTemplate) -> Self {
        debug_assert!(job.block > 0 && stream.documents.is_multiple_of(job.block), "blocks are whole");
        Self { stream, job: job.clone(), template: template.clone() }
    }

    /// The next block of this job; the blocks of other shards are read and left out. `None` at the input's end.
    ///
    /// # Errors
    /// A broken line, by name and number.
    pub fn next_block(&mut self) -> Result<Option<Block>> {
        loop {
            let number = self.stream.documents / self.job.block;
            let is_mine = self.job.has(number);
            let (mut ids, mut texts) = (Vec::new(), Vec::new());
            let mut found = 0;
            while found < self.job.block
                && let Some(document) = self.stream.next_document()?
            {
                found += 1;
                if is_mine {
                    texts.push(self.template.apply(&document));
                    ids.push(document.id);
                }
            }
            if is_mine && found > 0 {
                return Ok(Some(Block { ids, texts, end: self.position(), is_full: found == self.job.block }));
            }
            if found < self.job.block {
                return Ok(None);
            }
        }
    }

    /// How far the stream is.
    pub fn position(&self) -> InputPosition {
        self.stream.position()
    }
}

/// Reads a file of documents to its end before any work is done with it: whether every line can be read and no id
/// comes twice. Gives the end of the file.
///
/// # Errors
/// The first broken line, by file and number; a file without documents; an id that comes twice.
pub fn check_documents(
    path: &Path,
    fields: &FieldNames,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<InputPosition> {
    let open = || std::fs::File::open(path).map_err(|e| Error::io("read", path, e));
    let mut stream = DocumentStream::new(open()?, path, fields);
    let mut ids = IdCheck::new();
    let task = progress.start("Checking documents", 0);
    while let Some(document) = stream.next_document()? {
        ids.push(&document.id, stream.lines)?;
        if stream.lines.is_multiple_of(LINES) {
            task.advance(LINES);
            cancel.check()?;
        }
    }
    if stream.documents == 0 {
        return Err(Error::file(path, "it has no document"));
    }
    if let Some((first, second)) = ids.finish()? {
        // The id itself is in the line alone.
        let mut again = DocumentStream::new(open()?, path, fields);
        while let Some(document) = again.next_document()? {
            if again.lines == second {
                let line = usize::try_from(second).unwrap_or(usize::MAX);
                let message = format!("the id `{}` stands in line {first} already", document.id);
                return Err(Error::line(path, line, message));
            }
        }
    }
    Ok(stream.position())
}

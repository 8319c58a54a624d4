//! The compact binary form. Numbers are little-endian; a varint has seven bits a byte, the lowest first, with the
//! highest bit set in all bytes but the last (LEB128), at most five bytes.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `8e 4e 53 56 0d 0a 1a 0a`: not text, and broken by anything that treats it as text |
//! | 2 | version: 1 |
//! | 1 | weights: 0 for `f32`, 1 for 16 bits |
//! | 1 | 0 |
//! | 4 | vocabulary size V |
//! | 32 | sha256 of the V entries that follow the model's hash |
//! | 32 | the model's hash ([`super::Job::model`]) |
//! | … | V entries by token id: varint of the length, then UTF-8 |
//! | … | documents, each: |
//! | | varint of the id's length plus 1, then UTF-8 |
//! | | varint n of the weights |
//! | | n varints: the first token id, then each one's distance to the one before, less 1 |
//! | | n weights in the order of the ids: `f32`, or the 16 bits from the highest bit of the exponent down |
//! | 1 | 0: no more documents |
//! | 8 | documents |
//! | 8 | weights of all documents |
//! | 32 | sha256 of all bytes before |
//!
//! 16 bits are all that Lucene keeps of a weight: 8 of exponent and 8 of fraction, the sign being always plus. So a
//! file with 16 bits loses nothing against the index, and `f32::from_bits(u32::from(bits) << 15)` has the weight.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Precision;
use crate::{Error, Result, SparseVector, TokenId, Weight};

const MAGIC: [u8; 8] = [0x8e, b'N', b'S', b'V', b'\r', b'\n', 0x1a, b'\n'];
const VERSION: u16 = 1;
/// Longer ids are taken for damage.
const MAX_TEXT: u32 = 1 << 20;

/// What stands before the documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// How weights are kept.
    pub precision: Precision,
    /// The model's hash.
    pub model: [u8; 32],
    /// The vocabulary's strings by token id.
    pub vocabulary: Vec<String>,
}

impl Header {
    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut entries = Vec::new();
        for entry in &self.vocabulary {
            push_varint(&mut entries, entry.len() as u32);
            entries.extend_from_slice(entry.as_bytes());
        }
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.push(u8::from(self.precision == Precision::Stored));
        out.push(0);
        out.extend((self.vocabulary.len() as u32).to_le_bytes());
        out.extend_from_slice(&Sha256::digest(&entries));
        out.extend(self.model);
        out.extend(entries);
        out
    }

    /// Reads it from the start of a file.
    pub(super) fn read<R: BufRead>(source: &mut Source<R>) -> Result<Self> {
        if source.array::<8>()? != MAGIC {
            return Err(source.error("it is no file of vectors in nsparse's binary form"));
        }
        let version = u16::from_le_bytes(source.array()?);
        let [kind, zero] = source.array()?;
        if version != VERSION || kind > 1 || zero != 0 {
            return Err(source.error("a newer nsparse wrote it: this one reads version 1"));
        }
        let size = u32::from_le_bytes(source.array()?);
        let expected: [u8; 32] = source.array()?;
        let model = source.array()?;
        let start = source.raw.len();
        let mut vocabulary = Vec::new();
        for _ in 0..size {
            let length = source.varint()?;
            vocabulary.push(source.text(length)?);
        }
        if Sha256::digest(&source.raw[start..]).as_slice() != expected {
            return Err(source.error("its vocabulary is damaged: the hash does not fit"));
        }
        let precision = if kind == 1 { Precision::Stored } else { Precision::Full };
        Ok(Self { precision, model, vocabulary })
    }
}

/// Adds one document. With [`Precision::Stored`] weights are cut to 9 bits; those that become 0 are left out.
///
/// Returns the number of weights written.
pub fn push_document(out: &mut Vec<u8>, precision: Precision, id: &str, vector: &SparseVector) -> usize {
    let cut;
    let vector = match precision {
        Precision::Full => vector,
        Precision::Stored => {
            cut = vector.as_stored();
            &cut
        }
    };
    debug_assert!(vector.ids.is_sorted_by(|a, b| a < b), "token ids are strictly ascending");
    push_varint(out, id.len() as u32 + 1);
    out.extend_from_slice(id.as_bytes());
    push_varint(out, vector.len() as u32);
    let mut next = 0;
    for &token in &vector.ids {
        push_varint(out, token - next);
        next = token + 1;
    }
    for &weight in &vector.weights {
        match precision {
            Precision::Full => out.extend(weight.to_le_bytes()),
            Precision::Stored => out.extend(((weight.to_bits() >> 15) as u16).to_le_bytes()),
        }
    }
    vector.len()
}

/// What ends the documents; `hasher` has seen all bytes before.
pub fn footer(documents: u64, active: u64, hasher: &Sha256) -> Vec<u8> {
    let mut out = vec![0];
    out.extend(documents.to_le_bytes());
    out.extend(active.to_le_bytes());
    let hash = hasher.clone().chain_update(&out).finalize();
    out.extend_from_slice(&hash);
    out
}

fn push_varint(out: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A file that is read once from front to back; its bytes are hashed and, until the next item, kept.
#[derive(Debug)]
pub(super) struct Source<R> {
    input: R,
    path: PathBuf,
    /// Bytes of the item that is being read.
    pub(super) raw: Vec<u8>,
    /// Of all bytes before `raw`.
    pub(super) hasher: Sha256,
    /// How many those are.
    pub(super) bytes: u64,
    /// Documents so far, for messages.
    pub(super) documents: u64,
}

impl<R: BufRead> Source<R> {
    pub(super) fn new(input: R, path: &Path) -> Self {
        let path = path.to_path_buf();
        Self { input, path, raw: Vec::new(), hasher: Sha256::new(), bytes: 0, documents: 0 }
    }

    /// The item is done: its bytes are hashed and forgotten.
    pub(super) fn settle(&mut self) {
        self.hasher.update(&self.raw);
        self.bytes += self.raw.len() as u64;
        self.raw.clear();
    }

    pub(super) fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::file(&self.path, message.to_string())
    }

    fn failed(&self, error: std::io::Error) -> Error {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            let documents = self.documents;
            return self.error(format!("it is cut off after {documents} documents; copy or encode it once more"));
        }
        Error::io("read", &self.path, error)
    }

    /// Whether nothing follows.
    pub(super) fn is_at_end(&mut self) -> Result<bool> {
        match self.input.fill_buf() {
            Ok(buffer) => Ok(buffer.is_empty()),
            Err(e) => Err(Error::io("read", &self.path, e)),
        }
    }

    /// The rest of a line with its line feed; an empty one at the end of the file.
    pub(super) fn line(&mut self) -> Result<()> {
        match self.input.read_until(b'\n', &mut self.raw) {
            Ok(_) => Ok(()),
            Err(e) => Err(Error::io("read", &self.path, e)),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|e| self.failed(e))?;
        self.raw.extend(bytes);
        Ok(bytes)
    }

    /// The next `length` bytes, which are then the last of `raw`.
    fn bytes(&mut self, length: usize) -> Result<&[u8]> {
        let start = self.raw.len();
        self.raw.resize(start + length, 0);
        if let Err(e) = self.input.read_exact(&mut self.raw[start..]) {
            return Err(self.failed(e));
        }
        Ok(&self.raw[start..])
    }

    fn varint(&mut self) -> Result<u32> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| self.damaged("a number is too large"));
            }
        }
        Err(self.damaged("a number is too large"))
    }

    fn text(&mut self, length: u32) -> Result<String> {
        if length > MAX_TEXT {
            return Err(self.damaged("a text is longer than a mebibyte"));
        }
        let text = std::str::from_utf8(self.bytes(length as usize)?).map(str::to_owned);
        text.map_err(|_| self.damaged("a text is not UTF-8"))
    }

    fn damaged(&self, what: &str) -> Error {
        self.error(format!("it is damaged after {} documents: {what}", self.documents))
    }

    /// The next document, or `None` behind a footer that fits.
    pub(super) fn document(&mut self, header: &Header) -> Result<Option<(String, SparseVector)>> {
        let marker = self.varint()?;
        let Some(length) = marker.checked_sub(1) else {
            self.documents_end()?;
            return Ok(None);
        };
        let id = self.text(length)?;
        let count = self.varint()? as usize;
        if count > header.vocabulary.len() {
            return Err(self.damaged("a vector has more weights than the vocabulary has entries"));
        }
        let mut vector = SparseVector { ids: Vec::with_capacity(count), weights: Vec::with_capacity(count) };
        let mut next: u64 = 0;
        for _ in 0..count {
            let token = next + u64::from(self.varint()?);
            if token >= header.vocabulary.len() as u64 {
                return Err(self.damaged("a token is not in the vocabulary"));
            }
            vector.ids.push(token as TokenId);
            next = token + 1;
        }
        match header.precision {
            Precision::Full => {
                let weights = self.bytes(count * 4)?.chunks_exact(4);
                vector.weights.extend(weights.map(|b| Weight::from_le_bytes([b[0], b[1], b[2], b[3]])));
            }
            Precision::Stored => {
                let weights = self.bytes(count * 2)?.chunks_exact(2);
                let weight = |b: &[u8]| Weight::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 15);
                vector.weights.extend(weights.map(weight));
            }
        }
        if !vector.weights.iter().all(|w| w.is_finite() && *w > 0.0) {
            return Err(self.damaged("a weight is not above zero and finite"));
        }
        self.documents += 1;
        Ok(Some((id, vector)))
    }

    /// The footer behind its first byte.
    fn documents_end(&mut self) -> Result<()> {
        let documents = u64::from_le_bytes(self.array()?);
        self.array::<8>()?;
        let hash = self.hasher.clone().chain_update(&self.raw).finalize();
        let expected: [u8; 32] = self.array()?;
        if documents != self.documents || hash.as_slice() != expected {
            return Err(self.error("it is damaged: its checksum does not fit; copy or encode it once more"));
        }
        if !self.is_at_end()? {
            return Err(self.error("something follows its end; it is not one whole file"));
        }
        Ok(())
    }
}

/// A file of vectors, read from front to back: an iterator of ids with their vectors. The last item is an error if
/// the file is cut off or damaged, so what came before counts only once the iterator has ended without one.
#[derive(Debug)]
pub struct VectorFile {
    source: Source<BufReader<File>>,
    header: Header,
    ended: bool,
}

impl VectorFile {
    /// Opens a file and reads its header.
    ///
    /// # Errors
    /// If it cannot be read, or is no such file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let mut source = Source::new(BufReader::with_capacity(1 << 18, file), path);
        let header = Header::read(&mut source)?;
        source.settle();
        Ok(Self { source, header, ended: false })
    }

    /// What stands before the documents.
    pub fn header(&self) -> &Header {
        &self.header
    }
}

impl Iterator for VectorFile {
    type Item = Result<(String, SparseVector)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.source.document(&self.header);
        self.source.settle();
        self.ended = !matches!(item, Ok(Some(_)));
        item.transpose()
    }
}

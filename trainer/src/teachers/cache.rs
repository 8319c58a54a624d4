//! What teachers computed, kept on disk: records of a key (of a text, or of a query with a document) and some bytes,
//! appended to files that only grow. A tail torn by a kill or a power cut is cut off and computed again. Several
//! programs may use one folder: each appends to a file of its own.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use nsparse_core::Error as CoreError;
use sha2::Digest as _;

use crate::Result;

/// Names what was scored.
pub(crate) type Key = [u8; 16];

/// How a file begins.
const MAGIC: &[u8; 24] = b"nsparse teacher cache 1\n";
/// Key, length, check.
const HEADER: usize = 16 + 4 + 8;
/// More is no record.
const MOST: usize = 1 << 26;

/// The key of some texts, one after the other.
pub(crate) fn key(texts: &[&str]) -> Key {
    let mut hasher = sha2::Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    first(&hasher.finalize())
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[..N]);
    out
}

/// Guards a record against what a power cut leaves.
fn check(key: &Key, payload: &[u8]) -> [u8; 8] {
    let mut hasher = sha2::Sha256::new();
    hasher.update(key);
    hasher.update(payload);
    first(&hasher.finalize())
}

#[derive(Debug, Clone, Copy)]
struct Place {
    part: u32,
    length: u32,
    offset: u64,
}

#[derive(Debug)]
struct Part {
    path: PathBuf,
    file: File,
    /// Where the next record goes.
    end: u64,
}

/// The records of one teacher.
#[derive(Debug)]
pub(crate) struct Store {
    parts: Vec<Part>,
    places: HashMap<Key, Place>,
    /// Index of the part that is written; without one new records stay in memory.
    writer: Option<usize>,
    fresh: HashMap<Key, Vec<u8>>,
}

impl Store {
    /// Opens a folder, which is made if it is not there. Without `is_written` nothing on disk is touched, and new
    /// records stay in memory.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub(crate) fn open(folder: &Path, is_written: bool) -> Result<Self> {
        let mut out = Self { parts: Vec::new(), places: HashMap::new(), writer: None, fresh: HashMap::new() };
        if is_written {
            std::fs::create_dir_all(folder).map_err(|e| CoreError::io("create", folder, e))?;
        }
        let mut number = 0;
        loop {
            let path = folder.join(format!("part-{number:04}.bin"));
            number += 1;
            if path.is_file() {
                let wants = is_written && out.writer.is_none();
                let file = OpenOptions::new()
                    .read(true)
                    .write(wants)
                    .open(&path)
                    .map_err(|e| CoreError::io("read", &path, e))?;
                // Where locks are not known nobody holds one.
                let is_ours = wants && !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
                out.add(path, file, is_ours)?;
            } else if out.writer.is_none() && is_written {
                let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
                match made {
                    Ok(file) => {
                        let is_ours = !matches!(file.try_lock(), Err(TryLockError::WouldBlock));
                        out.add(path, file, is_ours)?;
                    }
                    // Another program made it first.
                    Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number -= 1,
                    Err(e) => return Err(CoreError::io("create", &path, e).into()),
                }
            } else {
                return Ok(out);
            }
        }
    }

    /// Reads a part up to the first record that is not whole.
    fn add(&mut self, path: PathBuf, file: File, is_ours: bool) -> Result<()> {
        let part = self.parts.len() as u32;
        let failed = |e| CoreError::io("read", &path, e);
        let mut reader = BufReader::with_capacity(1 << 20, &file);
        let mut magic = [0; MAGIC.len()];
        let mut end = 0;
        if read_whole(&mut reader, &mut magic).map_err(failed)? && magic == *MAGIC {
            end = MAGIC.len() as u64;
            let (mut header, mut payload) = ([0; HEADER], Vec::new());
            while read_whole(&mut reader, &mut header).map_err(failed)? {
                let key: Key = first(&header);
                let length = u32::from_le_bytes(first(&header[16..])) as usize;
                if length > MOST {
                    break;
                }
                payload.resize(length, 0);
                if !read_whole(&mut reader, &mut payload).map_err(failed)? || check(&key, &payload) != header[20..] {
                    break;
                }
                self.places.insert(key, Place { part, length: length as u32, offset: end + HEADER as u64 });
                end += (HEADER + length) as u64;
            }
        }
        drop(reader);
        if is_ours {
            let failed = |e| CoreError::io("write", &path, e);
            file.set_len(end).map_err(failed)?;
            if end == 0 {
                (&file).seek(SeekFrom::Start(0)).map_err(failed)?;
                (&file).write_all(MAGIC).and_then(|()| file.sync_all()).map_err(failed)?;
                end = MAGIC.len() as u64;
            }
            self.writer = Some(part as usize);
        }
        self.parts.push(Part { path, file, end });
        Ok(())
    }

    /// How many records there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.places.len() + self.fresh.len()
    }

    /// Whether a key has a record.
    pub(crate) fn contains(&self, key: &Key) -> bool {
        self.places.contains_key(key) || self.fresh.contains_key(key)
    }

    /// A key's bytes.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Vec<u8>>> {
        if let Some(bytes) = self.fresh.get(key) {
            return Ok(Some(bytes.clone()));
        }
        let Some(place) = self.places.get(key) else { return Ok(None) };
        let part = &self.parts[place.part as usize];
        let mut bytes = vec![0; place.length as usize];
        let mut file = &part.file;
        file.seek(SeekFrom::Start(place.offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|e| CoreError::io("read", &part.path, e))?;
        Ok(Some(bytes))
    }

    /// Adds records and flushes them to disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn append(&mut self, records: Vec<(Key, Vec<u8>)>) -> Result<()> {
        let Some(writer) = self.writer else {
            self.fresh.extend(records);
            return Ok(());
        };
        let part = &mut self.parts[writer];
        let mut bytes = Vec::new();
        let mut places = Vec::with_capacity(records.len());
        for (key, payload) in &records {
            let offset = part.end + (bytes.len() + HEADER) as u64;
            places.push((*key, Place { part: writer as u32, length: payload.len() as u32, offset }));
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&check(key, payload));
            bytes.extend_from_slice(payload);
        }
        let mut file = &part.file;
        file.seek(SeekFrom::Start(part.end))
            .and_then(|_| file.write_all(&bytes))
            .and_then(|()| file.sync_data())
            .map_err(|e| CoreError::io("write", &part.path, e))?;
        part.end += bytes.len() as u64;
        self.places.extend(places);
        Ok(())
    }
}

/// Fills a buffer; false at the file's end, or if it ends within.
fn read_whole(reader: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match reader.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn records(range: std::ops::Range<usize>) -> Vec<(Key, Vec<u8>)> {
        range.map(|i| (key(&[&i.to_string()]), vec![i as u8; i])).collect()
    }

    fn holds(store: &Store, range: std::ops::Range<usize>) {
        for (key, payload) in records(range) {
            assert_eq!(store.get(&key).unwrap(), Some(payload));
        }
    }

    #[test]
    fn records_come_back_and_texts_do_not_run_together() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path(), true).unwrap();
        store.append(records(0..3)).unwrap();
        store.append(records(3..7)).unwrap();
        holds(&store, 0..7);
        drop(store);
        let mut store = Store::open(folder.path(), true).unwrap();
        assert_eq!(store.len(), 7);
        store.append(records(7..9)).unwrap();
        holds(&store, 0..9);
        assert!(!store.contains(&key(&["9"])));
        assert_ne!(key(&["ab", "c"]), key(&["a", "bc"]));
    }

    /// However much of the file a power cut leaves, what is whole is used and the rest can be written again.
    #[test]
    fn a_torn_tail_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        Store::open(folder.path(), true).unwrap().append(records(0..5)).unwrap();
        let path = folder.path().join("part-0000.bin");
        let whole = std::fs::read(&path).unwrap();
        let starts: Vec<usize> = (0..=5).map(|n| MAGIC.len() + (0..n).map(|i| HEADER + i).sum::<usize>()).collect();
        assert_eq!(starts[5], whole.len());
        // Within the first line, at each record's start and end, and within its header and payload.
        let within = starts.iter().flat_map(|&start| [start - 1, start, start + 1, start + HEADER]);
        for cut in within.chain([0]).filter(|&cut| cut < whole.len()) {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let left = starts.iter().filter(|&&start| start <= cut).count().saturating_sub(1);
            let mut store = Store::open(folder.path(), true).unwrap();
            assert_eq!(store.len(), left, "cut at {cut}");
            store.append(records(left..6)).unwrap();
            drop(store);
            let store = Store::open(folder.path(), true).unwrap();
            holds(&store, 0..6);
        }
        // Bytes that were never written.
        let mut zeros = whole.clone();
        zeros[starts[3]..].fill(0);
        std::fs::write(&path, &zeros).unwrap();
        assert_eq!(Store::open(folder.path(), true).unwrap().len(), 3);
    }

    #[test]
    fn two_programs_write_beside_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Store::open(folder.path(), true).unwrap();
        let mut second = Store::open(folder.path(), true).unwrap();
        first.append(records(0..2)).unwrap();
        second.append(records(2..4)).unwrap();
        first.append(records(4..6)).unwrap();
        drop((first, second));
        let store = Store::open(folder.path(), true).unwrap();
        holds(&store, 0..6);
        assert_eq!(store.parts.len(), 2);
    }

    #[test]
    fn without_writing_the_disk_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let mut store = Store::open(&cache, false).unwrap();
        store.append(records(0..2)).unwrap();
        holds(&store, 0..2);
        assert!(!cache.exists());
        Store::open(&cache, true).unwrap().append(records(0..2)).unwrap();
        let before = std::fs::read(cache.join("part-0000.bin")).unwrap();
        let mut store = Store::open(&cache, false).unwrap();
        store.append(records(2..4)).unwrap();
        holds(&store, 0..4);
        assert_eq!(std::fs::read(cache.join("part-0000.bin")).unwrap(), before);
    }
}

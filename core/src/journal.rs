//! The journal of a long job: which ids are done. Appended and synced in batches, so that after a kill at most
//! the batches in flight are repeated.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::{BufRead, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// Ids that are done, each with the hash of what was sent. One line an entry: hash, tab, id; of two with one id the
/// later counts.
///
/// In memory an entry is two numbers, so that millions of them fit: ids are known by 64 bits of a hash. Two ids with the
/// same bits take turns, and then each is sent once more; only where the contents' 64 bits agreed as well would a
/// document be missed.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashMap<u64, u64>,
}

impl Journal {
    /// Opens or starts a journal for one job; `job` names what it belongs to (index and content hash). A
    /// journal of another job is started anew.
    ///
    /// # Errors
    /// If the file cannot be read or written, or another process is writing it.
    pub fn open(path: &Path, job: &str) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let write = |e| Error::io("write", path, e);
        let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(path).map_err(write)?;
        claim(&file, path)?;
        let (done, whole) = read(path, |header_line| header_line == header(job))?;
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(write)?;
        if whole == 0 {
            writeln!(file, "{}", header(job)).map_err(write)?;
        }
        Ok(Self { path: path.to_path_buf(), file, done })
    }

    /// Opens the journal of whichever job begins with `prefix`, to note that documents were changed or deleted since.
    /// `None` where there is no such journal: then there is nothing to correct.
    ///
    /// # Errors
    /// If the file cannot be read or written, or another process is writing it.
    pub fn open_of(path: &Path, prefix: &str) -> Result<Option<Self>> {
        let write = |e| Error::io("write", path, e);
        let mut file = match OpenOptions::new().write(true).open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(write(e)),
        };
        claim(&file, path)?;
        let start = header(prefix);
        let (done, whole) = read(path, |header_line| header_line.starts_with(&start))?;
        if whole == 0 {
            return Ok(None);
        }
        file.set_len(whole).and_then(|()| file.seek(SeekFrom::End(0))).map_err(write)?;
        Ok(Some(Self { path: path.to_path_buf(), file, done }))
    }

    /// Whether this content of this id is done.
    pub fn is_done(&self, id: &str, content: u64) -> bool {
        self.done.get(&id_key(id)) == Some(&content)
    }

    /// How many ids are done.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether nothing is done yet.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Marks a batch as done and syncs it to disk. `entries`: id and content ([`content_key`]).
    ///
    /// # Errors
    /// If the disk fails.
    pub fn record<'a>(&mut self, entries: impl IntoIterator<Item = (&'a str, u64)>) -> Result<()> {
        let mut lines = String::new();
        for (id, content) in entries {
            // An id of several lines would read as other entries: such a document is sent again the next time.
            if id.contains(['\n', '\r']) {
                continue;
            }
            let _ = writeln!(lines, "{content:016x}\t{id}");
            self.done.insert(id_key(id), content);
        }
        self.file
            .write_all(lines.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io("write", &self.path, e))
    }

    /// Forgets everything: removes the file.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).map_err(|e| Error::io("write", &self.path, e))
    }
}

/// Characters of a content hash in the journal.
pub const HASH_LEN: usize = 16;

/// The first [`HASH_LEN`] hex characters of the sha256 of a document's contents.
pub fn content_hash(content: &[u8]) -> String {
    let mut hash = crate::files::sha256_bytes(content);
    hash.truncate(HASH_LEN);
    hash
}

/// The first 64 bits of the sha256 of a document's contents: [`content_hash`] as a number.
pub fn content_key(content: &[u8]) -> u64 {
    let digest = Sha256::digest(content);
    digest.iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// What an id is known by in memory; the same within one process only.
pub fn id_key(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(id.as_bytes());
    hasher.finish()
}

/// Keeps other processes from writing the same journal; the system lets go of it when the file is closed, also by a kill.
fn claim(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::invalid_with_hint(
            format!("Another nsparse is writing the journal `{}` now", path.display()),
            "wait until it has ended; `nsparse ingest` and `reencode` can be given a journal of their own (`--journal FILE`)",
        )),
        // On a file system that cannot lock a second writer cannot be seen.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// What a journal says, and the bytes of its whole lines: 0 where there is none, or `is_ours` refuses its first line.
fn read(path: &Path, is_ours: impl Fn(&str) -> bool) -> Result<(HashMap<u64, u64>, u64)> {
    let (mut done, mut whole) = (HashMap::new(), 0);
    if !path.is_file() {
        return Ok((done, whole));
    }
    let mut file = BufReader::new(File::open(path).map_err(|e| Error::io("read", path, e))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = file.read_until(b'\n', &mut line).map_err(|e| Error::io("read", path, e))?;
        // A last line torn by a kill is no entry, whatever it reads like; its document is sent once more.
        if line.last() != Some(&b'\n') {
            return Ok((done, whole));
        }
        let text = String::from_utf8_lossy(&line[..read - 1]);
        if whole == 0 {
            if !is_ours(&text) {
                return Ok((done, whole));
            }
        } else if let Some((hash, id)) = entry(&text) {
            done.insert(id_key(id), hash);
        }
        whole += read as u64;
    }
}

/// Hash and id of a line; `None` for what a kill has torn.
fn entry(line: &str) -> Option<(u64, &str)> {
    let (hash, id) = line.split_once('\t').filter(|(h, _)| h.len() == HASH_LEN)?;
    Some((u64::from_str_radix(hash, 16).ok()?, id))
}

fn header(job: &str) -> String {
    format!("nsparse journal 1 {job}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn what_is_noted_is_known_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/journal");
        let (a, b) = (content_key(b"a"), content_key(b"b"));
        assert_eq!(format!("{a:016x}"), content_hash(b"a"));
        let mut journal = Journal::open(&path, "job").unwrap();
        journal.record([("one", a), ("t\two", a), ("l\nine", a)]).unwrap();
        journal.record([("one", b)]).unwrap();
        let check = |journal: &Journal| {
            assert!(journal.is_done("one", b) && !journal.is_done("one", a), "the later counts");
            assert!(journal.is_done("t\two", a) && !journal.is_done("three", a));
            assert!(!journal.is_done("l\nine", a) && !journal.is_done("l", a));
            assert_eq!(journal.len(), 2);
        };
        check(&journal);
        drop(journal);
        check(&Journal::open(&path, "job").unwrap());
        assert!(Journal::open_of(&path, "another").unwrap().is_none());
        check(&Journal::open_of(&path, "jo").unwrap().unwrap());
        assert!(Journal::open(&path, "another job").unwrap().is_empty());
        assert!(Journal::open(&path, "job").unwrap().is_empty());
    }

    #[test]
    fn a_journal_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut first = Journal::open(&path, "job").unwrap();
        first.record([("one", 1)]).unwrap();
        for second in [Journal::open(&path, "another job").map(Some), Journal::open_of(&path, "job")] {
            let error = second.unwrap_err();
            assert!(error.to_string().contains("Another nsparse is writing the journal"), "{error}");
        }
        first.record([("two", 2)]).unwrap();
        drop(first);
        assert_eq!(Journal::open(&path, "job").unwrap().len(), 2);
    }

    /// Cut at every byte: no entry that was whole is lost, none is invented, and what follows is readable.
    #[test]
    fn torn_anywhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let ids = ["abc", "abcdef", "한국"];
        let mut journal = Journal::open(&path, "job").unwrap();
        let mut ends = vec![std::fs::metadata(&path).unwrap().len()];
        for id in ids {
            journal.record([(id, 7)]).unwrap();
            ends.push(std::fs::metadata(&path).unwrap().len());
        }
        drop(journal);
        let whole = std::fs::read(&path).unwrap();
        for cut in ends[0]..=ends[3] {
            std::fs::write(&path, &whole[..cut as usize]).unwrap();
            let mut journal = Journal::open(&path, "job").unwrap();
            let known = |journal: &Journal| ids.iter().filter(|id| journal.is_done(id, 7)).count();
            let expected = ends[1..].iter().filter(|end| **end <= cut).count();
            assert_eq!((known(&journal), journal.len()), (expected, expected), "cut at {cut}");
            journal.record([("new", 9)]).unwrap();
            drop(journal);
            let journal = Journal::open(&path, "job").unwrap();
            assert!(journal.is_done("new", 9) && known(&journal) == expected, "cut at {cut}");
            assert_eq!(journal.len(), expected + 1, "cut at {cut}");
        }
    }
}

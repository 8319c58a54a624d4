//! The journal of a long job: which ids are done. Appended and synced in batches, so that after a kill at most
//! the batches in flight are repeated.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Ids that are done, each with the hash of what was sent. One line an entry: hash, tab, id.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: HashMap<String, String>,
}

impl Journal {
    /// Opens or starts a journal for one job; `job` names what it belongs to (index and content hash). A
    /// journal of another job is started anew.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn open(path: &Path, job: &str) -> Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let mut done = HashMap::new();
        let mut same_job = false;
        let mut torn = false;
        if path.is_file() {
            let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
            for (index, line) in BufReader::new(file).lines().enumerate() {
                // A last line torn by a kill is no entry; its document is sent once more.
                let Ok(line) = line else { break };
                if index == 0 {
                    same_job = line == header(job);
                    if !same_job {
                        break;
                    }
                } else if let Some((hash, id)) = line.split_once('\t').filter(|(h, _)| h.len() == HASH_LEN) {
                    done.insert(id.to_owned(), hash.to_owned());
                } else {
                    torn = true;
                }
            }
        }
        let mut options = OpenOptions::new();
        options.create(true).write(true);
        if same_job {
            options.append(true);
        } else {
            options.truncate(true);
        }
        let mut file = options.open(path).map_err(|e| Error::io("write", path, e))?;
        if !same_job {
            writeln!(file, "{}", header(job)).map_err(|e| Error::io("write", path, e))?;
        } else if torn {
            writeln!(file).map_err(|e| Error::io("write", path, e))?;
        }
        Ok(Self { path: path.to_path_buf(), file, done })
    }

    /// Whether this content of this id is done.
    pub fn is_done(&self, id: &str, hash: &str) -> bool {
        self.done.get(id).is_some_and(|h| h == hash)
    }

    /// How many ids are done.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether nothing is done yet.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Marks a batch as done and syncs it to disk. `entries`: id and content hash.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn record(&mut self, entries: &[(String, String)]) -> Result<()> {
        let mut lines = String::new();
        for (id, hash) in entries {
            debug_assert_eq!(hash.len(), HASH_LEN);
            lines.push_str(hash);
            lines.push('\t');
            lines.push_str(id);
            lines.push('\n');
        }
        self.file
            .write_all(lines.as_bytes())
            .and_then(|()| self.file.sync_data())
            .map_err(|e| Error::io("write", &self.path, e))?;
        self.done.extend(entries.iter().cloned());
        Ok(())
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

fn header(job: &str) -> String {
    format!("nsparse journal 1 {job}")
}

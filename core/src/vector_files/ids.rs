//! Whether an id comes twice among any number of them, in bounded memory.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Read as _, Seek as _, SeekFrom, Write as _};

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// Ids that are held in memory: 24 bytes each.
const HELD: usize = 1 << 20;
const KEY: usize = 16;
const ENTRY: usize = KEY + 8;

/// The start of an id's sha256: no two ids have the same in practice.
type Key = [u8; KEY];

/// Collects ids with their places (lines, ordinals). Beyond about a million they wait in a file that has no name, as
/// sorted runs of 24 bytes an id.
#[derive(Debug)]
pub struct IdCheck {
    held: Vec<(Key, u64)>,
    capacity: usize,
    spill: Option<File>,
    /// Entries of each run in the file.
    runs: Vec<usize>,
}

impl Default for IdCheck {
    fn default() -> Self {
        Self::new()
    }
}

impl IdCheck {
    /// Without ids.
    pub fn new() -> Self {
        Self::holding(HELD)
    }

    /// As [`IdCheck::new`], with another number of ids that are held in memory; at least 1.
    pub fn holding(capacity: usize) -> Self {
        Self { held: Vec::new(), capacity: capacity.max(1), spill: None, runs: Vec::new() }
    }

    /// One id more; places ascend.
    ///
    /// # Errors
    /// If the temporary file cannot be written.
    pub fn push(&mut self, id: &str, place: u64) -> Result<()> {
        let hash = Sha256::digest(id.as_bytes());
        let mut key = [0; KEY];
        key.copy_from_slice(&hash[..KEY]);
        self.held.push((key, place));
        if self.held.len() == self.capacity {
            self.spill().map_err(|e| Error::io("write", &std::env::temp_dir(), e))?;
        }
        Ok(())
    }

    /// How many ids there are.
    pub fn len(&self) -> u64 {
        (self.runs.iter().sum::<usize>() + self.held.len()) as u64
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn spill(&mut self) -> std::io::Result<()> {
        let file = match &mut self.spill {
            Some(file) => file,
            empty => empty.insert(tempfile::tempfile()?),
        };
        self.held.sort_unstable();
        let mut out = BufWriter::with_capacity(1 << 18, file);
        for (key, place) in &self.held {
            out.write_all(key)?;
            out.write_all(&place.to_le_bytes())?;
        }
        out.flush()?;
        self.runs.push(self.held.len());
        self.held.clear();
        Ok(())
    }

    /// The places of the first id that came before, earlier place first; `None` if all are different.
    ///
    /// # Errors
    /// If the temporary file cannot be read.
    pub fn finish(self) -> Result<Option<(u64, u64)>> {
        self.merged().map_err(|e| Error::io("read", &std::env::temp_dir(), e))
    }

    fn merged(mut self) -> std::io::Result<Option<(u64, u64)>> {
        self.held.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        let mut start = 0;
        for &entries in &self.runs {
            let Some(file) = &self.spill else { break };
            // A handle of its own shares its place with the others: each run reads a chunk at a time by offset.
            runs.push(Run::new(file.try_clone()?, start, entries));
            start += entries * ENTRY;
        }
        let mut held = self.held.into_iter();
        let mut heap = BinaryHeap::new();
        let memory = runs.len();
        for (index, run) in runs.iter_mut().enumerate() {
            heap.extend(run.next()?.map(|entry| Reverse((entry, index))));
        }
        heap.extend(held.next().map(|entry| Reverse((entry, memory))));
        let mut twice: Option<(u64, u64)> = None;
        let mut last: Option<(Key, u64)> = None;
        while let Some(Reverse((entry, index))) = heap.pop() {
            let next = if index == memory { held.next() } else { runs[index].next()? };
            heap.extend(next.map(|entry| Reverse((entry, index))));
            match last {
                Some((key, first)) if key == entry.0 => {
                    if twice.is_none_or(|(_, second)| entry.1 < second) {
                        twice = Some((first, entry.1));
                    }
                }
                _ => last = Some(entry),
            }
        }
        Ok(twice)
    }
}

/// Entries that a run reads at a time.
const CHUNK: usize = 4096;

/// One sorted run of the temporary file.
struct Run {
    file: File,
    offset: usize,
    left: usize,
    chunk: std::vec::IntoIter<(Key, u64)>,
}

impl Run {
    fn new(file: File, offset: usize, entries: usize) -> Self {
        Self { file, offset, left: entries, chunk: Vec::new().into_iter() }
    }

    fn next(&mut self) -> std::io::Result<Option<(Key, u64)>> {
        if let Some(entry) = self.chunk.next() {
            return Ok(Some(entry));
        }
        let count = self.left.min(CHUNK);
        self.file.seek(SeekFrom::Start(self.offset as u64))?;
        let mut bytes = vec![0; count * ENTRY];
        self.file.read_exact(&mut bytes)?;
        self.offset += bytes.len();
        self.left -= count;
        let entries = bytes.chunks_exact(ENTRY).map(|entry| {
            let (mut key, mut place) = ([0; KEY], [0; 8]);
            key.copy_from_slice(&entry[..KEY]);
            place.copy_from_slice(&entry[KEY..]);
            (key, u64::from_le_bytes(place))
        });
        self.chunk = entries.collect::<Vec<_>>().into_iter();
        Ok(self.chunk.next())
    }
}

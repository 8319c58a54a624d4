//! Documents as they come in: blocks of lines, read ahead and looked through by threads of their own, in the input's
//! order.

use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nsparse_core::journal::content_key;

use super::ready::{self, Members};

/// Bytes of a block, about.
const BLOCK: usize = 512 << 10;

/// A document that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: String,
    /// What the journal knows it by.
    pub content: u64,
    /// Its JSON in the block.
    pub json: Range<usize>,
    /// Why it cannot be indexed, if so.
    pub fault: Option<String>,
}

/// Documents that were read together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Block {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Block {
    /// Appends a document as it came, with its name and line for the message.
    ///
    /// # Errors
    /// If the line is no JSON object, or has no id.
    pub fn push(&mut self, name: &Path, line: usize, json: &[u8], members: &Members) -> nsparse_core::Result<()> {
        let start = self.bytes.len();
        let read = ready::read(json, members, &mut self.bytes);
        let read = read.map_err(|message| nsparse_core::Error::line(name, line, message))?;
        let json = start..self.bytes.len();
        let content = content_key(&self.bytes[json.clone()]);
        self.entries.push(Entry { id: read.id, content, json, fault: read.fault });
        Ok(())
    }

    /// Appends a document whose id is known; `json` is an object on one line.
    pub fn push_object(&mut self, id: &str, json: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(json);
        let entry = Entry { id: id.to_owned(), content: content_key(json), json: start..self.bytes.len(), fault: None };
        self.entries.push(entry);
    }

    /// The documents.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// A document's JSON, as it will be sent.
    pub fn json(&self, entry: &Entry) -> &[u8] {
        &self.bytes[entry.json.clone()]
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// Documents.
    Block(Block),
    /// None yet: the input gives nothing for a moment.
    Idle,
    /// None any more.
    End,
}

/// Where documents come from.
pub trait Documents {
    /// The next ones; waits at most so long.
    ///
    /// # Errors
    /// If the input cannot be read, or a document is none.
    fn next(&mut self, patience: Duration) -> crate::Result<Next>;
}

/// A file or a pipe of jsonl.
pub struct Lines {
    blocks: Receiver<nsparse_core::Result<Receiver<nsparse_core::Result<Block>>>>,
}

type Answer = nsparse_core::Result<Block>;
type Work = (Vec<u8>, usize, SyncSender<Answer>);

impl Lines {
    /// Reads `input` ahead in a thread, with so many others that look the lines through. `name` is for messages. What
    /// comes through a pipe is handed on as it comes (`is_live`). Empty lines are skipped.
    pub fn new(input: Box<dyn Read + Send>, name: &Path, members: &Members, workers: usize, is_live: bool) -> Self {
        let workers = workers.max(1);
        let (work, works) = channel::<Work>();
        let works = Arc::new(Mutex::new(works));
        for _ in 0..workers {
            let (works, name, members) = (Arc::clone(&works), name.to_path_buf(), members.clone());
            std::thread::spawn(move || look_through(&works, &name, &members));
        }
        // So many blocks are read ahead, and no more memory is held.
        let (blocks, ordered) = sync_channel(workers + 1);
        let name = name.to_path_buf();
        std::thread::spawn(move || cut(input, &name, is_live, &work, &blocks));
        Self { blocks: ordered }
    }
}

impl Documents for Lines {
    fn next(&mut self, patience: Duration) -> crate::Result<Next> {
        match self.blocks.recv_timeout(patience) {
            Ok(block) => match block?.recv() {
                Ok(block) => Ok(Next::Block(block?)),
                Err(_) => Err(nsparse_core::Error::invalid("a thread that reads documents has ended").into()),
            },
            Err(RecvTimeoutError::Timeout) => Ok(Next::Idle),
            Err(RecvTimeoutError::Disconnected) => Ok(Next::End),
        }
    }
}

/// Cuts the input into blocks of whole lines; ends with the input, or when nobody listens any more.
fn cut(
    mut input: Box<dyn Read + Send>,
    name: &Path,
    is_live: bool,
    work: &Sender<Work>,
    blocks: &SyncSender<nsparse_core::Result<Receiver<Answer>>>,
) {
    let (mut rest, mut line) = (Vec::new(), 1usize);
    loop {
        let mut bytes = std::mem::take(&mut rest);
        let is_end;
        // At least one whole line; from a pipe no more than what is there.
        loop {
            let start = bytes.len();
            bytes.resize(start + BLOCK, 0);
            let read = match input.read(&mut bytes[start..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {
                    bytes.truncate(start);
                    continue;
                }
                Err(e) => {
                    let _ = blocks.send(Err(nsparse_core::Error::io("read", name, e)));
                    return;
                }
                Ok(read) => read,
            };
            bytes.truncate(start + read);
            let has_line = memchr::memchr(b'\n', &bytes[start..]).is_some();
            if read == 0 || has_line && (is_live || bytes.len() >= BLOCK) {
                is_end = read == 0;
                break;
            }
        }
        if !is_end && let Some(end) = memchr::memrchr(b'\n', &bytes) {
            rest.extend_from_slice(&bytes[end + 1..]);
            bytes.truncate(end + 1);
        }
        if !bytes.is_empty() {
            let lines = memchr::memchr_iter(b'\n', &bytes).count();
            let (answer, answered) = sync_channel(1);
            if work.send((bytes, line, answer)).is_err() || blocks.send(Ok(answered)).is_err() {
                return;
            }
            line += lines;
        }
        if is_end {
            return;
        }
    }
}

/// Looks blocks through until there are no more.
fn look_through(works: &Mutex<Receiver<Work>>, name: &Path, members: &Members) {
    loop {
        let next = works.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((bytes, first, answer)) = next else { return };
        let mut block = Block { bytes: Vec::with_capacity(bytes.len()), entries: Vec::new() };
        let mut start = 0;
        let ends = memchr::memchr_iter(b'\n', &bytes).chain([bytes.len()]);
        let lines = ends.map(|end| &bytes[std::mem::replace(&mut start, end + 1)..end]).enumerate();
        let read = lines
            .filter(|(_, line)| !line.trim_ascii().is_empty())
            .try_for_each(|(at, line)| block.push(name, first + at, line, members));
        // Nobody listens any more where the ingest was stopped.
        let _ = answer.send(read.map(|()| block));
    }
}

/// Blocks that are there already: for tests and small jobs.
#[derive(Debug, Default)]
pub struct Given(pub std::collections::VecDeque<Block>);

impl Documents for Given {
    fn next(&mut self, _patience: Duration) -> crate::Result<Next> {
        Ok(self.0.pop_front().map_or(Next::End, Next::Block))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use std::fmt::Write as _;

    fn members() -> Members {
        Members { id: "_id".to_owned(), checked: None, replaced: None, bound: Vec::new() }
    }

    fn all(mut lines: Lines) -> crate::Result<Vec<(String, String)>> {
        let mut found = Vec::new();
        loop {
            match lines.next(Duration::from_mins(1))? {
                Next::Block(block) => found.extend(
                    block
                        .entries()
                        .iter()
                        .map(|entry| (entry.id.clone(), String::from_utf8(block.json(entry).to_vec()).unwrap())),
                ),
                Next::Idle => unreachable!("a minute is long"),
                Next::End => return Ok(found),
            }
        }
    }

    /// Gives a few bytes at a time.
    struct Drops(std::io::Cursor<Vec<u8>>);

    impl Read for Drops {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let most = buffer.len().min(7);
            self.0.read(&mut buffer[..most])
        }
    }

    #[test]
    fn order_holds_however_it_comes() {
        let mut text = String::new();
        for i in 0..40_000 {
            let _ = write!(text, "{{\"_id\":\"d{i}\",\"n\":{i},\"x\":\"{}\"}}\n\n", "y".repeat(i % 90));
        }
        assert!(text.len() > 3 * BLOCK);
        let expected: Vec<String> = (0..40_000).map(|i| format!("d{i}")).collect();
        for workers in [1, 3] {
            let input = Box::new(std::io::Cursor::new(text.clone().into_bytes()));
            let found = all(Lines::new(input, Path::new("f"), &members(), workers, false)).unwrap();
            assert!(found.iter().map(|f| &f.0).eq(&expected));
            assert_eq!(found[91].1, "{\"n\":91,\"x\":\"y\"}");
        }
        // A pipe, and a last line without an end.
        let short = text.lines().take(60).collect::<Vec<_>>().join("\n");
        let input = Box::new(Drops(std::io::Cursor::new(short.into_bytes())));
        let found = all(Lines::new(input, Path::new("f"), &members(), 2, true)).unwrap();
        assert!(found.iter().map(|f| &f.0).eq(&expected[..30]));
    }

    #[test]
    fn a_broken_line_is_named() {
        let text = "{\"_id\":\"a\"}\n\n{\"_id\":\"b\"\n";
        let lines = Lines::new(Box::new(text.as_bytes()), Path::new("f.jsonl"), &members(), 1, false);
        let error = all(lines).unwrap_err().to_string();
        assert!(error.contains("f.jsonl") && error.contains('3') && error.contains("not JSON"), "{error}");
        assert!(all(Lines::new(Box::new(b"\n".as_slice()), Path::new("f"), &members(), 1, false)).unwrap().is_empty());
    }
}

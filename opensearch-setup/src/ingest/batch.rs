//! A bulk body as it is built: two lines a document (one for a deletion), with the place of each, so that what was
//! refused can be sent again without being made again.

use std::ops::Range;

use nsparse_core::journal::id_key;

use super::options::Action;

/// A document in a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Its id.
    pub(crate) id: Box<str>,
    /// What the id is known by.
    pub(crate) key: u64,
    /// Its contents, for the journal.
    pub(crate) content: u64,
    pub(crate) action: Action,
    /// Its lines in the body, newlines included.
    lines: Range<usize>,
}

/// Documents that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    body: Vec<u8>,
    items: Vec<Item>,
    /// How often it was sent since something of it was taken.
    pub(crate) tries: usize,
    /// Whether it was ended by its size or its number of documents.
    pub(crate) is_whole: bool,
}

impl Batch {
    /// An empty batch with room for so many bytes: a body that grows by doubling would hold twice its memory.
    pub(crate) fn with_room(bytes: usize) -> Self {
        Self { body: Vec::with_capacity(bytes), ..Self::default() }
    }

    /// Appends a document; `write` appends its JSON, on one line, and is not asked for a deletion.
    pub(crate) fn push(&mut self, id: &str, content: u64, action: Action, write: impl FnOnce(&mut Vec<u8>)) {
        let body = &mut self.body;
        let start = body.len();
        body.extend_from_slice(match action {
            Action::Index => br#"{"index":{"_id":"#.as_slice(),
            Action::Update { .. } => br#"{"update":{"_id":"#,
            Action::Delete => br#"{"delete":{"_id":"#,
        });
        serde_json::to_writer(&mut *body, id).expect("writing to memory does not fail");
        match action {
            Action::Index => {
                body.extend_from_slice(b"}}\n");
                write(body);
            }
            Action::Update { upsert } => {
                // Others may write to the same document meanwhile.
                body.extend_from_slice(b",\"retry_on_conflict\":3}}\n{\"doc\":");
                write(body);
                body.extend_from_slice(if upsert { b",\"doc_as_upsert\":true}".as_slice() } else { b"}" });
            }
            Action::Delete => body.extend_from_slice(b"}}"),
        }
        body.push(b'\n');
        let lines = start..body.len();
        self.items.push(Item { id: id.into(), key: id_key(id), content, action, lines });
    }

    /// The body, for a copy that is sent.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Bytes of the body.
    pub(crate) fn bytes(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn items(&self) -> &[Item] {
        &self.items
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The JSON that a document was sent with; empty for a deletion.
    pub(crate) fn document(&self, item: &Item) -> &[u8] {
        let lines = &self.body[item.lines.clone()];
        lines.splitn(3, |b| *b == b'\n').nth(1).unwrap_or_default()
    }

    /// Cuts the batch: this keeps the first `at` documents, the result has the others.
    pub(crate) fn split_off(&mut self, at: usize) -> Self {
        let mut items = self.items.split_off(at);
        let start = items.first().map_or(self.body.len(), |item| item.lines.start);
        let body = self.body.split_off(start);
        for item in &mut items {
            item.lines = item.lines.start - start..item.lines.end - start;
        }
        self.is_whole = false;
        Self { body, items, tries: self.tries, is_whole: false }
    }

    /// Appends the documents of another batch.
    pub(crate) fn append(&mut self, other: Self) {
        let start = self.body.len();
        self.body.extend_from_slice(&other.body);
        let moved = |item: Item| Item { lines: item.lines.start + start..item.lines.end + start, ..item };
        self.items.extend(other.items.into_iter().map(moved));
    }

    /// The documents at these places alone, in their order.
    pub(crate) fn only(&self, places: &[usize]) -> Self {
        let mut part = Self { tries: self.tries, ..Self::default() };
        for item in places.iter().map(|&place| &self.items[place]) {
            let start = part.body.len();
            part.body.extend_from_slice(&self.body[item.lines.clone()]);
            part.items.push(Item { lines: start..part.body.len(), ..item.clone() });
        }
        part
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::default();
        batch.push("a\"1", 1, Action::Index, |b| b.extend(br#"{"x":1}"#));
        batch.push("b", 2, Action::Delete, |_| unreachable!("a deletion has no document"));
        batch.push("c", 3, Action::Update { upsert: true }, |b| b.extend(br#"{"y":2}"#));
        batch.push("d", 4, Action::Update { upsert: false }, |b| b.extend(b"{}"));
        batch
    }

    const BODY: &str = r#"{"index":{"_id":"a\"1"}}
{"x":1}
{"delete":{"_id":"b"}}
{"update":{"_id":"c","retry_on_conflict":3}}
{"doc":{"y":2},"doc_as_upsert":true}
{"update":{"_id":"d","retry_on_conflict":3}}
{"doc":{}}
"#;

    #[test]
    fn two_lines_a_document() {
        let batch = batch();
        assert_eq!(std::str::from_utf8(batch.body()).unwrap(), BODY);
        let documents: Vec<&[u8]> = batch.items().iter().map(|item| batch.document(item)).collect();
        assert_eq!(
            documents,
            [br#"{"x":1}"#.as_slice(), b"", br#"{"doc":{"y":2},"doc_as_upsert":true}"#, b"{\"doc\":{}}"]
        );
    }

    #[test]
    fn parts_have_the_same_lines() {
        for at in 0..=4 {
            let mut first = batch();
            let second = first.split_off(at);
            assert_eq!([first.body(), second.body()].concat(), BODY.as_bytes());
            assert_eq!((first.len(), second.len()), (at, 4 - at));
            assert_eq!(second.body(), batch().only(&(at..4).collect::<Vec<_>>()).body());
            let ids = |batch: &Batch| batch.items().iter().map(|i| i.id.to_string()).collect::<Vec<_>>();
            assert_eq!([ids(&first), ids(&second)].concat(), ["a\"1", "b", "c", "d"]);
            first.append(second);
            assert_eq!((first.body(), first.items()), (batch().body(), batch().items()));
        }
        let part = batch().only(&[0, 2]);
        assert_eq!(part.document(&part.items()[1]), br#"{"doc":{"y":2},"doc_as_upsert":true}"#);
    }
}

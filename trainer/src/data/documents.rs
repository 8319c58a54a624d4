//! Documents: their texts while rows are joined with them, then their tokens.

use std::collections::HashMap;

use nsparse_core::beir::{self, Dataset};
use nsparse_core::{Cancel, DocumentTemplate, Progress, TextTokenizer, TokenId};
use rayon::prelude::*;
use sha2::Digest as _;

use super::SetCounts;
use crate::sections::{DataSection, IdSpace};
use crate::{Error, Result};

/// Tokenised documents, packed: windows as the encoder reads them, one a document or, with `data.segments`, several.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    ids: Vec<String>,
    tokens: Vec<TokenId>,
    /// Where each window begins in `tokens`; one more entry than windows.
    offsets: Vec<usize>,
    /// Each document's first window; one more entry than documents.
    windows: Vec<usize>,
    lengths: Vec<u32>,
    /// Word pieces that a document's second and later windows repeat.
    overlap: usize,
}

impl Documents {
    /// Adds a document of one window; `length` is that of the whole text. Its number.
    pub(crate) fn push(&mut self, id: String, window: &[TokenId], length: usize) -> usize {
        self.push_windows(id, &[window], length)
    }

    /// Adds a document of one or more windows. Its number.
    pub fn push_windows<W: AsRef<[TokenId]>>(&mut self, id: String, windows: &[W], length: usize) -> usize {
        if self.offsets.is_empty() {
            self.offsets.push(0);
            self.windows.push(0);
        }
        for window in windows {
            self.tokens.extend_from_slice(window.as_ref());
            self.offsets.push(self.tokens.len());
        }
        self.ids.push(id);
        self.windows.push(self.offsets.len() - 1);
        self.lengths.push(length as u32);
        self.ids.len() - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A document's id: the corpus's, or `row:` with a number for a text that only a training row has.
    pub fn id(&self, number: usize) -> &str {
        &self.ids[number]
    }

    /// `[CLS] pieces [SEP]`, cut at the recipe's `max_tokens`: the document's first window.
    pub fn window(&self, number: usize) -> &[TokenId] {
        let first = self.windows[number];
        &self.tokens[self.offsets[first]..self.offsets[first + 1]]
    }

    /// All windows of a document, in the text's order.
    pub fn segments(&self, number: usize) -> impl ExactSizeIterator<Item = &[TokenId]> {
        let places = self.windows[number]..self.windows[number + 1];
        places.map(|place| &self.tokens[self.offsets[place]..self.offsets[place + 1]])
    }

    /// The windows of a document one after the other: all tokens that the encoder reads of it.
    pub fn tokens(&self, number: usize) -> &[TokenId] {
        &self.tokens[self.offsets[self.windows[number]]..self.offsets[self.windows[number + 1]]]
    }

    /// What the encoder reads of a document, each word piece as often as it stands in the text: what a window repeats
    /// of the one before it is left out. Special tokens are among them.
    pub fn read(&self, number: usize) -> impl Iterator<Item = TokenId> + '_ {
        self.segments(number).enumerate().flat_map(|(i, window)| {
            let repeated = if i == 0 { 0 } else { 1 + self.overlap };
            window[repeated..].iter().copied()
        })
    }

    /// How many word pieces of a document the encoder reads.
    pub fn pieces_read(&self, number: usize) -> usize {
        let segments = self.segments(number).len();
        self.tokens(number).len() - 2 * segments - (segments - 1) * self.overlap
    }

    /// Word pieces of the whole text, untruncated, without special tokens.
    pub fn length(&self, number: usize) -> usize {
        self.lengths[number] as usize
    }

    /// Mean of [`Documents::length`] over all documents.
    pub fn average_length(&self) -> f64 {
        self.lengths.iter().map(|&l| f64::from(l)).sum::<f64>() / self.len().max(1) as f64
    }

    /// Everything that is read of them, for a fingerprint.
    pub(super) fn numbers(&self) -> [Box<dyn Iterator<Item = u64> + '_>; 3] {
        // Where each document is one window, its windows say nothing new.
        let segments = if self.windows.len() == self.offsets.len() { &[][..] } else { &self.windows };
        [
            Box::new(self.tokens.iter().map(|&t| u64::from(t))),
            Box::new(self.offsets.iter().map(|&o| o as u64)),
            Box::new(self.lengths.iter().map(|&l| u64::from(l)).chain(segments.iter().map(|&w| w as u64))),
        ]
    }
}

/// Texts by number: the corpus's documents first, then those that only rows have. Held once; gone document by
/// document as they are tokenised.
#[derive(Default)]
pub(super) struct Texts {
    ids: Vec<String>,
    all: Vec<String>,
    by_id: HashMap<String, usize>,
    /// By the text's hash; the corpus's only once they are asked for.
    by_text: HashMap<[u8; 16], usize>,
    corpus: usize,
    corpus_is_hashed: bool,
}

impl Texts {
    /// Reads a corpus, templated, document by document.
    pub(super) fn read_corpus(
        &mut self,
        set: &Dataset,
        template: &DocumentTemplate,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<()> {
        let path = set.folder.join("corpus.jsonl");
        let task = progress.start("Reading the corpus", 0);
        let asked = template.other_fields();
        let mut seen = vec![false; asked.len()];
        beir::each_document(&path, &set.fields, |line, document| {
            for (seen, name) in seen.iter_mut().zip(&asked) {
                *seen |= document.other.contains_key(*name);
            }
            let text = template.apply(&document);
            let number = self.push(document.id, text);
            if self.by_id.insert(self.ids[number].clone(), number).is_some() {
                let message = format!("the id `{}` stands in an earlier line already", self.ids[number]);
                return Err(nsparse_core::Error::line(&path, line, message));
            }
            if line.is_multiple_of(1024) {
                task.advance(1024);
                cancel.check()?;
            }
            Ok(())
        })?;
        self.corpus = self.all.len();
        match seen.iter().position(|s| !s) {
            None => Ok(()),
            Some(at) => Err(Error::config_with_hint(
                format!(
                    "`data.template` asks for `{}`, a field that no document of `{}` has",
                    asked[at],
                    path.display()
                ),
                "fields are named as in corpus.jsonl and hold a string; {title} and {text} are always there",
            )),
        }
    }

    fn push(&mut self, id: String, text: String) -> usize {
        self.ids.push(id);
        self.all.push(text);
        self.all.len() - 1
    }

    /// How many documents the corpus has.
    pub(super) fn corpus(&self) -> usize {
        self.corpus
    }

    /// All texts.
    pub(super) fn all(&self) -> &[String] {
        &self.all
    }

    /// The number of a document of the corpus.
    pub(super) fn of_corpus(&self, id: &str) -> Option<usize> {
        self.by_id.get(id).copied().filter(|&number| number < self.corpus)
    }

    /// The number of a row's document: the corpus's by its id, else that of the same text, else a new one.
    pub(super) fn place(
        &mut self,
        set: &str,
        space: IdSpace,
        id: Option<&str>,
        text: &str,
        counts: &mut SetCounts,
    ) -> usize {
        if let Some(number) = id.filter(|_| space == IdSpace::Corpus).and_then(|id| self.of_corpus(id)) {
            counts.other_texts += usize::from(self.all[number] != text.trim());
            return number;
        }
        if !self.corpus_is_hashed {
            let texts = &self.all;
            let hashes: Vec<[u8; 16]> = texts.par_iter().map(|text| hash(text)).collect();
            for (number, hash) in hashes.into_iter().enumerate() {
                self.by_text.entry(hash).or_insert(number);
            }
            self.corpus_is_hashed = true;
        }
        let key = hash(text);
        if let Some(&number) = self.by_text.get(&key) {
            return number;
        }
        let number = self.all.len();
        // An id that means another text already gets the set's name before it.
        let free = |id: &String| !self.by_id.contains_key(id);
        let id = id
            .map(str::to_owned)
            .filter(free)
            .or_else(|| id.map(|id| format!("{set}:{id}")).filter(free))
            .unwrap_or_else(|| format!("row:{number}"));
        self.by_text.insert(key, number);
        self.by_id.insert(id.clone(), number);
        self.push(id, text.to_owned())
    }

    /// Tokenises everything; each text is let go once its tokens are there.
    pub(super) fn tokenise(
        self,
        tokenizer: &TextTokenizer,
        section: &DataSection,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Documents> {
        let Self { ids, all: mut texts, by_id, by_text, .. } = self;
        drop((by_id, by_text));
        let task = progress.start("Tokenizing", texts.len() as u64);
        let segments = section.segments.as_ref();
        let mut documents = Documents { overlap: segments.map_or(0, |s| s.overlap), ..Documents::default() };
        let mut ids = ids.into_iter();
        for chunk in texts.chunks_mut(1024) {
            cancel.check()?;
            let windows = chunk
                .par_iter_mut()
                .map(|text| tokenizer.windows(&std::mem::take(text), section.max_tokens, segments))
                .collect::<nsparse_core::Result<Vec<_>>>()?;
            let count = windows.len() as u64;
            // The windows first: at a chunk's end nothing is taken from the ids.
            for ((windows, length), id) in windows.into_iter().zip(ids.by_ref()) {
                documents.push_windows(id, &windows, length);
            }
            task.advance(count);
        }
        Ok(documents)
    }
}

/// Half a sha256: enough to tell texts apart.
fn hash(text: &str) -> [u8; 16] {
    let digest = sha2::Sha256::digest(text.trim().as_bytes());
    std::array::from_fn(|i| digest[i])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn every_document_of_a_large_corpus_keeps_its_id_and_its_tokens() {
        let tokenizer = crate::synthetic::tokenizer(3000).unwrap();
        let mut texts = Texts::default();
        for n in 0..2500 {
            texts.push(format!("d{n}"), format!("t{}", n + 5));
        }
        let documents =
            texts.tokenise(&tokenizer, &DataSection::default(), &Cancel::default(), &nsparse_core::NoProgress).unwrap();
        assert_eq!(documents.len(), 2500);
        for n in 0..2500 {
            assert_eq!((documents.id(n), documents.window(n)[1]), (format!("d{n}").as_str(), n as TokenId + 5));
        }
    }

    #[test]
    fn a_row_is_joined_by_id_then_by_text() {
        let mut texts = Texts::default();
        for (id, text) in [("d1", "one"), ("d2", "two")] {
            let number = texts.push(id.to_owned(), text.to_owned());
            texts.by_id.insert(id.to_owned(), number);
        }
        texts.corpus = 2;
        let mut counts = SetCounts::default();
        let mut place = |space, id, text| texts.place("s", space, id, text, &mut counts);
        assert_eq!(place(IdSpace::Corpus, Some("d2"), "two"), 1);
        assert_eq!(place(IdSpace::Corpus, Some("d2"), "two, cut"), 1);
        assert_eq!(place(IdSpace::Corpus, None, " one "), 0);
        assert_eq!(place(IdSpace::Own, Some("d2"), "one"), 0);
        // Another collection's d2 is a document of its own, and found again by its text, whatever its id.
        assert_eq!(place(IdSpace::Own, Some("d2"), "three"), 2);
        assert_eq!(place(IdSpace::Own, Some("x"), "three"), 2);
        assert_eq!(place(IdSpace::Corpus, Some("x"), "four"), 3);
        assert_eq!(place(IdSpace::Corpus, Some("x"), "five"), 4);
        assert_eq!(place(IdSpace::Corpus, Some("x"), "six"), 5);
        assert_eq!(place(IdSpace::Corpus, None, "seven"), 6);
        assert_eq!(texts.ids, ["d1", "d2", "s:d2", "x", "s:x", "row:5", "row:6"]);
        assert_eq!(counts.other_texts, 1);
    }
}

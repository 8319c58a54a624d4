//! The tokenizer that documents and queries share: a Hugging Face `tokenizer.json`, cleaned of what is baked in.

use std::path::Path;

use tokenizers::{Tokenizer, TruncationDirection, TruncationParams, TruncationStrategy};

use crate::{Error, Result, TokenId};

/// The special tokens of a BERT-family vocabulary, by role. Their ids never carry weight.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Padding; only the attention mask tells it from text.
    pub pad: TokenId,
    /// What an unknown word becomes.
    pub unk: TokenId,
    /// First token of a text.
    pub cls: TokenId,
    /// Last token of a text.
    pub sep: TokenId,
    /// All special ids, ascending; these four and `[MASK]` and whatever else the file marks as special.
    pub all: Vec<TokenId>,
}

/// A tokenizer without padding and without truncation of its own: windows are the caller's choice.
#[derive(Debug, Clone)]
pub struct TextTokenizer {
    inner: Tokenizer,
    vocabulary: Vec<String>,
    special: SpecialTokens,
}

impl TextTokenizer {
    /// Loads `tokenizer.json`. Truncation and padding baked into it are switched off.
    ///
    /// # Errors
    /// If the file is missing or broken, its ids have gaps, or a special token is missing.
    pub fn load(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_bytes(&bytes).map_err(|e| Error::file(path, e.to_string()))
    }

    /// As [`TextTokenizer::load`], from the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// As [`TextTokenizer::load`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let inner = Tokenizer::from_bytes(bytes).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Self::new(inner)
    }

    /// From a tokenizer built in memory.
    ///
    /// # Errors
    /// If its ids have gaps or a special token is missing.
    pub fn new(mut inner: Tokenizer) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let size = inner.get_vocab_size(true);
        let mut vocabulary = vec![None; size];
        for (token, id) in inner.get_vocab(true) {
            let slot = vocabulary.get_mut(id as usize).ok_or_else(|| {
                Error::invalid(format!("Token `{token}` has id {id}, but the vocabulary has {size} entries"))
            })?;
            *slot = Some(token);
        }
        let vocabulary: Vec<String> = vocabulary
            .into_iter()
            .enumerate()
            .map(|(id, t)| t.ok_or_else(|| Error::invalid(format!("The vocabulary has no token with id {id}"))))
            .collect::<Result<_>>()?;
        let find = |token: &str| {
            inner.token_to_id(token).ok_or_else(|| {
                Error::invalid_with_hint(
                    format!("The vocabulary has no `{token}`"),
                    "nsparse needs a BERT-family tokenizer with [PAD], [UNK], [CLS] and [SEP]",
                )
            })
        };
        let (pad, unk, cls, sep) = (find("[PAD]")?, find("[UNK]")?, find("[CLS]")?, find("[SEP]")?);
        let mut all: Vec<TokenId> = inner
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| id)
            .chain([pad, unk, cls, sep])
            .chain(inner.token_to_id("[MASK]"))
            .collect();
        all.sort_unstable();
        all.dedup();
        Ok(Self { inner, vocabulary, special: SpecialTokens { pad, unk, cls, sep, all } })
    }

    /// The vocabulary's strings by token id.
    pub fn vocabulary(&self) -> &[String] {
        &self.vocabulary
    }

    /// The id of a vocabulary string.
    pub fn id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// The special tokens.
    pub fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Word pieces of a text, untruncated, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn pieces(&self, text: &str) -> Result<Vec<TokenId>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`TextTokenizer::pieces`], each with the bytes of the text that it stands for.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn placed_pieces(&self, text: &str) -> Result<Vec<(TokenId, std::ops::Range<usize>)>> {
        let encoding = self.inner.encode(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end);
        Ok(encoding.get_ids().iter().copied().zip(places).collect())
    }

    /// `[CLS] pieces [SEP]`, at most `max_tokens` ids in all, and how many pieces the text has untruncated.
    ///
    /// # Errors
    /// If the tokenizer refuses the text, or `max_tokens` is below 3.
    pub fn window(&self, text: &str, max_tokens: usize) -> Result<(Vec<TokenId>, usize)> {
        if max_tokens < 3 {
            return Err(Error::invalid(format!(
                "A window of {max_tokens} tokens has no room for text; use at least 3"
            )));
        }
        let pieces = self.pieces(text)?;
        let kept = pieces.len().min(max_tokens - 2);
        let mut ids = Vec::with_capacity(kept + 2);
        ids.push(self.special.cls);
        ids.extend_from_slice(&pieces[..kept]);
        ids.push(self.special.sep);
        Ok((ids, pieces.len()))
    }

    /// `[CLS] first [SEP] second [SEP]`, at most `max_tokens` ids in all, and the type of each: 0 up to the first
    /// `[SEP]`, then 1. The longer text is cut first, as Hugging Face's `longest_first` does it.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, or `max_tokens` is below 5.
    pub fn pair_window(&self, first: &str, second: &str, max_tokens: usize) -> Result<(Vec<TokenId>, Vec<u8>)> {
        if max_tokens < 5 {
            return Err(Error::invalid(format!(
                "A window of {max_tokens} tokens has no room for two texts; use at least 5"
            )));
        }
        let (first, second) = (self.pieces(first)?, self.pieces(second)?);
        let (a, b) = longest_first(first.len(), second.len(), max_tokens - 3);
        let mut ids = Vec::with_capacity(a + b + 3);
        ids.push(self.special.cls);
        ids.extend_from_slice(&first[..a]);
        ids.push(self.special.sep);
        let mut types = vec![0; ids.len()];
        ids.extend_from_slice(&second[..b]);
        ids.push(self.special.sep);
        types.resize(ids.len(), 1);
        Ok((ids, types))
    }

    /// The file as ML Commons has to get it: truncation at `max_tokens` from the right, no padding.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn to_json(&self, max_tokens: usize) -> Result<String> {
        let mut copy = self.inner.clone();
        copy.with_truncation(Some(TruncationParams {
            direction: TruncationDirection::Right,
            max_length: max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        }))
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
        copy.to_string(true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// Ids that never carry weight in any engine: special tokens, `[unusedN]`, and every token with a dot
    /// (`rank_feature` cannot reach those, `neural_sparse` can, and all engines must agree). Ascending.
    pub fn weightless(&self) -> Vec<TokenId> {
        (0..self.vocabulary.len() as TokenId)
            .filter(|&id| {
                let token = &self.vocabulary[id as usize];
                self.special.all.binary_search(&id).is_ok() || token.contains('.') || is_unused(token)
            })
            .collect()
    }
}

/// How many pieces of two texts are kept where `room` pieces fit: the longer one is cut until both are equally long,
/// then both; of an odd rest the longer one has one more. As in the crate `tokenizers`.
fn longest_first(a: usize, b: usize, room: usize) -> (usize, usize) {
    if a + b <= room {
        return (a, b);
    }
    let short = a.min(b);
    let (short, long) = if short <= room / 2 { (short, room - short) } else { (room / 2, room / 2 + room % 2) };
    if a > b { (long, short) } else { (short, long) }
}

/// `[unused0]`, `[unused1]`, …: entries that no text ever reaches.
pub fn is_unused(token: &str) -> bool {
    token
        .strip_prefix("[unused")
        .and_then(|rest| rest.strip_suffix(']'))
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

//! Document vectors that no model made: word pieces weighted by how often they stand in the text. With idf on
//! the query side they are the baselines that a trained model has to beat.

use nsparse_core::{Cancel, DocumentEncoder, Progress, Result, SparseVector, TextTokenizer, TokenId, Weight};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// What a word piece that stands `tf` times in a text weighs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum LexicalWeight {
    /// 1.
    Binary,
    /// `ln(1 + tf)`.
    LogTf,
    /// BM25's tf part, [`bm25_tf`].
    Bm25 {
        /// How soon repeats stop to count.
        k1: f32,
        /// How much length counts, 0 to 1.
        b: f32,
    },
}

impl LexicalWeight {
    /// BM25's tf part with k1 = 1.2 and b = 0.75.
    pub const BM25: Self = Self::Bm25 { k1: 1.2, b: 0.75 };

    /// The weight of a word piece; `length` and `mean_length` in word pieces.
    pub fn weight(self, tf: u32, length: usize, mean_length: f64) -> Weight {
        match self {
            Self::Binary => 1.0,
            Self::LogTf => f64::from(tf).ln_1p() as Weight,
            Self::Bm25 { k1, b } => bm25_tf(tf, length, mean_length, k1, b),
        }
    }
}

/// BM25's tf part: `tf · (k1 + 1) / (tf + k1 · (1 − b + b · length / mean_length))`, between 0 and k1 + 1.
pub fn bm25_tf(tf: u32, length: usize, mean_length: f64, k1: f32, b: f32) -> Weight {
    let (tf, k1, b) = (f64::from(tf), f64::from(k1), f64::from(b));
    let relative = if mean_length > 0.0 { length as f64 / mean_length } else { 1.0 };
    (tf * (k1 + 1.0) / (tf + k1 * (1.0 - b + b * relative))) as Weight
}

/// Counts word pieces and weighs them; reads texts whole.
#[derive(Debug, Clone)]
pub struct LexicalEncoder {
    tokenizer: TextTokenizer,
    weight: LexicalWeight,
    mean_length: f64,
    weightless: Vec<TokenId>,
}

impl LexicalEncoder {
    /// An encoder for texts whose mean length, in word pieces, is known. Tokens that no engine may weigh
    /// ([`TextTokenizer::weightless`]) are left out of its vectors, and count for the length.
    pub fn new(tokenizer: TextTokenizer, weight: LexicalWeight, mean_length: f64) -> Self {
        let weightless = tokenizer.weightless();
        Self { tokenizer, weight, mean_length, weightless }
    }

    /// Vectors of a corpus (templated texts), lengths measured against the corpus's own mean; and the encoder
    /// itself, for later texts. Every text is tokenized once.
    ///
    /// # Errors
    /// If the tokenizer refuses a text or the user stops it.
    pub fn fit(
        tokenizer: TextTokenizer,
        weight: LexicalWeight,
        texts: &[&str],
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<(Self, Vec<SparseVector>)> {
        let task = progress.start("Counting word pieces", texts.len() as u64);
        let mut pieces = Vec::with_capacity(texts.len());
        for batch in texts.chunks(256) {
            cancel.check()?;
            let found: Vec<Vec<TokenId>> = batch.par_iter().map(|t| tokenizer.pieces(t)).collect::<Result<_>>()?;
            pieces.extend(found);
            task.advance(batch.len() as u64);
        }
        let total: usize = pieces.iter().map(Vec::len).sum();
        let encoder = Self::new(tokenizer, weight, total as f64 / pieces.len().max(1) as f64);
        let vectors = pieces.into_iter().map(|p| encoder.vector(p)).collect();
        Ok((encoder, vectors))
    }

    /// The mean length that lengths are measured against, in word pieces.
    pub fn mean_length(&self) -> f64 {
        self.mean_length
    }

    fn vector(&self, mut pieces: Vec<TokenId>) -> SparseVector {
        let length = pieces.len();
        pieces.sort_unstable();
        let pairs = pieces
            .chunk_by(|a, b| a == b)
            .filter(|run| self.weightless.binary_search(&run[0]).is_err())
            .map(|run| (run[0], self.weight.weight(run.len() as u32, length, self.mean_length)))
            .collect();
        SparseVector::from_pairs(pairs)
    }
}

impl DocumentEncoder for LexicalEncoder {
    fn encode(&self, texts: &[&str]) -> Result<Vec<SparseVector>> {
        texts.par_iter().map(|text| Ok(self.vector(self.tokenizer.pieces(text)?))).collect()
    }

    fn vocabulary(&self) -> &[String] {
        self.tokenizer.vocabulary()
    }

    fn max_tokens(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::NoProgress;
    use serde_json::json;

    use super::*;

    /// A word-level tokenizer over a handful of words.
    fn tokenizer() -> TextTokenizer {
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "sparse", "index", "query", ".", "[unused1]"];
        let vocabulary: serde_json::Map<_, _> =
            words.iter().enumerate().map(|(id, w)| ((*w).to_owned(), json!(id))).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
        });
        TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
    }

    fn fit(weight: LexicalWeight, texts: &[&str]) -> (LexicalEncoder, Vec<SparseVector>) {
        LexicalEncoder::fit(tokenizer(), weight, texts, &Cancel::default(), &NoProgress).unwrap()
    }

    const TEXTS: [&str; 3] = ["sparse index sparse .", "query unknown", ""];

    #[test]
    fn weights_by_hand() {
        let (encoder, vectors) = fit(LexicalWeight::Binary, &TEXTS);
        assert!((encoder.mean_length() - 2.0).abs() < 1e-12);
        assert_eq!(vectors[0], SparseVector { ids: vec![5, 6], weights: vec![1.0, 1.0] });
        assert_eq!(vectors[1], SparseVector { ids: vec![7], weights: vec![1.0] });
        assert!(vectors[2].is_empty());
        let (_, vectors) = fit(LexicalWeight::LogTf, &TEXTS);
        assert_eq!(vectors[0].weights, [3f32.ln(), 2f32.ln()]);
        // Length 4 against a mean of 2: tf 2 → 2 · 2.2 / (2 + 1.2 · 1.75), tf 1 → 2.2 / (1 + 2.1).
        let (_, vectors) = fit(LexicalWeight::BM25, &TEXTS);
        assert!((vectors[0].weight(5) - 4.4 / 4.1).abs() < 1e-6);
        assert!((vectors[0].weight(6) - 2.2 / 3.1).abs() < 1e-6);
    }

    #[test]
    fn encoding_equals_fitting() {
        let (encoder, vectors) = fit(LexicalWeight::BM25, &TEXTS);
        assert_eq!(encoder.encode(&TEXTS).unwrap(), vectors);
        assert_eq!(encoder.encode(&TEXTS[1..2]).unwrap(), vectors[1..2]);
        assert_eq!(encoder.vocabulary().len(), 10);
    }

    #[test]
    fn stops_when_asked() {
        let cancel = Cancel::default();
        cancel.cancel();
        let stopped = LexicalEncoder::fit(tokenizer(), LexicalWeight::Binary, &TEXTS, &cancel, &NoProgress);
        assert!(matches!(stopped, Err(nsparse_core::Error::Cancelled)));
    }
}

//! Random training data for measurements: a tokenizer of made-up words, documents of random tokens, and queries that
//! each have one positive and one hard negative; sparse vectors for an index. They cost what real data cost and
//! teach nothing.

use std::collections::BTreeMap;

use nsparse_core::{IdfTable, QueryEncoder, SparseVector, TextTokenizer, TokenId};
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::data::{Documents, Example, TrainingData, TrainingQuery, TrainingSet};
use crate::{Error, Result};

/// Special tokens of [`tokenizer`]; its words come after them.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Tokens of a query.
const QUERY_TOKENS: usize = 8;

/// What random training data look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RandomData {
    /// Queries in all, at least 1; each has two documents of its own.
    pub queries: usize,
    /// Tokens of each document, special ones included, at least 3.
    pub tokens: usize,
    /// Vocabulary entries, more than the 5 special ones.
    pub vocabulary: usize,
    /// What everything is drawn from.
    pub seed: u64,
}

impl RandomData {
    /// The data: documents `2 q` and `2 q + 1` are query `q`'s positive and its hard negative.
    ///
    /// # Errors
    /// If a number is out of range.
    pub fn generate(&self) -> Result<TrainingData> {
        let first = SPECIAL.len() as TokenId;
        if self.queries == 0 || self.tokens < 3 || self.vocabulary <= SPECIAL.len() {
            return Err(Error::config(format!(
                "Random data need at least 1 query, documents of 3 tokens, and {} vocabulary entries",
                SPECIAL.len() + 1
            )));
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut word = || rng.random_range(first..self.vocabulary as TokenId);
        let mut documents = Documents::default();
        let (mut queries, mut examples) = (Vec::new(), Vec::new());
        for query in 0..self.queries {
            let [positive, negative] = ["positive", "negative"].map(|role| {
                let mut window = vec![2];
                window.extend((2..self.tokens).map(|_| word()));
                window.push(3);
                documents.push(format!("{role} {query}"), &window, self.tokens - 2)
            });
            let own = documents.window(positive)[1..self.tokens - 1].iter().take(QUERY_TOKENS);
            let vector = SparseVector::from_pairs(own.map(|&id| (id, 1.0 + (id % 8) as f32)).collect());
            examples.push(Example { query, positive: Some(positive), others: vec![negative], scores: Vec::new() });
            queries.push(TrainingQuery {
                id: format!("query {query}"),
                text: String::new(),
                vector,
                positives: vec![positive],
                grades: [(positive, 1)].into(),
            });
        }
        let tokenizer = tokenizer(SPECIAL.len() + 1)?;
        let idf = IdfTable::from_weights(vec![0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
        Ok(TrainingData {
            query_encoder: QueryEncoder::new(tokenizer, idf)?,
            idf_metadata: None,
            documents,
            texts: Vec::new(),
            queries,
            rows: examples.len(),
            rows_without_positive: 0,
            rows_short_of_negatives: 0,
            sets: vec![TrainingSet {
                name: "random".to_owned(),
                form: "rows",
                examples: 0..examples.len(),
                ..TrainingSet::default()
            }],
            by_positive: examples.iter().enumerate().filter_map(|(n, e)| e.positive.map(|p| (p, n))).collect(),
            examples,
            held_out: Vec::new(),
            held_out_documents: Vec::new(),
            lineage: nsparse_core::lineage::Lineage::default(),
            fingerprint: String::new(),
        })
    }
}

/// A tokenizer of `entries` entries: the special ones, then the words `t5`, `t6`, … by their ids, apart by spaces.
///
/// # Errors
/// If there are fewer than the special ones.
pub fn tokenizer(entries: usize) -> Result<TextTokenizer> {
    let words = SPECIAL.iter().map(|s| (*s).to_owned()).chain((SPECIAL.len()..entries).map(|id| format!("t{id}")));
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        words.take(entries).enumerate().map(|(id, word)| (word, id.into())).collect();
    let special: Vec<serde_json::Value> = SPECIAL
        .iter()
        .take(entries)
        .enumerate()
        .map(|(id, content)| {
            serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    });
    Ok(TextTokenizer::from_bytes(file.to_string().as_bytes())?)
}

/// Vectors with exactly `active` tokens each (at most half of the vocabulary), for an index: the token of rank r is
/// about 1/r as frequent as the first one, as in texts (Zipf); weights are even in `[0.1, 3)`.
pub fn vectors(count: usize, active: usize, vocabulary: usize, seed: u64) -> impl Iterator<Item = SparseVector> {
    debug_assert!(active <= vocabulary / 2, "{active} distinct tokens of {vocabulary} would take long to draw");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let most = (vocabulary as f64).ln();
    (0..count).map(move |_| {
        let mut weights = BTreeMap::new();
        while weights.len() < active {
            let rank = (rng.random_range(0.0..most)).exp() as usize - 1;
            weights.insert(rank as TokenId, rng.random_range(0.1f32..3.0));
        }
        let (ids, weights) = weights.into_iter().unzip();
        SparseVector { ids, weights }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use crate::batches::Batch;

    #[test]
    fn every_query_has_two_documents_of_its_own() {
        let shape = RandomData { queries: 6, tokens: 6, vocabulary: 50, seed: 1 };
        let data = shape.generate().unwrap();
        assert_eq!((data.documents.len(), data.examples.len()), (12, 6));
        let batch = Batch::new(&data, &[(0, 4), (0, 1)], 1, 0);
        assert_eq!(batch.documents, [8, 9, 2, 3]);
        for number in 0..12 {
            let window = data.documents.window(number);
            assert_eq!((window.len(), window[0], window[5]), (6, 2, 3));
            assert!(window[1..5].iter().all(|id| (5..50).contains(id)));
            assert_eq!(window, shape.generate().unwrap().documents.window(number));
        }
        assert!(RandomData { tokens: 2, ..shape }.generate().is_err());
    }

    #[test]
    fn words_are_their_ids() {
        let tokenizer = tokenizer(40).unwrap();
        assert_eq!(tokenizer.vocabulary().len(), 40);
        assert_eq!(tokenizer.pieces("t39 t5  t6 else").unwrap(), [39, 5, 6, 1]);
        assert_eq!(tokenizer.weightless(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn vectors_are_as_long_as_asked_for_and_favour_the_first_tokens() {
        let all: Vec<SparseVector> = vectors(200, 20, 1000, 3).collect();
        assert!(all.iter().all(|v| v.len() == 20 && v.ids.is_sorted() && v.ids[19] < 1000));
        let holding = |id: TokenId| all.iter().filter(|v| v.weight(id) > 0.0).count();
        assert!(holding(0) > 150 && holding(0) > 3 * holding(50) && holding(50) > 0, "{}", holding(0));
        assert_eq!(all[7], vectors(8, 20, 1000, 3).last().unwrap());
    }
}

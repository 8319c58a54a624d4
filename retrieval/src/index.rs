//! An exact inverted index over sparse vectors: every posting is read, nothing is skipped or approximated.
//! In [`Arithmetic::Engine`] it stores and scores as Lucene does, so that its ranking is the engine's.

use std::collections::HashMap;
use std::sync::OnceLock;

use nsparse_core::vector::engine_weight;
use nsparse_core::{Hit, Result, SearchQuery, Searcher, SparseVector, TokenId, Weight};
use rayon::prelude::*;

/// How weights are stored and products are summed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Arithmetic {
    /// Lucene's (`FeatureField.newLinearQuery` clauses in a `BooleanQuery`): document weights cut to 9
    /// significant bits, each product rounded to `f32`, the sum taken in `f64` and rounded to `f32`.
    #[default]
    Engine,
    /// Weights as they are, products and sum in `f64`, the score rounded to `f32`.
    Exact,
}

/// What an index holds.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct IndexStats {
    /// Documents, those without any active dimension included.
    pub documents: usize,
    /// Documents without any active dimension: no query finds them.
    pub empty_documents: usize,
    /// Stored weights.
    pub postings: usize,
    /// Tokens with at least one posting.
    pub distinct_tokens: usize,
    /// Stored weights a document.
    pub mean_active: f64,
    /// Stored weights of the heaviest document.
    pub max_active: usize,
}

/// Posting lists by token, documents in the order they came.
#[derive(Debug, Clone)]
pub struct InvertedIndex {
    ids: Vec<String>,
    /// Document numbers by id, made when first asked for.
    places: OnceLock<HashMap<String, u32>>,
    arithmetic: Arithmetic,
    /// The postings of token `t` are `offsets[t]..offsets[t + 1]`, ascending by document.
    offsets: Vec<usize>,
    documents: Vec<u32>,
    weights: Vec<Weight>,
    empty_documents: usize,
    max_active: usize,
}

/// No score yet: scores are sums of products of positive weights, so they are never below zero.
const UNTOUCHED: f64 = -1.0;

impl InvertedIndex {
    /// Indexes documents (id, vector) with the engine's arithmetic. Ids must be unique.
    pub fn build(documents: impl IntoIterator<Item = (String, SparseVector)>) -> Self {
        Self::build_with(documents, Arithmetic::Engine)
    }

    /// As [`InvertedIndex::build`], with the arithmetic chosen. Ids must be unique.
    pub fn build_with(documents: impl IntoIterator<Item = (String, SparseVector)>, arithmetic: Arithmetic) -> Self {
        // Forward lists first, in one allocation each; then a counting sort by token.
        let (mut ids, mut ends) = (Vec::new(), Vec::new());
        let (mut tokens, mut values): (Vec<TokenId>, Vec<Weight>) = (Vec::new(), Vec::new());
        let (mut empty_documents, mut max_active) = (0, 0);
        for (id, vector) in documents {
            let before = tokens.len();
            for (token, weight) in vector.iter() {
                let stored = match arithmetic {
                    Arithmetic::Engine => engine_weight(weight),
                    Arithmetic::Exact => weight,
                };
                if stored > 0.0 {
                    tokens.push(token);
                    values.push(stored);
                }
            }
            let active = tokens.len() - before;
            empty_documents += usize::from(active == 0);
            max_active = max_active.max(active);
            ids.push(id);
            ends.push(tokens.len());
        }
        let size = tokens.iter().max().map_or(0, |&t| t as usize + 1);
        let mut offsets = vec![0usize; size + 1];
        for &token in &tokens {
            offsets[token as usize + 1] += 1;
        }
        for t in 0..size {
            offsets[t + 1] += offsets[t];
        }
        let mut next = offsets.clone();
        let mut posting_documents = vec![0u32; tokens.len()];
        let mut posting_weights = vec![0.0; tokens.len()];
        let mut start = 0;
        for (document, &end) in ends.iter().enumerate() {
            for i in start..end {
                let slot = &mut next[tokens[i] as usize];
                posting_documents[*slot] = document as u32;
                posting_weights[*slot] = values[i];
                *slot += 1;
            }
            start = end;
        }
        Self {
            ids,
            places: OnceLock::new(),
            arithmetic,
            offsets,
            documents: posting_documents,
            weights: posting_weights,
            empty_documents,
            max_active,
        }
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Document ids in index order.
    pub fn ids(&self) -> &[String] {
        &self.ids
    }

    /// In how many documents a token is active.
    pub fn document_frequency(&self, token: TokenId) -> usize {
        self.postings(token).len()
    }

    /// What the index holds.
    pub fn stats(&self) -> IndexStats {
        IndexStats {
            documents: self.len(),
            empty_documents: self.empty_documents,
            postings: self.weights.len(),
            distinct_tokens: self.offsets.windows(2).filter(|w| w[0] < w[1]).count(),
            mean_active: self.weights.len() as f64 / self.len().max(1) as f64,
            max_active: self.max_active,
        }
    }

    /// Expected products of a query-document pair, `Σ_j P_q(j)·P_d(j)` (Paria et al. 2020; the retrieval
    /// FLOPS of SPLADE): what a query costs, as a share of the documents. 0 without queries or documents.
    pub fn flops(&self, queries: &[SearchQuery]) -> f64 {
        let pairs = queries.len() as f64 * self.len() as f64;
        if pairs == 0.0 {
            return 0.0;
        }
        let products: usize = queries.iter().flat_map(|q| &q.vector.ids).map(|&t| self.document_frequency(t)).sum();
        products as f64 / pairs
    }

    /// What [`InvertedIndex::top`] works in.
    pub(crate) fn scratch(&self) -> Vec<f64> {
        vec![UNTOUCHED; self.len()]
    }

    /// The best `depth` documents as (document number, score): score descending, then index order, as Lucene
    /// breaks ties. `scores` is scratch of one entry a document, all [`UNTOUCHED`], and is left so.
    pub(crate) fn top(&self, query: &SparseVector, depth: usize, scores: &mut [f64]) -> Vec<(u32, f32)> {
        let mut touched: Vec<u32> = Vec::new();
        for (token, query_weight) in query.iter() {
            for i in self.postings(token) {
                let (document, weight) = (self.documents[i], self.weights[i]);
                let product = self.product(query_weight, weight);
                let score = &mut scores[document as usize];
                if *score < 0.0 {
                    touched.push(document);
                    *score = product;
                } else {
                    *score += product;
                }
            }
        }
        let mut hits: Vec<(u32, f32)> =
            touched.into_iter().map(|d| (d, std::mem::replace(&mut scores[d as usize], UNTOUCHED) as f32)).collect();
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if depth < hits.len() {
            if depth > 0 {
                hits.select_nth_unstable_by(depth - 1, order);
            }
            hits.truncate(depth);
        }
        hits.sort_unstable_by(order);
        hits
    }

    fn product(&self, query_weight: Weight, weight: Weight) -> f64 {
        match self.arithmetic {
            Arithmetic::Engine => f64::from(query_weight * weight),
            Arithmetic::Exact => f64::from(query_weight) * f64::from(weight),
        }
    }

    /// One document's score, summed in the order of [`InvertedIndex::top`].
    fn score_of(&self, query: &SparseVector, document: u32) -> f32 {
        let mut sum = 0.0f64;
        for (token, query_weight) in query.iter() {
            let list = self.postings(token);
            if let Ok(place) = self.documents[list.clone()].binary_search(&document) {
                sum += self.product(query_weight, self.weights[list.start + place]);
            }
        }
        sum as f32
    }

    fn postings(&self, token: TokenId) -> std::ops::Range<usize> {
        let t = token as usize;
        if t + 1 < self.offsets.len() { self.offsets[t]..self.offsets[t + 1] } else { 0..0 }
    }
}

impl Searcher for InvertedIndex {
    /// Reads the queries' vectors; queries run in parallel. Ties stand in index order.
    fn search(&self, queries: &[SearchQuery], depth: usize) -> Result<Vec<Vec<Hit>>> {
        Ok(queries
            .par_iter()
            .map_init(
                || self.scratch(),
                |scores, query| {
                    self.top(&query.vector, depth, scores)
                        .into_iter()
                        .map(|(d, score)| Hit { id: self.ids[d as usize].clone(), score })
                        .collect()
                },
            )
            .collect())
    }

    fn score(&self, query: &SearchQuery, ids: &[&str]) -> Result<Option<Vec<f32>>> {
        let places = self
            .places
            .get_or_init(|| self.ids.iter().enumerate().map(|(number, id)| (id.clone(), number as u32)).collect());
        let score = |id: &&str| places.get(*id).map_or(0.0, |&number| self.score_of(&query.vector, number));
        Ok(Some(ids.iter().map(score).collect()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn query(vector: SparseVector) -> SearchQuery {
        SearchQuery { id: "q".to_owned(), text: String::new(), vector }
    }

    fn vector(pairs: &[(TokenId, Weight)]) -> SparseVector {
        SparseVector::from_pairs(pairs.to_vec())
    }

    /// The plain way: every document against the query, one token after the other.
    fn slow(documents: &[(String, SparseVector)], query: &SparseVector, arithmetic: Arithmetic) -> Vec<Hit> {
        let mut hits = Vec::new();
        for (id, document) in documents {
            let (mut sum, mut common) = (0.0f64, false);
            for (token, q) in query.iter() {
                let d = match arithmetic {
                    Arithmetic::Engine => engine_weight(document.weight(token)),
                    Arithmetic::Exact => document.weight(token),
                };
                if d > 0.0 {
                    common = true;
                    sum += match arithmetic {
                        Arithmetic::Engine => f64::from(q * d),
                        Arithmetic::Exact => f64::from(q) * f64::from(d),
                    };
                }
            }
            if common {
                hits.push(Hit { id: id.clone(), score: sum as f32 });
            }
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits
    }

    #[test]
    fn ties_stand_in_index_order_and_strangers_stay_out() {
        let index = InvertedIndex::build([
            ("b".to_owned(), vector(&[(1, 1.0)])),
            ("a".to_owned(), vector(&[(1, 1.0), (2, 5.0)])),
            ("c".to_owned(), vector(&[(1, 2.0)])),
            ("d".to_owned(), vector(&[(3, 9.0)])),
            ("e".to_owned(), SparseVector::default()),
        ]);
        let hits = &index.search(&[query(vector(&[(1, 1.5), (77, 1.0)]))], 10).unwrap()[0];
        let found: Vec<(&str, f32)> = hits.iter().map(|h| (h.id.as_str(), h.score)).collect();
        assert_eq!(found, [("c", 3.0), ("b", 1.5), ("a", 1.5)]);
        assert_eq!(index.search(&[query(vector(&[(1, 1.5)]))], 2).unwrap()[0].len(), 2);
        assert!(index.search(&[query(vector(&[(1, 1.5)]))], 0).unwrap()[0].is_empty());
    }

    #[test]
    fn nine_bits_make_close_weights_equal() {
        let close = [("x".to_owned(), vector(&[(0, 1.001)])), ("y".to_owned(), vector(&[(0, 1.002)]))];
        let order = |index: InvertedIndex| {
            index.search(&[query(vector(&[(0, 1.0)]))], 2).unwrap().remove(0).into_iter().map(|h| h.id).collect()
        };
        let engine: Vec<String> = order(InvertedIndex::build(close.clone()));
        let exact: Vec<String> = order(InvertedIndex::build_with(close, Arithmetic::Exact));
        assert_eq!(engine, ["x", "y"]);
        assert_eq!(exact, ["y", "x"]);
    }

    #[test]
    fn figures_of_a_small_index() {
        let index = InvertedIndex::build([
            ("a".to_owned(), vector(&[(0, 1.0), (2, 1.0)])),
            ("b".to_owned(), vector(&[(2, 1.0)])),
            ("c".to_owned(), SparseVector::default()),
            ("d".to_owned(), vector(&[(2, 3.0)])),
        ]);
        let stats = index.stats();
        assert_eq!((stats.documents, stats.empty_documents, stats.postings), (4, 1, 4));
        assert_eq!((stats.distinct_tokens, stats.max_active), (2, 2));
        assert!((stats.mean_active - 1.0).abs() < 1e-12);
        // Query 1 meets 3 of 4 documents once, query 2 meets 1 + 3: (3 + 4) / (2 · 4).
        let queries = [query(vector(&[(2, 1.0)])), query(vector(&[(0, 1.0), (2, 1.0), (9, 1.0)]))];
        assert!((index.flops(&queries) - 7.0 / 8.0).abs() < 1e-12);
    }

    #[test]
    fn an_empty_index_answers() {
        let index = InvertedIndex::build([]);
        assert!(index.is_empty());
        assert_eq!(index.search(&[query(vector(&[(1, 1.0)]))], 5).unwrap(), vec![vec![]]);
    }

    fn any_vector(most: usize) -> impl Strategy<Value = SparseVector> {
        // Few tokens and few distinct weights, so that overlaps and ties are common; some weights are so
        // small that products underflow to zero.
        let weight = prop_oneof![
            4 => (1u32..9).prop_map(|w| w as f32 / 4.0),
            4 => 0.001f32..40.0,
            1 => Just(1e-30f32),
        ];
        proptest::collection::vec((0u32..40, weight), 0..most).prop_map(SparseVector::from_pairs)
    }

    proptest! {
        #[test]
        fn equals_the_plain_way(
            vectors in proptest::collection::vec(any_vector(20), 0..60),
            queries in proptest::collection::vec(any_vector(10), 1..5),
            depth in 0usize..70,
            exact in any::<bool>(),
        ) {
            let arithmetic = if exact { Arithmetic::Exact } else { Arithmetic::Engine };
            let documents: Vec<(String, SparseVector)> =
                vectors.into_iter().enumerate().map(|(i, v)| (format!("d{i}"), v)).collect();
            let index = InvertedIndex::build_with(documents.clone(), arithmetic);
            let found = index.search(&queries.iter().cloned().map(query).collect::<Vec<_>>(), depth).unwrap();
            for (hits, vector) in found.iter().zip(&queries) {
                let mut expected = slow(&documents, vector, arithmetic);
                let ids: Vec<&str> = expected.iter().map(|h| h.id.as_str()).collect();
                let scores = index.score(&query(vector.clone()), &ids).unwrap().unwrap();
                prop_assert_eq!(scores, expected.iter().map(|h| h.score).collect::<Vec<_>>());
                expected.truncate(depth);
                prop_assert_eq!(hits, &expected);
            }
        }
    }
}

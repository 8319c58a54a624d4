//! The late cache of `SeDR` (arXiv 2211.10841): vectors of the last documents stay as further negatives, so that a batch
//! of few long documents is compared with many. They carry no gradient and are as old as they are; the queries that
//! they were positives of stay with them, as rows against which the current documents are negatives.
//!
//! `InfoNCE` then goes over rows = current and cached queries, columns = current and cached documents. A cached copy of
//! a document that the batch holds itself is left out, and so are a query's known positives other than its target.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use nsparse_core::{SparseVector, TokenId};
use serde::{Deserialize, Serialize};

use crate::batches::Batch;
use crate::data::TrainingQuery;
use crate::losses::{CandidateSet, Loss, Scores, infonce};

/// Of each vector so many of the heaviest weights are kept: 8 KiB a document at most.
const MOST_ACTIVE: usize = 1024;

/// The last documents and queries of earlier batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct LateCache {
    size: usize,
    /// Oldest first, each document once.
    documents: VecDeque<Arc<CachedDocument>>,
    /// Oldest first, each query once; its positive is among `documents`.
    queries: VecDeque<CachedQuery>,
}

#[derive(Debug, Clone, PartialEq)]
struct CachedDocument {
    number: usize,
    vector: SparseVector,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct CachedQuery {
    query: usize,
    positive: usize,
}

/// `InfoNCE` over a batch and the cache.
#[derive(Debug, Clone, PartialEq)]
pub struct LateLoss {
    /// The value over all rows, and its slope in the batch's own scores `[Q, N]`.
    pub loss: Loss,
    /// Numbers of the cached queries that are rows.
    pub queries: Vec<usize>,
    /// The slope in their scores with the batch's documents.
    pub cached: Scores,
}

impl LateCache {
    /// An empty one for so many documents, and as many queries.
    pub fn new(size: usize) -> Self {
        Self { size, ..Self::default() }
    }

    /// Documents in it.
    pub fn len(&self) -> usize {
        self.documents.len()
    }

    /// Whether no document is in it.
    pub fn is_empty(&self) -> bool {
        self.documents.is_empty()
    }

    /// Takes in a batch's documents with their weights `[N, V]`, in place of older copies, and its queries; the oldest
    /// leave.
    pub fn push(&mut self, batch: &Batch, weights: &[f32], vocab: usize) {
        let new: HashSet<usize> = batch.documents.iter().copied().collect();
        self.documents.retain(|d| !new.contains(&d.number));
        for (&number, row) in batch.documents.iter().zip(weights.chunks_exact(vocab)) {
            self.documents.push_back(Arc::new(CachedDocument { number, vector: heaviest(row) }));
        }
        self.documents.drain(..self.documents.len().saturating_sub(self.size));
        for query in &batch.queries {
            self.queries.retain(|q| q.query != query.query);
            if let Some(column) = query.positive {
                self.queries.push_back(CachedQuery { query: query.query, positive: batch.documents[column] });
            }
        }
        let held: HashSet<usize> = self.documents.iter().map(|d| d.number).collect();
        self.queries.retain(|q| held.contains(&q.positive));
        self.queries.drain(..self.queries.len().saturating_sub(self.size));
    }

    /// `InfoNCE` of a batch with the cache's documents as further candidates and its queries as further rows.
    ///
    /// `scores` `[Q, N]` are the batch's own, `sets` its queries' candidates, `weights` `[N, V]` its documents.
    #[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
    pub fn infonce(
        &self,
        batch: &Batch,
        scores: &Scores,
        mut sets: Vec<Option<CandidateSet>>,
        queries: &[TrainingQuery],
        weights: &[f32],
        vocab: usize,
        temperature: f64,
    ) -> LateLoss {
        let columns: HashMap<usize, usize> = batch.documents.iter().enumerate().map(|(c, &d)| (d, c)).collect();
        let late: Vec<&CachedDocument> =
            self.documents.iter().map(Arc::as_ref).filter(|d| !columns.contains_key(&d.number)).collect();
        let current: HashSet<usize> = batch.queries.iter().map(|q| q.query).collect();
        let rows: Vec<CachedQuery> = self.queries.iter().copied().filter(|q| !current.contains(&q.query)).collect();
        let (q, n) = (scores.queries, scores.documents);

        // Candidates: the cached documents that are not known to be relevant.
        let strange = |query: usize| {
            let positives = &queries[query].positives;
            let is_strange = move |number: usize| positives.binary_search(&number).is_err();
            late.iter().enumerate().filter(move |(_, d)| is_strange(d.number)).map(move |(i, _)| n + i)
        };
        for (set, query) in sets.iter_mut().zip(&batch.queries) {
            if let Some(set) = set {
                set.columns.extend(strange(query.query));
            }
        }
        for row in &rows {
            let of_late = || late.iter().position(|d| d.number == row.positive).map(|i| n + i);
            let Some(target) = columns.get(&row.positive).copied().or_else(of_late) else {
                debug_assert!(false, "a cached query's positive is cached");
                sets.push(None);
                continue;
            };
            let positives = &queries[row.query].positives;
            let own = (0..n).filter(|&c| positives.binary_search(&batch.documents[c]).is_err());
            let mut set: Vec<usize> = own.chain(strange(row.query)).collect();
            if !set.contains(&target) {
                set.push(target);
            }
            sets.push(Some(CandidateSet { target, columns: set }));
        }

        // Scores of all rows with all columns.
        let vectors: Vec<&SparseVector> = rows.iter().map(|r| &queries[r.query].vector).collect();
        let with_current = Scores::of(&vectors, weights, vocab);
        let own = batch.queries.iter().map(|b| &queries[b.query].vector).zip(scores.values.chunks_exact(n.max(1)));
        let cached = vectors.iter().copied().zip(with_current.values.chunks_exact(n.max(1)));
        let mut all = Scores::zeros(q + rows.len(), n + late.len());
        for (out, (vector, near)) in all.values.chunks_exact_mut((n + late.len()).max(1)).zip(own.chain(cached)) {
            out[..n].copy_from_slice(near);
            for (score, document) in out[n..].iter_mut().zip(&late) {
                *score = vector.dot(&document.vector);
            }
        }
        let whole = infonce(&all, &sets, temperature);
        let block = |from: usize, count: usize| {
            let values = (from..from + count).flat_map(|row| whole.gradient.row(row)[..n].iter().copied()).collect();
            Scores { queries: count, documents: n, values }
        };
        LateLoss {
            loss: Loss { value: whole.value, gradient: block(0, q) },
            queries: rows.iter().map(|r| r.query).collect(),
            cached: block(q, rows.len()),
        }
    }
}

/// The heaviest weights of a row.
fn heaviest(row: &[f32]) -> SparseVector {
    let vector = SparseVector::from_dense(row);
    if vector.len() <= MOST_ACTIVE {
        return vector;
    }
    SparseVector::from_pairs(vector.heaviest_first().into_iter().take(MOST_ACTIVE).collect())
}

/// The cache as a checkpoint holds it: weights by their bits, so that none changes on its way through decimals.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    size: usize,
    documents: Vec<StoredDocument>,
    queries: Vec<CachedQuery>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredDocument {
    number: usize,
    ids: Vec<TokenId>,
    bits: Vec<u32>,
}

impl From<LateCache> for Stored {
    fn from(cache: LateCache) -> Self {
        let document = |d: &Arc<CachedDocument>| StoredDocument {
            number: d.number,
            ids: d.vector.ids.clone(),
            bits: d.vector.weights.iter().map(|w| w.to_bits()).collect(),
        };
        Self {
            size: cache.size,
            documents: cache.documents.iter().map(document).collect(),
            queries: cache.queries.into(),
        }
    }
}

impl From<Stored> for LateCache {
    fn from(stored: Stored) -> Self {
        let document = |d: StoredDocument| {
            let weights = d.bits.into_iter().map(f32::from_bits).collect();
            Arc::new(CachedDocument { number: d.number, vector: SparseVector { ids: d.ids, weights } })
        };
        Self {
            size: stored.size,
            documents: stored.documents.into_iter().map(document).collect(),
            queries: stored.queries.into(),
        }
    }
}

#[cfg(test)]
#[path = "late_cache_tests.rs"]
mod tests;

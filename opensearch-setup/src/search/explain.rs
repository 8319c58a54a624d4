//! What a score is made of, as the engine computes it.

use nsparse_core::{SearchQuery, SparseVector, Weight};
use serde::Serialize;

use super::{MAX_DEPTH, SparseSearcher, among, multi_search};
use crate::error::{Error, Result};
use crate::ingest::FeatureNames;

/// What one token of a query gives to a document's score.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TermScore {
    /// The token.
    pub token: String,
    /// Its weight in the query.
    pub query_weight: Weight,
    /// Its part of the score: the weight in the query times the weight in the document, as stored.
    pub score: f32,
}

impl SparseSearcher {
    /// What each token of a query gives to each of some documents' scores, as the engine computes it: a search for every
    /// token alone. One list a document, heaviest first.
    ///
    /// # Errors
    /// As [`SparseSearcher::query`]; also over nested segments, of which each token would choose its own, and where the
    /// cluster encodes the query.
    pub fn explain(&self, query: &SearchQuery, ids: &[&str]) -> Result<Vec<Vec<TermScore>>> {
        if self.fields.segments.is_some() {
            return Err(Error::usage(
                "The score of a nested segment cannot be told apart by terms",
                "explain over an index with one vector a document",
            ));
        }
        let names = FeatureNames::new(&self.vocabulary);
        let mut singles = Vec::new();
        let mut requests = Vec::new();
        for (id, weight) in query.vector.iter() {
            let single = SearchQuery { vector: SparseVector::from_pairs(vec![(id, weight)]), ..query.clone() };
            requests.push(self.clause(&single, &single.vector, &names)?.map(|clause| among(&clause, ids)));
            singles.push(single);
        }
        let mut terms = vec![Vec::new(); ids.len()];
        if singles.is_empty() {
            return Ok(terms);
        }
        let found = multi_search(&self.cluster, &self.index, &singles, requests, ids.len().clamp(1, MAX_DEPTH))?;
        for (single, hits) in singles.iter().zip(found) {
            let (id, weight) = (single.vector.ids[0], single.vector.weights[0]);
            for hit in hits {
                if let Some(place) = ids.iter().position(|i| *i == hit.id) {
                    let token = self.vocabulary[id as usize].clone();
                    terms[place].push(TermScore { token, query_weight: weight, score: hit.score });
                }
            }
        }
        for of_document in &mut terms {
            of_document.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.token.cmp(&b.token)));
        }
        Ok(terms)
    }
}

//! Documents of several segments, ranked by their best one (`MaxP`): what an index with nested vectors and
//! `score_mode: max` gives.

use nsparse_core::{Hit, Result, SearchQuery, Searcher, SparseVector};
use rayon::prelude::*;

use crate::index::{Arithmetic, InvertedIndex};

/// An inverted index over segments. It scores each as [`InvertedIndex`] does, and a document as its best segment.
#[derive(Debug, Clone)]
pub struct SegmentIndex {
    segments: InvertedIndex,
    ids: Vec<String>,
    /// Of each segment its document.
    document: Vec<u32>,
}

impl SegmentIndex {
    /// Indexes documents (id, one vector a segment) with the engine's arithmetic. Ids must be unique.
    pub fn build(documents: impl IntoIterator<Item = (String, Vec<SparseVector>)>) -> Self {
        let (mut ids, mut document, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
        for (id, segments) in documents {
            document.extend(std::iter::repeat_n(ids.len() as u32, segments.len()));
            vectors.extend(segments.into_iter().map(|vector| (String::new(), vector)));
            ids.push(id);
        }
        Self { segments: InvertedIndex::build_with(vectors, Arithmetic::Engine), ids, document }
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

impl Searcher for SegmentIndex {
    /// Reads the queries' vectors; queries run in parallel. Ties stand in index order.
    fn search(&self, queries: &[SearchQuery], depth: usize) -> Result<Vec<Vec<Hit>>> {
        let start = || (self.segments.scratch(), vec![false; self.len()]);
        let one = |(scores, seen): &mut (Vec<f64>, Vec<bool>), query: &SearchQuery| {
            let mut hits: Vec<(u32, f32)> = Vec::new();
            // Best segment first: a document's first one is its best.
            for (segment, score) in self.segments.top(&query.vector, usize::MAX, scores) {
                let document = self.document[segment as usize];
                if hits.len() == depth {
                    break;
                }
                if !std::mem::replace(&mut seen[document as usize], true) {
                    hits.push((document, score));
                }
            }
            for (document, _) in &hits {
                seen[*document as usize] = false;
            }
            hits.into_iter().map(|(d, score)| Hit { id: self.ids[d as usize].clone(), score }).collect()
        };
        Ok(queries.par_iter().map_init(start, one).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn vectors() -> impl Strategy<Value = SparseVector> {
        proptest::collection::vec((0u32..12, (1u32..9).prop_map(|w| w as f32 / 4.0)), 0..6)
            .prop_map(SparseVector::from_pairs)
    }

    proptest! {
        /// Against every segment's own score, the best of each document taken.
        #[test]
        fn a_document_scores_as_its_best_segment(
            documents in proptest::collection::vec(proptest::collection::vec(vectors(), 0..4), 0..30),
            queries in proptest::collection::vec(vectors(), 1..4),
            depth in 0usize..35,
        ) {
            let named = |i: usize| format!("d{i}");
            let index =
                SegmentIndex::build(documents.iter().cloned().enumerate().map(|(i, segments)| (named(i), segments)));
            let queries: Vec<SearchQuery> = queries
                .into_iter()
                .map(|vector| SearchQuery { id: "q".to_owned(), text: String::new(), vector })
                .collect();
            let found = index.search(&queries, depth).unwrap();
            for (hits, query) in found.iter().zip(&queries) {
                let mut expected: Vec<Hit> = Vec::new();
                for (i, segments) in documents.iter().enumerate() {
                    // Quarters: products and sums are exact.
                    let best = segments.iter().map(|s| query.vector.dot(&s.as_stored())).fold(0.0f64, f64::max);
                    if best > 0.0 {
                        expected.push(Hit { id: named(i), score: best as f32 });
                    }
                }
                expected.sort_by(|a, b| b.score.total_cmp(&a.score));
                expected.truncate(depth);
                prop_assert_eq!(hits, &expected);
            }
        }
    }
}

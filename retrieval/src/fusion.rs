//! Two rankings or more as one: by ranks alone, or by scores brought to one scale.

use std::collections::HashMap;

use nsparse_core::{Hit, Result, SearchQuery, Searcher};

/// The constant of reciprocal rank fusion (Cormack, Clarke and Büttcher 2009): how little the first ranks stand out.
pub const RANK_CONSTANT: f32 = 60.0;
/// How deep each ranking goes at least before they are fused: a document may stand low in one and high in another.
const LEAST_DEPTH: usize = 100;
/// What the last document of a list scores after [`Fusion::MinMax`], so that it differs from one that is not in it; as in
/// neural-search.
const LEAST: f32 = 0.001;

/// How rankings become one.
#[derive(Debug, Clone, PartialEq)]
pub enum Fusion {
    /// The sum of `weight / (60 + rank)` over the lists that a document stands in, ranks from 1.
    ReciprocalRank,
    /// The weighted mean of scores that go from 0 to 1 within each list, as neural-search's `min_max` with
    /// `arithmetic_mean`; a list of equal scores counts as 1.
    MinMax,
}

impl Fusion {
    /// One ranking of all documents in the lists, best first, equal scores in ascending order of ids. `weights` has one
    /// weight a list.
    pub fn fuse(&self, lists: &[Vec<Hit>], weights: &[f32]) -> Vec<Hit> {
        let mut scores: HashMap<&str, f32> = HashMap::new();
        let all: f32 = weights.iter().sum();
        for (list, weight) in lists.iter().zip(weights) {
            let scores_of_list = list.iter().map(|hit| hit.score);
            let (low, high) = scores_of_list.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), s| (l.min(s), h.max(s)));
            for (rank, hit) in list.iter().enumerate() {
                *scores.entry(&hit.id).or_default() += match self {
                    Self::ReciprocalRank => weight / (RANK_CONSTANT + (rank + 1) as f32),
                    Self::MinMax if high > low => weight * ((hit.score - low) / (high - low)).max(LEAST) / all,
                    Self::MinMax => weight / all,
                };
            }
        }
        let mut fused: Vec<Hit> = scores.into_iter().map(|(id, score)| Hit { id: id.to_owned(), score }).collect();
        fused.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.id.cmp(&b.id)));
        fused
    }
}

/// Several searchers as one.
pub struct FusedSearcher {
    searchers: Vec<(Box<dyn Searcher>, f32)>,
    fusion: Fusion,
}

impl FusedSearcher {
    /// Over searchers of the same documents, each with its weight.
    pub fn new(searchers: Vec<(Box<dyn Searcher>, f32)>, fusion: Fusion) -> Self {
        Self { searchers, fusion }
    }
}

impl Searcher for FusedSearcher {
    fn search(&self, queries: &[SearchQuery], depth: usize) -> Result<Vec<Vec<Hit>>> {
        let weights: Vec<f32> = self.searchers.iter().map(|(_, weight)| *weight).collect();
        let mut of_queries: Vec<Vec<Vec<Hit>>> = vec![Vec::new(); queries.len()];
        for (searcher, _) in &self.searchers {
            for (lists, hits) in of_queries.iter_mut().zip(searcher.search(queries, depth.max(LEAST_DEPTH))?) {
                lists.push(hits);
            }
        }
        Ok(of_queries
            .iter()
            .map(|lists| {
                let mut fused = self.fusion.fuse(lists, &weights);
                fused.truncate(depth);
                fused
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, f32)]) -> Vec<Hit> {
        pairs.iter().map(|(id, score)| Hit { id: (*id).to_owned(), score: *score }).collect()
    }

    /// A hybrid query that a real neural-search 2.16.0 answered: one document found by its id, and the best five of a
    /// sparse query, weighted 0.3 and 0.7.
    #[test]
    fn min_max_gives_the_recorded_scores() {
        let by_id = list(&[("3", 1.0)]);
        let sparse =
            list(&[("80", 68.859_41), ("83", 56.061_306), ("30", 55.795_025), ("45", 51.328_228), ("128", 47.459_213)]);
        let fused = Fusion::MinMax.fuse(&[by_id, sparse], &[0.3, 0.7]);
        let expected =
            [("80", 0.7), ("3", 0.3), ("83", 0.281_374_25), ("30", 0.272_664_2), ("45", 0.126_555_37), ("128", 0.0007)];
        assert_eq!(fused.len(), expected.len());
        for (hit, (id, score)) in fused.iter().zip(expected) {
            assert_eq!(hit.id, id);
            assert!((hit.score - score).abs() < 1e-7, "{id}: {} and not {score}", hit.score);
        }
    }

    #[test]
    fn a_document_in_both_lists_outranks_the_first_of_one() {
        let lists = [list(&[("a", 9.0), ("b", 8.0)]), list(&[("c", 0.5), ("b", 0.4)])];
        let fused = Fusion::ReciprocalRank.fuse(&lists, &[1.0, 1.0]);
        let ids: Vec<&str> = fused.iter().map(|h| h.id.as_str()).collect();
        assert_eq!(ids, ["b", "a", "c"]);
        assert!((fused[0].score - 2.0 / 62.0).abs() < 1e-7);
        assert!(Fusion::MinMax.fuse(&[Vec::new(), Vec::new()], &[1.0, 1.0]).is_empty());
    }
}

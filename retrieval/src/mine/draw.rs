//! The draw of a query's negatives: what passes the limits, as evenly and repeatably as it can be.

use std::collections::HashMap;

use nsparse_core::SearchQuery;
use rand::SeedableRng as _;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest as _, Sha256};

use super::{Judge, Miner, MiningReport};
use crate::Result;

/// A document that may become a negative.
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) text: String,
    pub(super) score: f32,
}

/// The draws of one query.
pub(super) struct Draw<'a> {
    miner: &'a Miner<'a>,
    query: &'a SearchQuery,
    pub(super) candidates: Vec<Candidate>,
    /// The teacher's scores by the candidates' places, as far as they were asked for.
    judged: HashMap<usize, Option<f32>>,
    rng: ChaCha8Rng,
}

impl<'a> Draw<'a> {
    pub(super) fn new(miner: &'a Miner<'a>, query: &'a SearchQuery, candidates: Vec<Candidate>) -> Result<Self> {
        let rng = query_rng(miner.options.seed, &query.id);
        let mut draw = Self { miner, query, judged: HashMap::new(), candidates, rng };
        if miner.judge.is_some_and(Judge::is_cheap) {
            draw.judge(&(0..draw.candidates.len()).collect::<Vec<_>>())?;
        }
        Ok(draw)
    }

    /// Asks the teacher for scores that are not there yet.
    fn judge(&mut self, places: &[usize]) -> Result<()> {
        let Some(judge) = self.miner.judge else { return Ok(()) };
        let missing: Vec<usize> = places.iter().copied().filter(|i| !self.judged.contains_key(i)).collect();
        let named: Vec<(&str, &str)> =
            missing.iter().map(|&i| (self.candidates[i].id.as_str(), self.candidates[i].text.as_str())).collect();
        if named.is_empty() {
            return Ok(());
        }
        let scores = judge.scores(self.query, &named)?;
        self.judged.extend(missing.into_iter().zip(scores));
        Ok(())
    }

    /// Places of the negatives for a positive of this score: drawn evenly, in rank order.
    pub(super) fn negatives(&mut self, positive: Option<f32>, report: &mut MiningReport) -> Result<Vec<usize>> {
        let mut drawn = match self.miner.judge {
            None => self.by_search(positive, report),
            Some(judge) => self.by_teacher(judge, positive, report)?,
        };
        drawn.sort_unstable();
        Ok(drawn)
    }

    fn by_search(&mut self, positive: Option<f32>, report: &mut MiningReport) -> Vec<usize> {
        let filters = &self.miner.options.filters;
        let left: Vec<usize> = (0..self.candidates.len())
            .filter(|&i| filters.pass(self.candidates[i].score, positive, &mut report.filtered))
            .collect();
        let amount = self.miner.options.samples.min(left.len());
        index::sample(&mut self.rng, left.len(), amount).into_iter().map(|i| left[i]).collect()
    }

    /// The first that pass in a random order: as even a draw as one from all that pass.
    fn by_teacher(
        &mut self,
        judge: &dyn Judge,
        positive: Option<f32>,
        report: &mut MiningReport,
    ) -> Result<Vec<usize>> {
        let (count, samples) = (self.candidates.len(), self.miner.options.samples);
        let order = index::sample(&mut self.rng, count, count).into_vec();
        let mut passed = Vec::new();
        let mut rest = order.as_slice();
        while !rest.is_empty() && (judge.is_cheap() || passed.len() < samples) {
            let size = if judge.is_cheap() { rest.len() } else { (samples - passed.len()).min(rest.len()) };
            let (now, later) = rest.split_at(size);
            self.judge(now)?;
            for &i in now {
                match self.judged.get(&i).copied().flatten() {
                    None => report.filtered.unscored += 1,
                    Some(score) => {
                        if self.miner.options.filters.pass(score, positive, &mut report.filtered) {
                            passed.push(i);
                        }
                    }
                }
            }
            rest = later;
        }
        passed.truncate(samples);
        Ok(passed)
    }
}

/// A generator that only the seed and the query's id decide.
pub(super) fn query_rng(seed: u64, query: &str) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(query.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

//! How often each token is active, for DF-FLOPS (arXiv 2505.15070): frequent tokens make long posting lists, so they
//! pay more.
//!
//! Of the readings that go round, this is the one taken here: the factor stands inside the square,
//! `Σ_j (f_j · mean_j)²` ([`super::Mask::factors`]), with `f_j = activ(DF_j / N)`,
//! `activ(x; α, β) = 1 / (1 + (x^(log_α 2) − 1)^β)`: 0 for a token that is never active, 1/2 at x = α, 1 for one
//! that is active everywhere; β sets how steep the step is. The paper takes DF from the vectors of a validation
//! every 100 steps; here it is a running share over the documents of the batches, at each of them, without slope.

use serde::{Deserialize, Serialize};

/// Running counts of documents in which each token is active. Values are single floats, so that a checkpoint in
/// JSON holds them exactly.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentFrequencies {
    counts: Vec<f32>,
    documents: f32,
}

impl DocumentFrequencies {
    /// Adds a batch of vectors `[N, V]`; earlier ones fade so that about the last `memory` documents count.
    pub fn add(&mut self, weights: &[f32], vocab: usize, memory: usize) {
        self.counts.resize(vocab, 0.0);
        let n = (weights.len() / vocab) as f32;
        let kept = (1.0 - n / memory.max(1) as f32).max(0.0);
        for count in &mut self.counts {
            *count *= kept;
        }
        self.documents = self.documents * kept + n;
        for row in weights.chunks_exact(vocab) {
            for (count, &w) in self.counts.iter_mut().zip(row) {
                if w > 0.0 {
                    *count += 1.0;
                }
            }
        }
    }

    /// Each token's share of documents in which it is active, in `[0, 1]`.
    pub fn shares(&self) -> Vec<f32> {
        let n = self.documents.max(f32::MIN_POSITIVE);
        self.counts.iter().map(|c| (c / n).min(1.0)).collect()
    }

    /// The factor `f_j` of each token. `alpha` in (0, 1), `beta` above 0.
    pub fn factors(&self, alpha: f64, beta: f64) -> Vec<f32> {
        self.shares().into_iter().map(|x| activ(f64::from(x), alpha, beta) as f32).collect()
    }
}

/// `1 / (1 + (x^(log_α 2) − 1)^β)` for x in `[0, 1]`.
pub fn activ(x: f64, alpha: f64, beta: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    // log_α 2 is negative, so the power is at least 1.
    let base = (x.powf(2.0_f64.ln() / alpha.ln()) - 1.0).max(0.0);
    1.0 / (1.0 + base.powf(beta))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_rises_from_0_over_a_half_at_alpha_to_1() {
        for (alpha, beta) in [(0.1, 10.0), (0.3, 2.0)] {
            assert!(activ(0.0, alpha, beta).abs() < 1e-12);
            assert!((activ(alpha, alpha, beta) - 0.5).abs() < 1e-12);
            assert!((activ(1.0, alpha, beta) - 1.0).abs() < 1e-12);
            let steps: Vec<f64> = (0..=100).map(|i| activ(f64::from(i) / 100.0, alpha, beta)).collect();
            assert!(steps.is_sorted() && steps[100] > steps[0]);
        }
        // By hand: log_0.1 2 = −0.30103, 0.5^−0.30103 = 1.23202, 0.23202² = 0.053833.
        assert!((activ(0.5, 0.1, 2.0) - 1.0 / 1.053_833).abs() < 1e-5);
    }

    #[test]
    fn shares_follow_what_was_seen_last() {
        let mut f = DocumentFrequencies::default();
        f.add(&[1.0, 0.0, 0.5, 0.0], 2, 4);
        assert_eq!(f.shares(), [1.0, 0.0]);
        // Half of the memory is new: token 0 falls to a third, as 2 of the 2 · ½ + 2 documents are faded.
        f.add(&[0.0, 1.0, 0.0, 2.0], 2, 4);
        let shares = f.shares();
        assert!((shares[0] - 1.0 / 3.0).abs() < 1e-6 && (shares[1] - 2.0 / 3.0).abs() < 1e-6, "{shares:?}");
        f.add(&[0.0, 1.0, 0.0, 2.0, 0.0, 1.0, 0.0, 1.0], 2, 4);
        assert_eq!(f.shares(), [0.0, 1.0]);
    }
}

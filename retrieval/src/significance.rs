//! Is a difference more than luck: percentile bootstrap intervals and the paired randomisation test, over
//! per-query values. Seeded; the result does not depend on how many threads there are.
//!
//! Sources: Efron & Tibshirani, "An Introduction to the Bootstrap" (percentile interval); Smucker, Allan &
//! Carterette 2007, "A comparison of statistical significance tests for information retrieval evaluation"
//! (randomisation test).

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::metrics::Evaluation;
use crate::{Error, Result};

/// How resampling is done.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resampling {
    /// Resamples of the bootstrap, and sign patterns of the test.
    pub samples: usize,
    /// The seed.
    pub seed: u64,
    /// The interval's coverage, in (0, 1).
    pub level: f64,
}

impl Default for Resampling {
    fn default() -> Self {
        Self { samples: 10_000, seed: 42, level: 0.95 }
    }
}

/// A mean with its confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The mean of the values themselves.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// Two runs over the same queries, by one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Mean of `b − a` by query, with its paired bootstrap interval.
    pub difference: Interval,
    /// Two-sided p-value of the paired randomisation test: how often random signs give a mean difference at
    /// least as large.
    pub p_value: f64,
    /// Queries where `b` is better.
    pub wins: usize,
    /// Queries where `a` is better.
    pub losses: usize,
    /// Queries where both are equal.
    pub ties: usize,
}

/// The mean of some values and its percentile bootstrap interval. All zero for no values.
pub fn bootstrap_mean(values: &[f64], resampling: &Resampling) -> Interval {
    let n = values.len();
    if n == 0 {
        return Interval { mean: 0.0, low: 0.0, high: 0.0 };
    }
    let mut means: Vec<f64> = (0..resampling.samples)
        .into_par_iter()
        .map(|i| {
            let mut rng = stream(resampling.seed, i);
            (0..n).map(|_| values[rng.random_range(0..n as u32) as usize]).sum::<f64>() / n as f64
        })
        .collect();
    means.sort_unstable_by(f64::total_cmp);
    let mean = mean(values);
    let tail = (1.0 - resampling.level) / 2.0;
    Interval { mean, low: quantile(&means, tail).unwrap_or(mean), high: quantile(&means, 1.0 - tail).unwrap_or(mean) }
}

/// Two-sided p-value of the paired randomisation (sign-flip) test on differences by query. With few queries
/// (`2^n` at most `samples`) every sign pattern is tried and the value is exact; else it is
/// `(hits + 1) / (samples + 1)`. 1 for no differences.
pub fn randomisation_test(differences: &[f64], resampling: &Resampling) -> f64 {
    let observed = differences.iter().sum::<f64>().abs();
    // Sums of the same numbers in another order may differ in their last bits.
    let enough = observed - 1e-12 * differences.iter().map(|d| d.abs()).sum::<f64>();
    let n = differences.len();
    if n < usize::BITS as usize - 1 && (1usize << n) <= resampling.samples {
        let hits = (0..1usize << n)
            .filter(|pattern| {
                let sum: f64 =
                    differences.iter().enumerate().map(|(i, d)| if pattern >> i & 1 == 1 { -d } else { *d }).sum();
                sum.abs() >= enough
            })
            .count();
        return hits as f64 / (1usize << n) as f64;
    }
    let hits = (0..resampling.samples)
        .into_par_iter()
        .filter(|&i| {
            let mut rng = stream(!resampling.seed, i);
            let mut sum = 0.0;
            for block in differences.chunks(64) {
                let signs: u64 = rng.random();
                for (bit, d) in block.iter().enumerate() {
                    sum += if signs >> bit & 1 == 1 { -d } else { *d };
                }
            }
            sum.abs() >= enough
        })
        .count();
    (hits + 1) as f64 / (resampling.samples + 1) as f64
}

/// Compares two lists of per-query values in the same order of queries.
///
/// # Errors
/// If the lists have different lengths or are empty.
pub fn compare(a: &[f64], b: &[f64], resampling: &Resampling) -> Result<Comparison> {
    let problem = |message: String| Error::Comparison { metric: "values".to_owned(), message };
    if a.len() != b.len() {
        return Err(problem(format!("{} values against {}", a.len(), b.len())));
    }
    if a.is_empty() {
        return Err(problem("there is no query".to_owned()));
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    Ok(Comparison {
        difference: bootstrap_mean(&differences, resampling),
        p_value: randomisation_test(&differences, resampling),
        wins: differences.iter().filter(|d| **d > 0.0).count(),
        losses: differences.iter().filter(|d| **d < 0.0).count(),
        ties: differences.iter().filter(|d| **d == 0.0).count(),
    })
}

/// Compares two evaluations by one metric: `difference` is `b − a`.
///
/// # Errors
/// If they do not cover the same queries, or one lacks the metric.
pub fn compare_evaluations(
    a: &Evaluation,
    b: &Evaluation,
    metric: &str,
    resampling: &Resampling,
) -> Result<Comparison> {
    let problem = |message: String| Error::Comparison { metric: metric.to_owned(), message };
    let only = |x: &Evaluation, y: &Evaluation| x.per_query.keys().find(|q| !y.per_query.contains_key(*q)).cloned();
    if let Some(query) = only(a, b).or_else(|| only(b, a)) {
        return Err(problem(format!("query `{query}` is in one of the two only")));
    }
    let values = |e: &Evaluation| {
        e.values(metric).filter(|v| v.len() == e.per_query.len()).ok_or_else(|| problem("it was not computed".into()))
    };
    compare(&values(a)?, &values(b)?, resampling)
}

/// One generator a resample, so that the order in which threads take them has no effect.
fn stream(seed: u64, resample: usize) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(resample as u64);
    rng
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The q-quantile of sorted values, interpolated linearly between neighbours.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let place = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)? as f64);
    let (below, share) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    Some(sorted[below] + (sorted[above] - sorted[below]) * share)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const R: Resampling = Resampling { samples: 10_000, seed: 7, level: 0.95 };

    #[test]
    fn interval_agrees_with_the_normal_one() {
        // 400 values, half 0 and half 1: standard error 0.5 / sqrt(400) = 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let interval = bootstrap_mean(&values, &R);
        assert!((interval.mean - 0.5).abs() < 1e-12);
        assert!((interval.low - (0.5 - 1.96 * 0.025)).abs() < 0.004, "{interval:?}");
        assert!((interval.high - (0.5 + 1.96 * 0.025)).abs() < 0.004, "{interval:?}");
    }

    #[test]
    fn same_seed_same_figures_whatever_the_threads() {
        let values: Vec<f64> = (0..50).map(|i| f64::from(i * i % 17)).collect();
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let a = one.install(|| (bootstrap_mean(&values, &R), randomisation_test(&values, &R)));
        let b = three.install(|| (bootstrap_mean(&values, &R), randomisation_test(&values, &R)));
        assert_eq!(a, b);
        assert_ne!(a.0, bootstrap_mean(&values, &Resampling { seed: 8, ..R }));
    }

    #[test]
    fn exact_p_values_of_small_samples() {
        // All four differences positive: only the two patterns of equal signs reach the sum.
        assert!((randomisation_test(&[0.1, 0.2, 0.3, 0.4], &R) - 2.0 / 16.0).abs() < 1e-12);
        // |±1 ± 2| >= |1 - 2| always.
        assert!((randomisation_test(&[1.0, -2.0], &R) - 1.0).abs() < 1e-12);
        assert!((randomisation_test(&[], &R) - 1.0).abs() < 1e-12);
        assert!((randomisation_test(&[0.0; 300], &R) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn sampled_p_value_is_near_the_exact_one() {
        let differences = [0.3, -0.1, 0.25, 0.4, -0.05, 0.1, 0.2, -0.3, 0.15, 0.35];
        let exact = randomisation_test(&differences, &R);
        let sampled = randomisation_test(&differences, &Resampling { samples: 1000, ..R });
        assert!((exact - sampled).abs() < 0.03, "{exact} {sampled}");
        assert!(exact < 0.2 && exact > 0.01, "{exact}");
    }

    #[test]
    fn a_clear_difference_and_none() {
        let a: Vec<f64> = (0..100).map(|i| f64::from(i % 10) / 10.0).collect();
        let better: Vec<f64> = a.iter().enumerate().map(|(i, v)| v + if i % 3 == 0 { 0.2 } else { 0.0 }).collect();
        let c = compare(&a, &better, &R).unwrap();
        assert!(c.difference.low > 0.0 && c.p_value < 0.001, "{c:?}");
        assert_eq!((c.wins, c.losses, c.ties), (34, 0, 66));
        let mixed: Vec<f64> = a.iter().enumerate().map(|(i, v)| v + [0.1, -0.1][i % 2]).collect();
        let c = compare(&a, &mixed, &R).unwrap();
        assert!(c.difference.low < 0.0 && c.difference.high > 0.0 && c.p_value > 0.5, "{c:?}");
    }

    #[test]
    fn what_does_not_fit_is_said() {
        assert!(compare(&[1.0], &[1.0, 2.0], &R).is_err());
        assert!(compare(&[], &[], &R).is_err());
        let evaluation = |queries: &[&str]| Evaluation {
            per_query: queries.iter().map(|q| ((*q).to_owned(), BTreeMap::from([("map".to_owned(), 0.5)]))).collect(),
            ..Evaluation::default()
        };
        let (a, b) = (evaluation(&["1", "2"]), evaluation(&["1", "3"]));
        let message = compare_evaluations(&a, &b, "map", &R).unwrap_err().to_string();
        assert_eq!(message, "Cannot compare by `map`: query `2` is in one of the two only");
        assert!(compare_evaluations(&a, &a, "ndcg@10", &R).unwrap_err().to_string().contains("not computed"));
        assert_eq!(compare_evaluations(&a, &a, "map", &R).unwrap().ties, 2);
    }

    proptest! {
        /// The interval holds the mean and stays inside the values' range; p is a probability.
        #[test]
        fn sane(values in proptest::collection::vec(-1.0f64..1.0, 1..40)) {
            let r = Resampling { samples: 500, ..R };
            let i = bootstrap_mean(&values, &r);
            let (least, most) = values.iter().fold((1.0f64, -1.0f64), |(l, m), v| (l.min(*v), m.max(*v)));
            prop_assert!(least - 1e-12 <= i.low && i.low <= i.high && i.high <= most + 1e-12);
            let p = randomisation_test(&values, &r);
            prop_assert!(p > 0.0 && p <= 1.0);
        }
    }
}

//! Penalties on the matrix of document vectors `[N, V]` (weights at or above 0): value, and gradient added to
//! a buffer of the same shape. Where a weight is 0 its slope is 0.
//!
//! idf-aware matching (arXiv 2411.04403, second version) needs no penalty of its own: the idf stands in the score
//! `s(q, d) = Σ_j idf_j · d_j`, so the ranking loss pulls rare tokens harder than an even FLOPS pushes them, and
//! that is how scores are made here ([`crate::losses::Scores`]). Nothing in FLOPS itself is divided by idf.

mod document_frequency;
mod flops;
mod lexical;
mod ramp;
mod sums;

pub use document_frequency::{DocumentFrequencies, activ};
pub use flops::{Mask, flops, flops_grouped, flops_of_groups, masked_flops};
pub use lexical::LexicalTerm;
pub use ramp::Ramp;
pub use sums::{AntiZero, anti_zero, l1};

/// How many weights of a row are above zero.
pub fn active(row: &[f32]) -> usize {
    row.iter().filter(|&&w| w > 0.0).count()
}

#[cfg(test)]
mod tests {
    use nsparse_core::SparseVector;

    use super::*;

    const V: usize = 5;

    fn numeric(weights: &[f32], value: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        (0..weights.len())
            .map(|i| {
                let at = |step: f32| {
                    let mut moved = weights.to_vec();
                    moved[i] += step;
                    value(&moved)
                };
                (at(1e-2) - at(-1e-2)) / 2e-2
            })
            .collect()
    }

    fn assert_close(gradient: &[f32], expected: &[f64], weights: &[f32]) {
        for ((g, e), w) in gradient.iter().zip(expected).zip(weights) {
            if *w > 0.0 {
                assert!((f64::from(*g) - e).abs() < 1e-4, "{g} against {e}");
            } else {
                assert!(g.to_bits() == 0, "no slope where the weight is 0");
            }
        }
    }

    #[test]
    fn gradients_equal_differences() {
        let weights = [0.5f32, 0.0, 1.5, 0.25, 0.0, 0.75, 2.0, 0.0, 0.0, 0.0];
        let mut g = vec![0.0; weights.len()];
        flops(&weights, V, 0, 1.0, &mut g);
        assert_close(&g, &numeric(&weights, |w| flops(w, V, 0, 0.0, &mut [0.0; 10])), &weights);
        let mut g = vec![0.0; weights.len()];
        l1(&weights, V, 1.0, &mut g);
        assert_close(&g, &numeric(&weights, |w| l1(w, V, 0.0, &mut [0.0; 10])), &weights);
        let targets = [SparseVector { ids: vec![0, 1], weights: vec![1.0, 2.0] }, SparseVector::default()];
        let targets: Vec<&SparseVector> = targets.iter().collect();
        let term = LexicalTerm { other_weight: 0.1, slope_below_zero: 1.0 };
        let (mut g, mut below) = (vec![0.0; weights.len()], vec![0.0; weights.len()]);
        let value = term.add(&weights, V, &targets, 1.0, &mut g, &mut below);
        let expected = (0.25 + 4.0 + 0.1 * (2.25 + 0.0625) + 0.1 * (0.5625 + 4.0)) / 2.0;
        assert!((value - expected).abs() < 1e-6, "{value} against {expected}");
        let differences = numeric(&weights, |w| term.add(w, V, &targets, 0.0, &mut [0.0; 10], &mut [0.0; 10]));
        assert_close(&g, &differences, &weights);
        // Own token 1 of document 0 is not active: drawn up with the slope 2·(0 − 2)/2; nothing else is.
        let drawn: Vec<usize> = (0..below.len()).filter(|&i| below[i] != 0.0).collect();
        assert_eq!(drawn, [1]);
        assert!((below[1] + 2.0).abs() < 1e-6);
    }

    #[test]
    fn spared_documents_have_no_slope_but_count_in_the_mean() {
        let weights = [1.0f32, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0];
        let mut g = vec![0.0; weights.len()];
        let value = flops(&weights, V, 1, 1.0, &mut g);
        assert!((value - 0.75).abs() < 1e-12);
        assert!(g[5..].iter().all(|&g| g == 0.0) && g[0] > 0.0);
        let mut g = vec![0.0; weights.len()];
        let grouped = flops_grouped(&weights, V, 2, 0, 1.0, &mut g);
        assert!((grouped - 4.0).abs() < 1e-12);
    }

    #[test]
    fn gradients_of_masks_factors_and_anti_zero_equal_differences() {
        let weights =
            [0.5f32, 0.0, 1.5, 0.25, 0.0, 0.75, 2.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.0, 1.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.5];
        let factors = [0.5f32, 1.0, 0.25, 0.75, 0.0];
        for mask in [
            Mask { spare_below: 1, factors: None },
            Mask { spare_below: 0, factors: Some(&factors) },
            Mask { spare_below: 2, factors: Some(&factors) },
        ] {
            for slots in [1, 2] {
                let mut g = vec![0.0; weights.len()];
                let value = masked_flops(&weights, V, slots, mask, 1.0, &mut g);
                assert!((value - plain(&weights, slots, mask)).abs() < 1e-9, "{mask:?}, {slots}");
                assert!(g.iter().any(|&g| g > 0.0));
                let differences = numeric(&weights, |w| masked_flops(w, V, slots, mask, 0.0, &mut [0.0; 20]));
                // A moved zero is one active dimension more: only weights above 0 are compared, and no count changes there.
                for ((g, e), w) in g.iter().zip(&differences).zip(&weights) {
                    assert!(*w == 0.0 || (f64::from(*g) - e).abs() < 1e-4, "{g} against {e}");
                }
            }
        }
        let mut g = vec![0.0; weights.len()];
        let term = anti_zero(3.0, &weights, 100.0, &mut g);
        assert!((term.value - (1.0 / 9.0 + 1.0 / 7.75f64.powi(2))).abs() < 1e-9, "{term:?}");
        assert!((term.query_slope + 2.0 / 27.0).abs() < 1e-12);
        let differences = numeric(&weights, |w| 100.0 * anti_zero(3.0, w, 0.0, &mut [0.0; 20]).value);
        assert_close(&g, &differences, &weights);
        // Nothing is left to climb on: no value, no slope, nothing that is not a number.
        let mut g = [0.0; 4];
        assert!((anti_zero(2.0, &[0.0; 4], 1.0, &mut g).value - 0.25).abs() < 1e-12);
        assert!(g.iter().all(|g| g.to_bits() == 0), "{g:?}");
    }

    /// The formula entry by entry, in another order than the code above.
    fn plain(weights: &[f32], slots: usize, mask: Mask<'_>) -> f64 {
        let n = weights.len() / V;
        let mut value = 0.0;
        for slot in 0..slots {
            let rows: Vec<usize> = (0..n).filter(|r| r % slots == slot).collect();
            for j in 0..V {
                let kept = |r: &usize| {
                    mask.spare_below == 0 || (0..V).filter(|k| weights[r * V + k] > 0.0).count() > mask.spare_below
                };
                let sum: f64 = rows.iter().filter(|r| kept(r)).map(|r| f64::from(weights[r * V + j])).sum();
                let factor = mask.factors.map_or(1.0, |f| f64::from(f[j]));
                value += (factor * sum / rows.len() as f64).powi(2);
            }
        }
        value
    }
}

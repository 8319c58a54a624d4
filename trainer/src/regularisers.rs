//! Penalties on the matrix of document vectors `[N, V]` (weights at or above 0): value, and gradient added to
//! a buffer of the same shape. Where a weight is 0 its slope is 0.

use nsparse_core::SparseVector;
use rayon::prelude::*;

/// FLOPS (arXiv 2004.05665), as sentence-transformers takes it: `Σ_j (mean over documents of w_ij)²`. Documents
/// with at most `spare_below` active dimensions are left out (the l0 mask of arXiv 2504.14839); the mean
/// still divides by all. Adds `weight · gradient`, returns the bare value.
pub fn flops(weights: &[f32], vocab: usize, spare_below: usize, weight: f64, gradient: &mut [f32]) -> f64 {
    flops_of_rows(weights, vocab, spare_below, weight, gradient, &(0..weights.len() / vocab).collect::<Vec<_>>())
}

/// FLOPS by slots, as OpenSearch's tuning sample takes it: documents stand query-major with `slots` a query,
/// `Σ_s Σ_j (mean over queries of w_(b,s),j)²`. About `slots` times [`flops`].
pub fn flops_grouped(
    weights: &[f32],
    vocab: usize,
    slots: usize,
    spare_below: usize,
    weight: f64,
    gradient: &mut [f32],
) -> f64 {
    let n = weights.len() / vocab;
    (0..slots)
        .map(|slot| {
            let rows: Vec<usize> = (slot..n).step_by(slots).collect();
            flops_of_rows(weights, vocab, spare_below, weight, gradient, &rows)
        })
        .sum()
}

fn flops_of_rows(
    weights: &[f32],
    vocab: usize,
    spare_below: usize,
    weight: f64,
    gradient: &mut [f32],
    rows: &[usize],
) -> f64 {
    if rows.is_empty() {
        return 0.0;
    }
    let divisor = rows.len() as f64;
    let counted: Vec<usize> = rows
        .iter()
        .copied()
        .filter(|&r| spare_below == 0 || active(&weights[r * vocab..(r + 1) * vocab]) > spare_below)
        .collect();
    let mut means = vec![0.0f64; vocab];
    for &row in &counted {
        for (mean, &w) in means.iter_mut().zip(&weights[row * vocab..(row + 1) * vocab]) {
            *mean += f64::from(w);
        }
    }
    for mean in &mut means {
        *mean /= divisor;
    }
    for &row in &counted {
        let range = row * vocab..(row + 1) * vocab;
        for ((g, &w), mean) in gradient[range.clone()].iter_mut().zip(&weights[range]).zip(&means) {
            if w > 0.0 {
                *g += (weight * 2.0 * mean / divisor) as f32;
            }
        }
    }
    means.iter().map(|m| m * m).sum()
}

/// L1: mean over documents of `Σ_j w_ij`.
pub fn l1(weights: &[f32], vocab: usize, weight: f64, gradient: &mut [f32]) -> f64 {
    let n = (weights.len() / vocab).max(1) as f64;
    let slope = (weight / n) as f32;
    for (g, &w) in gradient.iter_mut().zip(weights) {
        if w > 0.0 {
            *g += slope;
        }
    }
    weights.iter().map(|&w| f64::from(w)).sum::<f64>() / n
}

/// What a document's weights shall become: targets of its own tokens; all other tokens are drawn to 0 with
/// `other_weight`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LexicalTerm {
    /// Weight of the squared error of tokens that are not in the text.
    pub other_weight: f64,
    /// Slope of the activation that own tokens at or below zero are given, in `[0, 1]`.
    pub slope_below_zero: f64,
}

impl LexicalTerm {
    /// `(1/N) Σ_i [ Σ_{j in text} (w_ij − t_ij)² + o·Σ_{j not in text} w_ij² ]`.
    ///
    /// `weights` `[N, V]` with zeroed ids at 0; `targets` one vector a document, without zeroed ids. Adds
    /// `weight · dL/dw` to `gradient`, and to `below` (dL/d pooled logit, `[N, V]`) the slope of own tokens
    /// that are not active: the activation is flat there, so without it they would never be learned.
    pub fn add(
        &self,
        weights: &[f32],
        vocab: usize,
        targets: &[&SparseVector],
        weight: f64,
        gradient: &mut [f32],
        below: &mut [f32],
    ) -> f64 {
        let n = targets.len().max(1) as f64;
        let scale = 2.0 * weight / n;
        let values: Vec<f64> = weights
            .par_chunks_exact(vocab)
            .zip(gradient.par_chunks_exact_mut(vocab))
            .zip(below.par_chunks_exact_mut(vocab))
            .zip(targets)
            .map(|(((row, slopes), below), target)| {
                let mut value = 0.0;
                for (g, &w) in slopes.iter_mut().zip(row) {
                    if w > 0.0 {
                        value += self.other_weight * f64::from(w) * f64::from(w);
                        *g += (scale * self.other_weight * f64::from(w)) as f32;
                    }
                }
                for (id, t) in target.iter() {
                    let j = id as usize;
                    let (w, t) = (f64::from(row[j]), f64::from(t));
                    // Taken as "other" above: put right.
                    value += (w - t) * (w - t) - self.other_weight * w * w;
                    if row[j] > 0.0 {
                        slopes[j] += (scale * ((w - t) - self.other_weight * w)) as f32;
                    } else {
                        below[j] += (scale * (w - t) * self.slope_below_zero) as f32;
                    }
                }
                value
            })
            .collect();
        values.iter().sum::<f64>() / n
    }
}

/// How many weights of a row are above zero.
pub fn active(row: &[f32]) -> usize {
    row.iter().filter(|&&w| w > 0.0).count()
}

#[cfg(test)]
mod tests {
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
}

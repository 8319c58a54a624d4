//! The lexical term: weights are drawn to BM25's tf part on the tokens of the text, and to 0 elsewhere.

use nsparse_core::SparseVector;
use rayon::prelude::*;

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

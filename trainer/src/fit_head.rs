//! A fresh head in closed form: its transform is fitted so that a position's last hidden state points at the
//! embedding of its own token. A bare encoder then starts as a reader that knows what stands where, with
//! neighbours in the embedding space as first expansions, instead of having to learn that by gradient.
//!
//! The head is `LayerNorm(GELU(W h + b))` before the tied decoder. With every `b` well above the spread of
//! `W h` the GELU is nearly the identity, and the norm takes the common offset out again; so what remains is a
//! linear map, found by ridge regression of the centred, normed word embeddings on hidden states:
//! `W = Yᵀ X (Xᵀ X + λ I)⁻¹`, with X `[N, H]` centred hidden states and Y `[N, H]` targets.

use nsparse_core::{Cancel, Progress};
use nsparse_encoder::cpu::transposed_product;
use nsparse_encoder::{BertConfig, Parameters};
use rand::SeedableRng;
use rand::seq::index;

use crate::data::Documents;
use crate::{Error, Result};

const WORDS: &str = "bert.embeddings.word_embeddings.weight";
const DENSE: &str = "cls.predictions.transform.dense.weight";
const DENSE_BIAS: &str = "cls.predictions.transform.dense.bias";
/// Where the GELU is the identity to within 0.1 %.
const OFFSET: f64 = 4.0;
/// Deviation of `W h` around the offset.
const SPREAD: f64 = 0.6;
/// Ridge, relative to the mean diagonal of `Xᵀ X`.
const RIDGE: f64 = 1e-3;

/// The last hidden states `[L, H]` of one text.
pub type HiddenStates<'a> = dyn Fn(&Parameters, &[u32]) -> Result<Vec<f32>> + 'a;

/// Sets the transform's weight and bias; everything else stays. Special tokens (the first and the last of a window) are left out.
///
/// # Errors
/// If there is no document, the hidden states are not finite, or the user asked to stop.
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn fit_head(
    config: &BertConfig,
    parameters: &mut Parameters,
    documents: &Documents,
    count: usize,
    seed: u64,
    hidden: &HiddenStates<'_>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    let h = config.hidden_size;
    let n = count.min(documents.len());
    if n == 0 {
        return Err(Error::config("`calibration.documents`: the data has no document"));
    }
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x6669_745f_6865_6164);
    let task = progress.start("Fitting the head", n as u64);
    let targets = targets(parameters.get(WORDS)?, h);
    let mut sums = Sums::new(h);
    for number in index::sample(&mut rng, documents.len(), n) {
        cancel.check()?;
        let ids = documents.window(number);
        let states = hidden(parameters, ids)?;
        let inner = 1..ids.len().saturating_sub(1).max(1);
        let wanted: Vec<f32> = ids[inner.clone()]
            .iter()
            .flat_map(|&id| &targets[id as usize * h..(id as usize + 1) * h])
            .copied()
            .collect();
        sums.add(&states[inner.start * h..inner.end * h], &wanted);
        task.advance(1);
    }
    let (map, mean, spread) = sums.solve()?;
    let scale = SPREAD / spread.max(1e-12);
    let weight = parameters.get_mut(DENSE)?;
    for (w, m) in weight.iter_mut().zip(&map) {
        *w = (m * scale) as f32;
    }
    let bias = parameters.get_mut(DENSE_BIAS)?;
    for (row, b) in bias.iter_mut().enumerate() {
        let shift: f64 = (0..h).map(|k| map[row * h + k] * mean[k]).sum();
        *b = (OFFSET - scale * shift) as f32;
    }
    Ok(())
}

/// Word embeddings less their mean, each of length 1: directions, so that long rows do not rule the fit.
fn targets(words: &[f32], h: usize) -> Vec<f32> {
    let rows = words.len() / h;
    let mut mean = vec![0.0f64; h];
    for row in words.chunks_exact(h) {
        for (m, &v) in mean.iter_mut().zip(row) {
            *m += f64::from(v) / rows as f64;
        }
    }
    let mut out = Vec::with_capacity(words.len());
    for row in words.chunks_exact(h) {
        let centred: Vec<f64> = row.iter().zip(&mean).map(|(&v, m)| f64::from(v) - m).collect();
        let length = centred.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        out.extend(centred.iter().map(|v| (v / length) as f32));
    }
    out
}

/// Moments of hidden states and targets, in double.
struct Sums {
    h: usize,
    n: f64,
    x: Vec<f64>,
    y: Vec<f64>,
    xx: Vec<f64>,
    yx: Vec<f64>,
}

impl Sums {
    fn new(h: usize) -> Self {
        Self { h, n: 0.0, x: vec![0.0; h], y: vec![0.0; h], xx: vec![0.0; h * h], yx: vec![0.0; h * h] }
    }

    /// The rows of one document: x `[n, H]` and y `[n, H]`. Products within a document are in single precision,
    /// their sum is in double.
    fn add(&mut self, x: &[f32], y: &[f32]) {
        let h = self.h;
        let rows = x.len() / h;
        self.n += rows as f64;
        let columns = |sums: &mut [f64], x: &[f32]| {
            for row in x.chunks_exact(h) {
                for (sum, &x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(x);
                }
            }
        };
        columns(&mut self.x, x);
        columns(&mut self.y, y);
        for (sums, left) in [(&mut self.xx, x), (&mut self.yx, y)] {
            for (sum, product) in sums.iter_mut().zip(transposed_product(left, x, rows)) {
                *sum += f64::from(product);
            }
        }
    }

    /// The map `[H, H]` (row: output), the mean hidden state, and the deviation of the map's outputs.
    fn solve(mut self) -> Result<(Vec<f64>, Vec<f64>, f64)> {
        let (h, n) = (self.h, self.n);
        if n < 2.0 {
            return Err(Error::config("`calibration.documents`: the documents have no tokens to fit the head on"));
        }
        let mean: Vec<f64> = self.x.iter().map(|v| v / n).collect();
        let target: Vec<f64> = self.y.iter().map(|v| v / n).collect();
        for i in 0..h {
            for j in 0..h {
                self.xx[i * h + j] = self.xx[i * h + j] / n - mean[i] * mean[j];
                self.yx[i * h + j] = self.yx[i * h + j] / n - target[i] * mean[j];
            }
        }
        let covariance = self.xx.clone();
        let ridge = RIDGE * (0..h).map(|i| covariance[i * h + i]).sum::<f64>() / h as f64;
        for i in 0..h {
            self.xx[i * h + i] += ridge;
        }
        let factor = cholesky(self.xx, h).ok_or_else(|| {
            nsparse_encoder::Error::Model("its hidden states are not finite or all the same".to_owned())
        })?;
        let mut map = self.yx;
        for row in map.chunks_exact_mut(h) {
            solve_in_place(&factor, row, h);
        }
        // Mean over outputs of w C wᵀ: the variance of `W h`.
        let variance: f64 = map
            .chunks_exact(h)
            .map(|w| (0..h).map(|i| w[i] * (0..h).map(|j| covariance[i * h + j] * w[j]).sum::<f64>()).sum::<f64>())
            .sum::<f64>()
            / h as f64;
        Ok((map, mean, variance.max(0.0).sqrt()))
    }
}

/// The lower triangle L of `A = L Lᵀ`, row-major; `None` if A is not positive definite.
pub(crate) fn cholesky(mut a: Vec<f64>, n: usize) -> Option<Vec<f64>> {
    for j in 0..n {
        let (before, row_j) = a.split_at_mut(j * n);
        let _ = before;
        let pivot = row_j[j] - row_j[..j].iter().map(|v| v * v).sum::<f64>();
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let root = pivot.sqrt();
        row_j[j] = root;
        let (row_j, below) = row_j.split_at_mut(n);
        for row in below.chunks_exact_mut(n) {
            let dot: f64 = row[..j].iter().zip(&row_j[..j]).map(|(a, b)| a * b).sum();
            row[j] = (row[j] - dot) / root;
        }
    }
    Some(a)
}

/// Solves `L Lᵀ x = b` in place of b.
pub(crate) fn solve_in_place(l: &[f64], b: &mut [f64], n: usize) {
    for i in 0..n {
        let dot: f64 = (0..i).map(|k| l[i * n + k] * b[k]).sum();
        b[i] = (b[i] - dot) / l[i * n + i];
    }
    for i in (0..n).rev() {
        let dot: f64 = (i + 1..n).map(|k| l[k * n + i] * b[k]).sum();
        b[i] = (b[i] - dot) / l[i * n + i];
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{Sums, cholesky, solve_in_place};

    #[test]
    fn a_symmetric_system_is_solved() {
        // A = [[4, 2, 0], [2, 5, 1], [0, 1, 3]], x = (1, -2, 3): b = A x = (0, -5, 7).
        let l = cholesky(vec![4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 3.0], 3).unwrap();
        let mut b = vec![0.0, -5.0, 7.0];
        solve_in_place(&l, &mut b, 3);
        for (got, want) in b.iter().zip([1.0, -2.0, 3.0]) {
            assert!((got - want).abs() < 1e-12, "{b:?}");
        }
        assert!(cholesky(vec![1.0, 2.0, 2.0, 1.0], 2).is_none());
    }

    /// Targets that are a linear map of the inputs are found again, up to the ridge.
    #[test]
    fn a_linear_map_is_found_again() {
        let map = [2.0f64, -1.0, 0.5, 3.0];
        let mut sums = Sums::new(2);
        for i in 0..200 {
            let x = [(f64::from(i) * 0.7).sin() as f32 + 1.0, (f64::from(i) * 1.3).cos() as f32 - 2.0];
            let y: Vec<f32> = (0..2)
                .map(|r| (map[r * 2] * f64::from(x[0]) + map[r * 2 + 1] * f64::from(x[1]) + 5.0) as f32)
                .collect();
            sums.add(&x, &y);
        }
        let (found, mean, spread) = sums.solve().unwrap();
        for (got, want) in found.iter().zip(map) {
            assert!((got - want).abs() < 0.01, "{found:?}");
        }
        assert!((mean[0] - 1.0).abs() < 0.05 && (mean[1] + 2.0).abs() < 0.05, "{mean:?}");
        assert!(spread > 0.5, "{spread}");
    }
}

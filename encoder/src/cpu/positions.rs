//! The vocabulary head at some rows: log-probabilities of given entries, and their backward.
//!
//! The softmax runs over the whole vocabulary, but its logits exist only block by block: the forward carries each
//! row's maximum, sum of exponentials and best entry from block to block, the backward computes a block's logits
//! again. Blocks come in a fixed order, each product on all threads.

use std::ops::Range;

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::matrix::{Mat, MatMut, Store, Threads, product};
use super::rows::{add_column_sums, fill_with_bias};
use super::workspace::ensure;

/// Logits that exist at a time.
const LOGITS: usize = 1 << 22;
/// Rows of a block.
const ROWS: usize = 1024;

/// The decoder and its sizes.
pub(super) struct PositionHead<'a> {
    pub(super) level: Level,
    pub(super) hidden: usize,
    /// `[V, H]`.
    pub(super) decoder: &'a [f32],
    /// `[V]`.
    pub(super) bias: &'a [f32],
}

/// What the forward knows of each row.
#[derive(Default)]
pub(super) struct LogProbabilities {
    /// ln softmax at the label, `[P]`.
    pub(super) values: Vec<f32>,
    /// The entry with the largest logit, `[P]`.
    pub(super) best: Vec<u32>,
    /// ln Σ exp(logit), `[P]`.
    pub(super) log_sums: Vec<f64>,
}

/// Where the backward adds.
pub(super) struct PositionGradient<'a> {
    /// dL/d rows `[P, H]`, overwritten.
    pub(super) rows: &'a mut [f32],
    /// dL/d decoder `[V, H]`, added to.
    pub(super) decoder: &'a mut [f32],
    /// dL/d bias `[V]`, added to.
    pub(super) bias: &'a mut [f32],
}

/// One row on its way over the vocabulary.
#[derive(Clone, Copy)]
struct Running {
    most: f32,
    /// Σ exp(logit − most) so far.
    sum: f64,
    best: u32,
    /// The label's logit, once it was seen.
    label: f32,
}

impl PositionHead<'_> {
    /// From the transformed rows `[P, H]` and the entry looked for at each.
    pub(super) fn forward(&self, rows: &[f32], labels: &[u32]) -> LogProbabilities {
        let mut out = LogProbabilities::default();
        let mut buffer = Vec::new();
        for (rows, labels) in rows.chunks(ROWS * self.hidden).zip(labels.chunks(ROWS)) {
            let start = Running { most: f32::NEG_INFINITY, sum: 0.0, best: 0, label: f32::NAN };
            let mut running = vec![start; labels.len()];
            for entries in self.blocks(labels.len()) {
                let logits = self.logits(rows, labels.len(), &entries, &mut buffer);
                running.par_iter_mut().zip(logits.par_chunks_exact(entries.len())).zip(labels).for_each(
                    |((running, logits), &label)| {
                        self.level.run(
                            #[inline(always)]
                            || running.see(logits, &entries, label as usize),
                        );
                    },
                );
            }
            for row in running {
                let log_sum = f64::from(row.most) + row.sum.ln();
                out.values.push((f64::from(row.label) - log_sum) as f32);
                out.best.push(row.best);
                out.log_sums.push(log_sum);
            }
        }
        out
    }

    /// With g = dL/d log-probability `[P]`: `dL/d logit_j = g · (1 at the label − softmax_j)`.
    pub(super) fn backward(
        &self,
        rows: &[f32],
        labels: &[u32],
        log_sums: &[f64],
        gradient: &[f32],
        out: PositionGradient<'_>,
    ) {
        let (mut buffer, mut partials) = (Vec::new(), Vec::new());
        let PositionGradient { rows: d_rows, decoder: d_decoder, bias: d_bias } = out;
        let parts = rows
            .chunks(ROWS * self.hidden)
            .zip(d_rows.chunks_mut(ROWS * self.hidden))
            .zip(labels.chunks(ROWS))
            .zip(log_sums.chunks(ROWS))
            .zip(gradient.chunks(ROWS));
        for ((((rows, d_rows), labels), log_sums), gradient) in parts {
            let count = labels.len();
            let known: Vec<(usize, f32, f32)> = labels
                .iter()
                .zip(log_sums)
                .zip(gradient)
                .map(|((&label, &log_sum), &g)| (label as usize, log_sum as f32, g))
                .collect();
            let mut store = Store::Fresh;
            for entries in self.blocks(count) {
                let width = entries.len();
                let slopes = self.logits(rows, count, &entries, &mut buffer);
                slopes.par_chunks_exact_mut(width).zip(&known).for_each(|(row, &(label, log_sum, g))| {
                    self.level.run(
                        #[inline(always)]
                        || {
                            for x in row.iter_mut() {
                                *x = -g * math::exp(*x - log_sum);
                            }
                        },
                    );
                    if entries.contains(&label) {
                        row[label - entries.start] += g;
                    }
                });
                add_column_sums(self.level, slopes, &mut d_bias[entries.clone()], &mut partials);
                let decoder = &self.decoder[entries.start * self.hidden..entries.end * self.hidden];
                let slopes = Mat::new(slopes, count, width);
                let mut back = MatMut::new(d_rows, count, self.hidden);
                product(&mut back, store, slopes, Mat::new(decoder, width, self.hidden), 1.0, Threads::All);
                let d_decoder = &mut d_decoder[entries.start * self.hidden..entries.end * self.hidden];
                let mut own = MatMut::new(d_decoder, width, self.hidden);
                product(&mut own, Store::Sum, slopes.t(), Mat::new(rows, count, self.hidden), 1.0, Threads::All);
                store = Store::Sum;
            }
        }
    }

    /// Entries whose logits for so many rows exist at a time.
    fn blocks(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let vocabulary = self.bias.len();
        let width = (LOGITS / rows.max(1)).clamp(1, vocabulary);
        (0..vocabulary).step_by(width).map(move |start| start..vocabulary.min(start + width))
    }

    /// Logits `[count, entries]`, bias included.
    fn logits<'b>(
        &self,
        rows: &[f32],
        count: usize,
        entries: &Range<usize>,
        buffer: &'b mut Vec<f32>,
    ) -> &'b mut [f32] {
        let logits = ensure(buffer, count * entries.len());
        fill_with_bias(logits, &self.bias[entries.clone()]);
        let decoder = &self.decoder[entries.start * self.hidden..entries.end * self.hidden];
        let decoder = Mat::new(decoder, entries.len(), self.hidden).t();
        let mut view = MatMut::new(logits, count, entries.len());
        product(&mut view, Store::Sum, Mat::new(rows, count, self.hidden), decoder, 1.0, Threads::All);
        logits
    }
}

impl Running {
    /// The next block of this row's logits.
    #[inline(always)]
    fn see(&mut self, logits: &[f32], entries: &Range<usize>, label: usize) {
        let most = math::max(logits);
        if most > self.most {
            self.sum *= f64::from((self.most - most).exp());
            self.most = most;
            let place = logits.iter().position(|x| x.to_bits() == most.to_bits()).unwrap_or(0);
            self.best = (entries.start + place) as u32;
        }
        let most = self.most;
        self.sum += f64::from(math::sum(
            logits,
            #[inline(always)]
            |x| math::exp(x - most),
        ));
        if entries.contains(&label) {
            self.label = logits[label - entries.start];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in (−1, 1) from an index.
    fn values(n: usize, factor: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * factor + 7) % 1009) as f32 / 504.5 - 1.0).collect()
    }

    /// More rows than a block has, and more entries than fit beside them: against plain sums in double precision.
    #[test]
    fn blocks_add_up_to_the_whole_softmax() {
        let (hidden, vocabulary, count) = (5, 5000, ROWS + 3);
        let (rows, decoder, bias) =
            (values(count * hidden, 613), values(vocabulary * hidden, 421), values(vocabulary, 89));
        let labels: Vec<u32> = (0..count).map(|i| (i * 37 % vocabulary) as u32).collect();
        let upstream = values(count, 311);
        let head = PositionHead { level: Level::best(), hidden, decoder: &decoder, bias: &bias };
        assert!(head.blocks(ROWS).count() > 1);
        let got = head.forward(&rows, &labels);

        let wide = |v: &[f32]| v.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (r, d, b) = (wide(&rows), wide(&decoder), wide(&bias));
        let (mut d_rows, mut d_decoder, mut d_bias) =
            (vec![0.0; rows.len()], vec![0.0; decoder.len()], vec![0.0; vocabulary]);
        for i in 0..count {
            let x = &r[i * hidden..(i + 1) * hidden];
            let logits: Vec<f64> = (0..vocabulary)
                .map(|j| b[j] + x.iter().zip(&d[j * hidden..(j + 1) * hidden]).map(|(a, c)| a * c).sum::<f64>())
                .collect();
            let log_sum = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            let label = labels[i] as usize;
            assert!((f64::from(got.values[i]) - (logits[label] - log_sum)).abs() < 2e-6, "{i}");
            let best = (0..vocabulary).fold(0, |best, j| if logits[j] > logits[best] { j } else { best });
            assert!((logits[got.best[i] as usize] - logits[best]).abs() < 1e-5, "{i}");
            for j in 0..vocabulary {
                let indicator = f64::from(u8::from(j == label));
                let slope = f64::from(upstream[i]) * (indicator - (logits[j] - log_sum).exp());
                d_bias[j] += slope;
                for k in 0..hidden {
                    d_rows[i * hidden + k] += slope * d[j * hidden + k];
                    d_decoder[j * hidden + k] += slope * x[k];
                }
            }
        }
        let (mut g_rows, mut g_decoder, mut g_bias) =
            (vec![9.0f32; rows.len()], vec![1.0f32; decoder.len()], vec![1.0f32; vocabulary]);
        let out = PositionGradient { rows: &mut g_rows, decoder: &mut g_decoder, bias: &mut g_bias };
        head.backward(&rows, &labels, &got.log_sums, &upstream, out);
        let worst = |got: &[f32], want: &[f64], from: f64| {
            got.iter().zip(want).map(|(g, w)| (f64::from(*g) - from - w).abs()).fold(0.0, f64::max)
        };
        assert!(worst(&g_rows, &d_rows, 0.0) < 2e-6);
        assert!(worst(&g_decoder, &d_decoder, 1.0) < 2e-6);
        assert!(worst(&g_bias, &d_bias, 1.0) < 2e-6);
    }
}

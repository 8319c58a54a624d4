//! softmax(Q Kᵀ / √d) V within each document, head by head; one task for each document and head.
//!
//! The forward keeps only the logarithm of each softmax's denominator; the backward makes the probabilities
//! again from it (as `FlashAttention` does, Dao et al. 2022, without its tiling: one head's scores fit a cache).

use std::cell::RefCell;

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::matrix::{MatMut, Store, Threads, product};
use super::tokens::{Tokens, drop_elements};
use super::workspace::{LayerActivations, ensure};
use crate::BertConfig;

/// Scratch of one thread.
#[derive(Default)]
struct Scratch {
    /// Probabilities `[L, L]`.
    scores: Vec<f32>,
    /// Their gradient `[L, L]`.
    gradient: Vec<f32>,
    /// One head's `[L, d]`.
    head: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Which attention is computed.
#[derive(Clone, Copy)]
pub(super) struct Attention<'a> {
    pub(super) level: Level,
    pub(super) config: &'a BertConfig,
    pub(super) tokens: &'a Tokens<'a>,
    pub(super) layer: usize,
}

impl Attention<'_> {
    fn scale(&self) -> f32 {
        1.0 / (self.config.head_size() as f32).sqrt()
    }

    /// Splits `[T, H]` into one block for each document and head, heads of a document in a row.
    fn split<'b>(&self, x: &'b mut [f32]) -> Vec<MatMut<'b>> {
        MatMut::new(x, self.tokens.len(), self.config.hidden_size)
            .split(&self.tokens.documents(), self.config.head_size())
    }

    /// Splits `[T · heads]` into the rows of each document and head.
    fn split_log_sums<'b>(&self, mut sums: &'b mut [f32]) -> Vec<&'b mut [f32]> {
        let heads = self.config.num_attention_heads;
        let mut out = Vec::with_capacity(self.tokens.batch.documents() * heads);
        for document in self.tokens.documents() {
            for _ in 0..heads {
                out.push(sums.split_off_mut(..document.len()).expect("T · heads values"));
            }
        }
        out
    }

    /// The mask of one query's probabilities over all keys, with the index of the first.
    fn mask(&self, task: usize, query: usize, keys: usize) -> Option<(crate::dropout::Mask, u64)> {
        let heads = self.config.num_attention_heads;
        let mask = self.tokens.attention_mask(self.layer, task / heads)?;
        Some((mask, (((task % heads) * keys + query) * keys) as u64))
    }

    /// Reads the projections of `acts`; writes its context and log sums.
    pub(super) fn forward(&self, acts: &mut LayerActivations) {
        let rows = self.tokens.len();
        let [query, key, value] = &mut acts.projections;
        let (query, key, value) = (self.split(query), self.split(key), self.split(value));
        let context = self.split(&mut acts.context);
        let log_sums = self.split_log_sums(&mut acts.log_sums[..rows * self.config.num_attention_heads]);
        (query, key, value, context, log_sums).into_par_iter().enumerate().for_each(
            |(task, (query, key, value, mut context, log_sums))| {
                SCRATCH.with_borrow_mut(|scratch| {
                    let len = log_sums.len();
                    let scores = ensure(&mut scratch.scores, len * len);
                    let mut view = MatMut::new(scores, len, len);
                    product(&mut view, Store::Fresh, query.view(), key.view().t(), self.scale(), Threads::One);
                    self.level.run(
                        #[inline(always)]
                        || {
                            for (i, (row, log_sum)) in scores.chunks_exact_mut(len).zip(log_sums).enumerate() {
                                *log_sum = softmax(row);
                                drop_elements(row, self.mask(task, i, len));
                            }
                        },
                    );
                    let probabilities = MatMut::new(scores, len, len);
                    product(&mut context, Store::Fresh, probabilities.view(), value.view(), 1.0, Threads::One);
                });
            },
        );
    }

    /// Turns the projections of `acts` into their gradients, given that of the context, `[T, H]`.
    pub(super) fn backward(&self, acts: &mut LayerActivations, context_gradient: &mut [f32]) {
        let rows = self.tokens.len();
        let [query, key, value] = &mut acts.projections;
        let (query, key, value) = (self.split(query), self.split(key), self.split(value));
        let context = self.split(&mut acts.context);
        let gradient = self.split(context_gradient);
        let log_sums = self.split_log_sums(&mut acts.log_sums[..rows * self.config.num_attention_heads]);
        (query, key, value, context, gradient, log_sums).into_par_iter().enumerate().for_each(
            |(task, (query, key, value, context, gradient, log_sums))| {
                SCRATCH.with_borrow_mut(|scratch| {
                    self.backward_head(scratch, task, [query, key, value], &context, &gradient, log_sums);
                });
            },
        );
    }

    /// With P the probabilities, D the dropped ones and G = dL/d context: dV = Dᵀ G, dD = G Vᵀ,
    /// dP = dD · mask, dS = P · (dP − `Σ_j dP P`), where that sum is also `G_i · context_i`;
    /// dQ = dS K / √d, dK = dSᵀ Q / √d.
    fn backward_head(
        &self,
        scratch: &mut Scratch,
        task: usize,
        [mut query, mut key, mut value]: [MatMut; 3],
        context: &MatMut,
        gradient: &MatMut,
        log_sums: &[f32],
    ) {
        let (len, size) = (log_sums.len(), self.config.head_size());
        let scores = ensure(&mut scratch.scores, len * len);
        let scores_gradient = ensure(&mut scratch.gradient, len * len);
        let head = ensure(&mut scratch.head, len * size);
        let mut view = MatMut::new(scores, len, len);
        product(&mut view, Store::Fresh, query.view(), key.view().t(), self.scale(), Threads::One);
        let mut view = MatMut::new(scores_gradient, len, len);
        product(&mut view, Store::Fresh, gradient.view(), value.view().t(), 1.0, Threads::One);
        self.level.run(
            #[inline(always)]
            || {
                let lines = scores.chunks_exact_mut(len).zip(scores_gradient.chunks_exact_mut(len)).zip(log_sums);
                for (i, ((row, row_gradient), log_sum)) in lines.enumerate() {
                    let total = math::dot(gradient.row(i), context.row(i));
                    let mask = self.mask(task, i, len);
                    drop_elements(row_gradient, mask);
                    for (p, g) in row.iter_mut().zip(row_gradient) {
                        *p = math::exp(*p - log_sum);
                        *g = *p * (*g - total);
                    }
                    drop_elements(row, mask);
                }
            },
        );
        let dropped = MatMut::new(scores, len, len);
        product(&mut value, Store::Fresh, dropped.view().t(), gradient.view(), 1.0, Threads::One);
        let scores_gradient = MatMut::new(scores_gradient, len, len);
        let mut query_gradient = MatMut::new(head, len, size);
        product(&mut query_gradient, Store::Fresh, scores_gradient.view(), key.view(), self.scale(), Threads::One);
        product(&mut key, Store::Fresh, scores_gradient.view().t(), query.view(), self.scale(), Threads::One);
        for (i, row) in head.chunks_exact(size).enumerate() {
            query.row_mut(i).copy_from_slice(row);
        }
    }
}

/// Softmax of a row in place; gives log Σ exp.
#[inline(always)]
fn softmax(row: &mut [f32]) -> f32 {
    let max = math::max(row);
    for x in row.iter_mut() {
        *x = math::exp(*x - max);
    }
    let sum = math::sum(row, |x| x);
    let inverse = 1.0 / sum;
    for x in row.iter_mut() {
        *x *= inverse;
    }
    max + sum.ln()
}

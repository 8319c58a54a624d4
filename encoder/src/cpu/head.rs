//! The pooled vocabulary head: `v_j` = max over a document's rows of `h_i · E_j`, plus the decoder's bias.
//!
//! Logits exist only block by block. The bias does not change which row wins, so it is added to the maximum.
//! The backward touches only entries with a gradient, each at the one row that won.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::level::Level;
use super::math;
use super::matrix::{Mat, MatMut, Store, Threads, product};

/// Vocabulary entries of a block of logits.
const ENTRIES: usize = 512;
/// Rows of a block of logits; a longer document is a block of its own.
const ROWS: usize = 512;

thread_local! {
    static LOGITS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The head's sizes and documents.
pub(super) struct Head<'a> {
    pub(super) level: Level,
    pub(super) hidden: usize,
    pub(super) vocabulary: usize,
    /// The rows of each document.
    pub(super) documents: &'a [Range<usize>],
}

/// Maxima of one block of vocabulary entries, `[B, entries]` each.
struct Block {
    pooled: Vec<f32>,
    argmax: Vec<u32>,
}

impl Head<'_> {
    /// `pooled` and `argmax`, `[B, V]` each, from the transformed rows `[T, H]`, the decoder `[V, H]` and its
    /// bias `[V]`.
    pub(super) fn forward(&self, rows: &[f32], decoder: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<u16>) {
        let groups = self.groups();
        let blocks: Vec<Block> = decoder
            .par_chunks(ENTRIES * self.hidden)
            .zip(bias.par_chunks(ENTRIES))
            .map(|(decoder, bias)| self.block(&groups, rows, decoder, bias))
            .collect();
        let mut pooled = Vec::with_capacity(self.documents.len() * self.vocabulary);
        let mut argmax = Vec::with_capacity(self.documents.len() * self.vocabulary);
        for document in 0..self.documents.len() {
            for block in &blocks {
                let entries = block.pooled.len() / self.documents.len();
                let part = document * entries..(document + 1) * entries;
                pooled.extend_from_slice(&block.pooled[part.clone()]);
                argmax.extend(block.argmax[part].iter().map(|&i| i as u16));
            }
        }
        (pooled, argmax)
    }

    /// Documents of together at most [`ROWS`] rows.
    fn groups(&self) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        for (i, document) in self.documents.iter().enumerate() {
            match out.last_mut() {
                Some(group) if document.end - self.documents[group.start].start <= ROWS => group.end = i + 1,
                _ => out.push(i..i + 1),
            }
        }
        out
    }

    fn block(&self, groups: &[Range<usize>], rows: &[f32], decoder: &[f32], bias: &[f32]) -> Block {
        let entries = bias.len();
        let mut block = Block {
            pooled: vec![0.0; self.documents.len() * entries],
            argmax: vec![0; self.documents.len() * entries],
        };
        let decoder = Mat::new(decoder, entries, self.hidden).t();
        LOGITS.with_borrow_mut(|buffer| {
            for group in groups {
                let documents = &self.documents[group.clone()];
                let first = documents[0].start;
                let len = documents[documents.len() - 1].end - first;
                let logits = super::workspace::ensure(buffer, len * entries);
                let rows = Mat::new(&rows[first * self.hidden..], len, self.hidden);
                product(&mut MatMut::new(logits, len, entries), Store::Fresh, rows, decoder, 1.0, Threads::One);
                self.level.run(
                    #[inline(always)]
                    || {
                        for (document, range) in group.clone().zip(documents) {
                            let part = document * entries..(document + 1) * entries;
                            maximum(
                                &logits[(range.start - first) * entries..(range.end - first) * entries],
                                bias,
                                &mut block.pooled[part.clone()],
                                &mut block.argmax[part],
                            );
                        }
                    },
                );
            }
        });
        block
    }

    /// dL/d rows (`[T, H]`, overwritten): each entry's gradient times its decoder row, at the row that won.
    /// Documents go to the threads; within one the entries come in their order.
    pub(super) fn backward_rows(&self, argmax: &[u16], grad_pooled: &[f32], decoder: &[f32], out: &mut [f32]) {
        let per_thread = self.documents.len().div_ceil(rayon::current_num_threads());
        let mut parts = Vec::new();
        let mut rest = &mut *out;
        for documents in self.documents.chunks(per_thread) {
            let len = documents[documents.len() - 1].end - documents[0].start;
            let (part, tail) = rest.split_at_mut(len * self.hidden);
            parts.push(part);
            rest = tail;
        }
        parts.into_par_iter().zip(self.documents.par_chunks(per_thread)).enumerate().for_each(
            |(number, (out, documents))| {
                self.level.run(
                    #[inline(always)]
                    || {
                        out.fill(0.0);
                        // Entry by entry over all documents of the thread: a decoder row is read once.
                        for (entry, decoder) in decoder.chunks_exact(self.hidden).enumerate() {
                            for (i, range) in documents.iter().enumerate() {
                                let at = (number * per_thread + i) * self.vocabulary + entry;
                                if grad_pooled[at] != 0.0 {
                                    let row = range.start - documents[0].start + usize::from(argmax[at]);
                                    let out = &mut out[row * self.hidden..(row + 1) * self.hidden];
                                    math::add_scaled(out, grad_pooled[at], decoder);
                                }
                            }
                        }
                    },
                );
            },
        );
    }

    /// Adds dL/d decoder (`[V, H]`): each entry's gradient times the row that won it, document by document.
    pub(super) fn backward_decoder(&self, argmax: &[u16], grad_pooled: &[f32], rows: &[f32], gradient: &mut [f32]) {
        gradient.par_chunks_mut(ENTRIES * self.hidden).enumerate().for_each(|(block, gradient)| {
            self.level.run(
                #[inline(always)]
                || {
                    for (i, gradient) in gradient.chunks_exact_mut(self.hidden).enumerate() {
                        for (document, range) in self.documents.iter().enumerate() {
                            let at = document * self.vocabulary + block * ENTRIES + i;
                            if grad_pooled[at] != 0.0 {
                                let row = range.start + usize::from(argmax[at]);
                                math::add_scaled(
                                    gradient,
                                    grad_pooled[at],
                                    &rows[row * self.hidden..(row + 1) * self.hidden],
                                );
                            }
                        }
                    }
                },
            );
        });
    }

    /// Adds dL/d bias (`[V]`).
    pub(super) fn backward_bias(&self, grad_pooled: &[f32], gradient: &mut [f32]) {
        self.level.run(
            #[inline(always)]
            || {
                for row in grad_pooled.chunks_exact(self.vocabulary) {
                    math::add(gradient, row);
                }
            },
        );
    }
}

/// Column maxima of `[rows, entries]` with the bias added, and the first row that has each.
#[inline(always)]
fn maximum(logits: &[f32], bias: &[f32], best: &mut [f32], at: &mut [u32]) {
    let entries = bias.len();
    best.copy_from_slice(&logits[..entries]);
    at.fill(0);
    for (i, row) in logits.chunks_exact(entries).enumerate().skip(1) {
        for ((x, best), at) in row.iter().zip(best.iter_mut()).zip(at.iter_mut()) {
            let better = *x > *best;
            *best = if better { *x } else { *best };
            *at = if better { i as u32 } else { *at };
        }
    }
    math::add(best, bias);
}

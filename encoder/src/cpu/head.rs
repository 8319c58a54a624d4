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
use super::screen::{self, Panels};

/// Vocabulary entries of a block of logits, at least, where there are so many.
const ENTRIES: usize = 512;
/// Rows of a block of logits; a longer document is a block of its own.
const ROWS: usize = 512;
/// Fewer rows or entries are not multiplied alone: for small products `gemm` has kernels that add up in another
/// order, and an entry must get the same bits in whatever block it stands.
const MIN_ROWS: usize = 16;
const MIN_ENTRIES: usize = 128;

/// Candidates of one product after a screen.
const CANDIDATES: usize = 256;
/// Above this share of candidates a screen saves nothing.
const DENSE: f64 = 0.4;

thread_local! {
    static LOGITS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static GATHERED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
        let count = (self.vocabulary / ENTRIES).max(1);
        let blocks: Vec<Block> = (0..count)
            .into_par_iter()
            .map(|i| {
                let entries = i * self.vocabulary / count..(i + 1) * self.vocabulary / count;
                let decoder = &decoder[entries.start * self.hidden..entries.end * self.hidden];
                self.block(&groups, rows, decoder, &bias[entries])
            })
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

    /// As [`Head::forward`], but entries that are not above zero hold any number that is not above zero, and
    /// argmax 0; those of `own`, token ids of each document, are exact too. All bits of exact entries are those
    /// of [`Head::forward`]. `None` where a screen cannot help: a number is not finite, or most entries are above
    /// zero.
    pub(super) fn forward_positive(
        &self,
        rows: &[f32],
        decoder: &[f32],
        bias: &[f32],
        panels: &Panels,
        own: &[&[u32]],
    ) -> Option<(Vec<f32>, Vec<u16>)> {
        if self.documents.last()?.end < MIN_ROWS || self.vocabulary < ENTRIES {
            return None;
        }
        let mut pooled = screen::upper_bounds(self.level, panels, rows, self.hidden, self.documents, bias)?;
        let candidates: Vec<Vec<u32>> = pooled
            .par_chunks(self.vocabulary)
            .zip(own)
            .map(|(bounds, own)| {
                let above = bounds.iter().enumerate().filter(|(_, bound)| **bound > 0.0).map(|(entry, _)| entry as u32);
                let mut out: Vec<u32> = above.chain(own.iter().copied()).collect();
                out.sort_unstable();
                out.dedup();
                out
            })
            .collect();
        if candidates.iter().map(Vec::len).sum::<usize>() as f64 > DENSE * pooled.len() as f64 {
            return None;
        }
        let mut argmax = vec![0u16; pooled.len()];
        let tasks: Vec<(usize, &[u32])> = candidates
            .iter()
            .enumerate()
            .flat_map(|(document, entries)| entries.chunks(CANDIDATES).map(move |entries| (document, entries)))
            .collect();
        let blocks: Vec<Block> = tasks
            .par_iter()
            .map(|&(document, entries)| self.gathered(document, entries, rows, decoder, bias))
            .collect();
        for ((document, entries), block) in tasks.into_iter().zip(blocks) {
            for ((&entry, value), at) in entries.iter().zip(block.pooled).zip(block.argmax) {
                let place = document * self.vocabulary + entry as usize;
                (pooled[place], argmax[place]) = (value, at as u16);
            }
        }
        Some((pooled, argmax))
    }

    /// Maxima of some entries of one document.
    fn gathered(&self, document: usize, entries: &[u32], rows: &[f32], decoder: &[f32], bias: &[f32]) -> Block {
        let own = &self.documents[document];
        // Neighbours' rows and empty entries fill up what is too small.
        let total = self.documents.last().map_or(0, |last| last.end);
        let first = own.start.min(total - MIN_ROWS);
        let range = first..own.end.max(first + MIN_ROWS);
        let width = entries.len().max(MIN_ENTRIES);
        let mut bias: Vec<f32> = entries.iter().map(|&entry| bias[entry as usize]).collect();
        bias.resize(width, 0.0);
        let mut block = Block { pooled: vec![0.0; width], argmax: vec![0; width] };
        GATHERED.with_borrow_mut(|gathered| {
            let gathered = super::workspace::ensure(gathered, width * self.hidden);
            let (taken, empty) = gathered.split_at_mut(entries.len() * self.hidden);
            for (row, &entry) in taken.chunks_exact_mut(self.hidden).zip(entries) {
                row.copy_from_slice(&decoder[entry as usize * self.hidden..(entry as usize + 1) * self.hidden]);
            }
            empty.fill(0.0);
            LOGITS.with_borrow_mut(|logits| {
                let logits = super::workspace::ensure(logits, range.len() * width);
                let rows = Mat::new(&rows[range.start * self.hidden..], range.len(), self.hidden);
                let decoder = Mat::new(gathered, width, self.hidden).t();
                let mut view = MatMut::new(logits, range.len(), width);
                product(&mut view, Store::Fresh, rows, decoder, 1.0, Threads::One);
                let logits = &logits[(own.start - first) * width..(own.end - first) * width];
                self.level.run(
                    #[inline(always)]
                    || maximum(logits, &bias, &mut block.pooled, &mut block.argmax),
                );
            });
        });
        block
    }

    /// Documents of together at most [`ROWS`] rows, and no fewer than [`MIN_ROWS`] where there are so many.
    fn groups(&self) -> Vec<Range<usize>> {
        let mut out: Vec<Range<usize>> = Vec::new();
        let rows = |group: &Range<usize>, end: usize| end - self.documents[group.start].start;
        for (i, document) in self.documents.iter().enumerate() {
            match out.last_mut() {
                Some(group) if rows(group, document.end) <= ROWS || rows(group, document.start) < MIN_ROWS => {
                    group.end = i + 1;
                }
                _ => out.push(i..i + 1),
            }
        }
        if let [.., before, last] = &mut *out
            && self.documents[last.end - 1].end - self.documents[last.start].start < MIN_ROWS
        {
            before.end = last.end;
            out.pop();
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

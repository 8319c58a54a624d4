//! Documents of several windows in the network: their windows are encoded side by side, and the maximum over windows
//! is taken before the activation. The slope of an entry goes to the window that gave its maximum.

use nsparse_core::TokenId;
use nsparse_encoder::TokenBatch;
use rayon::prelude::*;

use crate::data::Documents;

/// Bits of a dropout key that the document's number has; the rest is the window's.
const DOCUMENT_BITS: u32 = 40;

/// Windows of documents in one batch.
pub(crate) struct WindowBatch {
    /// All windows, document after document; dropout is keyed by document and window.
    pub(crate) tokens: TokenBatch,
    /// Each document's first window; one more entry than documents.
    pub(crate) first: Vec<usize>,
}

impl WindowBatch {
    /// All windows of documents of the store.
    pub(crate) fn new(documents: &Documents, numbers: &[usize]) -> Self {
        let mut windows: Vec<&[TokenId]> = Vec::with_capacity(numbers.len());
        let (mut keys, mut first) = (Vec::with_capacity(numbers.len()), vec![0]);
        for &number in numbers {
            for (segment, window) in documents.segments(number).enumerate() {
                windows.push(window);
                // A document that fits has the key that it has without segments.
                keys.push(number as u64 | ((segment as u64) << DOCUMENT_BITS));
            }
            first.push(windows.len());
        }
        let mut tokens = TokenBatch::new(&windows);
        tokens.document_keys = keys;
        Self { tokens, first }
    }

    /// Whether each document is one window.
    pub(crate) fn is_plain(&self) -> bool {
        self.first.len() == self.tokens.offsets.len()
    }

    /// The maximum over each document's windows of pooled logits `[W, V]`.
    ///
    /// The first of equal windows wins, and a logit that is not a number wins over all others. Where only entries above
    /// zero were asked for (not `is_exact`), an entry that is not may be any number in windows that do not hold the
    /// token; so where no window is above zero, the document's own tokens take the maximum over those that hold them.
    pub(crate) fn merge(&self, pooled: &[f32], vocab: usize, is_exact: bool) -> Merged {
        let documents = self.first.len() - 1;
        let mut out = Merged { pooled: vec![0.0; documents * vocab], windows: vec![0; documents * vocab] };
        out.pooled.par_chunks_exact_mut(vocab).zip(out.windows.par_chunks_exact_mut(vocab)).enumerate().for_each(
            |(document, (best, winner))| {
                let (start, end) = (self.first[document], self.first[document + 1]);
                best.copy_from_slice(&pooled[start * vocab..(start + 1) * vocab]);
                winner.fill(start as u32);
                for window in start + 1..end {
                    let row = &pooled[window * vocab..(window + 1) * vocab];
                    for ((b, w), &v) in best.iter_mut().zip(winner.iter_mut()).zip(row) {
                        if v > *b || (v.is_nan() && !b.is_nan()) {
                            (*b, *w) = (v, window as u32);
                        }
                    }
                }
                if end - start > 1 && !is_exact {
                    self.own_below_zero(pooled, vocab, document, best, winner);
                }
            },
        );
        out
    }

    /// Puts own tokens at or below zero right.
    fn own_below_zero(&self, pooled: &[f32], vocab: usize, document: usize, best: &mut [f32], winner: &mut [u32]) {
        let windows = self.first[document]..self.first[document + 1];
        for window in windows.clone() {
            for &id in self.tokens.document(window) {
                if best[id as usize] <= 0.0 {
                    best[id as usize] = f32::NEG_INFINITY;
                }
            }
        }
        for window in windows {
            for &id in self.tokens.document(window) {
                let (j, v) = (id as usize, pooled[window * vocab + id as usize]);
                if best[j] <= 0.0 && v > best[j] {
                    (best[j], winner[j]) = (v, window as u32);
                }
            }
        }
    }

    /// Slopes of documents `[N, V]` as those of windows `[W, V]`.
    pub(crate) fn scatter(&self, slopes: &[f32], winners: &[u32], vocab: usize) -> Vec<f32> {
        let windows = self.tokens.documents();
        let mut out = vec![0.0; windows * vocab];
        let mut rest = out.as_mut_slice();
        let mut rows = Vec::with_capacity(self.first.len() - 1);
        for pair in self.first.windows(2) {
            let (head, tail) = rest.split_at_mut((pair[1] - pair[0]) * vocab);
            rows.push((pair[0], head));
            rest = tail;
        }
        rows.into_par_iter().zip(slopes.par_chunks_exact(vocab)).zip(winners.par_chunks_exact(vocab)).for_each(
            |(((first, rows), slopes), winners)| {
                for (j, (&slope, &winner)) in slopes.iter().zip(winners).enumerate() {
                    if slope != 0.0 {
                        rows[(winner as usize - first) * vocab + j] = slope;
                    }
                }
            },
        );
        out
    }
}

/// Pooled logits of documents, and where they come from.
pub(crate) struct Merged {
    /// `[N, V]`.
    pub(crate) pooled: Vec<f32>,
    /// `[N, V]`: the window of the batch that gave each.
    pub(crate) windows: Vec<u32>,
}

/// Documents in parts that are encoded together: up to `documents` of them (0: any number), and windows within
/// `budget` (0: any number). A document with more windows than that is a part of its own.
pub(crate) fn parts<'a>(store: &Documents, numbers: &'a [usize], documents: usize, budget: usize) -> Vec<&'a [usize]> {
    let mut out = Vec::new();
    let (mut start, mut windows) = (0, 0);
    for (at, &number) in numbers.iter().enumerate() {
        let more = store.segments(number).len();
        let is_full = (documents > 0 && at - start >= documents) || (budget > 0 && windows + more > budget);
        if at > start && is_full {
            out.push(&numbers[start..at]);
            (start, windows) = (at, 0);
        }
        windows += more;
    }
    if start < numbers.len() {
        out.push(&numbers[start..]);
    }
    out
}

#[cfg(test)]
#[path = "segments_tests.rs"]
mod tests;

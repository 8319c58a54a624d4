//! The network as the trainer uses it: documents to weights, and slopes in weights back to parameters.

use nsparse_core::model_dir::Activation;
use nsparse_core::{Cancel, SparseVector, TokenId};
use nsparse_encoder::{Backend, Device, Dropout, Forward, Parameters};
use rayon::prelude::*;

use crate::data::Documents;
use crate::parallel::Team;
use crate::segments::{Merged, WindowBatch};
use crate::{Error, Result};

/// Most tokens of one inference batch.
const INFERENCE_TOKENS: usize = 4096;

/// A compute backend with what turns its logits into weights.
pub struct Network {
    backend: Box<dyn Backend>,
    /// Vocabulary entries (V), as the model's embedding table has them.
    pub vocab: usize,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
    /// One flag an entry: it never carries weight.
    pub zeroed: Vec<bool>,
    /// The processes that each batch is shared among.
    pub team: Team,
}

/// Document vectors of a batch with what their backward needs.
pub struct Encoded {
    /// Of the batch's windows.
    forward: Forward,
    batch: WindowBatch,
    /// Where a document has several windows: their maximum.
    merged: Option<Merged>,
    /// `[N, V]`: activated weights, zeroed entries at 0.
    pub weights: Vec<f32>,
}

impl Network {
    /// A network of a model's shape on a device. `zeroed`: ids without weight; entries that the tokenizer does
    /// not name (models pad their table) join them.
    ///
    /// # Errors
    /// If the device is not there.
    pub fn new(
        config: &nsparse_encoder::BertConfig,
        device: Device,
        activation: Activation,
        zeroed_ids: &[TokenId],
        named: usize,
    ) -> Result<Self> {
        let backend = nsparse_encoder::create(config, device)?;
        Ok(Self::with_backend(backend, config.vocab_size, activation, zeroed_ids, named))
    }

    /// As [`Network::new`], of a backend at hand for a vocabulary of `vocab` entries.
    pub fn with_backend(
        backend: Box<dyn Backend>,
        vocab: usize,
        activation: Activation,
        zeroed_ids: &[TokenId],
        named: usize,
    ) -> Self {
        let mut zeroed = vec![false; vocab];
        for &id in zeroed_ids {
            if let Some(flag) = zeroed.get_mut(id as usize) {
                *flag = true;
            }
        }
        if let Some(unnamed) = zeroed.get_mut(named..) {
            unnamed.fill(true);
        }
        Self { backend, vocab, activation, zeroed, team: Team::alone() }
    }

    /// The backend itself.
    pub(crate) fn backend(&self) -> &dyn Backend {
        self.backend.as_ref()
    }

    /// Encodes documents of the store, all windows of each; dropout masks are keyed by document and window. With
    /// `keep` a backward can follow.
    ///
    /// # Errors
    /// If the device fails.
    pub fn encode(
        &self,
        parameters: &Parameters,
        documents: &Documents,
        numbers: &[usize],
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Encoded> {
        let batch = WindowBatch::new(documents, numbers);
        let forward = self.backend.forward_positive(parameters, &batch.tokens, dropout, keep)?;
        let merged = (!batch.is_plain()).then(|| batch.merge(&forward.pooled, self.vocab, false));
        let weights = self.activate(merged.as_ref().map_or(&forward.pooled, |m| &m.pooled));
        Ok(Encoded { forward, batch, merged, weights })
    }

    /// Pooled logits `[N, V]` of documents of the store before any activation, all of them exact, without dropout.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&self, parameters: &Parameters, documents: &Documents, numbers: &[usize]) -> Result<Vec<f32>> {
        let batch = WindowBatch::new(documents, numbers);
        let pooled = self.backend.forward(parameters, &batch.tokens, None, false)?.pooled;
        Ok(if batch.is_plain() { pooled } else { batch.merge(&pooled, self.vocab, true).pooled })
    }

    /// Weights of pooled logits `[N, V]`.
    pub fn activate(&self, pooled: &[f32]) -> Vec<f32> {
        let mut weights = vec![0.0; pooled.len()];
        let (activation, zeroed) = (self.activation, &self.zeroed);
        weights.par_chunks_exact_mut(self.vocab).zip(pooled.par_chunks_exact(self.vocab)).for_each(|(out, row)| {
            for ((w, &v), &zeroed) in out.iter_mut().zip(row).zip(zeroed) {
                // A logit that is not a number must show in the loss, not vanish.
                if !zeroed && (v > 0.0 || v.is_nan()) {
                    *w = if v.is_nan() { v } else { activation.apply(v) };
                }
            }
        });
        weights
    }

    /// Adds the parameters' gradient, given dL/d weight `[N, V]` (turned into dL/d pooled logit in place) and
    /// slopes that act on the pooled logits directly.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        parameters: &Parameters,
        encoded: Encoded,
        mut slopes: Vec<f32>,
        below: Option<&[f32]>,
        gradient: &mut [f32],
    ) -> Result<()> {
        let (activation, zeroed) = (self.activation, &self.zeroed);
        let Encoded { forward, batch, merged, .. } = encoded;
        let pooled = merged.as_ref().map_or(&forward.pooled, |m| &m.pooled);
        slopes.par_chunks_exact_mut(self.vocab).zip(pooled.par_chunks_exact(self.vocab)).for_each(|(row, pooled)| {
            for ((slope, &v), &zeroed) in row.iter_mut().zip(pooled).zip(zeroed) {
                *slope = if zeroed || *slope == 0.0 { 0.0 } else { *slope * activation.derivative(v) };
            }
        });
        if let Some(below) = below {
            for (slope, b) in slopes.iter_mut().zip(below) {
                *slope += b;
            }
        }
        if let Some(merged) = merged {
            slopes = batch.scatter(&slopes, &merged.windows, self.vocab);
        }
        self.backend.backward(parameters, &batch.tokens, forward, &slopes, gradient)?;
        Ok(())
    }

    /// Sparse vectors of documents of the store, in the order given, without dropout.
    ///
    /// # Errors
    /// If the device fails, a weight is not finite, or the user asked to stop.
    pub fn vectors(
        &self,
        parameters: &Parameters,
        documents: &Documents,
        numbers: &[usize],
        cancel: &Cancel,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<SparseVector>> {
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(documents.tokens(numbers[i]).len()));
        let mut out = vec![SparseVector::default(); numbers.len()];
        let mut start = 0;
        while start < order.len() {
            cancel.check()?;
            // The first is the longest of its batch.
            let longest = documents.tokens(numbers[order[start]]).len();
            let count = (INFERENCE_TOKENS / longest).max(1).min(order.len() - start);
            let places = &order[start..start + count];
            let batch: Vec<usize> = places.iter().map(|&i| numbers[i]).collect();
            let encoded = self.encode(parameters, documents, &batch, None, false)?;
            for (row, &place) in encoded.weights.chunks_exact(self.vocab).zip(places) {
                if row.iter().any(|w| !w.is_finite()) {
                    return Err(Error::Encoder(nsparse_encoder::Error::Model(format!(
                        "the document `{}` gets weights that are not finite numbers",
                        documents.id(numbers[place])
                    ))));
                }
                out[place] = SparseVector::from_dense(row);
            }
            start += count;
            done(count);
        }
        Ok(out)
    }
}

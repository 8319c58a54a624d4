//! The plain backend: candle's tensor operations and its autograd, on the CPU or an NVIDIA GPU.
//!
//! On the CPU it is slow and the yardstick of the crate's own kernels; on the GPU it is what computes. The
//! head stands outside the autograd: per document `[V, H] · [H, L]`, of which maximum and argmax are kept.

mod groups;
mod network;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};

use self::groups::{Group, groups};
use self::network::{Network, Weights};
use crate::{Backend, BertConfig, Dropout, Error, Forward, Parameters, Result, TokenBatch};

/// The word embeddings, which are the decoder's weight too.
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
/// The decoder's bias.
const DECODER_BIAS: &str = "cls.predictions.bias";
/// On a GPU documents are padded to the length of others up to this much longer: fewer, larger products.
const GPU_SLACK: f64 = 0.25;

/// A [`Backend`] of plain tensor operations.
pub struct CandleBackend {
    config: BertConfig,
    device: Device,
    slack: f64,
    weights: Mutex<Option<Arc<Weights>>>,
}

/// What a forward keeps for its backward.
struct State {
    weights: Arc<Weights>,
    /// Each block with its transformed hidden states `[documents · width, H]`, autograd attached.
    blocks: Vec<(Group, Tensor)>,
}

impl CandleBackend {
    /// A backend for one shape on one device.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        let slack = if device.is_cpu() { 0.0 } else { GPU_SLACK };
        Self { config: config.clone(), device: device.clone(), slack, weights: Mutex::new(None) }
    }

    /// A backend on this machine's cores.
    pub fn cpu(config: &BertConfig) -> Self {
        Self::new(config, &Device::Cpu)
    }

    /// Pads documents of up to `slack` (0.25: a quarter) different lengths into one block. On the CPU nothing
    /// is padded unless asked for.
    #[must_use]
    pub fn with_padding(mut self, slack: f64) -> Self {
        self.slack = slack;
        self
    }

    /// Hidden states `[L, H]` of one document after the embeddings, after each layer and after the head's
    /// transform: for tests and inspection.
    ///
    /// # Errors
    /// As [`Backend::forward`].
    pub fn hidden_states(&self, parameters: &Parameters, ids: &[u32]) -> Result<Vec<Vec<f32>>> {
        let batch = TokenBatch::new(&[ids]);
        check_batch(&self.config, &batch)?;
        let weights = self.weights(parameters)?;
        let group = &groups(&batch, 0.0)[0];
        let states = self.network(&weights, &batch, group, None, false).states()?;
        Ok(states.iter().map(|t| t.flatten_all()?.to_vec1()).collect::<candle_core::Result<_>>()?)
    }

    fn network<'a>(
        &'a self,
        weights: &'a Weights,
        batch: &'a TokenBatch,
        group: &'a Group,
        dropout: Option<Dropout>,
        tracked: bool,
    ) -> Network<'a> {
        Network { config: &self.config, weights, device: &self.device, batch, group, dropout, tracked }
    }

    /// The parameters on the device; copied anew only when they changed.
    fn weights(&self, parameters: &Parameters) -> Result<Arc<Weights>> {
        let mut cached = self.weights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(weights) = cached.as_ref().filter(|w| w.version == parameters.version()) {
            return Ok(Arc::clone(weights));
        }
        // The old copy goes first, so that a device never holds two unless a forward still needs it.
        *cached = None;
        let weights = Arc::new(Weights::new(parameters, &self.device)?);
        *cached = Some(Arc::clone(&weights));
        Ok(weights)
    }
}

impl Backend for CandleBackend {
    fn forward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Forward> {
        check_batch(&self.config, batch)?;
        let (vocabulary, hidden) = (self.config.vocab_size, self.config.hidden_size);
        let weights = self.weights(parameters)?;
        let words = weights.get(WORDS, false)?;
        let bias = weights.get(DECODER_BIAS, false)?.reshape((vocabulary, 1))?;
        let mut pooled = vec![0.0f32; batch.documents() * vocabulary];
        let mut argmax = vec![0u16; batch.documents() * vocabulary];
        let mut blocks = Vec::new();
        for group in groups(batch, self.slack) {
            let mut states = self.network(&weights, batch, &group, dropout, keep).states()?;
            let transformed = states.pop().expect("the transform is the last state");
            drop(states);
            let plain = transformed.detach().reshape((group.documents.len(), group.width, hidden))?;
            for (slot, (&document, &length)) in group.documents.iter().zip(&group.lengths).enumerate() {
                let tokens = plain.get(slot)?.narrow(0, 0, length)?;
                let logits = words.matmul(&tokens.t()?)?.broadcast_add(&bias)?;
                let row = document * vocabulary..(document + 1) * vocabulary;
                pooled[row.clone()].copy_from_slice(&logits.max(1)?.to_vec1::<f32>()?);
                let places = logits.argmax(1)?.to_vec1::<u32>()?;
                for (place, at) in argmax[row].iter_mut().zip(places) {
                    *place = at as u16;
                }
            }
            if keep {
                blocks.push((group, transformed));
            }
        }
        let state = keep.then(|| Box::new(State { weights, blocks }) as Box<dyn std::any::Any + Send>);
        Ok(Forward { pooled, argmax, state })
    }

    fn backward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: Forward,
        grad_pooled: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let (vocabulary, hidden) = (self.config.vocab_size, self.config.hidden_size);
        if grad_pooled.len() != batch.documents() * vocabulary || gradient.len() != parameters.len() {
            return Err(Error::Model(format!(
                "the backward got {} pooled gradients for {} documents of {vocabulary} entries, and a buffer of {} \
                 for {} parameters",
                grad_pooled.len(),
                batch.documents(),
                gradient.len(),
                parameters.len()
            )));
        }
        let state = forward
            .state
            .and_then(|s| s.downcast::<State>().ok())
            .ok_or_else(|| Error::Model("the forward was asked to keep nothing, so it has no backward".to_owned()))?;
        let words = state.weights.get(WORDS, false)?;
        let mut words_gradient = words.zeros_like()?;
        let mut gradients = GradStore::default();
        for (group, transformed) in state.blocks {
            let plain = transformed.detach().reshape((group.documents.len(), group.width, hidden))?;
            let mut upstream = Vec::with_capacity(group.documents.len());
            for (slot, (&document, &length)) in group.documents.iter().zip(&group.lengths).enumerate() {
                // dL/d logits [V, L]: each entry's gradient at the position that gave its maximum, else 0.
                let row = document * vocabulary..(document + 1) * vocabulary;
                let places: Vec<u32> = forward.argmax[row.clone()].iter().map(|&at| u32::from(at)).collect();
                let places = Tensor::from_vec(places, (vocabulary, 1), &self.device)?;
                let values = Tensor::from_slice(&grad_pooled[row], (vocabulary, 1), &self.device)?;
                let logits = Tensor::zeros((vocabulary, length), values.dtype(), &self.device)?
                    .scatter_add(&places, &values, 1)?;
                let tokens = plain.get(slot)?.narrow(0, 0, length)?;
                words_gradient = (words_gradient + logits.matmul(&tokens)?)?;
                let tokens_gradient = logits.t()?.matmul(&words)?;
                upstream.push(tokens_gradient.pad_with_zeros(0, 0, group.width - length)?);
            }
            // The gradient of Σ x·g in x is g: this carries g on into the layers below.
            let upstream = Tensor::cat(&upstream, 0)?;
            gradients.extend((transformed * upstream)?.sum_all()?.backward()?)?;
        }
        for (name, var) in &state.weights.vars {
            let own = gradients.get(var).map(flat).transpose()?;
            let decoder = if name == WORDS { Some(flat(&words_gradient)?) } else { None };
            for part in own.iter().chain(&decoder) {
                add(parameters, name, part, gradient)?;
            }
        }
        for row in grad_pooled.chunks_exact(vocabulary) {
            add(parameters, DECODER_BIAS, row, gradient)?;
        }
        Ok(())
    }
}

/// A tensor's values on the host.
fn flat(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Adds one parameter's gradient to its place in the buffer.
fn add(parameters: &Parameters, name: &str, values: &[f32], gradient: &mut [f32]) -> Result<()> {
    let spec = parameters.spec(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
    for (sum, value) in gradient[spec.offset..spec.offset + spec.len()].iter_mut().zip(values) {
        *sum += value;
    }
    Ok(())
}

/// Every backend's first step: the batch fits the network.
///
/// # Errors
/// If a document is empty, longer than the positions, or has an id outside of the vocabulary.
pub(crate) fn check_batch(config: &BertConfig, batch: &TokenBatch) -> Result<()> {
    for document in 0..batch.documents() {
        let ids = batch.document(document);
        if ids.is_empty() || ids.len() > config.max_position_embeddings {
            return Err(Error::Model(format!(
                "document {document} of the batch has {} tokens; the network takes 1 to {}",
                ids.len(),
                config.max_position_embeddings
            )));
        }
        if let Some(id) = ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::Model(format!(
                "document {document} of the batch has token id {id}; the vocabulary has {} entries: tokenizer and \
                 model do not belong together",
                config.vocab_size
            )));
        }
    }
    Ok(())
}

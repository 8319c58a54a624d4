//! What trainer and `DocumentEncoder` ask of a compute backend: pooled vocabulary logits, and their gradient.
//!
//! The backend ends at the pooled logits `v_j = max over the text's positions of logit_ij`; activation, losses
//! and regularisers act on the `[B, V]` matrix outside. That cut keeps `B × L × V` from ever existing: the
//! head is computed document by document, keeps maximum and argmax, and its backward touches only entries
//! with a gradient.

use crate::cpu::CpuBackend;
use crate::reference::{CandleBackend, Precision};
use crate::{BertConfig, Error, Parameters, Result};

/// Where the network is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// This machine's cores, with the crate's own kernels.
    #[default]
    Cpu,
    /// This machine's cores, with plain tensor operations: slow, and the yardstick of the others.
    CpuReference,
    /// An NVIDIA GPU by its number; needs a binary built with the feature `cuda`.
    Cuda(usize),
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::CpuReference => f.write_str("cpu-reference"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl std::str::FromStr for Device {
    type Err = Error;

    /// `cpu`, `cpu-reference`, `cuda` (GPU 0) or `cuda:1`.
    fn from_str(s: &str) -> Result<Self> {
        let unknown = || {
            nsparse_core::Error::invalid_with_hint(
                format!("`{s}` is no device"),
                "use cpu, cpu-reference, cuda, or cuda:N for the N-th GPU counted from 0",
            )
            .into()
        };
        match s {
            "cpu" => Ok(Self::Cpu),
            "cpu-reference" => Ok(Self::CpuReference),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(unknown),
        }
    }
}

impl Device {
    /// The precision of matrix products unless another is asked for: bf16 on a GPU, else f32.
    pub fn default_precision(self) -> Precision {
        match self {
            Self::Cpu | Self::CpuReference => Precision::F32,
            Self::Cuda(_) => Precision::Bf16,
        }
    }
}

/// The backend of a device for one shape of network, in the device's own precision.
///
/// # Errors
/// If the shape cannot be computed, or the device is not there or not built in.
pub fn create(config: &BertConfig, device: Device) -> Result<Box<dyn Backend>> {
    create_with(config, device, device.default_precision())
}

/// The backend of a device for one shape of network, its matrix products in one precision.
///
/// # Errors
/// As [`create`], or if the device does not compute in that precision.
pub fn create_with(config: &BertConfig, device: Device, precision: Precision) -> Result<Box<dyn Backend>> {
    config.validate()?;
    Ok(match (device, precision) {
        (Device::Cpu, Precision::F32) => Box::new(CpuBackend::new(config)),
        (Device::Cpu, Precision::Bf16) => {
            return Err(nsparse_core::Error::invalid_with_hint(
                "The device cpu computes in f32, not in bf16",
                "bf16 is for cuda (cpu-reference imitates it, slowly); leave the precision out to get the device's own",
            )
            .into());
        }
        (Device::CpuReference, _) => Box::new(CandleBackend::cpu(config).with_precision(precision)),
        (Device::Cuda(number), _) => Box::new(CandleBackend::new(config, &cuda(number)?).with_precision(precision)),
    })
}

#[cfg(feature = "cuda")]
use crate::reference::open_cuda as cuda;

#[cfg(not(feature = "cuda"))]
fn cuda(_number: usize) -> Result<candle_core::Device> {
    Err(nsparse_core::Error::invalid_with_hint(
        "This nsparse was built without CUDA",
        "build it with `make cuda` (docs/cuda.md), or use the device cpu",
    )
    .into())
}

/// Token ids of a batch of documents, packed without padding.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// All ids, document after document, special tokens included.
    pub ids: Vec<u32>,
    /// Where each document starts in `ids`; one more entry than documents, the last is `ids.len()`.
    pub offsets: Vec<usize>,
    /// A stable number of each document in its run, for dropout: the same document and step give the same
    /// mask in whatever batch it stands.
    pub document_keys: Vec<u64>,
    /// The type of each token in `ids`: 0 for the first text of a pair, 1 for the second. Empty where every token is
    /// of type 0, as in documents.
    pub token_types: Vec<u8>,
}

impl TokenBatch {
    /// Packs documents; their keys are their positions. An empty document is not allowed.
    pub fn new<D: AsRef<[u32]>>(documents: &[D]) -> Self {
        let mut out = Self { offsets: vec![0], ..Self::default() };
        for (key, document) in documents.iter().enumerate() {
            debug_assert!(!document.as_ref().is_empty(), "a document has at least [CLS] and [SEP]");
            out.ids.extend_from_slice(document.as_ref());
            out.offsets.push(out.ids.len());
            out.document_keys.push(key as u64);
        }
        out
    }

    /// Packs pairs of texts as [`nsparse_core::TextTokenizer::pair_window`] gives them: ids and token types.
    pub fn of_pairs(pairs: &[(&[u32], &[u8])]) -> Self {
        let ids: Vec<&[u32]> = pairs.iter().map(|pair| pair.0).collect();
        let token_types = pairs.iter().flat_map(|pair| pair.1.iter().copied()).collect();
        Self { token_types, ..Self::new(&ids) }
    }

    /// The type of a token by its place in `ids`.
    pub fn token_type(&self, place: usize) -> usize {
        self.token_types.get(place).map_or(0, |&t| usize::from(t))
    }

    /// Documents in the batch (B).
    pub fn documents(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Tokens in the batch, special ones included.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// The ids of one document.
    pub fn document(&self, index: usize) -> &[u32] {
        &self.ids[self.offsets[index]..self.offsets[index + 1]]
    }
}

/// Dropout of one training step: rates and what the counter-based generator is keyed by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Rate after embeddings, attention output and feed-forward output; in `[0, 1)`.
    pub hidden: f32,
    /// Rate on attention probabilities; in `[0, 1)`.
    pub attention: f32,
    /// The run's seed.
    pub seed: u64,
    /// The step (one number for all micro-batches of a step).
    pub step: u64,
}

/// Pooled vocabulary logits of a batch, with what the backward needs.
pub struct Forward {
    /// `[B, V]` row-major: maximum over the document's positions of the decoder's logit, bias included,
    /// before any activation; nothing is zeroed.
    pub pooled: Vec<f32>,
    /// `[B, V]`: the position, counted within the document, that gave the maximum (the first of equals).
    pub argmax: Vec<u16>,
    /// Activations of the backend; `None` when it was asked for inference only.
    pub state: Option<Box<dyn std::any::Any + Send>>,
}

/// Places of a packed batch with the token that is looked for at each: what masked-language training asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenPositions {
    /// Indices into [`TokenBatch::ids`], strictly ascending (P of them).
    pub rows: Vec<usize>,
    /// The vocabulary entry looked for at each, `[P]`.
    pub labels: Vec<u32>,
}

impl TokenPositions {
    /// Checks them against a batch and a vocabulary.
    ///
    /// # Errors
    /// If rows and labels differ in number, rows do not ascend or lie outside of the batch, or a label is no entry.
    pub(crate) fn check(&self, batch: &TokenBatch, vocabulary: usize) -> Result<()> {
        if self.rows.len() != self.labels.len() {
            return Err(Error::Model(format!("{} positions have {} labels", self.rows.len(), self.labels.len())));
        }
        let is_ascending = self.rows.windows(2).all(|pair| pair[0] < pair[1]);
        if !is_ascending || self.rows.last().is_some_and(|&row| row >= batch.tokens()) {
            return Err(Error::Model(format!(
                "positions must ascend and lie within the batch's {} tokens",
                batch.tokens()
            )));
        }
        if let Some(label) = self.labels.iter().find(|&&label| label as usize >= vocabulary) {
            return Err(Error::Model(format!("the label {label} is no entry of a vocabulary of {vocabulary}")));
        }
        Ok(())
    }
}

/// What the head says at some positions, with what the backward needs.
pub struct PositionForward {
    /// `[P]`: ln softmax(logits)\[label\] of each position, over the whole vocabulary, bias included.
    pub log_probabilities: Vec<f32>,
    /// `[P]`: the entry with the largest logit (the first of equals).
    pub best: Vec<u32>,
    /// Activations of the backend; `None` when it was asked for inference only.
    pub state: Option<Box<dyn std::any::Any + Send>>,
}

/// A compute backend: the whole network from ids to pooled logits.
pub trait Backend: Send {
    /// The network's forward pass. With `keep` the activations that [`Backend::backward`] needs are kept.
    ///
    /// # Errors
    /// If a shape does not fit or the device fails.
    fn forward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Forward>;

    /// As [`Backend::forward`] where only entries above zero matter: those and the documents' own tokens are
    /// exact, with the same bits; every other entry may be any number that is not above zero, with any argmax. A
    /// backend that can tell cheaply which entries those are is faster here.
    ///
    /// # Errors
    /// As [`Backend::forward`].
    fn forward_positive(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Forward> {
        self.forward(parameters, batch, dropout, keep)
    }

    /// The last layer's output `[T, H]`, row by row as the batch's ids, before the head and without dropout.
    ///
    /// # Errors
    /// As [`Backend::forward`].
    fn last_hidden_states(&self, parameters: &Parameters, batch: &TokenBatch) -> Result<Vec<f32>>;

    /// Whether a forward with `keep` keeps only the input of each layer, and the backward makes the rest again
    /// (activation checkpointing, arXiv 1604.06174): same bits, a third more time, a fraction of the memory.
    ///
    /// # Errors
    /// If this backend cannot and was asked to.
    fn checkpoint_activations(&mut self, is_checkpointing: bool) -> Result<()> {
        if is_checkpointing {
            return Err(Error::Model("this backend cannot compute activations again".to_owned()));
        }
        Ok(())
    }

    /// Adds the gradient of the parameters to `gradient` (laid out like [`Parameters::data`]), given
    /// `dL/d pooled` as `[B, V]` row-major; entries that are 0 cost nothing in the head.
    ///
    /// # Errors
    /// If `forward` kept no state, or the device fails.
    fn backward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: Forward,
        grad_pooled: &[f32],
        gradient: &mut [f32],
    ) -> Result<()>;

    /// The network's forward pass with the head at some positions alone: how likely it holds a given token to be
    /// there. `[P, V]` never exists as a whole. With `keep` the activations that
    /// [`Backend::backward_positions`] needs are kept.
    ///
    /// # Errors
    /// If a shape or a position does not fit, or the device fails.
    fn forward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        positions: &TokenPositions,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<PositionForward>;

    /// Adds the gradient of the parameters to `gradient` (laid out like [`Parameters::data`]), given
    /// `dL/d log_probabilities` as `[P]`.
    ///
    /// # Errors
    /// If the forward kept no state or was given another batch, or the device fails.
    fn backward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: PositionForward,
        grad_log_probabilities: &[f32],
        gradient: &mut [f32],
    ) -> Result<()>;
}

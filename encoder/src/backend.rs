//! What trainer and `DocumentEncoder` ask of a compute backend: pooled vocabulary logits, and their gradient.
//!
//! The backend ends at the pooled logits `v_j = max over the text's positions of logit_ij`; activation, losses
//! and regularisers act on the `[B, V]` matrix outside. That cut keeps `B × L × V` from ever existing: the
//! head is computed document by document, keeps maximum and argmax, and its backward touches only entries
//! with a gradient.

use crate::{Parameters, Result};

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
}

//! BERT's layers in plain tensor operations, after Hugging Face's `modeling_bert.py`.
//!
//! Only operations whose gradient candle has are used. Its fused `LayerNorm` and `softmax_last_dim` have none
//! and cut the gradient without a word, so both are spelled out here.

use candle_core::{D, Device, Tensor};
use rayon::prelude::*;

use super::Precision;
use super::groups::Group;
use super::weights::Weights;
use crate::dropout::{Mask, Site};
use crate::{BertConfig, Dropout, Result, TokenBatch};

/// The word embeddings, which are the decoder's weight too.
pub(super) const WORDS: &str = "bert.embeddings.word_embeddings.weight";
/// The position embeddings.
pub(super) const POSITIONS: &str = "bert.embeddings.position_embeddings.weight";
/// The token types' embeddings.
pub(super) const TYPES: &str = "bert.embeddings.token_type_embeddings.weight";

/// What is added to the attention scores of padding: its probability becomes exactly 0.
const MASKED: f32 = -1e30;

/// One block of documents on its way through the network, stage by stage: the embeddings' norm, the layers, the
/// head's transform. Between stages everything is `[documents · width, H]` in f32.
pub(super) struct Network<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) precision: Precision,
    pub(super) batch: &'a TokenBatch,
    pub(super) group: &'a Group,
    pub(super) dropout: Option<Dropout>,
    /// Whether gradients are wanted.
    pub(super) tracked: bool,
}

impl Network<'_> {
    /// How many stages there are.
    pub(super) fn stages(&self) -> usize {
        self.config.num_hidden_layers + 2
    }

    /// One stage's output.
    pub(super) fn stage(&self, stage: usize, x: &Tensor) -> Result<Tensor> {
        if stage == 0 {
            let normed = self.layer_norm(x, "bert.embeddings.LayerNorm")?;
            return self.hidden_dropout(&normed, 0, Site::Embedding);
        }
        if stage <= self.config.num_hidden_layers {
            return self.layer(x, stage - 1);
        }
        let dense = self.linear(x, "cls.predictions.transform.dense")?.gelu_erf()?;
        self.layer_norm(&dense, "cls.predictions.transform.LayerNorm")
    }

    /// What the first stage takes: the sum of word, position and type embeddings. No gradient flows through it;
    /// that of the three tables is made from the gradient of the sum.
    pub(super) fn embedded(&self) -> Result<Tensor> {
        let (documents, width, hidden) = (self.group.documents.len(), self.group.width, self.config.hidden_size);
        let ids = Tensor::from_vec(self.padded_ids(), documents * width, self.device)?;
        let words = self.weights.get(WORDS, false)?.index_select(&ids, 0)?;
        let positions = self.weights.get(POSITIONS, false)?.narrow(0, 0, width)?;
        let kinds = self.weights.get(TYPES, false)?;
        let words = words.reshape((documents, width, hidden))?;
        let sum = if self.batch.token_types.is_empty() {
            words.broadcast_add(&positions.broadcast_add(&kinds.narrow(0, 0, 1)?)?)?
        } else {
            let types = Tensor::from_vec(self.padded_types(), documents * width, self.device)?;
            let kinds = kinds.index_select(&types, 0)?.reshape((documents, width, hidden))?;
            (words + kinds.broadcast_add(&positions)?)?
        };
        Ok(sum.reshape((documents * width, hidden))?)
    }

    /// Token types `[documents · width]`.
    fn padded_types(&self) -> Vec<u32> {
        let mut types = Vec::with_capacity(self.group.documents.len() * self.group.width);
        for &document in &self.group.documents {
            let (start, end) = (self.batch.offsets[document], self.batch.offsets[document + 1]);
            types.extend((start..end).map(|place| self.batch.token_type(place) as u32));
            types.resize(types.len() + self.group.width - (end - start), 0);
        }
        types
    }

    /// Ids `[documents · width]`. Padding may be any token: attention never reads it, and the head never sees it.
    fn padded_ids(&self) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.group.documents.len() * self.group.width);
        for &document in &self.group.documents {
            let tokens = self.batch.document(document);
            ids.extend_from_slice(tokens);
            ids.resize(ids.len() + self.group.width - tokens.len(), tokens[0]);
        }
        ids
    }

    fn layer(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        let attended = self.linear(&self.attention(x, layer)?, &name("attention.output.dense"))?;
        let attended = self.hidden_dropout(&attended, layer, Site::AttentionOutput)?;
        let x = self.layer_norm(&(attended + x)?, &name("attention.output.LayerNorm"))?;
        let wide = self.linear(&x, &name("intermediate.dense"))?.gelu_erf()?;
        let narrow = self.linear(&wide, &name("output.dense"))?;
        let narrow = self.hidden_dropout(&narrow, layer, Site::FeedForwardOutput)?;
        self.layer_norm(&(narrow + x)?, &name("output.LayerNorm"))
    }

    /// softmax(Q Kᵀ / √d) V, head by head, within each document.
    fn attention(&self, x: &Tensor, layer: usize) -> Result<Tensor> {
        let (documents, width) = (self.group.documents.len(), self.group.width);
        let (heads, size) = (self.config.num_attention_heads, self.config.head_size());
        let part = |what: &str| -> Result<Tensor> {
            let y = self.linear(x, &format!("bert.encoder.layer.{layer}.attention.self.{what}"))?;
            Ok(y.reshape((documents, width, heads, size))?.transpose(1, 2)?)
        };
        let (query, key, value) = (part("query")?, part("key")?, part("value")?);
        let mut scores = (self.precision.product_transposed(&query, &key)? / (size as f64).sqrt())?;
        if let Some(mask) = self.padding_mask()? {
            scores = scores.broadcast_add(&mask)?;
        }
        let probabilities = self.attention_dropout(&softmax(&scores)?, layer)?;
        let mixed = self.precision.product(&probabilities, &value)?;
        Ok(mixed.transpose(1, 2)?.reshape((documents * width, heads * size))?)
    }

    /// y = x Wᵀ + b.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let bias = self.weight(&format!("{name}.bias"))?;
        Ok(self.precision.product_transposed(x, &weight)?.broadcast_add(&bias)?)
    }

    /// (x − mean) / √(variance + ε) · weight + bias over the last dimension.
    fn layer_norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
        let normed = centred.broadcast_div(&(variance + self.config.layer_norm_eps)?.sqrt()?)?;
        let weight = self.weight(&format!("{name}.weight"))?;
        Ok(normed.broadcast_mul(&weight)?.broadcast_add(&self.weight(&format!("{name}.bias"))?)?)
    }

    /// `[documents, 1, 1, width]`: 0 for tokens, [`MASKED`] for padding; `None` where nothing is padded.
    fn padding_mask(&self) -> Result<Option<Tensor>> {
        if !self.group.is_padded() {
            return Ok(None);
        }
        let (lengths, width) = (&self.group.lengths, self.group.width);
        let values = padding(lengths, width, MASKED);
        Ok(Some(Tensor::from_vec(values, (lengths.len(), 1, 1, width), self.device)?))
    }

    fn hidden_dropout(&self, x: &Tensor, layer: usize, site: Site) -> Result<Tensor> {
        let Some(dropout) = self.dropout.filter(|d| d.hidden > 0.0) else { return Ok(x.clone()) };
        let size = self.group.width * self.config.hidden_size;
        self.dropped(x, &dropout, layer, site, size, |mask, kept, _| {
            for (index, kept) in kept.iter_mut().enumerate() {
                *kept = u8::from(mask.at(index as u64) != 0.0);
            }
        })
    }

    fn attention_dropout(&self, probabilities: &Tensor, layer: usize) -> Result<Tensor> {
        let Some(dropout) = self.dropout.filter(|d| d.attention > 0.0) else { return Ok(probabilities.clone()) };
        let (width, heads) = (self.group.width, self.config.num_attention_heads);
        let size = heads * width * width;
        self.dropped(probabilities, &dropout, layer, Site::AttentionProbs, size, |mask, kept, length| {
            for (row, kept) in kept.chunks_exact_mut(width).enumerate() {
                let (head, query) = (row / width, row % width);
                for (key, kept) in kept[..length].iter_mut().enumerate() {
                    *kept = u8::from(mask.at(((head * length + query) * length + key) as u64) != 0.0);
                }
            }
        })
    }

    /// `x` times a mask of `size` elements a document, filled from the generator, given the document's length. The
    /// masks are made on the host, document by document on all cores, and go to the device as bytes.
    fn dropped(
        &self,
        x: &Tensor,
        dropout: &Dropout,
        layer: usize,
        site: Site,
        size: usize,
        fill: impl Fn(&Mask, &mut [u8], usize) + Sync,
    ) -> Result<Tensor> {
        let group = self.group;
        let mut kept = vec![0u8; group.documents.len() * size];
        kept.par_chunks_exact_mut(size).zip(&group.documents).zip(&group.lengths).for_each(
            |((kept, &document), &length)| {
                fill(&Mask::new(dropout, layer as u32, site, self.batch.document_keys[document]), kept, length);
            },
        );
        let rate = if site == Site::AttentionProbs { dropout.attention } else { dropout.hidden };
        let kept = Tensor::from_vec(kept, x.dims(), self.device)?.to_dtype(x.dtype())?;
        Ok((x * (kept * f64::from(1.0 / (1.0 - rate)))?)?)
    }

    fn weight(&self, name: &str) -> Result<Tensor> {
        self.weights.get(name, self.tracked)
    }
}

/// `[documents, width]`: 0 for each document's tokens, `masked` for its padding.
pub(super) fn padding(lengths: &[usize], width: usize, masked: f32) -> Vec<f32> {
    lengths.iter().flat_map(|&length| (0..width).map(move |i| if i < length { 0.0 } else { masked })).collect()
}

/// Softmax over the last dimension. The maximum is subtracted as a constant: the result does not depend on it.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exponentials = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?)
}

//! BERT's layers in plain tensor operations, after Hugging Face's `modeling_bert.py`.
//!
//! Only operations whose gradient candle has are used. Its fused `LayerNorm` and `softmax_last_dim` have none
//! and cut the gradient without a word, so both are spelled out here.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor, Var};

use super::groups::Group;
use crate::dropout::{Mask, Site};
use crate::{BertConfig, Dropout, Error, Parameters, Result, TokenBatch};

/// What is added to the attention scores of padding: its probability becomes exactly 0.
const MASKED: f32 = -1e30;

/// The parameters as variables of the autograd, on the device.
pub(super) struct Weights {
    /// [`Parameters::version`] of what they were made from.
    pub(super) version: u64,
    pub(super) vars: BTreeMap<String, Var>,
}

impl Weights {
    pub(super) fn new(parameters: &Parameters, device: &Device) -> Result<Self> {
        let mut vars = BTreeMap::new();
        for spec in parameters.specs() {
            let values = parameters.get(&spec.name)?;
            let tensor = Tensor::from_slice(values, spec.shape.as_slice(), device)?;
            vars.insert(spec.name.clone(), Var::from_tensor(&tensor)?);
        }
        Ok(Self { version: parameters.version(), vars })
    }

    /// A parameter: tracked by the autograd, or a plain tensor.
    pub(super) fn get(&self, name: &str, tracked: bool) -> Result<Tensor> {
        let var = self.vars.get(name).ok_or_else(|| Error::Model(format!("no parameter is called `{name}`")))?;
        Ok(if tracked { var.as_tensor().clone() } else { var.as_detached_tensor() })
    }
}

/// One block of documents on its way through the layers.
pub(super) struct Network<'a> {
    pub(super) config: &'a BertConfig,
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) batch: &'a TokenBatch,
    pub(super) group: &'a Group,
    pub(super) dropout: Option<Dropout>,
    /// Whether gradients are wanted.
    pub(super) tracked: bool,
}

impl Network<'_> {
    /// Hidden states `[documents · width, H]` after the embeddings and after each layer, then after the
    /// head's transform (dense, GELU, `LayerNorm`).
    pub(super) fn states(&self) -> Result<Vec<Tensor>> {
        let mask = self.padding_mask()?;
        let mut states = vec![self.embeddings()?];
        for layer in 0..self.config.num_hidden_layers {
            let x = &states[layer];
            states.push(self.layer(x, layer, mask.as_ref())?);
        }
        let last = states.last().expect("the embeddings at least");
        let transformed = self.linear(last, "cls.predictions.transform.dense")?.gelu_erf()?;
        states.push(self.layer_norm(&transformed, "cls.predictions.transform.LayerNorm")?);
        Ok(states)
    }

    fn embeddings(&self) -> Result<Tensor> {
        let (documents, width, hidden) = (self.group.documents.len(), self.group.width, self.config.hidden_size);
        let mut ids = Vec::with_capacity(documents * width);
        for &document in &self.group.documents {
            let tokens = self.batch.document(document);
            ids.extend_from_slice(tokens);
            // Padding may be any token: attention never reads it, and the head never sees it.
            ids.resize(ids.len() + width - tokens.len(), tokens[0]);
        }
        let ids = Tensor::from_vec(ids, documents * width, self.device)?;
        let words = self.weight("bert.embeddings.word_embeddings.weight")?.index_select(&ids, 0)?;
        let positions = self.weight("bert.embeddings.position_embeddings.weight")?.narrow(0, 0, width)?;
        let kind = self.weight("bert.embeddings.token_type_embeddings.weight")?.narrow(0, 0, 1)?;
        let sum = words
            .reshape((documents, width, hidden))?
            .broadcast_add(&positions.broadcast_add(&kind)?)?
            .reshape((documents * width, hidden))?;
        self.hidden_dropout(&self.layer_norm(&sum, "bert.embeddings.LayerNorm")?, 0, Site::Embedding)
    }

    fn layer(&self, x: &Tensor, layer: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        let attended = self.linear(&self.attention(x, layer, mask)?, &name("attention.output.dense"))?;
        let attended = self.hidden_dropout(&attended, layer, Site::AttentionOutput)?;
        let x = self.layer_norm(&(attended + x)?, &name("attention.output.LayerNorm"))?;
        let wide = self.linear(&x, &name("intermediate.dense"))?.gelu_erf()?;
        let narrow = self.linear(&wide, &name("output.dense"))?;
        let narrow = self.hidden_dropout(&narrow, layer, Site::FeedForwardOutput)?;
        self.layer_norm(&(narrow + x)?, &name("output.LayerNorm"))
    }

    /// softmax(Q Kᵀ / √d) V, head by head, within each document.
    fn attention(&self, x: &Tensor, layer: usize, mask: Option<&Tensor>) -> Result<Tensor> {
        let (documents, width) = (self.group.documents.len(), self.group.width);
        let (heads, size) = (self.config.num_attention_heads, self.config.head_size());
        let part = |what: &str| -> Result<Tensor> {
            let y = self.linear(x, &format!("bert.encoder.layer.{layer}.attention.self.{what}"))?;
            Ok(y.reshape((documents, width, heads, size))?.transpose(1, 2)?.contiguous()?)
        };
        let (query, key, value) = (part("query")?, part("key")?, part("value")?);
        let mut scores = (query.matmul(&key.transpose(2, 3)?.contiguous()?)? / (size as f64).sqrt())?;
        if let Some(mask) = mask {
            scores = scores.broadcast_add(mask)?;
        }
        let probabilities = self.attention_dropout(&softmax(&scores)?, layer)?;
        let mixed = probabilities.matmul(&value)?;
        Ok(mixed.transpose(1, 2)?.reshape((documents * width, heads * size))?)
    }

    /// y = x Wᵀ + b.
    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.weight(&format!("{name}.weight"))?;
        let bias = self.weight(&format!("{name}.bias"))?;
        Ok(x.matmul(&weight.t()?)?.broadcast_add(&bias)?)
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
        let width = self.group.width;
        let values: Vec<f32> = self
            .group
            .lengths
            .iter()
            .flat_map(|&length| (0..width).map(move |i| if i < length { 0.0 } else { MASKED }))
            .collect();
        Ok(Some(Tensor::from_vec(values, (self.group.lengths.len(), 1, 1, width), self.device)?))
    }

    fn hidden_dropout(&self, x: &Tensor, layer: usize, site: Site) -> Result<Tensor> {
        let Some(dropout) = self.dropout.filter(|d| d.hidden > 0.0) else { return Ok(x.clone()) };
        let (width, hidden) = (self.group.width, self.config.hidden_size);
        let mut scales = vec![0.0f32; self.group.documents.len() * width * hidden];
        for (rows, &document) in scales.chunks_exact_mut(width * hidden).zip(&self.group.documents) {
            let mask = Mask::new(&dropout, layer as u32, site, self.batch.document_keys[document]);
            for (index, scale) in rows.iter_mut().enumerate() {
                *scale = mask.at(index as u64);
            }
        }
        Ok((x * Tensor::from_vec(scales, x.dims(), self.device)?)?)
    }

    fn attention_dropout(&self, probabilities: &Tensor, layer: usize) -> Result<Tensor> {
        let Some(dropout) = self.dropout.filter(|d| d.attention > 0.0) else { return Ok(probabilities.clone()) };
        let (width, heads) = (self.group.width, self.config.num_attention_heads);
        let mut scales = vec![0.0f32; self.group.documents.len() * heads * width * width];
        let blocks = scales.chunks_exact_mut(heads * width * width);
        for ((block, &document), &length) in blocks.zip(&self.group.documents).zip(&self.group.lengths) {
            let mask = Mask::new(&dropout, layer as u32, Site::AttentionProbs, self.batch.document_keys[document]);
            for (row, scales) in block.chunks_exact_mut(width).enumerate() {
                let (head, query) = (row / width, row % width);
                for (key, scale) in scales[..length].iter_mut().enumerate() {
                    *scale = mask.at(((head * length + query) * length + key) as u64);
                }
            }
        }
        Ok((probabilities * Tensor::from_vec(scales, probabilities.dims(), self.device)?)?)
    }

    fn weight(&self, name: &str) -> Result<Tensor> {
        self.weights.get(name, self.tracked)
    }
}

/// Softmax over the last dimension. The maximum is subtracted as a constant: the result does not depend on it.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let exponentials = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    Ok(exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)?)
}

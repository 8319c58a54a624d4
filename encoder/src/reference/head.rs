//! The vocabulary head outside of the autograd: `[V, H] · [H, documents · width]` for a few documents at a time,
//! of which maximum and argmax are kept. Its backward knows which position won, so it reads and writes only
//! vocabulary entries that have a gradient.

use candle_core::{DType, Device, Tensor};

use super::Precision;
use super::groups::Group;
use crate::Result;

/// What is added to the logits of padding, as the positions of a document always lie above it.
const MASKED: f32 = -1e30;

/// The decoder, for one forward.
pub(super) struct Head {
    pub(super) device: Device,
    pub(super) precision: Precision,
    /// The word embeddings `[V, H]`, ready for products.
    pub(super) words: Tensor,
    /// `[1, V]`.
    pub(super) bias: Tensor,
    /// Most logits that exist at a time, unless a single document has more.
    pub(super) most_logits: usize,
}

/// Pooled logits and their positions of documents in a row, `[documents, V]`, still on the device.
pub(super) struct Pooled {
    pub(super) values: Tensor,
    pub(super) argmax: Tensor,
}

/// Some documents of a block: their first, how many, and the longest one's length.
struct Chunk {
    first: usize,
    count: usize,
    width: usize,
}

impl Head {
    /// Maximum and argmax over each document's own positions; `transformed` is the block's `[documents · width, H]`.
    pub(super) fn forward(&self, group: &Group, transformed: &Tensor) -> Result<Vec<Pooled>> {
        let vocabulary = self.words.dim(0)?;
        let mut out = Vec::new();
        for chunk in chunks(group, vocabulary, self.most_logits) {
            let rows = chunk.rows(group, transformed)?;
            let mut logits = self.precision.product_transposed(&self.words, &rows)?.reshape((
                vocabulary,
                chunk.count,
                chunk.width,
            ))?;
            if let Some(mask) = chunk.padding_mask(group, &self.device)? {
                logits = logits.broadcast_add(&mask)?;
            }
            // The bias is one number per entry: it changes no argmax and is added to the maximum alone.
            let values = logits.max(2)?.t()?.contiguous()?.broadcast_add(&self.bias)?;
            out.push(Pooled { values, argmax: logits.argmax(2)?.t()?.contiguous()? });
        }
        Ok(out)
    }
}

/// The head's way back for one batch: only entries that have a gradient in some document take part.
pub(super) struct HeadBackward<'a> {
    device: Device,
    precision: Precision,
    vocabulary: usize,
    most_logits: usize,
    argmax: &'a [u16],
    grad_pooled: &'a [f32],
    /// The entries with a gradient (K of them), ascending.
    pub(super) active: Vec<u32>,
    /// Their word embeddings `[K, H]`.
    words: Tensor,
    /// The sum of their gradients `[K, H]`.
    pub(super) words_gradient: Tensor,
}

impl<'a> HeadBackward<'a> {
    /// `argmax` and `grad_pooled` are `[B, V]`. `None` where no entry has a gradient.
    pub(super) fn new(head: &Head, argmax: &'a [u16], grad_pooled: &'a [f32]) -> Result<Option<Self>> {
        let (vocabulary, hidden) = head.words.dims2()?;
        let mut is_active = vec![false; vocabulary];
        for row in grad_pooled.chunks_exact(vocabulary) {
            is_active.iter_mut().zip(row).for_each(|(is_active, g)| *is_active |= *g != 0.0);
        }
        let active: Vec<u32> = (0..vocabulary as u32).filter(|&entry| is_active[entry as usize]).collect();
        if active.is_empty() {
            return Ok(None);
        }
        let ids = Tensor::from_slice(&active, active.len(), &head.device)?;
        Ok(Some(Self {
            device: head.device.clone(),
            precision: head.precision,
            vocabulary,
            most_logits: head.most_logits,
            argmax,
            grad_pooled,
            words: head.words.index_select(&ids, 0)?,
            words_gradient: Tensor::zeros((active.len(), hidden), DType::F32, &head.device)?,
            active,
        }))
    }

    /// dL/d transformed of a block, `[documents · width, H]`; the words' part is added to the sum.
    pub(super) fn block(&mut self, group: &Group, transformed: &Tensor) -> Result<Tensor> {
        let hidden = self.words.dim(1)?;
        let mut upstream = Vec::new();
        for chunk in chunks(group, self.active.len(), self.most_logits) {
            let logits = self.logits(group, &chunk)?;
            let rows = chunk.rows(group, transformed)?;
            self.words_gradient = (&self.words_gradient + self.precision.product(&logits, &rows)?)?;
            let back = self.precision.transposed_product(&logits, &self.words)?;
            let back = back.reshape((chunk.count, chunk.width, hidden))?;
            upstream.push(back.pad_with_zeros(1, 0, group.width - chunk.width)?);
        }
        Ok(Tensor::cat(&upstream, 0)?.reshape((group.documents.len() * group.width, hidden))?)
    }

    /// dL/d logits `[K, documents · width]`: each entry's gradient at the position that gave its maximum, else 0.
    fn logits(&self, group: &Group, chunk: &Chunk) -> Result<Tensor> {
        let count = self.active.len() * chunk.count;
        let (mut values, mut places) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for &entry in &self.active {
            for slot in 0..chunk.count {
                let at = group.documents[chunk.first + slot] * self.vocabulary + entry as usize;
                values.push(self.grad_pooled[at]);
                places.push((slot * chunk.width) as u32 + u32::from(self.argmax[at]));
            }
        }
        let shape = (self.active.len(), chunk.count);
        let values = self.precision.operand(&Tensor::from_vec(values, shape, &self.device)?)?;
        let places = Tensor::from_vec(places, shape, &self.device)?;
        let logits = Tensor::zeros((shape.0, chunk.count * chunk.width), values.dtype(), &self.device)?;
        logits.scatter_set(&places, &values, 1)?;
        Ok(logits)
    }
}

/// Documents of a block, a few at a time: at most `most_logits` for `entries` of the vocabulary, and at least one.
fn chunks(group: &Group, entries: usize, most_logits: usize) -> Vec<Chunk> {
    let count = (most_logits / (entries * group.width)).clamp(1, group.documents.len());
    (0..group.documents.len())
        .step_by(count)
        .map(|first| {
            let lengths = &group.lengths[first..(first + count).min(group.lengths.len())];
            // Lengths ascend.
            Chunk { first, count: lengths.len(), width: lengths[lengths.len() - 1] }
        })
        .collect()
}

impl Chunk {
    /// These documents' rows `[count · width, H]` of a block.
    fn rows(&self, group: &Group, transformed: &Tensor) -> Result<Tensor> {
        let hidden = transformed.dim(1)?;
        let block = transformed.reshape((group.documents.len(), group.width, hidden))?;
        let rows = block.narrow(0, self.first, self.count)?.narrow(1, 0, self.width)?;
        Ok(rows.reshape((self.count * self.width, hidden))?)
    }

    /// `[1, count, width]`: 0 for tokens, [`MASKED`] for padding; `None` where nothing is padded.
    fn padding_mask(&self, group: &Group, device: &Device) -> Result<Option<Tensor>> {
        let lengths = &group.lengths[self.first..self.first + self.count];
        if lengths[0] == self.width {
            return Ok(None);
        }
        let values = super::network::padding(lengths, self.width, MASKED);
        Ok(Some(Tensor::from_vec(values, (1, self.count, self.width), device)?))
    }
}

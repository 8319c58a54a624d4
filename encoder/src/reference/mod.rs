//! The plain backend: candle's tensor operations and its autograd, on the CPU or an NVIDIA GPU.
//!
//! On the CPU it is slow and the yardstick of the crate's own kernels; on the GPU it is what computes. The
//! head and the embeddings' tables stand outside of the autograd: the head's gradient is sparse, and the tables'
//! are rows that are added on the host.
//!
//! The device holds the parameters in f32 and gets them anew when their version changed, which training does once
//! a step; what comes back are f32 gradients. With [`Precision::Bf16`] matrix products round their operands.

#[cfg(feature = "cuda")]
mod cuda;
mod groups;
mod head;
mod network;
mod positions;
mod precision;
mod weights;

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Device, Tensor, Var};

use self::groups::{Group, groups};
use self::head::{Head, HeadBackward};
use self::network::{Network, POSITIONS, TYPES, WORDS};
pub use self::precision::Precision;
use self::weights::{Sums, Weights, add, add_rows, host, place};
use crate::{
    Backend, BertConfig, Dropout, Error, Forward, Parameters, PositionForward, Result, TokenBatch, TokenPositions,
};

#[cfg(feature = "cuda")]
pub(crate) use self::cuda::open as open_cuda;

/// The decoder's bias.
const DECODER_BIAS: &str = "cls.predictions.bias";
/// What one more block costs on a GPU, in tokens: its kernels' launches. A guess, as it was never measured.
const GPU_BLOCK: usize = 2048;
/// Most logits on a GPU at a time (512 MiB in f32); on the CPU documents pass one by one.
const GPU_LOGITS: usize = 1 << 27;

/// A [`Backend`] of plain tensor operations.
pub struct CandleBackend {
    config: BertConfig,
    device: Device,
    precision: Precision,
    /// What one more block costs, in tokens: how much padding is worth it.
    block_overhead: usize,
    most_logits: usize,
    is_checkpointing: bool,
    weights: Mutex<Option<Arc<Weights>>>,
}

/// What a forward keeps for its backward.
struct State {
    weights: Arc<Weights>,
    /// The batch's.
    offsets: Vec<usize>,
    dropout: Option<Dropout>,
    head: Head,
    blocks: Vec<Block>,
}

/// A block that went through the network.
struct Block {
    group: Group,
    tape: Tape,
    /// The last stage's output `[documents · width, H]`.
    transformed: Tensor,
}

/// How the backward finds its way down.
enum Tape {
    /// The autograd holds everything between this variable, the first stage's input, and the output.
    Kept(Var),
    /// Each stage's input, from which the backward computes the rest again; empty where there will be none.
    Inputs(Vec<Tensor>),
}

impl CandleBackend {
    /// A backend for one shape on one device, in f32.
    pub fn new(config: &BertConfig, device: &Device) -> Self {
        let (block_overhead, most_logits) = if device.is_cpu() { (0, 0) } else { (GPU_BLOCK, GPU_LOGITS) };
        Self {
            config: config.clone(),
            device: device.clone(),
            precision: Precision::F32,
            block_overhead,
            most_logits,
            is_checkpointing: false,
            weights: Mutex::new(None),
        }
    }

    /// A backend on this machine's cores, in f32.
    pub fn cpu(config: &BertConfig) -> Self {
        Self::new(config, &Device::Cpu)
    }

    /// With matrix products in another precision. On the CPU bf16 is slower than f32.
    #[must_use]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Pads documents into blocks where that costs fewer tokens than `block_overhead` for one more block, and lets
    /// the head take several documents at once, up to `most_logits` logits: as on a GPU. On the CPU nothing is
    /// padded unless asked for.
    #[must_use]
    pub fn with_blocks(mut self, block_overhead: usize, most_logits: usize) -> Self {
        self.block_overhead = block_overhead;
        self.most_logits = most_logits;
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
        let group = &groups(&batch, 0)[0];
        let network = self.network(&weights, &batch, group, None, false);
        let mut x = network.embedded()?;
        let mut states = Vec::new();
        for stage in 0..network.stages() {
            x = network.stage(stage, &x)?;
            states.push(host(&x)?);
        }
        Ok(states)
    }

    fn network<'a>(
        &'a self,
        weights: &'a Weights,
        batch: &'a TokenBatch,
        group: &'a Group,
        dropout: Option<Dropout>,
        tracked: bool,
    ) -> Network<'a> {
        let (config, device, precision) = (&self.config, &self.device, self.precision);
        Network { config, weights, device, precision, batch, group, dropout, tracked }
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

    fn head(&self, weights: &Weights) -> Result<Head> {
        Ok(Head {
            device: self.device.clone(),
            precision: self.precision,
            words: self.precision.operand(&weights.get(WORDS, false)?)?,
            bias: weights.get(DECODER_BIAS, false)?.reshape((1, self.config.vocab_size))?,
            most_logits: self.most_logits,
        })
    }

    /// A block through all stages.
    fn forward_block(
        &self,
        weights: &Weights,
        batch: &TokenBatch,
        group: Group,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Block> {
        let tracked = keep && !self.is_checkpointing;
        let network = self.network(weights, batch, &group, dropout, tracked);
        let mut x = network.embedded()?;
        let mut inputs = Vec::new();
        let mut leaf = None;
        if tracked {
            let var = Var::from_tensor(&x)?;
            x = var.as_tensor().clone();
            leaf = Some(var);
        }
        for stage in 0..network.stages() {
            let input = x;
            x = network.stage(stage, &input)?;
            if keep && !tracked {
                inputs.push(input);
            }
        }
        Ok(Block { group, tape: leaf.map_or(Tape::Inputs(inputs), Tape::Kept), transformed: x })
    }

    /// Takes the gradient of a block's output down to its embeddings, `[documents · width, H]`; the parameters'
    /// go to `sums`.
    fn backward_block(
        &self,
        state: &State,
        batch: &TokenBatch,
        block: &Block,
        upstream: Tensor,
        sums: &mut Sums,
    ) -> Result<Tensor> {
        match &block.tape {
            Tape::Kept(leaf) => pull(leaf, &block.transformed, &upstream, &state.weights, sums),
            Tape::Inputs(inputs) => {
                let network = self.network(&state.weights, batch, &block.group, state.dropout, true);
                let mut upstream = upstream;
                for (stage, input) in inputs.iter().enumerate().rev() {
                    let leaf = Var::from_tensor(input)?;
                    let output = network.stage(stage, leaf.as_tensor())?;
                    upstream = pull(&leaf, &output, &upstream, &state.weights, sums)?;
                }
                Ok(upstream)
            }
        }
    }

    /// The three tables' gradients from that of the sum of their rows.
    fn backward_embeddings(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        group: &Group,
        upstream: &Tensor,
        gradient: &mut [f32],
    ) -> Result<()> {
        let (width, hidden) = (group.width, self.config.hidden_size);
        let rows = host(upstream)?;
        let words = place(parameters, WORDS, gradient)?;
        // A padded row's gradient is 0, as nothing reads it.
        for (rows, &document) in rows.chunks_exact(width * hidden).zip(&group.documents) {
            add_rows(words, batch.document(document), rows, hidden);
        }
        let positions = host(&upstream.reshape((group.documents.len(), width * hidden))?.sum(0)?)?;
        add(&mut place(parameters, POSITIONS, gradient)?[..positions.len()], &positions);
        let kinds = place(parameters, TYPES, gradient)?;
        if batch.token_types.is_empty() {
            let kind: Vec<f32> =
                (0..hidden).map(|column| positions.iter().skip(column).step_by(hidden).sum()).collect();
            add(&mut kinds[..hidden], &kind);
            return Ok(());
        }
        for (rows, &document) in rows.chunks_exact(width * hidden).zip(&group.documents) {
            let places = batch.offsets[document]..batch.offsets[document + 1];
            for (row, at) in rows.chunks_exact(hidden).zip(places) {
                let kind = batch.token_type(at) * hidden;
                add(&mut kinds[kind..kind + hidden], row);
            }
        }
        Ok(())
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
        let vocabulary = self.config.vocab_size;
        let weights = self.weights(parameters)?;
        let head = self.head(&weights)?;
        let mut blocks = Vec::new();
        let (mut values, mut places, mut documents) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups(batch, self.block_overhead) {
            let block = self.forward_block(&weights, batch, group, dropout, keep)?;
            for pooled in head.forward(&block.group, &block.transformed.detach())? {
                values.push(pooled.values);
                places.push(pooled.argmax);
            }
            documents.extend_from_slice(&block.group.documents);
            if keep {
                blocks.push(block);
            }
        }
        let mut pooled = vec![0.0f32; batch.documents() * vocabulary];
        let mut argmax = vec![0u16; batch.documents() * vocabulary];
        if !documents.is_empty() {
            // One copy for the whole batch: each waits for the device.
            let values = Tensor::cat(&values, 0)?.flatten_all()?.to_vec1::<f32>()?;
            let places = Tensor::cat(&places, 0)?.flatten_all()?.to_vec1::<u32>()?;
            let rows = values.chunks_exact(vocabulary).zip(places.chunks_exact(vocabulary));
            for ((values, places), document) in rows.zip(documents) {
                let row = document * vocabulary..(document + 1) * vocabulary;
                pooled[row.clone()].copy_from_slice(values);
                argmax[row].iter_mut().zip(places).for_each(|(at, &place)| *at = place as u16);
            }
        }
        let state = keep.then(|| {
            let state = State { weights, offsets: batch.offsets.clone(), dropout, head, blocks };
            Box::new(state) as Box<dyn std::any::Any + Send>
        });
        Ok(Forward { pooled, argmax, state })
    }

    fn last_hidden_states(&self, parameters: &Parameters, batch: &TokenBatch) -> Result<Vec<f32>> {
        check_batch(&self.config, batch)?;
        let weights = self.weights(parameters)?;
        let hidden = self.config.hidden_size;
        let mut out = vec![0.0f32; batch.tokens() * hidden];
        for group in groups(batch, self.block_overhead) {
            let network = self.network(&weights, batch, &group, None, false);
            let mut x = network.embedded()?;
            // The last stage is the head's transform.
            for stage in 0..network.stages() - 1 {
                x = network.stage(stage, &x)?;
            }
            let rows = host(&x)?;
            for (rows, &document) in rows.chunks_exact(group.width * hidden).zip(&group.documents) {
                let places = batch.offsets[document] * hidden..batch.offsets[document + 1] * hidden;
                let own = &rows[..places.len()];
                out[places].copy_from_slice(own);
            }
        }
        Ok(out)
    }

    fn checkpoint_activations(&mut self, is_checkpointing: bool) -> Result<()> {
        self.is_checkpointing = is_checkpointing;
        Ok(())
    }

    fn backward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: Forward,
        grad_pooled: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let vocabulary = self.config.vocab_size;
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
        let mut state = forward
            .state
            .and_then(|s| s.downcast::<State>().ok())
            .ok_or_else(|| Error::Model("the forward was asked to keep nothing, so it has no backward".to_owned()))?;
        if state.offsets != batch.offsets {
            return Err(Error::Model("the backward got another batch than the forward".to_owned()));
        }
        let Some(mut head) = HeadBackward::new(&state.head, &forward.argmax, grad_pooled)? else {
            return Ok(());
        };
        let mut sums = Sums::default();
        // Each block is let go before the next is taken on.
        for block in std::mem::take(&mut state.blocks) {
            let upstream = head.block(&block.group, &block.transformed.detach())?;
            let upstream = self.backward_block(&state, batch, &block, upstream, &mut sums)?;
            self.backward_embeddings(parameters, batch, &block.group, &upstream, gradient)?;
        }
        let rows = host(&head.words_gradient)?;
        add_rows(place(parameters, WORDS, gradient)?, &head.active, &rows, self.config.hidden_size);
        for row in grad_pooled.chunks_exact(vocabulary) {
            add(place(parameters, DECODER_BIAS, gradient)?, row);
        }
        sums.add_to(parameters, gradient)
    }

    fn forward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        positions: &TokenPositions,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<PositionForward> {
        self.positions_forward(parameters, batch, positions, dropout, keep)
    }

    fn backward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: PositionForward,
        grad_log_probabilities: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        self.positions_backward(parameters, batch, forward, grad_log_probabilities, gradient)
    }
}

/// One backward of the autograd: `upstream` is dL/d output; gives dL/d leaf and collects the parameters'.
fn pull(leaf: &Var, output: &Tensor, upstream: &Tensor, weights: &Weights, sums: &mut Sums) -> Result<Tensor> {
    // The gradient of Σ x·g in x is g: this carries g on into what made x.
    let gradients = (output * upstream)?.sum_all()?.backward()?;
    sums.collect(weights, &gradients)?;
    let down = gradients.get(leaf).ok_or_else(|| Error::Model("a stage gave no gradient to its input".to_owned()))?;
    Ok(down.detach())
}

/// Every backend's first step: the batch fits the network.
///
/// # Errors
/// If a document is empty, longer than the positions, or has an id outside of the vocabulary or a token type that the
/// network does not have.
pub(crate) fn check_batch(config: &BertConfig, batch: &TokenBatch) -> Result<()> {
    let types = &batch.token_types;
    if !types.is_empty() && types.len() != batch.tokens() {
        return Err(Error::Model(format!("a batch of {} tokens has {} token types", batch.tokens(), types.len())));
    }
    if let Some(&other) = types.iter().find(|&&t| usize::from(t) >= config.type_vocab_size) {
        return Err(Error::Model(format!(
            "the batch has token type {other}; the network has {} types, so it takes no pairs of texts",
            config.type_vocab_size
        )));
    }
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

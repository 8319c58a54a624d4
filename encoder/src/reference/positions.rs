//! The vocabulary head at some positions, outside of the autograd: log-probabilities of given entries and their
//! backward, a few positions at a time.

use candle_core::{D, DType, Tensor};

use super::groups::{Group, groups};
use super::head::Head;
use super::network::WORDS;
use super::weights::{Sums, add, host, place};
use super::{Block, CandleBackend, DECODER_BIAS, State, check_batch};
use crate::{Dropout, Error, Parameters, PositionForward, Result, TokenBatch, TokenPositions};

/// Logits that exist at a time where the backend sets no bound.
const LOGITS: usize = 1 << 22;

/// What a forward at positions keeps for its backward.
struct PositionState {
    state: State,
    positions: TokenPositions,
}

/// Positions of one block, in the order of the batch: which of all they are, and their row in the block.
struct Own {
    places: Vec<usize>,
    rows: Vec<u32>,
}

impl Own {
    fn of(batch: &TokenBatch, group: &Group, positions: &TokenPositions) -> Self {
        let (mut places, mut rows) = (Vec::new(), Vec::new());
        for (slot, &document) in group.documents.iter().enumerate() {
            let (start, end) = (batch.offsets[document], batch.offsets[document + 1]);
            let first = positions.rows.partition_point(|&row| row < start);
            let after = positions.rows.partition_point(|&row| row < end);
            for place in first..after {
                places.push(place);
                rows.push((slot * group.width + positions.rows[place] - start) as u32);
            }
        }
        Self { places, rows }
    }

    /// Parts of so many positions: numbers among all, and rows of the block.
    fn parts(&self, count: usize) -> impl Iterator<Item = (&[usize], &[u32])> {
        self.places.chunks(count).zip(self.rows.chunks(count))
    }
}

impl Head {
    /// How many positions are computed at a time.
    fn positions_at_once(&self) -> Result<usize> {
        Ok((self.most_logits.max(LOGITS) / self.words.dim(0)?).max(1))
    }

    /// Transformed rows `[n, H]` and their logits `[n, V]`.
    fn at(&self, transformed: &Tensor, rows: &[u32]) -> Result<(Tensor, Tensor)> {
        let ids = Tensor::from_slice(rows, rows.len(), &self.device)?;
        let rows = transformed.index_select(&ids, 0)?;
        let logits = self.precision.product_transposed(&rows, &self.words)?.broadcast_add(&self.bias)?;
        Ok((rows, logits))
    }

    /// ln Σ exp over the last dimension, `[n, 1]`.
    fn log_sum(logits: &Tensor) -> Result<Tensor> {
        let most = logits.max_keepdim(D::Minus1)?;
        Ok((logits.broadcast_sub(&most)?.exp()?.sum_keepdim(D::Minus1)?.log()? + most)?)
    }
}

impl CandleBackend {
    pub(super) fn positions_forward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        positions: &TokenPositions,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<PositionForward> {
        check_batch(&self.config, batch)?;
        positions.check(batch, self.config.vocab_size)?;
        let weights = self.weights(parameters)?;
        let head = self.head(&weights)?;
        let mut blocks = Vec::new();
        let mut log_probabilities = vec![0.0f32; positions.rows.len()];
        let mut best = vec![0u32; positions.rows.len()];
        for group in groups(batch, self.block_overhead) {
            let block = self.forward_block(&weights, batch, group, dropout, keep)?;
            let transformed = block.transformed.detach();
            for (places, rows) in Own::of(batch, &block.group, positions).parts(head.positions_at_once()?) {
                let (_, logits) = head.at(&transformed, rows)?;
                let labels: Vec<u32> = places.iter().map(|&place| positions.labels[place]).collect();
                let labels = Tensor::from_vec(labels, (places.len(), 1), &self.device)?;
                let said = (logits.gather(&labels, 1)? - Head::log_sum(&logits)?)?;
                let largest = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
                for ((&place, value), entry) in places.iter().zip(host(&said)?).zip(largest) {
                    (log_probabilities[place], best[place]) = (value, entry);
                }
            }
            if keep {
                blocks.push(block);
            }
        }
        let state = keep.then(|| {
            let state = State { weights, offsets: batch.offsets.clone(), dropout, head, blocks };
            Box::new(PositionState { state, positions: positions.clone() }) as Box<dyn std::any::Any + Send>
        });
        Ok(PositionForward { log_probabilities, best, state })
    }

    pub(super) fn positions_backward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: PositionForward,
        slopes: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let mut kept = forward
            .state
            .and_then(|s| s.downcast::<PositionState>().ok())
            .ok_or_else(|| Error::Model("the forward was asked to keep nothing, so it has no backward".to_owned()))?;
        let (count, state) = (kept.positions.rows.len(), &mut kept.state);
        if slopes.len() != count || gradient.len() != parameters.len() {
            return Err(Error::Model(format!(
                "the backward got {} gradients for {count} positions, and a buffer of {} for {} parameters",
                slopes.len(),
                gradient.len(),
                parameters.len()
            )));
        }
        if state.offsets != batch.offsets {
            return Err(Error::Model("the backward got another batch than the forward".to_owned()));
        }
        let (mut words, mut bias) = (None, None);
        let mut sums = Sums::default();
        for block in std::mem::take(&mut state.blocks) {
            let own = Own::of(batch, &block.group, &kept.positions);
            if own.places.is_empty() {
                continue;
            }
            let upstream =
                self.block_slopes(&state.head, &block, &own, &kept.positions, slopes, (&mut words, &mut bias))?;
            let upstream = self.backward_block(state, batch, &block, upstream, &mut sums)?;
            self.backward_embeddings(parameters, batch, &block.group, &upstream, gradient)?;
        }
        for (name, sum) in [(WORDS, words), (DECODER_BIAS, bias)] {
            if let Some(sum) = sum {
                add(place(parameters, name, gradient)?, &host(&sum)?);
            }
        }
        sums.add_to(parameters, gradient)
    }

    /// dL/d transformed of a block, `[documents · width, H]`; the decoder's and the bias's parts go to the sums.
    fn block_slopes(
        &self,
        head: &Head,
        block: &Block,
        own: &Own,
        positions: &TokenPositions,
        slopes: &[f32],
        (words, bias): (&mut Option<Tensor>, &mut Option<Tensor>),
    ) -> Result<Tensor> {
        let transformed = block.transformed.detach();
        let (total, hidden) = transformed.dims2()?;
        let mut backs = Vec::new();
        for (places, rows) in own.parts(head.positions_at_once()?) {
            let n = places.len();
            let (rows, logits) = head.at(&transformed, rows)?;
            let labels: Vec<u32> = places.iter().map(|&place| positions.labels[place]).collect();
            let labels = Tensor::from_vec(labels, (n, 1), &self.device)?;
            let g: Vec<f32> = places.iter().map(|&place| slopes[place]).collect();
            let g = Tensor::from_vec(g, (n, 1), &self.device)?;
            // dL/d logit_j = g · (1 at the label − softmax_j).
            let softmax = logits.broadcast_sub(&Head::log_sum(&logits)?)?.exp()?;
            let by_logit = softmax.broadcast_mul(&g.neg()?)?.scatter_add(&labels, &g, 1)?;
            backs.push(self.precision.product(&by_logit, &head.words)?);
            collect(words, self.precision.transposed_product(&by_logit, &rows)?)?;
            collect(bias, by_logit.sum(0)?)?;
        }
        // Each row of the block takes its position's gradient, or the row of zeros after the last of them.
        backs.push(Tensor::zeros((1, hidden), DType::F32, &self.device)?);
        let mut from = vec![own.rows.len() as u32; total];
        for (i, &row) in own.rows.iter().enumerate() {
            from[row as usize] = i as u32;
        }
        Ok(Tensor::cat(&backs, 0)?.index_select(&Tensor::from_vec(from, total, &self.device)?, 0)?)
    }
}

/// Adds to a sum that may not have begun.
fn collect(sum: &mut Option<Tensor>, more: Tensor) -> Result<()> {
    *sum = Some(match sum.take() {
        Some(sum) => (sum + more)?,
        None => more,
    });
    Ok(())
}

//! The crate's own kernels: BERT's forward and backward on the CPU in f32, over packed batches.
//!
//! Matrix products are the crate `gemm`'s; everything between two products is one fused loop over rows. The
//! tape is plain: a workspace holds what each layer keeps, and `backward` walks it down. Kept are the
//! normalised rows of each `LayerNorm`, query, key, value, the attention's output and log-sum-exp, and the
//! feed-forward layer before its GELU; all else is made again. With one number of threads the same input
//! gives the same bits: every sum has a fixed order.

// A loop gets the vector instructions of the function that it is inlined into: see `Level::run`.
#![allow(clippy::inline_always)]

mod attention;
mod backward;
mod embedding;
mod head;
mod level;
mod math;
mod matrix;
mod network;
mod positions;
mod rows;
mod screen;
mod tokens;
mod weights;
mod workspace;

pub use self::level::Level;
pub(crate) use self::network::outputs_per_task;

use std::sync::{Arc, Mutex, PoisonError};

use self::head::Head;
use self::network::Network;
use self::positions::{PositionGradient, PositionHead};
use self::screen::Panels;
use self::tokens::Tokens;
use self::weights::Places;
use self::workspace::{Keep, Lent, Pool, ensure};
use crate::reference::check_batch;
use crate::{
    Backend, BertConfig, Dropout, Error, Forward, Parameters, PositionForward, Result, TokenBatch, TokenPositions,
};

/// The [`Backend`] of this machine's cores; products and loops run on rayon's current thread pool.
pub struct CpuBackend {
    config: BertConfig,
    level: Level,
    pool: Pool,
    is_checkpointing: bool,
    /// The decoder in 8 bits, of the parameters that were screened last.
    panels: Mutex<Option<Arc<Panels>>>,
}

/// What a forward keeps for its backward.
struct State {
    workspace: Lent,
    keep: Keep,
    /// The batch's.
    offsets: Vec<usize>,
    dropout: Option<Dropout>,
}

/// What a forward at positions keeps for its backward.
struct PositionState {
    network: State,
    positions: TokenPositions,
    /// The head's transformed rows at the positions, `[P, H]`.
    rows: Vec<f32>,
    /// ln Σ exp(logit) of each.
    log_sums: Vec<f64>,
}

impl CpuBackend {
    /// A backend for one shape, with the widest vector instructions of this machine.
    pub fn new(config: &BertConfig) -> Self {
        Self {
            config: config.clone(),
            level: Level::best(),
            pool: Pool::default(),
            is_checkpointing: false,
            panels: Mutex::default(),
        }
    }

    /// With other vector instructions in the fused loops (the products choose their own). All give the same
    /// bits.
    #[must_use]
    pub fn with_level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    fn network<'a>(&'a self, parameters: &'a Parameters, places: &'a Places, tokens: &'a Tokens) -> Network<'a> {
        Network { level: self.level, config: &self.config, parameters: parameters.data(), places, tokens }
    }

    fn head<'a>(&self, documents: &'a [std::ops::Range<usize>]) -> Head<'a> {
        Head { level: self.level, hidden: self.config.hidden_size, vocabulary: self.config.vocab_size, documents }
    }
}

/// yᵀ x, `[b, a]` row-major, of y `[rows, b]` and x `[rows, a]`, in f32 on all threads: moments for closed-form
/// fits.
pub fn transposed_product(y: &[f32], x: &[f32], rows: usize) -> Vec<f32> {
    if rows == 0 {
        return Vec::new();
    }
    let (b, a) = (y.len() / rows, x.len() / rows);
    let mut out = vec![0.0; a * b];
    let y = matrix::Mat::new(y, rows, b).t();
    let x = matrix::Mat::new(x, rows, a);
    matrix::product(&mut matrix::MatMut::new(&mut out, b, a), matrix::Store::Fresh, y, x, 1.0, matrix::Threads::All);
    out
}

impl CpuBackend {
    /// The last layer's output `[T, H]`, before the head, without dropout.
    ///
    /// # Errors
    /// If a shape does not fit.
    pub fn hidden_states(&self, parameters: &Parameters, batch: &TokenBatch) -> Result<Vec<f32>> {
        check_batch(&self.config, batch)?;
        let places = Places::new(&self.config, parameters)?;
        let mut workspace = self.pool.lend();
        let tokens = Tokens::new(batch, None);
        self.network(parameters, &places, &tokens).layers(&mut workspace.workspace, Keep::Nothing);
        Ok(workspace.workspace.hidden[0][..tokens.len() * self.config.hidden_size].to_vec())
    }

    /// The decoder in 8 bits for these parameters.
    fn panels(&self, parameters: &Parameters, places: &Places) -> Arc<Panels> {
        let mut kept = self.panels.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(panels) if panels.version == parameters.version() => Arc::clone(panels),
            _ => {
                let decoder = &parameters.data()[places.words.clone()];
                let panels = Panels::new(self.level, parameters.version(), decoder, self.config.hidden_size);
                Arc::clone(kept.insert(Arc::new(panels)))
            }
        }
    }

    /// What a forward keeps for a backward that follows or not.
    fn keep(&self, keep: bool) -> Keep {
        match (keep, self.is_checkpointing) {
            (false, _) => Keep::Nothing,
            (true, false) => Keep::Activations,
            (true, true) => Keep::Inputs,
        }
    }

    fn position_head<'a>(&self, parameters: &'a Parameters, places: &Places) -> PositionHead<'a> {
        PositionHead {
            level: self.level,
            hidden: self.config.hidden_size,
            decoder: &parameters.data()[places.words.clone()],
            bias: &parameters.data()[places.decoder_bias.clone()],
        }
    }

    /// `screened`: only entries above zero and the documents' own tokens have to be right.
    fn run(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
        screened: bool,
    ) -> Result<Forward> {
        check_batch(&self.config, batch)?;
        let places = Places::new(&self.config, parameters)?;
        let mut workspace = self.pool.lend();
        let tokens = Tokens::new(batch, dropout);
        let keep = self.keep(keep);
        let (mut pooled, mut argmax) = (Vec::new(), Vec::new());
        if tokens.len() > 0 {
            self.network(parameters, &places, &tokens).forward(&mut workspace.workspace, keep);
            let rows = &workspace.workspace.hidden[0][..tokens.len() * self.config.hidden_size];
            let (decoder, bias) =
                (&parameters.data()[places.words.clone()], &parameters.data()[places.decoder_bias.clone()]);
            let documents = tokens.documents();
            let head = self.head(&documents);
            let own: Vec<&[u32]> = (0..batch.documents()).map(|document| batch.document(document)).collect();
            let positive = (screened && screen::is_available(self.level))
                .then(|| head.forward_positive(rows, decoder, bias, &self.panels(parameters, &places), &own))
                .flatten();
            (pooled, argmax) = positive.unwrap_or_else(|| head.forward(rows, decoder, bias));
        }
        let state = (keep != Keep::Nothing).then(|| {
            let state = State { workspace, keep, offsets: batch.offsets.clone(), dropout };
            Box::new(state) as Box<dyn std::any::Any + Send>
        });
        Ok(Forward { pooled, argmax, state })
    }
}

impl Backend for CpuBackend {
    fn forward(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Forward> {
        self.run(parameters, batch, dropout, keep, false)
    }

    fn forward_positive(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<Forward> {
        self.run(parameters, batch, dropout, keep, true)
    }

    fn last_hidden_states(&self, parameters: &Parameters, batch: &TokenBatch) -> Result<Vec<f32>> {
        self.hidden_states(parameters, batch)
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
        if grad_pooled.len() != batch.documents() * self.config.vocab_size || gradient.len() != parameters.len() {
            return Err(Error::Model(format!(
                "the backward got {} pooled gradients for {} documents of {} entries, and a buffer of {} for {} \
                 parameters",
                grad_pooled.len(),
                batch.documents(),
                self.config.vocab_size,
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
        if batch.tokens() == 0 {
            return Ok(());
        }
        let places = Places::new(&self.config, parameters)?;
        let tokens = Tokens::new(batch, state.dropout);
        let network = self.network(parameters, &places, &tokens);
        let documents = tokens.documents();
        let head = self.head(&documents);
        let workspace = &mut state.workspace.workspace;
        let hidden = tokens.len() * self.config.hidden_size;

        let states = ensure(&mut workspace.hidden[2], hidden);
        network.transformed(&workspace.transform_norm, states);
        head.backward_decoder(&forward.argmax, grad_pooled, states, &mut gradient[places.words.clone()]);
        head.backward_bias(grad_pooled, &mut gradient[places.decoder_bias.clone()]);
        let stream = ensure(&mut workspace.hidden[0], hidden);
        head.backward_rows(&forward.argmax, grad_pooled, &parameters.data()[places.words.clone()], stream);
        network.backward(workspace, state.keep, gradient);
        Ok(())
    }

    fn forward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        positions: &TokenPositions,
        dropout: Option<Dropout>,
        keep: bool,
    ) -> Result<PositionForward> {
        check_batch(&self.config, batch)?;
        positions.check(batch, self.config.vocab_size)?;
        let places = Places::new(&self.config, parameters)?;
        let mut workspace = self.pool.lend();
        let tokens = Tokens::new(batch, dropout);
        let keep = self.keep(keep);
        let hidden = self.config.hidden_size;
        let mut rows = Vec::with_capacity(positions.rows.len() * hidden);
        if tokens.len() > 0 {
            self.network(parameters, &places, &tokens).forward(&mut workspace.workspace, keep);
            for &row in &positions.rows {
                rows.extend_from_slice(&workspace.workspace.hidden[0][row * hidden..(row + 1) * hidden]);
            }
        }
        let said = self.position_head(parameters, &places).forward(&rows, &positions.labels);
        let state = (keep != Keep::Nothing).then(|| {
            let network = State { workspace, keep, offsets: batch.offsets.clone(), dropout };
            let state = PositionState { network, positions: positions.clone(), rows, log_sums: said.log_sums };
            Box::new(state) as Box<dyn std::any::Any + Send>
        });
        Ok(PositionForward { log_probabilities: said.values, best: said.best, state })
    }

    fn backward_positions(
        &self,
        parameters: &Parameters,
        batch: &TokenBatch,
        forward: PositionForward,
        grad_log_probabilities: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let mut state = forward
            .state
            .and_then(|s| s.downcast::<PositionState>().ok())
            .ok_or_else(|| Error::Model("the forward was asked to keep nothing, so it has no backward".to_owned()))?;
        let positions = &state.positions;
        if grad_log_probabilities.len() != positions.rows.len() || gradient.len() != parameters.len() {
            return Err(Error::Model(format!(
                "the backward got {} gradients for {} positions, and a buffer of {} for {} parameters",
                grad_log_probabilities.len(),
                positions.rows.len(),
                gradient.len(),
                parameters.len()
            )));
        }
        if state.network.offsets != batch.offsets {
            return Err(Error::Model("the backward got another batch than the forward".to_owned()));
        }
        if positions.rows.is_empty() {
            return Ok(());
        }
        let places = Places::new(&self.config, parameters)?;
        let hidden = self.config.hidden_size;
        let mut slopes = vec![0.0f32; state.rows.len()];
        // The decoder's gradient and its bias's lie apart in the one buffer.
        let [decoder, bias] = gradient
            .get_disjoint_mut([places.words.clone(), places.decoder_bias.clone()])
            .map_err(|e| Error::Model(format!("the parameters overlap: {e}")))?;
        let out = PositionGradient { rows: &mut slopes, decoder, bias };
        let head = self.position_head(parameters, &places);
        head.backward(&state.rows, &positions.labels, &state.log_sums, grad_log_probabilities, out);

        let tokens = Tokens::new(batch, state.network.dropout);
        let workspace = &mut state.network.workspace.workspace;
        let stream = ensure(&mut workspace.hidden[0], tokens.len() * hidden);
        stream.fill(0.0);
        for (&row, slope) in positions.rows.iter().zip(slopes.chunks_exact(hidden)) {
            stream[row * hidden..(row + 1) * hidden].copy_from_slice(slope);
        }
        self.network(parameters, &places, &tokens).backward(workspace, state.network.keep, gradient);
        Ok(())
    }
}

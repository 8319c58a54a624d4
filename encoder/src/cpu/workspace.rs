//! Buffers of activations, handed from step to step: fresh memory costs a page fault every 4 KiB.

use std::sync::{Arc, Mutex, PoisonError};

/// Makes a buffer hold at least `len` values; what it held is lost only if it grows.
pub(super) fn ensure<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        // Let go first: two copies at once would be the peak.
        *buffer = Vec::new();
        *buffer = vec![T::default(); len];
    }
    &mut buffer[..len]
}

/// Normalised rows of a `LayerNorm` and 1/σ of each.
#[derive(Default)]
pub(super) struct Normed {
    /// `[T, H]`.
    pub(super) rows: Vec<f32>,
    /// `[T]`.
    pub(super) inverse_deviation: Vec<f32>,
}

/// What one encoder layer keeps for its backward.
#[derive(Default)]
pub(super) struct LayerActivations {
    /// Queries, keys and values, `[T, H]` each; the backward turns them into their gradients.
    pub(super) projections: [Vec<f32>; 3],
    /// Log of the softmax's denominator: `[T · heads]`, per document head after head.
    pub(super) log_sums: Vec<f32>,
    /// Attention's output, heads side by side, `[T, H]`.
    pub(super) context: Vec<f32>,
    pub(super) attention_norm: Normed,
    /// The feed-forward layer before its GELU, `[T, wide]`.
    pub(super) wide: Vec<f32>,
    pub(super) output_norm: Normed,
}

/// What a forward keeps for its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// Nothing: no backward follows.
    Nothing,
    /// The input of every layer; the backward makes a layer's activations again (activation checkpointing).
    Inputs,
    /// All activations.
    Activations,
}

/// All buffers of one forward and its backward. They only grow.
#[derive(Default)]
pub(super) struct Workspace {
    pub(super) embedding_norm: Normed,
    /// One for each layer with [`Keep::Activations`], else a single one.
    pub(super) layers: Vec<LayerActivations>,
    /// With [`Keep::Inputs`] the input of each layer and the output of the last, `[T, H]` each.
    pub(super) inputs: Vec<Vec<f32>>,
    /// The head's transform before its GELU, `[T, H]`.
    pub(super) transform: Vec<f32>,
    pub(super) transform_norm: Normed,
    /// Scratch `[T, H]`.
    pub(super) hidden: [Vec<f32>; 3],
    /// Scratch `[T, wide]`.
    pub(super) wide: Vec<f32>,
    /// Scratch for sums over blocks of rows.
    pub(super) partials: Vec<f32>,
}

/// Workspaces that nobody uses at the moment.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Vec<Workspace>>>);

impl Pool {
    /// A workspace that goes back to the pool when it is dropped.
    pub(super) fn lend(&self) -> Lent {
        let workspace = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Lent { workspace, pool: self.clone() }
    }
}

/// A workspace on loan.
pub(super) struct Lent {
    pub(super) workspace: Workspace,
    pool: Pool,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let workspace = std::mem::take(&mut self.workspace);
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(workspace);
    }
}

//! What the guard gets to see: figures of the run, never its recipe.

use crate::regularisers::active;
use crate::stage::{Steering, StepOutcome};

/// Some documents of the corpus before the first step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StartReading {
    /// Documents that were encoded.
    pub documents: usize,
    /// Vocabulary entries that may carry weight.
    pub entries: usize,
    /// Mean active dimensions of a document.
    pub active_dimensions: f64,
    /// Documents without one.
    pub zero_vectors: usize,
    /// Mean of the pooled logits above 0; 0 if there is none.
    pub active_logit: f64,
}

impl StartReading {
    /// From pooled logits `[N, V]` and one flag an entry that never carries weight.
    pub fn of(logits: &[f32], zeroed: &[bool]) -> Self {
        let (mut sum, mut count, mut zero) = (0.0, 0usize, 0);
        for row in logits.chunks_exact(zeroed.len()) {
            let shown: Vec<f32> = row.iter().zip(zeroed).filter(|(_, z)| !**z).map(|(&v, _)| v.max(0.0)).collect();
            let here = active(&shown);
            sum += shown.iter().map(|&v| f64::from(v)).sum::<f64>();
            count += here;
            zero += usize::from(here == 0);
        }
        let documents = logits.len() / zeroed.len().max(1);
        Self {
            documents,
            entries: zeroed.iter().filter(|z| !**z).count(),
            active_dimensions: count as f64 / documents.max(1) as f64,
            zero_vectors: zero,
            active_logit: sum / count.max(1) as f64,
        }
    }
}

/// One step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Telemetry<'a> {
    /// The stage's name.
    pub stage: &'a str,
    /// The step, counted from 1.
    pub step: usize,
    /// Steps of the stage.
    pub steps: usize,
    /// Steps of the run that are done.
    pub total_step: usize,
    /// The loss.
    pub loss: f64,
    /// What the sparsity penalties make of it.
    pub penalty: f64,
    /// The gradient's norm before clipping.
    pub gradient_norm: f64,
    /// Weight of the sparsity penalty.
    pub lambda: Option<f64>,
    /// Norms of the penalties' slopes at the vectors, and of all others'.
    pub slopes: Option<(f64, f64)>,
    /// Where the penalty's weight is steered.
    pub steering: Option<Steering>,
    /// Documents of the step.
    pub documents: usize,
    /// Their mean active dimensions.
    pub active_dimensions: f64,
    /// Those without one.
    pub zero_vectors: usize,
    /// In how many of them each token is active.
    pub token_documents: &'a [u32],
}

impl<'a> Telemetry<'a> {
    /// Of a step's outcome.
    pub fn of(
        outcome: &'a StepOutcome,
        gradient_norm: f64,
        stage: &'a str,
        (step, steps): (usize, usize),
        total_step: usize,
    ) -> Self {
        Self {
            stage,
            step,
            steps,
            total_step,
            loss: outcome.loss,
            penalty: outcome.penalty,
            gradient_norm,
            lambda: outcome.lambda,
            slopes: outcome.slopes,
            steering: outcome.steering,
            documents: outcome.documents,
            active_dimensions: outcome.active_dimensions(),
            zero_vectors: outcome.zero_vectors,
            token_documents: &outcome.token_documents,
        }
    }
}

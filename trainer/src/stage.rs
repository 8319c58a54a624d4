//! What the loop asks of a stage: how many steps, which rate, and the gradient of a step.

use std::collections::BTreeMap;

use nsparse_encoder::Parameters;

use crate::Result;
use crate::network::Network;
use crate::optimizer::AdamW;
use crate::sections::{Decay, LearningRate};

/// One stage of a run. A step's gradient is a function of parameters and step number alone.
pub trait Stage {
    /// Its name in `metrics.jsonl` and in messages.
    fn name(&self) -> &'static str;
    /// Optimizer steps.
    fn steps(&self) -> usize;
    /// Peak learning rates.
    fn learning_rate(&self) -> &LearningRate;
    /// Steps of the warmup, and what follows it.
    fn schedule(&self) -> (usize, Decay);
    /// Whether its steps are chosen by evaluation.
    fn is_evaluated(&self) -> bool;

    /// Adds the gradient of a 0-based step to a buffer laid out like the parameters.
    ///
    /// # Errors
    /// If the device fails.
    fn accumulate(
        &mut self,
        network: &Network,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<StepOutcome>;
}

/// One step of the loop: the stage's gradient at a 0-based step, clipping, and the optimizer's step with every rate
/// times `factor`. `gradient` is scratch, laid out like the parameters. Gives the gradient's norm before clipping;
/// where it or the loss is not finite the parameters stay as they are, and the norm is not finite.
///
/// # Errors
/// If the device fails.
pub fn take_step(
    stage: &mut dyn Stage,
    network: &Network,
    parameters: &mut Parameters,
    optimizer: &mut AdamW,
    gradient: &mut [f32],
    step: usize,
    factor: f64,
) -> Result<(StepOutcome, f64)> {
    gradient.fill(0.0);
    let outcome = stage.accumulate(network, parameters, step, gradient)?;
    if !outcome.loss.is_finite() {
        return Ok((outcome, f64::NAN));
    }
    let norm = optimizer.step(parameters.data_mut(), gradient, factor);
    Ok((outcome, norm))
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutcome {
    /// The loss that was minimised.
    pub loss: f64,
    /// Its terms, before their weights.
    pub parts: BTreeMap<&'static str, f64>,
    /// Weight of the sparsity penalty in this step.
    pub lambda: Option<f64>,
    /// Documents encoded.
    pub documents: usize,
    /// Sum of their active dimensions.
    pub active: usize,
    /// Their tokens.
    pub tokens: usize,
}

impl StepOutcome {
    /// Mean active dimensions of a document.
    pub fn active_dimensions(&self) -> f64 {
        self.active as f64 / self.documents.max(1) as f64
    }

    /// Adds another batch of the same step; its loss and parts count with `share`.
    pub fn add(&mut self, other: &Self, share: f64) {
        self.loss += share * other.loss;
        for (name, value) in &other.parts {
            *self.parts.entry(name).or_insert(0.0) += share * value;
        }
        self.lambda = other.lambda.or(self.lambda);
        self.documents += other.documents;
        self.active += other.active;
        self.tokens += other.tokens;
    }
}

//! What the loop asks of a stage: how many steps, which rate, and the gradient of a step.

use std::collections::BTreeMap;

use nsparse_core::{Cancel, Progress};
use nsparse_encoder::Parameters;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::controller::ControllerState;
use crate::late_cache::LateCache;
use crate::network::Network;
use crate::optimizer::AdamW;
use crate::pretrain::mlm::MlmEvaluation;
use crate::regularisers::{DocumentFrequencies, active};
use crate::sections::{Decay, LearningRate};
use crate::teachers::{TeacherEstimate, TeacherWork};

/// One stage of a run. A step's gradient is a function of parameters, step number and [`StageMemory`] alone.
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

    /// Adds the gradient of a 0-based step to a buffer laid out like the parameters: of several processes each adds
    /// the part of its own documents, and the parts' sum is the gradient. The outcome is the whole step's in each.
    ///
    /// # Errors
    /// If the device fails, or another process is gone.
    fn accumulate(
        &mut self,
        network: &Network,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<StepOutcome>;

    /// Moves parameters by other means than the gradient, after the optimizer has; the same on all processes.
    ///
    /// # Errors
    /// If the model has not the parameters that are to be moved.
    fn after_step(&mut self, _parameters: &mut Parameters) -> Result<()> {
        Ok(())
    }

    /// What the stage remembers from step to step, for a checkpoint.
    fn memory(&self) -> StageMemory {
        StageMemory::default()
    }

    /// Where the density is steered: the one that the loop sees, over its target. Asked of one process alone.
    ///
    /// # Errors
    /// If the device fails.
    fn over_target(&self, _network: &Network, _parameters: &Parameters) -> Result<Option<f64>> {
        Ok(None)
    }

    /// Puts it back.
    fn recall(&mut self, _memory: StageMemory) {}

    /// Computes ahead what the steps from a 0-based one on will ask for: the scores of models that are taught from.
    ///
    /// # Errors
    /// If that fails, or the user asked to stop; what was computed till then is kept.
    fn prepare(&mut self, _from: usize, _cancel: &Cancel, _progress: &dyn Progress) -> Result<()> {
        Ok(())
    }

    /// What its teachers will cost.
    ///
    /// # Errors
    /// If one cannot be used, or the user asked to stop.
    fn teacher_estimates(&mut self, _cancel: &Cancel) -> Result<Vec<TeacherEstimate>> {
        Ok(Vec::new())
    }

    /// What its teachers computed.
    fn teacher_work(&self) -> Vec<TeacherWork> {
        Vec::new()
    }
}

/// What a stage remembers from step to step besides parameters and moments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageMemory {
    /// The loop that steers the penalty's weight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub controller: Option<ControllerState>,
    /// How often tokens are active, for DF-FLOPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequencies: Option<DocumentFrequencies>,
    /// Documents of earlier steps that are negatives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub late_cache: Option<LateCache>,
    /// Evaluations of masked-language modelling so far.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub masked: Vec<MlmEvaluation>,
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
    network.team.sum(gradient)?;
    let norm = optimizer.step(parameters.data_mut(), gradient, factor);
    if norm.is_finite() {
        stage.after_step(parameters)?;
    }
    Ok((outcome, norm))
}

/// A penalty's weight under control: where it aims, and what it sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Steering {
    /// The density aimed at: active dimensions, or expected matches of a query and a document.
    pub target: f64,
    /// The density as smoothed and set right, in the same unit.
    pub measured: f64,
    /// The same of documents drawn from the corpus, in steps that encode some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<f64>,
    /// What the decoder's bias is raised by after this step, where the weight can do no more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rise: Option<f32>,
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutcome {
    /// The loss that was minimised.
    pub loss: f64,
    /// Its terms, before their weights.
    pub parts: BTreeMap<&'static str, f64>,
    /// What the sparsity penalties make of it.
    pub penalty: f64,
    /// Weight of the sparsity penalty in this step.
    pub lambda: Option<f64>,
    /// Where that weight is steered.
    pub steering: Option<Steering>,
    /// Documents encoded.
    pub documents: usize,
    /// Sum of their active dimensions.
    pub active: usize,
    /// Sum of their expected matches with a query, where the target is one of those.
    pub matches: f64,
    /// Their tokens.
    pub tokens: usize,
    /// Documents without any active dimension.
    pub zero_vectors: usize,
    /// Sum of their weights.
    pub weight_sum: f64,
    /// In how many of them each token is active, `[V]`.
    pub token_documents: Vec<u32>,
    /// Euclidean norm of the penalties' slopes at the vectors, and of all other terms' slopes.
    pub slopes: Option<(f64, f64)>,
    /// Candidates that a teacher took out.
    pub masked: usize,
}

impl StepOutcome {
    /// What vectors `[N, V]` show by themselves.
    pub fn of_vectors(weights: &[f32], vocab: usize) -> Self {
        let mut out = Self {
            documents: weights.len() / vocab,
            token_documents: vec![0; vocab],
            weight_sum: weights.iter().map(|&w| f64::from(w)).sum(),
            ..Self::default()
        };
        for row in weights.chunks_exact(vocab) {
            let here = active(row);
            out.active += here;
            out.zero_vectors += usize::from(here == 0);
            for (count, &w) in out.token_documents.iter_mut().zip(row) {
                *count += u32::from(w > 0.0);
            }
        }
        out
    }

    /// Mean active dimensions of a document.
    pub fn active_dimensions(&self) -> f64 {
        self.active as f64 / self.documents.max(1) as f64
    }

    /// Adds another batch of the same step; its loss and parts count with `share`.
    pub fn add(&mut self, other: &Self, share: f64) {
        self.loss += share * other.loss;
        self.penalty += share * other.penalty;
        for (name, value) in &other.parts {
            *self.parts.entry(name).or_insert(0.0) += share * value;
        }
        self.lambda = other.lambda.or(self.lambda);
        self.steering = other.steering.or(self.steering);
        self.documents += other.documents;
        self.active += other.active;
        self.matches += other.matches;
        self.tokens += other.tokens;
        self.zero_vectors += other.zero_vectors;
        self.weight_sum += other.weight_sum;
        self.token_documents.resize(self.token_documents.len().max(other.token_documents.len()), 0);
        for (count, more) in self.token_documents.iter_mut().zip(&other.token_documents) {
            *count += more;
        }
        if let Some((penalty, rest)) = other.slopes {
            let (a, b) = self.slopes.unwrap_or_default();
            self.slopes = Some((a + share * penalty, b + share * rest));
        }
        self.masked += other.masked;
    }
}

//! `calibration`, `warm_start`, `train` and `optimizer`: how parameters are moved.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LossSection, NegativeOrder, ShortRows};

/// When the head's bias is calibrated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// If the head is freshly made, or the whole model is.
    #[default]
    Auto,
    /// In any case.
    Always,
    /// Never.
    Never,
}

/// `calibration`: the bias of a fresh head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CalibrationSection {
    /// `auto` (if the head is new), `always`, `never`.
    pub when: When,
    /// How many weights of a document shall be above zero on average.
    pub active_dimensions: usize,
    /// How many documents it is set on.
    pub documents: usize,
    /// Whether the head's transform is fitted first, so that a position points at its own token's embedding.
    pub fit_head: bool,
}

impl Default for CalibrationSection {
    fn default() -> Self {
        Self { when: When::Auto, active_dimensions: 150, documents: 128, fit_head: true }
    }
}

/// Peak learning rates of the two parts of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Embeddings and layers (the tied decoder is the word embedding).
    pub encoder: f64,
    /// The head's transform, norm and bias.
    pub head: f64,
}

/// How the learning rate goes on after the warmup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Straight down to 0 at the stage's end.
    #[default]
    Linear,
    /// Not at all.
    Constant,
}

/// `warm_start`: the stage without labels: document weights learn BM25's tf part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WarmStartSection {
    /// Optimizer steps; 0 leaves the stage out.
    pub steps: usize,
    /// Documents a step.
    pub batch_documents: usize,
    /// Documents in memory at once; 0: all of the step's.
    pub micro_batch: usize,
    /// Segments of documents in memory at once, in place of `micro_batch` (`data.segments`); 0: not bounded.
    pub segment_budget: usize,
    /// Peak learning rates.
    pub learning_rate: LearningRate,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// What follows the warmup.
    pub decay: Decay,
    /// Dropout rate after embeddings, attention and feed-forward, and on attention; in [0, 1).
    pub dropout: f32,
    /// BM25's k1.
    pub k1: f64,
    /// BM25's b.
    pub b: f64,
    /// Weight of the squared error of tokens that are not in the text, whose target is 0.
    pub other_weight: f64,
    /// Slope of the activation below zero for tokens of the text, in [0, 1]: without one a token that starts
    /// inactive is never learned.
    pub slope_below_zero: f64,
}

impl Default for WarmStartSection {
    fn default() -> Self {
        Self {
            steps: 80,
            batch_documents: 16,
            micro_batch: 0,
            segment_budget: 0,
            learning_rate: LearningRate { encoder: 1e-4, head: 1e-3 },
            warmup_steps: 8,
            decay: Decay::Linear,
            dropout: 0.0,
            k1: 1.2,
            b: 0.75,
            other_weight: 0.1,
            slope_below_zero: 1.0,
        }
    }
}

/// `train`: the contrastive stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps; 0 leaves the stage out. Give this or `epochs`.
    pub steps: Option<usize>,
    /// Passes over the training rows. Give this or `steps`; 1 if neither is given.
    pub epochs: Option<f64>,
    /// Queries a batch.
    pub batch_queries: usize,
    /// Up to so many queries of each positive document stand in a batch, of the same set: a doc-only encoder pays for
    /// documents alone. 1: those that were drawn.
    pub queries_per_document: usize,
    /// Hard negatives a query; a row with stored scores gives one document more.
    pub negatives: usize,
    /// Which of its negatives a row gives: `random` or `window`.
    pub negative_order: NegativeOrder,
    /// What becomes of a row with fewer: `take`, `fill` or `drop`.
    pub short_rows: ShortRows,
    /// Batches a step, their gradients averaged. In-batch documents are those of one batch.
    pub accumulation: usize,
    /// Documents in memory at once; 0: all of the batch's. With fewer the batch is encoded twice (gradient
    /// cache): the result is the same, memory is bounded.
    pub micro_batch: usize,
    /// Segments of documents in memory at once, in place of `micro_batch`: for `data.segments`, where documents differ
    /// in cost; 0: not bounded. At least `data.segments.max`.
    pub segment_budget: usize,
    /// Documents of earlier steps whose vectors are kept as further negatives of `InfoNCE` (`SeDR`'s late cache); 0: none.
    pub late_cache: usize,
    /// Peak learning rates.
    pub learning_rate: LearningRate,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// What follows the warmup.
    pub decay: Decay,
    /// Dropout rate after embeddings, attention and feed-forward, and on attention; in [0, 1).
    pub dropout: f32,
    /// What is minimised: the weighted sum.
    pub losses: LossSection,
}

impl Default for TrainSection {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: None,
            batch_queries: 16,
            queries_per_document: 1,
            negatives: 1,
            negative_order: NegativeOrder::Random,
            short_rows: ShortRows::Take,
            accumulation: 1,
            micro_batch: 0,
            segment_budget: 0,
            late_cache: 0,
            learning_rate: LearningRate { encoder: 2e-5, head: 2e-5 },
            warmup_steps: 10,
            decay: Decay::Linear,
            dropout: 0.1,
            losses: LossSection::default(),
        }
    }
}

/// `optimizer`: `AdamW`, for both stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimizerSection {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Whether biases and norms decay as well.
    pub decay_all: bool,
    /// Largest global norm of the gradient; `null`: no clipping.
    pub max_grad_norm: Option<f64>,
}

impl Default for OptimizerSection {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, decay_all: false, max_grad_norm: Some(1.0) }
    }
}

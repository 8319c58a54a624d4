//! The sections of a recipe, with their defaults. A key that is not listed here is an error.

use std::path::PathBuf;

use nsparse_core::model_dir::Activation;
use nsparse_core::{DocumentTemplate, IdfFormula};
use nsparse_encoder::Precision;
use serde::{Deserialize, Serialize};

use crate::losses::Margin;
use crate::regularisers::Ramp;

/// `run`: where the run lives and what it draws from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunSection {
    /// The run's folder; made if it is not there.
    pub dir: PathBuf,
    /// Everything random comes from it.
    pub seed: u64,
    /// `cpu`, `cpu-reference`, `cuda` or `cuda:N`.
    pub device: String,
    /// Matrix products in `f32` or `bf16`; without it bf16 on `cuda`, else f32. Parameters and gradients are f32.
    pub precision: Option<Precision>,
    /// Every so many steps a line goes to `metrics.jsonl`; at least 1.
    pub log_every: usize,
}

impl Default for RunSection {
    fn default() -> Self {
        Self { dir: PathBuf::from("runs/default"), seed: 42, device: "cpu".to_owned(), precision: None, log_every: 1 }
    }
}

/// `model`: a Hugging Face folder, or the shape of a new model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A folder with `config.json`, `model.safetensors`, `tokenizer.json`.
    pub path: Option<PathBuf>,
    /// Instead of `path`: the shape of a model with random weights.
    pub random: Option<RandomModel>,
    /// `tokenizer.json`; needed with `random`, else the one in `path` is used.
    pub tokenizer: Option<PathBuf>,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
}

/// `model.random`: the shape of a new BERT; its vocabulary is the tokenizer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomModel {
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Most positions of a text.
    pub max_position_embeddings: usize,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

impl Default for RandomModel {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 512,
            max_position_embeddings: 512,
            initializer_range: 0.02,
        }
    }
}

/// `data`: what is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// A data set in BEIR's three-file form.
    pub dir: Option<PathBuf>,
    /// The split whose judgments are trained on.
    pub split: String,
    /// Training rows (jsonl), as `nsparse mine` writes them. Without them the pairs are the split's judgments.
    pub rows: Option<PathBuf>,
    /// Most tokens of a document that are read, special tokens included; at least 3.
    pub max_tokens: usize,
    /// How a document's fields become the text that is encoded.
    pub template: DocumentTemplate,
    /// Where query weights come from.
    pub idf: IdfSection,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            dir: None,
            split: "train".to_owned(),
            rows: None,
            max_tokens: 256,
            template: DocumentTemplate::default(),
            idf: IdfSection::default(),
        }
    }
}

/// `data.idf`: a table at hand, or the formula by which one is made from the corpus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdfSection {
    /// `bm25` or `smooth`; not used where `file` is given.
    pub formula: IdfFormula,
    /// An `idf.json` made before.
    pub file: Option<PathBuf>,
}

/// When the head's bias is calibrated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LearningRate {
    /// Embeddings and layers (the tied decoder is the word embedding).
    pub encoder: f64,
    /// The head's transform, norm and bias.
    pub head: f64,
}

/// How the learning rate goes on after the warmup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Straight down to 0 at the stage's end.
    #[default]
    Linear,
    /// Not at all.
    Constant,
}

/// `warm_start`: the stage without labels: document weights learn BM25's tf part.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WarmStartSection {
    /// Optimizer steps; 0 leaves the stage out.
    pub steps: usize,
    /// Documents a step.
    pub batch_documents: usize,
    /// Documents in memory at once; 0: all of the step's.
    pub micro_batch: usize,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TrainSection {
    /// Optimizer steps; 0 leaves the stage out. Give this or `epochs`.
    pub steps: Option<usize>,
    /// Passes over the training rows. Give this or `steps`; 1 if neither is given.
    pub epochs: Option<f64>,
    /// Queries a batch.
    pub batch_queries: usize,
    /// Hard negatives a query; a row with fewer gives what it has.
    pub negatives: usize,
    /// Batches a step, their gradients averaged. In-batch documents are those of one batch.
    pub accumulation: usize,
    /// Documents in memory at once; 0: all of the batch's. With fewer the batch is encoded twice (gradient
    /// cache): the result is the same, memory is bounded.
    pub micro_batch: usize,
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
            negatives: 1,
            accumulation: 1,
            micro_batch: 0,
            learning_rate: LearningRate { encoder: 2e-5, head: 2e-5 },
            warmup_steps: 10,
            decay: Decay::Linear,
            dropout: 0.1,
            losses: LossSection::default(),
        }
    }
}

/// Which documents a query's scores are compared over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Candidates {
    /// Every document of the batch, but for other known positives of the query.
    #[default]
    Batch,
    /// The query's positive and every hard negative of the batch; other queries' positives are left out.
    HardNegatives,
    /// The query's own positive and hard negatives.
    Own,
}

/// Where teacher scores come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    /// BM25 over word pieces: the query's idf times the warm start's targets.
    #[default]
    Lexical,
    /// `scores` of the training rows; only their own documents have one.
    Rows,
}

/// `train.losses`: each term with its weight; a weight of 0 switches it off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossSection {
    /// Cross entropy of the positive among the candidates.
    pub infonce: InfoNceSection,
    /// Kullback–Leibler divergence from a teacher.
    pub kl: KlSection,
    /// Squared error of score margins against a teacher.
    pub margin_mse: MarginMseSection,
    /// Penalty on the expected cost of scoring: sparsity that is even over tokens.
    pub flops: FlopsSection,
    /// Penalty on the sum of weights.
    pub l1: L1Section,
    /// Penalty on a batch that becomes all zero.
    pub anti_zero: AntiZeroSection,
    /// The warm start's loss, kept as a small term so that it is not forgotten.
    pub lexical: LexicalSection,
}

/// `train.losses.infonce`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfoNceSection {
    /// Weight of the term.
    pub weight: f64,
    /// Scores are divided by it.
    pub temperature: f64,
    /// Over which documents.
    pub candidates: Candidates,
    /// Which of them a teacher takes out; without it only other known positives go, by their ids.
    pub false_negatives: Option<FalseNegativeSection>,
}

/// `train.losses.infonce.false_negatives`: candidates that a teacher holds for as good as the positive are left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FalseNegativeSection {
    /// Where teacher scores come from; candidates without one stay.
    #[serde(default)]
    pub teacher: Teacher,
    /// `{absolute: m}`: scores above the positive's less m go; `{relative: 0.05}`: those above 95 % of it.
    pub margin: Margin,
}

impl Default for InfoNceSection {
    fn default() -> Self {
        Self { weight: 1.0, temperature: 1.0, candidates: Candidates::Batch, false_negatives: None }
    }
}

/// `train.losses.kl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct KlSection {
    /// Weight of the term.
    pub weight: f64,
    /// Both score sets are divided by it.
    pub temperature: f64,
    /// Whether the term is multiplied by the temperature squared.
    pub scaled: bool,
    /// Teacher scores are multiplied by it first.
    pub teacher_scale: f64,
    /// Where teacher scores come from.
    pub teacher: Teacher,
    /// Over which documents; with `rows` only `own`.
    pub candidates: Candidates,
}

impl Default for KlSection {
    fn default() -> Self {
        Self {
            weight: 0.0,
            temperature: 1.0,
            scaled: false,
            teacher_scale: 1.0,
            teacher: Teacher::Lexical,
            candidates: Candidates::Own,
        }
    }
}

/// `train.losses.margin_mse`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MarginMseSection {
    /// Weight of the term.
    pub weight: f64,
    /// Teacher scores are multiplied by it first.
    pub teacher_scale: f64,
    /// Where teacher scores come from.
    pub teacher: Teacher,
}

impl Default for MarginMseSection {
    fn default() -> Self {
        Self { weight: 0.0, teacher_scale: 1.0, teacher: Teacher::Lexical }
    }
}

/// What a penalty's weight is steered to; give one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetSection {
    /// Mean active dimensions of a document.
    pub doc_dims: Option<f64>,
    /// Expected tokens that a query and a document share: `Σ_j P(j in query) · P(j active in document)`, over the
    /// training queries. Published models stand at about 2.
    pub flops: Option<f64>,
    /// The weight of the first step.
    pub start_weight: f64,
    /// Steps within which a weight ten times too low is walked up; a twentieth of the stage where it is not given.
    pub response_steps: Option<usize>,
}

impl TargetSection {
    /// The weight that steering begins with where none is given.
    pub const START_WEIGHT: f64 = 1e-3;

    /// The density aimed at, in the unit of the key that is given.
    pub fn value(&self) -> f64 {
        self.doc_dims.or(self.flops).unwrap_or_default()
    }
}

/// Which means FLOPS squares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlopsForm {
    /// Over all documents of the batch, as in sentence-transformers.
    #[default]
    Mean,
    /// Over the positives, over the first negatives, … each by itself, and summed, as in OpenSearch's tuning sample:
    /// about (1 + negatives) times as large.
    Grouped,
    /// As `mean`, each token times a factor that grows with the share of documents in which it is active (DF-FLOPS,
    /// arXiv 2505.15070; the factor stands inside the square).
    Df,
}

/// `train.losses.flops.df`: the factor `1 / (1 + (x^(log_α 2) − 1)^β)` of a token active in a share x of documents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DfSection {
    /// Share at which the factor is a half, in (0, 1).
    pub alpha: f64,
    /// How steep it rises there, above 0.
    pub beta: f64,
    /// About so many of the last documents are counted.
    pub memory: usize,
}

impl Default for DfSection {
    fn default() -> Self {
        Self { alpha: 0.1, beta: 10.0, memory: 2000 }
    }
}

/// `train.losses.flops`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlopsSection {
    /// Weight at the end of the ramp (λ); 1e-3 where neither this nor `target` is given.
    pub weight: Option<f64>,
    /// Steps T of the ramp `λ·min(1, ((t+1)/T)²)`; 0: λ from the first step on.
    pub ramp_steps: usize,
    /// `quadratic`, `linear` or `none`.
    pub ramp: Ramp,
    /// In place of `weight`: the density that the weight is steered to.
    pub target: Option<TargetSection>,
    /// `mean`, `grouped` or `df`.
    pub form: FlopsForm,
    /// With `form: df`: how the factor comes from the document frequency.
    pub df: Option<DfSection>,
    /// Documents with at most so many active dimensions are left out of the penalty; 0: none is.
    pub spare_below: usize,
}

/// `train.losses.l1`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct L1Section {
    /// Weight at the end of the ramp.
    pub weight: f64,
    /// Steps of the ramp; 0: the whole weight from the first step on.
    pub ramp_steps: usize,
    /// `quadratic`, `linear` or `none`.
    pub ramp: Ramp,
}

/// `train.losses.anti_zero`: `1/(Σ q)² + 1/(Σ d)²` over a batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AntiZeroSection {
    /// Weight of the term.
    pub weight: f64,
}

impl FlopsSection {
    /// The weight at the end of the ramp where nothing is steered, else the one that steering begins with.
    pub fn peak(&self) -> f64 {
        self.target.map_or(self.weight.unwrap_or(TargetSection::START_WEIGHT), |t| t.start_weight)
    }
}

impl Default for TargetSection {
    fn default() -> Self {
        Self { doc_dims: None, flops: None, start_weight: Self::START_WEIGHT, response_steps: None }
    }
}

/// `train.losses.lexical`; k1, b and the weight of other tokens are the warm start's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LexicalSection {
    /// Weight of the term.
    pub weight: f64,
}

/// `optimizer`: `AdamW`, for both stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// `eval`: how the best step is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSection {
    /// Share of the training queries that is held out, drawn by the seed; 0: no evaluation.
    pub fraction: f64,
    /// Every so many steps of the contrastive stage; 0: only before and after it.
    pub every: usize,
    /// Documents that are encoded for it: the judged ones and the mined negatives of the held-out queries, filled
    /// up with others drawn by the seed; 0: the whole corpus.
    pub documents: usize,
    /// The metric that decides, as `nsparse eval` names it.
    pub metric: String,
}

impl Default for EvalSection {
    fn default() -> Self {
        Self { fraction: 0.2, every: 0, documents: 1000, metric: "ndcg@10".to_owned() }
    }
}

/// `checkpoint`: what a stopped run goes on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Every so many steps; 0: only when the run is stopped.
    pub every: usize,
    /// The newest so many are kept, at least 1; the best step's stays as well.
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

/// What the guard does with a finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", try_from = "GuardWord")]
pub enum GuardAction {
    /// Says it, and writes it to `metrics.jsonl`.
    #[default]
    Warn,
    /// Says it, and ends the run with a checkpoint where going on is a waste.
    Stop,
    /// Looks at nothing.
    Off,
}

/// YAML reads a bare `off` as `false`.
#[derive(Deserialize)]
#[serde(untagged)]
enum GuardWord {
    Flag(bool),
    Word(String),
}

impl TryFrom<GuardWord> for GuardAction {
    type Error = String;

    fn try_from(word: GuardWord) -> Result<Self, String> {
        match word {
            GuardWord::Flag(false) => Ok(Self::Off),
            GuardWord::Word(word) if word == "off" => Ok(Self::Off),
            GuardWord::Word(word) if word == "warn" => Ok(Self::Warn),
            GuardWord::Word(word) if word == "stop" => Ok(Self::Stop),
            _ => Err("`guard.action` is `warn`, `stop` or `off`".to_owned()),
        }
    }
}

/// `guard`: when a run is said to go wrong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardSection {
    /// `warn`, `stop` or `off`.
    pub action: GuardAction,
    /// Documents that are encoded before the first step; at least 1.
    pub documents: usize,
    /// Largest mean of the logits above 0 at the start.
    pub max_logit: f64,
    /// Largest share of the vocabulary active in a document at the start.
    pub max_density: f64,
    /// Largest share of documents without an active dimension.
    pub zero_vectors: f64,
    /// Share of the stage's first density below which documents count as collapsed.
    pub collapse: f64,
    /// The same while the penalty overpowers the ranking.
    pub falling: f64,
    /// How many times as hard as all other terms the penalty may pull at the vectors.
    pub penalty_ratio: f64,
    /// Largest share of a document's dimensions that are active in nearly every document.
    pub always_on: f64,
    /// Largest share of the tokens in use at first that may fall out of use.
    pub dead: f64,
    /// Largest relative distance from the target,
    pub off_target: f64,
    /// once this share of the stage is done.
    pub settled: f64,
    /// How many times the usual loss, and how many of its spreads above it, make a spike.
    pub spike: f64,
    /// How many times the usual gradient make a spike.
    pub gradient: f64,
}

impl Default for GuardSection {
    fn default() -> Self {
        Self {
            action: GuardAction::Warn,
            documents: 32,
            max_logit: 12.0,
            max_density: 0.5,
            zero_vectors: 0.05,
            collapse: 0.1,
            falling: 0.7,
            penalty_ratio: 10.0,
            always_on: 0.5,
            dead: 0.75,
            off_target: 0.25,
            settled: 0.6,
            spike: 8.0,
            gradient: 50.0,
        }
    }
}

//! `train.losses.flops`, `l1` and `anti_zero`: what keeps vectors sparse, and not empty.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::regularisers::Ramp;

/// What a penalty's weight is steered to; give one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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

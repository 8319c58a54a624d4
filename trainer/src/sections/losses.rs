//! `train.losses`: what the contrastive stage minimises.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AntiZeroSection, FlopsSection, L1Section};
use crate::losses::Margin;

/// Which documents a query's scores are compared over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Teacher {
    /// BM25 over word pieces: the query's idf times the warm start's targets.
    #[default]
    Lexical,
    /// `scores` of the training rows; only their own documents have one.
    Rows,
    /// The models and files of the section `teachers`, put together.
    Ensemble,
}

/// `train.losses`: each term with its weight; a weight of 0 switches it off.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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

/// `train.losses.lexical`; k1, b and the weight of other tokens are the warm start's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LexicalSection {
    /// Weight of the term.
    pub weight: f64,
}

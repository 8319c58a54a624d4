//! `eval`, `checkpoint` and `guard`: how a run is watched, kept and stopped.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// `eval`: how the best step is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSection {
    /// Share of the training queries that is held out, drawn by the seed; 0: no evaluation.
    pub fraction: f64,
    /// The set of `data.sets` whose queries are held out, by its name; without it all sets'.
    pub set: Option<String>,
    /// Every so many steps of the contrastive stage; 0: only before and after it.
    pub every: usize,
    /// Documents that are encoded for it: the judged ones and the mined negatives of the held-out queries, filled
    /// up with others drawn by the seed; 0: the whole corpus.
    pub documents: usize,
    /// The metric that decides, as `nsparse eval` names it.
    pub metric: String,
    /// The stage ends after so many evaluations in a row without improvement; `null`: never.
    pub patience: Option<usize>,
    /// What the metric has to rise by to count as an improvement for `patience`.
    pub min_delta: f64,
}

impl EvalSection {
    /// Ranges, and keys that would do nothing.
    pub(crate) fn validate(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`eval.{key}`: {problem}")));
        if !(0.0..=0.9).contains(&self.fraction) {
            return bad("fraction", "a share in [0, 0.9]");
        }
        if !(self.min_delta >= 0.0 && self.min_delta.is_finite()) {
            return bad("min_delta", "a number of at least 0");
        }
        if self.set.is_some() && self.fraction == 0.0 {
            return bad("set", "`eval.fraction` is 0, so nothing is held out; take it out");
        }
        match self.patience {
            Some(0) => bad("patience", "at least 1"),
            Some(_) if self.fraction == 0.0 => bad("patience", "`eval.fraction` is 0, so nothing is evaluated"),
            Some(_) if self.every == 0 => {
                bad("patience", "`eval.every` is 0, so there is one evaluation at the end alone")
            }
            None if self.min_delta > 0.0 => bad("min_delta", "only `patience` uses it"),
            _ => Ok(()),
        }
    }
}

impl Default for EvalSection {
    fn default() -> Self {
        Self {
            fraction: 0.2,
            set: None,
            every: 0,
            documents: 1000,
            metric: "ndcg@10".to_owned(),
            patience: None,
            min_delta: 0.0,
        }
    }
}

/// `checkpoint`: what a stopped run goes on from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointSection {
    /// Every so many steps; 0: only when the run is stopped.
    pub every: usize,
    /// The newest so many are kept, and the best step's; 0: all of them (`nsparse eval --all-checkpoints`).
    pub keep: usize,
}

impl Default for CheckpointSection {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

/// What the guard does with a finding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", try_from = "GuardWord")]
#[schemars(!try_from)]
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

    fn try_from(word: GuardWord) -> std::result::Result<Self, String> {
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// How many times the loss of the first steps, penalties left out, the last ones' may be.
    pub diverged: f64,
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
            diverged: 3.0,
        }
    }
}

//! What the guard says: the symptom with its figures, the cause, the mend.

use serde::{Deserialize, Serialize};

/// What was seen, or what it comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// Before the first step: logits are many times too large.
    LogitScale,
    /// Before the first step: most of the vocabulary is active in every document.
    DenseStart,
    /// Before the first step: documents have no active dimension.
    ZeroStart,
    /// The penalty overpowers the ranking and stands at its full weight since the first step.
    FullPenaltyAtOnce,
    /// The penalty overpowers the ranking.
    PenaltyTooStrong,
    /// Documents have lost their dimensions, and the penalty is not what drives it.
    Collapse,
    /// Some documents have no active dimension.
    ZeroVectors,
    /// Most of a document's dimensions are active in every document.
    AlwaysOn,
    /// Most tokens that were in use are used by no document any more.
    DeadTokens,
    /// The density is off its target though the loop has had time.
    OffTarget,
    /// The loss without penalties stays far above what the stage began with.
    Diverged,
    /// The loss is far above what it was.
    LossSpike,
    /// The gradient is far above what it was.
    GradientSpike,
}

impl Finding {
    /// Its name in `metrics.jsonl`.
    pub fn name(self) -> String {
        let value = serde_json::to_value(self).ok();
        value.as_ref().and_then(serde_json::Value::as_str).map_or_else(String::new, str::to_owned)
    }

    /// Whether a run that goes on from here is wasted: `action: stop` stops at these only.
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::DeadTokens | Self::OffTarget | Self::LossSpike | Self::GradientSpike)
    }

    /// What to do about it.
    pub fn mend(self) -> &'static str {
        match self {
            Self::LogitScale => "calibrate: `calibration.when: always` scales the logits",
            Self::DenseStart | Self::ZeroStart => {
                "calibrate: `calibration.when: always` sets the density to `calibration.active_dimensions`"
            }
            Self::FullPenaltyAtOnce => {
                "give `train.losses.flops.ramp_steps` (a third of the steps), lower its `weight`, or let a `target` steer it"
            }
            Self::PenaltyTooStrong => "lower `train.losses.flops.weight` (or `l1.weight`), or let a `target` steer it",
            Self::Collapse => {
                "lower the stage's `learning_rate`, give it more `warmup_steps`, or add `train.losses.anti_zero`"
            }
            Self::ZeroVectors => {
                "look for empty documents; else lower the penalty's weight, or spare short vectors with `flops.spare_below`"
            }
            Self::AlwaysOn => {
                "use `train.losses.flops` rather than `l1`, `form: df` against frequent tokens, or calibrate the head"
            }
            Self::DeadTokens => "lower the penalty's weight, or keep `train.losses.lexical` as a small term",
            Self::OffTarget => {
                "train longer, give a smaller `target.response_steps`, or begin nearer by `calibration.active_dimensions`"
            }
            Self::Diverged => {
                "lower the stage's `learning_rate`: the steps are too large; or give it more `warmup_steps`"
            }
            Self::LossSpike | Self::GradientSpike => {
                "lower the stage's `learning_rate`, or clip with `optimizer.max_grad_norm`"
            }
        }
    }
}

/// A finding with its place and figures; one line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warning {
    /// What it is.
    pub finding: Finding,
    /// The stage.
    pub stage: String,
    /// The step within the stage, counted from 1; 0: before the first.
    pub step: usize,
    /// Steps of the run that are done.
    pub total_step: usize,
    /// What was seen, with its figures, and where it comes from.
    pub cause: String,
    /// What to do about it.
    pub mend: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.step {
            0 => write!(f, "before the first step: ")?,
            step => write!(f, "{} step {step}: ", self.stage)?,
        }
        write!(f, "{}. {}", self.cause, self.mend)
    }
}

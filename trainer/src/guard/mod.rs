//! The guard: watches a run's figures and names what goes wrong while it can still be mended. It sees telemetry
//! alone, so it also finds what a recipe does not show, such as a base model with logits that are too large.

mod finding;
mod telemetry;

use std::collections::{BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

pub use finding::{Finding, Warning};
pub use telemetry::{StartReading, Telemetry};

use crate::sections::{GuardAction, GuardSection};

/// Steps whose figures are kept.
const HISTORY: usize = 50;
/// Steps that must have been seen before a step is compared with them.
const ENOUGH: usize = 10;
/// Steps over which tokens are counted.
const TOKEN_WINDOW: usize = 20;
/// A trained encoder's mean active logit, in round figures: what "too large" is said against.
const USUAL_LOGIT: f64 = 1.5;
/// A density is compared with the start's, but with no more than so many dimensions: a dense start shall fall.
const MOST_DIMENSIONS: f64 = 300.0;

/// One step as it is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seen {
    loss: f32,
    /// The loss without the sparsity penalties.
    #[serde(default)]
    task: f32,
    norm: f32,
    active: f32,
    /// Penalties' slopes over all others'.
    ratio: f32,
    documents: u32,
    zero: u32,
}

/// What the guard remembers. Single floats, so that a checkpoint in JSON holds them exactly.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardState {
    stage: String,
    history: VecDeque<Seen>,
    /// Density of the stage's first step.
    start: f32,
    /// The loss without penalties: the first step's, and the most of the first ten.
    start_task: f32,
    early_task: f32,
    /// λ of the stage's first step.
    first_lambda: Option<f32>,
    raised: BTreeSet<Finding>,
    tokens: Vec<u32>,
    token_documents: u32,
    token_steps: u32,
    /// Tokens in use in the stage's first window.
    first_alive: Option<u32>,
}

/// The guard with its thresholds.
#[derive(Debug, Clone, PartialEq)]
pub struct Guard {
    limits: GuardSection,
    state: GuardState,
}

impl Guard {
    /// With thresholds and, in a run that goes on, what was remembered.
    pub fn new(limits: GuardSection, state: GuardState) -> Self {
        Self { limits, state }
    }

    /// What a checkpoint stores.
    pub fn state(&self) -> &GuardState {
        &self.state
    }

    /// Whether a run with these warnings is to end.
    pub fn stops(&self, warnings: &[Warning]) -> bool {
        self.limits.action == GuardAction::Stop && warnings.iter().any(|w| w.finding.is_fatal())
    }

    /// Looks at the start; each finding once.
    pub fn start(&mut self, reading: &StartReading) -> Vec<Warning> {
        let l = &self.limits;
        if l.action == GuardAction::Off {
            return Vec::new();
        }
        let mut found = Vec::new();
        let (active, entries) = (reading.active_dimensions, reading.entries);
        if reading.active_logit > l.max_logit {
            let times = reading.active_logit / USUAL_LOGIT;
            let logit = reading.active_logit;
            found.push((
                Finding::LogitScale,
                format!("The logits are about {times:.0} times too large: those above 0 have a mean of {logit:.1}"),
            ));
        }
        if active > l.max_density * entries as f64 {
            let what = if active > 0.95 * entries as f64 { "Nearly every entry" } else { "Too many entries" };
            found.push((
                Finding::DenseStart,
                format!("{what} of the vocabulary is active: {active:.0} of {entries} in a document"),
            ));
        }
        if reading.zero_vectors as f64 > l.zero_vectors * reading.documents as f64 {
            let (zero, of) = (reading.zero_vectors, reading.documents);
            found.push((
                Finding::ZeroStart,
                format!("{zero} of {of} documents have no active dimension, so nothing can be learned from them"),
            ));
        }
        self.raise(found, "", 0, 0)
    }

    /// Looks at a step; each finding once a stage.
    pub fn step(&mut self, t: &Telemetry<'_>) -> Vec<Warning> {
        if self.limits.action == GuardAction::Off {
            return Vec::new();
        }
        if self.state.stage != t.stage {
            self.state = GuardState { stage: t.stage.to_owned(), ..GuardState::default() };
            self.state.start = t.active_dimensions as f32;
        }
        if self.state.first_lambda.is_none() {
            self.state.first_lambda = t.lambda.map(|l| l as f32);
        }
        let mut found = self.spikes(t);
        let (penalty, others) = t.slopes.unwrap_or_default();
        self.state.history.push_back(Seen {
            loss: t.loss as f32,
            task: (t.loss - t.penalty) as f32,
            norm: t.gradient_norm as f32,
            active: t.active_dimensions as f32,
            ratio: (penalty / others.max(f64::MIN_POSITIVE)).min(1e9) as f32,
            documents: t.documents as u32,
            zero: t.zero_vectors as u32,
        });
        if self.state.history.len() > HISTORY {
            self.state.history.pop_front();
        }
        found.extend(self.divergence(t));
        found.extend(self.density(t));
        found.extend(self.tokens(t));
        self.raise(found, t.stage, t.step, t.total_step)
    }

    /// Loss and gradient against the steps before.
    fn spikes(&self, t: &Telemetry<'_>) -> Vec<(Finding, String)> {
        let mut found = Vec::new();
        let h = &self.state.history;
        if h.len() < ENOUGH {
            return found;
        }
        let (low, middle, high) = spread(h.iter().map(|s| s.loss));
        let (loss, times) = (t.loss, self.limits.spike);
        if loss > times * middle && loss > middle + times * (high - low) {
            found.push((Finding::LossSpike, format!("The loss is {loss:.3}, {middle:.3} was usual before")));
        }
        let (_, middle, high) = spread(h.iter().map(|s| s.norm));
        let (norm, times) = (t.gradient_norm, self.limits.gradient);
        if norm > times * middle && norm > 3.0 * high {
            found.push((Finding::GradientSpike, format!("The gradient's norm is {norm:.3}, {middle:.3} was usual")));
        }
        found
    }

    /// What is learned gets worse and stays so. Compared with the first step, which saw the model as it was; the first ten
    /// tell how much single batches differ.
    fn divergence(&mut self, t: &Telemetry<'_>) -> Option<(Finding, String)> {
        let s = &mut self.state;
        let task = s.history.back()?.task;
        if t.step == 1 {
            s.start_task = task;
        }
        if t.step <= ENOUGH {
            s.early_task = s.early_task.max(task);
        }
        if s.history.len() < 2 * ENOUGH {
            return None;
        }
        let (_, middle, _) = spread(s.history.iter().rev().take(2 * ENOUGH).map(|s| s.task));
        let (from, start) = (s.start_task, f64::from(s.start_task.max(s.early_task / 4.0)));
        (from > 0.0 && middle > self.limits.diverged * start).then(|| {
            (
                Finding::Diverged,
                format!("The loss without penalties has gone from {from:.3} to {middle:.3} and stays there"),
            )
        })
    }

    /// Density and empty vectors, and what drives them.
    fn density(&self, t: &Telemetry<'_>) -> Vec<(Finding, String)> {
        let (s, l) = (&self.state, &self.limits);
        let mut found = Vec::new();
        let last: Vec<&Seen> = s.history.iter().rev().take(5).collect();
        if last.len() < 5 {
            return found;
        }
        let active = last.iter().map(|s| f64::from(s.active)).sum::<f64>() / 5.0;
        let (_, ratio, _) = spread(s.history.iter().map(|s| s.ratio));
        let start = f64::from(s.start).min(MOST_DIMENSIONS);
        let (zero, of) = last.iter().fold((0, 0), |(z, n), s| (z + s.zero, n + s.documents));
        // Under a target the way down to it is wanted.
        let wanted = t.steering.is_some_and(|s| s.measured > 0.8 * s.target);
        let is_empty = f64::from(zero) > l.zero_vectors * f64::from(of.max(1));
        let has_collapsed = active < l.collapse * start;
        let is_pressed = ratio > l.penalty_ratio;
        let is_falling = is_pressed && active < l.falling * start;
        if !wanted && (has_collapsed || is_falling || (is_empty && is_pressed)) {
            let symptom = format!("Documents go down to {active:.1} active dimensions, from {:.0}", s.start);
            let lambda = t.lambda.unwrap_or_default();
            let is_full = s.first_lambda.is_some_and(|first| f64::from(first) > 0.99 * lambda) && t.steering.is_none();
            if is_pressed && is_full {
                found.push((
                    Finding::FullPenaltyAtOnce,
                    format!(
                        "{symptom}: the penalty's weight is at its full value of {lambda} from step 0, and it pulls {ratio:.0} times as hard as the ranking"
                    ),
                ));
            } else if is_pressed {
                found.push((
                    Finding::PenaltyTooStrong,
                    format!("{symptom}: the penalty pulls {ratio:.0} times as hard as the ranking (its weight is {lambda:.2e})"),
                ));
            } else {
                found.push((
                    Finding::Collapse,
                    format!("{symptom}, and no penalty is strong enough to explain it: the steps are too large"),
                ));
            }
        } else if is_empty {
            found.push((Finding::ZeroVectors, format!("{zero} of the last {of} documents have no active dimension")));
        }
        if let Some(s) = t.steering
            && t.step as f64 > l.settled * t.steps as f64
            && (s.measured / s.target).ln().abs() > (1.0 + l.off_target).ln()
        {
            let lambda = t.lambda.unwrap_or_default();
            let (measured, target) = (s.measured, s.target);
            found.push((
                Finding::OffTarget,
                format!("The density is {measured:.1}, the target {target:.1}; the weight has come to {lambda:.2e}"),
            ));
        }
        found
    }

    /// Tokens that are active everywhere, and those that no document uses any more.
    fn tokens(&mut self, t: &Telemetry<'_>) -> Vec<(Finding, String)> {
        let s = &mut self.state;
        s.tokens.resize(t.token_documents.len(), 0);
        for (sum, &count) in s.tokens.iter_mut().zip(t.token_documents) {
            *sum += count;
        }
        s.token_documents += t.documents as u32;
        s.token_steps += 1;
        if (s.token_steps as usize) < TOKEN_WINDOW {
            return Vec::new();
        }
        let mut found = Vec::new();
        let everywhere = s.tokens.iter().filter(|&&c| f64::from(c) > 0.95 * f64::from(s.token_documents)).count();
        let mean = s.tokens.iter().map(|&c| f64::from(c)).sum::<f64>() / f64::from(s.token_documents.max(1));
        if everywhere as f64 > self.limits.always_on * mean && mean > 0.0 {
            found.push((
                Finding::AlwaysOn,
                format!("{everywhere} of a document's {mean:.0} active dimensions are active in nearly every document: vectors are all alike"),
            ));
        }
        let alive = s.tokens.iter().filter(|&&c| c > 0).count();
        let first = *s.first_alive.get_or_insert(alive as u32);
        // After a dense start tokens shall fall out of use.
        let is_dense = f64::from(s.start) > MOST_DIMENSIONS;
        if !is_dense && (alive as f64) < (1.0 - self.limits.dead) * f64::from(first) {
            found.push((Finding::DeadTokens, format!("{alive} tokens are in use, {first} were at the start")));
        }
        s.tokens.fill(0);
        (s.token_documents, s.token_steps) = (0, 0);
        found
    }

    /// Makes warnings of those that were not raised before.
    fn raise(&mut self, found: Vec<(Finding, String)>, stage: &str, step: usize, total_step: usize) -> Vec<Warning> {
        let new = found.into_iter().filter(|(finding, _)| self.state.raised.insert(*finding));
        new.map(|(finding, cause)| Warning {
            finding,
            stage: stage.to_owned(),
            step,
            total_step,
            cause,
            mend: finding.mend().to_owned(),
        })
        .collect()
    }
}

/// 10th percentile, median and 90th percentile of at least one value.
fn spread(values: impl Iterator<Item = f32>) -> (f64, f64, f64) {
    let mut sorted: Vec<f32> = values.collect();
    sorted.sort_by(f32::total_cmp);
    let at = |share: f64| f64::from(sorted[((sorted.len() - 1) as f64 * share).round() as usize]);
    (at(0.1), at(0.5), at(0.9))
}

//! The loop of a stage: schedule, evaluate and checkpoint, gradient, step, log.

use std::time::Instant;

use nsparse_encoder::BertMlm;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::Hooks;
use super::together::{Moments, Order, optimizer, require_same_parameters};
use crate::checkpoint::{Checkpoints, State};
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::evaluate::{Evaluator, is_out_of_patience};
use crate::guard::{Guard, StartReading, Telemetry, Warning};
use crate::held_out;
use crate::metrics_log::{Record, StepRecord};
use crate::model_out::write_model;
use crate::network::Network;
use crate::optimizer::{AdamW, rate_factor};
use crate::query_side::{QuerySide, SavedSide};
use crate::run_log::RunLog;
use crate::sections::GuardAction;
use crate::stage::{Stage, StepOutcome, take_step};
use crate::{Error, Result};

/// A run on its way.
pub(super) struct Run<'a> {
    pub(super) config: &'a TrainConfig,
    pub(super) guard: Guard,
    pub(super) start_is_unread: bool,
    pub(super) stopped_by_guard: bool,
    pub(super) hooks: &'a Hooks<'a>,
    pub(super) network: Network,
    pub(super) data: &'a TrainingData,
    pub(super) query_side: Option<QuerySide>,
    pub(super) model: BertMlm,
    pub(super) evaluator: Option<Evaluator<'a>>,
    pub(super) checkpoints: Checkpoints,
    pub(super) log: RunLog,
    pub(super) state: State,
    pub(super) stage_count: usize,
}

impl Run<'_> {
    /// One stage, from where the state says, on all processes. `false` if it was asked to stop.
    pub(super) fn stage(&mut self, stage: &mut dyn Stage, moments: Option<Moments>) -> Result<bool> {
        let finished = self.steps(stage, moments)?;
        let team = &self.network.team;
        team.tell(if finished { Order::NextStage } else { Order::Stop })?;
        if finished {
            require_same_parameters(team, &self.model.parameters)?;
        }
        Ok(finished)
    }

    /// The loop of one stage. `false` if it was asked to stop.
    fn steps(&mut self, stage: &mut dyn Stage, moments: Option<Moments>) -> Result<bool> {
        let total = stage.steps();
        let rates = stage.learning_rate().clone();
        let (warmup, decay) = stage.schedule();
        let mut optimizer = optimizer(self.config, stage, &self.model.parameters, moments)?;
        stage.recall(std::mem::take(&mut self.state.memory));
        if let Some(side) = self.query_side.as_ref().filter(|_| stage.is_evaluated() && self.state.step == 0) {
            side.begin(&mut self.model.parameters, self.data.query_encoder.idf(), self.config.run.seed)?;
            self.network.team.tell_values(self.model.parameters.data_mut())?;
        }
        if std::mem::take(&mut self.start_is_unread) && self.config.guard.action != GuardAction::Off {
            let warnings = self.read_start()?;
            if self.warn(warnings)? {
                self.state.memory = stage.memory();
                self.checkpoint(&optimizer)?;
                return Ok(false);
            }
        }
        let mut gradient = vec![0.0f32; self.model.parameters.len()];
        let task = self.hooks.progress.start(title(stage.name()), total as u64);
        task.advance(self.state.step as u64);
        let mut checkpointed = self.state.total_steps;

        loop {
            // Evaluate, keep the best, checkpoint.
            self.state.memory = stage.memory();
            let step = self.state.step;
            let improved = match self.evaluate(stage, step) {
                Ok(improved) => improved,
                Err(Error::Core(nsparse_core::Error::Cancelled)) => {
                    self.checkpoint(&optimizer)?;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            };
            let stop = self.hooks.cancel.is_cancelled();
            let ends = step >= total || self.is_out_of_patience(stage.name());
            let every = self.config.checkpoint.every;
            let due =
                every > 0 && checkpointed != self.state.total_steps && (improved || ends || step.is_multiple_of(every));
            if stop || due {
                self.checkpoint(&optimizer)?;
                checkpointed = self.state.total_steps;
            }
            if stop && (!ends || self.state.stage + 1 < self.stage_count) {
                return Ok(false);
            }
            if ends {
                return Ok(true);
            }

            // Schedule.
            let started = Instant::now();
            let factor = rate_factor(step, warmup, total, decay);

            // Gradient, clip and step.
            let (network, parameters) = (&self.network, &mut self.model.parameters);
            let stepped = network
                .team
                .tell(Order::Step)
                .and_then(|_| take_step(stage, network, parameters, &mut optimizer, &mut gradient, step, factor));
            let (outcome, norm) = match stepped {
                Ok(stepped) => stepped,
                Err(e) => {
                    // Another process is gone; what this one holds is the state before the step.
                    if matches!(e, Error::Rank { .. }) {
                        self.checkpoint(&optimizer)?;
                    }
                    return Err(e);
                }
            };
            self.require_finite(stage.name(), &outcome, norm)?;

            // Log.
            self.state.step += 1;
            self.state.total_steps += 1;
            let seconds = started.elapsed().as_secs_f64();
            let cost = self.state.costs.entry(stage.name().to_owned()).or_default();
            cost.seconds += seconds;
            cost.documents += outcome.documents as u64;
            cost.tokens += outcome.tokens as u64;
            let rate = outcome.tokens as f64 / seconds.max(1e-9);
            let at = (self.state.step, total);
            let seen = Telemetry::of(&outcome, norm, stage.name(), at, self.state.total_steps);
            let warnings = self.guard.step(&seen);
            task.advance(1);
            task.message(&format!(
                "loss {:.4}, {:.0} active, {rate:.0} tokens/s",
                outcome.loss,
                outcome.active_dimensions()
            ));
            if self.state.step.is_multiple_of(self.config.run.log_every) || self.state.step == total {
                let record = StepRecord {
                    stage: stage.name().to_owned(),
                    step: self.state.step,
                    total_step: self.state.total_steps,
                    loss: outcome.loss,
                    active_dimensions: outcome.active_dimensions(),
                    parts: outcome.parts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
                    learning_rate: rates.encoder * factor,
                    lambda: outcome.lambda,
                    steering: outcome.steering,
                    zero_vectors: outcome.zero_vectors,
                    masked_candidates: outcome.masked,
                    gradient_norm: norm,
                    tokens: outcome.tokens,
                    tokens_per_second: rate,
                    seconds,
                };
                self.log.write(&Record::Step(record), self.state.total_steps)?;
            }
            if self.warn(warnings)? {
                self.state.memory = stage.memory();
                self.checkpoint(&optimizer)?;
                return Ok(false);
            }
        }
    }

    /// Some documents before the first step, as the guard sees them.
    fn read_start(&mut self) -> Result<Vec<Warning>> {
        let documents = &self.data.documents;
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.run.seed ^ 0x6775_6172_6400_0000);
        let wanted = self.config.guard.documents.min(documents.len());
        let drawn = index::sample(&mut rng, documents.len(), wanted).into_vec();
        let mut logits = Vec::with_capacity(drawn.len() * self.network.vocab);
        for chunk in drawn.chunks(8) {
            logits.extend(self.network.logits(&self.model.parameters, documents, chunk)?);
        }
        Ok(self.guard.start(&StartReading::of(&logits, &self.network.zeroed)))
    }

    /// Says what the guard found and writes it down. Whether the run is to end.
    fn warn(&mut self, warnings: Vec<Warning>) -> Result<bool> {
        for warning in &warnings {
            self.hooks.progress.warn(&warning.to_string());
            self.log.write(&Record::Warning(warning.clone()), self.state.total_steps)?;
        }
        self.stopped_by_guard = self.guard.stops(&warnings);
        self.state.warnings.extend(warnings);
        self.state.guard = self.guard.state().clone();
        Ok(self.stopped_by_guard)
    }

    /// Evaluates where it is due; a new best becomes `model/`. Whether it is one.
    fn evaluate(&mut self, stage: &dyn Stage, step: usize) -> Result<bool> {
        let Some(evaluator) = &self.evaluator else { return Ok(false) };
        let every = self.config.eval.every;
        let due = stage.is_evaluated()
            && (step == 0 || step == stage.steps() || (every > 0 && step.is_multiple_of(every)))
            && self.state.evaluated != Some(self.state.total_steps);
        if !due {
            return Ok(false);
        }
        let (cancel, progress) = (self.hooks.cancel, self.hooks.progress);
        let (network, parameters) = (&self.network, &self.model.parameters);
        let held_out = &self.data.held_out;
        let vectors = |side: &QuerySide| side.vectors(network, parameters, self.data, held_out, cancel);
        let learned = self.query_side.as_ref().map(vectors).transpose()?;
        let (mut record, queries) =
            evaluator.run(network, parameters, learned, (stage.name(), step), cancel, progress)?;
        record.over_target = stage.over_target(&self.network, &self.model.parameters)?;
        let improved = self.state.best.as_ref().is_none_or(|best| record.is_better_than(best));
        self.log.write(&Record::Evaluation(record.clone()), self.state.total_steps)?;
        self.state.evaluated = Some(self.state.total_steps);
        self.state.evaluations.push(record.clone());
        if improved {
            let side = self.saved_side()?;
            write_model(&self.config.run.dir.join("model"), &self.model, self.data, self.config, side.as_ref())?;
            held_out::write(&self.config.run.dir.join("held-out.jsonl"), &queries)?;
            self.state.best = Some(record);
            self.state.best_step = Some(self.state.total_steps);
        }
        Ok(improved)
    }

    /// Whether the evaluations say that a stage is to end before its last step: a function of what a checkpoint holds.
    pub(super) fn is_out_of_patience(&self, stage: &str) -> bool {
        let eval = &self.config.eval;
        let of_stage = self.state.evaluations.iter().filter(|e| e.stage == stage);
        eval.patience.is_some_and(|patience| is_out_of_patience(of_stage, patience, eval.min_delta))
    }

    fn checkpoint(&self, optimizer: &AdamW) -> Result<()> {
        self.log.sync()?;
        self.checkpoints.save(&self.state, &self.model.parameters, optimizer, self.state.best_step)
    }

    /// What a saved model's query side is now, where it is learned.
    pub(super) fn saved_side(&self) -> Result<Option<SavedSide>> {
        let saved = |side: &QuerySide| side.saved(&self.model.parameters, &self.data.query_encoder);
        self.query_side.as_ref().map(saved).transpose()
    }

    fn require_finite(&self, stage: &'static str, outcome: &StepOutcome, norm: f64) -> Result<()> {
        let what = if !outcome.loss.is_finite() {
            match outcome.parts.iter().find(|(_, v)| !v.is_finite()) {
                Some((part, _)) => format!("The loss (its term `{part}`)"),
                None => "The loss".to_owned(),
            }
        } else if norm.is_finite() {
            return Ok(());
        } else {
            "The gradient".to_owned()
        };
        let step = self.state.step + 1;
        let kept = self.checkpoints.steps().last().map_or_else(
            || "no checkpoint was written yet".to_owned(),
            |&s| format!("the checkpoint `{}` is kept", self.checkpoints.path(s).display()),
        );
        let section = if stage == "warm_start" { "warm_start" } else { "train" };
        let cause = if step <= 2 {
            "so early the base model's own weights are the likely cause (its logits are too large or not numbers)"
                .to_owned()
        } else {
            format!("the likely cause is a learning rate that is too high: lower `{section}.learning_rate`")
        };
        Err(Error::NonFinite { what, stage, step, hint: format!("{cause}; {kept}") })
    }
}

fn title(stage: &str) -> &'static str {
    if stage == "warm_start" { "Warm start" } else { "Training" }
}

//! The run: everything is read, the head calibrated, then one loop for each stage.

use std::path::{Path, PathBuf};
use std::time::Instant;

use nsparse_core::{Cancel, Progress, TextTokenizer, files};
use nsparse_encoder::{BertConfig, BertMlm, Device};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::calibrate::{CalibrationReport, prepare_head};
use crate::checkpoint::{Checkpoints, State};
use crate::config::TrainConfig;
use crate::contrastive::Contrastive;
use crate::data::TrainingData;
use crate::evaluate::{EvaluationRecord, Evaluator};
use crate::guard::{Guard, StartReading, Telemetry, Warning};
use crate::metrics_log::{MetricsLog, Record, StepRecord};
use crate::model_out::write_model;
use crate::network::Network;
use crate::optimizer::{AdamW, rate_factor};
use crate::sections::{GuardAction, When};
use crate::stage::{Stage, StageMemory, StepOutcome, take_step};
use crate::warm_start::{LexicalTargets, WarmStart};
use crate::{Error, Result};

/// How a run is watched and stopped.
pub struct Hooks<'a> {
    /// Read between steps and inside long preparations. A run that is asked to stop writes a checkpoint first.
    pub cancel: &'a Cancel,
    /// Bars and messages.
    pub progress: &'a dyn Progress,
}

/// What to do with a run folder that holds a run already.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// Refuse it.
    #[default]
    New,
    /// Remove what the earlier run left and begin anew.
    Replace,
    /// Go on from its newest checkpoint; begin if there is none.
    Continue,
}

/// One stage as it came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageSummary {
    /// Its name.
    pub name: String,
    /// Steps of the recipe.
    pub steps: usize,
    /// Seconds, without evaluations and checkpoints, over all sittings.
    pub seconds: f64,
    /// Documents encoded.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Tokens a second.
    pub tokens_per_second: f64,
}

/// What a run gave; `summary.json` holds the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Whether all stages are done. If not, the run was asked to stop and can go on ([`Start::Continue`]).
    pub finished: bool,
    /// The run's folder.
    pub run_dir: PathBuf,
    /// The model directory: the best step by evaluation, else the last. `None` in a run stopped before one.
    pub model_dir: Option<PathBuf>,
    /// The model after the warm start, where contrastive training follows it.
    pub warm_start_dir: Option<PathBuf>,
    /// Parameters of the model.
    pub parameters: usize,
    /// What the calibration did.
    pub calibration: Option<CalibrationReport>,
    /// The stages with their costs.
    pub stages: Vec<StageSummary>,
    /// Steps done, over all stages.
    pub steps: usize,
    /// The evaluation that decided which model is kept.
    pub best: Option<EvaluationRecord>,
    /// What the guard found.
    #[serde(default)]
    pub warnings: Vec<Warning>,
    /// Whether the run ended early because of it.
    #[serde(default)]
    pub stopped_by_guard: bool,
    /// All evaluations.
    pub evaluations: Vec<EvaluationRecord>,
    /// The same metric, queries and documents with BM25's tf part as document weight, the warm start's target:
    /// what the evaluations are to be compared with.
    pub lexical_reference: Option<f64>,
    /// Seconds of this sitting before the first step: reading, tokenizing, idf, calibration.
    pub preparing_seconds: f64,
    /// Seconds of all evaluations.
    pub evaluation_seconds: f64,
}

/// Runs a recipe: calibration, warm start, contrastive stage. Writes `config.yaml`, `metrics.jsonl`,
/// `checkpoints/`, `warm-start/`, `model/` and `summary.json` into the run's folder.
///
/// A run that is asked to stop, or that the guard stops (`guard.action: stop`), ends cleanly with a checkpoint and
/// `finished: false`.
///
/// # Errors
/// If the recipe and its data do not fit, a file cannot be read or written, the folder holds a run
/// ([`Start::New`]), a checkpoint is of another recipe, or the loss is not finite.
pub fn train(config: &TrainConfig, start: Start, hooks: &Hooks<'_>) -> Result<Summary> {
    config.validate()?;
    let started = Instant::now();
    let dir = &config.run.dir;
    prepare_folder(dir, start)?;
    let (mut model, tokenizer) = load_model(config)?;
    let data = TrainingData::load(config, &tokenizer, hooks.cancel, hooks.progress)?;
    let network = build_network(config, &model, &tokenizer)?;
    let zeroed = network.zeroed.clone();
    let mut stages = stages(config, &data, &zeroed)?;
    let evaluator = if config.has_contrastive() { Evaluator::new(&config.eval, &data, config.run.seed)? } else { None };

    let checkpoints = Checkpoints::new(dir.join("checkpoints"), config, &data.fingerprint)?;
    let restored = if start == Start::Continue { checkpoints.newest(&model.parameters)? } else { None };
    let mut moments = None;
    let mut state = State::default();
    if let Some(restored) = restored {
        (state, model.parameters, moments) = (restored.state, restored.parameters, Some(restored.moments));
        if !dir.join("model").is_dir() {
            state.best = None;
        }
    }
    // Only now: a run that cannot go on must not touch what lies there.
    config.save(&dir.join("config.yaml"))?;
    let mut log = MetricsLog::open(&dir.join("metrics.jsonl"), state.total_steps, state.evaluations.len())?;
    if moments.is_none() && needs_calibration(config, &model) {
        let report = prepare_head(&network, &mut model, &data.documents, config, hooks.cancel, hooks.progress)?;
        log.write(&Record::Calibration(report.clone()))?;
        state.calibration = Some(report);
    }
    let preparing_seconds = started.elapsed().as_secs_f64();

    let guard = Guard::new(config.guard.clone(), state.guard.clone());
    let mut run = Run {
        config,
        guard,
        start_is_unread: moments.is_none(),
        stopped_by_guard: false,
        hooks,
        network,
        data: &data,
        model,
        evaluator,
        checkpoints,
        log,
        state,
        stage_count: stages.len(),
    };
    let mut finished = true;
    while run.state.stage < stages.len() {
        let index = run.state.stage;
        if !run.stage(stages[index].as_mut(), moments.take())? {
            finished = false;
            break;
        }
        if stages[index].name() == "warm_start" && index + 1 < stages.len() {
            write_model(&dir.join("warm-start"), &run.model, &data, config)?;
        }
        run.state.stage += 1;
        run.state.step = 0;
        run.state.memory = StageMemory::default();
    }
    if finished && run.state.best.is_none() {
        write_model(&dir.join("model"), &run.model, &data, config)?;
    }
    let plan: Vec<(&'static str, usize)> = stages.iter().map(|s| (s.name(), s.steps())).collect();
    let summary = run.summary(&plan, finished, preparing_seconds)?;
    files::write_json(&dir.join("summary.json"), &summary)?;
    Ok(summary)
}

struct Run<'a> {
    config: &'a TrainConfig,
    guard: Guard,
    start_is_unread: bool,
    stopped_by_guard: bool,
    hooks: &'a Hooks<'a>,
    network: Network,
    data: &'a TrainingData,
    model: BertMlm,
    evaluator: Option<Evaluator<'a>>,
    checkpoints: Checkpoints,
    log: MetricsLog,
    state: State,
    stage_count: usize,
}

impl Run<'_> {
    /// The loop of one stage, from where the state says. `false` if it was asked to stop.
    fn stage(&mut self, stage: &mut dyn Stage, moments: Option<(Vec<f32>, Vec<f32>, u64)>) -> Result<bool> {
        let total = stage.steps();
        let rates = stage.learning_rate().clone();
        let (warmup, decay) = stage.schedule();
        let mut optimizer = AdamW::new(self.model.parameters.specs(), &self.config.optimizer, |spec| {
            if spec.name.starts_with("cls.") { rates.head } else { rates.encoder }
        });
        if let Some((first, second, steps)) = moments {
            optimizer.restore(first, second, steps).ok_or_else(|| Error::config("the moments do not fit the model"))?;
        }
        stage.recall(std::mem::take(&mut self.state.memory));
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
            let every = self.config.checkpoint.every;
            let due = every > 0
                && checkpointed != self.state.total_steps
                && (improved || step == total || step.is_multiple_of(every));
            if stop || due {
                self.checkpoint(&optimizer)?;
                checkpointed = self.state.total_steps;
            }
            if stop && (step < total || self.state.stage + 1 < self.stage_count) {
                return Ok(false);
            }
            if step >= total {
                return Ok(true);
            }

            // Schedule.
            let started = Instant::now();
            let factor = rate_factor(step, warmup, total, decay);

            // Gradient, clip and step.
            let (network, parameters) = (&self.network, &mut self.model.parameters);
            let (outcome, norm) = take_step(stage, network, parameters, &mut optimizer, &mut gradient, step, factor)?;
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
                self.log.write(&Record::Step(StepRecord {
                    stage: stage.name(),
                    step: self.state.step,
                    total_step: self.state.total_steps,
                    loss: outcome.loss,
                    active_dimensions: outcome.active_dimensions(),
                    parts: outcome.parts,
                    learning_rate: rates.encoder * factor,
                    lambda: outcome.lambda,
                    steering: outcome.steering,
                    zero_vectors: outcome.zero_vectors,
                    masked_candidates: outcome.masked,
                    gradient_norm: norm,
                    tokens: outcome.tokens,
                    tokens_per_second: rate,
                    seconds,
                }))?;
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
            self.log.write(&Record::Warning(warning.clone()))?;
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
        let record = evaluator.run(&self.network, &self.model.parameters, stage.name(), step, cancel, progress)?;
        let improved = self.state.best.as_ref().is_none_or(|best| record.value > best.value);
        self.log.write(&Record::Evaluation(record.clone()))?;
        self.state.evaluated = Some(self.state.total_steps);
        self.state.evaluations.push(record.clone());
        if improved {
            write_model(&self.config.run.dir.join("model"), &self.model, self.data, self.config)?;
            self.state.best = Some(record);
            self.state.best_step = Some(self.state.total_steps);
        }
        Ok(improved)
    }

    fn checkpoint(&self, optimizer: &AdamW) -> Result<()> {
        self.checkpoints.save(&self.state, &self.model.parameters, optimizer, self.state.best_step)
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

    fn summary(&self, plan: &[(&'static str, usize)], finished: bool, preparing_seconds: f64) -> Result<Summary> {
        let targets = LexicalTargets::new(&self.data.documents, &self.config.warm_start, &self.network.zeroed);
        let lexical_reference = self.evaluator.as_ref().map(|e| e.lexical_reference(&targets)).transpose()?;
        let existing = |name: &str| Some(self.config.run.dir.join(name)).filter(|p| p.is_dir());
        Ok(Summary {
            finished,
            run_dir: self.config.run.dir.clone(),
            model_dir: existing("model"),
            warm_start_dir: existing("warm-start"),
            parameters: self.model.parameters.len(),
            calibration: self.state.calibration.clone(),
            stages: plan
                .iter()
                .map(|&(name, steps)| {
                    let cost = self.state.costs.get(name).copied().unwrap_or_default();
                    StageSummary {
                        name: name.to_owned(),
                        steps,
                        seconds: cost.seconds,
                        documents: cost.documents,
                        tokens: cost.tokens,
                        tokens_per_second: cost.tokens as f64 / cost.seconds.max(1e-9),
                    }
                })
                .collect(),
            steps: self.state.total_steps,
            best: self.state.best.clone(),
            warnings: self.state.warnings.clone(),
            stopped_by_guard: self.stopped_by_guard,
            evaluations: self.state.evaluations.clone(),
            lexical_reference,
            preparing_seconds,
            evaluation_seconds: self.state.evaluations.iter().map(|e| e.seconds).sum(),
        })
    }
}

/// Model and tokenizer that a recipe names.
pub(crate) fn load_model(config: &TrainConfig) -> Result<(BertMlm, TextTokenizer)> {
    let m = &config.model;
    let tokenizer_path = match (&m.tokenizer, &m.path) {
        (Some(file), _) => file.clone(),
        (None, Some(folder)) => folder.join("tokenizer.json"),
        (None, None) => return Err(Error::config("`model`: give `path` or `random`")),
    };
    let tokenizer = TextTokenizer::load(&tokenizer_path)?;
    let model = match (&m.path, &m.random) {
        (Some(folder), _) => BertMlm::load(folder, config.run.seed)?,
        (None, Some(shape)) => {
            let shape = serde_json::json!({
                "model_type": "bert",
                "vocab_size": tokenizer.vocabulary().len(),
                "hidden_size": shape.hidden_size,
                "num_hidden_layers": shape.num_hidden_layers,
                "num_attention_heads": shape.num_attention_heads,
                "intermediate_size": shape.intermediate_size,
                "hidden_act": "gelu",
                "max_position_embeddings": shape.max_position_embeddings,
                "type_vocab_size": 2,
                "layer_norm_eps": 1e-12,
                "initializer_range": shape.initializer_range,
                "pad_token_id": tokenizer.special().pad,
            });
            let shape: BertConfig =
                serde_json::from_value(shape).map_err(|e| Error::config(format!("`model.random`: {e}")))?;
            shape.validate().map_err(|e| Error::config(format!("`model.random`: {e}")))?;
            BertMlm::random(shape, config.run.seed)
        }
        (None, None) => return Err(Error::config("`model`: give `path` or `random`")),
    };
    let (named, entries) = (tokenizer.vocabulary().len(), model.config.vocab_size);
    if named > entries {
        return Err(Error::config_with_hint(
            format!("`{}` has {named} tokens, the model only {entries} embeddings", tokenizer_path.display()),
            "tokenizer.json and model.safetensors must come from the same model",
        ));
    }
    let most = model.config.max_position_embeddings;
    if config.data.max_tokens > most {
        return Err(Error::config(format!(
            "`data.max_tokens` is {}, but the model has only {most} positions",
            config.data.max_tokens
        )));
    }
    Ok((model, tokenizer))
}

pub(crate) fn build_network(config: &TrainConfig, model: &BertMlm, tokenizer: &TextTokenizer) -> Result<Network> {
    let device: Device = config.run.device.parse()?;
    let precision = config.run.precision.unwrap_or(device.default_precision());
    let backend = nsparse_encoder::create_with(&model.config, device, precision)?;
    let (vocab, named) = (model.config.vocab_size, tokenizer.vocabulary().len());
    Ok(Network::with_backend(backend, vocab, config.model.activation, &tokenizer.weightless(), named))
}

/// The stages that have steps, in their order.
pub(crate) fn stages<'a>(
    config: &'a TrainConfig,
    data: &'a TrainingData,
    zeroed: &'a [bool],
) -> Result<Vec<Box<dyn Stage + 'a>>> {
    let mut stages: Vec<Box<dyn Stage + 'a>> = Vec::new();
    if config.warm_start.steps > 0 {
        stages.push(Box::new(WarmStart::new(&config.warm_start, &data.documents, zeroed, config.run.seed)));
    }
    if config.has_contrastive() {
        stages.push(Box::new(Contrastive::new(config, data, zeroed)?));
    }
    Ok(stages)
}

pub(crate) fn needs_calibration(config: &TrainConfig, model: &BertMlm) -> bool {
    match config.calibration.when {
        When::Auto => model.head_is_new || config.model.random.is_some(),
        When::Always => true,
        When::Never => false,
    }
}

fn title(stage: &str) -> &'static str {
    if stage == "warm_start" { "Warm start" } else { "Training" }
}

/// What a run writes into its folder.
const OUTPUTS: [&str; 6] = ["config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "model", "warm-start"];

fn prepare_folder(dir: &Path, start: Start) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| nsparse_core::Error::io("create", dir, e))?;
    let there: Vec<PathBuf> = OUTPUTS.iter().map(|name| dir.join(name)).filter(|p| p.exists()).collect();
    match start {
        Start::Continue => Ok(()),
        Start::New => match there.first() {
            None => Ok(()),
            Some(found) => Err(Error::config_with_hint(
                format!("`{}` holds a run already: `{}` is there", dir.display(), found.display()),
                "go on with it (--resume), replace it (--replace), or choose another folder: --set run.dir=FOLDER",
            )),
        },
        Start::Replace => {
            for path in there {
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.map_err(|e| nsparse_core::Error::io("remove", &path, e))?;
            }
            Ok(())
        }
    }
}

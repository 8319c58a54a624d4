//! The run: texts are read, the masked-language stage is run, zero is set, then pairs are trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nsparse_core::model_dir::ModelFacts;
use nsparse_core::{Cancel, TextTokenizer, files};
use nsparse_encoder::{BertMlm, Device};
use serde::{Deserialize, Serialize};

use super::config::PretrainConfig;
use super::level::{BIAS, LevelReport, set_level};
use super::mlm::{Mlm, MlmEvaluation, MlmOutcome, UnigramReference};
use super::pairs::Pairs;
use super::sections::MlmSection;
use super::texts::TextData;
use crate::checkpoint::{Checkpoints, State};
use crate::data::TrainingData;
use crate::evaluate::{EvaluationRecord, Evaluator};
use crate::folders::{remove_folder, replace_folder, restore_folders};
use crate::metrics_log::{MetricsLog, Record};
use crate::network::Network;
use crate::optimizer::{AdamW, rate_factor};
use crate::run::{Hooks, StageSummary, Start, Summary, load_model, train};
use crate::sections::{EvalSection, ModelSection};
use crate::stage::StageMemory;
use crate::warm_start::LexicalTargets;
use crate::{Error, Result};

/// What a run writes into its folder.
const OUTPUTS: [&str; 11] = [
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "checkpoints",
    "mlm",
    "pairs",
    "pairs.jsonl",
    "pairs-held-out.jsonl",
    "idf.json",
    "idf.meta.json",
    "model",
];

/// What a run gave; `summary.json` holds the same.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PretrainSummary {
    /// Whether all stages are done. If not, the run was asked to stop and can go on ([`Start::Continue`]).
    pub finished: bool,
    /// The run's folder.
    pub run_dir: PathBuf,
    /// The model directory. `None` in a run that was stopped.
    pub model_dir: Option<PathBuf>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Documents read.
    pub documents: usize,
    /// Windows that are trained on.
    pub windows: usize,
    /// Windows of held-out documents.
    pub held_out_windows: usize,
    /// The masked-language stage.
    pub mlm: Option<MlmSummary>,
    /// The pair stage.
    pub pairs: Option<PairsSummary>,
    /// Seconds of this sitting before the first step.
    pub preparing_seconds: f64,
}

/// The masked-language stage as it came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MlmSummary {
    /// Steps, time and tokens.
    pub stage: StageSummary,
    /// Steps that are done.
    pub done: usize,
    /// Evaluations on held-out windows.
    pub evaluations: Vec<MlmEvaluation>,
    /// What the evaluations are to be compared with.
    pub unigram: Option<UnigramReference>,
    /// Where zero was set, where it was.
    pub level: Option<LevelReport>,
}

/// The pair stage as it came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairsSummary {
    /// Pairs of each kind.
    pub counts: BTreeMap<String, usize>,
    /// Pairs trained on.
    pub training: usize,
    /// Held-out pairs: each query among the documents of all of them, before the stage where `mlm` came first, and
    /// after it.
    pub evaluations: Vec<EvaluationRecord>,
    /// The same metric with BM25's tf part as document weight.
    pub lexical_reference: Option<f64>,
    /// The training run over the pairs, in the folder `pairs`.
    pub run: Summary,
}

/// Runs a recipe. Writes `config.yaml`, `metrics.jsonl`, `checkpoints/`, `mlm/` and `pairs/` (where both stages run),
/// `model/` and `summary.json` into the run's folder.
///
/// A run that is asked to stop ends cleanly with a checkpoint and `finished: false`.
///
/// # Errors
/// If the recipe and its data do not fit, a file cannot be read or written, the folder holds a run
/// ([`Start::New`]), a checkpoint is of another recipe, or a loss is not finite.
pub fn pretrain(config: &PretrainConfig, start: Start, hooks: &Hooks<'_>) -> Result<PretrainSummary> {
    config.validate()?;
    let started = Instant::now();
    let dir = &config.run.dir;
    prepare_folder(dir, start)?;
    let (model, tokenizer) = load(config)?;
    let data = TextData::load(config, &tokenizer, hooks.cancel, hooks.progress)?;
    let network = network(config, &model, &tokenizer)?;
    let pairs = config
        .pairs
        .as_ref()
        .map(|section| Pairs::make(section, &data, config.data.held_out, config.run.seed))
        .transpose()?;
    let parameters = model.parameters.len();
    let mut run = Run { config, hooks, data: &data, network: &network, log: None };
    let preparing_seconds = started.elapsed().as_secs_f64();
    let mut summary = PretrainSummary {
        finished: true,
        run_dir: dir.clone(),
        model_dir: None,
        parameters,
        documents: data.documents.len(),
        windows: data.training.len(),
        held_out_windows: data.held_out.len(),
        mlm: None,
        pairs: None,
        preparing_seconds,
    };
    if let Some(section) = &config.mlm {
        let (done, finished) = run.mlm(section, model, start)?;
        summary.finished = finished;
        summary.mlm = Some(done);
    } else {
        config.save(&dir.join("config.yaml"))?;
        run.log = Some(MetricsLog::open(&dir.join("metrics.jsonl"), 0, 0)?);
    }
    if let (Some(pairs), true) = (&pairs, summary.finished) {
        match run.pairs(pairs) {
            Ok(done) => {
                summary.finished = done.run.finished;
                summary.pairs = Some(done);
            }
            // Asked to stop before its first step: what came before is kept.
            Err(Error::Core(nsparse_core::Error::Cancelled)) => summary.finished = false,
            Err(e) => return Err(e),
        }
    }
    summary.model_dir = Some(dir.join("model")).filter(|folder| summary.finished && folder.is_dir());
    files::write_json(&dir.join("summary.json"), &summary)?;
    Ok(summary)
}

struct Run<'a> {
    config: &'a PretrainConfig,
    hooks: &'a Hooks<'a>,
    data: &'a TextData,
    network: &'a Network,
    log: Option<MetricsLog>,
}

impl Run<'_> {
    fn folder(&self, name: &str) -> PathBuf {
        self.config.run.dir.join(name)
    }

    /// The masked-language stage: the loop, then the model with zero set. Whether it came to its end.
    fn mlm(&mut self, section: &MlmSection, mut model: BertMlm, start: Start) -> Result<(MlmSummary, bool)> {
        let config = self.config;
        let mut stage = Mlm::new(section, self.data, config.run.seed)?;
        let checkpoints = Checkpoints::of_keys(
            self.folder("checkpoints"),
            config.checkpoint.keep,
            config.flat()?,
            &self.data.fingerprint,
        );
        let restored = if start == Start::Continue { checkpoints.newest(&model.parameters)? } else { None };
        let rates = &section.learning_rate;
        let mut optimizer = AdamW::new(model.parameters.specs(), &config.optimizer, |spec| {
            if spec.name.starts_with("cls.") { rates.head } else { rates.encoder }
        });
        let mut state = State::default();
        if let Some(restored) = restored {
            (state, model.parameters) = (restored.state, restored.parameters);
            if state.step == 0 {
                // The log of a run without a step begins anew, and what it said is said again.
                (state.evaluated, state.memory) = (None, StageMemory::default());
            }
            let (first, second, steps) = restored.moments;
            optimizer.restore(first, second, steps).ok_or_else(|| Error::config("the moments do not fit the model"))?;
        } else if model.head_is_new || config.model.random.is_some() {
            // A head that knows how frequent tokens are spares the steps in which it would learn that.
            let bias = stage.frequency_bias(self.network.vocab);
            model.parameters.get_mut(BIAS)?.copy_from_slice(&bias);
        }
        model.head_is_new = false;
        // Only now: a run that cannot go on must not touch what lies there.
        config.save(&self.folder("config.yaml"))?;
        let log = MetricsLog::open(&self.folder("metrics.jsonl"), state.total_steps, state.memory.masked.len())?;
        let mut steps = Steps { run: self, section, log, checkpoints, state, optimizer };
        let finished = steps.walk(&mut stage, &mut model)?;
        let Steps { log, state, .. } = steps;
        self.log = Some(log);

        let mut level = None;
        if finished {
            if let Some(section) = &section.level {
                // Short work that ends the stage: it is not stopped half way.
                let (never, progress) = (Cancel::default(), self.hooks.progress);
                let (seed, parameters) = (config.run.seed, &mut model.parameters);
                level = Some(set_level(self.network, parameters, self.data, section, seed, &never, progress)?);
            }
            self.write(if config.pairs.is_some() { "mlm" } else { "model" }, &model)?;
        }
        let cost = state.costs.get("mlm").copied().unwrap_or_default();
        let summary = MlmSummary {
            stage: StageSummary {
                name: "mlm".to_owned(),
                steps: stage.steps(),
                seconds: cost.seconds,
                documents: cost.documents,
                tokens: cost.tokens,
                tokens_per_second: cost.tokens as f64 / cost.seconds.max(1e-9),
            },
            done: state.step,
            evaluations: state.memory.masked,
            unigram: stage.unigram(self.network.vocab),
            level,
        };
        Ok((summary, finished))
    }

    /// A model directory in the run's folder.
    fn write(&self, name: &str, model: &BertMlm) -> Result<()> {
        let (config, data) = (self.config, self.data);
        let tokenizer = data.query_encoder.tokenizer();
        replace_folder(&self.folder(name), |new| {
            model.save(new)?;
            files::write_bytes(&new.join("tokenizer.json"), tokenizer.to_json(config.data.max_tokens)?.as_bytes())?;
            let mut vocabulary = tokenizer.vocabulary().join("\n");
            vocabulary.push('\n');
            files::write_bytes(&new.join("vocab.txt"), vocabulary.as_bytes())?;
            data.query_encoder.idf().save(&new.join("idf.json"), tokenizer)?;
            if let Some(metadata) = self.idf_metadata()? {
                files::write_json(&new.join("idf.meta.json"), &metadata)?;
            }
            let template = config.data.template.clone();
            let mut facts = ModelFacts::new(config.model.activation, config.data.max_tokens, template);
            facts.weights_sha256 = Some(files::sha256_file(&new.join("model.safetensors"))?.0);
            facts.recipe = serde_json::to_value(config).ok();
            files::write_json(&new.join("nsparse.json"), &facts)?;
            Ok(())
        })
    }

    /// Where the idf comes from: counted here, or what lies beside the file.
    fn idf_metadata(&self) -> Result<Option<serde_json::Value>> {
        let beside = self.config.data.idf.file.as_ref().map(|file| file.with_file_name("idf.meta.json"));
        Ok(match (&self.data.idf_metadata, beside) {
            (Some(metadata), _) => serde_json::to_value(metadata).ok(),
            (None, Some(beside)) if beside.is_file() => Some(files::read_json(&beside)?),
            _ => None,
        })
    }

    /// The pair stage: a training run of its own over the rows, and held-out pairs before and after it.
    fn pairs(&mut self, pairs: &Pairs) -> Result<PairsSummary> {
        let config = self.config;
        let idf = self.folder("idf.json");
        self.data.query_encoder.idf().save(&idf, self.data.query_encoder.tokenizer())?;
        if let Some(metadata) = self.idf_metadata()? {
            files::write_json(&self.folder("idf.meta.json"), &metadata)?;
        }
        let rows = self.folder("pairs.jsonl");
        nsparse_core::rows::write(&rows, &pairs.training)?;
        let base = if config.mlm.is_some() {
            ModelSection { path: Some(self.folder("mlm")), random: None, tokenizer: None, ..config.model.clone() }
        } else {
            config.model.clone()
        };
        let recipe = config.training(&base, rows, Some(idf.clone()));
        let judge = Judge::new(self, pairs, &idf)?;
        let mut evaluations = Vec::new();
        if let (Some(judge), true) = (&judge, config.mlm.is_some()) {
            let model = BertMlm::load(&self.folder("mlm"), config.run.seed)?;
            evaluations.push(judge.run(self, &model, 0)?);
        }
        let run = train(&recipe, Start::Continue, self.hooks)?;
        if run.finished {
            let folder = run.model_dir.clone().ok_or_else(|| Error::config("the pair stage left no model"))?;
            let model = BertMlm::load(&folder, config.run.seed)?;
            if let Some(judge) = &judge {
                evaluations.push(judge.run(self, &model, run.steps)?);
            }
            self.write("model", &model)?;
        }
        if let Some(log) = &mut self.log {
            for evaluation in &evaluations {
                log.write(&Record::Evaluation(evaluation.clone()))?;
            }
        }
        Ok(PairsSummary {
            counts: pairs.counts.iter().map(|(kind, n)| ((*kind).to_owned(), *n)).collect(),
            training: pairs.training.len(),
            evaluations,
            lexical_reference: judge.as_ref().map(Judge::lexical_reference).transpose()?,
            run,
        })
    }
}

/// The loop of the masked-language stage.
struct Steps<'r, 'a> {
    run: &'r Run<'a>,
    section: &'a MlmSection,
    log: MetricsLog,
    checkpoints: Checkpoints,
    state: State,
    optimizer: AdamW,
}

/// A line of `metrics.jsonl`.
#[derive(Serialize)]
struct StepLine {
    kind: &'static str,
    stage: &'static str,
    step: usize,
    total_step: usize,
    loss: f64,
    parts: BTreeMap<&'static str, f64>,
    masked_positions: usize,
    learning_rate: f64,
    gradient_norm: f64,
    tokens: usize,
    tokens_per_second: f64,
    seconds: f64,
}

/// An evaluation's line.
#[derive(Serialize)]
struct EvaluationLine<'a> {
    kind: &'static str,
    #[serde(flatten)]
    evaluation: &'a MlmEvaluation,
}

impl Steps<'_, '_> {
    /// From where the state says to the end. `false` if the run was asked to stop.
    fn walk(&mut self, stage: &mut Mlm<'_>, model: &mut BertMlm) -> Result<bool> {
        let (section, hooks) = (self.section, self.run.hooks);
        let total = stage.steps();
        let backend = self.run.network.backend();
        let mut gradient = vec![0.0f32; model.parameters.len()];
        let task = hooks.progress.start("Masked-language modelling", total as u64);
        task.advance(self.state.step as u64);
        let mut checkpointed = (self.state.step > 0).then_some(self.state.step);
        loop {
            // Evaluate, checkpoint.
            let step = self.state.step;
            match self.evaluate(stage, model, step) {
                Ok(()) => {}
                Err(Error::Core(nsparse_core::Error::Cancelled)) => {
                    self.checkpoint(model)?;
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
            let stop = hooks.cancel.is_cancelled() && step < total;
            let every = self.run.config.checkpoint.every;
            // What comes after the stage goes on from its end.
            let is_end = step == total && (every > 0 || self.run.config.pairs.is_some());
            let due = is_end || (every > 0 && step > 0 && step.is_multiple_of(every));
            if stop || (due && checkpointed != Some(step)) {
                self.checkpoint(model)?;
                checkpointed = Some(step);
            }
            if stop {
                return Ok(false);
            }
            if step >= total {
                return Ok(true);
            }

            // Schedule.
            let started = Instant::now();
            let factor = rate_factor(step, section.warmup_steps, total, section.decay);

            // Gradient, clip and step.
            gradient.fill(0.0);
            let outcome = stage.accumulate(backend, &model.parameters, step, &mut gradient)?;
            let norm = if outcome.loss.is_finite() {
                self.optimizer.step(model.parameters.data_mut(), &gradient, factor)
            } else {
                f64::NAN
            };
            self.require_finite(&outcome, norm)?;

            // Log.
            self.state.step += 1;
            self.state.total_steps += 1;
            let seconds = started.elapsed().as_secs_f64();
            let cost = self.state.costs.entry("mlm".to_owned()).or_default();
            cost.seconds += seconds;
            cost.documents += outcome.windows as u64;
            cost.tokens += outcome.tokens as u64;
            let rate = outcome.tokens as f64 / seconds.max(1e-9);
            task.advance(1);
            task.message(&format!(
                "loss {:.4}, {:.1} % told, {rate:.0} tokens/s",
                outcome.loss,
                outcome.accuracy * 100.0
            ));
            if self.state.step.is_multiple_of(self.run.config.run.log_every) || self.state.step == total {
                self.log.write_object(&StepLine {
                    kind: "step",
                    stage: "mlm",
                    step: self.state.step,
                    total_step: self.state.total_steps,
                    loss: outcome.loss,
                    parts: [("cross_entropy", outcome.loss), ("masked_accuracy", outcome.accuracy)].into(),
                    masked_positions: outcome.positions,
                    learning_rate: section.learning_rate.encoder * factor,
                    gradient_norm: norm,
                    tokens: outcome.tokens,
                    tokens_per_second: rate,
                    seconds,
                })?;
            }
        }
    }

    /// Tells held-out windows where it is due.
    fn evaluate(&mut self, stage: &Mlm<'_>, model: &BertMlm, step: usize) -> Result<()> {
        let every = self.section.evaluate_every;
        let due = !stage.judged().is_empty()
            && (step == 0 || step == stage.steps() || (every > 0 && step.is_multiple_of(every)))
            && self.state.evaluated != Some(step);
        if !due {
            return Ok(());
        }
        let Hooks { cancel, progress } = *self.run.hooks;
        let backend = self.run.network.backend();
        let evaluation = stage.evaluate(backend, &model.parameters, step, cancel, progress)?;
        self.log.write_object(&EvaluationLine { kind: "evaluation", evaluation: &evaluation })?;
        self.state.evaluated = Some(step);
        self.state.memory.masked.push(evaluation);
        Ok(())
    }

    fn checkpoint(&self, model: &BertMlm) -> Result<()> {
        self.log.sync()?;
        self.checkpoints.save(&self.state, &model.parameters, &self.optimizer, None)
    }

    fn require_finite(&self, outcome: &MlmOutcome, norm: f64) -> Result<()> {
        if outcome.loss.is_finite() && norm.is_finite() {
            return Ok(());
        }
        let kept = self.checkpoints.steps().last().map_or_else(
            || "no checkpoint was written yet".to_owned(),
            |&s| format!("the checkpoint `{}` is kept", self.checkpoints.path(s).display()),
        );
        Err(Error::NonFinite {
            what: if outcome.loss.is_finite() { "The gradient" } else { "The loss" }.to_owned(),
            stage: "mlm",
            step: self.state.step + 1,
            hint: format!("lower `mlm.learning_rate`, or raise `mlm.warmup_steps`; {kept}"),
        })
    }
}

/// Held-out pairs: each query ranks the documents of all of them.
struct Judge {
    data: TrainingData,
    section: EvalSection,
    seed: u64,
    zeroed: Vec<bool>,
    warm_start: crate::sections::WarmStartSection,
}

impl Judge {
    /// `None` where nothing is held out.
    fn new(run: &Run<'_>, pairs: &Pairs, idf: &Path) -> Result<Option<Self>> {
        if pairs.held_out.is_empty() {
            return Ok(None);
        }
        let rows = run.folder("pairs-held-out.jsonl");
        nsparse_core::rows::write(&rows, &pairs.held_out)?;
        let mut recipe = run.config.training(&run.config.model, rows, Some(idf.to_path_buf()));
        recipe.eval.fraction = 1.0;
        let tokenizer = run.data.query_encoder.tokenizer();
        let data = TrainingData::load(&recipe, tokenizer, run.hooks.cancel, run.hooks.progress)?;
        Ok(Some(Self {
            data,
            section: EvalSection { documents: 0, ..EvalSection::default() },
            seed: run.config.run.seed,
            zeroed: run.network.zeroed.clone(),
            warm_start: recipe.warm_start,
        }))
    }

    fn evaluator(&self) -> Result<Evaluator<'_>> {
        Evaluator::new(&self.section, &self.data, self.seed)?
            .ok_or_else(|| Error::config("no held-out pair has a positive"))
    }

    fn run(&self, run: &Run<'_>, model: &BertMlm, step: usize) -> Result<EvaluationRecord> {
        let Hooks { cancel, progress } = *run.hooks;
        let at = ("pairs", step);
        let (record, _) = self.evaluator()?.run(run.network, &model.parameters, None, at, cancel, progress)?;
        Ok(record)
    }

    fn lexical_reference(&self) -> Result<f64> {
        let targets = LexicalTargets::new(&self.data.documents, &self.warm_start, &self.zeroed);
        self.evaluator()?.lexical_reference(&targets)
    }
}

/// Model and tokenizer that a recipe names.
pub(super) fn load(config: &PretrainConfig) -> Result<(BertMlm, TextTokenizer)> {
    load_model(&config.training(&config.model, PathBuf::new(), None))
}

/// The network of a model.
pub(super) fn network(config: &PretrainConfig, model: &BertMlm, tokenizer: &TextTokenizer) -> Result<Network> {
    let device: Device = config.run.device.parse()?;
    let precision = config.run.precision.unwrap_or(device.default_precision());
    let mut backend = nsparse_encoder::create_with(&model.config, device, precision)?;
    backend.checkpoint_activations(config.mlm.as_ref().is_some_and(|m| m.activation_checkpointing))?;
    let (vocab, named) = (model.config.vocab_size, tokenizer.vocabulary().len());
    Ok(Network::with_backend(backend, vocab, config.model.activation, &tokenizer.weightless(), named))
}

fn prepare_folder(dir: &Path, start: Start) -> Result<()> {
    files::create_folder(dir)?;
    let there: Vec<PathBuf> = OUTPUTS.iter().map(|name| dir.join(name)).filter(|p| p.exists()).collect();
    match (start, there.first()) {
        (Start::New, None) => Ok(()),
        (Start::Continue, _) => {
            files::remove_unfinished(dir)?;
            restore_folders(dir)
        }
        (Start::New, Some(found)) => Err(Error::config_with_hint(
            format!("`{}` holds a run already: `{}` is there", dir.display(), found.display()),
            "go on with it (--resume), replace it (--replace), or choose another folder: --set run.dir=FOLDER",
        )),
        (Start::Replace, _) => {
            for path in there {
                if path.is_dir() {
                    remove_folder(&path)?;
                } else {
                    std::fs::remove_file(&path).map_err(|e| nsparse_core::Error::io("remove", &path, e))?;
                }
            }
            Ok(())
        }
    }
}

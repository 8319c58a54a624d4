//! The run: everything is read, the head calibrated, then one loop for each stage.

mod folder;
mod setup;
mod steps;
mod summary;
mod together;

use std::time::Instant;

use nsparse_core::{Cancel, Progress, files};

pub(crate) use setup::{build_network, load_model, needs_calibration, stages};
pub use summary::{StageSummary, Summary};
pub use together::follow;

use crate::Result;
use crate::calibrate::prepare_head;
use crate::checkpoint::{Checkpoints, State};
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::evaluate::Evaluator;
use crate::guard::Guard;
use crate::lineage::lineage;
use crate::metrics_log::Record;
use crate::model_out::write_model;
use crate::parallel::Team;
use crate::query_side::QuerySide;
use crate::run_log::{PlannedStage, RunLog};
use crate::stage::StageMemory;
use crate::teachers::training;
use folder::prepare_folder;
use steps::Run;
use together::begin;

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
    train_together(config, start, hooks, Team::alone())
}

/// As [`train`], as rank 0 of several processes; the others [`follow`]. Loss, gradient and density are those of one
/// process but for rounding.
///
/// # Errors
/// As [`train`], or if another process is gone; a checkpoint is then written first.
pub fn train_together(config: &TrainConfig, start: Start, hooks: &Hooks<'_>, team: Team) -> Result<Summary> {
    config.validate()?;
    let started = Instant::now();
    let dir = &config.run.dir;
    prepare_folder(dir, start)?;
    team.tell(config.to_yaml()?)?;
    let (mut model, tokenizer) = load_model(config)?;
    let mut data = TrainingData::load(config, &tokenizer, hooks.cancel, hooks.progress)?;
    let teachers = training::open(config, &mut data, true, hooks.cancel, hooks.progress)?;
    let fingerprint = match &teachers {
        Some(teachers) => format!("{} {}", data.fingerprint, teachers.identity()),
        None => data.fingerprint.clone(),
    };
    data.lineage = lineage(config, hooks.progress)?;
    let mut network = build_network(config, &model, &tokenizer)?;
    network.team = team;
    network.team.require_same("the data", &data.fingerprint)?;
    let zeroed = network.zeroed.clone();
    let mut stages = stages(config, &data, &zeroed, teachers)?;
    let query_side = QuerySide::new(config, &data)?;
    if let Some(side) = &query_side {
        side.extend(&mut model)?;
    }
    let evaluator = if config.has_contrastive() { Evaluator::new(&config.eval, &data, config.run.seed)? } else { None };

    let checkpoints = Checkpoints::new(dir.join("checkpoints"), config, &fingerprint)?;
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
    let planned = stages.iter().map(|s| PlannedStage { name: s.name().to_owned(), steps: s.steps() }).collect();
    let mut log = RunLog::open(config, &state, planned)?;
    if moments.is_none() && needs_calibration(config, &model) {
        let report = prepare_head(&network, &mut model, &data.documents, config, hooks.cancel, hooks.progress)?;
        log.write(&Record::Calibration(report.clone()), state.total_steps)?;
        state.calibration = Some(report);
    }
    let is_new = moments.is_none();
    for (number, stage) in stages.iter_mut().enumerate().skip(state.stage) {
        let from = if number == state.stage { state.step } else { 0 };
        stage.prepare(from, hooks.cancel, hooks.progress)?;
    }
    (state, moments) = begin(&network.team, state, &mut model.parameters, moments)?;
    let preparing_seconds = started.elapsed().as_secs_f64();

    let guard = Guard::new(config.guard.clone(), state.guard.clone());
    let mut run = Run {
        config,
        guard,
        start_is_unread: is_new,
        stopped_by_guard: false,
        hooks,
        network,
        data: &data,
        query_side,
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
            write_model(&dir.join("warm-start"), &run.model, &data, config, None)?;
        }
        run.state.stage += 1;
        run.state.step = 0;
        run.state.memory = StageMemory::default();
    }
    if finished && run.state.best.is_none() {
        write_model(&dir.join("model"), &run.model, &data, config, run.saved_side()?.as_ref())?;
    }
    let plan: Vec<(&'static str, usize)> = stages.iter().map(|s| (s.name(), s.steps())).collect();
    let mut summary = run.summary(&plan, finished, preparing_seconds)?;
    summary.teachers = stages.iter().flat_map(|s| s.teacher_work()).collect();
    files::write_json(&dir.join("summary.json"), &summary)?;
    Ok(summary)
}

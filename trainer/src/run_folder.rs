//! A run's folder as it is read back: recipe, history, sittings, outcome. A run that still goes on can be followed.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nsparse_core::files;

use crate::Result;
use crate::calibrate::CalibrationReport;
use crate::config::TrainConfig;
use crate::evaluate::EvaluationRecord;
use crate::guard::Warning;
use crate::metrics_log::{Record, StepRecord};
use crate::metrics_reader::{Fresh, MetricsReader};
use crate::run::Summary;
use crate::run_log::{PlannedStage, Sitting};

/// What a run has written down so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// What the calibration did, where there was one.
    pub calibration: Option<CalibrationReport>,
    /// The logged steps, ascending.
    pub steps: Vec<StepRecord>,
    /// The evaluations, each with the steps of the run that were done.
    pub evaluations: Vec<(usize, EvaluationRecord)>,
    /// What the guard found.
    pub warnings: Vec<Warning>,
    /// Lines that could not be read.
    pub unreadable: usize,
}

impl History {
    fn take(&mut self, fresh: Fresh) {
        if fresh.anew {
            *self = Self::default();
        }
        self.unreadable += fresh.unreadable;
        for record in fresh.records {
            match record {
                Record::Calibration(report) => self.calibration = Some(report),
                Record::Step(step) => self.steps.push(step),
                Record::Warning(warning) => self.warnings.push(warning),
                Record::Evaluation(evaluation) => {
                    let at = self.total_step_of(&evaluation);
                    self.evaluations.push((at, evaluation));
                }
            }
        }
    }

    /// Steps of the run at an evaluation that follows all records so far: the last step tells where its stage begins.
    fn total_step_of(&self, evaluation: &EvaluationRecord) -> usize {
        self.steps.last().map_or(0, |last| {
            let begin = if last.stage == evaluation.stage { last.total_step - last.step } else { last.total_step };
            begin + evaluation.step
        })
    }

    /// The best evaluation with the steps of the run at it.
    pub fn best(&self) -> Option<&(usize, EvaluationRecord)> {
        // Of equal ones the first is kept, as the run does.
        self.evaluations.iter().reduce(|best, e| if e.1.is_better_than(&best.1) { e } else { best })
    }
}

/// A run's folder, read.
#[derive(Debug)]
pub struct RunFolder {
    dir: PathBuf,
    reader: MetricsReader,
    /// The recipe as resolved; `None` where it is not there or of another version.
    pub config: Option<TrainConfig>,
    /// The text of `config.yaml`; empty where it is not there.
    pub recipe: String,
    /// The run's sittings, oldest first.
    pub sittings: Vec<Sitting>,
    /// What came out at the end of the last sitting; `None` where it has not ended, or was killed.
    pub summary: Option<Summary>,
    /// What the run wrote down.
    pub history: History,
    /// When the run last wrote something.
    pub last_written: Option<SystemTime>,
}

impl RunFolder {
    /// Reads a folder; a run that has only begun need not have written anything.
    ///
    /// # Errors
    /// If it is no folder, or a file cannot be read.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(nsparse_core::Error::invalid_with_hint(
                format!("`{}` is no run directory: there is no such folder", dir.display()),
                "give the folder that the recipe names as `run.dir`",
            )
            .into());
        }
        let mut folder = Self {
            dir: dir.to_path_buf(),
            reader: MetricsReader::new(&dir.join("metrics.jsonl")),
            config: None,
            recipe: String::new(),
            sittings: Vec::new(),
            summary: None,
            history: History::default(),
            last_written: None,
        };
        folder.refresh()?;
        Ok(folder)
    }

    /// As [`RunFolder::open`], for a run that has written something.
    ///
    /// # Errors
    /// As [`RunFolder::open`]; also if there is no `metrics.jsonl`.
    pub fn open_begun(dir: &Path) -> Result<Self> {
        let folder = Self::open(dir)?;
        if !dir.join("metrics.jsonl").is_file() {
            return Err(nsparse_core::Error::invalid_with_hint(
                format!("`{}` is no run directory: it has no metrics.jsonl", dir.display()),
                "give the folder that the recipe names as `run.dir`; a run writes there once its data is read",
            )
            .into());
        }
        Ok(folder)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads what is new.
    ///
    /// # Errors
    /// If a file is there and cannot be read.
    pub fn refresh(&mut self) -> Result<()> {
        let metrics = self.dir.join("metrics.jsonl");
        self.history.take(self.reader.read()?);
        self.sittings = Sitting::read_all(&self.dir.join("sittings.jsonl"));
        let recipe = std::fs::read_to_string(self.dir.join("config.yaml")).unwrap_or_default();
        if recipe != self.recipe {
            self.config = TrainConfig::parse(&recipe, &[]).ok();
            self.recipe = recipe;
        }
        let summary = self.dir.join("summary.json");
        let (written, ended) = (modified(&metrics), modified(&summary));
        self.last_written = written.max(ended);
        // One from before a resume says nothing about the sitting that goes on.
        let is_current = ended.is_some() && ended >= written;
        self.summary = if is_current { files::read_json(&summary).ok() } else { None };
        Ok(())
    }

    /// The stages with their steps; `None` where the steps depend on data that only the run has seen.
    pub fn plan(&self) -> Option<Vec<PlannedStage>> {
        if let Some(sitting) = self.sittings.last() {
            return Some(sitting.stages.clone());
        }
        if let Some(summary) = &self.summary {
            let of = |s: &crate::run::StageSummary| PlannedStage { name: s.name.clone(), steps: s.steps };
            return Some(summary.stages.iter().map(of).collect());
        }
        let config = self.config.as_ref()?;
        let planned = [("warm_start", config.warm_start.steps), ("contrastive", config.train.steps?)];
        let with_steps = planned.into_iter().filter(|(_, steps)| *steps > 0);
        Some(with_steps.map(|(name, steps)| PlannedStage { name: name.to_owned(), steps }).collect())
    }

    /// Seconds since the run last wrote something.
    pub fn seconds_since_written(&self) -> Option<f64> {
        let since: Duration = SystemTime::now().duration_since(self.last_written?).ok()?;
        Some(since.as_secs_f64())
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().and_then(|m| m.modified()).ok()
}

//! What a run gave, as `summary.json` holds it.

use std::path::PathBuf;

use nsparse_core::lineage::Lineage;
use nsparse_encoder::BertMlm;
use serde::{Deserialize, Serialize};

use super::steps::Run;
use crate::calibrate::CalibrationReport;
use crate::density::{DensityReport, measure};
use crate::evaluate::EvaluationRecord;
use crate::guard::Warning;
use crate::mixing::{SetReport, set_reports};
use crate::teachers::TeacherWork;
use crate::warm_start::LexicalTargets;
use crate::{Error, Result};

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
    /// Whether all stages are done. If not, the run was asked to stop and can go on ([`crate::Start::Continue`]).
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
    /// The sets that were trained on, with what was taken of each.
    #[serde(default)]
    pub sets: Vec<SetReport>,
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
    /// Whether the last stage ended before its last step because the evaluations did not get better
    /// (`eval.patience`).
    #[serde(default)]
    pub stopped_early: bool,
    /// How dense the kept model is; of a run with a contrastive stage that is done.
    #[serde(default)]
    pub density: Option<DensityReport>,
    /// Processes that the run was shared among in this sitting.
    #[serde(default = "one")]
    pub processes: usize,
    /// All evaluations.
    pub evaluations: Vec<EvaluationRecord>,
    /// The same metric, queries and documents with BM25's tf part as document weight, the warm start's target:
    /// what the evaluations are to be compared with.
    pub lexical_reference: Option<f64>,
    /// What it started from and read.
    #[serde(default)]
    pub lineage: Lineage,
    /// Seconds of this sitting before the first step: reading, tokenizing, idf, calibration.
    pub preparing_seconds: f64,
    /// What the teachers computed in this sitting; what their cache held is not counted.
    #[serde(default)]
    pub teachers: Vec<TeacherWork>,
    /// Seconds of all evaluations.
    pub evaluation_seconds: f64,
}

fn one() -> usize {
    1
}

impl Run<'_> {
    /// The density of the model that was kept; nothing if the user asks to stop meanwhile.
    fn density(&self) -> Result<Option<DensityReport>> {
        let (config, state) = (self.config, &self.state);
        let folder = config.run.dir.join("model");
        let kept = if state.best_step.is_none_or(|step| step == state.total_steps) {
            None
        } else {
            Some(BertMlm::load(&folder, config.run.seed)?)
        };
        let parameters = kept.as_ref().map_or(&self.model.parameters, |m| &m.parameters);
        let target = config.train.losses.flops.target;
        let (cancel, progress) = (self.hooks.cancel, self.hooks.progress);
        match measure(&self.network, parameters, self.data, target, config.run.seed, cancel, progress) {
            Ok(report) => Ok(Some(report)),
            Err(Error::Core(nsparse_core::Error::Cancelled)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Steps of the contrastive stage that are done.
    fn contrastive_steps(&self, plan: &[(&'static str, usize)]) -> usize {
        let at = plan.iter().position(|p| p.0 == "contrastive");
        at.map_or(0, |at| {
            let before: usize = plan[..at].iter().map(|p| p.1).sum();
            self.state.total_steps.saturating_sub(before).min(plan[at].1)
        })
    }

    pub(super) fn summary(
        &self,
        plan: &[(&'static str, usize)],
        finished: bool,
        preparing_seconds: f64,
    ) -> Result<Summary> {
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
            sets: set_reports(self.config, self.data, self.contrastive_steps(plan) * self.config.train.accumulation),
            steps: self.state.total_steps,
            best: self.state.best.clone(),
            warnings: self.state.warnings.clone(),
            stopped_by_guard: self.stopped_by_guard,
            stopped_early: finished && self.state.total_steps < plan.iter().map(|(_, steps)| steps).sum(),
            density: if finished && self.config.has_contrastive() { self.density()? } else { None },
            processes: self.network.team.size(),
            evaluations: self.state.evaluations.clone(),
            lexical_reference,
            lineage: self.data.lineage.clone(),
            preparing_seconds,
            teachers: Vec::new(),
            evaluation_seconds: self.state.evaluations.iter().map(|e| e.seconds).fold(0.0, |sum, s| sum + s),
        })
    }
}

//! The models that a run's folder holds: its checkpoints, the one after the warm start, and the one that it gives.

use std::path::{Path, PathBuf};

use nsparse_core::{IdfTable, files};
use nsparse_encoder::Parameters;
use serde_json::Value;

use crate::query_side::table::{Table, is_query};
use crate::run::Summary;
use crate::{Error, Result};

/// The weights' file of a checkpoint; a model directory's `model.safetensors` has the same form.
pub const PARAMETERS: &str = "parameters.safetensors";

/// One model of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunModel {
    /// `model`, `warm-start`, or the checkpoint's folder.
    pub name: String,
    /// Steps of all stages that it has seen, where that is known.
    pub step: Option<usize>,
    /// Its weights, in safetensors.
    pub weights: PathBuf,
}

/// All models of a run, by their steps; those whose steps are not known stand last. Nothing is loaded.
///
/// # Errors
/// If the folder holds no run, or a run without any model yet.
pub fn run_models(run: &Path) -> Result<Vec<RunModel>> {
    if !run.join("config.yaml").is_file() {
        return Err(Error::config_with_hint(
            format!("`{}` is no run: it has no config.yaml", run.display()),
            "give the folder that `run.dir` of the recipe names",
        ));
    }
    let summary: Option<Summary> = files::read_json(&run.join("summary.json")).ok();
    let mut models = checkpoints(&run.join("checkpoints"));
    let newest = models.iter().max_by_key(|m| m.step).map(|m| m.weights.with_file_name("state.json"));
    let state: Option<Value> = newest.and_then(|path| files::read_json(&path).ok());
    for (name, step) in [
        ("warm-start", warm_start_steps(summary.as_ref(), run)),
        ("model", model_step(summary.as_ref(), state.as_ref())),
    ] {
        let weights = run.join(name).join("model.safetensors");
        if weights.is_file() {
            models.push(RunModel { name: name.to_owned(), step, weights });
        }
    }
    if models.is_empty() {
        return Err(Error::config_with_hint(
            format!("`{}` holds no checkpoint and no model yet", run.display()),
            "let it run to its first checkpoint: `checkpoint.every` in the recipe",
        ));
    }
    models.sort_by_key(|m| (m.step.is_none(), m.step));
    Ok(models)
}

/// The model directory of a run that says how its checkpoints' weights are read: tokenizer, idf, window, template.
///
/// # Errors
/// If it has none yet.
pub fn reading_side(run: &Path) -> Result<PathBuf> {
    ["model", "warm-start"].iter().map(|name| run.join(name)).find(|f| f.join("nsparse.json").is_file()).ok_or_else(
        || {
            Error::config_with_hint(
                format!("`{}` has no model directory yet, so its checkpoints have no query side", run.display()),
                "one appears with the first evaluation, after the warm start, or when the run is finished (--resume)",
            )
        },
    )
}

/// The learned query table of a checkpoint's weights, where the run learns one and these have it: one weight a token of
/// the tokenizer.
///
/// # Errors
/// If the run's recipe or the weights cannot be read, or a weight is not finite.
pub fn learned_table(run: &Path, weights: &Path, tokens: usize) -> Result<Option<IdfTable>> {
    let config = crate::TrainConfig::load(&run.join("config.yaml"), &[])?;
    let Some(table) = Table::of(&config.query) else { return Ok(None) };
    let parameters = Parameters::from_tensors(Parameters::read_tensors(weights)?)?;
    if !parameters.specs().iter().any(is_query) {
        return Ok(None);
    }
    let learned = table.weights(&parameters, tokens)?;
    // Until the stage that learns it begins it is 0 everywhere.
    Ok(learned.iter().any(|&w| w > 0.0).then(|| IdfTable::from_weights(learned)))
}

fn checkpoints(folder: &Path) -> Vec<RunModel> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names
        .filter_map(|name| {
            let step = name.strip_prefix("step-")?.parse().ok()?;
            let weights = folder.join(&name).join(PARAMETERS);
            weights.is_file().then_some(RunModel { name, step: Some(step), weights })
        })
        .collect()
}

fn warm_start_steps(summary: Option<&Summary>, run: &Path) -> Option<usize> {
    let first = summary.and_then(|s| s.stages.iter().find(|s| s.name == "warm_start")).map(|s| s.steps);
    first.or_else(|| Some(crate::TrainConfig::load(&run.join("config.yaml"), &[]).ok()?.warm_start.steps))
}

/// Steps of all stages at the evaluation that `model/` was kept for; without one those of the whole run.
fn model_step(summary: Option<&Summary>, state: Option<&Value>) -> Option<usize> {
    if let Some(best) = summary.and_then(|s| s.best.as_ref()) {
        let stages = &summary?.stages;
        let before: usize = stages.iter().take_while(|s| s.name != best.stage).map(|s| s.steps).sum();
        return Some(before + best.step);
    }
    match summary {
        Some(summary) if summary.finished => Some(summary.steps),
        _ => state?.pointer("/state/best_step")?.as_u64().map(|step| step as usize),
    }
}

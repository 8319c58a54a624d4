//! Checkpoints: parameters, the optimizer's moments and where the run stands. A folder appears whole or not at
//! all, and is only taken up again by a run of the same recipe and data.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nsparse_core::files;
use nsparse_encoder::{ParamSpec, Parameters};
use serde::{Deserialize, Serialize};

use crate::calibrate::CalibrationReport;
use crate::config::TrainConfig;
use crate::evaluate::EvaluationRecord;
use crate::folders::{remove_folder, replace_folder, restore_folders};
use crate::guard::{GuardState, Warning};
use crate::optimizer::AdamW;
use crate::run_models::PARAMETERS;
use crate::stage::StageMemory;
use crate::{Error, Result};

/// Version of the checkpoint's form.
const FORMAT: u32 = 1;
/// Keys that may differ between the run that wrote a checkpoint and the one that goes on from it: they do not
/// change what is computed.
const FREE_KEYS: [&str; 6] =
    ["run.dir", "run.log_every", "run.tensorboard", "checkpoint.every", "checkpoint.keep", "teachers.cache"];

/// And a whole section of such keys.
const FREE_SECTION: &str = "guard.";

/// Where a run stands; everything that is not a tensor.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Index of the stage among the run's stages; their number when all are done.
    pub stage: usize,
    /// Steps of that stage that are done.
    pub step: usize,
    /// Steps of all stages that are done.
    pub total_steps: usize,
    /// Total steps at the last evaluation, so that a stopped run does not evaluate twice.
    pub evaluated: Option<usize>,
    /// The best evaluation so far.
    pub best: Option<EvaluationRecord>,
    /// Total steps at the best evaluation.
    pub best_step: Option<usize>,
    /// All evaluations.
    pub evaluations: Vec<EvaluationRecord>,
    /// What the calibration did, where there was one.
    pub calibration: Option<CalibrationReport>,
    /// Cost of each stage so far.
    pub costs: BTreeMap<String, Cost>,
    /// What the stage remembers from step to step.
    #[serde(default)]
    pub memory: StageMemory,
    /// What the guard remembers.
    #[serde(default)]
    pub guard: GuardState,
    /// What the guard found.
    #[serde(default)]
    pub warnings: Vec<Warning>,
}

/// What a stage has cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// Seconds, without evaluations and checkpoints.
    pub seconds: f64,
    /// Documents encoded.
    pub documents: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// `state.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    format: u32,
    nsparse_version: String,
    /// sha256 of the recipe's keys and values.
    config_hash: String,
    config: Vec<(String, String)>,
    data_fingerprint: String,
    optimizer_steps: u64,
    state: State,
}

/// The folder that a run's checkpoints lie in.
#[derive(Debug, Clone)]
pub struct Checkpoints {
    folder: PathBuf,
    keep: usize,
    config: Vec<(String, String)>,
    fingerprint: String,
}

/// A checkpoint read back.
pub struct Restored {
    /// Where the run stood.
    pub state: State,
    /// The parameters.
    pub parameters: Parameters,
    /// First moment, second moment, optimizer steps.
    pub moments: (Vec<f32>, Vec<f32>, u64),
}

impl Checkpoints {
    /// Checkpoints in `folder` of a run with this recipe and data.
    ///
    /// # Errors
    /// If the recipe cannot be written as keys and values.
    pub fn new(folder: PathBuf, config: &TrainConfig, fingerprint: &str) -> Result<Self> {
        Ok(Self::of_keys(folder, config.checkpoint.keep, config.flat()?, fingerprint))
    }

    /// As [`Checkpoints::new`], of a recipe of another kind by its keys and values.
    pub(crate) fn of_keys(folder: PathBuf, keep: usize, keys: Vec<(String, String)>, fingerprint: &str) -> Self {
        Self { folder, keep, config: comparable(keys), fingerprint: fingerprint.to_owned() }
    }

    /// Total steps of the checkpoints that are there, ascending.
    pub fn steps(&self) -> Vec<usize> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<usize> =
            entries.filter_map(|e| e.ok()?.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// The folder of one checkpoint.
    pub fn path(&self, step: usize) -> PathBuf {
        self.folder.join(format!("step-{step:07}"))
    }

    /// Writes a checkpoint, then removes old ones: the newest `keep` stay, and the best step's. With a `keep` of 0
    /// all stay.
    ///
    /// # Errors
    /// If it cannot be written; earlier checkpoints then stay as they are.
    pub fn save(&self, state: &State, parameters: &Parameters, optimizer: &AdamW, best: Option<usize>) -> Result<()> {
        let (first, second, optimizer_steps) = optimizer.state();
        let specs: &[ParamSpec] = parameters.specs();
        let stored = Stored {
            format: FORMAT,
            nsparse_version: env!("CARGO_PKG_VERSION").to_owned(),
            config_hash: hash(&self.config),
            config: self.config.clone(),
            data_fingerprint: self.fingerprint.clone(),
            optimizer_steps,
            state: state.clone(),
        };
        replace_folder(&self.path(state.total_steps), |folder| {
            parameters.save(&folder.join(PARAMETERS))?;
            Parameters::save_buffer(specs, first, &folder.join("first_moment.safetensors"))?;
            Parameters::save_buffer(specs, second, &folder.join("second_moment.safetensors"))?;
            files::write_json(&folder.join("state.json"), &stored)?;
            Ok(())
        })?;
        let steps = self.steps();
        let old = if self.keep == 0 { 0 } else { steps.len().saturating_sub(self.keep) };
        for &step in &steps[..old] {
            if best != Some(step) {
                remove_folder(&self.path(step))?;
            }
        }
        Ok(())
    }

    /// The newest checkpoint, if there is one.
    ///
    /// # Errors
    /// If it is broken, or of another recipe, other data or another model: the message names what differs.
    pub fn newest(&self, parameters: &Parameters) -> Result<Option<Restored>> {
        restore_folders(&self.folder)?;
        let Some(&step) = self.steps().last() else { return Ok(None) };
        let path = self.path(step);
        let stored: Stored = files::read_json(&path.join("state.json"))?;
        let refuse =
            |message: String, hint: &str| Err(Error::Checkpoint { path: path.clone(), message, hint: hint.to_owned() });
        if stored.format != FORMAT {
            return refuse(
                format!("its form is {}, this version reads {FORMAT}", stored.format),
                "go on with the version that wrote it, or begin a new run in another `run.dir`",
            );
        }
        if stored.config_hash != hash(&self.config) {
            return refuse(
                format!("it belongs to another recipe: {}", difference(&stored.config, &self.config)),
                "set the keys back to go on with this run, or begin a new one in another `run.dir`",
            );
        }
        if stored.data_fingerprint != self.fingerprint {
            return refuse(
                "the recipe is the same, but the data it names has changed since".to_owned(),
                "put the old files back to go on, or begin a new run in another `run.dir`",
            );
        }
        let read = |name: &str| -> Result<Parameters> {
            Ok(Parameters::from_tensors(Parameters::read_tensors(&path.join(name))?)?)
        };
        let restored = read(PARAMETERS)?;
        if restored.specs() != parameters.specs() {
            return refuse("its parameters are those of another model".to_owned(), "begin a new run");
        }
        let (first, second) = (read("first_moment.safetensors")?, read("second_moment.safetensors")?);
        if first.specs() != parameters.specs() || second.specs() != parameters.specs() {
            return refuse("its moments are those of another model".to_owned(), "begin a new run");
        }
        Ok(Some(Restored {
            state: stored.state,
            parameters: restored,
            moments: (first.data().to_vec(), second.data().to_vec(), stored.optimizer_steps),
        }))
    }
}

fn comparable(config: Vec<(String, String)>) -> Vec<(String, String)> {
    config.into_iter().filter(|(key, _)| !FREE_KEYS.contains(&key.as_str()) && !key.starts_with(FREE_SECTION)).collect()
}

/// sha256 of a recipe's keys and values, without those that change nothing that is computed.
///
/// # Errors
/// If the recipe cannot be written as keys and values.
pub fn config_hash(config: &TrainConfig) -> Result<String> {
    Ok(hash(&comparable(config.flat()?)))
}

fn hash(config: &[(String, String)]) -> String {
    let lines: Vec<String> = config.iter().map(|(key, value)| format!("{key}={value}")).collect();
    files::sha256_bytes(lines.join("\n").as_bytes())
}

/// The keys in which two recipes differ, the first few with both values.
fn difference(theirs: &[(String, String)], ours: &[(String, String)]) -> String {
    let theirs: BTreeMap<&str, &str> = theirs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let ours: BTreeMap<&str, &str> = ours.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let keys: std::collections::BTreeSet<&str> = theirs.keys().chain(ours.keys()).copied().collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|k| theirs.get(k) != ours.get(k))
        .map(|k| {
            let show = |side: &BTreeMap<&str, &str>| side.get(k).map_or("(not there)", |v| v).to_owned();
            format!("`{k}` is {} there and {} here", show(&theirs), show(&ours))
        })
        .collect();
    match differing.len() {
        0..=3 => differing.join(", "),
        n => format!("{}, and {} more", differing[..3].join(", "), n - 3),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn differing_keys_are_named() {
        let a = TrainConfig::parse("model: {path: m}\ndata: {dir: d}\n", &[]).unwrap();
        let mut b = a.clone();
        b.run.seed = 7;
        b.run.dir = "elsewhere".into();
        let text = difference(&comparable(a.flat().unwrap()), &comparable(b.flat().unwrap()));
        assert_eq!(text, "`run.seed` is 42 there and 7 here");
    }
}

//! `metrics.jsonl`: one object a line for each logged step, evaluation and calibration.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use nsparse_core::files;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::calibrate::CalibrationReport;
use crate::evaluate::EvaluationRecord;
use crate::guard::Warning;
use crate::stage::Steering;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The head's bias was calibrated.
    Calibration(CalibrationReport),
    /// A step is done.
    Step(StepRecord),
    /// Held-out queries were ranked.
    Evaluation(EvaluationRecord),
    /// The guard found something.
    Warning(Warning),
}

/// What a step gave. A field that a line of an earlier version lacks has its default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepRecord {
    /// The stage.
    pub stage: String,
    /// The step within the stage, counted from 1.
    pub step: usize,
    /// The step within the run, counted from 1.
    pub total_step: usize,
    /// The loss.
    pub loss: f64,
    /// Its terms, before their weights.
    pub parts: BTreeMap<String, f64>,
    /// The encoder's learning rate in this step.
    pub learning_rate: f64,
    /// Weight of the sparsity penalty, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    /// Where that weight is steered, and what the loop sees.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steering: Option<Steering>,
    /// Documents of the step without any active dimension.
    pub zero_vectors: usize,
    /// Candidates that a teacher took out of the step's comparisons.
    pub masked_candidates: usize,
    /// Mean active dimensions of the step's documents.
    pub active_dimensions: f64,
    /// Norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Tokens of the step's documents.
    pub tokens: usize,
    /// Tokens a second.
    pub tokens_per_second: f64,
    /// Seconds of the step.
    pub seconds: f64,
}

/// The open file.
pub struct MetricsLog {
    path: PathBuf,
    file: File,
}

impl MetricsLog {
    /// Opens the file; lines of steps after `total_steps` are taken out, for a run that goes on from a
    /// checkpoint writes them again. A run that begins gives 0 and an empty file.
    ///
    /// # Errors
    /// If it cannot be read or written.
    pub fn open(path: &Path, total_steps: usize, evaluations: usize) -> Result<Self> {
        let mut kept = String::new();
        if total_steps > 0 && path.is_file() {
            let mut seen = 0;
            for line in files::read_text(path)?.lines() {
                // A torn last line is not JSON and goes.
                let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { continue };
                let keep = match value["kind"].as_str() {
                    Some("step" | "warning") => value["total_step"].as_u64().is_some_and(|s| s <= total_steps as u64),
                    Some("evaluation") => {
                        seen += 1;
                        seen <= evaluations
                    }
                    _ => true,
                };
                if keep {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        files::write_bytes(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| nsparse_core::Error::io("write", path, e))?;
        Ok(Self { path: path.to_path_buf(), file })
    }

    /// Flushes all lines to disk, so that a checkpoint never knows more than the log does.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data().map_err(|e| nsparse_core::Error::io("write", &self.path, e))?)
    }

    /// Appends a line.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&mut self, record: &Record) -> Result<()> {
        self.write_object(record)
    }

    /// Appends a line of another kind of run; it has `kind`, and `total_step` where that is `step`.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn write_object(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(record).map_err(|e| nsparse_core::Error::file(&self.path, e.to_string()))?;
        line.push(b'\n');
        self.file.write_all(&line).map_err(|e| nsparse_core::Error::io("write", &self.path, e))?;
        Ok(())
    }
}

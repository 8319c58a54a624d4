//! All that a run writes down while it goes on: `metrics.jsonl`, TensorBoard's events, and `sittings.jsonl`.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::checkpoint::{State, config_hash};
use crate::config::TrainConfig;
use crate::metrics_log::{MetricsLog, Record};
use crate::tensorboard::EventLog;

/// A sitting: a run begins, or goes on from a checkpoint. One line of `sittings.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sitting {
    /// When, in seconds since 1970.
    pub started: u64,
    /// Steps of the run that were done.
    pub total_step: usize,
    /// The stages of the whole run.
    pub stages: Vec<PlannedStage>,
    /// sha256 of the recipe's keys and values, without those that change nothing that is computed.
    pub config_hash: String,
    /// Version of nsparse.
    pub nsparse_version: String,
    /// What it ran on.
    pub machine: Machine,
}

/// A stage as the recipe plans it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStage {
    /// Its name.
    pub name: String,
    /// Its steps.
    pub steps: usize,
}

/// What a run runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Machine {
    /// The processor's name, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Threads that compute.
    pub threads: usize,
    /// Main memory in bytes, where the system tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// The recipe's `run.device`.
    pub device: String,
}

impl Machine {
    fn of(device: &str) -> Self {
        let field = |file: &str, name: &str| -> Option<String> {
            let text = std::fs::read_to_string(file).ok()?;
            let line = text.lines().find(|l| l.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        Self {
            cpu: field("/proc/cpuinfo", "model name"),
            threads: rayon::current_num_threads(),
            memory_bytes: field("/proc/meminfo", "MemTotal")
                .and_then(|size| size.strip_suffix(" kB")?.parse::<u64>().ok())
                .map(|kib| kib * 1024),
            device: device.to_owned(),
        }
    }
}

/// The open files.
pub struct RunLog {
    metrics: MetricsLog,
    events: Option<EventLog>,
}

impl RunLog {
    /// Opens them for a run that stands where `state` says; what it writes again is taken out of them.
    ///
    /// # Errors
    /// If one cannot be read or written.
    pub fn open(config: &TrainConfig, state: &State, stages: Vec<PlannedStage>) -> Result<Self> {
        let dir = &config.run.dir;
        let metrics = MetricsLog::open(&dir.join("metrics.jsonl"), state.total_steps, state.evaluations.len())?;
        let evaluated = state.evaluated == Some(state.total_steps);
        let events = config.run.tensorboard.then(|| EventLog::open(dir, state.total_steps, evaluated)).transpose()?;
        let sitting = Sitting {
            started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            total_step: state.total_steps,
            stages,
            config_hash: config_hash(config)?,
            nsparse_version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::of(&config.run.device),
        };
        sitting.append(&dir.join("sittings.jsonl"))?;
        Ok(Self { metrics, events })
    }

    /// Writes a record down; `total_step`: steps of the run that are done.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&mut self, record: &Record, total_step: usize) -> Result<()> {
        self.metrics.write(record)?;
        if let Some(events) = &mut self.events {
            events.write(record, total_step)?;
        }
        Ok(())
    }

    /// Flushes all lines and events to disk, so that a checkpoint never knows more than they do.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.metrics.sync()?;
        self.events.as_ref().map_or(Ok(()), EventLog::sync)
    }
}

impl Sitting {
    fn append(&self, path: &Path) -> Result<()> {
        let io = |e| nsparse_core::Error::io("write", path, e);
        let mut line = serde_json::to_vec(self).map_err(|e| nsparse_core::Error::file(path, e.to_string()))?;
        line.push(b'\n');
        let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        file.write_all(&line).map_err(io)?;
        Ok(())
    }

    /// The sittings of a run, oldest first; none where the run is of a version that did not write them.
    pub fn read_all(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        // A line torn by a kill says nothing.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

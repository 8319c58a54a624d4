//! What `metrics.jsonl` holds, as TensorBoard reads it: `events.out.tfevents.<seconds>.<host>.nsparse` in the run's
//! folder.
//!
//! Each sitting of a run has a file of its own. One that goes on from a checkpoint takes the events of later steps out
//! of the earlier files, as they come again, and begins its file by telling a TensorBoard that is watching to forget
//! them too.

mod event;
pub mod record;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nsparse_core::files;
use nsparse_core::protobuf::Message;

use crate::Result;
use crate::evaluate::EvaluationRecord;
use crate::guard::Warning;
use crate::metrics_log::{Record, StepRecord};

const PREFIX: &str = "events.out.tfevents.";
const SUFFIX: &str = ".nsparse";
/// Tags of evaluations begin with it.
const EVALUATION: &str = "evaluation/";

/// The open file.
pub struct EventLog {
    path: PathBuf,
    file: File,
}

impl EventLog {
    /// Begins a file. Earlier ones lose what the run writes again: all after `total_steps`, and the evaluation at that
    /// step unless `evaluated`. A run that begins gives 0.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn open(dir: &Path, total_steps: usize, evaluated: bool) -> Result<Self> {
        let earlier = event_files(dir);
        for path in &earlier {
            trim(path, total_steps as u64, evaluated)?;
        }
        let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        // TensorBoard reads files in the order of their names.
        let newest = earlier.iter().filter_map(|p| seconds_of(p)).max();
        seconds = seconds.max(newest.map_or(0, |s| s + 1));
        let path = dir.join(format!("{PREFIX}{seconds}.{}{SUFFIX}", host()));
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        let file = opened.map_err(|e| nsparse_core::Error::io("write", &path, e))?;
        let mut log = Self { path, file };
        log.append(&event::version(now()))?;
        if total_steps > 0 {
            log.append(&event::restart(now(), total_steps as u64 + 1))?;
        }
        Ok(log)
    }

    /// Appends what a line of `metrics.jsonl` says; `total_step`: steps of the run that are done.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn write(&mut self, record: &Record, total_step: usize) -> Result<()> {
        let step = total_step as u64;
        match record {
            Record::Calibration(_) => Ok(()),
            Record::Step(record) => {
                let values = step_scalars(record);
                self.append(&event::scalars(now(), step, values.iter().map(|(tag, v)| (tag.as_str(), *v))))
            }
            Record::Evaluation(record) => {
                let EvaluationRecord { metric, value, active_dimensions, .. } = record;
                let tags = [format!("{EVALUATION}{metric}"), format!("{EVALUATION}active_dimensions")];
                let values = tags.iter().map(String::as_str).zip([*value, *active_dimensions]);
                self.append(&event::scalars(now(), step, values))
            }
            Record::Warning(warning) => {
                let Warning { stage, step: at, cause, mend, .. } = warning;
                let place = if *at == 0 { "before the first step".to_owned() } else { format!("{stage} step {at}") };
                let text = format!("**{place}**: {cause}.\n\nMend: {mend}.");
                self.append(&event::text(now(), step, &format!("guard/{}", warning.finding.name()), &text))
            }
        }
    }

    /// Flushes all events to disk.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn sync(&self) -> Result<()> {
        Ok(self.file.sync_data().map_err(|e| nsparse_core::Error::io("write", &self.path, e))?)
    }

    fn append(&mut self, event: &Message) -> Result<()> {
        // One write a record: a reader never sees a part of one for long.
        let written = self.file.write_all(&record::frame(event.bytes()));
        Ok(written.map_err(|e| nsparse_core::Error::io("write", &self.path, e))?)
    }
}

/// A step's numbers with their tags: the stage, a slash, the name.
fn step_scalars(record: &StepRecord) -> Vec<(String, f64)> {
    let steering = record.steering;
    let named = [
        ("loss", Some(record.loss)),
        ("active_dimensions", Some(record.active_dimensions)),
        ("target", steering.map(|s| s.target)),
        ("density_measured", steering.map(|s| s.measured)),
        ("density_corpus", steering.and_then(|s| s.corpus)),
        ("lambda", record.lambda),
        ("zero_vectors", Some(record.zero_vectors as f64)),
        ("masked_candidates", Some(record.masked_candidates as f64)),
        ("learning_rate", Some(record.learning_rate)),
        ("gradient_norm", Some(record.gradient_norm)),
        ("tokens_per_second", Some(record.tokens_per_second)),
    ];
    let parts = record.parts.iter().map(|(part, &value)| (format!("{}/loss/{part}", record.stage), value));
    let named = named.into_iter().filter_map(|(name, value)| Some((format!("{}/{name}", record.stage), value?)));
    named.chain(parts).collect()
}

/// The event files that runs left in a folder, in the order of their names.
pub fn event_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| seconds_of(p).is_some()).collect();
    found.sort();
    found
}

/// When a file of ours was begun; `None` for any other file.
fn seconds_of(path: &Path) -> Option<u64> {
    let rest = path.file_name()?.to_str()?.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    rest.split_once('.')?.0.parse().ok()
}

/// Takes events that come again out of a file; one that then says nothing is removed.
fn trim(path: &Path, total_steps: u64, evaluated: bool) -> Result<()> {
    let bytes = std::fs::read(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
    let (mut kept, mut events) = (Vec::with_capacity(bytes.len()), 0);
    for data in record::records(&bytes) {
        let Some((step, tags)) = event::step_and_tags(data) else { break };
        let again = step == total_steps && !evaluated && tags.iter().any(|t| t.starts_with(EVALUATION));
        if step <= total_steps && !again {
            kept.extend(record::frame(data));
            events += usize::from(!tags.is_empty());
        }
    }
    if events == 0 {
        std::fs::remove_file(path).map_err(|e| nsparse_core::Error::io("remove", path, e))?;
    } else if kept != bytes {
        files::write_bytes(path, &kept)?;
    }
    Ok(())
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// This machine's name, as far as it may stand in a file's name.
fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

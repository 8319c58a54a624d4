//! Reads `metrics.jsonl` back, also while a run still writes it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::metrics_log::Record;

/// Follows a `metrics.jsonl`: each call gives what came since the last one.
#[derive(Debug)]
pub struct MetricsReader {
    path: PathBuf,
    /// Bytes that are read, and which file they are of: a run that goes on puts a new file in place.
    offset: u64,
    file: Option<u64>,
}

/// What came since the last call.
#[derive(Debug, Default, PartialEq)]
pub struct Fresh {
    /// Whether the file is another one than before: earlier records are void.
    pub anew: bool,
    /// The records, in the order of the file.
    pub records: Vec<Record>,
    /// Lines that are none: of another version of nsparse, or torn by a kill.
    pub unreadable: usize,
}

impl MetricsReader {
    /// A reader at the beginning of a file, which need not be there yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_path_buf(), offset: 0, file: None }
    }

    /// The whole lines that are new. Nothing where there is no file.
    ///
    /// # Errors
    /// If the file is there and cannot be read.
    pub fn read(&mut self) -> Result<Fresh> {
        let io = |e| nsparse_core::Error::io("read", &self.path, e);
        let mut file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let anew = self.file.take().is_some();
                self.offset = 0;
                return Ok(Fresh { anew, ..Fresh::default() });
            }
            Err(e) => return Err(io(e).into()),
        };
        let metadata = file.metadata().map_err(io)?;
        let mut fresh = Fresh::default();
        let known = self.file.replace(identity(&metadata));
        if known.is_some_and(|k| Some(k) != self.file) || metadata.len() < self.offset {
            self.offset = 0;
            fresh.anew = true;
        }
        file.seek(SeekFrom::Start(self.offset)).map_err(io)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io)?;
        // A line without its end is still being written.
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        self.offset += whole as u64;
        for line in bytes[..whole].split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(record) => fresh.records.push(record),
                Err(_) => fresh.unreadable += 1,
            }
        }
        Ok(fresh)
    }
}

/// What tells a file from the one that is put in its place.
#[cfg(unix)]
fn identity(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn identity(metadata: &std::fs::Metadata) -> u64 {
    use std::time::UNIX_EPOCH;
    let created = metadata.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok());
    created.map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::collections::BTreeMap;
    use std::io::Write;

    use super::*;
    use crate::calibrate::CalibrationReport;
    use crate::evaluate::EvaluationRecord;
    use crate::guard::{Finding, Warning};
    use crate::metrics_log::{MetricsLog, StepRecord};
    use crate::stage::Steering;

    fn step(total_step: usize) -> Record {
        Record::Step(StepRecord {
            stage: "contrastive".to_owned(),
            step: total_step,
            total_step,
            loss: 0.1 + 0.2,
            parts: BTreeMap::from([("infonce".to_owned(), 1.0 / 3.0)]),
            learning_rate: 2e-5,
            lambda: Some(1e-3),
            steering: Some(Steering { target: 150.0, measured: 151.25, ..Steering::default() }),
            active_dimensions: 149.5,
            gradient_norm: 0.75,
            tokens: 100,
            tokens_per_second: 12.5,
            seconds: 8.0,
            ..StepRecord::default()
        })
    }

    #[test]
    fn what_is_written_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let calibration = CalibrationReport {
            documents: 16,
            active_before: 3000.0,
            active_wanted: 150.0,
            active_after: 151.5,
            own_active: 0.5,
            scale: 0.625,
        };
        let evaluation = EvaluationRecord {
            stage: "contrastive".to_owned(),
            step: 2,
            metric: "ndcg@10".to_owned(),
            value: 0.1 + 0.7,
            active_dimensions: 150.0,
            queries: 3,
            documents: 9,
            over_target: Some(1.25),
            seconds: 1.5,
            ..EvaluationRecord::default()
        };
        let warning = Warning {
            finding: Finding::LossSpike,
            stage: "contrastive".to_owned(),
            step: 2,
            total_step: 2,
            cause: "a \"quoted\" cause\nof two lines".to_owned(),
            mend: "mend".to_owned(),
        };
        let written = vec![
            Record::Calibration(calibration),
            step(1),
            step(2),
            Record::Evaluation(evaluation),
            Record::Warning(warning),
        ];
        let mut log = MetricsLog::open(&path, 0, 0).unwrap();
        let mut reader = MetricsReader::new(&path);
        for record in &written[..2] {
            log.write(record).unwrap();
        }
        assert_eq!(reader.read().unwrap(), Fresh { records: written[..2].to_vec(), ..Fresh::default() });
        assert_eq!(reader.read().unwrap(), Fresh::default());
        for record in &written[2..] {
            log.write(record).unwrap();
        }
        assert_eq!(reader.read().unwrap().records, written[2..]);
        assert_eq!(MetricsReader::new(&path).read().unwrap().records, written);

        // A run that goes on from step 1 puts a shorter file in place.
        drop(log);
        let mut log = MetricsLog::open(&path, 1, 0).unwrap();
        log.write(&step(2)).unwrap();
        let fresh = reader.read().unwrap();
        assert!(fresh.anew);
        assert_eq!(fresh.records, written[..3]);
    }

    #[test]
    fn half_lines_wait_and_unknown_ones_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut reader = MetricsReader::new(&path);
        assert_eq!(reader.read().unwrap(), Fresh::default());
        let line = serde_json::to_string(&step(1)).unwrap();
        let (first, second) = line.split_at(40);
        let mut file = File::create(&path).unwrap();
        file.write_all(first.as_bytes()).unwrap();
        assert!(reader.read().unwrap().records.is_empty());
        writeln!(file, "{second}\n{{\"kind\":\"of tomorrow\"}}").unwrap();
        let fresh = reader.read().unwrap();
        assert_eq!((fresh.records, fresh.unreadable, fresh.anew), (vec![step(1)], 1, false));
        // A step of an earlier version, which had fewer fields.
        writeln!(file, r#"{{"kind":"step","stage":"warm_start","step":1,"total_step":1,"loss":98.5,"parts":{{}},"learning_rate":0.0,"active_dimensions":197.5,"gradient_norm":3456.0,"tokens":5106,"tokens_per_second":1426.0,"seconds":3.5}}"#).unwrap();
        let Record::Step(old) = reader.read().unwrap().records.remove(0) else { panic!("a step") };
        assert_eq!((old.total_step, old.zero_vectors, old.lambda), (1, 0, None));
        std::fs::remove_file(&path).unwrap();
        assert!(reader.read().unwrap().anew);
    }
}

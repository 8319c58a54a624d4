//! A run's event files, read by a reader of this test's own, written from the descriptions of TFRecord, protobuf's
//! wire form and TensorBoard's messages: they hold what `metrics.jsonl` holds, once, also after a stop.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{recipe, world};
use nsparse_core::{Cancel, NoProgress, Progress, Task};
use nsparse_trainer::run_folder::RunFolder;
use nsparse_trainer::tensorboard::event_files;
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, train};

/// CRC-32C bit by bit, masked.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn records(mut file: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while !file.is_empty() {
        let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        assert_eq!(u32::from_le_bytes(file[8..12].try_into().unwrap()), masked_crc(&file[..8]));
        let data = &file[12..12 + length];
        assert_eq!(u32::from_le_bytes(file[12 + length..16 + length].try_into().unwrap()), masked_crc(data));
        out.push(data);
        file = &file[16 + length..];
    }
    out
}

enum Field<'a> {
    Varint(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

fn message(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let end = bytes.iter().position(|b| b & 0x80 == 0).unwrap();
        let (number, rest) = bytes.split_at(end + 1);
        *bytes = rest;
        number.iter().rev().fold(0, |value, b| value << 7 | u64::from(b & 0x7f))
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => 0,
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("wire type {other}"),
        };
        let (value, rest) = bytes.split_at(length);
        bytes = rest;
        let field = match key & 7 {
            0 => Field::Varint(varint(&mut bytes)),
            1 => Field::Double(f64::from_le_bytes(value.try_into().unwrap())),
            5 => Field::Float(f32::from_le_bytes(value.try_into().unwrap())),
            _ => Field::Bytes(value),
        };
        out.push((key >> 3, field));
    }
    out
}

/// What event files say, in the order of their names.
#[derive(Default)]
struct Read {
    /// Tag → steps with values, in order.
    scalars: BTreeMap<String, Vec<(u64, f32)>>,
    /// Tag → steps with texts.
    texts: BTreeMap<String, Vec<(u64, String)>>,
    /// Steps from which a restart forgets.
    restarts: Vec<u64>,
}

fn read(dir: &Path) -> Read {
    let mut out = Read::default();
    for path in event_files(dir) {
        let bytes = std::fs::read(&path).unwrap();
        for (number, data) in records(&bytes).into_iter().enumerate() {
            let mut step = 0;
            for (field, value) in message(data) {
                match (field, value) {
                    (1, Field::Double(time)) => assert!(time > 1.7e9),
                    (2, Field::Varint(n)) => step = n,
                    (3, Field::Bytes(version)) => {
                        assert_eq!((number, version), (0, b"brain.Event:2".as_slice()));
                    }
                    (5, Field::Bytes(summary)) => values(summary, step, &mut out),
                    (7, Field::Bytes(session)) => {
                        assert!(matches!(message(session)[..], [(1, Field::Varint(1))]));
                        out.restarts.push(step);
                    }
                    (field, _) => panic!("field {field} of an event"),
                }
            }
        }
    }
    out
}

fn values(summary: &[u8], step: u64, out: &mut Read) {
    for (_, value) in message(summary) {
        let Field::Bytes(value) = value else { panic!("a value is a message") };
        let mut tag = String::new();
        for (field, value) in message(value) {
            match (field, value) {
                (1, Field::Bytes(name)) => tag = String::from_utf8(name.to_vec()).unwrap(),
                (2, Field::Float(number)) => out.scalars.entry(tag.clone()).or_default().push((step, number)),
                (8, Field::Bytes(tensor)) => {
                    let texts = message(tensor).into_iter().filter_map(|(field, value)| match (field, value) {
                        (8, Field::Bytes(text)) => Some(String::from_utf8(text.to_vec()).unwrap()),
                        _ => None,
                    });
                    out.texts.entry(tag.clone()).or_default().extend(texts.map(|t| (step, t)));
                }
                (9, Field::Bytes(_)) => {}
                (field, _) => panic!("field {field} of a value"),
            }
        }
    }
}

fn run(config: &TrainConfig, start: Start, cancel: &Cancel, progress: &dyn Progress) -> Summary {
    train(config, start, &Hooks { cancel, progress }).unwrap()
}

/// Asks to stop at the first of the named tasks.
struct StopAt<'a>(&'a Cancel, &'static str);

impl Progress for StopAt<'_> {
    fn start(&self, name: &str, total: u64) -> Box<dyn Task> {
        if name == self.1 {
            self.0.cancel();
        }
        NoProgress.start(name, total)
    }
}

#[test]
fn events_hold_what_the_metrics_hold() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    // A guard that finds something.
    let config = recipe(&world, "run", &["guard.max_density=0.01", "calibration.when=never"]);
    run(&config, Start::New, &Cancel::default(), &NoProgress);
    let (read, written) = (read(&config.run.dir), RunFolder::open_begun(&config.run.dir).unwrap());
    let history = &written.history;
    assert_eq!((history.steps.len(), history.unreadable, read.restarts.len()), (22, 0, 0));
    let mut expected: BTreeMap<String, Vec<(u64, f32)>> = BTreeMap::new();
    let mut expect = |tag: String, step: usize, value: f64| {
        expected.entry(tag).or_default().push((step as u64, value as f32));
    };
    for s in &history.steps {
        for (name, value) in [
            ("loss", s.loss),
            ("active_dimensions", s.active_dimensions),
            ("zero_vectors", s.zero_vectors as f64),
            ("masked_candidates", s.masked_candidates as f64),
            ("learning_rate", s.learning_rate),
            ("gradient_norm", s.gradient_norm),
            ("tokens_per_second", s.tokens_per_second),
        ] {
            expect(format!("{}/{name}", s.stage), s.total_step, value);
        }
        for (part, value) in &s.parts {
            expect(format!("{}/loss/{part}", s.stage), s.total_step, *value);
        }
        if let Some(lambda) = s.lambda {
            expect(format!("{}/lambda", s.stage), s.total_step, lambda);
        }
    }
    for (step, e) in &history.evaluations {
        expect("evaluation/ndcg@10".to_owned(), *step, e.value);
        expect("evaluation/active_dimensions".to_owned(), *step, e.active_dimensions);
    }
    assert_eq!(history.evaluations.iter().map(|(at, e)| at - e.step).collect::<Vec<_>>(), [12; 4]);
    assert_eq!(read.scalars, expected);
    assert!(!history.warnings.is_empty());
    for warning in &history.warnings {
        let texts = &read.texts[&format!("guard/{}", warning.finding.name())];
        let there: Vec<&String> = texts.iter().filter(|t| t.0 == warning.total_step as u64).map(|t| &t.1).collect();
        assert_eq!(there.len(), 1, "{warning}");
        assert!(there[0].contains(&warning.cause) && there[0].contains(&warning.mend));
    }
}

#[test]
fn a_run_that_goes_on_doubles_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let straight = recipe(&world, "straight", &[]);
    run(&straight, Start::New, &Cancel::default(), &NoProgress);
    let straight = read(&straight.run.dir);
    // As after a kill: the newest checkpoints are missing, events go on past the one that is left, the last is torn.
    for (name, missing, files, restarts) in
        [("from step 9", &["0000012"][..], 2, &[10][..]), ("anew", &["0000012", "0000009"], 1, &[])]
    {
        let config = recipe(&world, name, &[]);
        let cancel = Cancel::default();
        run(&config, Start::New, &cancel, &StopAt(&cancel, "Evaluating"));
        for step in missing {
            std::fs::remove_dir_all(config.run.dir.join(format!("checkpoints/step-{step}"))).unwrap();
        }
        let before = event_files(&config.run.dir);
        let bytes = std::fs::read(&before[0]).unwrap();
        std::fs::write(&before[0], &bytes[..bytes.len() - 3]).unwrap();
        run(&config, Start::Continue, &Cancel::default(), &NoProgress);
        let resumed = read(&config.run.dir);
        let without_clock = |read: &Read| {
            let mut scalars = read.scalars.clone();
            scalars.retain(|tag, _| !tag.ends_with("tokens_per_second"));
            scalars
        };
        assert_eq!(without_clock(&resumed), without_clock(&straight), "{name}");
        let after = event_files(&config.run.dir);
        assert_eq!((after.len(), resumed.restarts.as_slice()), (files, restarts), "{name}");
        assert!(after.last() > before.last());
    }
}

#[test]
fn an_evaluation_that_comes_again_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["checkpoint.every=12"]);
    let cancel = Cancel::default();
    // The checkpoint of step 12 is from before the evaluation of that step.
    run(&config, Start::New, &cancel, &StopAt(&cancel, "Evaluating"));
    let kept = config.run.dir.join("kept");
    std::fs::rename(config.run.dir.join("checkpoints"), &kept).unwrap();
    run(&config, Start::Replace, &Cancel::default(), &NoProgress);
    std::fs::remove_dir_all(config.run.dir.join("checkpoints")).unwrap();
    std::fs::rename(&kept, config.run.dir.join("checkpoints")).unwrap();
    let once = read(&config.run.dir);
    assert_eq!(once.scalars["evaluation/ndcg@10"].len(), 4);
    run(&config, Start::Continue, &Cancel::default(), &NoProgress);
    let again = read(&config.run.dir);
    assert_eq!(again.restarts, [13]);
    assert_eq!(again.scalars["evaluation/ndcg@10"], once.scalars["evaluation/ndcg@10"]);
    assert_eq!(again.scalars["contrastive/loss"], once.scalars["contrastive/loss"]);
}

#[test]
fn the_switch_and_a_replaced_run() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["run.tensorboard=false", "train.steps=0"]);
    run(&config, Start::New, &Cancel::default(), &NoProgress);
    assert!(event_files(&config.run.dir).is_empty());
    // A run may be replaced with or without; other programs' files are nobody's business.
    std::fs::write(config.run.dir.join("events.out.tfevents.17.host.0"), "not ours").unwrap();
    let config = recipe(&world, "run", &["train.steps=0"]);
    run(&config, Start::Replace, &Cancel::default(), &NoProgress);
    assert_eq!(event_files(&config.run.dir).len(), 1);
    run(&config, Start::Replace, &Cancel::default(), &NoProgress);
    assert_eq!(event_files(&config.run.dir).len(), 1);
    assert!(config.run.dir.join("events.out.tfevents.17.host.0").is_file());
    let sittings = RunFolder::open_begun(&config.run.dir).unwrap().sittings;
    assert_eq!((sittings.len(), sittings[0].total_step, sittings[0].stages.len()), (1, 0, 1));
    assert!(sittings[0].machine.threads > 0 && sittings[0].config_hash.len() == 64);
}

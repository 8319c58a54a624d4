//! Long documents in whole runs: what fits is not touched, budgets change nothing but rounding, and a run with segments
//! and a late cache goes on bit for bit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{recipe, world};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, NoProgress, Progress, Task};
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, check, train};

fn run(config: &TrainConfig, start: Start) -> Summary {
    train(config, start, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

/// Stops a run after so many contrastive steps.
struct StopAfter<'a>(&'a Cancel, usize);

struct Counting(Option<(Cancel, std::sync::atomic::AtomicUsize)>);

impl Progress for StopAfter<'_> {
    fn start(&self, name: &str, _total: u64) -> Box<dyn Task> {
        let counts = (name == "Training").then(|| (self.0.clone(), self.1.into()));
        Box::new(Counting(counts))
    }
}

impl Task for Counting {
    fn advance(&self, units: u64) {
        if let Some((cancel, left)) = &self.0 {
            let units = usize::try_from(units).unwrap();
            if left.fetch_sub(units, std::sync::atomic::Ordering::SeqCst) == units {
                cancel.cancel();
            }
        }
    }

    fn message(&self, _text: &str) {}
}

fn weights(config: &TrainConfig) -> Vec<u8> {
    std::fs::read(config.run.dir.join("model/model.safetensors")).unwrap()
}

/// The logged steps of a stage.
fn steps(dir: &Path, stage: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|l| l["kind"] == "step" && l["stage"] == stage).collect()
}

fn infonce(dir: &Path) -> Vec<f64> {
    steps(dir, "contrastive").iter().map(|l| l["parts"]["infonce"].as_f64().unwrap()).collect()
}

/// Every document of the world has 8 pieces, and a window here room for 3.
const SHORT: [&str; 2] = ["data.max_tokens=5", "data.segments={max: 3}"];

#[test]
fn what_fits_is_trained_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let plain = recipe(&world, "plain", &[]);
    let fits = recipe(&world, "fits", &["data.segments={max: 4, overlap: 3}"]);
    run(&plain, Start::New);
    run(&fits, Start::New);
    assert!(weights(&plain) == weights(&fits));
    let facts = |c: &TrainConfig| ModelDir::open(&c.run.dir.join("model")).unwrap().facts().unwrap();
    assert_eq!(facts(&plain).segments, None);
    assert_eq!(facts(&fits).segments, fits.data.segments);

    let cut = recipe(&world, "cut", &["data.max_tokens=5"]);
    let one = recipe(&world, "one", &["data.max_tokens=5", "data.segments={max: 1}"]);
    let three = recipe(&world, "three", &SHORT);
    for config in [&cut, &one, &three] {
        run(config, Start::New);
    }
    assert!(weights(&cut) == weights(&one));
    assert!(weights(&cut) != weights(&three));
}

#[test]
fn a_run_with_segments_and_a_late_cache_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let keys = [
        &SHORT[..],
        &["train.late_cache=9", "train.segment_budget=7", "train.accumulation=2", "data.segments.overlap=1"],
        &["warm_start.segment_budget=5"],
    ]
    .concat();
    let whole = recipe(&world, "whole", &keys);
    run(&whole, Start::New);
    for after in [1, 4, 7] {
        let stopped = recipe(&world, &format!("stopped-{after}"), &keys);
        let cancel = Cancel::default();
        let summary =
            train(&stopped, Start::New, &Hooks { cancel: &cancel, progress: &StopAfter(&cancel, after) }).unwrap();
        assert!(!summary.finished);
        assert!(run(&stopped, Start::Continue).finished);
        assert!(weights(&whole) == weights(&stopped), "stopped after {after} steps");
        assert_eq!(infonce(&whole.run.dir), infonce(&stopped.run.dir));
    }
    // Without the cache's memory the steps would be others.
    let without = recipe(&world, "without", &keys.iter().copied().filter(|k| !k.contains("late")).collect::<Vec<_>>());
    run(&without, Start::New);
    let (with, without) = (infonce(&whole.run.dir), infonce(&without.run.dir));
    assert_ne!(with[1..], without[1..]);
}

#[test]
fn a_segment_budget_changes_nothing_but_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let losses = |name: &str, more: &[&str]| {
        let config = recipe(&world, name, &[&SHORT[..], &["train.late_cache=6"], more].concat());
        run(&config, Start::New);
        let all = [steps(&config.run.dir, "warm_start"), steps(&config.run.dir, "contrastive")].concat();
        all.iter().map(|l| l["loss"].as_f64().unwrap()).collect::<Vec<f64>>()
    };
    let whole = losses("whole", &[]);
    let parts = losses("parts", &["train.segment_budget=4", "warm_start.segment_budget=3"]);
    assert_eq!(whole.len(), 22);
    for (step, (a, b)) in whole.iter().zip(&parts).enumerate() {
        assert!((a - b).abs() < 1e-3 * a.abs(), "step {step}: {a} against {b}");
    }
}

/// The first step has an empty cache; from then on a batch is compared with more documents, which can only raise the loss
/// of a model that hardly moves.
#[test]
fn a_late_cache_gives_more_negatives() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let still = ["train.dropout=0", "train.learning_rate={encoder: 1e-9, head: 1e-9}"];
    let losses = |name: &str, more: &[&str]| {
        let config = recipe(&world, name, &[&still[..], more].concat());
        run(&config, Start::New);
        infonce(&config.run.dir)
    };
    let (off, on) = (losses("off", &[]), losses("on", &["train.late_cache=12"]));
    assert_eq!(off[0].to_bits(), on[0].to_bits());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    assert!(mean(&on[1..]) > mean(&off[1..]) + 0.3, "{on:?} {off:?}");
}

#[test]
fn check_counts_segments_and_what_lies_beyond() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let report = |max: usize| {
        let sets = ["data.max_tokens=5".to_owned(), format!("data.segments={{max: {max}, overlap: 1}}")];
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        check(&recipe(&world, "run", &sets), &Cancel::default(), &NoProgress).unwrap()
    };
    // 8 pieces: 3, then 2 new ones a segment. Two segments read 5, four read 8 (the last brings one, which is enough).
    let two = report(2);
    assert_eq!(two.segments, Some(2.0));
    assert!((two.truncated_pieces - 3.0 / 8.0).abs() < 1e-12 && (two.truncated_documents - 1.0).abs() < 1e-12);
    assert!(two.to_string().contains("beyond segments    100.0 % of documents, 37.5 % of word pieces"), "{two}");
    let four = report(4);
    assert_eq!((four.segments, four.truncated_pieces), (Some(4.0), 0.0));
    assert!(four.to_string().contains("segments           4.00 a document"), "{four}");
}

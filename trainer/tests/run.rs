//! Whole runs on a tiny world: they learn, they stop and go on bit for bit, and they refuse what does not fit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{recipe, world};
use nsparse_core::{Cancel, NoProgress, Progress, Task};
use nsparse_trainer::{Error, Hooks, Start, Summary, TrainConfig, check, train};

fn run(config: &TrainConfig, start: Start) -> Summary {
    try_run(config, start, &Cancel::default(), &NoProgress).unwrap()
}

fn try_run(
    config: &TrainConfig,
    start: Start,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> nsparse_trainer::Result<Summary> {
    train(config, start, &Hooks { cancel, progress })
}

/// Asks to stop once a number of steps of the named bar is done.
struct StopAfter<'a> {
    cancel: &'a Cancel,
    bar: &'static str,
    steps: usize,
}

struct Counting {
    cancel: Cancel,
    left: Option<AtomicUsize>,
}

impl Progress for StopAfter<'_> {
    fn start(&self, name: &str, _total: u64) -> Box<dyn Task> {
        let left = (name == self.bar).then(|| AtomicUsize::new(self.steps));
        Box::new(Counting { cancel: self.cancel.clone(), left })
    }
}

impl Task for Counting {
    fn advance(&self, units: u64) {
        if let Some(left) = &self.left
            && left.fetch_sub(units as usize, Ordering::SeqCst) <= units as usize
        {
            self.cancel.cancel();
        }
    }

    fn message(&self, _text: &str) {}
}

/// The steps of `metrics.jsonl` without what depends on the clock.
fn steps(dir: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(dir.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| {
            let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
            let object = value.as_object_mut().unwrap();
            object.remove("seconds");
            object.remove("tokens_per_second");
            value
        })
        .collect()
}

#[test]
fn a_run_learns_and_writes_what_it_promises() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["warm_start.steps=120", "train.steps=40", "checkpoint.every=0"]);
    let summary = run(&config, Start::New);
    let dir = &config.run.dir;
    assert!(summary.finished);
    assert_eq!(summary.steps, 160);

    let calibration = summary.calibration.clone().unwrap();
    assert!((calibration.active_after - 12.0).abs() < 6.0, "{calibration:?}");
    let lines = steps(dir);
    let losses = |stage: &str| -> Vec<f64> {
        lines.iter().filter(|l| l["stage"] == stage && l["kind"] == "step").map(|l| l["loss"].as_f64().unwrap()).collect()
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let warm = losses("warm_start");
    assert_eq!(warm.len(), 120);
    assert!(mean(&warm[110..]) < 0.5 * mean(&warm[..10]), "{} to {}", mean(&warm[..10]), mean(&warm[110..]));
    let contrastive = losses("contrastive");
    assert!(mean(&contrastive[30..]) < mean(&contrastive[..10]));

    // Evaluated before, every 4 steps, and after.
    let at: Vec<usize> = summary.evaluations.iter().map(|e| e.step).collect();
    assert_eq!(at, (0..=10).map(|i| 4 * i).collect::<Vec<_>>());
    let best = summary.best.clone().unwrap();
    assert!(summary.evaluations.iter().all(|e| e.value <= best.value));
    assert!(best.value > 0.5, "{best:?}");

    // The kept model gives the best evaluation's metric; its query side works.
    let model = nsparse_core::model_dir::ModelDir::open(&dir.join("model")).unwrap();
    assert_eq!(model.facts().unwrap().max_tokens, 12);
    let query = model.query_encoder().unwrap().encode(&format!("{} . {}", common::word(3), common::word(3))).unwrap();
    assert_eq!(query.len(), 1);
    for file in ["config.json", "vocab.txt", "idf.meta.json"] {
        assert!(dir.join("model").join(file).is_file(), "{file}");
    }
    assert!(dir.join("warm-start/model.safetensors").is_file());
    let resolved = std::fs::read_to_string(dir.join("config.yaml")).unwrap();
    assert_eq!(TrainConfig::parse(&resolved, &[]).unwrap(), config);
    let written: Summary = nsparse_core::files::read_json(&dir.join("summary.json")).unwrap();
    assert_eq!(written.evaluations.len(), summary.evaluations.len());
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let whole = recipe(&world, "whole", &[]);
    let straight = run(&whole, Start::New);
    // Once within each stage, on and off the steps that write checkpoints anyway, and within an evaluation.
    for (bar, count, done) in [("Warm start", 7, 7), ("Training", 5, 17), ("Evaluating", 40, 16)] {
        let config = recipe(&world, &format!("stopped at {count}"), &[]);
        let cancel = Cancel::default();
        let stopped = try_run(&config, Start::New, &cancel, &StopAfter { cancel: &cancel, bar, steps: count });
        let stopped = stopped.unwrap();
        assert!(!stopped.finished);
        if bar != "Evaluating" {
            assert_eq!(stopped.steps, done, "{bar}");
        }
        let resumed = run(&config, Start::Continue);
        assert!(resumed.finished);
        assert_eq!(resumed.best.as_ref().map(|b| (b.step, b.value)), straight.best.as_ref().map(|b| (b.step, b.value)));
        assert_eq!(steps(&config.run.dir), steps(&whole.run.dir), "{bar}");
        for file in ["model/model.safetensors", "warm-start/model.safetensors", "model/idf.json"] {
            let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert!(read(&config.run.dir) == read(&whole.run.dir), "{bar}: {file}");
        }
        for file in ["parameters", "first_moment", "second_moment"] {
            let name = format!("checkpoints/step-0000022/{file}.safetensors");
            let read = |dir: &Path| std::fs::read(dir.join(&name)).unwrap();
            assert!(read(&config.run.dir) == read(&whole.run.dir), "{bar}: {name}");
        }
    }
}

//! Whole runs on a tiny world: they learn, they stop and go on bit for bit, and they refuse what does not fit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{StopAfter, recipe, world};
use nsparse_core::{Cancel, NoProgress, Progress};
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
        lines
            .iter()
            .filter(|l| l["stage"] == stage && l["kind"] == "step")
            .map(|l| l["loss"].as_f64().unwrap())
            .collect()
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
    // The warm start's target, ranked exactly, is what the model comes near.
    let reference = summary.lexical_reference.unwrap();
    assert!(reference > 0.5 && best.value > 0.85 * reference, "{} against {reference}", best.value);

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
    // Once within each stage, on and off the steps that write checkpoints anyway, and at the start of an evaluation.
    for (bar, count, done) in [("Warm start", 7, 7), ("Training", 5, 17), ("Evaluating", 0, 12)] {
        let config = recipe(&world, &format!("stopped at {count}"), &[]);
        let cancel = Cancel::default();
        let stopped = try_run(&config, Start::New, &cancel, &StopAfter { cancel: &cancel, bar, steps: count });
        let stopped = stopped.unwrap();
        assert!(!stopped.finished);
        assert_eq!(stopped.steps, done, "{bar}");
        assert_eq!(stopped.evaluations.len(), if done < 13 { 0 } else { 2 }, "{bar}");
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

#[test]
fn a_checkpoint_of_another_recipe_is_refused_by_its_key() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &[]);
    let cancel = Cancel::default();
    let stop = StopAfter { cancel: &cancel, bar: "Warm start", steps: 4 };
    try_run(&config, Start::New, &cancel, &stop).unwrap();
    let before = steps(&config.run.dir);
    let refused = |config: &TrainConfig| {
        let error = try_run(config, Start::Continue, &Cancel::default(), &NoProgress).unwrap_err();
        assert!(matches!(error, Error::Checkpoint { .. }), "{error}");
        assert!(error.hint().is_some());
        error.to_string()
    };
    let message = refused(&recipe(&world, "run", &["train.learning_rate.encoder=1e-4"]));
    assert!(message.contains("`train.learning_rate.encoder` is 0.002 there and 0.0001 here"), "{message}");
    // Other data under the same recipe.
    let rows = std::fs::read_to_string(world.join("rows.jsonl")).unwrap();
    let fewer: Vec<&str> = rows.lines().skip(1).collect();
    std::fs::write(world.join("rows.jsonl"), fewer.join("\n")).unwrap();
    let message = refused(&config);
    assert!(message.contains("data"), "{message}");
    // Nothing was touched, and the old run still goes on; how often it logs may differ.
    std::fs::write(world.join("rows.jsonl"), rows).unwrap();
    assert_eq!(steps(&config.run.dir), before);
    assert!(run(&recipe(&world, "run", &["run.log_every=5"]), Start::Continue).finished);
}

#[test]
fn a_folder_with_a_run_is_not_overwritten_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["warm_start.steps=2", "train.steps=0"]);
    let summary = run(&config, Start::New);
    assert!(summary.finished && summary.evaluations.is_empty() && summary.model_dir.is_some());
    let error = try_run(&config, Start::New, &Cancel::default(), &NoProgress).unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
    assert_eq!(run(&config, Start::Replace).steps, 2);
}

#[test]
fn the_gradient_cache_and_micro_batches_change_nothing_but_rounding() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let losses = |run_name: &str, overrides: &[&str]| -> Vec<f64> {
        let config = recipe(&world, run_name, overrides);
        run(&config, Start::New);
        steps(&config.run.dir).iter().filter_map(|l| l["loss"].as_f64()).collect()
    };
    let whole = losses("whole", &[]);
    let parts = losses("parts", &["train.micro_batch=3", "warm_start.micro_batch=3"]);
    assert_eq!(whole.len(), 22);
    for (step, (a, b)) in whole.iter().zip(&parts).enumerate() {
        assert!((a - b).abs() < 1e-3 * a.abs(), "step {step}: {a} against {b}");
    }
}

#[test]
fn accumulated_batches_are_averaged() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let only = ["warm_start.steps=0", "train.dropout=0", "train.learning_rate={encoder: 1e-12, head: 1e-12}"];
    let losses = |run_name: &str, more: &[&str]| -> Vec<f64> {
        let config = recipe(&world, run_name, &[&only[..], more].concat());
        run(&config, Start::New);
        steps(&config.run.dir).iter().filter_map(|l| l["parts"]["infonce"].as_f64()).collect()
    };
    let single = losses("single", &["train.steps=4"]);
    let double = losses("double", &["train.steps=2", "train.accumulation=2"]);
    for (step, value) in double.iter().enumerate() {
        let mean = f64::midpoint(single[2 * step], single[2 * step + 1]);
        assert!((value - mean).abs() < 1e-4 * mean, "step {step}: {value} against {mean}");
    }
}

#[test]
fn a_loss_that_is_not_finite_names_step_and_cause() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["warm_start.learning_rate.encoder=1e30", "optimizer.max_grad_norm=null"]);
    let error = try_run(&config, Start::New, &Cancel::default(), &NoProgress).unwrap_err();
    let Error::NonFinite { stage, step, hint, .. } = &error else { panic!("{error}") };
    assert_eq!(*stage, "warm_start");
    assert!(*step > 1 && *step < 12 && !hint.is_empty(), "{error}");
    assert!(!config.run.dir.join("model").exists());
}

#[test]
fn stored_teacher_scores_are_learned_from() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let scored: Vec<String> = (0..12)
        .map(|q| {
            let docs: Vec<String> =
                (0..4).map(|d| format!("{} {}", common::word(q + 7 * d), common::word(d))).collect();
            serde_json::json!({"query": common::word(q), "docs": docs, "scores": [3.0, 2.0, 1.0, 0.0]}).to_string()
        })
        .collect();
    std::fs::write(world.join("rows.jsonl"), scored.join("\n")).unwrap();
    let only_kl = [
        "data.dir=null",
        "eval.fraction=0",
        "train.losses.kl.teacher=rows",
        "train.losses.kl.candidates=own",
        "train.negatives=3",
    ];
    let refused = try_run(&recipe(&world, "a", &only_kl), Start::New, &Cancel::default(), &NoProgress).unwrap_err();
    assert!(refused.to_string().contains("`train.losses.infonce.weight`"), "{refused}");
    let config = recipe(
        &world,
        "b",
        &[
            &only_kl[..],
            &[
                "train.losses.infonce.weight=0",
                "train.losses.lexical.weight=0",
                "train.steps=100",
                "train.losses.flops.weight=0",
                "train.learning_rate={encoder: 3e-3, head: 3e-3}",
            ],
        ]
        .concat(),
    );
    run(&config, Start::New);
    let kl: Vec<f64> = steps(&config.run.dir).iter().filter_map(|l| l["parts"]["kl"].as_f64()).collect();
    assert!(kl[90..].iter().sum::<f64>() < 0.7 * kl[..10].iter().sum::<f64>(), "{kl:?}");
}

#[test]
fn check_reports_without_writing() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = recipe(&world, "run", &["train.negatives=3", "data.max_tokens=8"]);
    let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
    assert_eq!((report.documents, report.queries, report.rows), (common::DOCUMENTS, common::QUERIES, common::QUERIES));
    assert_eq!((report.held_out_queries, report.examples), (4, 16));
    assert_eq!(report.rows_short_of_negatives, common::QUERIES);
    // Every document has 8 pieces, of which 6 fit.
    assert!((report.truncated_documents - 1.0).abs() < 1e-12 && (report.truncated_pieces - 0.25).abs() < 1e-12);
    assert_eq!(report.lengths.histogram[0].1, common::DOCUMENTS);
    assert_eq!(report.stages.len(), 2);
    assert!(report.seconds > 0.0 && report.memory_bytes.is_none_or(|b| b > 1 << 20));
    assert!(report.to_string().contains("cut by max_tokens  100.0 % of documents, 25.0 % of word pieces"));
    assert!(!config.run.dir.exists());
}

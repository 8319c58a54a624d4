//! Runs that are built to collapse: the guard, which never sees the recipe, names the cause within 50 steps. Healthy
//! runs raise nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{sample, sample_recipe};
use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::BertMlm;
use nsparse_trainer::guard::{Finding, Warning};
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, train};

fn run(config: &TrainConfig) -> Summary {
    train(config, Start::New, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

/// The first warning of a kind, which is there by step 50 at the latest.
fn named(summary: &Summary, finding: Finding) -> Warning {
    let all = &summary.warnings;
    let found = all.iter().find(|w| w.finding == finding).unwrap_or_else(|| panic!("no {finding:?} in {all:?}"));
    assert!(found.step <= 50, "{found:?}");
    found.clone()
}

/// A calibrated, warm-started model, changed, as the base of another run.
fn changed(folder: &Path, data: &Path, name: &str, change: impl Fn(&mut BertMlm)) -> String {
    let healthy = run(&sample_recipe(folder, data, &format!("base of {name}"), &["train.steps=0"]));
    let mut model = BertMlm::load(healthy.model_dir.as_ref().unwrap(), 0).unwrap();
    change(&mut model);
    let base = folder.join(name);
    std::fs::create_dir_all(&base).unwrap();
    model.save(&base).unwrap();
    std::fs::copy(folder.join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
    base.display().to_string()
}

#[test]
fn healthy_runs_raise_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    for seed in 1..=5 {
        let summary =
            run(&sample_recipe(folder.path(), &data, &format!("seed {seed}"), &[&format!("run.seed={seed}")]));
        assert!(summary.finished && summary.warnings.is_empty(), "seed {seed}: {:?}", summary.warnings);
    }
}

#[test]
fn a_penalty_at_full_weight_from_the_first_step_is_named_and_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let full = ["train.losses.flops={weight: 300}", "train.steps=60", "guard.action=stop"];
    let config = sample_recipe(folder.path(), &data, "full", &full);
    let summary = run(&config);
    let warning = named(&summary, Finding::FullPenaltyAtOnce);
    assert_eq!(warning.stage, "contrastive");
    assert!(
        warning.cause.contains("full value of 300 from step 0") && warning.mend.contains("ramp_steps"),
        "{warning}"
    );
    // The run ended there, with a checkpoint, and the warning stands in the log.
    assert!(!summary.finished && summary.stopped_by_guard && summary.model_dir.is_none());
    assert_eq!(summary.steps, warning.total_step);
    let checkpoint = config.run.dir.join(format!("checkpoints/step-{:07}", summary.steps));
    assert!(checkpoint.join("state.json").is_file());
    let log = std::fs::read_to_string(config.run.dir.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!((&last["kind"], &last["finding"]), (&"warning".into(), &"full_penalty_at_once".into()));
    // It can go on all the same; what was said is not said again.
    let hooks = Hooks { cancel: &Cancel::default(), progress: &NoProgress };
    let off = sample_recipe(folder.path(), &data, "full", &[&full[..2], &["guard.action=warn"]].concat());
    let resumed = train(&off, Start::Continue, &hooks).unwrap();
    assert!(resumed.finished);
    let again = resumed.warnings.iter().filter(|w| w.finding == Finding::FullPenaltyAtOnce).count();
    assert_eq!(again, 1, "{:?}", resumed.warnings);
}

#[test]
fn logits_that_are_too_large_are_named_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let base = changed(folder.path(), &data, "loud", |model| {
        for name in [
            "cls.predictions.bias",
            "cls.predictions.transform.LayerNorm.weight",
            "cls.predictions.transform.LayerNorm.bias",
        ] {
            model.parameters.get_mut(name).unwrap().iter_mut().for_each(|v| *v *= 20.0);
        }
    });
    let model = format!("model={{path: {base}}}");
    let steps = [&model, "calibration.when=never", "warm_start.steps=0", "train.steps=2"];
    let summary = run(&sample_recipe(folder.path(), &data, "run", &steps));
    let warning = named(&summary, Finding::LogitScale);
    assert!(warning.step == 0 && warning.mend.contains("calibrate"), "{warning}");
    assert!(!summary.warnings.iter().any(|w| w.finding == Finding::DenseStart), "{:?}", summary.warnings);
}

#[test]
fn a_dense_start_and_an_empty_one_are_named_before_the_first_step() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    for (name, shift, finding) in [("dense", 20.0, Finding::DenseStart), ("empty", -40.0, Finding::ZeroStart)] {
        let base = changed(folder.path(), &data, name, |model| {
            model.parameters.get_mut("cls.predictions.bias").unwrap().iter_mut().for_each(|v| *v += shift);
        });
        let model = format!("model={{path: {base}}}");
        let steps = [&model, "calibration.when=never", "warm_start.steps=0", "train.steps=2", "guard.action=stop"];
        let summary = run(&sample_recipe(folder.path(), &data, &format!("run {name}"), &steps));
        let warning = named(&summary, finding);
        assert!(warning.step == 0 && warning.mend.contains("calibration.when: always"), "{warning}");
        assert!(summary.stopped_by_guard && summary.steps == 0);
    }
}

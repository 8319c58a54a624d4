//! The guard's other findings: spikes, dead and always-on tokens, a target that is missed; and healthy runs of other
//! kinds, one of them recorded from a real encoder, which raise nothing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{sample, sample_recipe};
use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::BertMlm;
use nsparse_trainer::guard::{Finding, Guard, GuardState, Telemetry, Warning};
use nsparse_trainer::sections::GuardSection;
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, train};

/// The steps of a healthy run: all-MiniLM-L6-v2 on SciFact, 120 steps of warm start and 120 on mined negatives.
const RECORDED: &str = include_str!("telemetry/scifact-minilm.csv");

fn run(config: &TrainConfig) -> Summary {
    train(config, Start::New, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

fn found(warnings: &[Warning]) -> Vec<Finding> {
    warnings.iter().map(|w| w.finding).collect()
}

/// What the guard says to the recorded steps, each changed by `change` (loss, norm, active dimensions).
fn replay(change: impl Fn(&str, usize, &mut [f64; 3])) -> Vec<Warning> {
    let mut guard = Guard::new(GuardSection::default(), GuardState::default());
    let mut warnings = Vec::new();
    let mut total_step = 0;
    for line in RECORDED.lines().skip(1) {
        let columns: Vec<&str> = line.split(',').collect();
        let number = |i: usize| columns[i].parse::<f64>().unwrap();
        let (stage, step) = (columns[0], columns[1].parse().unwrap());
        let mut figures = [number(3), number(4), number(5)];
        change(stage, step, &mut figures);
        total_step += 1;
        warnings.extend(guard.step(&Telemetry {
            stage,
            step,
            steps: columns[2].parse().unwrap(),
            total_step,
            loss: figures[0],
            penalty: 0.0,
            gradient_norm: figures[1],
            lambda: columns[6].parse().ok(),
            slopes: None,
            steering: None,
            documents: 36,
            active_dimensions: figures[2],
            zero_vectors: 0,
            token_documents: &[],
        }));
    }
    assert_eq!(total_step, 240);
    warnings
}

#[test]
fn a_recorded_run_of_a_real_encoder_raises_nothing_until_something_is_wrong() {
    let as_it_was = replay(|_, _, _| {});
    assert!(as_it_was.is_empty(), "{as_it_was:?}");
    // Half as large, twice as large: the thresholds are no absolute figures.
    for scale in [0.5, 2.0] {
        let scaled = replay(|_, _, figures| figures.iter_mut().take(2).for_each(|f| *f *= scale));
        assert!(scaled.is_empty(), "{scaled:?}");
    }
    let at = |warnings: &[Warning], finding: Finding| -> usize {
        let found: Vec<&Warning> = warnings.iter().filter(|w| w.finding == finding).collect();
        assert_eq!(found.len(), 1, "{finding:?} once: {warnings:?}");
        assert!(found[0].stage == "contrastive" && !found[0].mend.is_empty());
        found[0].step
    };
    // One bad batch.
    let spiked = replay(|stage, step, figures| {
        if (stage, step) == ("contrastive", 70) {
            figures[0] *= 30.0;
            figures[1] *= 200.0;
        }
    });
    assert_eq!((at(&spiked, Finding::LossSpike), at(&spiked, Finding::GradientSpike)), (70, 70));
    assert_eq!(spiked.len(), 2, "{spiked:?}");
    // It gets worse from step 30 on, three per cent a step, and the spikes' thresholds see nothing sudden.
    let diverging = replay(|stage, step, figures| {
        if stage == "contrastive" && step > 30 {
            figures[0] *= 1.03f64.powi(step as i32 - 30);
        }
    });
    let step = at(&diverging, Finding::Diverged);
    assert!((60..=100).contains(&step) && diverging.len() == 1, "{diverging:?}");
    // Dimensions are lost from step 60 on, a tenth a step, and nothing presses.
    let fading = replay(|stage, step, figures| {
        if stage == "contrastive" && step > 60 {
            figures[2] *= 0.9f64.powi(step as i32 - 60);
        }
    });
    let step = at(&fading, Finding::Collapse);
    assert!((61..=110).contains(&step), "{step}");
}

#[test]
fn a_learning_rate_far_too_high_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    // Three hundred times the usual rate, with a warmup. One that blows the loss up within the first ten steps is not
    // told from batches that differ much (docs/training.md).
    let keys = ["train.learning_rate={encoder: 1.0, head: 1.0}", "train.warmup_steps=100", "train.steps=120"];
    let summary = run(&sample_recipe(folder.path(), &data, "slowly", &keys));
    let all = &summary.warnings;
    let named = all.iter().find(|w| w.finding == Finding::Diverged).unwrap_or_else(|| panic!("{all:?}"));
    assert!(named.step <= 50 && named.mend.contains("learning_rate"), "{named}");
}

/// A warm-started model, changed, as the base of another run.
fn changed(folder: &Path, data: &Path, name: &str, change: impl Fn(&mut BertMlm)) -> String {
    let healthy = run(&sample_recipe(folder, data, &format!("base of {name}"), &["train.steps=0"]));
    let mut model = BertMlm::load(healthy.model_dir.as_ref().unwrap(), 0).unwrap();
    change(&mut model);
    let base = folder.join(name);
    std::fs::create_dir_all(&base).unwrap();
    model.save(&base).unwrap();
    std::fs::copy(folder.join("tokenizer.json"), base.join("tokenizer.json")).unwrap();
    format!("model={{path: {}}}", base.display())
}

#[test]
fn tokens_that_are_active_everywhere_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    // Forty tokens are on in every document, and hardly any other is.
    let model = changed(folder.path(), &data, "alike", |model| {
        let bias = model.parameters.get_mut("cls.predictions.bias").unwrap();
        bias.iter_mut().enumerate().for_each(|(i, b)| *b += if (100..140).contains(&i) { 6.0 } else { -1.0 });
    });
    let keys = [&model, "calibration.when=never", "warm_start.steps=0", "train.losses.flops.weight=0"];
    let summary = run(&sample_recipe(folder.path(), &data, "run", &keys));
    let warning = summary.warnings.iter().find(|w| w.finding == Finding::AlwaysOn);
    let warning = warning.unwrap_or_else(|| panic!("{:?}", summary.warnings));
    assert!(warning.step <= 50 && warning.cause.contains("all alike") && warning.mend.contains("df"), "{warning}");
}

#[test]
fn tokens_that_fall_out_of_use_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let pressed =
        ["train.losses.flops={weight: 30, ramp_steps: 30}", "train.steps=80", "train.losses.lexical.weight=0"];
    let summary = run(&sample_recipe(folder.path(), &data, "run", &pressed));
    let warning = summary.warnings.iter().find(|w| w.finding == Finding::DeadTokens);
    let warning = warning.unwrap_or_else(|| panic!("{:?}", summary.warnings));
    assert!(warning.cause.contains("tokens are in use") && warning.mend.contains("penalty"), "{warning}");
}

#[test]
fn a_target_that_is_missed_is_named_once_there_was_time() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    // The loop is told to take far more steps than there are.
    let slow = "train.losses.flops={target: {doc_dims: 20, start_weight: 1e-6, response_steps: 4000}}";
    let summary = run(&sample_recipe(folder.path(), &data, "run", &[slow]));
    let warning = summary.warnings.iter().find(|w| w.finding == Finding::OffTarget);
    let warning = warning.unwrap_or_else(|| panic!("{:?}", summary.warnings));
    // 60 % of the stage is done.
    assert!(warning.step >= 24 && warning.cause.contains("the target 20.0"), "{warning}");
    assert!(warning.mend.contains("response_steps"), "{warning}");
    assert_eq!(found(&summary.warnings), [Finding::OffTarget]);
}

#[test]
fn healthy_runs_of_other_kinds_raise_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let given = changed(folder.path(), &data, "given", |_| {});
    let kinds: [(&str, &[&str]); 6] = [
        ("a given model", &[&given, "calibration.when=never", "warm_start.steps=0"]),
        ("a given model further", &[&given, "run.seed=9", "train.steps=120", "calibration.when=never"]),
        ("steered", &["train.losses.flops={target: {doc_dims: 45}}", "train.steps=120"]),
        ("a teacher", &["train.losses.kl={weight: 1, temperature: 2}", "train.micro_batch=5"]),
        ("grouped", &["train.losses.flops={weight: 3e-3, form: grouped, ramp_steps: 10}", "train.accumulation=2"]),
        ("l1", &["train.losses.flops={weight: 0}", "train.losses.l1={weight: 1e-3, ramp_steps: 20}"]),
    ];
    for (name, keys) in kinds {
        let summary = run(&sample_recipe(folder.path(), &data, name, keys));
        assert!(summary.finished && summary.warnings.is_empty(), "{name}: {:?}", summary.warnings);
    }
}

//! A penalty's weight that is steered: the density of documents outside of the batches ends near the target, from a
//! weight far too small and one far too large, and a stopped run goes on exactly.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(clippy::print_stdout, reason = "densities are shown with --nocapture")]

mod common;

use std::path::Path;

use common::{StopAfter, sample, sample_recipe};
use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::BertMlm;
use nsparse_trainer::data::TrainingData;
use nsparse_trainer::network::Network;
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, train};

fn run(config: &TrainConfig) -> Summary {
    train(config, Start::New, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

/// Mean active dimensions of the corpus's documents that are no training query's positive: batches hold positives
/// alone here.
fn outside(config: &TrainConfig, model: &Path) -> f64 {
    let model = BertMlm::load(model, 0).unwrap();
    let tokenizer = nsparse_core::TextTokenizer::load(config.model.tokenizer.as_ref().unwrap()).unwrap();
    let cancel = Cancel::default();
    let data = TrainingData::load(config, &tokenizer, &cancel, &NoProgress).unwrap();
    let named = tokenizer.vocabulary().len();
    let device = nsparse_encoder::Device::Cpu;
    let network = Network::new(&model.config, device, config.model.activation, &tokenizer.weightless(), named).unwrap();
    let trained: std::collections::BTreeSet<usize> =
        data.queries.iter().flat_map(|q| q.positives.iter().copied()).collect();
    let numbers: Vec<usize> = (0..data.documents.len()).filter(|n| !trained.contains(n)).collect();
    assert!(numbers.len() > 100, "only {} documents stand outside", numbers.len());
    let vectors = network.vectors(&model.parameters, &data.documents, &numbers, &cancel, |_| ()).unwrap();
    vectors.iter().map(|v| v.len() as f64).sum::<f64>() / vectors.len() as f64
}

const STEPS: [&str; 3] = ["train.steps=300", "train.losses.flops.ramp_steps=0", "warm_start.steps=20"];

#[test]
fn the_density_comes_to_its_target_from_a_weight_too_small_and_one_too_large() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    // Begun above the target and below it: a penalty's weight presses, below that the bias is raised.
    for (start_weight, dims) in [("1e-4", "80"), ("1", "80"), ("1e-4", "25"), ("1", "25")] {
        let target = format!("train.losses.flops.target={{doc_dims: 45, start_weight: {start_weight}}}");
        let dims = format!("calibration.active_dimensions={dims}");
        let name = format!("{start_weight} {dims}");
        let config = sample_recipe(folder.path(), &data, &name, &[&STEPS[..], &[&target, &dims]].concat());
        let summary = run(&config);
        let density = outside(&config, summary.model_dir.as_ref().unwrap());
        println!("{name}: {density:.1} of 45");
        assert!((density / 45.0 - 1.0).abs() < 0.1, "{name}: {density}");
        // The summary has the same figure of the same documents.
        let report = summary.density.unwrap();
        assert!((report.mean - density).abs() < 1e-9 && report.held_out == report.documents, "{report:?}");
        assert!(report.target == Some(45.0) && report.documents > 100);
    }
}

#[test]
fn a_stopped_steered_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let data = sample(folder.path());
    let recipe = |name: &str| {
        let steer = "train.losses.flops={target: {doc_dims: 45}, form: df, df: {memory: 100}}";
        sample_recipe(folder.path(), &data, name, &["train.steps=24", "warm_start.steps=4", steer])
    };
    let lines = |config: &TrainConfig| -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(config.run.dir.join("metrics.jsonl")).unwrap();
        let mut lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        for line in &mut lines {
            line.as_object_mut().unwrap().retain(|key, _| key != "seconds" && key != "tokens_per_second");
        }
        lines
    };
    let whole = recipe("whole");
    run(&whole);
    let steered = lines(&whole);
    assert!(steered.iter().any(|l| l["steering"]["corpus"].is_f64() && l["lambda"].is_f64()));
    let parted = recipe("parted");
    let cancel = Cancel::default();
    let stopped = train(
        &parted,
        Start::New,
        &Hooks { cancel: &cancel, progress: &StopAfter { cancel: &cancel, bar: "Training", steps: 13 } },
    )
    .unwrap();
    assert!(!stopped.finished && stopped.steps == 17);
    let hooks = Hooks { cancel: &Cancel::default(), progress: &NoProgress };
    assert!(train(&parted, Start::Continue, &hooks).unwrap().finished);
    assert_eq!(lines(&parted), steered);
    let model = |config: &TrainConfig| std::fs::read(config.run.dir.join("model/model.safetensors")).unwrap();
    assert!(model(&parted) == model(&whole));
}

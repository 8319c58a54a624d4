//! The query side is trained: slopes, resume bit for bit, what a saved model says, and that helpful tokens gain.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;

use common::{recipe, word, world};
use nsparse_core::model_dir::{ModelDir, QuerySideKind};
use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::{Cancel, NoProgress, Progress, Task, TextTokenizer, files};
use nsparse_encoder::{BertConfig, BertMlm, Device, Parameters};
use nsparse_trainer::contrastive::Contrastive;
use nsparse_trainer::data::TrainingData;
use nsparse_trainer::network::Network;
use nsparse_trainer::query_side::QuerySide;
use nsparse_trainer::stage::Stage;
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, train};

fn run(config: &TrainConfig, start: Start, cancel: &Cancel, progress: &dyn Progress) -> Summary {
    train(config, start, &Hooks { cancel, progress }).unwrap()
}

fn whole(config: &TrainConfig) -> Summary {
    run(config, Start::New, &Cancel::default(), &NoProgress)
}

/// Asks to stop at a step of the contrastive stage.
struct StopAt<'a>(&'a Cancel, u64);
struct Bar(Cancel, std::sync::atomic::AtomicU64);

impl Progress for StopAt<'_> {
    fn start(&self, name: &str, _total: u64) -> Box<dyn Task> {
        let steps = if name == "Training" { self.1 } else { u64::MAX };
        if steps == 0 {
            self.0.cancel();
        }
        Box::new(Bar(self.0.clone(), steps.into()))
    }
}

impl Task for Bar {
    fn advance(&self, units: u64) {
        if units > 0 && self.1.fetch_sub(units, std::sync::atomic::Ordering::SeqCst) == units {
            self.0.cancel();
        }
    }

    fn message(&self, _text: &str) {}
}

const SIDES: [&str; 3] = [
    "query={side: trained_idf, learning_rate: 0.05, l1: 1e-3, ramp_steps: 4}",
    "query={side: table, learning_rate: 0.02, flops: 1e-3}",
    "query={side: siamese, flops: 1e-3}",
];

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    for (i, side) in SIDES.iter().enumerate() {
        let straight = recipe(&world, &format!("whole {i}"), &[side]);
        let expected = whole(&straight);
        assert!(expected.evaluations.iter().all(|e| e.query_dimensions.is_some()));
        for at in [0, 5] {
            let config = recipe(&world, &format!("stopped {i} at {at}"), &[side]);
            let cancel = Cancel::default();
            assert!(!run(&config, Start::New, &cancel, &StopAt(&cancel, at)).finished);
            let resumed = run(&config, Start::Continue, &Cancel::default(), &NoProgress);
            assert!(resumed.finished);
            let values = |s: &Summary| s.evaluations.iter().map(|e| (e.step, e.value.to_bits())).collect::<Vec<_>>();
            assert_eq!(values(&resumed), values(&expected), "{side}, {at}");
            let read = |config: &TrainConfig, file: &str| std::fs::read(config.run.dir.join(file)).unwrap();
            let mut same = vec!["model/model.safetensors".to_owned(), "warm-start/idf.json".to_owned()];
            if i < 2 {
                same.push("model/idf.json".to_owned());
            }
            for file in ["parameters", "first_moment", "second_moment"] {
                same.push(format!("checkpoints/step-0000022/{file}.safetensors"));
            }
            for file in same {
                assert!(read(&config, &file) == read(&straight, &file), "{side}, stopped at {at}: {file}");
            }
        }
    }
}

#[test]
fn a_saved_model_says_what_its_queries_are() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    for (i, side) in SIDES.iter().enumerate() {
        // The last step is kept, not the best.
        let config = recipe(&world, &format!("run {i}"), &[side, "eval.fraction=0"]);
        whole(&config);
        let model = ModelDir::open(&config.run.dir.join("model")).unwrap();
        let saved = Parameters::read_tensors(&model.file("model.safetensors")).unwrap();
        assert!(saved.keys().all(|name| !name.starts_with("query.")), "{side}");
        let warm = ModelDir::open(&config.run.dir.join("warm-start")).unwrap();
        assert_eq!(warm.facts().unwrap().query_side, QuerySideKind::Table);
        let idf: BTreeMap<String, f32> = files::read_json(&warm.file("idf.json")).unwrap();
        if i == 2 {
            assert_eq!(model.facts().unwrap().query_side, QuerySideKind::Encoder);
            assert!(!model.file("idf.json").exists() && !model.file("idf.meta.json").exists());
            let message = model.query_encoder().unwrap_err().to_string();
            assert!(message.contains("siamese"), "{message}");
            continue;
        }
        assert_eq!(model.facts().unwrap().query_side, QuerySideKind::Table);
        let table: BTreeMap<String, f32> = files::read_json(&model.file("idf.json")).unwrap();
        assert!(table.values().all(|&w| w > 0.0 && w <= 64.0));
        assert_eq!(table.keys().collect::<Vec<_>>(), idf.keys().collect::<Vec<_>>());
        let moved = table.iter().filter(|(token, w)| idf[*token].to_bits() != w.to_bits()).count();
        assert!(moved > 5, "{moved}");
        let metadata: serde_json::Value = files::read_json(&model.file("idf.meta.json")).unwrap();
        assert_eq!(metadata["learned"]["tokens_moved"], moved, "{metadata}");
        assert!(metadata["corpus_sha256"].is_string());
        assert!(model.query_encoder().unwrap().encode(&word(3)).unwrap().len() <= 1);
    }
}

/// A rate that throws weights below zero leaves tokens out, and the model can still be read.
#[test]
fn a_zeroed_token_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let side = "query={side: trained_idf, learning_rate: 2.0}";
    let config = recipe(&world, "run", &[side, "eval.fraction=0"]);
    whole(&config);
    let model = ModelDir::open(&config.run.dir.join("model")).unwrap();
    let table: BTreeMap<String, f32> = files::read_json(&model.file("idf.json")).unwrap();
    let silent: Vec<&String> = table.iter().filter(|(_, w)| **w <= nsparse_core::idf::SILENT).map(|(t, _)| t).collect();
    assert!(!silent.is_empty());
    let metadata: serde_json::Value = files::read_json(&model.file("idf.meta.json")).unwrap();
    assert_eq!(metadata["learned"]["tokens_zeroed"], silent.len());
    let encoder = model.query_encoder().unwrap();
    assert!(encoder.encode(silent[0]).unwrap().is_empty());
}

/// Queries of a word that tells documents apart and one that misleads: the first gains on the second.
#[test]
fn a_token_that_helps_gains_on_one_that_misleads() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let mut mined = Vec::new();
    for topic in 0..10 {
        for noise in 10..20 {
            let text = |a: usize, b: usize| format!("{} {} {}", word(a), word(b), word(20 + (a + b) % 5));
            let other = |by: usize| (topic + by) % 10;
            mined.push(TrainingRow {
                query: format!("{} {}", word(topic), word(noise)),
                pos: Some(text(topic, 10 + (noise + 3) % 10)),
                negs: vec![text(other(1), noise), text(other(4), noise)],
                ..TrainingRow::default()
            });
        }
    }
    rows::write(&world.join("topics.jsonl"), &mined).unwrap();
    for (name, side) in
        [("free", "{side: trained_idf, learning_rate: 0.05}"), ("projection", "{side: table, learning_rate: 0.05}")]
    {
        let config = recipe(
            &world,
            name,
            &[
                &format!("query={side}"),
                &format!("data.rows={}/topics.jsonl", world.display()),
                "data.dir=null",
                "warm_start.steps=80",
                "train.steps=40",
                "train.negatives=2",
                "train.batch_queries=8",
                "train.losses.kl.weight=0",
                "eval.fraction=0",
            ],
        );
        whole(&config);
        let read = |name: &str| -> BTreeMap<String, f64> {
            files::read_json(&config.run.dir.join(name).join("idf.json")).unwrap()
        };
        let (idf, table) = (read("warm-start"), read("model"));
        let gain = |words: std::ops::Range<usize>| {
            let n = words.len() as f64;
            words.map(|w| table[&word(w)] / idf[&word(w)]).sum::<f64>() / n
        };
        let (helps, misleads) = (gain(0..10), gain(10..20));
        assert!(helps > 1.15 * misleads, "{side}: {helps} against {misleads}");
    }
}

/// The stage's whole gradient against differences of its loss: every parameter of the query side by itself, and all
/// parameters along the gradient. The same in micro-batches.
#[test]
fn slopes_equal_differences() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    for side in SIDES {
        let config = recipe(
            &world,
            "run",
            // The lexical term has slopes where the activation has none: no difference shows those.
            &[
                side,
                "train.dropout=0",
                "train.losses.lexical.weight=0",
                "train.losses.anti_zero.weight=5",
                "train.losses.margin_mse.weight=0.1",
            ],
        );
        let tokenizer = TextTokenizer::load(&world.join("tokenizer.json")).unwrap();
        let data = TrainingData::load(&config, &tokenizer, &Cancel::default(), &NoProgress).unwrap();
        let shape: BertConfig = serde_json::from_value(serde_json::json!({
            "model_type": "bert", "vocab_size": tokenizer.vocabulary().len(), "hidden_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 32, "hidden_act": "gelu", "max_position_embeddings": 16,
            "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.3, "pad_token_id": 0,
        }))
        .unwrap();
        let mut model = BertMlm::random(shape, 4);
        let named = tokenizer.vocabulary().len();
        let network =
            Network::new(&model.config, Device::Cpu, config.model.activation, &tokenizer.weightless(), named).unwrap();
        let query_side = QuerySide::new(&config, &data).unwrap().unwrap();
        query_side.extend(&mut model).unwrap();
        query_side.begin(&mut model.parameters, data.query_encoder.idf(), 1).unwrap();
        let zeroed = network.zeroed.clone();
        let evaluate = |config: &TrainConfig, parameters: &Parameters| {
            let mut stage = Contrastive::new(config, &data, &zeroed).unwrap();
            let mut gradient = vec![0.0f32; parameters.len()];
            let outcome = stage.accumulate(&network, parameters, 3, &mut gradient).unwrap();
            (outcome.loss, gradient)
        };
        let (loss, gradient) = evaluate(&config, &model.parameters);
        assert!(loss.is_finite());
        let small = TrainConfig::clone(&config);
        let small =
            TrainConfig { train: nsparse_trainer::sections::TrainSection { micro_batch: 3, ..small.train }, ..small };
        let largest = gradient.iter().fold(0.0f32, |m, g| m.max(g.abs()));
        for (a, b) in gradient.iter().zip(&evaluate(&small, &model.parameters).1) {
            assert!((a - b).abs() <= 1e-4 * largest, "{side}: {a} {b} in micro-batches");
        }
        let slope = |direction: &dyn Fn(usize) -> f64, step: f64| {
            let at = |sign: f64| {
                let mut moved = model.parameters.clone();
                for (i, p) in moved.data_mut().iter_mut().enumerate() {
                    *p = (f64::from(*p) + sign * step * direction(i)) as f32;
                }
                evaluate(&config, &moved).0
            };
            (at(1.0) - at(-1.0)) / (2.0 * step)
        };
        let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let along = slope(&|i| f64::from(gradient[i]) / norm, 1e-4);
        assert!((along / norm - 1.0).abs() < 0.02, "{side}: {along} along the gradient of norm {norm}");
        let mut seen = 0;
        for spec in model.parameters.specs().iter().filter(|s| s.name.starts_with("query.")) {
            for (i, got) in gradient.iter().enumerate().skip(spec.offset).take(spec.len()) {
                let difference = slope(&|j| f64::from(u8::from(i == j)), 1e-3);
                let got = f64::from(*got);
                assert!(
                    (difference - got).abs() < 2e-3 * f64::from(largest).max(1.0),
                    "{side} {}: {got}, {difference}",
                    spec.name
                );
                seen += usize::from(got != 0.0);
            }
        }
        assert!(side.contains("siamese") || seen >= 5, "{side}: {seen}");
    }
}

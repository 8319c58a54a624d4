//! Runs that learn from an ensemble of teachers: every kind of teacher, what is kept and used again, what is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::{recipe, word, world};
use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::{BertConfig, BertMlm, Parameters};
use nsparse_trainer::parallel::{Meeting, Team, join};
use nsparse_trainer::{Hooks, Start, Summary, TrainConfig, check, follow, train, train_together};

fn run(config: &TrainConfig, start: Start) -> Summary {
    train(config, start, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

/// A folder with a random BERT over the world's tokenizer; with `labels` it is a cross-encoder.
fn teacher(world: &Path, name: &str, seed: u64, labels: Option<usize>) -> PathBuf {
    let folder = world.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": 67, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "hidden_act": "gelu", "max_position_embeddings": 32, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12, "initializer_range": 0.5
    }))
    .unwrap();
    BertMlm::random(config, seed).save(&folder).unwrap();
    std::fs::copy(world.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    if let Some(labels) = labels {
        let path = folder.join("model.safetensors");
        let mut tensors = Parameters::read_tensors(&path).unwrap();
        let values = |n: usize| (0..n).map(|i| ((i * 7 + 3) % 11) as f32 / 11.0 - 0.5).collect::<Vec<f32>>();
        for (name, shape) in [
            ("bert.pooler.dense.weight", vec![8, 8]),
            ("bert.pooler.dense.bias", vec![8]),
            ("classifier.weight", vec![labels, 8]),
            ("classifier.bias", vec![labels]),
        ] {
            let n = shape.iter().product();
            tensors.insert(name.to_owned(), (shape, values(n)));
        }
        Parameters::from_tensors(tensors).unwrap().save(&path).unwrap();
    }
    folder
}

/// One teacher of every kind.
fn all_kinds(world: &Path) -> String {
    teacher(world, "dense", 3, None);
    teacher(world, "siamese", 4, None);
    teacher(world, "cross", 5, Some(1));
    // Query `qI` has the relevant document `d2I`; the file knows that and one more of some.
    let mut scores = String::new();
    for q in 0..common::QUERIES {
        writeln!(scores, "q{q} d{} 3.5\nq{q} d{} 1", 2 * q, 2 * q + 1).unwrap();
    }
    std::fs::write(world.join("scores.tsv"), scores).unwrap();
    let at = world.display();
    format!(
        "teachers.members=[{{kind: dense, path: {at}/dense, query_prefix: '{} ', weight: 2}}, \
         {{kind: sparse, path: {at}/siamese, max_tokens: 10}}, {{kind: cross_encoder, path: {at}/cross}}, \
         {{kind: bm25, analyzer: standard}}, {{kind: scores, file: {at}/scores.tsv, missing: lowest}}]",
        word(1)
    )
}

const ASKED: [&str; 3] =
    ["train.losses.kl.teacher=ensemble", "train.losses.margin_mse.weight=1e-3", "warm_start.steps=0"];

fn config(world: &Path, name: &str, more: &[&str]) -> TrainConfig {
    let mut overrides = vec!["train.losses.margin_mse.teacher=ensemble"];
    overrides.extend(ASKED);
    overrides.extend(more);
    recipe(world, name, &overrides)
}

/// The steps of `metrics.jsonl` without what depends on the clock.
fn steps(dir: &Path) -> Vec<serde_json::Value> {
    let lines = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let mut out: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for line in &mut out {
        let object = line.as_object_mut().unwrap();
        object.remove("seconds");
        object.remove("tokens_per_second");
    }
    out
}

fn computed(summary: &Summary) -> Vec<usize> {
    summary.teachers.iter().map(|t| t.computed).collect()
}

#[test]
fn every_kind_teaches_and_a_second_run_computes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let (members, cache) = (all_kinds(&world), format!("teachers.cache={}/cache", world.display()));
    let first = config(&world, "first", &[&members, &cache]);
    let summary = run(&first, Start::New);
    assert!(summary.finished);
    let names: Vec<&str> = summary.teachers.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["dense dense", "sparse siamese", "cross_encoder cross", "bm25", "scores scores.tsv"]);
    let work = computed(&summary);
    // 16 training queries; each text once, pairs of each batch's queries with all its documents.
    assert!(work[0] > 16 && work[0] <= 16 + common::DOCUMENTS, "{work:?}");
    assert!(work[1] > 16 && work[1] <= 16 + common::DOCUMENTS, "{work:?}");
    assert!(work[2] > 10 * 4 && work[2] <= 16 * common::DOCUMENTS, "{work:?}");
    assert_eq!(work[3..], [0, 0]);
    let lines = steps(&first.run.dir);
    let kl: Vec<f64> = lines.iter().filter_map(|l| l["parts"]["kl"].as_f64()).collect();
    assert_eq!(kl.len(), 10);
    assert!(kl.iter().all(|v| v.is_finite() && *v > 0.0), "{kl:?}");
    assert!(lines.iter().filter_map(|l| l["parts"]["margin_mse"].as_f64()).all(|v| v > 0.0));

    // The same again: nothing is computed, and nothing differs.
    let second = config(&world, "second", &[&members, &cache]);
    let again = run(&second, Start::New);
    assert_eq!(computed(&again), [0; 5]);
    assert_eq!(steps(&second.run.dir), lines);
    // A cache of its own gives the same run too.
    let third = config(&world, "third", &[&members]);
    assert_eq!(computed(&run(&third, Start::New)), work);
    assert_eq!(steps(&third.run.dir), lines);
    assert!(third.run.dir.join("teachers").is_dir());

    // A torn file costs what was torn.
    let part = std::fs::read_dir(world.join("cache")).unwrap().map(|e| e.unwrap().path().join("part-0000.bin"));
    let largest = part.max_by_key(|p| std::fs::metadata(p).unwrap().len()).unwrap();
    let bytes = std::fs::read(&largest).unwrap();
    std::fs::write(&largest, &bytes[..bytes.len() - 5]).unwrap();
    let fourth = config(&world, "fourth", &[&members, &cache]);
    assert_eq!(computed(&run(&fourth, Start::New)).iter().sum::<usize>(), 1);
    assert_eq!(steps(&fourth.run.dir), lines);
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let members = all_kinds(&world);
    let whole = config(&world, "whole", &[&members]);
    run(&whole, Start::New);
    // A checkpoint in the middle, and none of what came after it.
    let stopped = config(&world, "stopped", &[&members, "checkpoint.every=4", "checkpoint.keep=9"]);
    run(&stopped, Start::New);
    let kept = stopped.run.dir.join("checkpoints");
    for entry in std::fs::read_dir(&kept).unwrap().map(|e| e.unwrap()) {
        if entry.file_name() != "step-0000004" {
            std::fs::remove_dir_all(entry.path()).unwrap();
        }
    }
    let summary = run(&stopped, Start::Continue);
    assert_eq!(summary.steps, 10);
    assert_eq!(computed(&summary), [0; 5]);
    assert_eq!(steps(&stopped.run.dir), steps(&whole.run.dir));
    // With another teacher it may not go on; the cache may lie elsewhere.
    let moved = config(&world, "stopped", &[&members, &format!("teachers.cache={}/moved", world.display())]);
    run(&moved, Start::Continue);
    teacher(&world, "dense", 99, None);
    let error = train(&stopped, Start::Continue, &Hooks { cancel: &Cancel::default(), progress: &NoProgress });
    assert!(error.err().unwrap().to_string().contains("cannot be used"));
}

/// Of two ranks the first asks the teachers, and both learn the same: they end with the same parameters (the run checks
/// it), and the losses are those of one process but for rounding.
#[test]
fn two_ranks_learn_from_what_the_first_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let members = all_kinds(&world);
    let kl = |dir: &Path| -> Vec<f64> { steps(dir).iter().filter_map(|l| l["parts"]["kl"].as_f64()).collect() };
    let alone = config(&world, "alone", &[&members]);
    run(&alone, Start::New);
    let shared = config(&world, "shared", &[&members]);
    let meeting = Meeting::open().unwrap();
    let invitation = meeting.invitation().clone();
    let (cancel, progress) = (Cancel::default(), NoProgress);
    let hooks = || Hooks { cancel: &cancel, progress: &progress };
    let summary = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let link = join(&invitation, 1, 2).unwrap();
            follow(Team::new(Box::new(link)), &hooks()).unwrap();
        });
        let link = meeting.wait(2, || Ok(())).unwrap();
        let summary = train_together(&shared, Start::New, &hooks(), Team::new(Box::new(link))).unwrap();
        other.join().unwrap();
        summary
    });
    assert!(summary.finished && summary.processes == 2);
    let (one, two) = (kl(&alone.run.dir), kl(&shared.run.dir));
    assert_eq!(one.len(), 10);
    assert!(one.iter().zip(&two).all(|(a, b)| (a - b).abs() <= 1e-4 * a.abs()), "{one:?} {two:?}");
}

#[test]
fn the_ensemble_masks_false_negatives() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    // Positives have even numbers; odd documents score higher, and all of them go.
    let mut scores = String::new();
    for (q, d) in (0..common::QUERIES).flat_map(|q| (0..common::DOCUMENTS).map(move |d| (q, d))) {
        writeln!(scores, "{{\"query_id\": \"q{q}\", \"doc_id\": \"d{d}\", \"score\": {}}}", d % 2).unwrap();
    }
    std::fs::write(world.join("scores.jsonl"), scores).unwrap();
    let members = format!("teachers.members=[{{kind: scores, file: {}/scores.jsonl}}]", world.display());
    let mask = "train.losses.infonce.false_negatives={teacher: ensemble, margin: {relative: 0.05}}";
    let config = recipe(&world, "masked", &["warm_start.steps=0", &members, mask]);
    let summary = run(&config, Start::New);
    assert!(summary.finished);
    let lines = steps(&config.run.dir);
    let masked: u64 = lines.iter().filter_map(|l| l["masked_candidates"].as_u64()).sum();
    // Each of the 4 queries of the 10 batches has an odd hard negative at least.
    assert!(masked >= 40, "{masked}");
}

#[test]
fn the_check_counts_and_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let config = config(&world, "checked", &[&all_kinds(&world)]);
    let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
    assert!(!config.run.dir.join("teachers").exists());
    let work = computed(&run(&config, Start::New));
    let counted: Vec<(usize, usize)> = report.teachers.iter().map(|t| (t.needed, t.missing)).collect();
    assert_eq!(counted, work.iter().map(|&n| (n, n)).collect::<Vec<_>>());
    assert!(report.teachers[..3].iter().all(|t| t.seconds > 0.0));
    assert!(report.to_string().contains("cross_encoder cross"), "{report}");
    let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
    assert!(report.teachers.iter().all(|t| t.missing == 0 && t.seconds == 0.0), "{:?}", report.teachers);
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let world = world(folder.path());
    let cross = teacher(&world, "three labels", 1, Some(3));
    teacher(&world, "headless", 1, None);
    let parse = |overrides: &[&str]| {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        TrainConfig::parse("model: {path: m}\ndata: {dir: d}\n", &overrides).unwrap_err().to_string()
    };
    let ensemble = "train.losses.kl={weight: 1, teacher: ensemble}";
    for (overrides, part) in [
        (&[ensemble][..], "`teachers.members` is empty"),
        (&["teachers.members=[{kind: bm25}]"], "no loss asks them"),
        (&[ensemble, "teachers.members=[{kind: bm25, weight: 0}]"], "teachers.members[0].weight"),
        (&[ensemble, "teachers.members=[{kind: bm25}]", "teachers.scale=0"], "teachers.scale"),
        (&[ensemble, "teachers.members=[{kind: dense, path: a, max_tokens: 2}]"], "teachers.members[0].max_tokens"),
        (&[ensemble, "teachers.members=[{kind: dense, path: a, analyzer: english}]"], "analyzer"),
        (&[ensemble, "teachers.members=[{kind: colbert, path: a}]"], "colbert"),
    ] {
        let message = parse(overrides);
        assert!(message.contains(part), "{overrides:?}: {message}");
    }
    let refused = |member: &str| {
        let members = format!("teachers.members=[{member}]");
        let config = config(&world, "refused", &[&members]);
        train(&config, Start::Replace, &Hooks { cancel: &Cancel::default(), progress: &NoProgress })
            .err()
            .unwrap()
            .to_string()
    };
    let at = world.display();
    for (member, part) in [
        (format!("{{kind: cross_encoder, path: '{}'}}", cross.display()), "classifier"),
        (format!("{{kind: cross_encoder, path: {at}/headless}}"), "bert.pooler.dense.weight"),
        (format!("{{kind: dense, path: {at}/nowhere}}"), "nowhere"),
        (format!("{{kind: dense, path: {at}/headless, max_tokens: 33}}"), "33 tokens"),
        (format!("{{kind: sparse, path: {at}/headless, query: idf}}"), "idf.json"),
        (format!("{{kind: scores, file: {at}/nowhere.tsv}}"), "nowhere.tsv"),
    ] {
        let message = refused(&member);
        assert!(message.contains(part), "{member}: {message}");
    }
}

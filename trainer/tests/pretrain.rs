//! Pre-training on the sample collection: it learns to tell hidden tokens, stops and goes on bit for bit, and what
//! comes out is a model that training takes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, NoProgress, Progress, Task};
use nsparse_encoder::{Backend, BertMlm, CpuBackend, Device, TokenBatch};
use nsparse_trainer::pretrain::mlm::Mlm;
use nsparse_trainer::pretrain::texts::TextData;
use nsparse_trainer::pretrain::{PretrainConfig, PretrainSummary, check, pretrain};
use nsparse_trainer::{Error, Hooks, Start, TrainConfig, train};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/retrieval");

/// A vocabulary of 500 pieces of the sample's own texts.
fn tokenizer(folder: &Path) -> PathBuf {
    static MADE: OnceLock<String> = OnceLock::new();
    let json = MADE.get_or_init(|| {
        let documents = nsparse_core::beir::Dataset::open(Path::new(SAMPLE)).unwrap().corpus().unwrap();
        let texts = documents.iter().map(|d| d.text.as_str());
        nsparse_core::wordpiece::train(texts, 500).unwrap().to_json(512).unwrap()
    });
    let path = folder.join("tokenizer.json");
    std::fs::write(&path, json).unwrap();
    path
}

/// Overrides come on top.
fn recipe(folder: &Path, run: &str, overrides: &[&str]) -> PretrainConfig {
    let text = format!(
        r"
run: {{dir: {folder}/{run}, seed: 5}}
model:
  random: {{hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}}
  tokenizer: {tokenizer}
data: {{dir: {SAMPLE}, max_tokens: 64, held_out: 0.1}}
mlm:
  steps: 12
  batch_windows: 8
  learning_rate: {{encoder: 3e-3, head: 3e-3}}
  warmup_steps: 3
  dropout: 0.1
  evaluate_every: 5
  level: {{active_dimensions: 60, documents: 64}}
checkpoint: {{every: 4, keep: 2}}
",
        folder = folder.display(),
        tokenizer = tokenizer(folder).display(),
    );
    PretrainConfig::parse(&text, &overrides.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).unwrap()
}

const PAIRS: [&str; 2] = [
    "pairs={kinds: [title_text, sentence_context], train: {steps: 6, batch_queries: 8, learning_rate: {encoder: 1e-3, head: 1e-3}, warmup_steps: 2, losses: {infonce: {temperature: 2.0}}}}",
    "checkpoint.every=2",
];

fn run(config: &PretrainConfig, start: Start) -> PretrainSummary {
    pretrain(config, start, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap()
}

/// Asks to stop once a number of steps of the named bar is done; 0: when it begins.
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
        if left.is_some() && self.steps == 0 {
            self.cancel.cancel();
        }
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

/// Lines of `metrics.jsonl` without what depends on the clock.
fn lines(dir: &Path) -> Vec<serde_json::Value> {
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

/// Accuracy of naming the most frequent training token, and cross entropy of its shares (counts plus one), on the
/// tokens that the evaluation hides: counted here once more.
fn unigram(data: &TextData, stage: &Mlm<'_>) -> (f64, f64) {
    let special = &data.query_encoder.tokenizer().special().all;
    let vocab = data.query_encoder.tokenizer().vocabulary().len();
    let mut counts: BTreeMap<u32, f64> = (0..vocab as u32).map(|id| (id, 1.0)).collect();
    for &window in &data.training {
        for id in data.windows.window(window).iter().filter(|id| !special.contains(id)) {
            *counts.get_mut(id).unwrap() += 1.0;
        }
    }
    let all: f64 = counts.values().sum();
    let most = *counts.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let labels: Vec<u32> = stage.judged().iter().flat_map(|&w| stage.hide(w).labels).collect();
    let n = labels.len() as f64;
    (
        labels.iter().filter(|&&l| l == most).count() as f64 / n,
        -labels.iter().map(|l| (counts[l] / all).ln()).sum::<f64>() / n,
    )
}

/// Texts of fifteen topics, each with eight words of its own, drawn evenly: what is hidden is one of the eight, which
/// the words around it tell and frequency does not.
fn topics(folder: &Path) -> [String; 2] {
    let mut state = 1u32;
    let mut draw = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) as usize % TOPIC_WORDS
    };
    let lines: Vec<String> = (0..300)
        .map(|d| {
            let words: Vec<String> = (0..30).map(|_| format!("t{}", 5 + d % 15 * TOPIC_WORDS + draw())).collect();
            words.join(" ")
        })
        .collect();
    std::fs::write(folder.join("topics.txt"), lines.join("\n")).unwrap();
    let tokenizer = nsparse_trainer::synthetic::tokenizer(5 + 15 * TOPIC_WORDS).unwrap();
    std::fs::write(folder.join("words.json"), tokenizer.to_json(64).unwrap()).unwrap();
    let folder = folder.display();
    [
        format!("data={{files: [{folder}/topics.txt], max_tokens: 64, held_out: 0.1}}"),
        format!("model.tokenizer={folder}/words.json"),
    ]
}

const TOPIC_WORDS: usize = 8;

#[test]
fn hidden_tokens_are_told_better_than_by_frequency() {
    let folder = tempfile::tempdir().unwrap();
    let texts = topics(folder.path());
    let mut overrides: Vec<&str> = texts.iter().map(String::as_str).collect();
    overrides.extend([
        "mlm.steps=600",
        "mlm.batch_windows=16",
        "mlm.evaluate_every=0",
        "mlm.dropout=0",
        "mlm.level.active_dimensions=20",
        "checkpoint.every=0",
    ]);
    let config = recipe(folder.path(), "run", &overrides);
    let summary = run(&config, Start::New);
    assert!(summary.finished);
    let mlm = summary.mlm.unwrap();
    let [before, after] = mlm.evaluations.as_slice() else { panic!("before and after: {:?}", mlm.evaluations) };

    let tokenizer = nsparse_core::TextTokenizer::load(config.model.tokenizer.as_ref().unwrap()).unwrap();
    let data = TextData::load(&config, &tokenizer, &Cancel::default(), &NoProgress).unwrap();
    let stage = Mlm::new(config.mlm.as_ref().unwrap(), &data, config.run.seed).unwrap();
    let (accuracy, cross_entropy) = unigram(&data, &stage);
    let reported = mlm.unigram.unwrap();
    assert!((reported.masked_accuracy - accuracy).abs() < 1e-9);
    assert!((reported.cross_entropy - cross_entropy).abs() < 1e-9);
    // A new head begins with what frequency says.
    assert!((before.cross_entropy - cross_entropy).abs() < 0.2, "{} for {cross_entropy}", before.cross_entropy);
    // Nobody can do better than one in eight in the mean, and a perplexity of 8.
    assert!(after.value > 3.0 * accuracy && after.value > 0.08, "{} against {accuracy}", after.value);
    assert!((7.0..12.0).contains(&after.perplexity), "{after:?}, of frequency {cross_entropy}");
    assert!((after.perplexity.ln() - after.cross_entropy).abs() < 1e-9);
    let held_out: Vec<&str> =
        (0..data.documents.len()).filter(|&d| data.is_held_out[d]).map(|d| data.documents[d].id.as_str()).collect();
    assert_eq!(held_out.len(), 30, "a tenth of 300");
    assert!(data.training.iter().all(|&w| !data.is_held_out[data.sources[w]]));

    // The model that lies there says the same at hidden tokens as before zero was set, and is as dense as asked for.
    let model = BertMlm::load(&config.run.dir.join("model"), 0).unwrap();
    assert!(!model.head_is_new);
    let backend = CpuBackend::new(&model.config);
    let again = stage.evaluate(&backend, &model.parameters, 600, &Cancel::default(), &NoProgress).unwrap();
    assert!((again.cross_entropy - after.cross_entropy).abs() < 1e-5);
    assert!((again.value - after.value).abs() < 1e-9);
    let level = mlm.level.unwrap();
    assert!((level.active_after - 20.0).abs() < 1.0, "{level:?}");
    let zeroed = ModelDir::open(&config.run.dir.join("model")).unwrap().zeroed_ids().unwrap();
    let windows: Vec<&[u32]> = data.held_out.iter().map(|&w| data.windows.window(w)).collect();
    let batch = TokenBatch::new(&windows);
    let pooled = backend.forward(&model.parameters, &batch, None, false).unwrap().pooled;
    let vocab = model.config.vocab_size;
    let active = pooled
        .chunks_exact(vocab)
        .flat_map(|row| row.iter().enumerate())
        .filter(|(j, v)| **v > 0.0 && !zeroed.contains(&(*j as u32)))
        .count() as f64
        / windows.len() as f64;
    assert!((active - 20.0).abs() < 5.0, "on other documents too: {active}");
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let whole = recipe(folder.path(), "whole", &PAIRS);
    let straight = run(&whole, Start::New);
    assert!(straight.finished);
    let pairs = straight.pairs.as_ref().unwrap();
    assert_eq!(pairs.evaluations.len(), 2);
    for (i, (bar, count)) in
        [("Masked-language modelling", 3), ("Masked-language modelling", 12), ("Training", 3), ("Evaluating", 0)]
            .into_iter()
            .enumerate()
    {
        let config = recipe(folder.path(), &format!("stopped-{i}"), &PAIRS);
        let cancel = Cancel::default();
        let stopped = pretrain(
            &config,
            Start::New,
            &Hooks { cancel: &cancel, progress: &StopAfter { cancel: &cancel, bar, steps: count } },
        )
        .unwrap();
        assert!(!stopped.finished, "{bar} {count}");
        assert!(stopped.model_dir.is_none());
        let resumed = run(&config, Start::Continue);
        assert!(resumed.finished);
        assert_eq!(lines(&config.run.dir), lines(&whole.run.dir), "{bar} {count}");
        assert_eq!(lines(&config.run.dir.join("pairs")), lines(&whole.run.dir.join("pairs")), "{bar} {count}");
        for file in ["mlm/model.safetensors", "model/model.safetensors", "model/idf.json", "pairs.jsonl"] {
            let read = |dir: &Path| std::fs::read(dir.join(file)).unwrap();
            assert!(read(&config.run.dir) == read(&whole.run.dir), "{bar} {count}: {file}");
        }
    }
    // Micro-batches and activations made again give the same up to rounding.
    let other = recipe(
        folder.path(),
        "other",
        &["mlm.micro_batch=3", "mlm.activation_checkpointing=true", "mlm.evaluate_every=0"],
    );
    let got = run(&other, Start::New).mlm.unwrap().evaluations[1].cross_entropy;
    let want = straight.mlm.unwrap().evaluations.last().unwrap().cross_entropy;
    assert!((got - want).abs() < 1e-3, "{got} for {want}");
}

#[test]
fn pairs_are_kept_apart_by_document_and_training_goes_on_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = recipe(folder.path(), "run", &PAIRS);
    let summary = run(&config, Start::New);
    let pairs = summary.pairs.unwrap();
    assert_eq!(pairs.counts["title_text"], 256);
    assert!(pairs.counts["sentence_context"] > 200);
    assert!(pairs.run.calibration.is_none(), "the head comes from the first stage");
    assert_eq!(pairs.evaluations.iter().map(|e| e.step).collect::<Vec<_>>(), [0, 6]);
    let rows = |name: &str| nsparse_core::rows::read(&config.run.dir.join(name)).unwrap();
    let sources = |name: &str| -> std::collections::BTreeSet<String> {
        rows(name).into_iter().map(|row| row.source.unwrap()).collect()
    };
    let held_out = sources("pairs-held-out.jsonl");
    assert_eq!(held_out.len(), 26);
    assert!(sources("pairs.jsonl").is_disjoint(&held_out), "no document stands on both sides");

    // The result is a base model for training: no calibration, no complaint.
    let text = format!(
        "run: {{dir: {0}/trained, seed: 5}}\nmodel: {{path: {0}/run/model}}\n\
         data: {{dir: {SAMPLE}, max_tokens: 64}}\nwarm_start: {{steps: 3}}\n\
         train: {{steps: 3, batch_queries: 4}}\neval: {{fraction: 0}}\n",
        folder.path().display()
    );
    let recipe = TrainConfig::parse(&text, &[]).unwrap();
    let trained = train(&recipe, Start::New, &Hooks { cancel: &Cancel::default(), progress: &NoProgress }).unwrap();
    assert!(trained.finished && trained.calibration.is_none());
    assert!(trained.warnings.is_empty(), "{:?}", trained.warnings);
}

#[test]
fn a_bare_encoder_gets_a_head_and_pairs_alone_work() {
    let folder = tempfile::tempdir().unwrap();
    let config = recipe(folder.path(), "run", &["mlm.steps=2", "checkpoint.every=0"]);
    run(&config, Start::New);
    // The same model without its head.
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    let from = config.run.dir.join("model");
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(from.join(file), bare.join(file)).unwrap();
    }
    let mut tensors = nsparse_encoder::Parameters::read_tensors(&from.join("model.safetensors")).unwrap();
    tensors.retain(|name, _| !name.starts_with("cls."));
    nsparse_encoder::Parameters::from_tensors(tensors).unwrap().save(&bare.join("model.safetensors")).unwrap();
    assert!(BertMlm::load(&bare, 0).unwrap().head_is_new);
    let base = [format!("model={{path: {}}}", bare.display())];
    let base: Vec<&str> = base.iter().map(String::as_str).collect();

    let headed = recipe(folder.path(), "headed", &[&base[..], &["mlm.steps=2"]].concat());
    assert!(run(&headed, Start::New).finished);
    assert!(!BertMlm::load(&headed.run.dir.join("model"), 0).unwrap().head_is_new);

    let alone = recipe(
        folder.path(),
        "alone",
        &[&base[..], &PAIRS, &["mlm=null", "pairs.calibration.active_dimensions=40"]].concat(),
    );
    let summary = run(&alone, Start::New);
    assert!(summary.finished && summary.mlm.is_none());
    let pairs = summary.pairs.unwrap();
    assert!(pairs.run.calibration.is_some(), "a new head is calibrated");
    assert_eq!(pairs.evaluations.len(), 1);
    let model = ModelDir::open(&alone.run.dir.join("model")).unwrap();
    assert!(model.facts().unwrap().recipe.unwrap()["pairs"].is_object());
}

#[test]
fn check_writes_nothing_and_says_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = recipe(folder.path(), "run", &PAIRS);
    let report = check(&config, &Cancel::default(), &NoProgress).unwrap();
    assert!(!config.run.dir.exists());
    assert_eq!((report.documents, report.held_out_documents), (256, 26));
    assert!(report.windows > 256 && report.held_out_windows >= 26, "{report:?}");
    let mlm = report.mlm.unwrap();
    assert_eq!(mlm.steps, 12);
    assert!(mlm.step_positions > 0 && mlm.seconds > 0.0 && mlm.cross_entropy.is_finite());
    let pairs = report.pairs.unwrap();
    assert_eq!((pairs.counts["title_text"], pairs.steps), (256, 6));
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let hooks = Hooks { cancel: &Cancel::default(), progress: &NoProgress };
    let refused = |run: &str, overrides: &[&str]| -> Error {
        pretrain(&recipe(folder.path(), run, overrides), Start::New, &hooks).unwrap_err()
    };
    assert!(refused("a", &["data.max_tokens=65"]).to_string().contains("positions"));
    let plain = folder.path().join("plain.txt");
    std::fs::write(&plain, "one line\n").unwrap();
    let files = format!("data={{files: [{}], max_tokens: 64}}", plain.display());
    let error = refused("b", &[&files, PAIRS[0], "pairs.kinds=[title_text]"]);
    assert!(error.to_string().contains("title_text") && error.hint().unwrap().contains("titles"), "{error}");
    std::fs::write(&plain, "한국어 문장\n").unwrap();
    let error = refused("c", &[&files]);
    assert!(error.hint().unwrap().contains("language"), "{error}");

    // A run that lies there is not touched, and another recipe does not go on with it.
    let config = recipe(folder.path(), "run", &["mlm.steps=4", "checkpoint.every=2"]);
    run(&config, Start::New);
    let before = std::fs::read(config.run.dir.join("metrics.jsonl")).unwrap();
    let error = pretrain(&config, Start::New, &hooks).unwrap_err();
    assert!(error.hint().unwrap().contains("--resume"), "{error}");
    let changed = recipe(folder.path(), "run", &["mlm.steps=4", "checkpoint.every=2", "mlm.mask.share=0.3"]);
    let error = pretrain(&changed, Start::Continue, &hooks).unwrap_err();
    assert!(error.to_string().contains("mlm.mask.share"), "{error}");
    assert_eq!(std::fs::read(config.run.dir.join("metrics.jsonl")).unwrap(), before);
    assert_eq!(config.run.device.parse::<Device>().unwrap(), Device::Cpu);
    let replaced = pretrain(&changed, Start::Replace, &hooks).unwrap();
    assert!(replaced.finished);
}

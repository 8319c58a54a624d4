//! A tiny world to train in: a WordPiece tokenizer over made-up words, a data set in BEIR's form, and training
//! rows.
#![allow(clippy::unwrap_used, dead_code, reason = "a test may panic, and not every test file uses everything")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::{Cancel, Progress, Task};
use nsparse_trainer::TrainConfig;

/// Words of the made-up language.
pub(crate) const WORDS: usize = 60;
/// Documents of the data set.
pub(crate) const DOCUMENTS: usize = 40;
/// Queries with judgments.
pub(crate) const QUERIES: usize = 20;

/// Word `i`: letters only, so that the tokenizer keeps it whole.
pub(crate) fn word(i: usize) -> String {
    let letters = b"abcdefghij";
    format!("w{}{}", letters[i / 10] as char, letters[i % 10] as char)
}

/// The words of document `d`: five of its own topic, then common ones.
fn document(d: usize) -> Vec<usize> {
    let mut words: Vec<usize> = (0..5).map(|k| (d * 7 + k * 11) % 50).collect();
    words.extend([50 + d % 10, 50 + (d / 3) % 10, (d * 7) % 50]);
    words
}

/// Writes `tokenizer.json`, `data/` and `rows.jsonl` into a folder.
pub(crate) fn world(folder: &Path) -> PathBuf {
    let mut vocab: Vec<String> =
        ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."].iter().map(|s| (*s).to_owned()).collect();
    vocab.extend((0..WORDS).map(word));
    let entries: serde_json::Map<String, serde_json::Value> =
        vocab.iter().enumerate().map(|(i, t)| (t.clone(), i.into())).collect();
    let special = |id: usize, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[PAD]"), special(2, "[UNK]"), special(3, "[CLS]"), special(4, "[SEP]"), special(5, "[MASK]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": entries},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();

    let data = folder.join("data");
    std::fs::create_dir_all(data.join("qrels")).unwrap();
    let text = |words: &[usize]| words.iter().map(|&w| word(w)).collect::<Vec<_>>().join(" ");
    let (mut corpus, mut queries, mut qrels) =
        (String::new(), String::new(), "query-id\tcorpus-id\tscore\n".to_owned());
    for d in 0..DOCUMENTS {
        let words = document(d);
        let line = serde_json::json!({"_id": format!("d{d}"), "title": text(&words[..2]), "text": text(&words[2..])});
        writeln!(corpus, "{line}").unwrap();
    }
    let query = |q: usize| text(&document(2 * q)[1..3]);
    let mut mined = Vec::new();
    for q in 0..QUERIES {
        writeln!(queries, "{}", serde_json::json!({"_id": format!("q{q}"), "text": query(q)})).unwrap();
        writeln!(qrels, "q{q}\td{}\t1", 2 * q).unwrap();
        let negatives = [(2 * q + 1) % DOCUMENTS, (2 * q + 13) % DOCUMENTS];
        mined.push(TrainingRow {
            query: query(q),
            pos: Some(text(&document(2 * q))),
            negs: negatives.iter().map(|&n| text(&document(n))).collect(),
            query_id: Some(format!("q{q}")),
            pos_id: Some(format!("d{}", 2 * q)),
            neg_ids: negatives.iter().map(|n| format!("d{n}")).collect(),
            ..TrainingRow::default()
        });
    }
    std::fs::write(data.join("corpus.jsonl"), corpus).unwrap();
    std::fs::write(data.join("queries.jsonl"), queries).unwrap();
    std::fs::write(data.join("qrels/train.tsv"), qrels).unwrap();
    rows::write(&folder.join("rows.jsonl"), &mined).unwrap();
    folder.to_path_buf()
}

/// A recipe for that world; overrides come on top.
pub(crate) fn recipe(world: &Path, run: &str, overrides: &[&str]) -> TrainConfig {
    let text = format!(
        r"
run: {{dir: {world}/{run}, seed: 5}}
model:
  random: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32, max_position_embeddings: 16}}
  tokenizer: {world}/tokenizer.json
data: {{dir: {world}/data, rows: {world}/rows.jsonl, max_tokens: 12}}
calibration: {{active_dimensions: 12, documents: 16}}
warm_start: {{steps: 12, batch_documents: 8, learning_rate: {{encoder: 5e-3, head: 1e-2}}, warmup_steps: 2, dropout: 0.1}}
train:
  steps: 10
  batch_queries: 4
  negatives: 1
  learning_rate: {{encoder: 2e-3, head: 2e-3}}
  warmup_steps: 2
  dropout: 0.1
  losses:
    infonce: {{weight: 1.0, temperature: 2.0}}
    kl: {{weight: 0.5, temperature: 2.0, teacher: lexical, candidates: batch}}
    flops: {{weight: 1e-3, ramp_steps: 5}}
    lexical: {{weight: 0.1}}
eval: {{fraction: 0.2, every: 4, documents: 30}}
checkpoint: {{every: 3, keep: 2}}
",
        world = world.display(),
    );
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    TrainConfig::parse(&text, &overrides).unwrap()
}

/// Writes a `tokenizer.json` over the words of the sample collection, and gives that collection's folder.
pub(crate) fn sample(folder: &Path) -> PathBuf {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../samples/retrieval");
    let corpus = std::fs::read_to_string(data.join("corpus.jsonl")).unwrap();
    let mut counts: std::collections::BTreeMap<String, usize> = std::collections::BTreeMap::new();
    for line in corpus.lines() {
        let document: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["title", "text"] {
            let text = document[field].as_str().unwrap().to_lowercase();
            for word in text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty()) {
                *counts.entry(word.to_owned()).or_default() += 1;
            }
        }
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
    let words = counts.into_iter().filter(|(_, n)| *n > 1).map(|(word, _)| word);
    let vocab: serde_json::Map<String, serde_json::Value> =
        special.iter().map(|s| (*s).to_owned()).chain(words).enumerate().map(|(i, t)| (t, i.into())).collect();
    let added: Vec<serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    data
}

/// A healthy recipe for the sample collection: a random model, calibrated, warm-started, then trained on the judged
/// pairs. Overrides come on top.
pub(crate) fn sample_recipe(folder: &Path, data: &Path, run: &str, overrides: &[&str]) -> TrainConfig {
    let text = format!(
        r"
run: {{dir: {folder}/{run}, seed: 5}}
model:
  random: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}}
  tokenizer: {folder}/tokenizer.json
data: {{dir: {data}, max_tokens: 48}}
calibration: {{active_dimensions: 60, documents: 64}}
warm_start: {{steps: 30, batch_documents: 16, learning_rate: {{encoder: 1e-3, head: 3e-3}}, warmup_steps: 5}}
train:
  steps: 40
  batch_queries: 12
  learning_rate: {{encoder: 1e-3, head: 1e-3}}
  warmup_steps: 4
  dropout: 0.1
  losses:
    infonce: {{weight: 1.0, temperature: 2.0}}
    flops: {{weight: 1e-3, ramp_steps: 10}}
    lexical: {{weight: 0.1}}
eval: {{fraction: 0}}
checkpoint: {{every: 0, keep: 1}}
",
        folder = folder.display(),
        data = data.display(),
    );
    let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
    TrainConfig::parse(&text, &overrides).unwrap()
}

/// Asks to stop once a number of steps of the named bar is done.
pub(crate) struct StopAfter<'a> {
    pub(crate) cancel: &'a Cancel,
    pub(crate) bar: &'static str,
    pub(crate) steps: usize,
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

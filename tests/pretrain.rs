//! `nsparse pretrain` as it is called: check, run, stop and go on, refusals; and training that starts from the result.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

const RECIPE: &str = "\
run: {dir: run, seed: 3}
model:
  random: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, max_position_embeddings: 64}
  tokenizer: model/tokenizer.json
data: {dir: set, max_tokens: 64, held_out: 0.1}
mlm: {steps: 30, batch_windows: 8, learning_rate: {encoder: 3e-3, head: 3e-3}, warmup_steps: 3, level: {active_dimensions: 60}}
pairs:
  kinds: [title_text, title_summary, sentence_context]
  train: {steps: 8, batch_queries: 8, learning_rate: {encoder: 1e-3, head: 1e-3}, warmup_steps: 2}
checkpoint: {every: 5}
";

fn with_sample() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.write("recipe.yaml", RECIPE);
    nsparse
}

#[test]
fn from_texts_alone_to_a_model_that_training_takes() {
    let nsparse = with_sample();
    let report = nsparse.json("pretrain recipe.yaml --check");
    assert_eq!(report["documents"], 256);
    assert_eq!(report["mlm"]["steps"], 30);
    assert_eq!(report["pairs"]["counts"]["title_text"], 256);
    assert!(!nsparse.path("run").exists());

    let summary = nsparse.json("pretrain recipe.yaml");
    assert_eq!(summary["finished"], true);
    let evaluations = summary["mlm"]["evaluations"].as_array().unwrap();
    assert_eq!(evaluations.len(), 2);
    assert!(evaluations.iter().all(|e| e["perplexity"].as_f64().unwrap() > 1.0), "{summary}");
    assert!((summary["mlm"]["level"]["active_after"].as_f64().unwrap() - 60.0).abs() < 1.0, "{summary}");
    assert_eq!(summary["pairs"]["evaluations"].as_array().unwrap().len(), 2);
    for file in ["config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "idf.json", "idf.meta.json"] {
        assert!(nsparse.path("run/model").join(file).is_file(), "{file}");
    }
    let seen = nsparse.json("inspect shards --model run/model");
    assert!(seen["document"]["active_dimensions"].as_u64().unwrap() > 0, "{seen}");

    nsparse.write(
        "recipe-2.yaml",
        "run: {dir: trained}\nmodel: {path: run/model}\ndata: {dir: set, max_tokens: 64}\n\
         warm_start: {steps: 3}\ntrain: {steps: 3, batch_queries: 4}\neval: {fraction: 0.2}\n",
    );
    let trained = nsparse.json("train recipe-2.yaml");
    assert_eq!(trained["finished"], true);
    assert!(trained["calibration"].is_null(), "the head is not new any more");
    assert_eq!(trained["warnings"].as_array().unwrap().len(), 0, "{trained}");
}

#[test]
fn mistakes_are_named() {
    let nsparse = with_sample();
    let refused = |arguments: &str, parts: &[&str]| {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
        assert_eq!(outcome.stdout, "");
        for part in parts {
            assert!(outcome.stderr.contains(part), "{arguments}: {}", outcome.stderr);
        }
    };
    refused("pretrain recipe.yaml --set mlm.window=3", &["mlm.window", "window"]);
    refused("pretrain recipe.yaml --set mlm=null --set pairs=null", &["no stage", "hint:"]);
    refused("pretrain recipe.yaml --set data.dir=nowhere", &["nowhere", "corpus.jsonl"]);
    refused("pretrain recipe.yaml --set data.max_tokens=512", &["data.max_tokens", "64 positions"]);
    nsparse.write("set/corpus.jsonl", "{\"_id\": \"a\", \"text\": \"some words here\"}\nnothing\n");
    refused("pretrain recipe.yaml", &["corpus.jsonl:2", "not JSON"]);
    assert!(!nsparse.path("run/metrics.jsonl").exists(), "nothing was begun");
}

//! `nsparse tune-idf` on the sample collection: the table alone changes.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::Path;

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// The sample collection in `set`, a small model in `model`, its vectors in `vectors.nsv`.
fn with_vectors() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.ok("encode --data set --model model --out vectors.nsv --format binary");
    nsparse
}

const SHORT: &str = "--epochs 3 --batch 8 --depth 50 --held-out 0.4 --learning-rate 0.05 --patience 0";

fn table(nsparse: &Nsparse, folder: &str) -> BTreeMap<String, f64> {
    serde_json::from_slice(&nsparse.read(&format!("{folder}/idf.json"))).unwrap()
}

fn files(nsparse: &Nsparse, folder: &str) -> BTreeMap<String, Vec<u8>> {
    std::fs::read_dir(nsparse.path(folder))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap())
        })
        .collect()
}

#[test]
fn only_the_table_changes() {
    let nsparse = with_vectors();
    let (model, vectors) = (files(&nsparse, "model"), nsparse.read("vectors.nsv"));
    let made = nsparse.json(&format!("tune-idf --model model --data set --vectors vectors.nsv --out tuned {SHORT}"));
    let report = &made["report"];
    // Documents are frozen: the model that was read, the vectors, and the new model's network are the same bytes.
    assert!(files(&nsparse, "model") == model && nsparse.read("vectors.nsv") == vectors);
    let tuned = files(&nsparse, "tuned");
    for (name, bytes) in model.iter().filter(|(name, _)| !name.starts_with("idf.")) {
        assert!(tuned[name] == *bytes, "{name}");
    }
    nsparse.ok("encode --data set --model tuned --out again.nsv --format binary");
    assert!(nsparse.read("again.nsv") == vectors, "the tuned model encodes documents as before");

    let epochs = report["epochs"].as_array().unwrap();
    assert_eq!(epochs.len(), 4);
    let best = report["best_epoch"].as_u64().unwrap() as usize;
    let values: Vec<f64> = epochs.iter().map(|e| e["value"].as_f64().unwrap()).collect();
    assert!(values.iter().all(|v| *v <= values[best]), "{values:?}");
    let (before, after) = (table(&nsparse, "model"), table(&nsparse, "tuned"));
    assert!(before.keys().eq(after.keys()) && after.values().all(|&w| w > 0.0 && w <= 64.0));
    let moved = after.iter().filter(|(token, w)| before[*token].to_bits() != w.to_bits()).count() as u64;
    assert_eq!(report["tokens_moved"].as_u64(), Some(moved));
    assert!(best == 0 || moved > 0);
    let metadata: Value = serde_json::from_slice(&tuned["idf.meta.json"]).unwrap();
    assert_eq!(metadata["tuned"]["report"], *report);
    assert_eq!(metadata["tuned"]["split"], "train");
    // Its losses fall: the table fits the queries that it is trained on, even over a network of random weights.
    let losses: Vec<f64> = epochs.iter().filter_map(|e| e["loss"].as_f64()).collect();
    assert!(losses[2] < losses[0], "{losses:?}");

    // The same command gives the same table, with vectors that it encodes itself.
    nsparse.ok(&format!("tune-idf --model model --data set --out again {SHORT}"));
    assert!(nsparse.read("again/idf.json") == nsparse.read("tuned/idf.json"));
    // The new model is one: it can be searched with and exported.
    nsparse.ok("search shard --engine local --model tuned --data set");
}

#[test]
fn what_cannot_be_done_is_said_before_anything_is_computed() {
    let nsparse = with_vectors();
    let fails = |command: &str, parts: &[&str]| {
        let outcome = nsparse.run(command);
        let shown = nsparse.shown(&outcome);
        assert_eq!(outcome.code, Some(2), "{command}: {shown}");
        for part in parts {
            assert!(shown.contains(part), "{command}: {shown}");
        }
    };
    nsparse.write("taken/file", "mine");
    fails("tune-idf --model model --data set --out taken", &["taken", "is there already"]);
    assert_eq!(nsparse.read("taken/file"), b"mine");
    fails("tune-idf --model model --data set --out new --epochs 0", &["epochs"]);
    fails("tune-idf --model model --data set --out new --metric ndgc", &["ndgc", "ndcg@10"]);
    fails("tune-idf --model model --data set --out new --index some", &["--engine opensearch"]);
    fails("tune-idf --model model --data set --out new --split none", &["none"]);
    let mut larger = Shape::small();
    larger.config.vocab_size = 320;
    write(&nsparse.path("other"), &larger, 3).unwrap();
    fails("tune-idf --model other --data set --out new --vectors vectors.nsv", &["another vocabulary"]);
    assert!(!nsparse.path("new").exists());
}

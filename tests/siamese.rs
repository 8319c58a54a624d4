//! A siamese model: queries are encoded by the network, and nothing takes it for a doc-only one.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use nsparse_integration_tests::cli::{Nsparse, finish};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// The sample collection in `set`, a doc-only model in `plain`, and the same network as siamese model in `model`.
fn with_models() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    for name in ["plain", "model"] {
        write(&nsparse.path(name), &Shape::small(), 3).unwrap();
    }
    let mut facts: Value = serde_json::from_slice(&nsparse.read("model/nsparse.json")).unwrap();
    assert!(facts.get("query_side").is_none(), "a doc-only model has no such key, so that older readers take it");
    facts["query_side"] = "encoder".into();
    nsparse.write("model/nsparse.json", &facts.to_string());
    std::fs::remove_file(nsparse.path("model/idf.json")).unwrap();
    nsparse
}

#[test]
fn queries_are_encoded_by_the_network() {
    let nsparse = with_models();
    let seen = |model: &str| {
        finish(nsparse.command(["inspect", "large shards of an index", "--model", model, "--json"])).json()
    };
    let (plain, siamese) = (seen("plain"), seen("model"));
    assert_eq!(siamese["query"]["terms"], plain["document"]["terms"]);
    assert_ne!(plain["query"]["terms"], plain["document"]["terms"]);
    assert!(nsparse.ok("inspect shard --model model").stdout.contains("by the network"));

    // Every query has as many dimensions as the text has as a document.
    let summary = nsparse.json("eval --data set --engine local --model model --out ranked");
    let queries = summary["dimensions"]["query_mean"].as_f64().unwrap();
    let lookups = nsparse.json("eval --data set --engine local --model plain");
    assert!(queries > 2.0 * lookups["dimensions"]["query_mean"].as_f64().unwrap(), "{queries}");
    assert_ne!(summary["metrics"], lookups["metrics"]);
    assert!(nsparse.ok("search shard --data set --engine local --model model").stdout.contains("  1  "));
}

#[test]
fn nothing_takes_it_for_a_doc_only_model() {
    let nsparse = with_models();
    for command in [
        "export model --out package",
        "export model --out package --format onnx",
        "tune-idf --model model --data set --out tuned",
    ] {
        let outcome = nsparse.run(command);
        let shown = nsparse.shown(&outcome);
        assert!(
            outcome.code == Some(2) && shown.contains("siamese") && shown.contains("query.side"),
            "{command}: {shown}"
        );
    }
    assert!(!nsparse.path("package").exists() && !nsparse.path("tuned").exists());
}

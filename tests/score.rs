//! `nsparse score`: teachers' scores for training rows, with BM25, a score file and a small model with random weights.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");
const ROWS: &str = "\
{\"query\":\"alpha beta\",\"query_id\":\"q1\",\"pos\":\"alpha beta gamma\",\"pos_id\":\"a\",\"negs\":[\"gamma delta\",\"alpha delta\"],\"neg_ids\":[\"b\",\"c\"]}\n\
{\"query\":\"delta\",\"docs\":[\"delta delta\",\"nothing of it\"]}\n";

fn rows(nsparse: &Nsparse, file: &str) -> Vec<Value> {
    let text = String::from_utf8(nsparse.read(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn scores(row: &Value) -> Vec<f64> {
    row["scores"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect()
}

#[test]
fn lexical_teachers() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.write("rows.jsonl", ROWS);
    nsparse.write("bm25.yaml", "teachers:\n  members:\n    - {kind: bm25, analyzer: standard}\n");
    let made = nsparse.json("score rows.jsonl --teachers bm25.yaml --out bm25.jsonl");
    assert_eq!((&made["report"]["rows"], &made["report"]["documents"]), (&2.into(), &5.into()));
    let found = rows(&nsparse, "bm25.jsonl");
    assert_eq!(found[0]["docs"], serde_json::json!(["alpha beta gamma", "gamma delta", "alpha delta"]));
    assert_eq!((&found[0]["query_id"], found[0].get("pos")), (&"q1".into(), None));
    // The best gets (nearly) 30, the worst 0; a document that shares nothing is the worst.
    let of = scores(&found[0]);
    assert!((of[0] - 30.0).abs() < 1e-3 && of[1] == 0.0 && of[2] > 0.0 && of[2] < 30.0, "{of:?}");
    assert!((scores(&found[1])[0] - 30.0).abs() < 1e-3);

    // By hand: 5 documents; alpha in 2, beta in 1; lengths 3, 2, 2, 2, 3 and 12 words in all.
    nsparse.ok("score rows.jsonl --teachers bm25.yaml --raw --out raw.jsonl");
    let idf = |df: f64| (1.0 + (5.0 - df + 0.5) / (df + 0.5)).ln();
    let part = |df: f64, length: f64| idf(df) * 2.2 / (1.0 + 1.2 * (0.25 + 0.75 * length / (12.0 / 5.0)));
    let raw = scores(&rows(&nsparse, "raw.jsonl")[0]);
    for (got, want) in raw.iter().zip([part(2.0, 3.0) + part(1.0, 3.0), 0.0, part(2.0, 2.0)]) {
        assert!((got - want).abs() < 1e-5, "{raw:?}, expected {want}");
    }

    // A file knows two of the first row's documents and nothing of the second row.
    nsparse.write("scores.tsv", "q1\ta\t2\nq1\tc\t3\n");
    nsparse.write("file.yaml", "teachers: {members: [{kind: scores, file: scores.tsv}], scale: 10}");
    let made = nsparse.json("score rows.jsonl --teachers file.yaml --out file.jsonl");
    assert_eq!((&made["report"]["left_out"], &made["report"]["without_score"]), (&1.into(), &1.into()));
    let found = rows(&nsparse, "file.jsonl");
    assert_eq!(found[0]["docs"], serde_json::json!(["alpha beta gamma", "alpha delta"]));
    let of = scores(&found[0]);
    assert!(of[0] == 0.0 && (of[1] - 10.0).abs() < 1e-3, "{of:?}");
}

#[test]
fn a_second_command_computes_nothing() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.write("rows.jsonl", ROWS);
    nsparse.write(
        "teachers.yaml",
        "teachers:\n  cache: cache\n  members:\n    - {kind: dense, path: model, pooling: cls}\n    - {kind: sparse, path: model}\n",
    );
    let computed = |made: &Value| -> Vec<u64> {
        made["teachers"].as_array().unwrap().iter().map(|t| t["computed"].as_u64().unwrap()).collect()
    };
    let first = nsparse.json("score rows.jsonl --teachers teachers.yaml --out one.jsonl");
    // Two queries and five documents; the model is doc-only, so its queries are not encoded.
    assert_eq!(computed(&first), [7, 5]);
    let second = nsparse.json("score rows.jsonl --teachers teachers.yaml --out two.jsonl");
    assert_eq!(computed(&second), [0, 0]);
    assert_eq!(nsparse.read("one.jsonl"), nsparse.read("two.jsonl"));
}

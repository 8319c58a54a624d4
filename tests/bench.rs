//! `nsparse bench` on tiny shapes: its keys, and figures that have to fit each other.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");
const TINY: &str = "--layers 2 --hidden 16 --heads 2 --vocab 1000";

fn nsparse() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-9 * expected.abs(), "{actual}, expected {expected}");
}

/// Median within the spread, and rates that are what they say.
fn consistent(report: &Value, rounds: usize, units: &str, per_second: &str) {
    let median = number(report, "median_seconds");
    assert!(number(report, "min_seconds") <= median && median <= number(report, "max_seconds"));
    assert!(number(report, "min_seconds") > 0.0);
    let mut seconds: Vec<f64> = report["seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    assert_eq!(seconds.len(), rounds);
    seconds.sort_by(f64::total_cmp);
    close(median, seconds[rounds / 2]);
    close(number(report, per_second) * median, number(report, units));
    // More than the program itself, less than any machine that this runs on.
    let memory = number(report, "peak_memory_bytes");
    assert!(memory > 1e6 && memory < 1e12, "{memory}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
}

fn rates(report: &Value) {
    let (flops, median) = (number(report, "flops"), number(report, "median_seconds"));
    close(number(report, "gflops_per_second"), flops / median / 1e9);
    close(
        number(report, "share_of_rate"),
        number(report, "gflops_per_second") / number(report, "rate_gflops_per_second"),
    );
    assert!(number(report, "share_of_rate") > 0.0);
}

/// Operations of one forward over 4 documents of 10 tokens, written out: 2 layers of width 16, 2 heads of 8,
/// feed-forward 64. Without the head's product with its 1000 entries.
const LAYER: f64 = 2.0 * (4.0 * 40.0 * 16.0 * 16.0 + 2.0 * 40.0 * 16.0 * 64.0);
const ATTENTION_PRODUCT: f64 = 2.0 * 4.0 * 2.0 * 10.0 * 10.0 * 8.0;
const TRANSFORM: f64 = 2.0 * 40.0 * 16.0 * 16.0;
const HEAD: f64 = 2.0 * 40.0 * 16.0 * 1000.0;
const FORWARD: f64 = 2.0 * (LAYER + 2.0 * ATTENTION_PRODUCT) + TRANSFORM;
const BACKWARD: f64 = 2.0 * (2.0 * LAYER + 5.0 * ATTENTION_PRODUCT) + 2.0 * TRANSFORM;

/// Operations that are executed in one forward.
fn forward(report: &Value) -> f64 {
    FORWARD + if report["head_is_screened"].as_bool().unwrap() { 0.0 } else { HEAD }
}

#[test]
fn a_training_step() {
    let nsparse = nsparse();
    let report = nsparse.json(&format!("bench train {TINY} --docs 4 --tokens 10 --rounds 3 --threads 1 --active 50"));
    consistent(&report, 3, "tokens", "tokens_per_second");
    rates(&report);
    assert_eq!((number(&report, "tokens"), number(&report, "threads"), &report["device"]), (40.0, 1.0, &"cpu".into()));
    close(number(&report, "network_flops"), FORWARD + HEAD + BACKWARD);
    close(number(&report, "flops"), forward(&report) + BACKWARD);
    // The bias was set on the documents of the first steps; a few steps hardly move it.
    let active = number(&report, "active_dimensions");
    assert!((30.0..70.0).contains(&active), "{active} active entries");
    close(number(&report, "active_share"), active / 1000.0);
    assert_eq!(report["config"]["docs"], 4);
}

#[test]
fn steps_with_cached_gradients_and_all_entries_active() {
    let report =
        nsparse().json(&format!("bench train {TINY} --docs 4 --tokens 10 --micro-batch 2 --rounds 1 --active all"));
    consistent(&report, 1, "tokens", "tokens_per_second");
    // Two parts of two documents: each is encoded twice, products with 20 rows are half of those with 40.
    close(number(&report, "flops"), 2.0 * forward(&report) + BACKWARD);
    close(number(&report, "network_flops"), FORWARD + HEAD + BACKWARD);
    // All but the five special tokens.
    close(number(&report, "active_dimensions"), 995.0);
}

#[test]
fn encoding_random_documents() {
    let nsparse = nsparse();
    let report = nsparse.json(&format!("bench encode {TINY} --docs 4 --tokens 10 --rounds 3 --save-texts texts.jsonl"));
    consistent(&report, 3, "tokens", "tokens_per_second");
    close(number(&report, "documents_per_second") * number(&report, "median_seconds"), 4.0);
    rates(&report);
    close(number(&report, "flops"), forward(&report));
    let texts = String::from_utf8(nsparse.read("texts.jsonl")).unwrap();
    assert_eq!(texts.lines().count(), 4);
    let first: Value = serde_json::from_str(texts.lines().next().unwrap()).unwrap();
    assert_eq!(first["text"].as_str().unwrap().split(' ').count(), 8);
}

#[test]
fn encoding_and_searching_a_data_set() {
    let nsparse = nsparse();
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    let report = nsparse.json("bench encode --model model --data set --sample 9 --rounds 1 --warmup 0");
    consistent(&report, 1, "tokens", "tokens_per_second");
    close(number(&report, "documents"), 9.0);
    assert!(number(&report, "mean_tokens") <= 32.0 && number(&report, "mean_tokens") > 3.0);
    close(number(&report, "mean_tokens") * 9.0, number(&report, "tokens"));

    let report = nsparse.json("bench search --model model --data set --rounds 3");
    consistent(&report, 3, "queries", "queries_per_second");
    let queries = String::from_utf8(nsparse.read("set/queries.jsonl")).unwrap().lines().count();
    close(number(&report, "queries"), queries as f64);
    percentiles(&report);
}

#[test]
fn searching_random_vectors() {
    let report = nsparse().json("bench search --docs 300 --active 20 --vocab 500 --queries 40 --rounds 3");
    consistent(&report, 3, "queries", "queries_per_second");
    assert_eq!((number(&report, "documents"), number(&report, "postings")), (300.0, 6000.0));
    percentiles(&report);
}

fn percentiles(report: &Value) {
    let latency = ["p50", "p90", "p99", "max"].map(|p| number(&report["latency_seconds"], p));
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
}

#[test]
fn products_of_a_step() {
    let report = nsparse().json(&format!("bench product {TINY} --docs 4 --tokens 10 --seconds 0.01"));
    close(number(&report, "flops"), FORWARD + HEAD + BACKWARD);
    let products = report["products"].as_array().unwrap();
    let sum: f64 = products.iter().map(|p| number(p, "flops")).sum();
    close(sum, number(&report, "flops"));
    // The rate of all is their operations over their times.
    for key in ["gflops_per_second", "one_thread_gflops_per_second"] {
        let seconds: f64 = products.iter().map(|p| number(p, "flops") / number(p, key)).sum();
        close(number(&report, key), sum / seconds);
    }
    let scores = products.iter().find(|p| p["part"] == "attention scores" && p["pass"] == "backward").unwrap();
    let shape = &scores["product"];
    assert_eq!((number(shape, "m"), number(shape, "k"), number(shape, "n")), (10.0, 8.0, 10.0));
    // Two for each of 2 layers, 4 documents and 2 heads.
    assert_eq!(scores["count"], 2 * 2 * 4 * 2);
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let nsparse = nsparse();
    for (arguments, message) in [
        ("bench train --docs 3", "A step of 3 documents cannot be put together"),
        ("bench train --rounds 0 --layers 1 --hidden 8 --heads 1 --vocab 100", "No round is to be timed"),
        ("bench train --threads 0", "No thread is to work"),
        ("bench train --heads 5", "cannot be split over 5 attention heads"),
        ("bench encode --data set", "no model to encode it"),
        ("bench search --active 400 --vocab 500", "Random vectors of these sizes cannot be drawn"),
        ("bench product --seconds 0", "There is nothing to measure"),
    ] {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
        assert!(
            outcome.stderr.contains(message) && outcome.stderr.contains("hint:") || arguments.contains("heads"),
            "{}",
            outcome.stderr
        );
    }
}

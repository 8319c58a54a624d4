//! The main job on the embedded sample, without a server.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "measured figures are shown with --nocapture")]

use std::time::Instant;

use nsparse_exporter::Package;
use nsparse_integration_tests::cli::Nsparse;

#[test]
fn the_main_job_without_a_server() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let started = Instant::now();
    let result = nsparse.json("quickstart --out q");
    let took = started.elapsed().as_secs_f64();
    let training = &result["training"];
    assert_eq!(training["warnings"], serde_json::json!([]), "a healthy run");
    let stages: f64 = training["stages"].as_array().unwrap().iter().map(|s| s["seconds"].as_f64().unwrap()).sum();
    let trained =
        stages + training["preparing_seconds"].as_f64().unwrap() + training["evaluation_seconds"].as_f64().unwrap();
    println!("quickstart took {took:.1} s, {trained:.1} s of them for the training");
    assert!(took < 90.0, "{took} s");
    assert!(trained < 60.0, "{trained} s");

    for method in ["bm25", "idf", "trained"] {
        let found = &result["methods"][method];
        let (mean, interval) = (found["metrics"]["ndcg@10"].as_f64().unwrap(), &found["ndcg@10_interval"]);
        let (low, high) = (interval["low"].as_f64().unwrap(), interval["high"].as_f64().unwrap());
        println!("{method}: nDCG@10 {mean:.4}, {low:.3} to {high:.3}");
        assert!(0.0 < low && low < mean && mean < high && high < 1.0, "{method}");
        assert!(found["queries"].as_u64().unwrap() >= 30);
        // The table's figures are those of the rankings that were written.
        let judged = nsparse.json(&format!("eval --qrels q/data/qrels/test.tsv --run q/runs/{method}.trec"));
        assert_eq!(judged["metrics"], found["metrics"], "{method}");
    }
    for file in [
        "data/corpus.jsonl",
        "base/model.safetensors",
        "rows.jsonl",
        "run/config.yaml",
        "run/metrics.jsonl",
        "run/summary.json",
        "run/model/model.safetensors",
        "run/model/vocab.txt",
        "package/package.json",
    ] {
        assert!(nsparse.path("q").join(file).is_file(), "{file}");
    }
    let package = Package::open(&nsparse.path("q/package")).unwrap();
    assert_eq!(package.manifest().name, "nsparse-quickstart");
    // What it tells people to type next works.
    let mut inspect = nsparse.command(["inspect", "how large should a shard be", "--model", "q/run/model"]);
    inspect.arg("--json");
    let seen = nsparse_integration_tests::cli::finish(inspect).json();
    assert!(seen["document"]["active_dimensions"].as_u64().unwrap() > 0);
    let mut search = nsparse.command(["search", "shard size", "--engine", "local", "--model", "q/run/model"]);
    search.args(["--data", "q/data", "--json"]);
    let found = nsparse_integration_tests::cli::finish(search).json();
    assert_eq!(found["results"].as_array().unwrap().len(), 10);
}

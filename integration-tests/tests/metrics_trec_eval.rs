//! Metrics against the outputs that NIST ships with `trec_eval`, to their four digits.
#![cfg(feature = "data")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use nsparse_core::trec::{read_qrels, read_run};
use nsparse_retrieval::metrics::{EvalOptions, Evaluation, evaluate};

fn folder() -> PathBuf {
    let data = std::env::var_os("NSPARSE_TEST_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    let folder = data.join("trec_eval");
    assert!(folder.is_dir(), "no folder {}: set NSPARSE_TEST_DATA to the data sets' folder", folder.display());
    folder
}

/// `trec_eval`'s cuts.
const KS: [usize; 9] = [5, 10, 15, 20, 30, 100, 200, 500, 1000];

/// Our key for a measure of `trec_eval`'s, where we have it.
fn key(measure: &str) -> Option<String> {
    match measure {
        "map" => Some("map".to_owned()),
        "recip_rank" => Some("mrr".to_owned()),
        _ => {
            let (name, k) = measure.rsplit_once('_')?;
            let ours = match name {
                "P" => "p",
                "recall" => "recall",
                "ndcg_cut" => "ndcg",
                "map_cut" => "map",
                "success" => "success",
                _ => return None,
            };
            let k: usize = k.parse().ok()?;
            Some(format!("{ours}@{k}"))
        }
    }
}

/// Compares every line of `output` that we have a metric for; says how many there were.
fn compare(qrels: &str, run: &str, output: &str, options: &EvalOptions) -> (Evaluation, usize) {
    let folder = folder();
    let qrels = read_qrels(&folder.join(qrels)).unwrap();
    let run = read_run(&folder.join(run)).unwrap();
    let mut ks = KS.to_vec();
    ks.push(1);
    let evaluation = evaluate(&qrels, &run, &EvalOptions { ks, ..options.clone() });
    let text = std::fs::read_to_string(folder.join(output)).unwrap();
    let mut compared = 0;
    let mut totals: BTreeMap<&str, usize> = BTreeMap::new();
    for line in text.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let [measure, query, value] = columns.as_slice() else { panic!("{line}") };
        if *query == "all" && measure.starts_with("num_") {
            totals.insert(measure, value.parse().unwrap());
        }
        let Some(key) = key(measure) else { continue };
        let ours = match *query {
            "all" => evaluation.mean[&key],
            query => evaluation.per_query[query][&key],
        };
        assert_eq!(&format!("{ours:.4}"), value, "{output}: {measure} of {query}");
        compared += 1;
    }
    assert_eq!(evaluation.queries, totals["num_q"], "{output}");
    assert_eq!(evaluation.retrieved, totals["num_ret"], "{output}");
    assert_eq!(evaluation.relevant, totals["num_rel"], "{output}");
    assert_eq!(evaluation.relevant_retrieved, totals["num_rel_ret"], "{output}");
    (evaluation, compared)
}

/// Measures with a metric of ours in one block of `-m all_trec`: map, `recip_rank`, 4 × 9 cuts, 3 × success.
const ALL: usize = 2 + 4 * 9 + 3;

#[test]
fn official_measures() {
    let (_, compared) = compare("qrels.test", "results.test", "out.test", &EvalOptions::default());
    assert_eq!(compared, 2 + 9, "map, recip_rank and P_k");
}

#[test]
fn all_measures() {
    let (evaluation, compared) = compare("qrels.test", "results.test", "out.test.a", &EvalOptions::default());
    assert_eq!(compared, ALL);
    assert!(evaluation.missing.is_empty());
}

#[test]
fn all_measures_by_query() {
    let (_, compared) = compare("qrels.test", "results.test", "out.test.aq", &EvalOptions::default());
    assert_eq!(compared, 4 * ALL, "three queries and their mean");
}

#[test]
fn missing_queries_count_as_zero() {
    let (evaluation, compared) = compare("qrels.test", "results.trunc", "out.test.aqc", &EvalOptions::default());
    assert_eq!(compared, 4 * ALL);
    assert_eq!(evaluation.missing, ["302"]);
}

#[test]
fn depth_is_capped() {
    let options = EvalOptions { max_depth: Some(100), ..EvalOptions::default() };
    let (_, compared) = compare("qrels.test", "results.trunc", "out.test.aqcM", &options);
    assert_eq!(compared, 4 * ALL);
}

#[test]
fn relevance_level_two() {
    let options = EvalOptions { relevance: 2, ..EvalOptions::default() };
    let (_, compared) = compare("qrels.rel_level", "results.test", "out.test.aql", &options);
    assert_eq!(compared, 4 * ALL);
}

#[test]
fn without_missing_queries_the_mean_is_of_those_found() {
    let folder = folder();
    let qrels = read_qrels(&folder.join("qrels.test")).unwrap();
    let run = read_run(&folder.join("results.trunc")).unwrap();
    let all = evaluate(&qrels, &run, &EvalOptions::default());
    let found = evaluate(&qrels, &run, &EvalOptions { count_missing: false, ..EvalOptions::default() });
    assert_eq!((all.queries, found.queries), (3, 2));
    assert!((found.mean["map"] * 2.0 - all.mean["map"] * 3.0).abs() < 1e-12);
}

//! The commands that need no server, on the sample collection and on small files whose answers are worked out by
//! hand.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::float_cmp, reason = "counts are whole numbers, read as floats")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nsparse_integration_tests::cli::{Nsparse, signal, wait_until};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// With the sample collection in `set` and a small model with random weights in `model`.
fn with_sample() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse
}

fn parsed(nsparse: &Nsparse, file: &str) -> Value {
    serde_json::from_slice(&nsparse.read(file)).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {value}"))
}

fn close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() < 5e-7 * expected.abs().max(1.0), "{actual}, expected {expected}");
}

/// Four documents; df: search 3, engine 2, node 1, all others 0. The title counts as text.
#[test]
fn idf_by_both_formulas() {
    let nsparse = with_sample();
    nsparse.write(
        "own/corpus.jsonl",
        "{\"id\": 1, \"head\": \"Search\", \"body\": \"engine\"}\n{\"id\": 2, \"body\": \"search search, SEARCH\"}\n\
         {\"id\": 3, \"head\": \"\", \"body\": \"the engine; the search\"}\n{\"id\": 4, \"head\": null, \"body\": \"node\"}\n",
    );
    let own = "--data own --id-field id --title-field head --text-field body --tokenizer model";
    let made = nsparse.json(&format!("idf {own} --out a/idf.json"));
    assert_eq!(made["metadata"]["formula_text"], "ln(1 + (N - df + 0.5) / (df + 0.5))");
    assert_eq!(made["metadata"], parsed(&nsparse, "a/idf.meta.json"));
    assert_eq!(number(&made["metadata"], "documents"), 4.0);
    let table = parsed(&nsparse, "a/idf.json");
    close(number(&table, "search"), (1.5f64 / 3.5).ln_1p());
    close(number(&table, "engine"), (2.5f64 / 2.5).ln_1p());
    close(number(&table, "node"), (3.5f64 / 1.5).ln_1p());
    close(number(&table, "shard"), 10f64.ln());
    // Every entry of the vocabulary is there but the special ones.
    assert_eq!(table.as_object().unwrap().len(), 300 - 5);
    assert!(table.get("[CLS]").is_none());

    nsparse.ok(&format!("idf {own} --formula smooth --out b/idf.json"));
    let table = parsed(&nsparse, "b/idf.json");
    close(number(&table, "search"), 1.25f64.ln() + 1.0);
    close(number(&table, "node"), 2.5f64.ln() + 1.0);
    close(number(&table, "shard"), 5f64.ln() + 1.0);
    assert_eq!(parsed(&nsparse, "b/idf.meta.json")["formula_text"], "ln((N + 1) / (df + 1)) + 1");

    nsparse.ok(&format!("idf {own} --template {{text}} --out c/idf.json"));
    // Without the title `search` is in two documents.
    close(number(&parsed(&nsparse, "c/idf.json"), "search"), 2f64.ln());
}

/// Relevant documents by query, as the file of judgments says.
fn judged(nsparse: &Nsparse, split: &str) -> BTreeMap<String, BTreeSet<String>> {
    let text = String::from_utf8(nsparse.read(&format!("set/qrels/{split}.tsv"))).unwrap();
    let mut judged: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let columns: Vec<&str> = line.split('\t').collect();
        if columns[2] != "0" {
            judged.entry(columns[0].to_owned()).or_default().insert(columns[1].to_owned());
        }
    }
    judged
}

#[test]
fn mined_negatives_repeat_and_hold_no_positive() {
    let nsparse = with_sample();
    let report = nsparse.json("mine --data set --sample 5 --depth 40 --out a.jsonl");
    nsparse.ok("mine --data set --sample 5 --depth 40 --out b.jsonl");
    nsparse.ok("mine --data set --sample 5 --depth 40 --seed 7 --out c.jsonl");
    assert_eq!(nsparse.read("a.jsonl"), nsparse.read("b.jsonl"));
    assert_ne!(nsparse.read("a.jsonl"), nsparse.read("c.jsonl"));

    let judged = judged(&nsparse, "train");
    let corpus = String::from_utf8(nsparse.read("set/corpus.jsonl")).unwrap();
    let ids: BTreeSet<String> =
        corpus.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["_id"].as_str().unwrap().to_owned()).collect();
    let rows = String::from_utf8(nsparse.read("a.jsonl")).unwrap();
    let (mut negatives, mut queries) = (0, BTreeSet::new());
    for line in rows.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let query = row["query_id"].as_str().unwrap();
        queries.insert(query.to_owned());
        let positives = &judged[query];
        assert!(positives.contains(row["pos_id"].as_str().unwrap()), "{line}");
        let found: Vec<&str> = row["neg_ids"].as_array().into_iter().flatten().map(|id| id.as_str().unwrap()).collect();
        assert!(found.len() <= 5 && found.iter().all(|id| ids.contains(*id) && !positives.contains(*id)), "{line}");
        assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "{line}");
        assert_eq!(row["negs"].as_array().map_or(0, Vec::len), found.len());
        assert!(row["source"].as_str().unwrap().contains("bm25-local"), "{line}");
        negatives += found.len();
    }
    assert!(queries.iter().eq(judged.keys()));
    assert_eq!(number(&report["report"], "negatives"), negatives as f64);
    assert_eq!(number(&report["report"], "queries"), judged.len() as f64);
    assert!(negatives > 4 * queries.len(), "{negatives}");
}

/// q1: relevant at ranks 1 and 3 of two; q2: at rank 2 of one; q3 is not ranked; q9 is not judged.
#[test]
fn a_ranking_on_files_alone() {
    let nsparse = with_sample();
    nsparse.write("qrels.txt", "q1 0 d1 1\nq1 0 d2 1\nq1 0 dx 0\nq2 0 d3 1\nq3 0 d4 1\n");
    nsparse.write(
        "run.txt",
        "q1 Q0 d2 1 3.0 r\nq1 Q0 dx 2 2.0 r\nq1 Q0 d1 3 1.0 r\nq2 Q0 dy 1 9 r\nq2 Q0 d3 2 8 r\nq9 Q0 d1 1 1 r\n",
    );
    let summary = nsparse.json("eval --qrels qrels.txt --run run.txt --k 2 --out judged");
    let metrics = &summary["metrics"];
    let second = 3f64.log2().recip();
    close(number(metrics, "ndcg@10"), (1.5 / (1.0 + second) + second) / 3.0);
    close(number(metrics, "map"), (f64::midpoint(1.0, 2.0 / 3.0) + 0.5) / 3.0);
    close(number(metrics, "mrr"), 1.5 / 3.0);
    close(number(metrics, "recall@100"), 2.0 / 3.0);
    close(number(metrics, "recall@2"), 1.5 / 3.0);
    close(number(metrics, "p@10"), 0.3 / 3.0);
    assert_eq!(summary["missing"], serde_json::json!(["q3"]));
    assert_eq!(summary["unjudged"], 1);
    assert_eq!(summary["queries"], 3);
    assert_eq!(parsed(&nsparse, "judged/summary.json"), summary);
    assert_eq!(String::from_utf8(nsparse.read("judged/per-query.jsonl")).unwrap().lines().count(), 3);
    // The ranking that was written is judged alike, and differs from itself by nothing.
    let again = nsparse.json("eval --qrels qrels.txt --run judged/run.trec --k 2 --baseline run.txt");
    assert_eq!(again["metrics"], summary["metrics"]);
    assert_eq!(again["against_baseline"]["difference"]["mean"], 0.0);
    // Several rankings: each query's mean over them. The second finds q3 alone, and at once.
    nsparse.write("other.txt", "q3 Q0 d4 1 1 r\n");
    let both = nsparse.json("eval --qrels qrels.txt --run run.txt,other.txt --baseline other.txt");
    close(number(&both["metrics"], "ndcg@10"), f64::midpoint(number(metrics, "ndcg@10"), 1.0 / 3.0));
    let gain = number(&both["metrics"], "ndcg@10") - 1.0 / 3.0;
    close(number(&both["against_baseline"]["difference"], "mean"), gain);
    assert_eq!(both["missing"], serde_json::json!(["q1", "q2", "q3"]));
    let refused = nsparse.run("eval --qrels qrels.txt --run run.txt,other.txt --out both");
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("`--out` holds one ranking"), "{}", refused.stderr);
    let text = nsparse.ok("eval --qrels qrels.txt --run run.txt").stdout;
    assert!(text.contains("1 judged queries have no ranking and count as 0: q3"), "{text}");
    assert!(text.contains("1 ranked queries have no judgments"), "{text}");
}

#[test]
fn ranked_here_by_all_methods() {
    let nsparse = with_sample();
    for method in ["bm25", "idf", "sparse"] {
        let summary =
            nsparse.json(&format!("eval --data set --engine local --method {method} --model model --out {method}"));
        let ndcg = number(&summary["metrics"], "ndcg@10");
        assert!((0.0..=1.0).contains(&ndcg), "{ndcg}");
        let judged = nsparse.json(&format!("eval --qrels set/qrels/test.tsv --run {method}/run.trec"));
        assert_eq!(judged["metrics"], summary["metrics"], "{method}");
        assert_eq!(summary.get("dimensions").is_some(), method != "bm25");
    }
    // A word of one title alone; BM25 finds it, and the snippet is the document's.
    let mut command = nsparse.command(["search", "inside a posting list", "--method", "bm25", "--engine", "local"]);
    command.args(["--data", "set", "-k", "3", "--json"]);
    let found = nsparse_integration_tests::cli::finish(command).json();
    assert_eq!(found["results"][0]["id"], "posting-list");
    assert_eq!(found["results"][0]["rank"], 1);
    assert_eq!(found["results"].as_array().unwrap().len(), 3);
}

#[test]
fn a_search_is_paged_pruned_told_apart_and_fused_here() {
    let nsparse = with_sample();
    let asked = |more: &[&str]| {
        let mut command = nsparse.command(["search", "the posting list of a term", "--engine", "local"]);
        command.args(["--model", "model", "--data", "set", "--json"]).args(more);
        nsparse_integration_tests::cli::finish(command)
    };
    let search = |more: &[&str]| asked(more).json()["results"].as_array().unwrap().clone();
    let whole = search(&["--explain", "-k", "6"]);
    assert_eq!(whole.len(), 6);
    for result in &whole {
        let terms = result["terms"].as_array().unwrap();
        let sum: f64 = terms.iter().map(|t| number(t, "score")).sum();
        let score = number(result, "score");
        assert!((sum - score).abs() < 1e-4 * score, "{}: {score}, its terms {sum}", result["id"]);
        assert!(terms.iter().all(|t| t["expansion"].is_boolean()));
    }
    assert_eq!(search(&["--explain", "-k", "3", "--from", "3"]), whole[3..]);
    let pruned = search(&["--explain", "--prune", "top_k:2"]);
    assert!(pruned.iter().all(|r| (1..=2).contains(&r["terms"].as_array().unwrap().len())));
    let mut command = nsparse.command(["search", "the posting list of a term", "--engine", "local", "--explain=1"]);
    command.args(["--model", "model", "--data", "set", "-k", "1"]);
    let drawn = nsparse_integration_tests::cli::finish(command).stdout;
    assert!(drawn.contains("█") && drawn.contains(" × ") && drawn.contains("more"), "{drawn}");

    let ids = |results: &[serde_json::Value]| -> Vec<String> {
        results.iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    };
    let sparse_alone = search(&["--method", "hybrid", "--weights", "0,1"]);
    assert_eq!(ids(&sparse_alone)[..6], ids(&whole));
    let bm25_alone = search(&["--method", "hybrid", "--weights", "1,0", "--fusion", "minmax", "-k", "2"]);
    assert_eq!(ids(&bm25_alone), ids(&search(&["--method", "bm25", "-k", "2"])));
    for (more, word) in [
        (&["--two-phase"][..], "no two phases"),
        (&["--filter", "year>2000"], "--filter needs a cluster"),
        (&["--highlight"], "--highlight needs a cluster"),
        (&["--method", "bm25", "--explain"], "not told apart"),
        (&["--prune", "max_ratio:1.5"], "from 0 to below 1"),
    ] {
        let refused = asked(more);
        assert_eq!(refused.code, Some(2), "{more:?}");
        assert!(refused.stderr.contains(word), "{}", refused.stderr);
    }
    let summary = nsparse.json("eval --data set --engine local --method sparse --model model --prune max_ratio:0.5");
    let all = nsparse.json("eval --data set --engine local --method sparse --model model");
    assert!(number(&summary["dimensions"], "query_mean") < number(&all["dimensions"], "query_mean"));
}

#[test]
fn shells_and_man_know_every_command() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = nsparse.ok(&format!("completions {shell}")).stdout;
        assert!(script.contains("reencode") && script.contains("two-phase"), "{shell}");
    }
    let pages = nsparse.json("man --out man")["pages"].as_array().unwrap().len();
    let help = nsparse.ok("help").stdout;
    let commands = help.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| l.starts_with("  "));
    // What is indented further goes on with the line before it.
    let commands: Vec<&str> =
        commands.filter(|l| !l.starts_with("   ")).filter_map(|l| l.split_whitespace().next()).collect();
    assert!(commands.len() > 25 && pages > commands.len(), "{commands:?}, {pages} pages");
    let page = |command: &str| String::from_utf8(nsparse.read(&format!("man/nsparse-{command}.1"))).unwrap();
    for command in commands.iter().filter(|c| **c != "help") {
        assert!(page(command).contains(".SH SYNOPSIS"), "{command}");
    }
    assert!(page("deploy").contains("Examples"));
}

#[test]
fn a_text_seen_as_document_and_as_query() {
    let nsparse = with_sample();
    let mut command = nsparse.command(["inspect", "Search engine search.", "--model", "model", "--json"]);
    let seen = nsparse_integration_tests::cli::finish({
        command.env("NO_COLOR", "1");
        command
    })
    .json();
    let idf = parsed(&nsparse, "model/idf.json");
    let query = seen["query"]["terms"].as_array().unwrap();
    // The dot is no query token: the engine's own query cannot reach it.
    let tokens: BTreeSet<&str> = query.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, BTreeSet::from(["search", "engine"]));
    for term in query {
        close(number(term, "weight"), number(&idf, term["token"].as_str().unwrap()));
        assert_eq!(term["expansion"], false);
    }
    let document = seen["document"]["terms"].as_array().unwrap();
    assert_eq!(document.len() as f64, number(&seen["document"], "active_dimensions"));
    assert!(document.windows(2).all(|pair| number(&pair[0], "weight") >= number(&pair[1], "weight")));
    for term in document {
        let token = term["token"].as_str().unwrap();
        assert_eq!(term["expansion"], !["search", "engine"].contains(&token), "{token}");
        assert!(number(term, "weight") > 0.0 && !token.contains('.') && !token.starts_with('['), "{token}");
    }
    assert!(nsparse.ok("inspect search --model model").stdout.contains("as query: 1 tokens, idf"));
}

const RECIPE: &str = "run: {dir: run, seed: 11}\nmodel: {path: model}\ndata: {dir: set, rows: rows.jsonl, max_tokens: 32}\n\
    calibration: {when: always, active_dimensions: 40}\n\
    warm_start: {steps: 300, batch_documents: 8, dropout: 0.1}\n\
    train: {steps: 300, batch_queries: 8, negatives: 1, dropout: 0.1}\n\
    eval: {fraction: 0.2, every: 100, documents: 60}\ncheckpoint: {every: 50}\n";

fn with_recipe() -> Nsparse {
    let nsparse = with_sample();
    nsparse.write("recipe.yaml", RECIPE);
    nsparse.ok("mine --data set --sample 2 --out rows.jsonl");
    nsparse
}

#[test]
fn a_training_is_looked_at_before_it_is_run() {
    let nsparse = with_recipe();
    let report = nsparse.json("train recipe.yaml --check");
    assert_eq!(report["documents"], 256);
    assert_eq!(number(&report, "queries"), judged(&nsparse, "train").len() as f64);
    let stages: Vec<f64> = report["stages"].as_array().unwrap().iter().map(|s| number(s, "steps")).collect();
    assert_eq!(stages, [300.0, 300.0]);
    for key in ["seconds", "memory_bytes", "truncated_documents", "parameters"] {
        assert!(number(&report, key) > 0.0, "{key}");
    }
    assert!(number(&report["lengths"], "median") > 32.0);
    assert!(!nsparse.path("run").exists());
    assert!(nsparse.ok("train recipe.yaml --check").stdout.contains("256 documents"));
}

/// Steps that the run in this folder has logged.
fn steps(nsparse: &Nsparse, run: &str) -> usize {
    let text = std::fs::read_to_string(nsparse.path(run).join("metrics.jsonl")).unwrap_or_default();
    text.lines().filter(|l| l.contains("\"loss\"")).count()
}

#[test]
fn a_stopped_training_goes_on_to_the_same_model() {
    let nsparse = with_recipe();
    nsparse.ok("train recipe.yaml --set run.dir=whole");
    assert_eq!(steps(&nsparse, "whole"), 600);
    // Stopped in the warm start, then in the contrastive stage.
    for (after, arguments) in [(120, "train recipe.yaml"), (420, "train recipe.yaml --resume")] {
        let mut child = nsparse.spawn(arguments);
        wait_until(&mut child, "some steps", || steps(&nsparse, "run") >= after);
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(1), "stopped, not finished");
        let done = steps(&nsparse, "run");
        assert!((after..600).contains(&done), "{done}");
    }
    // Killed without a word: what the last checkpoint holds is gone on from.
    let mut child = nsparse.spawn("train recipe.yaml --resume");
    wait_until(&mut child, "some steps", || steps(&nsparse, "run") >= 530);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    let summary = nsparse.json("train recipe.yaml --resume");
    assert_eq!(summary["finished"], true);
    assert_eq!(steps(&nsparse, "run"), 600);
    for file in ["model/model.safetensors", "warm-start/model.safetensors", "model/idf.json"] {
        assert!(nsparse.read(&format!("run/{file}")) == nsparse.read(&format!("whole/{file}")), "{file} differs");
    }
}

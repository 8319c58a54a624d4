//! Answers past the window: the sample collection's documents, each after hundreds of words that say nothing, are found
//! with segments and lost without.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "measured figures are shown with --nocapture")]

use std::fmt::Write as _;
use std::path::Path;

use nsparse_core::wordpiece;
use nsparse_integration_tests::cli::Nsparse;
use serde_json::{Value, json};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");
/// Tokens of the window, special ones included.
const WINDOW: usize = 512;
/// Documents of the long set.
const DOCUMENTS: usize = 48;

fn lines(file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(Path::new(SAMPLE).join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(value: &Value) -> String {
    format!("{} {}", value["title"].as_str().unwrap(), value["text"].as_str().unwrap())
}

/// The set `long`, whose queries are the documents' titles; `tokenizer.json` over the collection's words.
fn long_set(nsparse: &Nsparse) {
    let corpus = lines("corpus.jsonl");
    let (of_set, others) = corpus.split_at(DOCUMENTS);
    // What comes first is the same in all, but for where it begins: it tells none from another.
    let filler: Vec<String> = others[others.len() - 12..].iter().map(text).collect();
    let (mut documents, mut queries) = (String::new(), String::new());
    let mut qrels = "query-id\tcorpus-id\tscore\n".to_owned();
    for (n, document) in of_set.iter().enumerate() {
        let mut before = String::new();
        let mut at = n % filler.len();
        // A word is at least one word piece.
        while before.split_whitespace().count() < WINDOW {
            before.push_str(&filler[at]);
            before.push(' ');
            at = (at + 1) % filler.len();
        }
        let id = document["_id"].as_str().unwrap();
        let long = json!({ "_id": id, "title": "", "text": format!("{before}{}", text(document)) });
        writeln!(documents, "{long}").unwrap();
        writeln!(queries, "{}", json!({ "_id": format!("q-{id}"), "text": document["title"] })).unwrap();
        writeln!(qrels, "q-{id}\t{id}\t1").unwrap();
    }
    nsparse.write("long/corpus.jsonl", &documents);
    nsparse.write("long/queries.jsonl", &queries);
    nsparse.write("long/qrels/test.tsv", &qrels);
    let texts: Vec<String> = corpus.iter().map(text).collect();
    let tokenizer = wordpiece::train(texts.iter().map(String::as_str), 1500).unwrap();
    nsparse.write("tokenizer.json", &tokenizer.to_json(WINDOW).unwrap());
}

const RECIPE: &str = "run: {dir: run, seed: 3}\n\
    model: {random: {hidden_size: 48, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 96}, tokenizer: tokenizer.json}\n\
    data: {dir: long, max_tokens: 512, segments: {max: 3, overlap: 16}}\n\
    calibration: {active_dimensions: 120, documents: 16}\n\
    warm_start: {steps: 40, batch_documents: 6, segment_budget: 9, learning_rate: {encoder: 2e-3, head: 4e-3}, warmup_steps: 4}\n\
    train: {steps: 0}\n";

#[test]
fn an_answer_past_the_window_is_found_with_segments_and_lost_without() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    long_set(&nsparse);
    nsparse.write("recipe.yaml", RECIPE);
    let check = nsparse.json("train recipe.yaml --check");
    assert!(check["segments"].as_f64().unwrap() >= 2.0, "{check}");
    nsparse.ok("train recipe.yaml");

    // The same weights, with and without what nsparse.json says of segments.
    nsparse.copy(&nsparse.path("run/model"), "cut");
    let mut facts: Value = nsparse_core::files::read_json(&nsparse.path("cut/nsparse.json")).unwrap();
    assert_eq!(facts["segments"], json!({ "max": 3, "overlap": 16 }));
    facts.as_object_mut().unwrap().remove("segments");
    nsparse.write("cut/nsparse.json", &facts.to_string());

    let eval = |model: &str, method: &str| -> (f64, f64) {
        let summary = nsparse.json(&format!("eval --data long --engine local --method {method} --model {model}"));
        let metric = |name: &str| summary["metrics"][name].as_f64().unwrap();
        println!("{model}, {method}: nDCG@10 {:.4}, recall@5 {:.4}", metric("ndcg@10"), metric("recall@5"));
        (metric("ndcg@10"), metric("recall@5"))
    };
    let whole = eval("run/model", "sparse");
    let best = eval("run/model", "nested");
    let cut = eval("cut", "sparse");
    let bm25 = eval("run/model", "bm25");
    assert!(bm25.0 > 0.7, "the answers are there: {bm25:?}");
    for found in [whole, best] {
        assert!(found.0 > 0.6 && found.1 > 0.7, "{found:?}");
        assert!(found.0 > cut.0 + 0.35, "{found:?} against {cut:?}");
    }
    assert!(cut.1 < 0.3, "{cut:?}");

    // One text, seen: its terms come from all of it.
    let document = lines("corpus.jsonl").iter().map(text).collect::<Vec<_>>().join(" ");
    let words: Vec<&str> = document.split_whitespace().take(900).collect();
    let mut inspect = nsparse.command(["inspect", &words.join(" "), "--model", "run/model", "--json"]);
    inspect.env("NO_COLOR", "1");
    let seen = nsparse_integration_tests::cli::finish(inspect).json();
    assert!(seen["segments"].as_u64().unwrap() > 1, "{}", seen["segments"]);
}

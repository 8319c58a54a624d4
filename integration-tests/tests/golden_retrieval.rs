//! The offline index against golden values: exact scores, and Lucene's 9-bit arithmetic bit for bit.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use nsparse_core::vector::engine_weight;
use nsparse_core::{Hit, SearchQuery, Searcher, SparseVector};
use nsparse_retrieval::index::{Arithmetic, InvertedIndex};
use nsparse_retrieval::metrics::trec_order;
use serde_json::Value;

fn golden(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/retrieval").join(name);
    nsparse_core::files::read_json(&path).unwrap()
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

fn vector(item: &Value) -> SparseVector {
    let terms = item["terms"].as_array().unwrap().iter().map(|t| t.as_u64().unwrap() as u32);
    SparseVector::from_pairs(terms.zip(floats(&item["weights"])).collect())
}

fn documents(data: &Value) -> Vec<(String, SparseVector)> {
    let docs = data["docs"].as_array().unwrap();
    docs.iter().map(|d| (d["id"].as_str().unwrap().to_owned(), vector(d))).collect()
}

fn queries(data: &Value) -> Vec<SearchQuery> {
    let queries = data["queries"].as_array().unwrap();
    queries
        .iter()
        .map(|q| SearchQuery { id: q["id"].as_str().unwrap().to_owned(), text: String::new(), vector: vector(q) })
        .collect()
}

fn ranking(expected: &Value) -> Vec<Hit> {
    let rows = expected.as_array().unwrap();
    rows.iter()
        .map(|r| Hit { id: r["id"].as_str().unwrap().to_owned(), score: r["score"].as_f64().unwrap() as f32 })
        .collect()
}

fn names(expected: &Value) -> Vec<&str> {
    expected.as_array().unwrap().iter().map(|id| id.as_str().unwrap()).collect()
}

/// Searches with `arithmetic`; in index order, and as `trec_eval` orders.
fn search(data: &Value, arithmetic: Arithmetic) -> Vec<(String, Vec<Hit>, Vec<Hit>)> {
    let index = InvertedIndex::build_with(documents(data), arithmetic);
    let queries = queries(data);
    assert_eq!(queries.len(), 10);
    let found = index.search(&queries, 1000).unwrap();
    queries
        .into_iter()
        .zip(found)
        .map(|(query, hits)| {
            let mut sorted = hits.clone();
            sorted.sort_by(trec_order);
            (query.id, hits, sorted)
        })
        .collect()
}

#[test]
fn nine_bit_weights_equal_lucene() {
    for document in golden("data.json")["docs"].as_array().unwrap() {
        let stored = floats(&document["weights_9bit"]);
        let frequencies = document["lucene_freq"].as_array().unwrap();
        for ((weight, nine), frequency) in floats(&document["weights"]).into_iter().zip(stored).zip(frequencies) {
            assert_eq!(engine_weight(weight).to_bits(), nine.to_bits());
            assert_eq!(u64::from(weight.to_bits() >> 15), frequency.as_u64().unwrap());
        }
    }
}

#[test]
fn engine_ranking_is_bit_exact() {
    let (data, expected) = (golden("data.json"), golden("expected.json"));
    for (id, in_index_order, sorted) in search(&data, Arithmetic::Engine) {
        let query = &expected["queries"][&id];
        let golden = ranking(&query["ranking_9bit"]);
        assert_eq!(sorted.len(), golden.len(), "{id}");
        for (hit, golden) in sorted.iter().zip(&golden) {
            assert_eq!((&hit.id, hit.score.to_bits()), (&golden.id, golden.score.to_bits()), "{id}");
        }
        let top: Vec<&str> = in_index_order.iter().take(10).map(|h| h.id.as_str()).collect();
        assert_eq!(top, names(&query["top10_9bit_index_order_ties"]), "{id}");
    }
}

#[test]
fn exact_ranking_agrees() {
    let (data, expected) = (golden("data.json"), golden("expected.json"));
    let mut changed = Vec::new();
    for (id, _, sorted) in search(&data, Arithmetic::Exact) {
        let query = &expected["queries"][&id];
        assert_eq!(sorted, ranking(&query["ranking_exact"]), "{id}");
        if query["top10_exact"] != query["top10_9bit"] {
            changed.push(id);
        }
    }
    // The oracle itself says where the 9 bits matter: the test would be blind without such queries.
    assert_eq!(changed, names(&expected["queries_whose_top10_changes_with_9bit"]));
}

#[test]
fn a_depth_below_the_ties_cuts_in_index_order() {
    let (data, expected) = (golden("data.json"), golden("expected.json"));
    let index = InvertedIndex::build(documents(&data));
    for (query, hits) in queries(&data).iter().zip(index.search(&queries(&data), 10).unwrap()) {
        let ids: Vec<&str> = hits.iter().map(|h| h.id.as_str()).collect();
        assert_eq!(ids, names(&expected["queries"][&query.id]["top10_9bit_index_order_ties"]), "{}", query.id);
    }
}

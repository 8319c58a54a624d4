//! Tests of what is asked and how answers are read, without a cluster.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use super::*;
use crate::client::ClusterConfig;

fn searcher(mode: SparseMode) -> SparseSearcher {
    let cluster = Cluster::connect(&ClusterConfig::new("http://127.0.0.1:1")).unwrap();
    let vocabulary: Vec<String> = ["[PAD]", "apple", "##s", ".", "a.b"].map(str::to_owned).to_vec();
    SparseSearcher::with_mode(cluster, "i", "v", &vocabulary, mode)
}

fn query(pairs: &[(u32, f32)]) -> SearchQuery {
    SearchQuery { id: "q1".into(), text: "apples.".into(), vector: SparseVector::from_pairs(pairs.to_vec()) }
}

#[test]
fn both_forms_carry_the_same_tokens_and_none_with_a_dot() {
    let pairs = [(1, 0.1), (2, 2.5), (3, 1.0), (4, 1.0)];
    assert_eq!(
        searcher(SparseMode::Tokens).query(&query(&pairs)).unwrap().unwrap(),
        json!({ "neural_sparse": { "v": { "query_tokens": { "apple": 0.1, "##s": 2.5 } } } })
    );
    assert_eq!(
        searcher(SparseMode::RankFeature).query(&query(&pairs)).unwrap().unwrap(),
        json!({ "bool": { "should": [
            { "rank_feature": { "field": "v.apple", "linear": {}, "boost": 0.1 } },
            { "rank_feature": { "field": "v.##s", "linear": {}, "boost": 2.5 } }
        ] } })
    );
    assert_eq!(searcher(SparseMode::Tokens).query(&query(&[(3, 1.0)])).unwrap(), None);
    assert_eq!(
        searcher(SparseMode::Text { model_id: "m".into() }).query(&query(&[])).unwrap().unwrap(),
        json!({ "neural_sparse": { "v": { "query_text": "apples.", "model_id": "m" } } })
    );
}

#[test]
fn weights_out_of_range_are_named_before_they_leave() {
    let message = |w: f32| searcher(SparseMode::Tokens).query(&query(&[(1, w)])).unwrap_err().to_string();
    assert_eq!(message(64.5), "The query `q1` cannot be sent: the weight 64.5 of token `apple` is not in (0, 64]");
    assert!(message(f32::INFINITY).contains("`apple`"));
    assert!(searcher(SparseMode::Tokens).query(&query(&[(1, 64.0)])).unwrap().is_some());
    let unknown = searcher(SparseMode::Tokens).query(&query(&[(9, 1.0)])).unwrap_err().to_string();
    assert!(unknown.contains("token 9 is not in the vocabulary"), "{unknown}");
}

#[test]
fn more_tokens_than_clauses_are_refused() {
    let vocabulary: Vec<String> = (0..=MAX_QUERY_TOKENS).map(|i| format!("t{i}")).collect();
    let all: Vec<(u32, f32)> = (0..vocabulary.len() as u32).map(|i| (i, 1.0)).collect();
    let names = FeatureNames::new(&vocabulary);
    let check = |n: usize| check_features("q", &SparseVector::from_pairs(all[..n].to_vec()), &names);
    assert_eq!(check(MAX_QUERY_TOKENS).unwrap().len(), MAX_QUERY_TOKENS);
    assert_eq!(
        check(MAX_QUERY_TOKENS + 1).unwrap_err().to_string(),
        "The query `q` has 1025 tokens; the engine takes 1024"
    );
}

#[test]
fn numbers_keep_their_f32() {
    for weight in [0.1f32, 3.402_868_6, 1e-30, 64.0, f32::MIN_POSITIVE] {
        let text = number(weight).to_string();
        assert_eq!(text.parse::<f32>().unwrap().to_bits(), weight.to_bits(), "{text}");
    }
}

#[test]
fn a_failed_shard_is_an_error() {
    let answer = json!({ "status": 200, "hits": { "hits": [] }, "_shards": { "failures": [
        { "shard": 0, "reason": { "type": "query_shard_exception", "reason": "no such field" } }
    ] } });
    let message = hits("i", &answer).unwrap_err().to_string();
    assert!(message.contains("(query_shard_exception): no such field"), "{message}");
}

//! Queries of a real node: two phases, hybrid ones, pages, filters, marked words, and what each term gives. What
//! neural-search does is told by its recorded answers, and stood in for before the node.

#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;

use nsparse_core::{Pruning, SearchQuery, Searcher, SparseVector};
use nsparse_integration_tests::node::shared;
use nsparse_integration_tests::standin::replay::{Record, trace};
use nsparse_integration_tests::standin::{Options, StandIn};
use nsparse_opensearch::ml::Fields;
use nsparse_opensearch::{
    Body, Cluster, ClusterConfig, Highlight, Method, NDJSON, Page, SparseMode, SparseSearcher, TwoPhase, bm25_query,
    hybrid_request, search_page,
};
use serde_json::{Value, json};

const SCENARIO: &str = "two-phase over many documents";

/// The recorded scenario, sent to the node through the stand-in up to its deletions; each record with the answer here.
fn played(index: &str) -> (StandIn, Cluster, Vec<(Record, u16, Value)>) {
    let standin = StandIn::start(Options { upstream: Some(shared().url.clone()), ..Options::default() });
    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    let records = trace().into_iter().filter(|r| r.scenario == SCENARIO && r.method != "DELETE");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answers = records.map(|record| {
        let path = record.path.replace("trace-t", index);
        let (body, kind) = match &record.body {
            Value::String(text) => (text.clone(), NDJSON),
            body => (body.to_string(), "application/json"),
        };
        let method = reqwest::Method::from_bytes(record.method.as_bytes()).unwrap();
        let request =
            client.request(method, format!("{}{path}", standin.url())).header("content-type", kind).body(body);
        let (status, answer) = runtime.block_on(async {
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap())
        });
        (record, status, answer)
    });
    let answers = answers.collect();
    (standin, cluster, answers)
}

fn hits(answer: &Value) -> Vec<(String, f64)> {
    let hits = answer.pointer("/hits/hits").and_then(Value::as_array).cloned().unwrap_or_default();
    hits.iter().map(|h| (h["_id"].as_str().unwrap().to_owned(), h["_score"].as_f64().unwrap())).collect()
}

fn same_ranking(found: &[(String, f64)], recorded: &[(String, f64)], what: &str) {
    let ids = |list: &[(String, f64)]| list.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(found), ids(recorded), "{what}");
    for ((id, a), (_, b)) in found.iter().zip(recorded) {
        // Lucene adds floats up in an order of its own: one unit in the last place.
        assert!((a - b).abs() <= b.abs() * 2e-7, "{what}: {id} has {a} and not {b}");
    }
}

fn recorded_query(records: &[(Record, u16, Value)]) -> (Vec<String>, SearchQuery) {
    let one = records.iter().find(|(r, _, _)| r.note == "one phase").unwrap();
    let tokens = one.0.body.pointer("/query/neural_sparse/embedding/query_tokens").unwrap().as_object().unwrap();
    let vocabulary: Vec<String> = tokens.keys().cloned().collect();
    let weights = tokens.values().enumerate().map(|(i, w)| (i as u32, w.as_f64().unwrap() as f32));
    let vector = SparseVector::from_pairs(weights.collect());
    (vocabulary, SearchQuery { id: "q".to_owned(), text: String::new(), vector })
}

#[test]
fn the_stand_in_searches_in_two_phases_as_recorded() {
    let (_standin, _cluster, answers) = played("two-phase-trace");
    let searches = answers.iter().filter(|(r, _, _)| r.path.contains("_search?") || r.path.ends_with("_search"));
    let mut compared = 0;
    for (record, status, answer) in searches {
        assert_eq!(*status, record.status, "line {}: {answer}", record.line);
        let what = format!("line {}: {}", record.line, record.note);
        same_ranking(&hits(answer), &hits(&record.answer), &what);
        assert_eq!(answer.pointer("/hits/total/value"), record.answer.pointer("/hits/total/value"), "{what}");
        compared += 1;
    }
    assert_eq!(compared, 6);
    let refused = answers.iter().find(|(r, _, _)| r.note == "ratio out of range").unwrap();
    assert_eq!(refused.1, 400);
    assert_eq!(refused.2.pointer("/error/reason"), refused.0.answer.pointer("/error/reason"));
}

#[test]
fn two_phases_sent_from_here_are_those_of_the_processor() {
    let (_standin, cluster, answers) = played("two-phase-ours");
    let (vocabulary, query) = recorded_query(&answers);
    let phases = |ratio: f32, expansion: f32, max_window: usize| {
        Some(TwoPhase { pruning: Pruning::MaxRatio(ratio), expansion, max_window })
    };
    for (note, phases) in [
        ("one phase", None),
        ("two phases, prune_ratio 0.4, expansion_rate 5.0, max_window_size 10000", phases(0.4, 5.0, 10_000)),
        ("two phases, prune_ratio 0.9, expansion_rate 1.0, max_window_size 50", phases(0.9, 1.0, 50)),
        ("two phases, prune_ratio 0.0, expansion_rate 5.0, max_window_size 10000", phases(0.0, 5.0, 10_000)),
    ] {
        let recorded = &answers.iter().find(|(r, _, _)| r.note == note).unwrap().0.answer;
        for (way, at, mode) in [
            ("a bare node", &shared().cluster, SparseMode::RankFeature),
            ("neural_sparse", &cluster, SparseMode::Tokens),
        ] {
            let searcher = SparseSearcher::with_mode(at.clone(), "two-phase-ours", "embedding", &vocabulary, mode)
                .in_two_phases(phases);
            let found = searcher.search(std::slice::from_ref(&query), 10).unwrap().pop().unwrap();
            let found: Vec<(String, f64)> = found.into_iter().map(|h| (h.id, f64::from(h.score))).collect();
            same_ranking(&found, &hits(recorded), &format!("{note}, {way}"));
        }
    }
}

#[test]
fn terms_give_what_the_score_is_made_of() {
    let (_standin, _cluster, answers) = played("explained");
    let (vocabulary, query) = recorded_query(&answers);
    let cluster = &shared().cluster;
    let searcher = SparseSearcher::new(cluster.clone(), "explained", "embedding", &vocabulary).unwrap();
    let found = searcher.search(std::slice::from_ref(&query), 10).unwrap().pop().unwrap();
    let ids: Vec<&str> = found.iter().map(|h| h.id.as_str()).collect();
    let terms = searcher.explain(&query, &ids).unwrap();
    assert_eq!(terms.len(), 10);
    for (hit, terms) in found.iter().zip(&terms) {
        let sum: f32 = terms.iter().map(|t| t.score).sum();
        assert!((sum - hit.score).abs() < hit.score * 1e-6, "{} scores {}, its terms {sum}", hit.id, hit.score);
        assert!(terms.windows(2).all(|w| w[0].score >= w[1].score));
    }
    // The vectors that were sent: each part is weight times weight, as stored.
    let bulk = answers.iter().find(|(r, _, _)| r.path.contains("_bulk")).unwrap();
    let lines: Vec<&str> = bulk.0.body.as_str().unwrap().lines().collect();
    let place = lines.iter().position(|l| l.contains(&format!("\"{}\"", found[0].id))).unwrap();
    let sent: Value = serde_json::from_str(lines[place + 1]).unwrap();
    for term in &terms[0] {
        let weight = sent["embedding"][&term.token].as_f64().unwrap() as f32;
        let expected = term.query_weight * nsparse_core::vector::engine_weight(weight);
        assert!((term.score - expected).abs() <= expected * 1e-6, "{}: {} and not {expected}", term.token, term.score);
    }
    let nested = searcher.over(&Fields::default().nested());
    assert!(nested.explain(&query, &ids).unwrap_err().to_string().contains("cannot be told apart by terms"));
    let in_phases = nested.in_two_phases(Some(TwoPhase::default())).request(&query, 10).unwrap_err();
    assert!(in_phases.to_string().contains("cannot be searched in two phases"), "{in_phases}");
}

#[test]
fn a_hybrid_query_in_the_body_scores_as_the_recorded_one() {
    let (_standin, cluster, answers) = played("hybrid");
    let recorded = &answers.iter().find(|(r, _, _)| r.note == "hybrid").unwrap().0;
    let parts = recorded.body.pointer("/query/hybrid/queries").unwrap().as_array().unwrap();
    let request = hybrid_request(&[(parts[0].clone(), 0.3), (parts[1].clone(), 0.7)]);
    let page = Page { size: 5, ..Page::default() };
    let found = search_page(&cluster, "hybrid", request, &page, &Fields::default()).unwrap();
    assert_eq!(found.total, 181);
    let found: Vec<(String, f64)> = found.hits.into_iter().map(|h| (h.id, f64::from(h.score))).collect();
    same_ranking(&found, &hits(&recorded.answer), "hybrid");
}

#[test]
fn pages_follow_each_other_and_filters_leave_scores_alone() {
    let cluster = &shared().cluster;
    let mapping = json!({ "mappings": { "properties": {
        "title": { "type": "text", "analyzer": "english" }, "text": { "type": "text", "analyzer": "english" },
        "year": { "type": "integer" }, "journal": { "type": "keyword" }, "embedding": { "type": "rank_features" }
    } } });
    cluster.put("/paged", mapping).unwrap();
    let mut bulk = String::new();
    for i in 0..30 {
        let document = json!({
            "title": format!("Study {i} of bones"), "text": "Vitamin D strengthens a bone. Nothing else is said here.",
            "year": 2000 + i, "journal": if i % 2 == 0 { "Nature" } else { "Cell" }, "embedding": { "bone": 1.0 + f64::from(i) / 8.0 }
        });
        writeln!(bulk, "{{\"index\":{{\"_id\":\"{i}\"}}}}\n{document}").unwrap();
    }
    cluster.request(Method::Post, "/paged/_bulk?refresh=true", Body::Raw(bulk.into_bytes(), NDJSON)).unwrap();
    let vocabulary = ["bone".to_owned()];
    let searcher = SparseSearcher::new(cluster.clone(), "paged", "embedding", &vocabulary).unwrap();
    let query = SearchQuery {
        id: "q".to_owned(),
        text: "strong bones".to_owned(),
        vector: SparseVector::from_pairs(vec![(0, 2.0)]),
    };
    let ask = |page: &Page| {
        let request = searcher.request(&query, page.from + page.size).unwrap().unwrap();
        search_page(cluster, "paged", request, page, &Fields::default())
    };
    let whole = ask(&Page { size: 30, ..Page::default() }).unwrap();
    assert_eq!((whole.total, whole.is_exact, whole.hits.len()), (30, true, 30));
    assert!(whole.hits.iter().all(|h| h.source.get("embedding").is_none() && h.source.get("year").is_some()));
    let pages: Vec<_> =
        (0..3).flat_map(|i| ask(&Page { from: i * 10, size: 10, ..Page::default() }).unwrap().hits).collect();
    assert_eq!(pages, whole.hits);

    let filters = vec![
        json!({ "range": { "year": { "gte": "2010" } } }),
        json!({ "match": { "journal": { "query": "Nature", "operator": "and" } } }),
    ];
    let filtered = ask(&Page { size: 30, filters: filters.clone(), ..Page::default() }).unwrap();
    let expected: Vec<_> = whole
        .hits
        .iter()
        .filter(|h| h.source["year"].as_i64() >= Some(2010) && h.source["journal"] == "Nature")
        .cloned()
        .collect();
    assert_eq!((filtered.hits.len(), &filtered.hits), (10, &expected));
    let in_phases = searcher.clone().in_two_phases(Some(TwoPhase::default()));
    let request = in_phases.request(&query, 30).unwrap().unwrap();
    let page = Page { size: 30, filters, ..Page::default() };
    assert_eq!(search_page(cluster, "paged", request, &page, &Fields::default()).unwrap().hits, expected);

    let highlight = Some(Highlight { text: query.text.clone(), before: "[".to_owned(), after: "]".to_owned() });
    let marked = ask(&Page { size: 1, highlight: highlight.clone(), ..Page::default() }).unwrap();
    let parts = &marked.hits[0].highlight;
    assert_eq!(parts["title"], json!(["Study 29 of [bones]"]));
    let marked = "Vitamin D strengthens a [bone]. Nothing else is said here.";
    assert_eq!(parts["text"], json!([marked]));
    let bm25 = json!({ "query": bm25_query("bones", &Fields::default()) });
    let page = Page { size: 3, highlight, ..Page::default() };
    assert_eq!(search_page(cluster, "paged", bm25, &page, &Fields::default()).unwrap().total, 30);

    let deep = ask(&Page { from: 9_995, size: 10, ..Page::default() }).unwrap_err();
    assert!(deep.to_string().contains("documents 9996 to 10005"), "{deep}");
}

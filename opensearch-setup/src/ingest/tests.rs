//! Ingest against a small HTTP server of our own that is busy, strict or slow on demand.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use nsparse_core::NoProgress;
use serde_json::json;

use super::*;
use crate::client::{ClusterConfig, RetryPolicy};
use crate::error::Error;

/// What the server has seen and how it behaves.
#[derive(Default)]
struct Server {
    /// Ids of each bulk request, in the order of arrival.
    requests: Vec<Vec<String>>,
    /// Documents that are in.
    documents: BTreeMap<String, Value>,
    /// Statuses for the next whole requests.
    whole: Vec<u16>,
    /// Ids that are answered with 429 so many times.
    busy: HashMap<String, usize>,
    /// Ids that are never taken.
    broken: BTreeSet<String>,
    /// A request with more documents is too large.
    most: usize,
    /// Bulk requests being answered now, and the most at once.
    open: usize,
    most_open: usize,
    /// The index shows what it is, and nobody may change its settings.
    guards_settings: bool,
    /// Bodies of changes to the mapping.
    mappings: Vec<Value>,
}

type Shared = Arc<Mutex<Server>>;

async fn answer(
    State(server): State<Shared>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> (StatusCode, axum::Json<Value>) {
    let ok = |value: Value| (StatusCode::OK, axum::Json(value));
    if server.lock().unwrap().guards_settings {
        match (method.as_str(), uri.path()) {
            ("GET", "/i") => {
                let settings = json!({ "index.uuid": "u1", "index.number_of_replicas": "1" });
                return ok(
                    json!({ "i": { "aliases": {}, "mappings": { "_meta": { "a": 1 } }, "settings": settings } }),
                );
            }
            ("PUT", "/i/_settings") => {
                let error = json!({ "type": "security_exception", "reason": "no permissions" });
                return (StatusCode::FORBIDDEN, axum::Json(json!({ "error": error, "status": 403 })));
            }
            ("PUT", "/i/_mapping") => server.lock().unwrap().mappings.push(serde_json::from_slice(&body).unwrap()),
            _ => {}
        }
    }
    if uri.path().ends_with("/_count") {
        return ok(json!({ "count": server.lock().unwrap().documents.len() }));
    }
    if uri.path().contains("/_settings") {
        return ok(json!({ "i": { "settings": { "index.uuid": "u1" } } }));
    }
    if !uri.path().ends_with("/_bulk") {
        return ok(json!({}));
    }
    {
        let mut server = server.lock().unwrap();
        server.open += 1;
        server.most_open = server.most_open.max(server.open);
    }
    // Lets the other batches in flight arrive before this one is answered.
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
    let mut server = server.lock().unwrap();
    server.open -= 1;
    let lines: Vec<Value> =
        std::str::from_utf8(&body).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let pairs: Vec<(String, Value)> =
        lines.chunks(2).map(|p| (p[0]["index"]["_id"].as_str().unwrap().to_owned(), p[1].clone())).collect();
    server.requests.push(pairs.iter().map(|p| p.0.clone()).collect());
    if server.most > 0 && pairs.len() > server.most {
        return (StatusCode::PAYLOAD_TOO_LARGE, axum::Json(json!("too large")));
    }
    if let Some(status) = server.whole.pop() {
        return (StatusCode::from_u16(status).unwrap(), axum::Json(json!({ "error": "busy" })));
    }
    let mut items = Vec::new();
    for (id, source) in pairs {
        let times = server.busy.get_mut(&id).filter(|n| **n > 0);
        let item = if let Some(times) = times {
            *times -= 1;
            json!({ "_id": id, "status": 429, "error": { "type": "rejected", "reason": "queue full" } })
        } else if server.broken.contains(&id) {
            let cause = json!({ "type": "c", "reason": "weight must be positive" });
            json!({ "_id": id, "status": 400,
                    "error": { "type": "mapper_parsing_exception", "reason": "failed to parse", "caused_by": cause } })
        } else {
            server.documents.insert(id.clone(), source);
            json!({ "_id": id, "status": 201 })
        };
        items.push(json!({ "index": item }));
    }
    ok(json!({ "items": items }))
}

/// A server on a loopback port, and a client with short pauses.
fn start(server: Server) -> (Shared, Cluster, tokio::runtime::Runtime) {
    let shared: Shared = Arc::new(Mutex::new(server));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let app = Router::new().fallback(answer).with_state(shared.clone());
    runtime.spawn(async move { axum::serve(listener, app).await });
    (shared, Cluster::connect(&ClusterConfig::new(url)).unwrap(), runtime)
}

fn documents(n: usize) -> Vec<Document> {
    (0..n)
        .map(|i| Document {
            id: format!("d{i:02}"),
            title: format!("t{i}"),
            text: "x".repeat(20),
            ..Document::default()
        })
        .collect()
}

fn small() -> IngestOptions {
    let retry = Some(RetryPolicy {
        min_delay: Duration::from_millis(1),
        max_delay: Duration::from_millis(2),
        retries: 4,
        deadline: Duration::from_secs(5),
    });
    IngestOptions { max_documents: 4, in_flight: 2, retry, ..IngestOptions::default() }
}

fn send(cluster: &Cluster, documents: &[Document], options: &IngestOptions) -> Result<IngestReport> {
    ingest_texts(cluster, "i", documents, options, &NoProgress, &Cancel::default())
}

#[test]
fn who_may_not_change_settings_may_still_write() {
    let (server, cluster, _runtime) = start(Server { guards_settings: true, ..Server::default() });
    let report = send(&cluster, &documents(10), &small()).unwrap();
    assert_eq!((report.indexed, report.loaded_quietly), (10, false));
    // What was remembered before is taken back: nothing is to be set back later.
    let mark = json!({ "refresh_interval": null, "number_of_replicas": "1" });
    let mappings = &server.lock().unwrap().mappings;
    assert_eq!(*mappings, [json!({ "_meta": { "a": 1, "nsparse_loading": mark } }), json!({ "_meta": { "a": 1 } })]);
}

#[test]
fn batches_are_bounded_and_overlap() {
    let (server, cluster, _runtime) = start(Server::default());
    let report = send(&cluster, &documents(10), &small()).unwrap();
    assert_eq!((report.indexed, report.requests, report.retries, report.documents), (10, 3, 0, 10));
    let server = server.lock().unwrap();
    let mut sizes: Vec<usize> = server.requests.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 4, 4]);
    assert!(server.most_open <= 2, "{}", server.most_open);
    assert_eq!(server.documents["d03"], json!({ "title": "t3", "text": "x".repeat(20) }));

    let (server, cluster, _runtime) = start(Server::default());
    send(&cluster, &documents(10), &IngestOptions { max_bytes: 250, ..small() }).unwrap();
    assert!(server.lock().unwrap().requests.len() > 3);
}

#[test]
fn only_busy_documents_are_sent_again() {
    let busy = HashMap::from([("d01".to_owned(), 2), ("d02".to_owned(), 1)]);
    let (server, cluster, _runtime) = start(Server { busy, ..Server::default() });
    let report = send(&cluster, &documents(4), &small()).unwrap();
    assert_eq!((report.indexed, report.requests, report.retries), (4, 3, 2));
    assert_eq!(server.lock().unwrap().requests, [vec!["d00", "d01", "d02", "d03"], vec!["d01", "d02"], vec!["d01"]]);
}

#[test]
fn a_busy_server_is_asked_again_and_a_dead_one_given_up() {
    let (server, cluster, _runtime) = start(Server { whole: vec![500, 503, 429], ..Server::default() });
    let report = send(&cluster, &documents(3), &small()).unwrap();
    assert_eq!((report.indexed, report.retries), (3, 3));
    assert_eq!(server.lock().unwrap().requests.len(), 4);

    let (server, cluster, _runtime) = start(Server { whole: vec![503; 20], ..Server::default() });
    let error = send(&cluster, &documents(3), &small()).unwrap_err();
    assert_eq!((error.status(), error.fault()), (Some(503), nsparse_core::Fault::World));
    assert_eq!(server.lock().unwrap().requests.len(), 5);

    let busy = HashMap::from([("d01".to_owned(), 20)]);
    let (_server, cluster, _runtime) = start(Server { busy, ..Server::default() });
    let error = send(&cluster, &documents(3), &small()).unwrap_err().to_string();
    assert!(error.starts_with("The cluster stayed too busy for 1 documents"), "{error}");
    assert!(error.ends_with("queue full"), "{error}");
}

#[test]
fn rejected_documents_are_listed_and_the_rest_is_in() {
    let broken = BTreeSet::from(["d05".to_owned(), "d02".to_owned()]);
    let (server, cluster, _runtime) = start(Server { broken, ..Server::default() });
    let report = send(&cluster, &documents(9), &small()).unwrap();
    let reason = "failed to parse: weight must be positive".to_owned();
    let rejected = |id: &str| Rejected { id: id.to_owned(), reason: reason.clone() };
    assert_eq!(report.rejected, [rejected("d02"), rejected("d05")]);
    assert_eq!((report.indexed, server.lock().unwrap().documents.len()), (7, 7));
}

#[test]
fn too_large_a_request_is_halved() {
    let (server, cluster, _runtime) = start(Server { most: 2, ..Server::default() });
    let report = send(&cluster, &documents(8), &IngestOptions { max_documents: 8, ..small() }).unwrap();
    assert_eq!(report.indexed, 8);
    let mut sizes: Vec<usize> = server.lock().unwrap().requests.iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 2, 2, 4, 4, 8]);
}

#[test]
fn a_second_run_sends_nothing_and_a_changed_document_alone() {
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("j")), ..small() };
    let (server, cluster, _runtime) = start(Server::default());
    let mut corpus = documents(6);
    assert_eq!(send(&cluster, &corpus, &options).unwrap().indexed, 6);
    let second = send(&cluster, &corpus, &options).unwrap();
    assert_eq!((second.indexed, second.skipped, second.requests), (0, 6, 0));
    corpus[4].text.push('!');
    assert_eq!(send(&cluster, &corpus, &options).unwrap().indexed, 1);
    assert_eq!(server.lock().unwrap().requests.last().unwrap(), &["d04"]);
    let other = IngestOptions { job: "another model".into(), ..options };
    assert_eq!(send(&cluster, &corpus, &other).unwrap().indexed, 6);
}

#[test]
fn what_was_taken_before_a_failure_is_not_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("j")), in_flight: 1, ..small() };
    let busy = HashMap::from([("d09".to_owned(), 5)]);
    let (server, cluster, _runtime) = start(Server { busy, ..Server::default() });
    send(&cluster, &documents(12), &options).unwrap_err();
    let before: BTreeSet<String> = server.lock().unwrap().documents.keys().cloned().collect();
    assert!(before.contains("d07") && !before.contains("d09"));
    server.lock().unwrap().requests.clear();
    let report = send(&cluster, &documents(12), &options).unwrap();
    assert_eq!((report.documents, report.skipped), (12, 11));
    let again: BTreeSet<String> = server.lock().unwrap().requests.concat().into_iter().collect();
    // What the cluster took of the batch that failed is known as well.
    assert_eq!(again, ["d09"].map(str::to_owned).into());
}

#[test]
fn a_cancelled_job_stops_at_the_next_batch() {
    let (server, cluster, _runtime) = start(Server::default());
    let cancel = Cancel::default();
    cancel.cancel();
    let error = ingest_texts(&cluster, "i", &documents(9), &small(), &NoProgress, &cancel).unwrap_err();
    assert!(matches!(error, Error::Core(nsparse_core::Error::Cancelled)));
    assert!(server.lock().unwrap().requests.is_empty());
}

/// An encoder whose vectors name their text's length, over four tokens, one of them with a dot.
struct Lengths(Vec<String>);

impl DocumentEncoder for Lengths {
    fn encode(&self, texts: &[&str]) -> nsparse_core::Result<Vec<SparseVector>> {
        assert!(texts.windows(2).all(|w| w[0].len() >= w[1].len()), "not sorted by length");
        let vector = |t: &&str| SparseVector::from_pairs(vec![(0, t.len() as f32), (1, 0.1), (2, 1.0)]);
        Ok(texts.iter().map(vector).collect())
    }
    fn vocabulary(&self) -> &[String] {
        &self.0
    }
    fn max_tokens(&self) -> usize {
        512
    }
}

#[test]
fn vectors_are_named_checked_and_free_of_dots() {
    let (server, cluster, _runtime) = start(Server::default());
    let mut corpus = documents(5);
    corpus[2].text = "y".repeat(80);
    let encoder = Lengths(["size", "##s", "a.b"].map(str::to_owned).to_vec());
    let run = |options: &IngestOptions| {
        let template = DocumentTemplate::default();
        ingest_vectors(&cluster, "i", &corpus, &encoder, &template, options, &NoProgress, &Cancel::default()).unwrap()
    };
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("j")), ..small() };
    let report = run(&options);
    assert_eq!(report.indexed, 4);
    let reason = "the weight 83 of token `size` is not in (0, 64]".to_owned();
    assert_eq!(report.rejected, [Rejected { id: "d02".into(), reason }]);
    let stored = server.lock().unwrap().documents["d00"].clone();
    assert_eq!(stored, json!({ "title": "t0", "text": "x".repeat(20), "embedding": { "size": 23.0, "##s": 0.1 } }));
    let second = run(&options);
    assert_eq!((second.indexed, second.skipped, second.rejected.len()), (0, 4, 1));
}

//! Ingest against a real OpenSearch behind a proxy that cuts, refuses and delays: whatever happens on the way, the index
//! ends up as one that was filled undisturbed. And the settings of an index while it is loaded.

#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "what was sent again is shown with --nocapture")]

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::time::{Duration, Instant};

use nsparse_core::{Cancel, Fault as Blame, NoProgress};
use nsparse_integration_tests::faults::{Fault, Proxy};
use nsparse_integration_tests::node::{self, shared};
use nsparse_opensearch::ingest::documents::{Block, Documents, Next};
use nsparse_opensearch::ingest::ready::Members;
use nsparse_opensearch::ingest::{Action, Loading, Way, delete_documents, ingest_documents, restore_settings};
use nsparse_opensearch::ml::Fields;
use nsparse_opensearch::reencode::{IndexDocuments, NewIndex, make_like, stored_bytes};
use nsparse_opensearch::{Cluster, ClusterConfig, IngestOptions, IngestReport, Result, RetryPolicy, source};
use serde_json::{Value, json};

/// What becomes of a bulk request by its number.
type Decide = fn(usize) -> Fault;

/// Documents of a test: enough for some dozens of requests.
const DOCUMENTS: usize = 600;

fn line(i: usize) -> String {
    let weights: BTreeMap<String, f32> =
        (0..20).map(|t| (format!("token{}", (i * 7 + t * 13) % 97), 0.25 + ((i + t) % 31) as f32 / 8.0)).collect();
    json!({ "_id": format!("d{i:04}"), "title": format!("title {i}"), "n": i, "embedding": weights }).to_string()
}

fn members() -> Members {
    Members { id: "_id".to_owned(), checked: Some("embedding".to_owned()), replaced: None, bound: Vec::new() }
}

/// Documents in blocks of ten; before each block the test may do something.
struct Given<'a> {
    blocks: VecDeque<Block>,
    handed: usize,
    before: Box<dyn FnMut(usize) + 'a>,
}

impl<'a> Given<'a> {
    fn new(range: std::ops::Range<usize>, before: impl FnMut(usize) + 'a) -> Self {
        let mut blocks = VecDeque::new();
        for start in range.clone().step_by(10) {
            let mut block = Block::default();
            for i in start..(start + 10).min(range.end) {
                block.push(Path::new("given"), i + 1, line(i).as_bytes(), &members()).unwrap();
            }
            blocks.push_back(block);
        }
        Self { blocks, handed: 0, before: Box::new(before) }
    }
}

impl Documents for Given<'_> {
    fn next(&mut self, _patience: Duration) -> Result<Next> {
        (self.before)(self.handed);
        self.handed += 1;
        Ok(self.blocks.pop_front().map_or(Next::End, Next::Block))
    }
}

/// A stream: documents, then the first one again and again with pauses, until the test has seen what it waits for.
struct Stream<'a> {
    given: Given<'a>,
    has_seen: Box<dyn FnMut() -> bool + 'a>,
    is_pause: bool,
    until: Instant,
}

impl<'a> Stream<'a> {
    fn new(given: Given<'a>, has_seen: impl FnMut() -> bool + 'a) -> Self {
        Self { given, has_seen: Box::new(has_seen), is_pause: false, until: Instant::now() + Duration::from_mins(1) }
    }
}

impl Documents for Stream<'_> {
    fn next(&mut self, patience: Duration) -> Result<Next> {
        if !self.given.blocks.is_empty() {
            return self.given.next(patience);
        }
        assert!(Instant::now() < self.until, "it did not come in a minute");
        self.is_pause = !self.is_pause;
        if self.is_pause {
            return Ok(Next::Idle);
        }
        if (self.has_seen)() {
            return Ok(Next::End);
        }
        let mut block = Block::default();
        block.push(Path::new("given"), 1, line(0).as_bytes(), &members())?;
        Ok(Next::Block(block))
    }
}

/// Twenty documents a request, two on the way, short pauses.
fn options() -> IngestOptions {
    IngestOptions {
        max_documents: 20,
        in_flight: 2,
        retry: Some(RetryPolicy {
            min_delay: Duration::from_millis(1),
            max_delay: Duration::from_millis(20),
            retries: 30,
            deadline: Duration::from_mins(1),
        }),
        ..IngestOptions::default()
    }
}

fn make(name: &str, settings: &Value) {
    let properties = json!({
        "title": { "type": "text" }, "n": { "type": "integer" }, "embedding": { "type": "rank_features" }
    });
    let body = json!({ "settings": settings, "mappings": { "properties": properties } });
    shared().cluster.put(&format!("/{name}"), body).unwrap();
}

fn send(cluster: &Cluster, name: &str, documents: &mut dyn Documents, options: &IngestOptions) -> Result<IngestReport> {
    let way = Way::AsIs(Action::Index);
    ingest_documents(cluster, name, documents, &way, 0, options, &NoProgress, &Cancel::default())
}

fn everything(name: &str) -> BTreeMap<String, Value> {
    node::everything(&shared().cluster, name)
}

fn expected(count: usize) -> BTreeMap<String, Value> {
    (0..count)
        .map(|i| {
            let mut source: Value = serde_json::from_str(&line(i)).unwrap();
            let id = source.as_object_mut().unwrap().remove("_id").unwrap();
            (id.as_str().unwrap().to_owned(), source)
        })
        .collect()
}

/// Scores of a query over many features, which come from what the engine stored, not from `_source`.
fn scores(name: &str) -> BTreeMap<String, f64> {
    let should: Vec<Value> = (0..97u32)
        .map(|t| json!({ "rank_feature": { "field": format!("embedding.token{t}"), "boost": 1.0 + f64::from(t), "linear": {} } }))
        .collect();
    let body = json!({ "size": DOCUMENTS + 100, "_source": false, "query": { "bool": { "should": should } } });
    let answer = shared().cluster.post(&format!("/{name}/_search"), body).unwrap();
    let hits = answer["hits"]["hits"].as_array().unwrap().iter();
    hits.map(|h| (h["_id"].as_str().unwrap().to_owned(), h["_score"].as_f64().unwrap())).collect()
}

fn settings(name: &str) -> Value {
    let answer = shared().cluster.get(&format!("/{name}?flat_settings=true")).unwrap()[name].clone();
    json!({
        "refresh": answer["settings"]["index.refresh_interval"],
        "replicas": answer["settings"]["index.number_of_replicas"],
        "loading": answer["mappings"]["_meta"]["nsparse_loading"]
    })
}

#[test]
fn faults_on_the_way_leave_the_same_index() {
    make("undisturbed", &json!({}));
    let report = send(&shared().cluster, "undisturbed", &mut Given::new(0..DOCUMENTS, |_| {}), &options()).unwrap();
    assert_eq!((report.indexed, report.documents, report.retries), (600, 600, 0));
    assert_eq!(everything("undisturbed"), expected(DOCUMENTS));
    let undisturbed = scores("undisturbed");
    assert_eq!(undisturbed.len(), DOCUMENTS);

    let of: [(&str, Decide); 6] = [
        ("cut-in-answers", |n| if n % 3 == 1 { Fault::CutAnswer } else { Fault::None }),
        ("cut-before", |n| if n % 4 < 2 { Fault::CutBefore } else { Fault::None }),
        ("unavailable", |n| if n % 5 < 3 { Fault::Status(503) } else { Fault::None }),
        ("too-busy", |n| if (3..12).contains(&n) { Fault::Status(429) } else { Fault::None }),
        ("slow", |n| if n % 10 == 4 { Fault::Late } else { Fault::None }),
        ("everything", |n| [Fault::CutAnswer, Fault::None, Fault::Status(500), Fault::None, Fault::CutBefore][n % 5]),
    ];
    for (name, fault) in of {
        make(name, &json!({}));
        let proxy = Proxy::start(&shared().url, fault);
        // A slow node is one that takes longer than a request may.
        let config = ClusterConfig { timeout: Duration::from_secs(2), ..ClusterConfig::new(&proxy.url) };
        let cluster = Cluster::connect(&config).unwrap();
        let report = send(&cluster, name, &mut Given::new(0..DOCUMENTS, |_| {}), &options()).unwrap();
        println!("{name}: {} requests, {} answered, {} sent again", proxy.bulks(), report.requests, report.retries);
        assert!(report.retries > 0, "{name}: nothing happened");
        assert_eq!((report.documents, report.rejected.len()), (600, 0), "{name}");
        assert_eq!(everything(name), expected(DOCUMENTS), "{name}");
        assert_eq!(scores(name), undisturbed, "{name}");
    }
}

#[test]
fn a_full_disk_is_named_and_the_next_run_ends_the_work() {
    make("full", &json!({}));
    let folder = tempfile::tempdir().unwrap();
    let mut options = IngestOptions { journal: Some(folder.path().join("journal")), ..options() };
    options.retry = options.retry.map(|r| RetryPolicy { retries: 3, ..r });
    // What the cluster does by itself when a disk passes its flood stage.
    let block = |value: Value| {
        shared().cluster.put("/full/_settings", json!({ "index.blocks.read_only_allow_delete": value })).unwrap();
    };
    let mut documents = Given::new(0..DOCUMENTS, |handed| {
        if handed == 20 {
            block(json!(true));
        }
    });
    let error = send(&shared().cluster, "full", &mut documents, &options).unwrap_err();
    let (message, hint) = (error.to_string(), error.hint().unwrap());
    assert!(message.contains("takes no documents, because the disk of a node is nearly full"), "{message}");
    assert!(hint.contains("lifts the block"), "{hint}");
    assert_eq!(error.fault(), Blame::World);
    block(Value::Null);
    let report = send(&shared().cluster, "full", &mut Given::new(0..DOCUMENTS, |_| {}), &options).unwrap();
    assert!(report.skipped >= 100, "{report:?}");
    assert_eq!(report.skipped + report.indexed, DOCUMENTS as u64);
    assert_eq!(everything("full"), expected(DOCUMENTS));
    assert_eq!(settings("full"), json!({ "refresh": null, "replicas": "1", "loading": null }));
}

#[test]
fn a_write_block_stops_at_once() {
    make("blocked", &json!({ "index.blocks.write": true }));
    let error = send(&shared().cluster, "blocked", &mut Given::new(0..40, |_| {}), &options()).unwrap_err();
    assert_eq!(error.api().map(|e| e.kind.as_str()), Some("cluster_block_exception"), "{error}");
}

#[test]
fn an_index_that_is_deleted_meanwhile_is_missed() {
    make("deleted", &json!({}));
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("journal")), ..options() };
    let mut documents = Given::new(0..DOCUMENTS, |handed| {
        if handed == 20 {
            shared().cluster.delete("/deleted").unwrap();
        }
    });
    let error = send(&shared().cluster, "deleted", &mut documents, &options).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("The index `deleted` was deleted while documents went in"), "{message}");
    assert_eq!(error.fault(), Blame::World);
    // As the message says: what the last batches made goes, the index is made again, and all go in.
    shared().cluster.delete("/deleted").unwrap();
    make("deleted", &json!({}));
    let report = send(&shared().cluster, "deleted", &mut Given::new(0..DOCUMENTS, |_| {}), &options).unwrap();
    assert_eq!((report.indexed, report.skipped), (600, 0));
    assert_eq!(everything("deleted"), expected(DOCUMENTS));
}

#[test]
fn a_new_index_is_loaded_quietly_and_set_back() {
    let own = json!({ "index.refresh_interval": "7s", "index.number_of_replicas": 0 });
    make("quiet", &own);
    shared().cluster.put("/quiet/_mapping", json!({ "_meta": { "team": "search" } })).unwrap();
    let mut seen = Vec::new();
    let mut documents = Given::new(0..DOCUMENTS, |_| seen.push(settings("quiet")));
    let report = send(&shared().cluster, "quiet", &mut documents, &options()).unwrap();
    drop(documents);
    assert!(report.loaded_quietly);
    assert_eq!(seen[0], json!({ "refresh": "7s", "replicas": "0", "loading": null }), "nothing is changed for little");
    let remembered = json!({ "refresh_interval": "7s", "number_of_replicas": "0" });
    assert_eq!(*seen.last().unwrap(), json!({ "refresh": "-1", "replicas": "0", "loading": remembered }));
    assert_eq!(settings("quiet"), json!({ "refresh": "7s", "replicas": "0", "loading": null }));
    let meta = shared().cluster.get("/quiet/_mapping").unwrap()["quiet"]["mappings"]["_meta"].clone();
    assert_eq!(meta, json!({ "team": "search" }), "the rest of _meta stays");
    // It has documents now: somebody may be searching.
    let report = send(&shared().cluster, "quiet", &mut Given::new(DOCUMENTS..800, |_| {}), &options()).unwrap();
    assert!(!report.loaded_quietly);
}

#[test]
fn an_index_behind_an_alias_is_left_alone_and_what_a_crash_left_is_set_back() {
    make("serving-1", &json!({}));
    shared().cluster.put("/serving-1/_alias/serving", json!({})).unwrap();
    let untouched = settings("serving-1");
    for name in ["serving-1", "serving"] {
        let mut documents = Given::new(0..100, |_| assert_eq!(settings("serving-1"), untouched));
        let report = send(&shared().cluster, name, &mut documents, &options()).unwrap();
        assert!(!report.loaded_quietly, "{name}");
        drop(documents);
        delete_all("serving-1", 100);
    }

    // As a killed run leaves it.
    let crashed = |name: &str| {
        make(name, &json!({ "index.refresh_interval": "-1", "index.number_of_replicas": 0 }));
        let mark = json!({ "refresh_interval": null, "number_of_replicas": "2" });
        shared().cluster.put(&format!("/{name}/_mapping"), json!({ "_meta": { "nsparse_loading": mark } })).unwrap();
    };
    let set_back = json!({ "refresh": null, "replicas": "2", "loading": null });
    crashed("crashed");
    assert!(send(&shared().cluster, "crashed", &mut Given::new(0..100, |_| {}), &options()).unwrap().loaded_quietly);
    assert_eq!(settings("crashed"), set_back);
    crashed("crashed-kept");
    let keep = IngestOptions { loading: Loading::Keep, ..options() };
    send(&shared().cluster, "crashed-kept", &mut Given::new(0..0, |_| {}), &keep).unwrap();
    assert_eq!(settings("crashed-kept"), set_back);
    // Somebody made it serve before it was set back: at once, before anything is sent.
    crashed("crashed-served");
    shared().cluster.put("/crashed-served/_alias/served", json!({})).unwrap();
    let mut documents = Given::new(0..100, |_| assert_eq!(settings("crashed-served"), set_back));
    send(&shared().cluster, "crashed-served", &mut documents, &options()).unwrap();
    crashed("crashed-asked");
    assert!(restore_settings(&shared().cluster, "crashed-asked").unwrap());
    assert!(!restore_settings(&shared().cluster, "crashed-asked").unwrap());
    assert_eq!(settings("crashed-asked"), set_back);
}

#[test]
fn what_a_stream_gave_is_seen_while_it_waits() {
    make("stream", &json!({ "index.refresh_interval": "7s" }));
    let own = settings("stream");
    let mut was_quiet = false;
    let given = Given::new(0..DOCUMENTS, |_| was_quiet |= settings("stream")["refresh"] == "-1");
    let mut documents = Stream::new(given, || settings("stream") == own);
    let report = send(&shared().cluster, "stream", &mut documents, &options()).unwrap();
    drop(documents);
    assert!(was_quiet && report.loaded_quietly);
    assert_eq!(settings("stream"), own);
    assert_eq!(everything("stream"), expected(DOCUMENTS));
}

#[test]
fn an_index_that_vanishes_while_a_stream_waits_is_missed() {
    make("vanishes", &json!({}));
    let mut is_there = true;
    let mut documents = Stream::new(Given::new(0..100, |_| {}), || {
        if std::mem::take(&mut is_there) {
            shared().cluster.delete("/vanishes").unwrap();
        }
        false
    });
    let error = send(&shared().cluster, "vanishes", &mut documents, &options()).unwrap_err().to_string();
    assert!(error.contains("was deleted while documents went in"), "{error}");
}

#[test]
fn an_alias_that_comes_before_the_first_request_is_respected() {
    make("early", &json!({ "index.refresh_interval": "7s" }));
    let own = settings("early");
    let mut documents = Given::new(0..DOCUMENTS, |handed| {
        if handed == 0 {
            shared().cluster.put("/early/_alias/early-bird", json!({})).unwrap();
        }
        assert_eq!(settings("early"), own);
    });
    let report = send(&shared().cluster, "early", &mut documents, &options()).unwrap();
    assert!(!report.loaded_quietly);
}

fn delete_all(name: &str, count: usize) {
    let ids = (0..count).map(|i| Ok(format!("d{i:04}")));
    let report = delete_documents(&shared().cluster, name, ids, &options(), &NoProgress, &Cancel::default()).unwrap();
    assert_eq!((report.deleted, report.not_there, report.documents), (count as u64, 0, 0));
}

#[test]
fn deletions_are_known_to_the_journal() {
    make("gone", &json!({}));
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("journal")), job: "a job".to_owned(), ..options() };
    let all = || Given::new(0..50, |_| {});
    assert_eq!(send(&shared().cluster, "gone", &mut all(), &options).unwrap().indexed, 50);
    let ids = ["d0003", "d0004", "never"].map(|id| Ok(id.to_owned()));
    let of_another_job = IngestOptions { job: String::new(), ..options.clone() };
    let report =
        delete_documents(&shared().cluster, "gone", ids, &of_another_job, &NoProgress, &Cancel::default()).unwrap();
    assert_eq!((report.deleted, report.not_there, report.documents), (2, 1, 48));
    // The same documents again: what was deleted goes in, the rest is known.
    let report = send(&shared().cluster, "gone", &mut all(), &options).unwrap();
    assert_eq!((report.indexed, report.skipped, report.documents), (2, 48, 50));
    assert_eq!(everything("gone"), expected(50));
}

#[test]
fn updates_keep_the_vector_and_the_last_of_two_wins() {
    make("changed", &json!({}));
    send(&shared().cluster, "changed", &mut Given::new(0..30, |_| {}), &options()).unwrap();
    let mut block = Block::default();
    let members = Members { bound: vec!["title".to_owned()], ..members() };
    let lines = [
        r#"{"_id":"d0001","n":1000}"#,
        r#"{"_id":"d0001","n":1001,"price":2.5}"#,
        r#"{"_id":"d0002","title":"another"}"#,
        r#"{"_id":"nowhere","n":5}"#,
    ];
    for (i, line) in lines.iter().enumerate() {
        block.push(Path::new("changes"), i + 1, line.as_bytes(), &members).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let letters = folder.path().join("rejected.jsonl");
    let options = IngestOptions { dead_letters: Some(letters.clone()), max_documents: 1, ..options() };
    let run = |upsert: bool| {
        let mut documents = Given { blocks: VecDeque::from([block.clone()]), handed: 0, before: Box::new(|_| {}) };
        let way = Way::AsIs(Action::Update { upsert });
        let cancel = Cancel::default();
        ingest_documents(&shared().cluster, "changed", &mut documents, &way, 0, &options, &NoProgress, &cancel).unwrap()
    };
    let report = run(false);
    assert_eq!(report.indexed, 2);
    let rejected: Vec<(&str, &str)> = report.rejected.iter().map(|r| (r.id.as_str(), r.reason.as_str())).collect();
    assert_eq!(rejected[0].0, "d0002");
    assert!(rejected[0].1.contains("it changes `title` and not `embedding`"), "{rejected:?}");
    assert_eq!(rejected[1].0, "nowhere");
    assert!(rejected[1].1.contains("document missing"), "{rejected:?}");
    let written: Vec<Value> =
        std::fs::read_to_string(&letters).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mut ids: Vec<&str> = written.iter().map(|l| l["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["d0002", "nowhere"]);
    let mut one = expected(2)["d0001"].clone();
    one["n"] = json!(1001);
    one["price"] = json!(2.5);
    assert_eq!(everything("changed")["d0001"], one);
    assert_eq!(run(true).indexed, 3);
    assert_eq!(everything("changed")["nowhere"], json!({ "n": 5 }));
}

#[test]
fn a_vector_left_out_of_the_source_is_searched_and_not_updated() {
    let fields = Fields::default();
    let mut body = json!({ "mappings": { "properties": { "embedding": { "type": "rank_features" } } } });
    source::exclude_vector(&mut body, &fields);
    shared().cluster.put("/lean", body).unwrap();
    make("rich", &json!({}));
    for name in ["lean", "rich"] {
        send(&shared().cluster, name, &mut Given::new(0..DOCUMENTS, |_| {}), &options()).unwrap();
    }
    assert_eq!(scores("lean"), scores("rich"));
    assert!(everything("lean").values().all(|d| d.get("embedding").is_none() && d.get("n").is_some()));
    let error = source::check_updates(&shared().cluster, "lean", &fields).unwrap_err().to_string();
    assert!(error.contains("leaves `embedding` out of `_source`"), "{error}");
    source::check_updates(&shared().cluster, "rich", &fields).unwrap();
}

#[test]
fn an_index_of_several_shards_is_read_whole() {
    make("many", &json!({ "index.number_of_shards": 3, "index.number_of_replicas": 0 }));
    send(&shared().cluster, "many", &mut Given::new(0..DOCUMENTS, |_| {}), &options()).unwrap();
    // `everything` reads a slice a shard, in pages that do not divide evenly.
    assert_eq!(everything("many"), expected(DOCUMENTS));
    let mut without = IndexDocuments::open(&shared().cluster, "many", 7, &["embedding".to_owned()]).unwrap();
    let mut count = 0;
    while let Next::Block(block) = without.next(Duration::from_mins(1)).unwrap() {
        count += block.len();
        assert!(block.entries().iter().all(|e| !block.json(e).windows(9).any(|w| w == b"embedding")));
    }
    assert_eq!(count, DOCUMENTS);
    let bytes = stored_bytes(&shared().cluster, "many").unwrap();
    assert!((10_000..10_000_000).contains(&bytes), "{bytes}");
    assert_eq!(stored_bytes(&shared().cluster, "no-such-index"), None);
}

#[test]
fn what_cannot_be_encoded_anew_whole_is_refused() {
    let cluster = &shared().cluster;
    let refused = |name: &str| {
        let error = IndexDocuments::open(cluster, name, 7, &[]).map(drop).unwrap_err();
        assert_eq!(error.fault(), Blame::Usage, "{error}");
        error.to_string()
    };
    // Several indexes behind one name; one is no different from its own name.
    for name in ["part-a", "part-b"] {
        make(name, &json!({ "index.number_of_shards": 2, "index.number_of_replicas": 0 }));
        cluster.put(&format!("/{name}/_alias/parts"), json!({})).unwrap();
        cluster.put(&format!("/{name}/_alias/only-{name}"), json!({})).unwrap();
    }
    send(cluster, "part-a", &mut Given::new(0..100, |_| {}), &options()).unwrap();
    assert_eq!(refused("parts"), "`parts` stands for several indexes: part-a, part-b");
    let error = make_like(cluster, "parts", "made-of-parts", &Fields::default(), &NewIndex::default()).unwrap_err();
    assert!(error.to_string().contains("part-a, part-b"), "{error}");
    assert!(cluster.find("/made-of-parts").unwrap().is_none());
    assert_eq!(everything("only-part-a"), expected(100));
    assert!(refused("no-such-index").starts_with("There is no index `no-such-index`"));
    // A document that lies on another shard than its id says.
    cluster.put("/part-a/_doc/d0042?routing=x", json!({ "n": 1 })).unwrap();
    let message = refused("part-a");
    assert!(message.starts_with("The document `d0042` of `part-a` has a routing, `x`"), "{message}");
    let body = json!({ "mappings": { "_routing": { "required": true } } });
    cluster.put("/routed", body).unwrap();
    assert!(refused("routed").contains("requires a routing of each document"));
}

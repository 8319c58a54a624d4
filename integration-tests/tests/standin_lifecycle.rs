//! A package's whole life on the stand-in: register, chunks, deploy, predict, undeploy, delete; a second deploy;
//! a failure at every single request; clusters without plugins.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nsparse_core::{Cancel, DocumentEncoder, Fault, NoProgress};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::standin::{Contents, EncodeText, Options, StandIn, Strike, encode_with};
use nsparse_opensearch::ml::{
    DeployOptions, Deployed, Deployment, Made, PackageFiles, Poll, Side, UndeployOptions, UndeployReport, deploy,
    lifecycle, our_models, register, undeploy, undeploy_file,
};
use nsparse_opensearch::{
    Auth, AwsCredentials, AwsService, AwsSigning, Body, Cluster, ClusterConfig, Error, Method, RetryPolicy,
};
use serde_json::json;
use tempfile::TempDir;

/// A small model and its package.
struct Fixture {
    folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self { folder: tempfile::tempdir().unwrap() };
        write(&fixture.model(), &Shape::small(), 5).unwrap();
        nsparse_exporter::export(&fixture.model(), &fixture.package(), "tiny", "1.0.0").unwrap();
        fixture
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    fn package(&self) -> PathBuf {
        self.folder.path().join("package")
    }

    fn deployment(&self) -> PathBuf {
        self.package().join("deployment.json")
    }

    fn encoder(&self) -> SparseEncoder {
        SparseEncoder::load(&self.model(), Device::Cpu).unwrap()
    }

    /// For the stand-in's document models.
    fn encode(&self) -> EncodeText {
        let model = self.model();
        encode_with(move || SparseEncoder::load(&model, Device::Cpu).unwrap())
    }

    fn deploy(&self, cluster: &Cluster, options: &DeployOptions) -> Result<Deployment, Error> {
        deploy(cluster, &self.package(), options, &Cancel::default(), &NoProgress)
    }
}

/// Small chunks, so that the small zips go in several.
fn options() -> DeployOptions {
    DeployOptions { poll: fast(), chunk_bytes: 20_000, ..DeployOptions::new("tiny") }
}

fn fast() -> Poll {
    Poll { interval: Duration::from_millis(1), deadline: Duration::from_secs(20) }
}

fn cluster(standin: &StandIn) -> Cluster {
    let retry = RetryPolicy { min_delay: Duration::from_millis(1), retries: 1, ..RetryPolicy::default() };
    Cluster::connect_with(&ClusterConfig::new(standin.url()), retry).unwrap()
}

fn nothing() -> Contents {
    Contents::default()
}

fn all(poll: Poll) -> UndeployOptions {
    UndeployOptions { poll, ..UndeployOptions::default() }
}

/// Largest difference between two vectors; a missing token counts as 0.
fn difference(a: &BTreeMap<String, f32>, b: &BTreeMap<String, f32>) -> f32 {
    let zero = &0.0;
    a.keys().chain(b.keys()).map(|t| (a.get(t).unwrap_or(zero) - b.get(t).unwrap_or(zero)).abs()).fold(0.0, f32::max)
}

#[test]
fn a_model_is_registered_deployed_asked_undeployed_and_deleted() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let package = PackageFiles::open(&fixture.package()).unwrap();
    let cancel = Cancel::default();
    let register = |file| register::register(&cluster, file, None, 20_000, &fast(), &cancel, &NoProgress).unwrap();

    let query = register(&package.query);
    let document = register(&package.document);
    let chunks = standin.requests().iter().filter(|r| r.contains("/upload_chunk/")).count() as u64;
    assert_eq!(chunks, package.query.bytes.div_ceil(20_000) + package.document.bytes.div_ceil(20_000));
    assert!(chunks > 2, "the zips went in one chunk each");
    assert_eq!(lifecycle::info(&cluster, &query).unwrap().state, "REGISTERED");

    let message = lifecycle::predict(&cluster, &query, &["search"]).unwrap_err().to_string();
    assert!(message.contains("registered, but not deployed"), "{message}");
    for model in [&query, &document] {
        let deployed = lifecycle::deploy(&cluster, model, &fast(), &cancel).unwrap();
        assert_eq!(deployed, Deployed { nodes: 1, planned: 1, partial: None });
    }

    let texts = ["the search engine, the engine", "", "[CLS] 한 😀 model", "w1 w2 w3."];
    let vocabulary = package.query_encoder().tokenizer().vocabulary();
    let answers = lifecycle::predict(&cluster, &query, &texts).unwrap();
    for (text, mut answer) in texts.iter().zip(answers) {
        // The cluster keeps tokens with a dot in a query; no document has weight there.
        answer.retain(|token, _| !token.contains('.'));
        let ours = package.query_encoder().encode(text).unwrap();
        let ours: BTreeMap<String, f32> = ours.iter().map(|(id, w)| (vocabulary[id as usize].clone(), w)).collect();
        assert_eq!(answer, ours, "{text}");
    }
    let encoder = fixture.encoder();
    let answers = lifecycle::predict(&cluster, &document, &texts).unwrap();
    for (vector, answer) in encoder.encode(&texts).unwrap().iter().zip(&answers) {
        let ours = vector.iter().map(|(id, w)| (vocabulary[id as usize].clone(), w)).collect();
        assert!(difference(answer, &ours) < 1e-5);
    }
    assert!(answers.iter().any(|a| !a.is_empty()), "the random model has no weight at all");

    let message = lifecycle::delete(&cluster, &query).unwrap_err().to_string();
    assert!(message.contains("still deployed"), "{message}");
    for model in [&query, &document] {
        assert!(lifecycle::remove(&cluster, model, &fast()).unwrap());
        assert!(!lifecycle::remove(&cluster, model, &fast()).unwrap(), "a second time it is gone");
    }
    assert!(standin.contents().models.is_empty());
}

#[test]
fn a_deployment_comes_and_goes_without_a_trace() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let deployment = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(deployment, Deployment::load(&fixture.deployment()).unwrap());
    assert_eq!(deployment.side, Side::Cluster);
    assert_eq!(deployment.vocabulary_size, 300);
    assert_eq!(deployment.package.len(), 2);
    assert!(deployment.notes.is_empty(), "{:?}", deployment.notes);
    assert_eq!(
        standin.contents(),
        Contents {
            groups: vec!["nsparse-tiny".to_owned()],
            models: vec!["tiny-query DEPLOYED".to_owned(), "tiny-document DEPLOYED".to_owned()],
            pipelines: vec!["tiny-ingest".to_owned()],
            search_pipelines: vec!["tiny-search".to_owned()],
            indexes: vec!["tiny".to_owned()],
            aliases: Vec::new(),
        }
    );

    // A document through the pipeline gets the vector that client-side ingest would send.
    let document = json!({ "title": "  Search", "text": "the \"engine\" & index " });
    cluster.request(Method::Put, "/tiny/_doc/1", Body::Json(document)).unwrap();
    let stored = standin.document("tiny", "1").unwrap();
    let keys: Vec<&String> = stored.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["embedding", "text", "title"]);
    let template = &deployment.template;
    let text = template.apply(&nsparse_core::beir::Document {
        id: "1".to_owned(),
        title: "  Search".to_owned(),
        text: "the \"engine\" & index ".to_owned(),
        ..nsparse_core::beir::Document::default()
    });
    let encoder = fixture.encoder();
    let vector = encoder.encode(&[&text]).unwrap().remove(0);
    let ours: BTreeMap<String, f32> =
        vector.iter().map(|(id, w)| (encoder.vocabulary()[id as usize].clone(), w)).collect();
    let theirs: BTreeMap<String, f32> = serde_json::from_value(stored["embedding"].clone()).unwrap();
    assert!(!theirs.is_empty() && difference(&ours, &theirs) < 1e-6);

    // With documents in it, nothing is touched until one says what becomes of them.
    let error = undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap_err();
    assert_eq!(error.fault(), Fault::Usage);
    assert!(error.to_string().contains("has 1 documents"), "{error}");
    assert_eq!(standin.contents().models.len(), 2);

    let delete = UndeployOptions { delete_index: true, poll: fast(), ..UndeployOptions::default() };
    let report = undeploy_file(&cluster, &fixture.deployment(), &delete).unwrap();
    assert_eq!(report.removed.len(), 6, "{report:?}");
    assert!(report.failed.is_empty() && report.gone.is_empty() && report.kept.is_empty(), "{report:?}");
    assert_eq!(standin.contents(), nothing());
    assert!(!fixture.deployment().exists());

    // Again, from a copy of the file: everything is gone, and that is no error.
    let report = undeploy(&cluster, &deployment, &delete).unwrap();
    assert_eq!((report.removed.len(), report.gone.len()), (0, 6), "{report:?}");
}

#[test]
fn a_kept_index_still_takes_documents() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    fixture.deploy(&cluster, &options()).unwrap();
    cluster.request(Method::Put, "/tiny/_doc/1", Body::Json(json!({ "text": "search" }))).unwrap();
    let keep = UndeployOptions { keep_index: true, poll: fast(), ..UndeployOptions::default() };
    let report = undeploy_file(&cluster, &fixture.deployment(), &keep).unwrap();
    assert_eq!((report.removed.len(), report.kept.len(), report.left.len()), (5, 1, 1), "{report:?}");
    assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..nothing() });
    cluster.request(Method::Put, "/tiny/_doc/2", Body::Json(json!({ "text": "engine" }))).unwrap();
    // The file still knows what is left.
    let left = Deployment::load(&fixture.deployment()).unwrap().made;
    assert!(matches!(left.as_slice(), [Made::Index { name, .. }] if name == "tiny"), "{left:?}");
}

#[test]
fn a_second_deploy_uses_what_is_there() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let first = fixture.deploy(&cluster, &options()).unwrap();
    let (before, asked) = (standin.contents(), standin.requests().len());
    let second = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(standin.contents(), before);
    let changing: Vec<String> = standin.requests()[asked..]
        .iter()
        .filter(|r| !r.starts_with("GET ") && !r.ends_with("/_search"))
        .cloned()
        .collect();
    assert!(changing.is_empty(), "{changing:?}");
    assert_eq!(second.made, first.made, "an undeploy has to take back what the first one made");
    assert_eq!(second.notes.len(), 6, "{:?}", second.notes);
    assert!(second.notes.iter().all(|n| n.contains("was there already")), "{:?}", second.notes);

    // The marks in the cluster tell it even where the file is lost.
    std::fs::remove_file(fixture.deployment()).unwrap();
    let third = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(third.made, first.made);
    let report = undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!((report.removed.len(), standin.contents()), (6, nothing()), "{report:?}");
}

#[test]
fn what_others_made_is_used_but_not_taken_back() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    let package = PackageFiles::open(&fixture.package()).unwrap();
    let theirs =
        register::register(&cluster, &package.query, None, 20_000, &fast(), &Cancel::default(), &NoProgress).unwrap();
    let deployment = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(deployment.query_model.as_ref().unwrap().id, theirs.id);
    undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    // The model stays, and stays as it was: not running.
    assert_eq!(
        standin.contents(),
        Contents {
            groups: vec!["tiny-query".to_owned()],
            models: vec!["tiny-query UNDEPLOYED".to_owned()],
            ..nothing()
        }
    );

    // Names that others use are refused before anything of theirs changes.
    let pipeline = json!({ "description": "theirs", "processors": [{ "trim": { "field": "text" } }] });
    cluster.put("/_ingest/pipeline/tiny-ingest", pipeline).unwrap();
    let before = standin.contents();
    let error = fixture.deploy(&cluster, &options()).unwrap_err();
    assert!(error.to_string().contains("another ingest pipeline `tiny-ingest`"), "{error}");
    assert_eq!(standin.contents(), before);
    cluster.put("/theirs", json!({ "mappings": { "properties": { "embedding": { "type": "float" } } } })).unwrap();
    let changed = DeployOptions { index: "theirs".to_owned(), side: Side::Client, ..options() };
    let error = fixture.deploy(&cluster, &changed).unwrap_err();
    assert!(error.to_string().contains("no rank_features field"), "{error}");
}

#[test]
fn models_that_another_deployment_uses_stay() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let file = |name: &str| fixture.folder.path().join(format!("{name}.json"));
    let of = |name: &str| DeployOptions {
        poll: fast(),
        chunk_bytes: 20_000,
        file: Some(file(name)),
        ..DeployOptions::new(name)
    };
    let first = fixture.deploy(&cluster, &of("a")).unwrap();
    let second = fixture.deploy(&cluster, &of("b")).unwrap();
    assert_eq!(second.model_ids(), first.model_ids());
    let document = json!({ "title": "the search engine", "text": "w1 w2 w3 index model" });
    cluster.request(Method::Put, "/b/_doc/1", Body::Json(document)).unwrap();

    let report = undeploy_file(&cluster, &file("a"), &all(fast())).unwrap();
    assert!(report.failed.is_empty() && report.gone.is_empty(), "{report:?}");
    // Both models, and their group.
    assert_eq!((report.removed.len(), report.kept.len()), (3, 3), "{report:?}");
    assert!(report.kept[0].contains("model `tiny-document`"), "{report:?}");
    assert!(report.kept[0].contains("ingest pipeline `b-ingest` uses it"), "{report:?}");
    assert!(report.kept[1].contains("search pipeline `b-search` uses it"), "{report:?}");
    assert!(report.kept[2].contains("2 models that stay are in group `nsparse-a`"), "{report:?}");
    assert!(!file("a").exists());
    let query = json!({ "query": { "neural_sparse": { "embedding": { "query_text": "the search engine w1 w2 w3 index model" } } } });
    let answer = cluster.post("/b/_search", query).unwrap();
    assert_eq!(answer.pointer("/hits/total/value"), Some(&json!(1)), "{answer}");
    cluster.request(Method::Put, "/b/_doc/2", Body::Json(json!({ "text": "engine" }))).unwrap();

    // The last user gone, they are found as unused.
    let delete = UndeployOptions { delete_index: true, ..all(fast()) };
    undeploy_file(&cluster, &file("b"), &delete).unwrap();
    let models = our_models(&cluster, &[], true, 0).unwrap();
    assert_eq!(models.len(), 2, "{models:?}");
    assert!(models.iter().all(|m| m.used_by.is_empty()), "{models:?}");
}

#[test]
fn who_may_not_see_what_uses_a_model_leaves_it() {
    let fixture = Fixture::new();
    let undeployed = |forbidden: Option<usize>| {
        let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
        let cluster = cluster(&standin);
        let options = DeployOptions { poll: fast(), chunk_bytes: 20_000, ..DeployOptions::new("a") };
        let deployment = fixture.deploy(&cluster, &options).unwrap();
        let before = standin.requests().len();
        if let Some(n) = forbidden {
            standin.fail(n, Strike::Forbidden);
        }
        (undeploy(&cluster, &deployment, &all(fast())).unwrap(), standin.requests().split_off(before))
    };
    let (report, requests) = undeployed(None);
    assert_eq!((report.removed.len(), report.kept.len()), (6, 0), "{report:?}");
    let asked = requests.iter().filter(|r| r.contains("_all/_mapping")).count();
    assert_eq!(asked, 1, "looked up once");
    let (report, _) = undeployed(requests.iter().position(|r| r.contains("_all/_mapping")));
    assert_eq!((report.removed.len(), report.kept.len(), report.failed.len()), (3, 3, 0), "{report:?}");
    for kept in &report.kept[..2] {
        assert!(kept.contains("may not see whether another pipeline or index uses it"), "{kept}");
    }
}

#[test]
fn a_model_that_was_started_for_two_is_not_stopped_for_one() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let file = fixture.folder.path().join("b.json");
    let first = fixture.deploy(&cluster, &options()).unwrap();
    let model = first.query_model.unwrap().model();
    lifecycle::undeploy(&cluster, &model).unwrap();
    let second = DeployOptions { poll: fast(), file: Some(file.clone()), ..DeployOptions::new("b") };
    let second = fixture.deploy(&cluster, &second).unwrap();
    assert!(second.made.iter().any(|m| matches!(m, Made::Running { .. })), "{:?}", second.made);
    let report = undeploy_file(&cluster, &file, &all(fast())).unwrap();
    assert!(report.kept.iter().any(|k| k.contains("search pipeline `tiny-search` uses it")), "{report:?}");
    assert_eq!(lifecycle::info(&cluster, &model).unwrap().state, "DEPLOYED");
}

#[test]
fn a_failure_at_any_request_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let good = StandIn::start(Options::default());
    fixture.deploy(&cluster(&good), &options()).unwrap();
    let requests = good.requests();
    std::fs::remove_file(fixture.deployment()).unwrap();
    assert!(requests.len() > 20, "{requests:?}");
    for strike in [Strike::Before, Strike::After] {
        for (n, request) in requests.iter().enumerate() {
            let standin = StandIn::start(Options::default());
            let cluster = cluster(&standin);
            standin.fail(n, strike);
            let error = fixture.deploy(&cluster, &options()).unwrap_err();
            assert!(error.to_string().contains("injected failure"), "{n} {request}: {error}");
            assert!(!error.to_string().contains("were not taken back"), "{n} {request}: {error}");
            assert_eq!(standin.contents(), nothing(), "{strike:?} {n} {request}");
            assert!(!fixture.deployment().exists());
        }
    }
}

#[test]
fn what_cannot_be_written_or_was_stopped_leaves_nothing_behind() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    let blocked = fixture.folder.path().join("a-file");
    std::fs::write(&blocked, "x").unwrap();
    let changed = DeployOptions { file: Some(blocked.join("deployment.json")), ..options() };
    fixture.deploy(&cluster, &changed).unwrap_err();
    assert_eq!(standin.contents(), nothing());

    let cancel = Cancel::default();
    cancel.cancel();
    let error = deploy(&cluster, &fixture.package(), &options(), &cancel, &NoProgress).unwrap_err();
    assert!(matches!(error, Error::Core(nsparse_core::Error::Cancelled)), "{error}");
    assert_eq!(standin.contents(), nothing());
}

#[test]
fn what_cannot_be_taken_back_is_named() {
    let fixture = Fixture::new();
    let good = StandIn::start(Options::default());
    fixture.deploy(&cluster(&good), &options()).unwrap();
    std::fs::remove_file(fixture.deployment()).unwrap();
    // The stand-in fails one request, so the deploy has to fail by itself: at a file that cannot be written.
    let blocked = fixture.folder.path().join("a-folder");
    std::fs::create_dir(&blocked).unwrap();
    let changed = DeployOptions { file: Some(blocked), ..options() };
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    let last = good.requests().len();
    standin.fail(last, Strike::Before);
    let error = fixture.deploy(&cluster, &changed).unwrap_err();
    assert!(error.to_string().contains("were not taken back: index `tiny`"), "{error}");
    assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..nothing() });
}

#[test]
fn a_cluster_without_plugins_gets_the_client_side_form() {
    let fixture = Fixture::new();
    for (ml_commons, neural_search) in [(false, false), (true, false), (false, true)] {
        let standin = StandIn::start(Options { ml_commons, neural_search, ..Options::default() });
        let cluster = cluster(&standin);
        let deployment = fixture.deploy(&cluster, &options()).unwrap();
        assert_eq!(deployment.side, Side::Client);
        assert!(deployment.notes[0].contains("encoded by nsparse"), "{:?}", deployment.notes);
        assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..nothing() });
        let asked =
            DeployOptions { side: Side::Cluster, file: Some(fixture.folder.path().join("other.json")), ..options() };
        let error = fixture.deploy(&cluster, &asked).unwrap_err();
        assert!(error.to_string().contains("it lacks"), "{error}");
        assert!(error.hint().unwrap().contains("--side client"));
        undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
        assert_eq!(standin.contents(), nothing());
    }
}

#[test]
fn the_file_names_all_nodes() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    // A node that is away.
    let other = StandIn::start(Options::default()).url().to_owned();
    let both = format!("{},{other}", standin.url());
    let retry = RetryPolicy { min_delay: Duration::from_millis(1), ..RetryPolicy::default() };
    let cluster = Cluster::connect_with(&ClusterConfig::new(both.as_str()), retry).unwrap();
    let deployment = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(deployment.cluster_url, both);
    let again = Cluster::connect(&ClusterConfig::new(deployment.cluster_url)).unwrap();
    assert_eq!(again.urls().collect::<Vec<_>>(), cluster.urls().collect::<Vec<_>>());
}

#[test]
fn serverless_has_no_first_page_and_is_deployed_to_all_the_same() {
    let fixture = Fixture::new();
    let options_of = Options { serverless: true, ml_commons: false, neural_search: false, ..Options::default() };
    let standin = StandIn::start(options_of);
    let keys =
        AwsCredentials { access_key_id: "AK".to_owned(), secret_access_key: "secret".into(), session_token: None };
    let signing = AwsSigning { service: AwsService::Aoss, region: "eu-west-1".to_owned(), credentials: keys };
    let at = |url: &str| {
        Cluster::connect(&ClusterConfig { auth: Auth::Aws(signing.clone()), ..ClusterConfig::new(url) }).unwrap()
    };
    let cluster = at(standin.url());
    let deployment = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!((deployment.side, deployment.cluster_uuid.as_str()), (Side::Client, "serverless:127.0.0.1"));
    assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..nothing() });
    fixture.deploy(&cluster, &options()).unwrap();
    // The same collection under another address is not known to be the same.
    let elsewhere = at(&standin.url().replace("127.0.0.1", "localhost"));
    let error = undeploy_file(&elsewhere, &fixture.deployment(), &all(fast())).unwrap_err();
    assert!(error.to_string().contains("is another cluster"), "{error}");
    undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!(standin.contents(), nothing());
    assert!(standin.requests().iter().all(|r| r != "GET /"), "{:?}", standin.requests());
}

#[test]
fn a_node_without_libtorch_says_so_and_runs_the_query_side() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { offline_natives: true, ..Options::default() });
    let cluster = cluster(&standin);
    let error = fixture.deploy(&cluster, &options()).unwrap_err();
    assert!(error.to_string().contains("has no libtorch"), "{error}");
    assert_eq!(error.fault(), Fault::World);
    assert!(error.hint().unwrap().contains("--side query"), "{:?}", error.hint());
    assert_eq!(standin.contents(), nothing());
    let changed = DeployOptions { side: Side::Query, ..options() };
    let deployment = fixture.deploy(&cluster, &changed).unwrap();
    assert!(deployment.document_model.is_none() && deployment.pipeline.is_none());
    let model = deployment.query_model.unwrap().model();
    assert_eq!(lifecycle::predict(&cluster, &model, &["search search"]).unwrap()[0].len(), 1);
    undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!(standin.contents(), nothing());
}

#[test]
fn an_undeploy_that_fails_in_part_goes_on_and_can_be_repeated() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    fixture.deploy(&cluster, &options()).unwrap();
    // Root, count, index looked up, index deleted: that is the fourth.
    standin.fail(3, Strike::Before);
    let report: UndeployReport = undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!((report.removed.len(), report.failed.len()), (5, 1), "{report:?}");
    assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..nothing() });
    let report = undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!((report.removed.len(), standin.contents()), (1, nothing()), "{report:?}");
}

#[test]
fn another_cluster_or_another_index_of_that_name_is_left_alone() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    let mut deployment = fixture.deploy(&cluster, &options()).unwrap();
    cluster.delete("/tiny").unwrap();
    cluster.put("/tiny", json!({ "settings": {}, "mappings": {} })).unwrap();
    let report = undeploy(&cluster, &deployment, &all(fast())).unwrap();
    assert_eq!(report.kept.len(), 1, "{report:?}");
    assert_eq!(standin.contents().indexes, ["tiny"]);
    deployment.cluster_uuid = "another".to_owned();
    let error = undeploy(&cluster, &deployment, &all(fast())).unwrap_err();
    assert!(error.to_string().contains("is another cluster"), "{error}");
}

#[test]
fn a_changed_package_is_refused_before_anything_is_sent() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options::default());
    let cluster = cluster(&standin);
    let zip = fixture.package().join("tiny-query.zip");
    let mut bytes = std::fs::read(&zip).unwrap();
    bytes.push(0);
    std::fs::write(&zip, &bytes).unwrap();
    let error = fixture.deploy(&cluster, &options()).unwrap_err();
    assert!(error.to_string().contains("the zip was changed"), "{error}");
    assert_eq!(error.fault(), Fault::Usage);
    assert!(standin.requests().is_empty());
    let error = deploy(&cluster, Path::new("no-such-folder"), &options(), &Cancel::default(), &NoProgress);
    assert!(error.unwrap_err().to_string().contains("is no package"));
}

#[test]
fn before_a_node_only_what_the_node_lacks_is_answered_here() {
    let fixture = Fixture::new();
    let node = StandIn::start(Options { ml_commons: false, neural_search: false, ..Options::default() });
    let upstream = Some(node.url().to_owned());
    let standin = StandIn::start(Options { encode: fixture.encode(), upstream, ..Options::default() });
    let cluster = cluster(&standin);
    let deployment = fixture.deploy(&cluster, &options()).unwrap();
    assert_eq!(deployment.side, Side::Cluster);
    // The node gets the search pipeline without the processor that it does not know.
    let (indexes, search_pipelines) = (vec!["tiny".to_owned()], vec!["tiny-search".to_owned()]);
    assert_eq!(node.contents(), Contents { indexes, search_pipelines, ..nothing() });
    assert_eq!(standin.contents().models.len(), 2);
    assert_eq!(standin.contents().pipelines, ["tiny-ingest"]);
    assert!(node.requests().iter().all(|r| !r.contains("_plugins")), "{:?}", node.requests());
    undeploy_file(&cluster, &fixture.deployment(), &all(fast())).unwrap();
    assert_eq!((node.contents(), standin.contents()), (nothing(), nothing()));
}

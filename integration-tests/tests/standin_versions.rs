//! Versions behind an alias on the stand-in: plan and apply, deploys that are run twice, fail, are cut or are killed,
//! switch and rollback with queries going on, prune. Everything but ML Commons runs on a real node in `node_versions.rs`.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod versions_fixture;

use std::path::Path;
use std::sync::Arc;

use nsparse_core::Fault;
use nsparse_integration_tests::standin::{Contents, Options, Outage, StandIn, Strike};
use nsparse_opensearch::ml::{
    Action, DeployOptions, Deployment, Made, Plan, Side, SwitchOptions, UndeployOptions, lifecycle, our_models,
    plan_of, prune, rollback_file, switch_file, undeploy_file,
};
use nsparse_opensearch::{Cluster, Error};
use serde_json::json;
use versions_fixture::{Fixture, cluster, fast, never};

const DOCUMENTS: usize = 5;

fn options(fixture: &Fixture) -> DeployOptions {
    DeployOptions { poll: fast(), chunk_bytes: 20_000, file: Some(fixture.file()), ..DeployOptions::behind("tiny") }
}

fn switching() -> SwitchOptions {
    SwitchOptions { poll: fast(), ..SwitchOptions::default() }
}

fn standin(fixture: &Fixture) -> StandIn {
    StandIn::start(Options { encode: fixture.encode(), ..Options::default() })
}

/// Documents through the cluster's own pipeline.
fn fill(cluster: &Cluster, index: &str, count: usize) {
    for i in 0..count {
        let document = json!({ "title": format!("the search engine {i}"), "text": "w1 w2 w3 index model" });
        cluster.put(&format!("/{index}/_doc/{i}"), document).unwrap();
    }
}

/// Requests since `from` that may change something.
fn changing(standin: &StandIn, from: usize) -> Vec<String> {
    let reads = |r: &String| {
        r.starts_with("GET ") || r.ends_with("/_search") || r.ends_with("/_refresh") || r.ends_with("/_predict")
    };
    standin.requests()[from..].iter().filter(|r| !reads(r)).cloned().collect()
}

fn actions(plan: &Plan) -> Vec<(Action, &'static str, &str)> {
    plan.items.iter().map(|i| (i.action, i.kind, i.name.as_str())).collect()
}

/// The first version deployed and filled, a second one deployed.
fn two_versions(fixture: &Fixture, cluster: &Cluster) -> Deployment {
    fixture.deploy("package", cluster, &options(fixture)).unwrap();
    fill(cluster, "tiny-v1", DOCUMENTS);
    fixture.deploy("package2", cluster, &options(fixture)).unwrap()
}

#[test]
fn a_plan_says_what_apply_then_does() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    let plan = || plan_of(&cluster, &fixture.package("package"), &options(&fixture)).unwrap();
    let first = plan();
    assert_eq!(changing(&standin, 0), Vec::<String>::new());
    assert_eq!(standin.contents(), Contents::default());
    let kinds = |action| {
        [
            (action, "model group", "nsparse-tiny"),
            (action, "model", "tiny-query"),
            (action, "model", "tiny-document"),
            (action, "index", "tiny-v1"),
            (action, "ingest pipeline", "tiny-v1-ingest"),
            (action, "search pipeline", "tiny-v1-search"),
            (action, "alias", "tiny"),
        ]
    };
    assert_eq!(actions(&first), kinds(Action::Create));
    assert!(first.items[1].detail.contains("sha256 ") && first.items[2].detail.contains(" chunks "), "{first:?}");

    let deployed = fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert_eq!((deployed.number, deployed.index.as_str(), deployed.side), (Some(1), "tiny-v1", Side::Cluster));
    let contents = standin.contents();
    assert_eq!(
        contents,
        Contents {
            groups: vec!["nsparse-tiny".to_owned()],
            models: vec!["tiny-query DEPLOYED".to_owned(), "tiny-document DEPLOYED".to_owned()],
            pipelines: vec!["tiny-v1-ingest".to_owned()],
            search_pipelines: vec!["tiny-v1-search".to_owned()],
            indexes: vec!["tiny-v1".to_owned()],
            aliases: vec!["tiny tiny-v1".to_owned()],
        }
    );
    let second = plan();
    assert_eq!(actions(&second), kinds(Action::Keep));
    assert!(second.changes_nothing());

    // Applied twice: nothing changes, and the file says the same.
    let asked = standin.requests().len();
    let again = fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert_eq!(changing(&standin, asked), Vec::<String>::new());
    assert_eq!(standin.contents(), contents);
    assert_eq!((again.made, again.history, again.number), (deployed.made, deployed.history, deployed.number));

    // What somebody changed by hand is shown, and put right.
    let model = lifecycle::Model { id: again.query_model.unwrap().id, name: "tiny-query".to_owned() };
    lifecycle::undeploy(&cluster, &model).unwrap();
    cluster.put("/tiny-v1/_settings", json!({ "index.search.default_pipeline": null })).unwrap();
    let third = plan();
    let changed: Vec<&str> =
        third.items.iter().filter(|i| i.action == Action::Change).map(|i| i.name.as_str()).collect();
    assert_eq!(changed, ["tiny-query", "tiny-v1"]);
    fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert!(plan().changes_nothing());
    assert_eq!(standin.contents(), contents);
}

#[test]
fn applications_send_query_text_alone() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    fill(&cluster, "tiny", DOCUMENTS);
    let query = json!({ "query": { "neural_sparse": { "embedding": { "query_text": "the search engine" } } } });
    let answer = cluster.post("/tiny/_search", query).unwrap();
    assert_eq!(answer.pointer("/hits/total/value"), Some(&json!(DOCUMENTS)), "{answer}");
}

#[test]
fn a_new_version_is_served_when_it_is_ready_and_not_before() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    let second = two_versions(&fixture, &cluster);
    assert_eq!((second.number, second.index.as_str()), (Some(2), "tiny-v2"));
    assert!(second.notes.iter().any(|n| n.contains("stays on `tiny-v1`")), "{:?}", second.notes);
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
    assert_eq!(standin.contents().models.len(), 4);

    let switch = |options: &SwitchOptions| switch_file(&cluster, &fixture.file(), options, &never());
    let refused = |options: &SwitchOptions, words: &str| {
        let error = switch(options).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
        error
    };
    assert_eq!(refused(&switching(), "`tiny-v2` has no documents").fault(), Fault::Usage);
    fill(&cluster, "tiny-v2", DOCUMENTS - 1);
    let error = refused(&switching(), "has 4 documents and `tiny-v1`, which is served, has 5");
    assert!(error.hint().unwrap().contains("--documents 4"), "{:?}", error.hint());
    refused(&SwitchOptions { documents: Some(6), ..switching() }, "not the 6 expected");
    let queries = vec!["한".to_owned()];
    refused(&SwitchOptions { documents: Some(4), queries, ..switching() }, "(한) finds nothing");
    refused(&SwitchOptions { to: Some(7), ..switching() }, "no version 7");
    // An ingest that has not ended has left its mark.
    let meta = json!({ "nsparse_deployment": "tiny", "nsparse_loading": { "refresh_interval": "1s" } });
    cluster.put("/tiny-v2/_mapping", json!({ "_meta": meta })).unwrap();
    refused(&SwitchOptions { documents: Some(4), ..switching() }, "has not ended");
    cluster.put("/tiny-v2/_mapping", json!({ "_meta": { "nsparse_deployment": "tiny" } })).unwrap();

    let queries = vec!["the search engine".to_owned()];
    let report = switch(&SwitchOptions { documents: Some(4), queries, ..switching() }).unwrap();
    assert_eq!(
        (report.from, report.to, report.to_documents),
        (vec!["tiny-v1".to_owned()], vec!["tiny-v2".to_owned()], 4)
    );
    assert_eq!((report.asked.len(), report.changed), (4, true), "{:?}", report.asked);
    assert_eq!(standin.contents().aliases, ["tiny tiny-v2"]);
    // A second time nothing changes.
    let asked = standin.requests().len();
    assert!(!switch(&switching()).unwrap().changed);
    assert_eq!(changing(&standin, asked), Vec::<String>::new());

    let back = || rollback_file(&cluster, &fixture.file(), &switching(), &never());
    let report = back().unwrap();
    assert_eq!((report.to, report.changed), (vec!["tiny-v1".to_owned()], true));
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
    assert_eq!(fixture.load().index, "tiny-v1");
    // It does not swing to and fro: before the first version nothing was served.
    let error = back().unwrap_err();
    assert!(error.to_string().contains("Nothing was served behind the alias `tiny` before `tiny-v1`"), "{error}");
    // The newer version is still there.
    switch(&SwitchOptions { to: Some(2), documents: Some(4), ..switching() }).unwrap();
    assert_eq!(standin.contents().aliases, ["tiny tiny-v2"]);
}

#[test]
fn the_smoke_test_asks_by_the_fields_of_the_template() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    let manifest = fixture.package("package2").join("package.json");
    let mut content: serde_json::Value = nsparse_core::files::read_json(&manifest).unwrap();
    content["template"]["pattern"] = json!("{abstract}");
    nsparse_core::files::write_json(&manifest, &content).unwrap();
    two_versions(&fixture, &cluster);
    for i in 0..DOCUMENTS {
        let document = json!({ "abstract": format!("the search engine {i} w1 w2 w3 index model") });
        cluster.put(&format!("/tiny-v2/_doc/{i}"), document).unwrap();
    }
    let report = switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    assert_eq!((report.asked.len(), report.notes.len()), (3, 0), "{report:?}");
    assert_eq!(standin.contents().aliases, ["tiny tiny-v2"]);
}

#[test]
fn before_2_14_an_alias_has_no_default_pipeline() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { version: "2.13.0", encode: fixture.encode(), ..Options::default() });
    let cluster = cluster(&standin);
    let plan = plan_of(&cluster, &fixture.package("package"), &options(&fixture)).unwrap();
    assert!(plan.notes.iter().any(|n| n.contains("by an alias no default pipeline")), "{:?}", plan.notes);
    let deployed = two_versions(&fixture, &cluster);
    assert!(deployed.notes.iter().any(|n| n.contains("by an alias no default pipeline")), "{:?}", deployed.notes);
    let query = json!({ "query": { "neural_sparse": { "embedding": { "query_text": "search" } } } });
    let error = cluster.post("/tiny/_search", query.clone()).unwrap_err();
    assert!(error.to_string().contains("model_id cannot be null"), "{error}");
    cluster.post("/tiny-v1/_search", query).unwrap();
    fill(&cluster, "tiny-v2", DOCUMENTS);
    switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    assert_eq!(standin.contents().aliases, ["tiny tiny-v2"]);
}

#[test]
fn what_nothing_can_be_asked_of_is_served_only_after_a_query() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    let options = DeployOptions { side: Side::Query, ..options(&fixture) };
    fixture.deploy("package", &cluster, &options).unwrap();
    let bare = |index: &str| {
        for i in 0..DOCUMENTS {
            let document = json!({ "embedding": { "search": 1.0 }, "body": "search" });
            cluster.put(&format!("/{index}/_doc/{i}"), document).unwrap();
        }
    };
    bare("tiny-v1");
    fixture.deploy("package2", &cluster, &options).unwrap();
    bare("tiny-v2");
    let error = switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap_err();
    assert_eq!(error.fault(), Fault::Usage);
    assert!(error.to_string().starts_with("Nothing could be asked of `tiny-v2`: no document looked at has text in"));
    assert!(error.hint().unwrap().contains("--query TEXT"), "{:?}", error.hint());
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
    let options = SwitchOptions { queries: vec!["search".to_owned()], ..switching() };
    let report = switch_file(&cluster, &fixture.file(), &options, &never()).unwrap();
    assert_eq!((report.asked.len(), report.notes.len()), (1, 0), "{report:?}");
    // What was served before is served again, and the report says that nothing was asked.
    let report = rollback_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    assert_eq!((report.asked.len(), report.changed), (0, true));
    assert!(report.notes[0].starts_with("Nothing could be asked of `tiny-v1`"), "{:?}", report.notes);
}

#[test]
fn a_rollback_deploys_the_old_models_again_and_refuses_what_does_not_answer() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    two_versions(&fixture, &cluster);
    fill(&cluster, "tiny-v2", DOCUMENTS);
    switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    let first = fixture.load().numbered(1).unwrap().clone();
    let model = first.query_model.unwrap().model();
    lifecycle::undeploy(&cluster, &model).unwrap();
    cluster.delete("/_search/pipeline/tiny-v1-search").unwrap();
    let back = |force| rollback_file(&cluster, &fixture.file(), &SwitchOptions { force, ..switching() }, &never());
    let error = back(false).unwrap_err();
    assert!(error.to_string().contains("`tiny-v2` is still served"), "{error}");
    assert_eq!(standin.contents().aliases, ["tiny tiny-v2"]);
    assert_eq!(lifecycle::info(&cluster, &model).unwrap().state, "DEPLOYED");
    back(true).unwrap();
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
}

#[test]
fn one_version_is_taken_back_and_the_rest_stays() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    two_versions(&fixture, &cluster);
    fill(&cluster, "tiny-v2", DOCUMENTS);
    switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    let take = |version, delete_index| {
        let options =
            UndeployOptions { version: Some(version), delete_index, poll: fast(), ..UndeployOptions::default() };
        undeploy_file(&cluster, &fixture.file(), &options)
    };
    let error = take(2, true).unwrap_err();
    assert!(error.to_string().contains("is what the alias `tiny` serves"), "{error}");
    assert!(take(3, true).unwrap_err().to_string().contains("has no version 3: it has versions 1, 2"));
    assert!(take(1, false).unwrap_err().to_string().contains("has 5 documents"));
    let report = take(1, true).unwrap();
    assert!(report.failed.is_empty(), "{report:?}");
    let contents = standin.contents();
    assert_eq!((contents.indexes, contents.models.len()), (vec!["tiny-v2".to_owned()], 2));
    assert_eq!((contents.groups.len(), contents.aliases), (1, vec!["tiny tiny-v2".to_owned()]));
    let file = fixture.load();
    assert_eq!((file.number, file.others.len(), file.history.len()), (Some(2), 0, 1), "{file:?}");
    let all = UndeployOptions { delete_index: true, poll: fast(), ..UndeployOptions::default() };
    let report = undeploy_file(&cluster, &fixture.file(), &all).unwrap();
    assert!(report.failed.is_empty() && report.gone.is_empty(), "{report:?}");
    assert_eq!(standin.contents(), Contents::default());
    assert!(!fixture.file().exists());
}

#[test]
fn names_that_cannot_be_had_are_refused_before_anything_is_made() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    cluster.put("/tiny", json!({})).unwrap();
    let error = fixture.deploy("package", &cluster, &options(&fixture)).unwrap_err();
    assert!(error.to_string().contains("`tiny` is an index in this cluster"), "{error}");
    assert!(error.hint().unwrap().contains("--alias tiny-live"), "{:?}", error.hint());
    assert_eq!(error.fault(), Fault::Usage);
    assert!(plan_of(&cluster, &fixture.package("package"), &options(&fixture)).is_err());
    assert_eq!(standin.contents(), Contents { indexes: vec!["tiny".to_owned()], ..Contents::default() });
    cluster.delete("/tiny").unwrap();

    fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    let plain = DeployOptions { alias: None, ..options(&fixture) };
    let error = fixture.deploy("package", &cluster, &plain).unwrap_err();
    assert!(error.to_string().contains("describes versions behind the alias `tiny`"), "{error}");
    let elsewhere = DeployOptions { file: Some(fixture.path("other.json")), ..plain };
    let error = fixture.deploy("package", &cluster, &elsewhere).unwrap_err();
    assert!(error.to_string().contains("`tiny` is an alias"), "{error}");
    let error = switch_file(&cluster, &fixture.path("none.json"), &switching(), &never()).unwrap_err();
    assert!(error.to_string().contains("no deployment file"), "{error}");
}

#[test]
fn an_alias_of_others_moves_to_ours_and_back() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    cluster.put("/old-site", json!({})).unwrap();
    fill(&cluster, "old-site", DOCUMENTS);
    let add = json!({ "add": { "index": "old-site", "alias": "tiny", "filter": { "match_all": {} } } });
    cluster.post("/_aliases", json!({ "actions": [add] })).unwrap();
    fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert_eq!(standin.contents().aliases, ["tiny old-site"]);
    fill(&cluster, "tiny-v1", DOCUMENTS);
    switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    let behind = cluster.get("/_alias/tiny").unwrap();
    assert_eq!(behind, json!({ "tiny-v1": { "aliases": { "tiny": { "filter": { "match_all": {} } } } } }));
    rollback_file(&cluster, &fixture.file(), &switching(), &never()).unwrap();
    assert_eq!(standin.contents().aliases, ["tiny old-site"]);
}

/// The state at the end, without what differs between two clusters: ids.
fn end(standin: &StandIn, file: &Path) -> (Contents, Vec<String>, Option<u32>, Vec<Vec<String>>) {
    let file: Deployment = Deployment::load(file).unwrap();
    let made = |m: &Made| m.to_string().split(" (id").next().unwrap().to_owned();
    let history = file.history.iter().map(|s| s.indexes.clone()).collect();
    let mut contents = standin.contents();
    contents.models.sort();
    let mut all: Vec<String> = file.everything_made().iter().map(made).collect();
    all.sort();
    (contents, all, file.number, history)
}

#[test]
fn a_failure_at_any_request_leaves_the_old_version_serving_and_nothing_behind() {
    let fixture = Fixture::new();
    let good = standin(&fixture);
    fixture.deploy("package", &cluster(&good), &options(&fixture)).unwrap();
    let before = good.requests().len();
    fixture.deploy("package2", &cluster(&good), &options(&fixture)).unwrap();
    let requests = good.requests()[before..].to_vec();
    let wanted = end(&good, &fixture.file());
    assert!(requests.len() > 20, "{requests:?}");
    for strike in [Strike::Before, Strike::After] {
        for (n, request) in requests.iter().enumerate() {
            std::fs::remove_file(fixture.file()).unwrap();
            let standin = standin(&fixture);
            let mut first = fixture.deploy("package", &cluster(&standin), &options(&fixture)).unwrap();
            let contents = standin.contents();
            standin.fail(n, strike);
            let error = fixture.deploy("package2", &cluster(&standin), &options(&fixture)).unwrap_err();
            assert!(error.to_string().contains("injected failure"), "{n} {request}: {error}");
            // A model of which only the answer to its registration was lost has no bytes, and is gone on with.
            let mut now = standin.contents();
            now.models.retain(|m| !m.ends_with(" REGISTERING"));
            assert_eq!(now, contents, "{strike:?} {n} {request}");
            let mut file = fixture.load();
            (first.history, file.history) = (Vec::new(), Vec::new());
            assert_eq!(file, first, "{strike:?} {n} {request}");
            // Repeated, it comes to the same end as one that was never disturbed.
            fixture.deploy("package2", &cluster(&standin), &options(&fixture)).unwrap();
            assert_eq!(end(&standin, &fixture.file()), wanted, "{strike:?} {n} {request}");
        }
    }
}

#[test]
fn a_cluster_out_of_reach_from_any_request_on_keeps_the_old_version_and_the_deploy_goes_on_later() {
    let fixture = Fixture::new();
    let good = standin(&fixture);
    fixture.deploy("package", &cluster(&good), &options(&fixture)).unwrap();
    let before = good.requests().len();
    fixture.deploy("package2", &cluster(&good), &options(&fixture)).unwrap();
    let requests = good.requests()[before..].to_vec();
    let wanted = end(&good, &fixture.file());
    for (n, request) in requests.iter().enumerate() {
        let outage = if n % 2 == 0 { Outage::Cut } else { Outage::Unavailable };
        std::fs::remove_file(fixture.file()).unwrap();
        let standin = standin(&fixture);
        let deploy = |package| fixture.deploy(package, &cluster(&standin), &options(&fixture));
        deploy("package").unwrap();
        standin.out_of_reach(n, outage);
        deploy("package2").unwrap_err();
        standin.mend();
        assert_eq!(standin.contents().aliases, ["tiny tiny-v1"], "{outage:?} {n} {request}");
        deploy("package2").unwrap();
        assert_eq!(end(&standin, &fixture.file()), wanted, "{outage:?} {n} {request}");
    }
}

#[test]
fn an_upload_that_was_cut_goes_on_where_it_was() {
    let fixture = Fixture::new();
    let good = standin(&fixture);
    fixture.deploy("package", &cluster(&good), &options(&fixture)).unwrap();
    let wanted = end(&good, &fixture.file());
    let uploads = |standin: &StandIn| standin.requests().iter().filter(|r| r.contains("/upload_chunk/")).count();
    let requests = good.requests();
    let chunk = requests.iter().rposition(|r| r.contains("/upload_chunk/")).unwrap() - 1;
    std::fs::remove_file(fixture.file()).unwrap();

    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    standin.out_of_reach(chunk, Outage::Cut);
    let error = fixture.deploy("package", &cluster, &options(&fixture)).unwrap_err();
    assert!(error.to_string().contains("stays in the cluster"), "{error}");
    assert!(error.hint().unwrap().contains("goes on with the chunks that are missing"), "{:?}", error.hint());
    standin.mend();
    let before = uploads(&standin);
    let deployed = fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert!(deployed.notes.iter().any(|n| n.contains("chunks of model `tiny-document`")), "{:?}", deployed.notes);
    // The two chunks that were missing, and no other.
    assert_eq!(uploads(&standin) - before, 2);
    assert_eq!(end(&standin, &fixture.file()), wanted);
    assert!(!fixture.path("deployment.json.uploads").exists());
    assert!(plan_of(&cluster, &fixture.package("package"), &options(&fixture)).unwrap().changes_nothing());
}

#[test]
fn a_file_that_a_dead_node_left_behind_is_mended_by_registering_anew() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    // At the first deploy.
    standin.spoil_next("tiny-document");
    let deployed = fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    assert!(deployed.notes.iter().any(|n| n.contains("was registered anew")), "{:?}", deployed.notes);
    let old = deployed.document_model.unwrap();
    assert_eq!(standin.contents().models, ["tiny-query DEPLOYED", "tiny-document DEPLOYED"]);
    // Later: undeployed, and then its file is spoilt.
    lifecycle::undeploy(&cluster, &old.model()).unwrap();
    standin.spoil("tiny-document");
    let again = fixture.deploy("package", &cluster, &options(&fixture)).unwrap();
    let new = again.document_model.unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(standin.contents().models, ["tiny-query DEPLOYED", "tiny-document DEPLOYED"]);
    assert!(again.made.contains(&Made::Model { id: new.id.clone(), name: new.name }), "{:?}", again.made);
    let pipeline = cluster.get("/_ingest/pipeline/tiny-v1-ingest").unwrap();
    assert!(pipeline.to_string().contains(&new.id), "{pipeline}");
}

#[test]
fn the_cluster_fetches_the_package_where_it_may() {
    let fixture = Fixture::new();
    let options = DeployOptions { url: Some("http://files.example/models/".to_owned()), ..options(&fixture) };
    let standin = StandIn::start(Options {
        encode: fixture.encode(),
        behind_urls: Some(fixture.package("package")),
        ..Options::default()
    });
    let cluster = cluster(&standin);
    let plan = plan_of(&cluster, &fixture.package("package"), &options).unwrap();
    assert!(plan.items[1].detail.contains("fetched by the cluster"), "{plan:?}");
    fixture.deploy("package", &cluster, &options).unwrap();
    assert!(!standin.requests().iter().any(|r| r.contains("/upload_chunk/")));
    assert_eq!(standin.contents().models, ["tiny-query DEPLOYED", "tiny-document DEPLOYED"]);

    // Switched off, or nothing there: said, with what to do, and nothing left.
    let refused = |standin: &StandIn, words: &str| {
        std::fs::remove_file(fixture.file()).unwrap_or_default();
        let error = fixture.deploy("package", &versions_fixture::cluster(standin), &options).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.hint().unwrap().contains("nsparse deploy"), "{:?}", error.hint());
        assert_eq!(standin.contents(), Contents::default());
    };
    let nowhere = StandIn::start(Options::default());
    refused(&nowhere, "could not read the zip behind the URL");
    let off = json!({ "persistent": { "plugins.ml_commons.allow_registering_model_via_url": false } });
    versions_fixture::cluster(&nowhere).put("/_cluster/settings", off).unwrap();
    refused(&nowhere, "does not take models by URL");
}

/// What an upload elsewhere has begun an hour ago and more, and this file knows nothing of.
#[test]
fn a_registration_that_never_ended_is_made_anew() {
    let fixture = Fixture::new();
    let standin = Arc::new(StandIn::start(Options {
        encode: fixture.encode(),
        behind_urls: Some(fixture.package("package")),
        ..Options::default()
    }));
    let cluster = cluster(&standin);
    let theirs = Arc::clone(&standin);
    standin.meanwhile_at("/upload_chunk/", 2, move || theirs.out_of_reach(0, Outage::Cut));
    fixture.deploy("package", &cluster, &options(&fixture)).unwrap_err();
    standin.mend();
    assert!(standin.contents().models.contains(&"tiny-document REGISTERING".to_owned()), "{:?}", standin.contents());
    std::fs::remove_file(fixture.path("deployment.json.uploads")).unwrap();
    let by_url = DeployOptions { url: Some("http://files.example/models/".to_owned()), ..options(&fixture) };
    let deployed = fixture.deploy("package", &cluster, &by_url).unwrap();
    assert!(deployed.notes.iter().any(|n| n.contains("it is made anew")), "{:?}", deployed.notes);
    let mut contents = standin.contents();
    contents.models.sort();
    assert_eq!(contents.models, ["tiny-document DEPLOYED", "tiny-query DEPLOYED"]);
    let everything = UndeployOptions { poll: fast(), ..UndeployOptions::default() };
    undeploy_file(&cluster, &fixture.file(), &everything).unwrap();
    assert_eq!(standin.contents(), Contents::default());
}

#[test]
fn unused_models_are_listed_and_deleted_and_no_others() {
    let fixture = Fixture::new();
    let standin = standin(&fixture);
    let cluster = cluster(&standin);
    let second = two_versions(&fixture, &cluster);
    let now = 1_795_224_239_031 + 2 * 60 * 60 * 1000;
    // Somebody else's model, in a group of its own and in ours.
    let body = |name: &str, group: Option<&str>| {
        let mut body = json!({ "name": name, "version": "1", "function_name": "SPARSE_ENCODING", "model_format": "TORCH_SCRIPT",
            "model_content_hash_value": "00", "total_chunks": 1 });
        if let Some(group) = group {
            body["model_group_id"] = group.into();
        }
        body
    };
    cluster.post("/_plugins/_ml/models/_register_meta", body("theirs-document", None)).unwrap();
    cluster.post("/_plugins/_ml/models/_register_meta", body("theirs", second.group_id.as_deref())).unwrap();
    // An upload that was never ended.
    cluster.post("/_plugins/_ml/models/_register_meta", body("tiny-document", second.group_id.as_deref())).unwrap();
    let list = |files: &[Deployment], running, now| our_models(&cluster, files, running, now).unwrap();
    let unused = |files: &[Deployment], running, now| -> Vec<String> {
        let models = list(files, running, now);
        models.into_iter().filter(|m| m.used_by.is_empty()).map(|m| format!("{} {}", m.name, m.state)).collect()
    };
    let file = std::slice::from_ref(&second);
    assert_eq!(list(file, true, now).len(), 5);
    assert_eq!(unused(file, true, now), ["tiny-document REGISTERING"]);
    assert_eq!(unused(file, true, now - 90 * 60 * 1000), Vec::<String>::new(), "it may be on its way");
    // Without the file, the pipelines and the indexes still name them.
    assert_eq!(unused(&[], true, now), ["tiny-document REGISTERING"]);
    let used: Vec<Vec<String>> = list(&[], true, now).into_iter().map(|m| m.used_by).collect();
    assert!(used.iter().flatten().any(|u| u == "index `tiny-v1`"), "{used:?}");
    assert!(used.iter().flatten().any(|u| u == "search pipeline `tiny-v2-search`"), "{used:?}");

    // The first version's pipelines and index gone by hand, and the file lost: its models run and nothing names them.
    for path in ["/tiny-v1", "/_ingest/pipeline/tiny-v1-ingest", "/_search/pipeline/tiny-v1-search"] {
        cluster.delete(path).unwrap();
    }
    assert_eq!(unused(&[], false, now), ["tiny-document REGISTERING"]);
    let models = list(&[], true, now);
    let unused: Vec<String> = models.iter().filter(|m| m.used_by.is_empty()).map(|m| m.name.clone()).collect();
    assert_eq!(unused, ["tiny-query", "tiny-document", "tiny-document"]);
    let report = prune(&cluster, &models, &fast());
    assert_eq!((report.removed.len(), report.failed.len()), (3, 0), "{report:?}");
    assert_eq!(
        standin.contents().models,
        ["tiny2-query DEPLOYED", "tiny2-document DEPLOYED", "theirs-document REGISTERING", "theirs REGISTERING"]
    );
}

#[test]
fn a_switch_or_rollback_that_fails_at_any_request_serves_one_version_and_can_be_repeated() {
    let fixture = Fixture::new();
    let good = standin(&fixture);
    let cluster_of_good = cluster(&good);
    two_versions(&fixture, &cluster_of_good);
    fill(&cluster_of_good, "tiny-v2", DOCUMENTS);
    let deployed = fixture.load();
    let run = |cluster: &Cluster, back: bool| -> Result<bool, Error> {
        let (file, options, cancel) = (fixture.file(), switching(), never());
        let report = if back {
            rollback_file(cluster, &file, &options, &cancel)
        } else {
            switch_file(cluster, &file, &options, &cancel)
        };
        report.map(|report| report.changed)
    };
    for back in [false, true] {
        let from = good.requests().len();
        assert!(run(&cluster_of_good, back).unwrap());
        let requests = good.requests()[from..].to_vec();
        let wanted = end(&good, &fixture.file());
        assert_eq!(wanted.0.aliases, [if back { "tiny tiny-v1" } else { "tiny tiny-v2" }]);
        let after = fixture.load();
        for strike in [Strike::Before, Strike::After] {
            for (n, request) in requests.iter().enumerate() {
                // Back to where it was.
                let now = standin_alias(&good);
                let before = if back { "tiny-v2" } else { "tiny-v1" };
                if now != before {
                    let actions = json!([{ "remove": { "index": now, "alias": "tiny" } },
                        { "add": { "index": before, "alias": "tiny" } }]);
                    cluster_of_good.post("/_aliases", json!({ "actions": actions })).unwrap();
                }
                let mut start = deployed.clone();
                if back {
                    start = after.clone();
                    start
                        .history
                        .push(nsparse_opensearch::ml::Served { indexes: vec!["tiny-v2".to_owned()], since: 1 });
                }
                start.save(&fixture.file()).unwrap();
                good.fail(n, strike);
                // An answer that was lost may have been looked for again.
                let first = run(&cluster_of_good, back);
                let what = format!("{back} {strike:?} {n} {request}: {first:?}");
                assert_eq!(good.contents().aliases.len(), 1, "{what}");
                if first.is_err() {
                    let second = run(&cluster_of_good, back);
                    assert!(second.is_ok(), "{what}: {second:?}");
                }
                assert_eq!(end(&good, &fixture.file()), wanted, "{what}");
            }
        }
    }
}

fn standin_alias(standin: &StandIn) -> String {
    standin.contents().aliases[0].trim_start_matches("tiny ").to_owned()
}

#[test]
fn a_model_that_does_not_deploy_any_more_ends_a_switch_before_the_alias_is_touched() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), lag: 0, ..Options::default() });
    let cluster = cluster(&standin);
    two_versions(&fixture, &cluster);
    fill(&cluster, "tiny-v2", DOCUMENTS);
    let model = fixture.load().query_model.unwrap().model();
    lifecycle::undeploy(&cluster, &model).unwrap();
    standin.spoil("tiny2-query");
    let error = switch_file(&cluster, &fixture.file(), &switching(), &never()).unwrap_err();
    assert!(error.to_string().contains("another sha256"), "{error}");
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
}

//! Switch and rollback with queries going on: a real node behind the stand-in holds indexes, aliases and searches; the
//! stand-in keeps the models and gives queries their tokens.
#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "measured figures are shown with --nocapture")]

mod versions_fixture;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nsparse_core::beir::Document;
use nsparse_core::{DocumentEncoder as _, NoProgress};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::node::shared;
use nsparse_integration_tests::standin::{Options, StandIn};
use nsparse_opensearch::ml::{
    DeployOptions, Side, SwitchOptions, UndeployOptions, plan_of, rollback_file, status_of, status_of_index,
    switch_file, undeploy_file,
};
use nsparse_opensearch::{Cluster, IngestOptions, ingest_encoded};
use serde_json::{Value, json};
use versions_fixture::{Fixture, at, fast, never};

const CLIENTS: usize = 8;
const SWITCHES: usize = 10;
const DOCUMENTS: usize = 200;

fn documents() -> Vec<Document> {
    (0..DOCUMENTS)
        .map(|i| Document {
            id: i.to_string(),
            title: format!("search engine w{}", i % 50),
            text: "index model w1 w2 w3".to_owned(),
            ..Document::default()
        })
        .collect()
}

/// Vectors made here, as `nsparse ingest` sends them: a pipeline of the cluster is not run by the stand-in's node.
fn fill(fixture: &Fixture, cluster: &Cluster, index: &str, model: &str) {
    let encoder = SparseEncoder::load(&fixture.path(model), Device::Cpu).unwrap();
    let documents = documents();
    let texts: Vec<String> = documents.iter().map(|d| format!("{} {}", d.title, d.text)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let vectors = encoder.encode(&texts).unwrap();
    let options = IngestOptions::default();
    let vocabulary = encoder.vocabulary();
    let report =
        ingest_encoded(cluster, index, &documents, &vectors, vocabulary, &options, &NoProgress, &never()).unwrap();
    assert_eq!(report.documents, DOCUMENTS as u64);
}

#[test]
fn no_query_is_lost_while_the_alias_goes_to_and_fro() {
    let fixture = Fixture::new();
    let upstream = Some(shared().url.clone());
    let standin = StandIn::start(Options { encode: fixture.encode(), upstream, ..Options::default() });
    let cluster = at(standin.url());
    let options = DeployOptions { poll: fast(), file: Some(fixture.file()), ..DeployOptions::behind("switched") };
    let first = fixture.deploy("package", &cluster, &options).unwrap();
    assert_eq!((first.side, first.search_pipeline.as_deref()), (Side::Cluster, Some("switched-v1-search")));
    fill(&fixture, &cluster, "switched-v1", "model");
    let second = fixture.deploy("package2", &cluster, &options).unwrap();
    assert_eq!(second.index, "switched-v2");
    fill(&fixture, &cluster, "switched-v2", "model2");
    assert!(plan_of(&cluster, &fixture.package("package2"), &options).unwrap().changes_nothing());

    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let url = format!("{}/switched/_search", standin.url());
    let clients = |failures: &std::sync::Mutex<Vec<String>>, seen: &std::sync::Mutex<BTreeMap<String, usize>>| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let body = json!({ "size": 3, "_source": false,
            "query": { "neural_sparse": { "embedding": { "query_text": "search engine index" } } } });
        while !stop.load(Ordering::SeqCst) {
            let answer = runtime.block_on(async {
                let answer = client.post(&url).header("content-type", "application/json").body(body.to_string());
                let answer = answer.send().await.map_err(|e| e.to_string())?;
                let status = answer.status().as_u16();
                let text = answer.text().await.map_err(|e| e.to_string())?;
                let value: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
                if status == 200 { Ok(value) } else { Err(format!("{status} {value}")) }
            });
            asked.fetch_add(1, Ordering::SeqCst);
            match answer {
                Err(error) => failures.lock().unwrap().push(error),
                Ok(answer) => {
                    let hits = answer.pointer("/hits/hits").and_then(Value::as_array).cloned().unwrap_or_default();
                    let indexes: Vec<&str> = hits.iter().filter_map(|h| h["_index"].as_str()).collect();
                    let failed = answer.pointer("/_shards/failed").and_then(Value::as_u64);
                    // Three documents of one version, from all shards.
                    if indexes.len() != 3 || indexes.windows(2).any(|w| w[0] != w[1]) || failed != Some(0) {
                        failures.lock().unwrap().push(answer.to_string());
                    } else {
                        *seen.lock().unwrap().entry(indexes[0].to_owned()).or_default() += 1;
                    }
                }
            }
        }
    };
    let (failures, seen) = (std::sync::Mutex::new(Vec::new()), std::sync::Mutex::new(BTreeMap::new()));
    // Each switch and rollback waits until every client has, on the average, asked again.
    let wait = |more: usize| {
        let (from, deadline) = (asked.load(Ordering::SeqCst), Instant::now() + Duration::from_mins(1));
        while asked.load(Ordering::SeqCst) < from + more {
            assert!(Instant::now() < deadline, "the clients ask no more");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    };
    let switching = SwitchOptions { poll: fast(), to: Some(2), ..SwitchOptions::default() };
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| clients(&failures, &seen));
        }
        // The clients end however this ends.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..SWITCHES {
                wait(2 * CLIENTS);
                let report = switch_file(&cluster, &fixture.file(), &switching, &never()).unwrap();
                assert_eq!(report.to, ["switched-v2"]);
                wait(2 * CLIENTS);
                let report = rollback_file(&cluster, &fixture.file(), &switching, &never()).unwrap();
                assert_eq!(report.to, ["switched-v1"]);
            }
        }));
        stop.store(true, Ordering::SeqCst);
        done.unwrap();
    });
    let (failures, seen) = (failures.into_inner().unwrap(), seen.into_inner().unwrap());
    println!(
        "{} queries by {CLIENTS} clients over {} moves of the alias: {seen:?}",
        asked.load(Ordering::SeqCst),
        2 * SWITCHES
    );
    assert!(failures.is_empty(), "{} failed: {}", failures.len(), failures[0]);
    assert!(seen.len() == 2 && seen.values().all(|n| *n >= SWITCHES), "{seen:?}");

    // The statistics of a real node.
    for status in [status_of(&cluster, &fixture.load()).unwrap(), status_of_index(&cluster, "switched").unwrap()] {
        let index = &status.indexes[0];
        assert_eq!((index.name.as_str(), index.documents, index.served), ("switched-v1", Some(DOCUMENTS as u64), true));
        assert!(
            index.bytes > 1000 && index.searched.count > 100 && index.indexed.count == DOCUMENTS as u64,
            "{index:?}"
        );
        let node = &status.nodes[0];
        assert!(node.heap_bytes > 1 << 20 && (1..100).contains(&node.heap_percent), "{node:?}");
        assert!(node.disk_free > 0 && node.disk_free < node.disk_bytes, "{node:?}");
        assert_eq!(status.models.iter().filter(|m| m.state == "DEPLOYED").count(), status.models.len());
        assert_eq!(status.problems, Vec::<String>::new());
    }

    let all = UndeployOptions { delete_index: true, poll: fast(), ..UndeployOptions::default() };
    let report = undeploy_file(&cluster, &fixture.file(), &all).unwrap();
    assert!(report.failed.is_empty() && report.gone.is_empty(), "{report:?}");
    assert!(cluster.find("/_alias/switched").unwrap().is_none());
    assert!(shared().cluster.find("/_search/pipeline/switched-v1-search").unwrap().is_none());
}

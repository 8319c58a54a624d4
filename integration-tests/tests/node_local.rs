//! The local node itself: a real OpenSearch, started, found running, stopped.

#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use nsparse_core::{Cancel, NoProgress};
use nsparse_integration_tests::node::{free_port, shared};
use nsparse_opensearch::node::{Engine, Handle, NodeOptions, down, status, up};
use nsparse_opensearch::{Body, Method};

#[test]
fn the_node_is_a_minimal_distribution() {
    let node = shared();
    let found = node.cluster.capabilities().unwrap();
    assert_eq!(found.version.to_string(), "2.16.0");
    assert!(!found.ml_commons && !found.neural_search);
    let modules = node.cluster.get("/_nodes?filter_path=nodes.*.modules.name").unwrap().to_string();
    for module in [
        "analysis-common",
        "ingest-common",
        "lang-mustache",
        "lang-painless",
        "mapper-extras",
        "rank-eval",
        "reindex",
        "search-pipeline-common",
        "transport-netty4",
    ] {
        assert!(modules.contains(&format!("\"{module}\"")), "{module} is missing in {modules}");
    }
}

#[test]
fn it_does_not_run_as_root() {
    let node = shared();
    let port: u16 = node.url.rsplit(':').next().unwrap().parse().unwrap();
    let mine = status(None).unwrap().into_iter().find(|s| s.node.port == port).unwrap();
    assert!(mine.running && mine.answers);
    let Handle::Process { pid, .. } = mine.node.handle else { panic!("not a process") };
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let uids = text.lines().find_map(|l| l.strip_prefix("Uid:")).unwrap();
    assert!(uids.split_whitespace().all(|uid| uid != "0"), "{uids}");
    let groups = text.lines().find_map(|l| l.strip_prefix("Gid:")).unwrap();
    assert!(groups.split_whitespace().all(|gid| gid != "0"), "{groups}");
}

#[test]
fn up_again_finds_it_and_down_stops_it() {
    let port = free_port().unwrap();
    let options = NodeOptions { port, heap: "512m".into(), engine: Engine::Assembled, ..NodeOptions::default() };
    let first = up(&options, &NoProgress, &Cancel::default()).unwrap();
    assert!(!first.already);
    let second = up(&options, &NoProgress, &Cancel::default()).unwrap();
    assert!(second.already);
    assert_eq!(first.node, second.node);

    // An error of the engine comes back as its reason, with method, path and status.
    let cluster =
        nsparse_opensearch::Cluster::connect(&nsparse_opensearch::ClusterConfig::new(&first.node.url)).unwrap();
    let error = cluster.request(Method::Get, "/nowhere/_search", Body::None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "GET /nowhere/_search was answered with 404 (index_not_found_exception): no such index [nowhere]"
    );

    let folder = std::path::Path::new(&first.node.log).parent().unwrap().to_path_buf();
    assert_eq!(down(None, Some(port)).unwrap(), [first.node]);
    // Data stays for the next start on that port; this one was for the test alone.
    assert!(folder.join("data-2.16.0").is_dir());
    std::fs::remove_dir_all(folder).unwrap();
    assert!(status(None).unwrap().iter().all(|s| s.node.port != port));
    assert_eq!(down(None, Some(port)).unwrap(), []);
}

#[test]
fn a_node_that_ends_at_once_is_told_with_its_log() {
    let port = free_port().unwrap();
    let options = NodeOptions { port, heap: "1m".into(), engine: Engine::Assembled, ..NodeOptions::default() };
    let error = up(&options, &NoProgress, &Cancel::default()).unwrap_err();
    assert!(error.to_string().starts_with("OpenSearch ended"), "{error}");
    assert!(error.to_string().contains("Too small maximum heap"), "{error}");
    assert!(status(None).unwrap().iter().all(|s| s.node.port != port));
}

#[test]
fn a_cancelled_start_leaves_nothing_running() {
    let port = free_port().unwrap();
    let cancel = Cancel::default();
    cancel.cancel();
    let options = NodeOptions { port, heap: "512m".into(), engine: Engine::Assembled, ..NodeOptions::default() };
    let error = up(&options, &NoProgress, &cancel).unwrap_err();
    assert_eq!(error.to_string(), "Interrupted");
    assert!(status(None).unwrap().iter().all(|s| s.node.port != port));
    // Its port is free again, so nothing was left behind to take it.
    std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
}

//! The rules on answers as clusters give them.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use serde_json::{Value, json};

use super::cluster::{Answers, judge};
use super::*;
use crate::capabilities::Capabilities;

const GIB: u64 = 1024 * 1024 * 1024;

fn plugins() -> Value {
    let row = |c: &str| json!({"name": "n1", "component": c, "version": "2.16.0.0"});
    json!([row("opensearch-ml"), row("opensearch-neural-search"), row("opensearch-knn")])
}

fn capabilities(plugins: &Value) -> Capabilities {
    let root = json!({"cluster_name": "c", "version": {"distribution": "opensearch", "number": "2.16.0"}});
    Capabilities::from_answers("u", &root, plugins, None).unwrap()
}

/// A node with plenty of everything.
fn node(roles: &[&str]) -> Value {
    json!({
        "name": "n1", "roles": roles,
        "os": {"mem": {"used_percent": 40}}, "jvm": {"mem": {"heap_used_percent": 30}},
        "fs": {"total": {"total_in_bytes": 100 * GIB, "available_in_bytes": 60 * GIB}},
        "breakers": {"parent": {"tripped": 0}}
    })
}

fn answers(settings: Value, node: &Value) -> Answers {
    Answers {
        plugins: Some(plugins()),
        settings: Some(settings),
        nodes: Some(json!({"nodes": {"x": node}})),
        health: Some(json!({"status": "green", "active_shards": 4, "unassigned_shards": 0})),
    }
}

fn subjects(findings: &[Finding], level: Level) -> Vec<&str> {
    findings.iter().filter(|f| f.level == level).map(|f| f.subject.as_str()).collect()
}

const ALL: [&str; 3] = ["cluster_manager", "data", "ingest"];

#[test]
fn a_new_cluster_refuses_uploads_and_has_no_ml_node() {
    // What 2.16.0 has by default.
    let found = judge(&capabilities(&plugins()), &answers(json!({}), &node(&ALL)));
    let expected =
        ["plugins.ml_commons.only_run_on_ml_node", "plugins.ml_commons.allow_registering_model_via_local_file"];
    assert_eq!(subjects(&found, Level::Problem), expected);
    assert!(fails(&found));
    let changes = fix::changes(&found);
    assert_eq!(fix::body(&changes, |c| c.new.clone()), json!({"persistent": {expected[0]: false, expected[1]: true}}));
    assert_eq!(fix::body(&changes, |c| c.old.clone()), json!({"persistent": {expected[0]: null, expected[1]: null}}));
}

#[test]
fn a_cluster_that_is_ready() {
    let settings = json!({"persistent": {
        "plugins.ml_commons.only_run_on_ml_node": "false",
        "plugins.ml_commons.allow_registering_model_via_local_file": "true"
    }});
    let found = judge(&capabilities(&plugins()), &answers(settings, &node(&ALL)));
    assert_eq!(subjects(&found, Level::Problem), [""; 0]);
    assert_eq!(subjects(&found, Level::Warning), [""; 0]);
    assert!(fix::changes(&found).is_empty());
    // With a node for models the default serves too.
    let uploads = json!({"transient": {"plugins.ml_commons.allow_registering_model_via_local_file": "true"}});
    let found = judge(&capabilities(&plugins()), &answers(uploads, &node(&["data", "ingest", "ml"])));
    assert!(!fails(&found), "{found:#?}");
}

#[test]
fn a_transient_value_is_changed_where_it_stands() {
    let settings = json!({
        "transient": {"plugins.ml_commons.local_model.enabled": "false"},
        "persistent": {"plugins.ml_commons.local_model.enabled": "true"}
    });
    let found = judge(&capabilities(&plugins()), &answers(settings, &node(&["data", "ingest", "ml"])));
    let changes = fix::changes(&found);
    let change = changes.iter().find(|c| c.setting.ends_with("local_model.enabled")).unwrap();
    assert_eq!((change.scope.as_str(), &change.old, &change.new), ("transient", &json!("false"), &json!(true)));
}

#[test]
fn limits_that_are_reached() {
    let mut full = node(&["data", "ingest", "ml"]);
    full["os"]["mem"]["used_percent"] = json!(97);
    full["jvm"]["mem"]["heap_used_percent"] = json!(83);
    full["fs"]["total"]["available_in_bytes"] = json!(4 * GIB);
    full["breakers"]["parent"]["tripped"] = json!(3);
    let settings = json!({"persistent": {
        "plugins.ml_commons.allow_registering_model_via_local_file": "true",
        "plugins.ml_commons.max_model_on_node": "1",
        "cluster.blocks.read_only": "true",
        "cluster.max_shards_per_node": "5"
    }});
    let found = judge(&capabilities(&plugins()), &answers(settings, &full));
    assert_eq!(
        subjects(&found, Level::Problem),
        [
            "plugins.ml_commons.native_memory_threshold",
            "plugins.ml_commons.disk_free_space_threshold",
            "plugins.ml_commons.max_model_on_node",
            "cluster.blocks.read_only",
            "cluster.routing.allocation.disk.watermark.flood_stage",
            "cluster.max_shards_per_node",
        ]
    );
    assert_eq!(
        subjects(&found, Level::Warning),
        [
            "plugins.ml_commons.jvm_heap_memory_threshold",
            "cluster.routing.allocation.disk.watermark.low",
            "cluster.routing.allocation.disk.watermark.high",
            "breakers of n1",
        ]
    );
    // 100 switches a limit off.
    let off = json!({"persistent": {"plugins.ml_commons.native_memory_threshold": "100"}});
    let found = judge(&capabilities(&plugins()), &answers(off, &full));
    assert!(!subjects(&found, Level::Problem).contains(&"plugins.ml_commons.native_memory_threshold"));
}

#[test]
fn without_ml_commons_nothing_is_asked_of_it() {
    let bare = json!([]);
    let mut answers = answers(json!({}), &node(&ALL));
    answers.plugins = Some(bare.clone());
    let found = judge(&capabilities(&bare), &answers);
    assert!(!fails(&found), "{found:#?}");
    assert!(!found.iter().any(|f| f.subject.starts_with("plugins.ml_commons")));
    assert!(subjects(&found, Level::Note).contains(&"opensearch-ml"));
}

#[test]
fn what_may_not_be_read_is_left_out() {
    let found = judge(&capabilities(&plugins()), &Answers::default());
    assert!(!fails(&found), "{found:#?}");
}

#[test]
fn red_and_half_upgraded_clusters_are_told() {
    let mut answers = answers(json!({}), &node(&ALL));
    answers.health = Some(json!({"status": "red", "active_shards": 4, "unassigned_shards": 1}));
    let mixed = json!([
        {"name": "n1", "component": "opensearch-ml", "version": "2.16.0.0"},
        {"name": "n2", "component": "opensearch-ml", "version": "2.19.4.0"}
    ]);
    answers.plugins = Some(mixed.clone());
    let found = judge(&capabilities(&mixed), &answers);
    assert!(subjects(&found, Level::Problem).contains(&"health"));
    assert!(subjects(&found, Level::Warning).contains(&"opensearch-ml"));
}

#[test]
fn this_machine_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let found = machine(&folder.path().join("not/there/yet"));
    for subject in ["system", "memory", "disk", "processor", "java", "mvn", "docker", "GPU driver"] {
        assert!(found.iter().any(|f| f.subject == subject && !f.value.is_empty()), "{subject}: {found:#?}");
    }
}

#[test]
fn blocks_of_the_whole_cluster_are_lifted() {
    let names = ["cluster.blocks.read_only", "cluster.blocks.read_only_allow_delete", "cluster.blocks.create_index"];
    let bare = json!([]);
    for name in names {
        let of = |value: &str| {
            let mut answers = answers(json!({"persistent": {name: value}}), &node(&ALL));
            answers.plugins = Some(bare.clone());
            judge(&capabilities(&bare), &answers)
        };
        assert!(!fails(&of("false")), "{name}");
        let found = of("true");
        assert_eq!(subjects(&found, Level::Problem), [name]);
        let changes = fix::changes(&found);
        assert_eq!(fix::body(&changes, |c| c.new.clone()), json!({"persistent": {name: null}}));
    }
}

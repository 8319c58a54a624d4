//! What a cluster says about itself, put beside what nsparse needs of it.

use serde_json::Value;

use super::rules::{self, Settings};
use super::{Finding, Level};
use crate::capabilities::Capabilities;
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::node_stats;

/// What was asked; `None` where this user may not read it, or the service does not have it.
#[derive(Debug, Default)]
pub(super) struct Answers {
    pub(super) plugins: Option<Value>,
    pub(super) settings: Option<Value>,
    pub(super) nodes: Option<Value>,
    pub(super) health: Option<Value>,
}

/// Looks at a cluster; changes nothing.
///
/// # Errors
/// If it does not answer, does not let us in, or is none that nsparse works with.
pub fn examine(cluster: &Cluster) -> Result<Vec<Finding>> {
    // Once, not patiently: a dead cluster is what the doctor is asked about.
    if let Err(error @ (Error::Unreachable { .. } | Error::Unauthorized { .. })) =
        cluster.request(Method::Get, "/", Body::None)
    {
        return Err(error);
    }
    let capabilities = cluster.capabilities()?;
    let mut refused = Vec::new();
    let mut ask = |path: &str| match cluster.get(path) {
        Ok(body) => Ok(Some(body)),
        Err(e @ (Error::Forbidden { .. } | Error::Api(_))) if !e.is_transient() => {
            refused.push((path.split('?').next().unwrap_or(path).to_owned(), e.to_string()));
            Ok(None)
        }
        Err(e) => Err(e),
    };
    let answers = Answers {
        plugins: ask("/_cat/plugins?format=json&h=name,component,version")?,
        settings: ask("/_cluster/settings?include_defaults=true&flat_settings=true")?,
        nodes: ask("/_nodes/stats/os,fs,jvm,breaker")?,
        health: ask("/_cluster/health")?,
    };
    let mut found = judge(capabilities, &answers);
    for (path, why) in refused {
        let mend = "a role with cluster_monitor sees it; the checks that need it were left out";
        found.push(Finding::ok(path, "not readable").bad(Level::Note, why, mend));
    }
    Ok(found)
}

/// The findings, from answers alone.
pub(super) fn judge(capabilities: &Capabilities, answers: &Answers) -> Vec<Finding> {
    let nodes = answers.nodes.as_ref().map(node_stats::read).unwrap_or_default();
    let mut found = vec![Finding::ok(
        "OpenSearch",
        format!("{} `{}`, {} nodes", capabilities.version, capabilities.cluster_name, nodes.len()),
    )];
    found.extend(answers.health.as_ref().map(health));
    found.extend(plugins(capabilities, answers.plugins.as_ref(), nodes.len()));
    found.extend(capabilities.features().into_iter().map(|feature| {
        let finding = Finding::ok(feature.name, if feature.usable { "yes" } else { "no" });
        if feature.usable { finding } else { finding.bad(Level::Note, feature.why, "") }
    }));
    if let Some(settings) = answers.settings.as_ref().map(Settings::read) {
        found.extend(rules::judge(capabilities, &settings, &nodes, answers.health.as_ref()));
    }
    found
}

fn health(body: &Value) -> Finding {
    let number = |key: &str| body.get(key).and_then(Value::as_u64).unwrap_or(0);
    let status = body.get("status").and_then(Value::as_str).unwrap_or("unknown");
    let (active, without) = (number("active_shards"), number("unassigned_shards"));
    let finding = Finding::ok("health", format!("{status}, {active} shards active, {without} unassigned"));
    match status {
        "green" => finding,
        "yellow" => finding.bad(
            Level::Note,
            "some replicas have no node; all documents can be searched",
            "with one node only, make indexes without replicas",
        ),
        _ => finding.bad(
            Level::Problem,
            "some primary shards are not there: searches miss documents, and indexing fails",
            "GET /_cluster/allocation/explain says why",
        ),
    }
}

fn plugins(capabilities: &Capabilities, list: Option<&Value>, nodes: usize) -> Vec<Finding> {
    let wanted = [
        ("opensearch-ml", "the cluster runs no models: documents and queries are encoded by nsparse (`--side client`)"),
        (
            "opensearch-neural-search",
            "there is no `neural_sparse`: queries become `rank_feature` clauses, with the same ranking",
        ),
        ("opensearch-security", "there are no users and no TLS: whoever reaches the port may do everything"),
    ];
    let rows = list.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    wanted
        .into_iter()
        .map(|(name, without)| {
            let mine: Vec<&Value> = rows.iter().filter(|r| r.get("component").is_some_and(|c| c == name)).collect();
            let mut versions: Vec<&str> =
                mine.iter().filter_map(|r| r.get("version").and_then(Value::as_str)).collect();
            versions.sort_unstable();
            versions.dedup();
            if mine.is_empty() {
                if let Some(service) = capabilities.managed {
                    return Finding::ok(name, format!("managed by {}", service.name()));
                }
                return Finding::ok(name, "not installed").bad(Level::Note, without, "");
            }
            let finding = Finding::ok(name, versions.join(", "));
            if mine.len() < nodes {
                let meaning = format!("only {} of {nodes} nodes have it", mine.len());
                return finding.bad(Level::Warning, meaning, "install it on all nodes");
            }
            if versions.len() > 1 {
                return finding.bad(Level::Warning, "nodes have different versions", "finish the upgrade");
            }
            finding
        })
        .collect()
}

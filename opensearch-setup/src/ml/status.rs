//! How a deployment, or an index, is doing: models, pipelines, indexes and nodes, as the cluster's statistics tell it.
//! Two looks give rates.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::lifecycle::ModelInfo;
use super::looks::Pipe;
use super::messages::{Step, explain_error};
use super::record::Deployment;
use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::index;
use crate::node_stats::{self, NodeStats};

/// One look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// When, in milliseconds since 1970.
    pub at: u64,
    /// The cluster's address.
    pub cluster_url: String,
    /// Its release; empty where this user may not ask.
    pub version: String,
    /// green, yellow or red; empty where this user may not ask.
    pub health: String,
    /// The alias and the indexes behind it, where there is one and this user may ask.
    pub alias: Option<(String, Vec<String>)>,
    /// The indexes: of every version, or the one asked for.
    pub indexes: Vec<IndexStatus>,
    /// The models that the indexes' pipelines or the deployment name.
    pub models: Vec<ModelStatus>,
    /// The indexes' pipelines.
    pub pipelines: Vec<PipelineStatus>,
    /// The cluster's nodes.
    pub nodes: Vec<NodeStatus>,
    /// What is wrong, and what could not be asked.
    pub problems: Vec<String>,
}

/// An index.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IndexStatus {
    /// Its name.
    pub name: String,
    /// Its version's number behind the alias.
    pub number: Option<u32>,
    /// Whether the alias stands for it.
    pub served: bool,
    /// Documents that a search can find; `None` where this user may not ask.
    pub documents: Option<u64>,
    /// Bytes of all copies.
    pub bytes: u64,
    /// Documents indexed since its shards were opened, and milliseconds spent on them.
    pub indexed: Counter,
    /// Queries of its shards, and milliseconds spent on them.
    pub searched: Counter,
    /// Documents that were refused.
    pub index_failed: u64,
}

/// How often something was done, and how long it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// How often.
    pub count: u64,
    /// Milliseconds in all.
    pub milliseconds: u64,
}

impl Counter {
    /// Milliseconds for one; `None` where there was none.
    pub fn each(self) -> Option<f64> {
        (self.count > 0).then(|| self.milliseconds as f64 / self.count as f64)
    }

    /// What was done since an earlier look; nothing where the counter began anew.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            count: self.count.saturating_sub(before.count),
            milliseconds: self.milliseconds.saturating_sub(before.milliseconds),
        }
    }
}

/// A model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelStatus {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// DEPLOYED, …; "missing" where the cluster has no such model, "unknown" where this user may not ask.
    pub state: String,
    /// Nodes that run it.
    pub nodes: u64,
    /// Nodes that should run it.
    pub planned: u64,
    /// Bytes of memory on one node, as ML Commons estimates it.
    pub memory: Option<u64>,
    /// Requests that the nodes still remember.
    pub requests: u64,
    /// Milliseconds of these requests: mean, p50, p90, p99, of the slowest node.
    pub latency: Option<[f64; 4]>,
}

/// A pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PipelineStatus {
    /// `ingest` or `search`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether it is there; taken for there where this user may not ask.
    pub there: bool,
    /// Documents that went through it on all nodes (ingest only).
    pub processed: Counter,
    /// Documents that failed in it.
    pub failed: u64,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Percent of the Java heap in use.
    pub heap_percent: u64,
    /// Bytes of Java heap.
    pub heap_bytes: u64,
    /// Percent of the machine's memory in use.
    pub memory_percent: u64,
    /// Percent of the machine's processors in use.
    pub cpu_percent: u64,
    /// Bytes free on its disks.
    pub disk_free: u64,
    /// Bytes of its disks.
    pub disk_bytes: u64,
}

/// Looks at every version of a deployment.
///
/// # Errors
/// If the cluster does not answer.
pub fn status_of(cluster: &Cluster, deployment: &Deployment) -> Result<Status> {
    let indexes = deployment.versions().iter().map(|v| (v.index.clone(), v.number)).collect();
    let models = deployment.versions().into_iter().flat_map(Deployment::model_ids).map(str::to_owned).collect();
    look(cluster, deployment.alias.as_deref(), indexes, models)
}

/// Looks at an index, or at those behind an alias.
///
/// # Errors
/// If there is none, or the cluster does not answer.
pub fn status_of_index(cluster: &Cluster, name: &str) -> Result<Status> {
    let there =
        cluster.find(&format!("/{name}")).map_err(|e| explain_error(Step::Index, &format!("index `{name}`"), e))?;
    let Some(there) = there.as_ref().and_then(Value::as_object) else { return Err(index::missing(cluster, name)) };
    let alias = (!there.contains_key(name)).then_some(name);
    look(cluster, alias, there.keys().map(|n| (n.clone(), None)).collect(), Vec::new())
}

fn look(
    cluster: &Cluster,
    alias_name: Option<&str>,
    indexes: Vec<(String, Option<u32>)>,
    mut models: Vec<String>,
) -> Result<Status> {
    let mut problems = Vec::new();
    let version = allowed(cluster.capabilities(), "/", &mut problems)?.map(|c| c.version.to_string());
    let behind = match alias_name {
        Some(alias) => {
            let path = format!("/_alias/{alias}");
            let found = allowed(cluster.find(&path), &path, &mut problems)?.map(Option::unwrap_or_default);
            found.map(|found| {
                let names = found.as_object().into_iter().flatten().map(|(name, _)| name.clone());
                (alias.to_owned(), names.collect::<Vec<_>>())
            })
        }
        None => None,
    };
    if let Some((alias, _)) = behind.as_ref().filter(|(_, behind)| behind.is_empty()) {
        problems.push(format!("the alias `{alias}` is not there: run `nsparse deploy` again"));
    }
    let health = ask(cluster, "/_cluster/health", &mut problems)?;
    let nodes = ask(cluster, "/_nodes/stats/jvm,os,fs,ingest", &mut problems)?;
    let mut out = Status {
        at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64),
        cluster_url: cluster.url().to_owned(),
        version: version.unwrap_or_default(),
        health: health.get("status").and_then(Value::as_str).unwrap_or_default().to_owned(),
        alias: behind,
        indexes: Vec::new(),
        models: Vec::new(),
        pipelines: Vec::new(),
        nodes: nodes_of(&nodes),
        problems,
    };
    for (name, number) in indexes {
        let served = out.alias.as_ref().is_some_and(|(_, behind)| behind.contains(&name));
        let path = format!("/{name}");
        let there = match allowed(cluster.find(&path), &path, &mut out.problems)? {
            Some(None) => {
                out.problems.push(format!("the index `{name}` is not there"));
                continue;
            }
            there => there.flatten().unwrap_or_default(),
        };
        for (kind, pipe, at) in
            [("ingest", Pipe::Ingest, "default_pipeline"), ("search", Pipe::Search, "search/default_pipeline")]
        {
            let pipeline = there.pointer(&format!("/{name}/settings/index/{at}")).and_then(Value::as_str);
            let Some(pipeline) = pipeline.filter(|p| *p != "_none") else { continue };
            if !out.pipelines.iter().any(|p| p.kind == kind && p.name == pipeline) {
                let status = pipeline_of(cluster, kind, pipe, pipeline, &nodes, &mut models, &mut out.problems)?;
                if !status.there {
                    out.problems.push(format!("the {kind} pipeline `{pipeline}` of `{name}` is not there"));
                }
                out.pipelines.push(status);
            }
        }
        let stats = ask(cluster, &format!("/{name}/_stats/docs,store,indexing,search"), &mut out.problems)?;
        let path = format!("/{name}/_count");
        let documents = allowed(index::count(cluster, &name), &path, &mut out.problems)?;
        out.indexes.push(index_of(&name, number, served, documents, &stats));
    }
    let mut seen = Vec::new();
    for id in models {
        if !seen.contains(&id) {
            out.models.push(model_of(cluster, &id, &mut out.problems)?);
            seen.push(id);
        }
    }
    Ok(out)
}

/// What a user may not ask is a problem, not the end.
fn allowed<T>(answer: Result<T>, path: &str, problems: &mut Vec<String>) -> Result<Option<T>> {
    match answer {
        Err(Error::Forbidden { .. }) => {
            problems.push(format!("this user may not ask for {path}"));
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn ask(cluster: &Cluster, path: &str, problems: &mut Vec<String>) -> Result<Value> {
    Ok(allowed(cluster.get(path), path, problems)?.unwrap_or_default())
}

fn number(value: &Value, at: &str) -> u64 {
    value.pointer(at).and_then(Value::as_u64).unwrap_or(0)
}

fn index_of(name: &str, of: Option<u32>, served: bool, documents: Option<u64>, stats: &Value) -> IndexStatus {
    let none = Value::Null;
    let stats = stats.get("indices").and_then(|i| i.get(name)).unwrap_or(&none);
    let counter = |count: &str, time: &str| Counter { count: number(stats, count), milliseconds: number(stats, time) };
    IndexStatus {
        name: name.to_owned(),
        number: of,
        served,
        documents,
        bytes: number(stats, "/total/store/size_in_bytes"),
        indexed: counter("/primaries/indexing/index_total", "/primaries/indexing/index_time_in_millis"),
        searched: counter("/total/search/query_total", "/total/search/query_time_in_millis"),
        index_failed: number(stats, "/primaries/indexing/index_failed"),
    }
}

fn pipeline_of(
    cluster: &Cluster,
    kind: &'static str,
    pipe: Pipe,
    name: &str,
    nodes: &Value,
    models: &mut Vec<String>,
    problems: &mut Vec<String>,
) -> Result<PipelineStatus> {
    let path = pipe.path(name);
    let found = allowed(cluster.find(&path), &path, problems)?;
    let there = found != Some(None);
    collect_models(found.flatten().as_ref().and_then(|b| b.get(name)).unwrap_or(&Value::Null), models);
    let mut status = PipelineStatus { kind, name: name.to_owned(), there, processed: Counter::default(), failed: 0 };
    if pipe == Pipe::Ingest {
        for node in nodes.get("nodes").and_then(Value::as_object).into_iter().flatten().map(|(_, node)| node) {
            let Some(stats) = node.pointer("/ingest/pipelines").and_then(|p| p.get(name)) else { continue };
            status.processed.count += number(stats, "/count");
            status.processed.milliseconds += number(stats, "/time_in_millis");
            status.failed += number(stats, "/failed");
        }
    }
    Ok(status)
}

/// The models that a pipeline's processors name.
fn collect_models(body: &Value, models: &mut Vec<String>) {
    match body {
        Value::Object(object) => {
            for (key, value) in object {
                match value.as_str() {
                    Some(id) if key == "model_id" || key == "default_model_id" => models.push(id.to_owned()),
                    _ => collect_models(value, models),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|v| collect_models(v, models)),
        _ => {}
    }
}

fn model_of(cluster: &Cluster, id: &str, problems: &mut Vec<String>) -> Result<ModelStatus> {
    let without = |state: &str| ModelStatus {
        id: id.to_owned(),
        name: String::new(),
        state: state.to_owned(),
        nodes: 0,
        planned: 0,
        memory: None,
        requests: 0,
        latency: None,
    };
    let path = format!("/_plugins/_ml/models/{id}");
    let found = allowed(cluster.find(&path), &path, problems);
    let body = match found.map_err(|e| explain_error(Step::Status, &format!("model {id}"), e))? {
        Some(Some(body)) => body,
        Some(None) => {
            problems.push(format!("the model {id} is not there: run `nsparse deploy` again"));
            return Ok(without("missing"));
        }
        None => return Ok(without("unknown")),
    };
    let info = ModelInfo::from_answer(&body);
    let name = body.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    match info.state.as_str() {
        "DEPLOYED" => {}
        "PARTIALLY_DEPLOYED" => {
            problems.push(format!("model `{name}` runs on {} of {} nodes only", info.nodes, info.planned));
        }
        state => problems.push(format!("model `{name}` is {state}: run `nsparse deploy` again")),
    }
    let path = format!("/_plugins/_ml/profile/models/{id}");
    let profile = allowed(cluster.find(&path), &path, problems)?.flatten().unwrap_or_default();
    let (memory, requests, latency) = profile_of(&profile, id);
    Ok(ModelStatus {
        id: id.to_owned(),
        name,
        state: info.state,
        nodes: info.nodes,
        planned: info.planned,
        memory,
        requests,
        latency,
    })
}

/// Memory, requests and latencies from `GET profile/models/{id}`.
fn profile_of(profile: &Value, id: &str) -> (Option<u64>, u64, Option<[f64; 4]>) {
    let (mut memory, mut requests, mut latency) = (None, 0, None);
    for node in profile.get("nodes").and_then(Value::as_object).into_iter().flatten().map(|(_, node)| node) {
        let Some(model) = node.pointer("/models").and_then(|m| m.get(id)) else { continue };
        memory = memory.max(model.get("memory_size_estimation_cpu").and_then(Value::as_u64));
        let Some(stats) = model.get("predict_request_stats") else { continue };
        requests += number(stats, "/count");
        let time = |key: &str| stats.get(key).and_then(Value::as_f64).unwrap_or(0.0);
        let here = [time("average"), time("p50"), time("p90"), time("p99")];
        if latency.is_none_or(|slowest: [f64; 4]| here[0] > slowest[0]) {
            latency = Some(here);
        }
    }
    (memory, requests, latency)
}

fn nodes_of(stats: &Value) -> Vec<NodeStatus> {
    let whole = |figure: Option<f64>| figure.unwrap_or(0.0) as u64;
    let status = |node: NodeStats| NodeStatus {
        name: node.name,
        heap_percent: whole(node.heap_used),
        heap_bytes: whole(node.heap),
        memory_percent: whole(node.memory_used),
        cpu_percent: whole(node.cpu_used),
        disk_free: whole(node.disk.map(|(_, free)| free)),
        disk_bytes: whole(node.disk.map(|(all, _)| all)),
    };
    node_stats::read(stats).into_iter().map(status).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_slowest_node_gives_the_latency() {
        let node = |average: f64, memory: u64| {
            json!({ "models": { "m": { "memory_size_estimation_cpu": memory, "predict_request_stats":
                { "count": 2, "average": average, "p50": 1.0, "p90": 2.0, "p99": 3.0 } } } })
        };
        let profile = json!({ "nodes": { "a": node(5.0, 10), "b": node(7.0, 9), "c": { "models": {} } } });
        assert_eq!(profile_of(&profile, "m"), (Some(10), 4, Some([7.0, 1.0, 2.0, 3.0])));
        assert_eq!(profile_of(&json!({}), "m"), (None, 0, None));
    }

    #[test]
    fn rates_come_from_two_looks_and_a_counter_that_began_anew_gives_none() {
        let before = Counter { count: 10, milliseconds: 100 };
        let after = Counter { count: 30, milliseconds: 140 };
        assert_eq!(after.since(before).each(), Some(2.0));
        assert_eq!(before.since(after).each(), None);
    }
}

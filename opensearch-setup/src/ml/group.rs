//! Model groups: ML Commons keeps every model in one, and looks models and groups up by search.

use serde_json::{Value, json};

use super::lifecycle::Model;
use super::messages::{Cause, Step, cause_of, explain_error};
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};

const GROUPS: &str = "/_plugins/_ml/model_groups/_search";

/// A group found by its name or mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundGroup {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its description.
    pub description: String,
}

/// The group with this name.
///
/// # Errors
/// If the cluster does not answer.
pub fn find(cluster: &Cluster, name: &str) -> Result<Option<FoundGroup>> {
    let query = json!({ "size": 1, "query": { "term": { "name.keyword": name } } });
    let hits = search(cluster, GROUPS, query, &format!("model group `{name}`"))?;
    Ok(hits.first().and_then(group_of))
}

/// All groups that carry the mark of a deployment, in the order of their names.
///
/// # Errors
/// If the cluster does not answer.
pub fn marked(cluster: &Cluster) -> Result<Vec<FoundGroup>> {
    let query = json!({ "size": 10_000, "query": { "match_all": {} } });
    let hits = search(cluster, GROUPS, query, "model groups")?;
    let mut found: Vec<FoundGroup> =
        hits.iter().filter_map(group_of).filter(|g| g.description.starts_with(&super::plan::mark(""))).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn group_of(hit: &Value) -> Option<FoundGroup> {
    let text = |at: &str| hit.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
    let id = hit.get("_id")?.as_str()?.to_owned();
    Some(FoundGroup { id, name: text("/_source/name"), description: text("/_source/description") })
}

/// Makes a group; gives its id.
///
/// # Errors
/// Why the cluster refuses it, explained, and the kind of cause where it is known.
pub fn register(
    cluster: &Cluster,
    name: &str,
    description: &str,
) -> std::result::Result<String, (Option<Cause>, Error)> {
    const PATH: &str = "/_plugins/_ml/model_groups/_register";
    let answer = cluster
        .post(PATH, json!({ "name": name, "description": description }))
        .map_err(|e| (cause_of(Step::Group, &e), explain_error(Step::Group, &format!("models: group `{name}`"), e)))?;
    answer.get("model_group_id").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
        let message = format!("expected a `model_group_id`, got {answer}");
        (None, Error::Unexpected { method: Method::Post.as_str(), path: PATH.to_owned(), message })
    })
}

/// Deletes an empty group; `false` where it was gone already.
///
/// # Errors
/// If it still has models, or the cluster refuses it otherwise.
pub fn delete(cluster: &Cluster, id: &str) -> Result<bool> {
    match cluster.delete(&format!("/_plugins/_ml/model_groups/{id}")) {
        Ok(answer) => Ok(answer.is_some()),
        Err(e) if cause_of(Step::Delete, &e) == Some(Cause::NotFound) => Ok(false),
        Err(e) => Err(explain_error(Step::Delete, &format!("model group {id}"), e)),
    }
}

/// A model found by what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundModel {
    /// Id and name.
    pub model: Model,
    /// Its state.
    pub state: String,
    /// Its group's id.
    pub group_id: String,
    /// `SPARSE_ENCODING`, `SPARSE_TOKENIZE` or another of ML Commons' functions.
    pub function: String,
    /// sha256 of its zip, as registered.
    pub sha256: String,
    /// Size of its zip in bytes, as registered.
    pub bytes: u64,
    /// Chunks as registered; 0 where it was registered by URL.
    pub total_chunks: u64,
    /// When it was registered, in milliseconds since 1970.
    pub created: u64,
}

/// Models of this name and function whose zip has this hash, in the order of their ids.
///
/// # Errors
/// If the cluster does not answer.
pub fn find_models(cluster: &Cluster, name: &str, function: &str, sha256: &str) -> Result<Vec<FoundModel>> {
    let query = json!({ "size": 100, "query": { "bool": {
        "filter": [
            { "term": { "model_content_hash_value": sha256 } },
            { "term": { "name.keyword": name } },
            { "term": { "algorithm": function } }
        ],
        "must_not": [{ "exists": { "field": "chunk_number" } }]
    } } });
    models(cluster, query, &format!("model `{name}`"))
}

/// All models of a group.
///
/// # Errors
/// If the cluster does not answer.
pub fn models_of(cluster: &Cluster, group_id: &str) -> Result<Vec<FoundModel>> {
    let query = json!({ "size": 10_000, "query": { "bool": {
        "filter": [{ "term": { "model_group_id": group_id } }],
        "must_not": [{ "exists": { "field": "chunk_number" } }]
    } } });
    models(cluster, query, &format!("models of group {group_id}"))
}

fn models(cluster: &Cluster, query: Value, subject: &str) -> Result<Vec<FoundModel>> {
    let mut found: Vec<FoundModel> = search(cluster, "/_plugins/_ml/models/_search", query, subject)?
        .iter()
        .filter_map(|hit| {
            let source = hit.get("_source")?;
            let text = |key: &str| source.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |key: &str| source.get(key).and_then(Value::as_u64).unwrap_or(0);
            Some(FoundModel {
                model: Model { id: hit.get("_id")?.as_str()?.to_owned(), name: text("name") },
                state: text("model_state"),
                group_id: text("model_group_id"),
                function: text("algorithm"),
                sha256: text("model_content_hash_value"),
                bytes: number("model_content_size_in_bytes"),
                total_chunks: number("total_chunks"),
                created: number("created_time"),
            })
        })
        .collect();
    found.sort_by(|a, b| a.model.id.cmp(&b.model.id));
    Ok(found)
}

/// The hits of a search in ML Commons' own indexes; none where such an index was never made.
fn search(cluster: &Cluster, path: &str, query: Value, subject: &str) -> Result<Vec<Value>> {
    match cluster.request_retrying(Method::Post, path, Body::Json(query)) {
        Ok(answer) => Ok(answer.body.pointer("/hits/hits").and_then(Value::as_array).cloned().unwrap_or_default()),
        Err(e) if e.status() == Some(404) => Ok(Vec::new()),
        Err(e) => Err(explain_error(Step::Status, subject, e)),
    }
}

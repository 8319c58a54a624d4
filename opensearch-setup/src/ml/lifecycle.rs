//! A registered model's life: deploying, asking, undeploying, deleting.

use std::collections::BTreeMap;
use std::fmt;

use nsparse_core::Cancel;
use serde_json::{Value, json};

use super::messages::{Cause, Step, cause_of, explain_error, explain_task};
use super::poll::{Poll, Seen};
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};

/// A model in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The id that the cluster gave it.
    pub id: String,
    /// Its name, for messages.
    pub name: String,
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "model `{}` (id {})", self.name, self.id)
    }
}

/// What the cluster tells about a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// REGISTERING, REGISTERED, DEPLOYING, DEPLOYED, `PARTIALLY_DEPLOYED`, UNDEPLOYED, `DEPLOY_FAILED`.
    pub state: String,
    /// The group's id; empty where it has none.
    pub group_id: String,
    /// sha256 as registered.
    pub sha256: String,
    /// Nodes that run it.
    pub nodes: u64,
    /// Nodes that should run it.
    pub planned: u64,
}

impl ModelInfo {
    /// From the body of `GET models/{id}`.
    pub fn from_answer(body: &Value) -> Self {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let count = |key: &str| body.get(key).and_then(Value::as_u64).unwrap_or(0);
        Self {
            state: text("model_state"),
            group_id: text("model_group_id"),
            sha256: text("model_content_hash_value"),
            nodes: count("current_worker_node_count"),
            planned: count("planning_worker_node_count"),
        }
    }

    /// Whether a node may hold it: it must be undeployed before it can be deleted.
    pub fn is_held(&self) -> bool {
        matches!(self.state.as_str(), "DEPLOYED" | "PARTIALLY_DEPLOYED" | "DEPLOYING" | "LOADED" | "LOADING")
    }
}

/// How a deploy ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployed {
    /// Nodes that run it.
    pub nodes: u64,
    /// Nodes that should run it.
    pub planned: u64,
    /// Why it runs on some nodes only, where that is so.
    pub partial: Option<String>,
}

/// Asks for a model.
///
/// # Errors
/// If it is not there.
pub fn info(cluster: &Cluster, model: &Model) -> Result<ModelInfo> {
    let body = cluster
        .get(&format!("/_plugins/_ml/models/{}", model.id))
        .map_err(|e| explain_error(Step::Status, &model.to_string(), e))?;
    Ok(ModelInfo::from_answer(&body))
}

/// Asks for a model; `None` where the cluster has none with that id.
///
/// # Errors
/// If the cluster does not answer.
pub fn find(cluster: &Cluster, model: &Model) -> Result<Option<ModelInfo>> {
    match cluster.get(&format!("/_plugins/_ml/models/{}", model.id)) {
        Ok(body) => Ok(Some(ModelInfo::from_answer(&body))),
        Err(e) if e.status() == Some(404) => Ok(None),
        Err(e) => Err(explain_error(Step::Status, &model.to_string(), e)),
    }
}

/// Starts a deploy; gives the id of its task.
///
/// # Errors
/// Why the cluster refuses it, explained.
pub fn start_deploy(cluster: &Cluster, model: &Model) -> Result<String> {
    let path = format!("/_plugins/_ml/models/{}/_deploy", model.id);
    let answer = cluster.post(&path, Value::Null).map_err(|e| explain_error(Step::Deploy, &model.to_string(), e))?;
    answer.get("task_id").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| Error::Unexpected {
        method: Method::Post.as_str(),
        path,
        message: format!("expected a `task_id`, got {answer}"),
    })
}

/// Waits for a task's end. `Ok(Some(reason))` where it completed with errors on some nodes.
///
/// # Errors
/// Why it failed, explained; or that it did not end in time.
pub fn wait_task(
    cluster: &Cluster,
    task: &str,
    step: Step,
    subject: &str,
    poll: &Poll,
    cancel: &Cancel,
) -> Result<Option<String>> {
    task_end(cluster, task, step, subject, poll, cancel, &mut Cause::Unknown)
}

/// As [`wait_task`]; `cause` becomes the kind of cause of a failed task.
fn task_end(
    cluster: &Cluster,
    task: &str,
    step: Step,
    subject: &str,
    poll: &Poll,
    cancel: &Cancel,
    cause: &mut Cause,
) -> Result<Option<String>> {
    poll.until(&format!("task {task} ({subject})"), cancel, || {
        let body = cluster
            .get(&format!("/_plugins/_ml/tasks/{task}"))
            .map_err(|e| explain_error(Step::Status, &format!("task {task}"), e))?;
        match body.get("state").and_then(Value::as_str).unwrap_or_default() {
            "COMPLETED" => Ok(Seen::Done(None)),
            "COMPLETED_WITH_ERROR" => Ok(Seen::Done(Some(explain_task(step, subject, &body).message))),
            state @ ("CREATED" | "RUNNING") => Ok(Seen::NotYet(state.to_owned())),
            _ => {
                let problem = explain_task(step, subject, &body);
                *cause = problem.cause;
                Err(problem.into())
            }
        }
    })
}

/// Waits until a model that a task has deployed says so itself.
///
/// # Errors
/// If it ends in another state, or does not say so in time.
pub fn wait_deployed(
    cluster: &Cluster,
    model: &Model,
    partial: Option<&str>,
    poll: &Poll,
    cancel: &Cancel,
) -> Result<Deployed> {
    poll.until(&format!("{model} to be DEPLOYED"), cancel, || {
        let info = info(cluster, model)?;
        match info.state.as_str() {
            "DEPLOYED" | "LOADED" => Ok(Seen::Done(Deployed {
                nodes: info.nodes,
                planned: info.planned,
                partial: partial.map(str::to_owned),
            })),
            "PARTIALLY_DEPLOYED" => {
                let reason = match partial {
                    Some(reason) => reason.to_owned(),
                    None => format!(
                        "{model} runs on {} of {} nodes; the logs of the others say why",
                        info.nodes, info.planned
                    ),
                };
                Ok(Seen::Done(Deployed { nodes: info.nodes, planned: info.planned, partial: Some(reason) }))
            }
            "DEPLOY_FAILED" => Err(Error::world(
                format!("Failed to deploy {model}: its state is DEPLOY_FAILED"),
                "the log of the OpenSearch node says why; deploy again after that is mended",
            )),
            _ => Ok(Seen::NotYet(info.state)),
        }
    })
}

/// Deploys a model and waits until it runs.
///
/// # Errors
/// As the single steps.
pub fn deploy(cluster: &Cluster, model: &Model, poll: &Poll, cancel: &Cancel) -> Result<Deployed> {
    let task = start_deploy(cluster, model)?;
    let partial = wait_task(cluster, &task, Step::Deploy, &model.to_string(), poll, cancel)?;
    wait_deployed(cluster, model, partial.as_deref(), poll, cancel)
}

/// As [`deploy`], with the kind of cause beside an error.
pub(super) fn deploy_or_why(
    cluster: &Cluster,
    model: &Model,
    poll: &Poll,
    cancel: &Cancel,
) -> std::result::Result<Deployed, (Cause, Error)> {
    let unknown = |error: Error| (Cause::Unknown, error);
    let task = start_deploy(cluster, model).map_err(unknown)?;
    let subject = model.to_string();
    let mut cause = Cause::Unknown;
    let partial = task_end(cluster, &task, Step::Deploy, &subject, poll, cancel, &mut cause).map_err(|e| (cause, e))?;
    wait_deployed(cluster, model, partial.as_deref(), poll, cancel).map_err(unknown)
}

/// Asks a deployed model: for each text its tokens and weights.
///
/// # Errors
/// Why the cluster refuses it, explained; or an answer of another shape.
pub fn predict(cluster: &Cluster, model: &Model, texts: &[&str]) -> Result<Vec<BTreeMap<String, f32>>> {
    let path = format!("/_plugins/_ml/models/{}/_predict", model.id);
    let answer = cluster
        .request_retrying(Method::Post, &path, Body::Json(json!({ "text_docs": texts })))
        .map_err(|e| explain_error(Step::Predict, &model.to_string(), e))?;
    let vectors: Option<Vec<BTreeMap<String, f32>>> =
        answer.body.get("inference_results").and_then(Value::as_array).and_then(|results| {
            results
                .iter()
                .map(|r| {
                    let response = r.pointer("/output/0/dataAsMap/response/0")?.as_object()?;
                    response.iter().map(|(t, w)| Some((t.clone(), w.as_f64()? as f32))).collect()
                })
                .collect()
        });
    match vectors {
        Some(vectors) if vectors.len() == texts.len() => Ok(vectors),
        _ => Err(Error::Unexpected {
            method: Method::Post.as_str(),
            path,
            message: format!("expected {} maps from token to weight", texts.len()),
        }),
    }
}

/// Takes a model from the nodes; nothing happens where none runs it.
///
/// # Errors
/// Why the cluster refuses it, explained.
pub fn undeploy(cluster: &Cluster, model: &Model) -> Result<()> {
    cluster
        .request_retrying(Method::Post, &format!("/_plugins/_ml/models/{}/_undeploy", model.id), Body::None)
        .map_err(|e| explain_error(Step::Undeploy, &model.to_string(), e))?;
    Ok(())
}

/// Deletes a model that no node runs; `false` where it was gone already.
///
/// # Errors
/// Why the cluster refuses it, explained.
pub fn delete(cluster: &Cluster, model: &Model) -> Result<bool> {
    match cluster.delete(&format!("/_plugins/_ml/models/{}", model.id)) {
        Ok(Some(answer)) => Ok(answer.get("result").and_then(Value::as_str) != Some("not_found")),
        Ok(None) => Ok(false),
        Err(e) => Err(explain_error(Step::Delete, &model.to_string(), e)),
    }
}

/// Undeploys where needed, then deletes; `false` where it was gone already. It waits for the cluster's own
/// bookkeeping, which lags behind an undeploy, and is not stopped by the user: it is what cleans up.
///
/// # Errors
/// Why the cluster refuses it, explained; or that it did not let go of the model in time.
pub fn remove(cluster: &Cluster, model: &Model, poll: &Poll) -> Result<bool> {
    let Some(info) = find(cluster, model)? else { return Ok(false) };
    if info.is_held() {
        undeploy(cluster, model)?;
    }
    poll.until(&format!("{model} to be undeployed"), &Cancel::default(), || {
        match cluster.delete(&format!("/_plugins/_ml/models/{}", model.id)) {
            Ok(answer) => Ok(Seen::Done(answer.is_some())),
            Err(e) if cause_of(Step::Delete, &e) == Some(Cause::State) => {
                undeploy(cluster, model)?;
                Ok(Seen::NotYet("still deployed".to_owned()))
            }
            Err(e) => Err(explain_error(Step::Delete, &model.to_string(), e)),
        }
    })
}

//! Models that deploys have left behind: listed with what still needs each, deleted where nothing does.
//!
//! Ours are the models in a group that carries a deployment's mark, with a function and a name that packages give them.
//! One is in use where a pipeline, an index or a deployment file names it, where a node runs it, or where it may still
//! be on its way.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::group;
use super::lifecycle::{self, Model};
use super::messages::{Step, explain_error};
use super::poll::Poll;
use super::record::Deployment;
use crate::client::Cluster;
use crate::error::{Error, Result};

/// A registration that has not ended after so many milliseconds will not.
pub(super) const STALE: u64 = 60 * 60 * 1000;

/// Milliseconds since 1970, as `created` is told.
pub(super) fn milliseconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// A model of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OurModel {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// `SPARSE_ENCODING` or `SPARSE_TOKENIZE`.
    pub function: String,
    /// sha256 of its zip.
    pub sha256: String,
    /// Size of its zip in bytes.
    pub bytes: u64,
    /// The deployment that made it.
    pub deployment: String,
    /// What needs it; nothing does where this is empty, and it can be deleted.
    pub used_by: Vec<String>,
}

/// What a prune did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PruneReport {
    /// Deleted.
    pub removed: Vec<String>,
    /// Could not be deleted, with the reason.
    pub failed: Vec<String>,
}

/// All models of ours, in the order of deployments and ids. `running` says whether a model that runs may be deleted if
/// nothing names it: applications can ask a model by its id. `now` is in milliseconds since 1970.
///
/// # Errors
/// If the cluster does not answer: what cannot be looked at counts as used by nobody's permission, so nothing is listed.
pub fn our_models(cluster: &Cluster, files: &[Deployment], running: bool, now: u64) -> Result<Vec<OurModel>> {
    let mark = super::plan::mark("");
    let references = References::ask(cluster)?;
    let mut ours = Vec::new();
    for group in group::marked(cluster)? {
        for found in group::models_of(cluster, &group.id)? {
            if !is_of_a_package(&found) {
                continue;
            }
            let id = &found.model.id;
            let mut used_by = references.to(id);
            for file in files {
                for version in file.versions().into_iter().filter(|v| v.model_ids().contains(&id.as_str())) {
                    used_by.push(format!("deployment `{}` (index `{}`)", version.name, version.index));
                }
            }
            match found.state.as_str() {
                "DEPLOYED" | "PARTIALLY_DEPLOYED" if !running => used_by.push("a node runs it".to_owned()),
                "DEPLOYING" => used_by.push("it is being deployed".to_owned()),
                "REGISTERING" if now < found.created.saturating_add(STALE) => {
                    used_by.push("its upload began less than an hour ago".to_owned());
                }
                _ => {}
            }
            ours.push(OurModel {
                id: id.clone(),
                name: found.model.name,
                state: found.state,
                function: found.function,
                sha256: found.sha256,
                bytes: found.bytes,
                deployment: group.description.strip_prefix(&mark).unwrap_or_default().to_owned(),
                used_by,
            });
        }
    }
    Ok(ours)
}

/// Deletes those that nothing needs.
///
/// # Errors
/// None for a single model: what could not be deleted is in the report.
pub fn prune(cluster: &Cluster, models: &[OurModel], poll: &Poll) -> PruneReport {
    let mut report = PruneReport::default();
    for model in models.iter().filter(|m| m.used_by.is_empty()) {
        let model = Model { id: model.id.clone(), name: model.name.clone() };
        match lifecycle::remove(cluster, &model, poll) {
            Ok(_) => report.removed.push(model.to_string()),
            Err(e) => report.failed.push(format!("{model}: {e}")),
        }
    }
    report
}

/// Whether a model is one half of a package: somebody may have put another model into our group.
fn is_of_a_package(found: &group::FoundModel) -> bool {
    match found.function.as_str() {
        "SPARSE_ENCODING" => found.model.name.ends_with("-document"),
        "SPARSE_TOKENIZE" => found.model.name.ends_with("-query"),
        _ => false,
    }
}

/// Everything in the cluster that can name a model.
pub(super) struct References {
    /// What names, in words, and its body.
    bodies: Vec<(String, Value)>,
}

impl References {
    /// Asks for pipelines and mappings.
    ///
    /// # Errors
    /// [`Error::Forbidden`] where this user may not see all of them; if the cluster does not answer.
    pub(super) fn ask(cluster: &Cluster) -> Result<Self> {
        let mut bodies = Vec::new();
        for (path, word) in [
            ("/_ingest/pipeline", "ingest pipeline"),
            ("/_search/pipeline", "search pipeline"),
            (
                "/_all/_mapping?expand_wildcards=all&filter_path=*.mappings._meta,**.model_id,**.search_model_id",
                "index",
            ),
        ] {
            // Without any the answer is 404.
            let found = cluster.find(path).map_err(|e| match e {
                Error::Forbidden { .. } => e,
                e => explain_error(Step::Status, &format!("{word}s"), e),
            })?;
            let found = found.unwrap_or_default();
            let named = found.as_object().into_iter().flatten();
            bodies.extend(named.map(|(name, body)| (format!("{word} `{name}`"), body.clone())));
        }
        Ok(Self { bodies })
    }

    pub(super) fn to(&self, id: &str) -> Vec<String> {
        self.bodies.iter().filter(|(_, body)| names(body, id)).map(|(what, _)| what.clone()).collect()
    }
}

/// Whether a string anywhere in a body is this id.
fn names(body: &Value, id: &str) -> bool {
    match body {
        Value::String(text) => text == id,
        Value::Array(values) => values.iter().any(|v| names(v, id)),
        Value::Object(object) => object.values().any(|v| names(v, id)),
        _ => false,
    }
}

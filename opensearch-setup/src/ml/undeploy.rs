//! Taking back what a deploy has made: last first, each thing only if it is still the one that was made.

use std::path::Path;

use serde_json::{Value, json};

use super::deployment::index_uuid;
use super::group;
use super::lifecycle::{self, Model};
use super::messages::{Step, explain_error};
use super::poll::Poll;
use super::record::{Deployment, Made};
use crate::client::Cluster;
use crate::error::{Error, Result};

/// What to do with the index.
#[derive(Debug, Clone, Copy, Default)]
pub struct UndeployOptions {
    /// Leave the index and its documents; only its default pipeline is taken off.
    pub keep_index: bool,
    /// Delete the index even if it has documents.
    pub delete_index: bool,
    /// How the cluster's states are waited for.
    pub poll: Poll,
}

/// What an undeploy did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UndeployReport {
    /// Taken back.
    pub removed: Vec<String>,
    /// Was gone already, or is not the thing that was made any more.
    pub gone: Vec<String>,
    /// Left on purpose, with the reason.
    pub kept: Vec<String>,
    /// Could not be taken back, with the reason.
    pub failed: Vec<String>,
    /// What is still there of what was made.
    pub left: Vec<Made>,
}

/// Takes back exactly what the deployment has made. Doing it twice, or after somebody deleted parts by hand, is
/// no error. One thing that cannot be taken back does not stop the others.
///
/// # Errors
/// Before anything is touched: if this is another cluster, or the index has documents and `options` does not say
/// what becomes of them.
pub fn undeploy(cluster: &Cluster, deployment: &Deployment, options: &UndeployOptions) -> Result<UndeployReport> {
    let root = cluster.get("/")?;
    let uuid = root.get("cluster_uuid").and_then(Value::as_str).unwrap_or_default();
    if uuid != deployment.cluster_uuid {
        return Err(Error::usage(
            format!("{} is another cluster than the one deployed to ({})", cluster.url(), deployment.cluster_url),
            "give the URL of the cluster that deployment.json names",
        ));
    }
    if !options.keep_index && !options.delete_index {
        refuse_documents(cluster, deployment)?;
    }
    let mut report = UndeployReport::default();
    for made in deployment.made.iter().rev() {
        let subject = made.to_string();
        if let (Made::Index { name, .. }, true) = (made, options.keep_index) {
            match release(cluster, name, deployment.pipeline.as_deref()) {
                Ok(()) => report.kept.push(format!("{subject}: kept with its documents, as asked")),
                Err(e) => report.failed.push(format!("default pipeline of {subject}: {e}")),
            }
            report.left.push(made.clone());
            continue;
        }
        match take_back(cluster, made, &deployment.name, &options.poll) {
            Ok(Taken::Removed) => report.removed.push(subject),
            Ok(Taken::Gone) => report.gone.push(subject),
            Ok(Taken::Kept(why)) => report.kept.push(format!("{subject}: {why}")),
            Err(e) => {
                report.failed.push(format!("{subject}: {e}"));
                report.left.push(made.clone());
            }
        }
    }
    report.left.reverse();
    Ok(report)
}

/// As [`undeploy`], for a `deployment.json`: the file is deleted when nothing of what was made is left, else it
/// keeps what is left.
///
/// # Errors
/// As [`undeploy`]; also if the file cannot be read or replaced.
pub fn undeploy_file(cluster: &Cluster, path: &Path, options: &UndeployOptions) -> Result<UndeployReport> {
    let mut deployment = Deployment::load(path)?;
    let report = undeploy(cluster, &deployment, options)?;
    if report.left.is_empty() {
        std::fs::remove_file(path).map_err(|e| nsparse_core::Error::io("delete", path, e))?;
    } else {
        deployment.made.clone_from(&report.left);
        deployment.save(path)?;
    }
    Ok(report)
}

/// How taking one thing back ended.
pub(super) enum Taken {
    Removed,
    Gone,
    Kept(String),
}

/// Takes one thing back, if it is still there and still the one that was made.
pub(super) fn take_back(cluster: &Cluster, made: &Made, deployment: &str, poll: &Poll) -> Result<Taken> {
    let removed = |yes: bool| if yes { Taken::Removed } else { Taken::Gone };
    match made {
        Made::Index { name, uuid } => {
            let path = format!("/{name}");
            let failed = |e| explain_error(Step::Delete, &format!("index `{name}`"), e);
            let Some(there) = cluster.find(&path).map_err(failed)? else { return Ok(Taken::Gone) };
            let Some(index) = there.get(name) else { return Ok(Taken::Gone) };
            let ours = if uuid.is_empty() {
                index.pointer("/mappings/_meta/nsparse_deployment") == Some(&json!(deployment))
            } else {
                index_uuid(index) == *uuid
            };
            if !ours {
                return Ok(Taken::Kept("it was made anew by somebody else".to_owned()));
            }
            Ok(removed(cluster.delete(&path).map_err(failed)?.is_some()))
        }
        Made::Pipeline { name } => {
            let path = format!("/_ingest/pipeline/{name}");
            let failed = |e| explain_error(Step::Delete, &format!("ingest pipeline `{name}`"), e);
            let Some(there) = cluster.find(&path).map_err(failed)? else { return Ok(Taken::Gone) };
            let mark = there.get(name).and_then(|p| p.get("description"));
            if mark != Some(&json!(super::plan::mark(deployment))) {
                return Ok(Taken::Kept("it was made anew by somebody else".to_owned()));
            }
            Ok(removed(cluster.delete(&path).map_err(failed)?.is_some()))
        }
        Made::Model { id, name } => {
            let model = Model { id: id.clone(), name: name.clone() };
            Ok(removed(lifecycle::remove(cluster, &model, poll)?))
        }
        Made::Running { id, name } => {
            let model = Model { id: id.clone(), name: name.clone() };
            match lifecycle::find(cluster, &model)? {
                Some(info) if info.is_held() => {
                    lifecycle::undeploy(cluster, &model)?;
                    Ok(Taken::Removed)
                }
                _ => Ok(Taken::Gone),
            }
        }
        Made::Group { id, name } => {
            // A register whose answer was lost leaves a model without bytes behind.
            for stray in group::models_of(cluster, id)?.into_iter().filter(|m| m.state == "REGISTERING") {
                lifecycle::remove(cluster, &stray.model, poll)?;
            }
            let others = group::models_of(cluster, id)?.len();
            if others > 0 {
                return Ok(Taken::Kept(format!("{others} models that nsparse did not make are in group `{name}`")));
            }
            Ok(removed(group::delete(cluster, id)?))
        }
    }
}

/// Stops before documents would be lost.
fn refuse_documents(cluster: &Cluster, deployment: &Deployment) -> Result<()> {
    for made in &deployment.made {
        let Made::Index { name, .. } = made else { continue };
        let answer = cluster
            .find(&format!("/{name}/_count"))
            .map_err(|e| explain_error(Step::Index, &format!("index `{name}`"), e))?;
        let documents = answer.and_then(|a| a.get("count").and_then(Value::as_u64)).unwrap_or(0);
        if documents > 0 {
            return Err(Error::usage(
                format!("The index `{name}` has {documents} documents; nothing was taken back"),
                "say `--delete-index` to delete them with it, or `--keep-index` to keep the index",
            ));
        }
    }
    Ok(())
}

/// Takes the default pipeline off an index that stays, so that documents can still be indexed.
fn release(cluster: &Cluster, index: &str, pipeline: Option<&str>) -> Result<()> {
    if pipeline.is_none() || cluster.find(&format!("/{index}"))?.is_none() {
        return Ok(());
    }
    cluster
        .put(&format!("/{index}/_settings"), json!({ "index.default_pipeline": null }))
        .map_err(|e| explain_error(Step::Index, &format!("index `{index}`"), e))?;
    Ok(())
}

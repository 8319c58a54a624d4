//! Taking back what a deploy has made: last first, each thing only if it is still the one that was made.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::group;
use super::lifecycle::{self, Model};
use super::looks::Pipe;
use super::messages::{Step, explain_error};
use super::plan;
use super::poll::Poll;
use super::prune::References;
use super::record::{self, Deployment, Made};
use crate::client::Cluster;
use crate::error::{Error, Result};

/// What to do with the index.
#[derive(Debug, Clone, Copy, Default)]
pub struct UndeployOptions {
    /// Leave the index and its documents; only its default pipeline is taken off.
    pub keep_index: bool,
    /// Delete the index even if it has documents.
    pub delete_index: bool,
    /// Only this version behind the alias, which must not be served; everything where `None`.
    pub version: Option<u32>,
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

/// Takes back exactly what the deployment has made, but for models that a pipeline or an index of others names by now:
/// these stay. Doing it twice, or after somebody deleted parts by hand, is no error. One thing that cannot be taken back
/// does not stop the others.
///
/// # Errors
/// Before anything is touched: if this is another cluster, or the version asked for is served, or an index has documents
/// and `options` does not say what becomes of them.
pub fn undeploy(cluster: &Cluster, deployment: &Deployment, options: &UndeployOptions) -> Result<UndeployReport> {
    deployment.check_cluster(cluster)?;
    let everything = match options.version {
        None => deployment.everything_made(),
        Some(number) => of_version(cluster, deployment, number)?,
    };
    if !options.keep_index && !options.delete_index {
        refuse_documents(cluster, &everything)?;
    }
    let hashes: Vec<String> = deployment.versions().iter().flat_map(|v| v.package.values().cloned()).collect();
    let mut report = UndeployReport::default();
    // What names a model and is ours to take back does not keep it.
    let mut ours: Vec<String> = everything.iter().map(Made::to_string).collect();
    let mut references = Looked::NotYet;
    for made in everything.iter().rev() {
        let subject = made.to_string();
        if let (Made::Index { name, .. }, true) = (made, options.keep_index) {
            match release(cluster, name, deployment.of_index(name).unwrap_or(deployment)) {
                Ok(()) => report.kept.push(format!("{subject}: kept with its documents, as asked")),
                Err(e) => report.failed.push(format!("default pipeline of {subject}: {e}")),
            }
            report.left.push(made.clone());
            continue;
        }
        let taken = match use_of(cluster, made, &ours, &mut references) {
            Ok(Some(why)) => {
                Ok(Taken::Kept(format!("{why}; once nothing uses it, `nsparse prune-models --running` finds it")))
            }
            Ok(None) => take_back(cluster, made, &deployment.name, &hashes, &options.poll),
            Err(e) => Err(e),
        };
        match taken {
            Ok(Taken::Removed) => report.removed.push(subject),
            Ok(Taken::Gone) => report.gone.push(subject),
            Ok(Taken::Kept(why)) => {
                // Somebody else's by now, under the same name.
                ours.retain(|name| *name != subject);
                report.kept.push(format!("{subject}: {why}"));
            }
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
    Deployment::load(path)?;
    let _working = record::claim_work(path)?;
    let (_held, mut deployment) = record::claim_existing(path)?;
    let report = undeploy(cluster, &deployment, options)?;
    let rest = match options.version.and_then(|number| deployment.numbered(number)).map(|v| v.index.clone()) {
        Some(index) if report.left.is_empty() => deployment.without(&index),
        Some(index) => {
            let version = deployment.of_index(&index).cloned();
            version.map(|version| {
                let worked_on = deployment.index.clone();
                deployment.with(Deployment { made: report.left.clone(), ..version }).working_on(&worked_on)
            })
        }
        None if report.left.is_empty() => None,
        None => {
            deployment.others.iter_mut().for_each(|other| other.made.clear());
            deployment.made.clone_from(&report.left);
            Some(deployment)
        }
    };
    match rest {
        Some(rest) => rest.save(path)?,
        None => std::fs::remove_file(path).map_err(|e| nsparse_core::Error::io("delete", path, e))?,
    }
    Ok(report)
}

/// What this version has made and no other version uses.
fn of_version(cluster: &Cluster, deployment: &Deployment, number: u32) -> Result<Vec<Made>> {
    let (Some(version), Some(alias)) = (deployment.numbered(number), &deployment.alias) else {
        let there: Vec<String> = deployment.versions().iter().filter_map(|v| v.number).map(|n| n.to_string()).collect();
        let there = if there.is_empty() { "no versions".to_owned() } else { format!("versions {}", there.join(", ")) };
        return Err(Error::usage(
            format!("The deployment `{}` has no version {number}: it has {there}", deployment.name),
            "give one of these, or leave `--version` out to take back everything",
        ));
    };
    if super::alias::behind(cluster, alias)?.contains_key(&version.index) {
        return Err(Error::usage(
            format!(
                "Version {number} (`{}`) is what the alias `{alias}` serves; nothing was taken back",
                version.index
            ),
            "serve another version first: `nsparse switch --to N` or `nsparse rollback`",
        ));
    }
    let others: Vec<&Deployment> = deployment.versions().into_iter().filter(|v| v.index != version.index).collect();
    let is_used = |made: &Made| {
        others.iter().any(|o| o.made.contains(made))
            || match made {
                Made::Model { id, .. } | Made::Running { id, .. } => {
                    others.iter().any(|o| o.model_ids().contains(&id.as_str()))
                }
                Made::Group { .. } => !others.is_empty(),
                _ => false,
            }
    };
    Ok(version.made.iter().filter(|made| !is_used(made)).cloned().collect())
}

/// What is known of who uses models.
enum Looked {
    NotYet,
    /// This user may not see all that could.
    Forbidden,
    At(References),
}

/// Why a model that would be taken back or stopped has to stay: something else in the cluster names it, or may. Looked up
/// once, at the first model, when indexes and pipelines of ours are gone.
fn use_of(cluster: &Cluster, made: &Made, ours: &[String], looked: &mut Looked) -> Result<Option<String>> {
    let (Made::Model { id, .. } | Made::Running { id, .. }) = made else { return Ok(None) };
    if matches!(looked, Looked::NotYet) {
        *looked = match References::ask(cluster) {
            Ok(references) => Looked::At(references),
            Err(Error::Forbidden { .. }) => Looked::Forbidden,
            Err(e) => return Err(e),
        };
    }
    Ok(match looked {
        Looked::At(references) => {
            references.to(id).into_iter().find(|user| !ours.contains(user)).map(|user| format!("{user} uses it"))
        }
        Looked::NotYet | Looked::Forbidden => {
            Some("this user may not see whether another pipeline or index uses it".to_owned())
        }
    })
}

/// Before a run's nonce, in place of an index's uuid while that is not known.
pub(super) const BY_RUN: &str = "run ";

/// How taking one thing back ended.
pub(super) enum Taken {
    Removed,
    Gone,
    Kept(String),
}

/// Takes one thing back, if it is still there and still the one that was made.
/// Of a group also the models without bytes that a register whose answer was lost has left, if they are of `hashes`.
pub(super) fn take_back(
    cluster: &Cluster,
    made: &Made,
    deployment: &str,
    hashes: &[String],
    poll: &Poll,
) -> Result<Taken> {
    let removed = |yes: bool| if yes { Taken::Removed } else { Taken::Gone };
    match made {
        Made::Index { name, uuid } => {
            let path = format!("/{name}");
            let failed = |e| explain_error(Step::Delete, &format!("index `{name}`"), e);
            let Some(there) = cluster.find(&path).map_err(failed)? else { return Ok(Taken::Gone) };
            let Some(index) = there.get(name) else { return Ok(Taken::Gone) };
            let ours = match uuid.strip_prefix(BY_RUN) {
                Some(run) => plan::meta(index, plan::RUN) == Some(run),
                None if uuid.is_empty() => plan::is_marked(index, deployment),
                None => plan::index_uuid(index) == *uuid,
            };
            if !ours {
                return Ok(Taken::Kept("it was made anew by somebody else".to_owned()));
            }
            Ok(removed(cluster.delete(&path).map_err(failed)?.is_some()))
        }
        Made::Pipeline { name } | Made::SearchPipeline { name } => {
            let pipe = if matches!(made, Made::Pipeline { .. }) { Pipe::Ingest } else { Pipe::Search };
            let path = pipe.path(name);
            let failed = |e| explain_error(Step::Delete, &made.to_string(), e);
            let Some(there) = cluster.find(&path).map_err(failed)? else { return Ok(Taken::Gone) };
            let mark = there.get(name).and_then(|p| p.get("description"));
            if mark != Some(&json!(plan::mark(deployment))) {
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
            let is_stray = |m: &group::FoundModel| m.state == "REGISTERING" && hashes.contains(&m.sha256);
            for stray in group::models_of(cluster, id)?.into_iter().filter(is_stray) {
                lifecycle::remove(cluster, &stray.model, poll)?;
            }
            let others = group::models_of(cluster, id)?.len();
            if others > 0 {
                return Ok(Taken::Kept(format!("{others} models that stay are in group `{name}`")));
            }
            Ok(removed(group::delete(cluster, id)?))
        }
    }
}

/// Stops before documents would be lost.
fn refuse_documents(cluster: &Cluster, everything: &[Made]) -> Result<()> {
    for made in everything {
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

/// Takes the default pipelines off an index that stays, so that documents can still be indexed and searched; and its marks
/// of a package and its models, so that another may be deployed with it.
fn release(cluster: &Cluster, index: &str, version: &Deployment) -> Result<()> {
    let mut settings = Map::new();
    if version.pipeline.is_some() {
        settings.insert("index.default_pipeline".to_owned(), Value::Null);
    }
    if version.search_pipeline.is_some() {
        settings.insert("index.search.default_pipeline".to_owned(), Value::Null);
    }
    let failed = |e| explain_error(Step::Index, &format!("index `{index}`"), e);
    let Some(there) = cluster.find(&format!("/{index}")).map_err(failed)? else { return Ok(()) };
    let meta = there.get(index).and_then(|i| i.pointer("/mappings/_meta")).and_then(Value::as_object);
    let is_of_a_package = |m: &Map<String, Value>| [plan::VERSION, plan::MODELS].iter().any(|key| m.contains_key(*key));
    if let Some(mut meta) = meta.cloned().filter(is_of_a_package) {
        meta.remove(plan::VERSION);
        meta.remove(plan::MODELS);
        cluster.put(&format!("/{index}/_mapping"), json!({ "_meta": meta })).map_err(failed)?;
    }
    if !settings.is_empty() {
        cluster.put(&format!("/{index}/_settings"), Value::Object(settings)).map_err(failed)?;
    }
    Ok(())
}

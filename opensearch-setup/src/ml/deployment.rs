//! From a package to a searchable index: group, models, pipelines, index, alias, and `deployment.json`, which
//! every later command reads. What a failed run has made is taken back in reverse order.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nsparse_core::files::sha256_bytes;
use nsparse_core::{Cancel, Progress};

use super::alias::{self, VersionIndex};
use super::apply::Run;
use super::options::{DeployOptions, has_batches, has_default_models, has_pipelines_by_alias};
use super::package::PackageFiles;
use super::record::{self, Deployment, Made, Side};
use super::uploads::Uploads;
use super::versions;
use crate::capabilities::Capabilities;
use crate::client::Cluster;
use crate::error::{Error, Result};

/// What plan and apply begin with.
pub(super) struct Prepared {
    pub(super) package: PackageFiles,
    /// With the names of this version.
    pub(super) options: DeployOptions,
    pub(super) side: Side,
    pub(super) capabilities: Capabilities,
    pub(super) notes: Vec<String>,
    pub(super) cluster_uuid: String,
    /// Where `deployment.json` lies.
    pub(super) path: PathBuf,
    /// The file as it is.
    pub(super) previous: Option<Deployment>,
    /// What an earlier run for the same version has made.
    pub(super) carried: Vec<Made>,
    /// The version's number, behind an alias.
    pub(super) number: Option<u32>,
    /// What tells this package and way of indexing from others.
    pub(super) key: String,
}

/// Reads the package, asks the cluster what it can do, and finds out which version this is. Nothing is changed.
pub(super) fn prepare(cluster: &Cluster, package_dir: &Path, options: &DeployOptions) -> Result<Prepared> {
    let package = PackageFiles::open(package_dir)?;
    let capabilities = cluster.capabilities()?.clone();
    let mut notes = Vec::new();
    let side = resolve(options, &capabilities, &mut notes)?;
    if let (Side::Cluster, Some(segments)) = (side, package.segments.filter(|s| s.max > 1)) {
        notes.push(format!(
            "the cluster's encoder reads the first window of a document alone, where nsparse reads up to {}: send long \
             documents with `nsparse ingest`, or deploy with `--side query`",
            segments.max
        ));
    }
    if options.chunk_bytes == 0 || options.chunk_bytes > super::MAX_CHUNK_BYTES {
        return Err(Error::usage(
            format!("A chunk of {} bytes is not possible", options.chunk_bytes),
            format!("ML Commons takes 1 to {} bytes", super::MAX_CHUNK_BYTES),
        ));
    }
    if let (Side::Cluster, Some(pruning), false) = (side, options.indexing.pruning, capabilities.pruning) {
        return Err(Error::usage(
            format!("The cluster prunes vectors from OpenSearch 2.19 on, and this is {}", capabilities.version),
            format!(
                "deploy with `--side query`: `nsparse ingest` then encodes and prunes ({pruning}); or leave --prune out"
            ),
        ));
    }
    if let (Side::Cluster, Some(size), false) = (side, options.indexing.batch_size, has_batches(&capabilities)) {
        return Err(Error::usage(
            format!(
                "The cluster's pipeline takes a batch size from OpenSearch 2.16 on, and this is {}",
                capabilities.version
            ),
            format!("leave `--batch-size {size}` out: documents are then encoded one by one"),
        ));
    }
    let is_named = has_default_models(&capabilities) && side != Side::Client && options.alias.is_some();
    if is_named && !has_pipelines_by_alias(capabilities.version) {
        notes.push(format!(
            "OpenSearch {} gives searches by an alias no default pipeline (from 2.14): applications name \
             `?search_pipeline=` or `model_id`, which each version has of its own",
            capabilities.version
        ));
    }
    let cluster_uuid = cluster.uuid()?;
    let path = file_of(package_dir, options);
    let previous = if path.is_file() { Some(Deployment::load(&path)?) } else { None };
    if let Some(old) = &previous {
        check_file(&path, old, options, &cluster_uuid)?;
    }
    let is_same = |old: &&Deployment| {
        old.package == package.hashes()
            && old.template == package.template
            && old.side == side
            && old.fields == options.fields
            && old.indexing.holds_as(&options.indexing)
    };
    let key = versions::key(&package, side, &options.fields, &options.indexing);
    let (options, carried, number) = if let Some(alias) = &options.alias {
        let there = alias::version_indexes(cluster, alias)?;
        // Deleted, and made anew by others for another package.
        let is_lost =
            |number: u32| there.iter().any(|v| v.number == number && v.key.as_ref().is_some_and(|k| *k != key));
        let known = previous.as_ref().and_then(|p| p.versions().into_iter().find(is_same));
        let known = known.filter(|v| !v.number.is_some_and(is_lost));
        let number = known.and_then(|v| v.number);
        let number = number.unwrap_or_else(|| next_number(&there, options, &key, previous.as_ref()));
        (options.version(alias, number), known.map(|v| v.made.clone()).unwrap_or_default(), Some(number))
    } else {
        if let Some(old) = previous.as_ref().filter(|old| !is_same(old) || old.index != options.index) {
            return Err(another_version(&path, old, options, &package, side));
        }
        (options.clone(), previous.as_ref().map(|p| p.made.clone()).unwrap_or_default(), None)
    };
    Ok(Prepared { package, options, side, capabilities, notes, cluster_uuid, path, previous, carried, number, key })
}

/// What tells this run from every other.
fn nonce() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let mut hash = sha256_bytes(format!("{now} {} {:?}", std::process::id(), std::thread::current().id()).as_bytes());
    hash.truncate(16);
    hash
}

/// Where `deployment.json` lies.
fn file_of(package_dir: &Path, options: &DeployOptions) -> PathBuf {
    options.file.clone().unwrap_or_else(|| package_dir.join("deployment.json"))
}

/// A version that is not in the file: one that a killed run has begun, else a new number.
fn next_number(there: &[VersionIndex], options: &DeployOptions, key: &str, previous: Option<&Deployment>) -> u32 {
    let begun =
        there.iter().find(|v| v.deployment.as_deref() == Some(options.name.as_str()) && v.key.as_deref() == Some(key));
    if let Some(begun) = begun {
        return begun.number;
    }
    let in_file = previous.map(Deployment::versions).unwrap_or_default().into_iter().filter_map(|v| v.number).max();
    let in_cluster = there.last().map(|v| v.number);
    in_file.max(in_cluster).unwrap_or(0) + 1
}

/// Deploys a package; a second time it finds what is there and says so.
///
/// # Errors
/// The first thing that fails; everything made so far is taken back, and what could not be is named. Only of an upload
/// that was cut off the model and its group stay, and the next run sends the rest.
pub fn deploy(
    cluster: &Cluster,
    package_dir: &Path,
    options: &DeployOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Deployment> {
    let _working = record::claim_work(&file_of(package_dir, options))?;
    let prepared = prepare(cluster, package_dir, options)?;
    let Prepared { package, options, side, capabilities, path, .. } = &prepared;
    let mut run = Run {
        cluster,
        options,
        cancel,
        progress,
        carried: &prepared.carried,
        kept: Vec::new(),
        made: Vec::new(),
        notes: prepared.notes.clone(),
        uploads: Uploads::open(path, &prepared.cluster_uuid),
        cut: None,
        hashes: package.hashes().into_values().collect(),
        nonce: nonce(),
    };
    let done = run.everything(package, *side, &prepared.key).and_then(|parts| {
        let made = run.all_made()?;
        let version = Deployment {
            name: options.name.clone(),
            cluster_url: cluster.urls().collect::<Vec<_>>().join(","),
            cluster_uuid: prepared.cluster_uuid.clone(),
            version: capabilities.version.to_string(),
            side: *side,
            group_id: parts.group_id,
            document_model: parts.document,
            query_model: parts.query,
            pipeline: parts.pipeline,
            search_pipeline: parts.search_pipeline,
            index: options.index.clone(),
            alias: options.alias.clone(),
            number: prepared.number,
            fields: options.fields.clone(),
            indexing: options.indexing.clone(),
            template: package.template.clone(),
            vocabulary_size: package.vocabulary_size(),
            package: package.hashes(),
            made,
            notes: run.notes.clone(),
            others: Vec::new(),
            history: Vec::new(),
        };
        let _held = record::claim_to_write(path, &options.poll)?;
        let previous = if path.is_file() { Some(Deployment::load(path)?) } else { None };
        // Somebody may have switched or gone back meanwhile.
        let behind = match &options.alias {
            Some(alias) if previous != prepared.previous => alias::behind(cluster, alias)?,
            _ => parts.behind,
        };
        let mut deployment = match previous.filter(|_| options.alias.is_some()) {
            Some(previous) => previous.with(version),
            None => version,
        };
        deployment.note_served(&behind);
        deployment.save(path)?;
        Ok(deployment)
    });
    match done {
        Ok(deployment) => {
            run.uploads.forget();
            Ok(deployment)
        }
        Err(error) => Err(run.undo(error)),
    }
}

/// Chooses the side, or says why the one asked for is not possible.
fn resolve(options: &DeployOptions, capabilities: &Capabilities, notes: &mut Vec<String>) -> Result<Side> {
    let (side, is_nested) = (options.side, options.fields.segments.is_some());
    let missing: Vec<&str> = [
        ("opensearch-ml (ML Commons)", capabilities.ml_commons),
        ("opensearch-neural-search", capabilities.neural_search),
    ]
    .into_iter()
    .filter(|(_, there)| !there)
    .map(|(name, _)| name)
    .collect();
    match side {
        Side::Client => Ok(Side::Client),
        // What is there would be passed over in silence, and applications would have to encode queries themselves.
        _ if !capabilities.plugins_known && capabilities.managed.is_none() => Err(Error::usage(
            "This user may not list the cluster's plugins, so it is not known whether it can run models",
            "give the user `cluster:monitor/state` and `cluster:monitor/nodes/info`; or, where documents and queries are to \
             be encoded by nsparse, deploy with `--side client`",
        )),
        Side::Cluster if is_nested => Err(Error::usage(
            "The cluster's encoder makes one vector a document, not one a segment",
            "deploy nested segments with `--side query` or `client`: documents are then encoded by `nsparse ingest`",
        )),
        Side::Auto if missing.is_empty() && is_nested => {
            notes.push(
                "documents are encoded by `nsparse ingest`, since the cluster's encoder makes no segments".to_owned(),
            );
            Ok(Side::Query)
        }
        Side::Auto if missing.is_empty() => Ok(Side::Cluster),
        Side::Auto if capabilities.managed.is_some() => {
            notes.extend(capabilities.features().into_iter().take(1).map(|models| models.why));
            Ok(Side::Client)
        }
        Side::Auto => {
            notes.push(format!(
                "this cluster (OpenSearch {}) lacks {}: documents and queries are encoded by nsparse, and searched \
                 with rank_feature clauses; the ranking is the same",
                capabilities.version,
                missing.join(" and ")
            ));
            Ok(Side::Client)
        }
        Side::Cluster | Side::Query if missing.is_empty() => Ok(side),
        Side::Cluster | Side::Query => Err(Error::world(
            format!(
                "This cluster (OpenSearch {}) cannot run models: it lacks {}",
                capabilities.version,
                missing.join(" and ")
            ),
            "deploy with `--side client` (or `auto`): documents and queries are then encoded by nsparse",
        )),
    }
}

/// Refuses a file that is about another deployment.
fn check_file(path: &Path, old: &Deployment, options: &DeployOptions, uuid: &str) -> Result<()> {
    let differs = if old.cluster_uuid != uuid {
        Some(format!("describes a deployment in another cluster ({})", old.cluster_url))
    } else if old.alias != options.alias {
        Some(match &old.alias {
            Some(alias) => format!("describes versions behind the alias `{alias}`"),
            None => format!("describes a deployment with the index `{}` and no alias", old.index),
        })
    } else if old.name != options.name {
        Some(format!("describes the deployment `{}`", old.name))
    } else {
        None
    };
    let Some(what) = differs else { return Ok(()) };
    Err(Error::usage(
        format!("`{}` {what}", path.display()),
        "undeploy it first, or give this deployment a file of its own (`--deployment FILE`)",
    ))
}

/// Why a plain deployment cannot take the place of the one in the file.
fn another_version(
    path: &Path,
    old: &Deployment,
    options: &DeployOptions,
    package: &PackageFiles,
    side: Side,
) -> Error {
    let what = if old.package != package.hashes() || old.template != package.template {
        "describes a deployment of another package".to_owned()
    } else if old.side != side {
        format!("describes a deployment with `--side {}`", old.side)
    } else if !old.indexing.holds_as(&options.indexing) {
        "describes a deployment with other vectors, pruned or left out of `_source`".to_owned()
    } else {
        format!("describes a deployment with the index `{}` and other names", old.index)
    };
    Error::usage(
        format!("`{}` {what}", path.display()),
        format!(
            "undeploy it first, or give this deployment a file and an index of its own; to keep an old version serving \
             while a new one is filled, deploy behind an alias: `--alias {}-live`",
            options.index
        ),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_not_known_is_not_taken_for_missing() {
        let root = json!({ "version": { "distribution": "opensearch", "number": "2.16.0" } });
        let known = Capabilities::from_answers("u", &root, &json!([]), None).unwrap();
        let unknown = Capabilities { plugins_known: false, ..known.clone() };
        let of = |side, capabilities: &Capabilities| {
            let mut notes = Vec::new();
            let found = resolve(&DeployOptions { side, ..DeployOptions::new("a") }, capabilities, &mut notes);
            found.map(|side| (side, notes.len())).map_err(|e| e.to_string())
        };
        assert_eq!(of(Side::Auto, &known), Ok((Side::Client, 1)));
        for side in [Side::Auto, Side::Cluster, Side::Query] {
            let refused = of(side, &unknown).unwrap_err();
            assert!(refused.contains("may not list the cluster's plugins"), "{refused}");
        }
        assert_eq!(of(Side::Client, &unknown), Ok((Side::Client, 0)));
    }
}

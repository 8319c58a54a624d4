//! Serving another version: the alias goes to it in one step, once it has been looked at; and back.

use std::path::Path;

use nsparse_core::Cancel;
use nsparse_core::lock::FileLock;
use serde::Serialize;

use super::alias::{self, Behind};
use super::lifecycle;
use super::messages::{Step, explain_error};
use super::poll::Poll;
use super::record::{self, Deployment};
use super::smoke::{Asked, smoke, text_fields};
use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::index;
use crate::ingest::loading::MARK;

/// How to switch.
#[derive(Debug, Clone, Default)]
pub struct SwitchOptions {
    /// The version to serve; the one that the file is about, or else the newest, where `None`.
    pub to: Option<u32>,
    /// How many documents the new index must have; as many as the one served where `None`.
    pub documents: Option<u64>,
    /// Queries of the operator's own that must find something.
    pub queries: Vec<String>,
    /// Go back even if the smoke test fails (rollback only).
    pub force: bool,
    /// How the cluster's states are waited for.
    pub poll: Poll,
}

/// What a switch did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwitchReport {
    /// The alias.
    pub alias: String,
    /// What it stood for.
    pub from: Vec<String>,
    /// What it stands for.
    pub to: Vec<String>,
    /// Documents in what was served.
    pub from_documents: Option<u64>,
    /// Documents in what is served now.
    pub to_documents: u64,
    /// The smoke test's queries.
    pub asked: Vec<Asked>,
    /// What a person should know: that nothing could be asked.
    pub notes: Vec<String>,
    /// Whether anything changed: `false` where the version was served already.
    pub changed: bool,
}

/// Serves another version, once its count is what is expected and the smoke test has found something; then asks through
/// the alias too, and goes back if that fails. A second time nothing changes.
///
/// # Errors
/// If the version is not ready (nothing is changed then), the alias has been changed meanwhile, or the cluster fails.
pub fn switch_file(cluster: &Cluster, path: &Path, options: &SwitchOptions, cancel: &Cancel) -> Result<SwitchReport> {
    let (_held, mut file) = open(cluster, path)?;
    let name = alias_of(&file)?.to_owned();
    let behind = alias::behind(cluster, &name)?;
    file.note_served(&behind);
    let version = target(&file, options.to, &behind)?;
    if behind.len() == 1 && behind.contains_key(&version.index) {
        return already(cluster, file, &name, &version, &behind, path);
    }
    check_loaded(cluster, &version.index)?;
    index::refresh(cluster, &version.index).map_err(|e| look(&version.index, e))?;
    let to_documents = count(cluster, &version.index)?;
    let from_documents = behind.keys().map(|index| count(cluster, index)).sum::<Result<u64>>()?;
    check_count(&version.index, to_documents, from_documents, &behind, options.documents)?;
    ready(cluster, &version, &options.poll, cancel)?;
    let asked = smoke(cluster, &version.index, &version, &options.queries)?;
    let notes = if asked.is_empty() { vec![not_asked(&version)?] } else { Vec::new() };
    cancel.check()?;
    alias::point(cluster, &name, &behind, std::slice::from_ref(&version.index))?;
    let now = alias::behind(cluster, &name)?;
    if let Err(error) = smoke(cluster, &name, &version, &options.queries) {
        let old: Vec<String> = behind.keys().cloned().collect();
        alias::point(cluster, &name, &now, &old)?;
        return Err(Error::world(
            format!("{error}; the alias `{name}` stands for what it stood for before"),
            "the index answered by its own name, but not by the alias: look at the alias with `nsparse status`",
        ));
    }
    file.note_served(&now);
    file.working_on(&version.index).save(path)?;
    Ok(SwitchReport {
        alias: name,
        from: behind.into_keys().collect(),
        to: now.into_keys().collect(),
        from_documents: Some(from_documents),
        to_documents,
        asked,
        notes,
        changed: true,
    })
}

/// Serves what was served before. A second time goes one further back; where nothing is left, nothing changes.
///
/// # Errors
/// If nothing was served before, what was is gone or fails the smoke test, or the cluster fails.
pub fn rollback_file(cluster: &Cluster, path: &Path, options: &SwitchOptions, cancel: &Cancel) -> Result<SwitchReport> {
    let (_held, mut file) = open(cluster, path)?;
    let name = alias_of(&file)?.to_owned();
    let behind = alias::behind(cluster, &name)?;
    let indexes: Vec<&String> = behind.keys().collect();
    let is_newest = file.history.last().is_some_and(|s| s.indexes.iter().eq(indexes.iter().copied()));
    if !is_newest && file.history.iter().any(|s| s.indexes.iter().eq(indexes.iter().copied())) {
        // A rollback that was stopped before it could write the file.
        file.note_served(&behind);
        let index = behind.keys().next().cloned().unwrap_or_default();
        let version = file.of_index(&index).cloned().unwrap_or_else(|| file.clone());
        return already(cluster, file.working_on(&index), &name, &version, &behind, path);
    }
    let Some(before) = file.served_before(&behind).cloned() else {
        return Err(Error::usage(
            format!("Nothing was served behind the alias `{name}` before {}", listed(&behind)),
            "a rollback needs an earlier `nsparse switch`; `nsparse switch --to N` serves any version",
        ));
    };
    let mut to_documents = 0;
    let (mut asked, mut notes) = (Vec::new(), Vec::new());
    for index in &before.indexes {
        let documents = count(cluster, index)?;
        to_documents += documents;
        let Some(version) = file.of_index(index) else { continue };
        ready(cluster, version, &options.poll, cancel)?;
        match smoke(cluster, index, version, &options.queries) {
            Ok(found) => {
                // It was served before, so it is served again.
                if found.is_empty() && documents > 0 {
                    notes.push(nothing_to_ask(version));
                }
                asked.extend(found);
            }
            Err(error) if options.force => tracing::warn!(%error, "going back all the same"),
            Err(error) => {
                return Err(Error::Failed {
                    fault: error.fault(),
                    message: format!("{error}; {} is still served", listed(&behind)),
                    hint: Some("mend it, or go back all the same with `--force`".to_owned()),
                });
            }
        }
    }
    cancel.check()?;
    alias::point(cluster, &name, &behind, &before.indexes)?;
    let now = alias::behind(cluster, &name)?;
    file.note_served(&now);
    let index = before.indexes.first().cloned().unwrap_or_default();
    file.working_on(&index).save(path)?;
    Ok(SwitchReport {
        alias: name,
        from: behind.into_keys().collect(),
        to: now.into_keys().collect(),
        from_documents: None,
        to_documents,
        asked,
        notes,
        changed: true,
    })
}

/// Nothing to be done in the cluster; the file may lag behind it.
fn already(
    cluster: &Cluster,
    file: Deployment,
    name: &str,
    version: &Deployment,
    behind: &Behind,
    path: &Path,
) -> Result<SwitchReport> {
    file.working_on(&version.index).save(path)?;
    let names: Vec<String> = behind.keys().cloned().collect();
    Ok(SwitchReport {
        alias: name.to_owned(),
        from: names.clone(),
        to_documents: count(cluster, name)?,
        to: names,
        from_documents: None,
        asked: Vec::new(),
        notes: Vec::new(),
        changed: false,
    })
}

/// The file, claimed, if it is about this cluster.
fn open(cluster: &Cluster, path: &Path) -> Result<(FileLock, Deployment)> {
    let (held, file) = record::claim_existing(path)?;
    file.check_cluster(cluster)?;
    Ok((held, file))
}

fn alias_of(file: &Deployment) -> Result<&str> {
    file.alias.as_deref().ok_or_else(|| {
        Error::usage(
            format!(
                "The deployment `{}` has the index `{}` and no alias, so there is nothing to switch",
                file.name, file.index
            ),
            "deploy behind an alias: `nsparse deploy PACKAGE --alias NAME`",
        )
    })
}

/// The version that is to be served.
fn target(file: &Deployment, to: Option<u32>, behind: &Behind) -> Result<Deployment> {
    let versions = file.versions();
    let found = match to {
        Some(number) => file.numbered(number),
        None if behind.contains_key(&file.index) => versions.last().copied(),
        None => Some(file),
    };
    let numbers: Vec<String> = versions.iter().filter_map(|v| v.number).map(|n| n.to_string()).collect();
    found.cloned().ok_or_else(|| {
        Error::usage(
            format!("The deployment `{}` has no version {}", file.name, to.unwrap_or_default()),
            format!("it has versions {}", numbers.join(", ")),
        )
    })
}

/// Refuses an index whose ingest has not ended: its copies and its refreshes are still switched off.
fn check_loaded(cluster: &Cluster, index: &str) -> Result<()> {
    let there = cluster.get(&format!("/{index}")).map_err(|e| look(index, e))?;
    let mark = there.get(index).and_then(|i| i.pointer("/mappings/_meta")?.get(MARK));
    match mark {
        None | Some(serde_json::Value::Null) => Ok(()),
        Some(_) => Err(Error::usage(
            format!("An ingest into `{index}` has not ended; the alias stays as it is"),
            "run the same `nsparse ingest` again: it sends what is missing and restores the index's settings",
        )),
    }
}

fn check_count(index: &str, has: u64, served: u64, behind: &Behind, expected: Option<u64>) -> Result<()> {
    if has == 0 {
        return Err(Error::usage(
            format!("`{index}` has no documents; the alias stays as it is"),
            "fill it first: `nsparse ingest --deployment FILE …`",
        ));
    }
    match expected {
        Some(expected) if expected != has => Err(Error::usage(
            format!("`{index}` has {has} documents, not the {expected} expected; the alias stays as it is"),
            "go on with the ingest, or give the number that is right",
        )),
        None if has != served && !behind.is_empty() => Err(Error::usage(
            format!(
                "`{index}` has {has} documents and {}, which is served, has {served}; the alias stays as it is",
                listed(behind)
            ),
            format!("go on with the ingest; or, if {has} is right, say so: `--documents {has}`"),
        )),
        _ => Ok(()),
    }
}

/// Refuses what nothing could be asked of where the operator can give queries; where not, a note.
fn not_asked(version: &Deployment) -> Result<String> {
    let note = nothing_to_ask(version);
    if version.query_model.is_none() {
        return Ok(note);
    }
    Err(Error::usage(
        format!("{note}; the alias stays as it is"),
        "give a query that has to find something: `nsparse switch --query TEXT`",
    ))
}

fn nothing_to_ask(version: &Deployment) -> String {
    let fields: Vec<String> = text_fields(version).iter().map(|name| format!("`{name}`")).collect();
    let vector = if version.query_model.is_some() { "" } else { "a vector in `_source` or " };
    format!(
        "Nothing could be asked of `{}`: no document looked at has {vector}text in {}",
        version.index,
        fields.join(", ")
    )
}

/// Sees to it that the models of a version run.
fn ready(cluster: &Cluster, version: &Deployment, poll: &Poll, cancel: &Cancel) -> Result<()> {
    for entry in [&version.query_model, &version.document_model].into_iter().flatten() {
        let model = entry.model();
        let info = lifecycle::info(cluster, &model)?;
        if info.state != "DEPLOYED" && info.state != "PARTIALLY_DEPLOYED" {
            lifecycle::deploy(cluster, &model, poll, cancel)?;
        }
    }
    Ok(())
}

fn count(cluster: &Cluster, index: &str) -> Result<u64> {
    index::count(cluster, index).map_err(|e| look(index, e))
}

fn look(index: &str, error: Error) -> Error {
    explain_error(Step::Index, &format!("index `{index}`"), error)
}

/// Names for a message.
fn listed(behind: &Behind) -> String {
    let names: Vec<String> = behind.keys().map(|n| format!("`{n}`")).collect();
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

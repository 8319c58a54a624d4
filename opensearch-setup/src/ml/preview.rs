//! What a deploy would do, found out with the looks that the deploy itself takes. Nothing is changed.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::alias;
use super::deployment::{Prepared, prepare};
use super::looks::{self, Group, IndexLook, ModelLook, Pipe, PipeLook};
use super::options::{DeployOptions, has_default_models};
use super::package::ModelFile;
use super::record::{Made, Side};
use super::{plan, register};
use crate::client::Cluster;
use crate::error::Result;

/// What would happen to a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is not there and would be made.
    Create,
    /// It is there and would be changed.
    Change,
    /// It would be left alone.
    Keep,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Change => "change",
            Self::Keep => "keep",
        })
    }
}

/// One thing of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Planned {
    /// What would happen to it.
    pub action: Action,
    /// What it is: "model group", "model", "ingest pipeline", "search pipeline", "index", "alias", "file".
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What it holds, or what would change.
    pub detail: String,
}

/// What a deploy would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The cluster's address.
    pub cluster_url: String,
    /// The cluster's release.
    pub version: String,
    /// Where documents and queries would be encoded.
    pub side: Side,
    /// The version's number behind the alias.
    pub number: Option<u32>,
    /// In the order in which it would be done.
    pub items: Vec<Planned>,
    /// What a person should know.
    pub notes: Vec<String>,
    /// Where `deployment.json` lies or would be written.
    pub file: PathBuf,
}

impl Plan {
    /// Whether a deploy would leave the cluster as it is.
    pub fn changes_nothing(&self) -> bool {
        self.items.iter().all(|item| item.action == Action::Keep)
    }

    fn add(&mut self, action: Action, kind: &'static str, name: &str, detail: impl Into<String>) {
        self.items.push(Planned { action, kind, name: name.to_owned(), detail: detail.into() });
    }
}

/// A model's id in a plan, before it has one.
const NEW: &str = "(new)";

/// What [`super::deploy`] would do with the same arguments.
///
/// # Errors
/// What deploy would refuse before it changes anything, and if the cluster does not answer.
pub fn plan_of(cluster: &Cluster, package_dir: &Path, options: &DeployOptions) -> Result<Plan> {
    let prepared = prepare(cluster, package_dir, options)?;
    let Prepared { package, options, side, capabilities, carried, .. } = &prepared;
    let was_made = |made: &Made| carried.contains(made);
    let mut plan = Plan {
        cluster_url: cluster.url().to_owned(),
        version: capabilities.version.to_string(),
        side: *side,
        number: prepared.number,
        items: Vec::new(),
        notes: prepared.notes.clone(),
        file: prepared.path.clone(),
    };
    let behind = options.alias.as_deref().map(|a| alias::behind(cluster, a)).transpose()?;
    let (mut ingest, mut search) = (None, None);
    if *side != Side::Client {
        let group = looks::group(cluster, options)?;
        match &group {
            Some(group) if group.ours => plan.add(Action::Keep, "model group", &options.group, ""),
            Some(_) => plan.add(Action::Keep, "model group", &options.group, "made by others"),
            None => plan.add(Action::Create, "model group", &options.group, ""),
        }
        let query_id = model(&mut plan, cluster, &package.query, group.as_ref(), options)?;
        if *side == Side::Cluster {
            let document_id = model(&mut plan, cluster, &package.document, group.as_ref(), options)?;
            let body =
                plan::pipeline(&options.name, &package.template, &options.fields, &options.indexing, &document_id);
            ingest = Some((options.pipeline.clone(), body));
        }
        if has_default_models(capabilities) {
            search = Some((options.search_pipeline(), plan::search_pipeline(&options.name, &query_id)));
        }
    }
    let name = |pipeline: &Option<(String, serde_json::Value)>| pipeline.as_ref().map(|(name, _)| name.clone());
    match looks::index(cluster, options, &prepared.key, name(&ingest).as_deref(), name(&search).as_deref(), was_made)? {
        IndexLook::Absent => {
            let copies = format!("shards {}, replicas {}", options.shards, options.replicas);
            plan.add(Action::Create, "index", &options.index, copies);
        }
        IndexLook::There { changes, notes, .. } => {
            plan.notes.extend(notes);
            let action = if changes.is_empty() { Action::Keep } else { Action::Change };
            let changes: Vec<String> = changes.iter().map(|(key, value)| format!("{key} becomes {value}")).collect();
            plan.add(action, "index", &options.index, changes.join(", "));
        }
    }
    for (pipe, wanted) in [(Pipe::Ingest, &ingest), (Pipe::Search, &search)] {
        if let Some((name, body)) = wanted {
            pipeline(&mut plan, cluster, pipe, name, body, was_made)?;
        }
    }
    if let (Some(alias), Some(behind)) = (&options.alias, behind) {
        let now: Vec<&str> = behind.keys().map(String::as_str).collect();
        if now.is_empty() {
            plan.add(Action::Create, "alias", alias, format!("stands for {}", options.index));
        } else if behind.contains_key(&options.index) {
            plan.add(Action::Keep, "alias", alias, format!("stands for {}", options.index));
        } else {
            plan.add(Action::Keep, "alias", alias, format!("stays on {} until `nsparse switch`", now.join(", ")));
        }
    }
    Ok(plan)
}

/// The model's id, or what stands for it before it has one.
fn model(
    plan: &mut Plan,
    cluster: &Cluster,
    file: &ModelFile,
    group: Option<&Group>,
    options: &DeployOptions,
) -> Result<String> {
    let content = format!("sha256 {}…, {} bytes", &file.sha256[..file.sha256.len().min(12)], file.bytes);
    Ok(match looks::model(cluster, file, group)? {
        ModelLook::There { found, .. } if found.state == "DEPLOYED" => {
            plan.add(Action::Keep, "model", file.name(), format!("{content}, id {}", found.model.id));
            found.model.id
        }
        ModelLook::There { found, .. } => {
            let detail = format!("{content}, id {}: {}, would be deployed", found.model.id, found.state);
            plan.add(Action::Change, "model", file.name(), detail);
            found.model.id
        }
        ModelLook::Begun(begun) => {
            let detail = format!("{content}, id {}: its upload was begun and would be ended", begun.model.id);
            plan.add(Action::Change, "model", file.name(), detail);
            begun.model.id
        }
        ModelLook::Absent => {
            let how = match &options.url {
                Some(url) => format!("fetched by the cluster from {url}"),
                None => format!("chunks {}", register::chunk_count(file.bytes, options.chunk_bytes)),
            };
            plan.add(Action::Create, "model", file.name(), format!("{content}, {how}"));
            NEW.to_owned()
        }
    })
}

fn pipeline(
    plan: &mut Plan,
    cluster: &Cluster,
    pipe: Pipe,
    name: &str,
    body: &serde_json::Value,
    was_made: impl Fn(&Made) -> bool,
) -> Result<()> {
    let (action, detail) = match looks::pipeline(cluster, pipe, name, body, was_made(&pipe.made(name)))? {
        PipeLook::Absent => (Action::Create, ""),
        PipeLook::Same { .. } => (Action::Keep, ""),
        PipeLook::Differs => (Action::Change, "its model or template"),
    };
    plan.add(action, pipe.word(), name, detail);
    Ok(())
}

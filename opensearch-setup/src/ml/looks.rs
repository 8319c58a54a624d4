//! What the cluster has of each thing that a deployment wants: the one place where plan and apply look.

use serde_json::{Map, Value, json};

use super::group::{self, FoundModel};
use super::messages::{Step, explain_error};
use super::options::DeployOptions;
use super::package::ModelFile;
use super::plan;
use super::record::Made;
use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::ingest::loading::MARK;
use crate::segments::VectorLayout;

/// A group that is there.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) id: String,
    /// Whether a deployment of this name has made it.
    pub(super) ours: bool,
}

pub(super) fn group(cluster: &Cluster, options: &DeployOptions) -> Result<Option<Group>> {
    let found = group::find(cluster, &options.group)?;
    Ok(found.map(|f| Group { ours: f.description == plan::mark(&options.name), id: f.id }))
}

/// A model of a package.
#[derive(Debug)]
pub(super) enum ModelLook {
    Absent,
    /// Registered by an earlier run, but its bytes are not all there.
    Begun(FoundModel),
    There {
        found: FoundModel,
        /// Whether it is in this deployment's own group.
        ours: bool,
    },
}

/// States in which a model can be used or deployed, the best first.
const USABLE: [&str; 5] = ["DEPLOYED", "PARTIALLY_DEPLOYED", "DEPLOYING", "REGISTERED", "UNDEPLOYED"];
const FAILED: &str = "DEPLOY_FAILED";

pub(super) fn model(cluster: &Cluster, file: &ModelFile, group: Option<&Group>) -> Result<ModelLook> {
    let ours = |f: &FoundModel| group.is_some_and(|g| g.ours && g.id == f.group_id);
    let mut found = group::find_models(cluster, file.name(), file.function(), &file.sha256)?;
    let begun = found.iter().find(|f| f.state == "REGISTERING" && ours(f)).cloned();
    // One of ours whose deploy failed is deployed again, others' are left alone.
    found.retain(|f| USABLE.contains(&f.state.as_str()) || f.state == FAILED && ours(f));
    // Those that may run first, among them those in the group, then those that run already.
    found.sort_by_key(|f| {
        let rank = USABLE.iter().position(|s| *s == f.state).unwrap_or(USABLE.len());
        (f.state == FAILED, group.is_none_or(|g| g.id != f.group_id), rank)
    });
    Ok(match (found.into_iter().next(), begun) {
        (Some(found), _) => ModelLook::There { ours: ours(&found), found },
        (None, Some(begun)) => ModelLook::Begun(begun),
        (None, None) => ModelLook::Absent,
    })
}

/// The two kinds of pipelines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pipe {
    Ingest,
    Search,
}

impl Pipe {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Ingest => "ingest pipeline",
            Self::Search => "search pipeline",
        }
    }

    pub(super) fn path(self, name: &str) -> String {
        match self {
            Self::Ingest => format!("/_ingest/pipeline/{name}"),
            Self::Search => format!("/_search/pipeline/{name}"),
        }
    }

    pub(super) fn made(self, name: &str) -> Made {
        let name = name.to_owned();
        match self {
            Self::Ingest => Made::Pipeline { name },
            Self::Search => Made::SearchPipeline { name },
        }
    }
}

/// A pipeline.
#[derive(Debug)]
pub(super) enum PipeLook {
    Absent,
    Same {
        ours: bool,
    },
    /// Ours, with another body.
    Differs,
}

/// Refuses a pipeline of this name that others have made.
pub(super) fn pipeline(cluster: &Cluster, pipe: Pipe, name: &str, body: &Value, was_made: bool) -> Result<PipeLook> {
    let subject = format!("{} `{name}`", pipe.word());
    let there = cluster.find(&pipe.path(name)).map_err(|e| explain_error(Step::Pipeline, &subject, e))?;
    let Some(there) = there.as_ref().and_then(|t| t.get(name)) else { return Ok(PipeLook::Absent) };
    let ours = there.get("description") == body.get("description");
    if there == body {
        return Ok(PipeLook::Same { ours });
    }
    if !ours && !was_made {
        let flag = if pipe == Pipe::Ingest { "`--pipeline`" } else { "`--index` or `--alias`" };
        return Err(Error::usage(
            format!("The cluster has another {} `{name}` already", pipe.word()),
            format!("choose another name with {flag}, or delete that one"),
        ));
    }
    Ok(PipeLook::Differs)
}

/// An index.
#[derive(Debug)]
pub(super) enum IndexLook {
    Absent,
    There {
        made: Made,
        ours: bool,
        /// Settings to be changed, with their names as `_settings` takes them.
        changes: Map<String, Value>,
        /// What was asked for and is left as it is: shards and replicas.
        notes: Vec<String>,
    },
}

/// Refuses an index of this name that others have made and that does not fit, or was made for another package.
pub(super) fn index(
    cluster: &Cluster,
    options: &DeployOptions,
    version: &str,
    ingest: Option<&str>,
    search: Option<&str>,
    was_made: impl Fn(&Made) -> bool,
) -> Result<IndexLook> {
    let (name, fields) = (&options.index, &options.fields);
    let failed = |e| explain_error(Step::Index, &format!("index `{name}`"), e);
    let Some(there) = cluster.find(&format!("/{name}")).map_err(failed)? else { return Ok(IndexLook::Absent) };
    let Some(there) = there.get(name) else {
        return Err(Error::usage(
            format!("`{name}` is an alias in this cluster, not an index"),
            format!("deploy versions behind it with `--alias {name}`, or choose another name with `--index`"),
        ));
    };
    let mapping = there.pointer(&format!("/mappings/properties/{}", pointer(&fields.vector)));
    let wanted = fields.segments.clone().map_or(VectorLayout::One, VectorLayout::Nested);
    if VectorLayout::of(mapping) != wanted {
        let kind = if fields.segments.is_some() { "nested field with segments" } else { "rank_features field" };
        return Err(Error::usage(
            format!("The index `{name}` is there already, but its field `{}` is no {kind}", fields.vector),
            "choose another name with `--index`, or delete that index",
        ));
    }
    let made = Made::Index { name: name.clone(), uuid: plan::index_uuid(there) };
    let marked = plan::is_marked(there, &options.name);
    if marked && plan::meta(there, plan::VERSION).is_some_and(|is_of| is_of != version) {
        return Err(if options.alias.is_some() {
            Error::world(
                format!("Another deploy has made the index `{name}` meanwhile, for another package"),
                "run the same command again: this package then becomes the next version",
            )
        } else {
            Error::usage(
                format!("The index `{name}` was made for another package, or with other vectors"),
                "choose another name with `--index`, delete that index, or deploy versions behind an alias (`--alias`)",
            )
        });
    }
    let ours = marked || was_made(&made);
    let setting = |at: &str| there.pointer(&format!("/settings/index/{at}")).and_then(Value::as_str);
    let mut changes = Map::new();
    let now = setting("default_pipeline");
    if now != ingest {
        if !ours {
            return Err(Error::usage(
                format!(
                    "The index `{name}` is there already with the default pipeline {}, not {}",
                    now.unwrap_or("(none)"),
                    ingest.unwrap_or("(none)")
                ),
                "choose another name with `--index`, or delete that index",
            ));
        }
        changes.insert("index.default_pipeline".to_owned(), json!(ingest));
    }
    // Searches of an index that others have made stay as they are.
    if ours && setting("search/default_pipeline") != search {
        changes.insert("index.search.default_pipeline".to_owned(), json!(search));
    }
    Ok(IndexLook::There { made, ours: marked, changes, notes: copies(there, options) })
}

/// In what shards and replicas of an index that is there differ from those asked for. An ingest that has not ended has
/// switched replicas off for a while, and where the cluster chooses their number nobody else does.
fn copies(there: &Value, options: &DeployOptions) -> Vec<String> {
    let name = &options.index;
    let setting = |at: &str| there.pointer(&format!("/settings/index/{at}")).and_then(Value::as_str);
    let number = |at: &str| setting(at).and_then(|n| n.parse::<u32>().ok());
    let mut notes = Vec::new();
    if let Some(shards) = number("number_of_shards").filter(|n| *n != options.shards) {
        notes.push(format!(
            "index `{name}` keeps its number of shards, {shards}, not {}: it cannot be changed; a new index can have another",
            options.shards
        ));
    }
    let is_loading = there.pointer("/mappings/_meta").and_then(|meta| meta.get(MARK)).is_some_and(|m| !m.is_null());
    let is_automatic = setting("auto_expand_replicas").is_some_and(|to| to != "false");
    let replicas = number("number_of_replicas").filter(|n| *n != options.replicas && !is_loading && !is_automatic);
    if let Some(replicas) = replicas {
        notes.push(format!(
            "index `{name}` keeps its number of replicas, {replicas}, not {0}: change it with PUT /{name}/_settings \
             {{\"index.number_of_replicas\": {0}}}",
            options.replicas
        ));
    }
    notes
}

/// A field name as a part of a JSON pointer.
fn pointer(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

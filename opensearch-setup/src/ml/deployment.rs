//! From a package to a searchable index: group, models, ingest pipeline, index, and `deployment.json`, which
//! every later command reads. What a failed run has made is taken back in reverse order.

use std::path::{Path, PathBuf};

use nsparse_core::{Cancel, DocumentTemplate, Progress};
use serde_json::{Value, json};

use super::lifecycle::{self, Model};
use super::messages::{Step, explain_error};
use super::package::{ModelFile, PackageFiles};
use super::plan::{self, Fields};
use super::poll::Poll;
use super::record::{Deployment, Made, ModelEntry, Side};
use super::undeploy::take_back;
use super::{group, register};
use crate::capabilities::Capabilities;
use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::segments::VectorLayout;

/// How to deploy.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// The deployment's name; it marks what was made.
    pub name: String,
    /// The index's name.
    pub index: String,
    /// The ingest pipeline's name.
    pub pipeline: String,
    /// The model group's name.
    pub group: String,
    /// Shards of the index.
    pub shards: u32,
    /// Copies of each shard.
    pub replicas: u32,
    /// Names of the index's fields.
    pub fields: Fields,
    /// Where documents and queries are encoded.
    pub side: Side,
    /// Where `deployment.json` is written; in the package's folder where `None`.
    pub file: Option<PathBuf>,
    /// How the cluster's states are waited for.
    pub poll: Poll,
    /// Bytes of one chunk, at most [`super::MAX_CHUNK_BYTES`].
    pub chunk_bytes: u64,
}

impl DeployOptions {
    /// Index, pipeline and group named after the deployment; one shard, no replica.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            index: name.to_owned(),
            pipeline: format!("{name}-ingest"),
            group: format!("nsparse-{name}"),
            shards: 1,
            replicas: 0,
            fields: Fields::default(),
            side: Side::Auto,
            file: None,
            poll: Poll::default(),
            chunk_bytes: super::MAX_CHUNK_BYTES,
        }
    }
}

/// Deploys a package; a second time it finds what is there and says so.
///
/// # Errors
/// The first thing that fails; everything made so far is taken back, and what could not be is named.
pub fn deploy(
    cluster: &Cluster,
    package_dir: &Path,
    options: &DeployOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Deployment> {
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
    let uuid = cluster_uuid(cluster)?;
    let path = options.file.clone().unwrap_or_else(|| package_dir.join("deployment.json"));
    let previous = previous(&path, options, &package, side, &uuid)?;
    let mut run = Run {
        cluster,
        options,
        cancel,
        progress,
        carried: previous.map(|p| p.made).unwrap_or_default(),
        kept: Vec::new(),
        made: Vec::new(),
        notes,
    };
    let done = run.everything(&package, side).and_then(|parts| {
        let deployment = Deployment {
            name: options.name.clone(),
            cluster_url: cluster.url().to_owned(),
            cluster_uuid: uuid,
            version: capabilities.version.to_string(),
            side,
            group_id: parts.group_id,
            document_model: parts.document,
            query_model: parts.query,
            pipeline: parts.pipeline,
            index: options.index.clone(),
            fields: options.fields.clone(),
            template: package.template.clone(),
            vocabulary_size: package.vocabulary_size(),
            package: package.hashes(),
            made: run.kept.iter().chain(&run.made).cloned().collect(),
            notes: run.notes.clone(),
        };
        deployment.save(&path)?;
        Ok(deployment)
    });
    done.map_err(|error| run.undo(error))
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

fn cluster_uuid(cluster: &Cluster) -> Result<String> {
    Ok(cluster.get("/")?.get("cluster_uuid").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// An earlier deployment in the same file: the same one, or a reason to stop.
fn previous(
    path: &Path,
    options: &DeployOptions,
    package: &PackageFiles,
    side: Side,
    uuid: &str,
) -> Result<Option<Deployment>> {
    if !path.is_file() {
        return Ok(None);
    }
    let old = Deployment::load(path)?;
    let differs = if old.name != options.name {
        Some(format!("describes the deployment `{}`", old.name))
    } else if old.cluster_uuid != uuid {
        Some(format!("describes a deployment in another cluster ({})", old.cluster_url))
    } else if old.package != package.hashes() {
        Some("describes a deployment of another package".to_owned())
    } else if old.side != side {
        Some(format!("describes a deployment with `--side {}`", old.side))
    } else if old.index != options.index || old.fields != options.fields {
        Some(format!("describes a deployment with the index `{}` and other names", old.index))
    } else {
        None
    };
    match differs {
        None => Ok(Some(old)),
        Some(what) => Err(Error::usage(
            format!("`{}` {what}", path.display()),
            "undeploy it first, or give this deployment a file of its own",
        )),
    }
}

/// What stands in the cluster at the end.
struct Parts {
    group_id: Option<String>,
    document: Option<ModelEntry>,
    query: Option<ModelEntry>,
    pipeline: Option<String>,
}

/// One run of deploy.
struct Run<'a> {
    cluster: &'a Cluster,
    options: &'a DeployOptions,
    cancel: &'a Cancel,
    progress: &'a dyn Progress,
    /// What the earlier deployment of the same name has made.
    carried: Vec<Made>,
    /// What was found and is ours from earlier.
    kept: Vec<Made>,
    /// What this run has made.
    made: Vec<Made>,
    notes: Vec<String>,
}

/// The group that this run works with.
struct Group {
    id: String,
    ours: bool,
}

impl Run<'_> {
    fn everything(&mut self, package: &PackageFiles, side: Side) -> Result<Parts> {
        let mut parts = Parts { group_id: None, document: None, query: None, pipeline: None };
        if side != Side::Client {
            let group = self.group()?;
            // The query model first: it is small, needs no libtorch, and shows early whether models can run.
            parts.query = Some(self.model(&package.query, &group)?);
            if side == Side::Cluster {
                let document = self.model(&package.document, &group)?;
                parts.pipeline = Some(self.pipeline(&package.template, &document.id)?);
                parts.document = Some(document);
            }
            parts.group_id = Some(group.id);
        }
        self.index(parts.pipeline.as_deref())?;
        self.cancel.check()?;
        Ok(parts)
    }

    /// Whether an earlier run of this deployment has made it.
    fn was_made(&self, made: &Made) -> bool {
        self.carried.contains(made)
    }

    fn found(&mut self, made: Made, ours: bool) {
        self.notes.push(format!("{made} was there already and is used as it is"));
        if ours || self.was_made(&made) {
            self.kept.push(made);
        }
    }

    fn group(&mut self) -> Result<Group> {
        let name = &self.options.group;
        let mark = plan::mark(&self.options.name);
        if let Some(found) = group::find(self.cluster, name)? {
            let ours = found.description == mark;
            let made = Made::Group { id: found.id.clone(), name: name.clone() };
            self.found(made, ours);
            return Ok(Group { id: found.id, ours });
        }
        let id = match group::register(self.cluster, name, &mark) {
            Ok(id) => id,
            Err(error) => {
                // It may have arrived, with only its answer lost.
                if let Ok(Some(found)) = group::find(self.cluster, name)
                    && found.description == mark
                {
                    self.made.push(Made::Group { id: found.id, name: name.clone() });
                }
                return Err(error);
            }
        };
        self.made.push(Made::Group { id: id.clone(), name: name.clone() });
        Ok(Group { id, ours: true })
    }

    fn model(&mut self, file: &ModelFile, group: &Group) -> Result<ModelEntry> {
        self.cancel.check()?;
        let poll = &self.options.poll;
        let entry = |model: &Model| ModelEntry {
            id: model.id.clone(),
            name: model.name.clone(),
            sha256: file.sha256.clone(),
            bytes: file.bytes,
        };
        let usable = ["DEPLOYED", "PARTIALLY_DEPLOYED", "DEPLOYING", "REGISTERED", "UNDEPLOYED"];
        let mut found = group::find_models(self.cluster, file.name(), file.function(), &file.sha256)?;
        found.retain(|f| usable.contains(&f.state.as_str()));
        // Our own first, then those that run already.
        found.sort_by_key(|f| {
            let rank = usable.iter().position(|s| *s == f.state).unwrap_or(usable.len());
            (f.group_id != group.id, rank)
        });
        if let Some(found) = found.into_iter().next() {
            let model = found.model;
            let ours = group.ours && found.group_id == group.id;
            self.found(Made::Model { id: model.id.clone(), name: model.name.clone() }, ours);
            let running = Made::Running { id: model.id.clone(), name: model.name.clone() };
            if self.was_made(&running) {
                self.kept.push(running.clone());
            }
            if found.state != "DEPLOYED" {
                if !ours && !self.was_made(&running) {
                    self.made.push(running);
                }
                self.run(&model)?;
            }
            return Ok(entry(&model));
        }
        let chunks = register::chunk_count(file.bytes, self.options.chunk_bytes);
        let body = register::register_body(&file.body, chunks, Some(&group.id));
        let model = register::register_meta(self.cluster, &body)?;
        self.made.push(Made::Model { id: model.id.clone(), name: model.name.clone() });
        register::upload(self.cluster, &model, file, self.options.chunk_bytes, self.cancel, self.progress)?;
        register::wait_registered(self.cluster, &model, &file.sha256, poll, self.cancel)?;
        self.run(&model)?;
        Ok(entry(&model))
    }

    /// Deploys a registered model.
    fn run(&mut self, model: &Model) -> Result<()> {
        let task = self.progress.start(&format!("Deploying {}", model.name), 0);
        let deployed = lifecycle::deploy(self.cluster, model, &self.options.poll, self.cancel)?;
        if let Some(partial) = deployed.partial {
            self.notes.push(partial);
        }
        drop(task);
        Ok(())
    }

    fn pipeline(&mut self, template: &DocumentTemplate, model_id: &str) -> Result<String> {
        self.cancel.check()?;
        let name = &self.options.pipeline;
        let path = format!("/_ingest/pipeline/{name}");
        let subject = format!("ingest pipeline `{name}`");
        let body = plan::pipeline(&self.options.name, template, &self.options.fields, model_id);
        let made = Made::Pipeline { name: name.clone() };
        let there = self.cluster.find(&path).map_err(|e| explain_error(Step::Pipeline, &subject, e))?;
        if let Some(there) = there.as_ref().and_then(|t| t.get(name)) {
            let ours = there.get("description") == body.get("description");
            if *there == body {
                self.found(made, ours);
                return Ok(name.clone());
            }
            if !ours && !self.was_made(&made) {
                return Err(Error::usage(
                    format!("The cluster has another ingest pipeline `{name}` already"),
                    "choose another name with `--pipeline`, or delete that one",
                ));
            }
            self.cluster.put(&path, body).map_err(|e| explain_error(Step::Pipeline, &subject, e))?;
            self.notes.push(format!("{subject} was there already and was renewed"));
            self.kept.push(made);
            return Ok(name.clone());
        }
        // Noted first: a PUT whose answer is lost may have arrived.
        self.made.push(made);
        self.cluster.put(&path, body).map_err(|e| explain_error(Step::Pipeline, &subject, e))?;
        Ok(name.clone())
    }

    fn index(&mut self, pipeline: Option<&str>) -> Result<()> {
        self.cancel.check()?;
        let options = self.options;
        let name = &options.index;
        let path = format!("/{name}");
        let subject = format!("index `{name}`");
        let failed = |e| explain_error(Step::Index, &subject, e);
        if let Some(there) = self.cluster.find(&path).map_err(failed)? {
            let Some(there) = there.get(name) else {
                return Err(Error::usage(
                    format!("`{name}` is an alias in this cluster, not an index"),
                    "choose another name with `--index`",
                ));
            };
            let fields = &options.fields;
            let mapping = there.pointer(&format!("/mappings/properties/{}", pointer(&fields.vector)));
            let wanted = fields.segments.clone().map_or(VectorLayout::One, VectorLayout::Nested);
            if VectorLayout::of(mapping) != wanted {
                let kind = if fields.segments.is_some() { "nested field with segments" } else { "rank_features field" };
                return Err(Error::usage(
                    format!("The index `{name}` is there already, but its field `{}` is no {kind}", fields.vector),
                    "choose another name with `--index`, or delete that index",
                ));
            }
            let ours = there.pointer("/mappings/_meta/nsparse_deployment") == Some(&json!(options.name));
            let made = Made::Index { name: name.clone(), uuid: index_uuid(there) };
            let default = there.pointer("/settings/index/default_pipeline").and_then(Value::as_str);
            if default != pipeline {
                if !ours && !self.was_made(&made) {
                    return Err(Error::usage(
                        format!(
                            "The index `{name}` is there already with the default pipeline {}, not {}",
                            default.unwrap_or("(none)"),
                            pipeline.unwrap_or("(none)")
                        ),
                        "choose another name with `--index`, or delete that index",
                    ));
                }
                self.cluster
                    .put(&format!("{path}/_settings"), json!({ "index.default_pipeline": pipeline }))
                    .map_err(|e| explain_error(Step::Index, &subject, e))?;
            }
            self.found(made, ours);
            return Ok(());
        }
        let body = plan::index(&options.name, options.shards, options.replicas, &options.fields, pipeline);
        // Sent once: a second try of one that arrived would find the index there.
        self.made.push(Made::Index { name: name.clone(), uuid: String::new() });
        self.cluster.request(crate::client::Method::Put, &path, crate::client::Body::Json(body)).map_err(failed)?;
        let there = self.cluster.get(&path).map_err(failed)?;
        let uuid = there.get(name).map(index_uuid).unwrap_or_default();
        self.made.pop();
        self.made.push(Made::Index { name: name.clone(), uuid });
        Ok(())
    }

    /// Takes back what this run has made, last first; the error then also names what could not be taken back.
    fn undo(&self, error: Error) -> Error {
        let mut left = Vec::new();
        for made in self.made.iter().rev() {
            match take_back(self.cluster, made, &self.options.name, &self.options.poll) {
                Ok(_) => tracing::info!(%made, "taken back"),
                Err(e) => left.push(format!("{made} ({e})")),
            }
        }
        if left.is_empty() {
            return error;
        }
        Error::Failed {
            fault: error.fault(),
            message: format!("{error}; and these could not be taken back: {}", left.join("; ")),
            hint: error.hint(),
        }
    }
}

/// The uuid in an answer to `GET /{index}`.
pub(super) fn index_uuid(index: &Value) -> String {
    index.pointer("/settings/index/uuid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A field name as a part of a JSON pointer.
fn pointer(field: &str) -> String {
    field.replace('~', "~0").replace('/', "~1")
}

//! Making what the cluster lacks of a deployment, in an order that can be taken back from its end. What is there is
//! used; what a run that was killed has begun is gone on with.

use nsparse_core::{Cancel, DocumentTemplate, Progress};
use serde_json::Value;

use super::alias::{self, Behind};
use super::lifecycle::{self, Model};
use super::looks::{self, Group, ModelLook, Pipe, PipeLook};
use super::messages::{Cause, Step, explain_error};
use super::options::{DeployOptions, has_default_models};
use super::package::{ModelFile, PackageFiles};
use super::plan;
use super::prune::{References, STALE, milliseconds_now};
use super::record::{self, Made, ModelEntry, Side};
use super::undeploy::take_back;
use super::uploads::Uploads;
use super::{group, register};
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::index;

/// What stands in the cluster at the end.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) group_id: Option<String>,
    pub(super) document: Option<ModelEntry>,
    pub(super) query: Option<ModelEntry>,
    pub(super) pipeline: Option<String>,
    pub(super) search_pipeline: Option<String>,
    /// What the alias stands for, where there is one.
    pub(super) behind: Behind,
}

/// One run of deploy.
pub(super) struct Run<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) options: &'a DeployOptions,
    pub(super) cancel: &'a Cancel,
    pub(super) progress: &'a dyn Progress,
    /// What the earlier deployment of the same name has made.
    pub(super) carried: &'a [Made],
    /// What was found and is ours from earlier.
    pub(super) kept: Vec<Made>,
    /// What this run has made.
    pub(super) made: Vec<Made>,
    pub(super) notes: Vec<String>,
    pub(super) uploads: Uploads,
    /// An upload that was cut and will be gone on with: its model and group stay.
    pub(super) cut: Option<String>,
    /// sha256 of the package's zips.
    pub(super) hashes: Vec<String>,
    /// What tells this run from every other.
    pub(super) nonce: String,
}

impl Run<'_> {
    /// Everything; `version` is what tells this package and way of indexing from others.
    pub(super) fn everything(&mut self, package: &PackageFiles, side: Side, version: &str) -> Result<Parts> {
        let mut parts = Parts::default();
        // Before anything is made: names that cannot be had.
        if let Some(alias) = &self.options.alias {
            parts.behind = alias::behind(self.cluster, alias)?;
        }
        let mut group = None;
        if side != Side::Client {
            let found = self.group()?;
            // The query model first: it is small, needs no libtorch, and shows early whether models can run.
            parts.query = Some(self.model(&package.query, &found)?);
            if side == Side::Cluster {
                parts.document = Some(self.model(&package.document, &found)?);
                parts.pipeline = Some(self.options.pipeline.clone());
            }
            parts.search_pipeline = self.search_pipeline_name()?;
            group = Some(found);
        }
        // The index before its pipelines: of two deploys at once that took the same number one makes it, and the other
        // has not touched the pipelines of that version yet.
        let changes = self.index(&parts, version)?;
        if let (Some(document), Some(name)) = (&parts.document, &parts.pipeline) {
            self.ingest_pipeline(name, &package.template, &document.id)?;
        }
        if let (Some(query), Some(name)) = (&parts.query, &parts.search_pipeline) {
            self.pipeline(Pipe::Search, name, plan::search_pipeline(&self.options.name, &query.id))?;
        }
        self.change_index(changes)?;
        parts.group_id = group.map(|g| g.id);
        if let Some(alias) = &self.options.alias {
            parts.behind = self.alias(alias, parts.behind)?;
        }
        self.cancel.check()?;
        Ok(parts)
    }

    /// Whether an earlier run of this deployment has made it.
    pub(super) fn was_made(&self, made: &Made) -> bool {
        self.carried.contains(made)
    }

    pub(super) fn found(&mut self, made: Made, ours: bool) {
        self.notes.push(format!("{made} was there already and is used as it is"));
        if ours || self.was_made(&made) {
            self.kept.push(made);
        }
    }

    fn group(&mut self) -> Result<Group> {
        let name = &self.options.group;
        if let Some(found) = looks::group(self.cluster, self.options)? {
            self.found(Made::Group { id: found.id.clone(), name: name.clone() }, found.ours);
            return Ok(found);
        }
        let id = match group::register(self.cluster, name, &plan::mark(&self.options.name)) {
            Ok(id) => id,
            Err((cause, error)) => {
                let there = looks::group(self.cluster, self.options).ok().flatten().filter(|g| g.ours);
                let Some(found) = there else { return Err(error) };
                let made = Made::Group { id: found.id.clone(), name: name.clone() };
                if cause == Some(Cause::Exists) {
                    // Another deploy of this name was quicker.
                    self.found(made, true);
                    return Ok(found);
                }
                // It arrived, with only its answer lost.
                self.made.push(made);
                return Err(error);
            }
        };
        self.made.push(Made::Group { id: id.clone(), name: name.clone() });
        Ok(Group { id, ours: true })
    }

    fn model(&mut self, file: &ModelFile, group: &Group) -> Result<ModelEntry> {
        self.cancel.check()?;
        let entry = |model: Model| ModelEntry {
            id: model.id,
            name: model.name,
            sha256: file.sha256.clone(),
            bytes: file.bytes,
        };
        match looks::model(self.cluster, file, Some(group))? {
            ModelLook::There { found, ours } => {
                let model = found.model;
                let made = Made::Model { id: model.id.clone(), name: model.name.clone() };
                let running = Made::Running { id: model.id.clone(), name: model.name.clone() };
                let was_ours = ours || self.was_made(&made);
                self.found(made.clone(), ours);
                if self.was_made(&running) {
                    self.kept.push(running.clone());
                }
                if found.state == "DEPLOYED" {
                    return Ok(entry(model));
                }
                if !was_ours && !self.was_made(&running) {
                    self.made.push(running);
                }
                match self.run(&model) {
                    Err((Cause::ContentChanged, error)) if was_ours => {
                        self.kept.retain(|k| *k != made);
                        Ok(entry(self.anew(file, group, &model, &error)?))
                    }
                    other => other.map(|()| entry(model)).map_err(|(_, error)| error),
                }
            }
            ModelLook::Begun(begun) => {
                let model = begun.model;
                let chunks = register::chunk_count(file.bytes, self.options.chunk_bytes);
                let made = Made::Model { id: model.id.clone(), name: model.name.clone() };
                // Where this file knows nothing of it, another deploy may be at work on it: it is not ours to take back.
                let known = self.uploads.knows(&file.sha256, &model) || self.was_made(&made);
                let expected = if self.options.url.is_some() { 0 } else { chunks };
                // By URL the cluster works alone: what has not ended within the deadline will not.
                let patience = if expected == 0 { self.options.poll.deadline.as_millis() as u64 } else { STALE };
                let is_dead = known || milliseconds_now() > begun.created.saturating_add(patience);
                if begun.total_chunks != expected || expected == 0 && is_dead {
                    if is_dead {
                        self.notes
                            .push(format!("{model} was registered in another way or never ended; it is made anew"));
                        lifecycle::remove(self.cluster, &model, &self.options.poll)?;
                    }
                    let model = self.register(file, group)?;
                    return self.deploy_once_more(file, group, &model).map(entry);
                }
                if known {
                    self.made.push(made);
                } else {
                    self.kept.push(made);
                }
                self.notes.push(format!("the registration of {model} that an earlier run began was gone on with"));
                if self.options.url.is_none() {
                    self.upload(&model, file)?;
                }
                register::wait_registered(self.cluster, &model, &file.sha256, &self.options.poll, self.cancel)?;
                self.deploy_once_more(file, group, &model).map(entry)
            }
            ModelLook::Absent => {
                let model = self.register(file, group)?;
                self.deploy_once_more(file, group, &model).map(entry)
            }
        }
    }

    /// Deploys a model that this run has registered; a second time where a node had a stale file of its bytes.
    fn deploy_once_more(&mut self, file: &ModelFile, group: &Group, model: &Model) -> Result<Model> {
        match self.run(model) {
            Ok(()) => Ok(model.clone()),
            Err((Cause::ContentChanged, error)) => self.anew(file, group, model, &error),
            Err((_, error)) => Err(error),
        }
    }

    /// Registers a model again under a new id, which no stale file on a node can spoil.
    fn anew(&mut self, file: &ModelFile, group: &Group, old: &Model, error: &Error) -> Result<Model> {
        self.notes.push(format!("{old} was registered anew: {error}"));
        lifecycle::remove(self.cluster, old, &self.options.poll)?;
        let is_old = |m: &Made| matches!(m, Made::Model { id, .. } if *id == old.id);
        self.made.retain(|m| !is_old(m));
        self.kept.retain(|m| !is_old(m));
        let model = self.register(file, group)?;
        self.run(&model).map_err(|(_, error)| error)?;
        Ok(model)
    }

    /// Registers a model and brings its bytes there.
    fn register(&mut self, file: &ModelFile, group: &Group) -> Result<Model> {
        let poll = &self.options.poll;
        if let Some(url) = &self.options.url {
            let zip = file.zip.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let url = format!("{}/{zip}", url.trim_end_matches('/'));
            let task = self.progress.start(&format!("The cluster fetches {}", file.name()), 0);
            let model = register::by_url(self.cluster, file, &url, Some(&group.id), poll, self.cancel)?;
            drop(task);
            self.made.push(Made::Model { id: model.id.clone(), name: model.name.clone() });
            register::wait_registered(self.cluster, &model, &file.sha256, poll, self.cancel)?;
            return Ok(model);
        }
        let chunks = register::chunk_count(file.bytes, self.options.chunk_bytes);
        let body = register::register_body(&file.body, chunks, Some(&group.id));
        let model = register::register_meta(self.cluster, &body)?;
        self.made.push(Made::Model { id: model.id.clone(), name: model.name.clone() });
        self.upload(&model, file)?;
        register::wait_registered(self.cluster, &model, &file.sha256, poll, self.cancel)?;
        Ok(model)
    }

    fn upload(&mut self, model: &Model, file: &ModelFile) -> Result<()> {
        let chunk_bytes = self.options.chunk_bytes;
        let (uploads, sha256) = (&mut self.uploads, &file.sha256);
        let first = uploads.sent(sha256, model, chunk_bytes);
        if first > 0 {
            let chunks = register::chunk_count(file.bytes, chunk_bytes);
            self.notes.push(format!("{first} of {chunks} chunks of {model} had arrived already"));
        }
        let sent = &mut |sent| uploads.note(sha256, model, chunk_bytes, sent);
        let cluster = self.cluster;
        let done = register::upload_from(cluster, model, file, chunk_bytes, first, sent, self.cancel, self.progress);
        if done.as_ref().is_err_and(Error::is_transient) {
            self.cut = Some(model.id.clone());
        }
        done
    }

    /// Deploys a registered model; the kind of cause beside an error.
    fn run(&mut self, model: &Model) -> std::result::Result<(), (Cause, Error)> {
        let task = self.progress.start(&format!("Deploying {}", model.name), 0);
        let deployed = lifecycle::deploy_or_why(self.cluster, model, &self.options.poll, self.cancel)?;
        if let Some(partial) = deployed.partial {
            self.notes.push(partial);
        }
        drop(task);
        Ok(())
    }

    fn ingest_pipeline(&mut self, name: &str, template: &DocumentTemplate, model_id: &str) -> Result<()> {
        let body = plan::pipeline(&self.options.name, template, &self.options.fields, &self.options.indexing, model_id);
        self.pipeline(Pipe::Ingest, name, body)
    }

    /// The name of the pipeline that names the query model; `None` where this version cannot have it.
    fn search_pipeline_name(&mut self) -> Result<Option<String>> {
        if !has_default_models(self.cluster.capabilities()?) {
            self.notes
                .push("this version has no default model for sparse queries (from 2.13): name `model_id`".to_owned());
            return Ok(None);
        }
        Ok(Some(self.options.search_pipeline()))
    }

    fn pipeline(&mut self, pipe: Pipe, name: &str, body: Value) -> Result<()> {
        self.cancel.check()?;
        let made = pipe.made(name);
        let path = pipe.path(name);
        let put = |body| self.cluster.put(&path, body).map_err(|e| explain_error(Step::Pipeline, &made.to_string(), e));
        match looks::pipeline(self.cluster, pipe, name, &body, self.was_made(&made))? {
            PipeLook::Same { ours } => self.found(made, ours),
            PipeLook::Differs => {
                put(body)?;
                self.notes.push(format!("{made} was there already and was renewed"));
                self.kept.push(made);
            }
            PipeLook::Absent => {
                // Noted even where it fails: a PUT whose answer is lost may have arrived.
                let done = put(body);
                self.made.push(made);
                done?;
            }
        }
        Ok(())
    }

    /// Everything that was made for this version, by this run and earlier ones, in the order that can be taken back from
    /// its end. A model of an earlier run that another has taken the place of belongs to it as long as it is there.
    pub(super) fn all_made(&self) -> Result<Vec<Made>> {
        let mut all: Vec<Made> = self.kept.iter().chain(&self.made).cloned().collect();
        for made in self.carried.iter().rev() {
            let Made::Model { id, name } = made else { continue };
            let model = Model { id: id.clone(), name: name.clone() };
            if !all.contains(made) && lifecycle::find(self.cluster, &model)?.is_some() {
                all.insert(0, made.clone());
            }
        }
        record::order(&mut all);
        Ok(all)
    }

    /// Why something that this run has made has to stay: another deploy has found it meanwhile and uses it.
    fn is_needed(&self, made: &Made, kept: &[&Made]) -> Result<Option<String>> {
        let index_stays = kept.iter().any(|m| matches!(m, Made::Index { .. }));
        Ok(match made {
            Made::Index { name, .. } => {
                let there = self.cluster.find(&format!("/{name}"))?.is_some();
                if there {
                    index::refresh(self.cluster, name)?;
                }
                let documents = if there { index::count(self.cluster, name)? } else { 0 };
                (documents > 0).then(|| format!("it has {documents} documents"))
            }
            Made::Pipeline { .. } | Made::SearchPipeline { .. } if index_stays => {
                Some(format!("the index `{}` names it", self.options.index))
            }
            Made::Model { id, .. } | Made::Running { id, .. } => {
                // What this run has made itself and could not take back needs nothing.
                let is_own = |what: &String| self.made.iter().any(|m| !kept.contains(&m) && m.to_string() == *what);
                References::ask(self.cluster)?.to(id).into_iter().find(|what| !is_own(what))
            }
            _ => None,
        })
    }

    /// Takes back what this run has made, last first; the error then also names what could not be taken back, and what was
    /// left to others who use it by now. Of an upload that was cut, model and group stay for the next run.
    pub(super) fn undo(&mut self, error: Error) -> Error {
        let mut left = Vec::new();
        let cut = self.cut.take();
        record::order(&mut self.made);
        let mut is_out_of_reach = false;
        let mut kept: Vec<&Made> = Vec::new();
        for made in self.made.iter().rev() {
            match (&cut, made) {
                (Some(cut), Made::Model { id, .. }) if id == cut => continue,
                (Some(_), Made::Group { .. }) => continue,
                // Each would be waited for as long as the first.
                _ if is_out_of_reach => {
                    left.push(format!("{made} (not tried)"));
                    continue;
                }
                _ => {}
            }
            let done = match self.is_needed(made, &kept) {
                Ok(Some(why)) => {
                    left.push(format!("{made} (somebody else uses it by now: {why})"));
                    kept.push(made);
                    continue;
                }
                Ok(None) => take_back(self.cluster, made, &self.options.name, &self.hashes, &self.options.poll),
                Err(e) => Err(e),
            };
            match done {
                Ok(_) => tracing::info!(%made, "taken back"),
                Err(e) => {
                    // Serverless answers, but has no first page; a user may be kept from it.
                    let root = self.cluster.request(Method::Get, "/", Body::None);
                    is_out_of_reach = root.is_err_and(|e| e.status().is_none_or(|status| status >= 500));
                    left.push(format!("{made} ({e})"));
                }
            }
        }
        let mut message = error.to_string();
        let mut hint = error.hint();
        if cut.is_some() {
            message.push_str("; what has arrived of the model stays in the cluster");
            hint = Some("run the same command again: it goes on with the chunks that are missing".to_owned());
        } else {
            self.uploads.forget();
        }
        if !left.is_empty() {
            message = format!("{message}; and these were not taken back: {}", left.join("; "));
        }
        if left.is_empty() && cut.is_none() { error } else { Error::Failed { fault: error.fault(), message, hint } }
    }
}

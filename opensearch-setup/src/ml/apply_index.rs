//! The part of a deploy that makes the index and the alias before it, where others may do so at the same moment.

use serde_json::{Map, Value, json};

use super::alias::{self, Behind};
use super::apply::{Parts, Run};
use super::looks::{self, IndexLook};
use super::messages::{Cause, Step, cause_of, explain_error};
use super::plan;
use super::record::Made;
use super::undeploy::BY_RUN;
use crate::client::{Body, Method};
use crate::error::Result;

impl Run<'_> {
    /// Makes the index, or finds it; what is to be changed in its settings once the pipelines are there.
    pub(super) fn index(&mut self, parts: &Parts, version: &str) -> Result<Map<String, Value>> {
        self.cancel.check()?;
        if let Some(changes) = self.index_that_is_there(parts, version)? {
            return Ok(changes);
        }
        let options = self.options;
        let (name, copies) = (&options.index, (options.shards, options.replicas));
        let mut body =
            plan::index(&options.name, copies, &options.fields, &options.indexing, parts.pipeline.as_deref());
        if let Some(search) = &parts.search_pipeline {
            body["settings"]["index"]["search.default_pipeline"] = search.as_str().into();
        }
        body["mappings"]["_meta"][plan::VERSION] = version.into();
        body["mappings"]["_meta"][plan::RUN] = self.nonce.as_str().into();
        let models: Vec<&str> = [&parts.document, &parts.query].into_iter().flatten().map(|m| m.id.as_str()).collect();
        if !models.is_empty() {
            body["mappings"]["_meta"][plan::MODELS] = json!(models);
        }
        // Sent once: a second try of one that arrived would find the index there.
        let path = format!("/{name}");
        let failed = |e| explain_error(Step::Index, &format!("index `{name}`"), e);
        self.made.push(Made::Index { name: name.clone(), uuid: format!("{BY_RUN}{}", self.nonce) });
        if let Err(error) = self.cluster.request(Method::Put, &path, Body::Json(body)) {
            if cause_of(Step::Index, &error) == Some(Cause::Exists) {
                // Somebody was quicker: it is theirs to take back.
                self.made.pop();
                if let Some(changes) = self.index_that_is_there(parts, version)? {
                    return Ok(changes);
                }
            }
            return Err(failed(error));
        }
        let there = self.cluster.get(&path).map_err(failed)?;
        let uuid = there.get(name).map(plan::index_uuid).unwrap_or_default();
        self.made.pop();
        self.made.push(Made::Index { name: name.clone(), uuid });
        Ok(Map::new())
    }

    fn index_that_is_there(&mut self, parts: &Parts, version: &str) -> Result<Option<Map<String, Value>>> {
        let (ingest, search) = (parts.pipeline.as_deref(), parts.search_pipeline.as_deref());
        let found = looks::index(self.cluster, self.options, version, ingest, search, |m| self.was_made(m))?;
        let IndexLook::There { made, ours, changes, notes } = found else { return Ok(None) };
        self.found(made, ours);
        self.notes.extend(notes);
        Ok(Some(changes))
    }

    pub(super) fn change_index(&self, changes: Map<String, Value>) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        let name = &self.options.index;
        let failed = |e| explain_error(Step::Index, &format!("index `{name}`"), e);
        self.cluster.put(&format!("/{name}/_settings"), Value::Object(changes)).map(drop).map_err(failed)
    }

    /// A new alias stands for this version; one that is there stays as it is until it is switched.
    pub(super) fn alias(&mut self, alias: &str, behind: Behind) -> Result<Behind> {
        let index = &self.options.index;
        let behind = if behind.is_empty() {
            let now = alias::begin(self.cluster, alias, index)?;
            if now.contains_key(index) {
                return Ok(now);
            }
            now
        } else {
            behind
        };
        if behind.contains_key(index) {
            self.notes.push(format!("alias `{alias}` stands for `{index}` already"));
        } else {
            let now: Vec<&str> = behind.keys().map(String::as_str).collect();
            self.notes.push(format!(
                "alias `{alias}` stays on `{}`: ingest into `{index}`, then `nsparse switch`",
                now.join("`, `")
            ));
        }
        Ok(behind)
    }
}

//! The documents of an index, as they stood at one moment, for another index: read through a point in time, one slice a
//! shard, and encoded anew on their way.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::index;
use crate::ingest::documents::{Block, Documents, Next};
use crate::ml::Fields;
use crate::ml::plan::MARKS;
use crate::source;

/// How long the cluster keeps the point in time after each request.
const KEEP_ALIVE: &str = "30m";
/// Settings that belong to one index and are not taken over.
const OWN_SETTINGS: [&str; 9] = [
    "uuid",
    "creation_date",
    "provided_name",
    "version",
    "resize",
    "replication",
    "default_pipeline",
    "final_pipeline",
    "search.default_pipeline",
];

/// How the new index differs from the old one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewIndex {
    /// Whether vectors are left out of its `_source`.
    pub exclude_vector: bool,
    /// Whether it holds one vector a segment.
    pub nested: bool,
}

/// Makes an index with the settings and the mapping of another, but for its vector field and its pipelines. Where it is
/// there already, from a run that was stopped or made by hand, it is taken as it is.
///
/// # Errors
/// If the old index is not there, is several behind one name or keeps no `_source`, or the new one cannot be made.
pub fn make_like(cluster: &Cluster, old: &str, new: &str, fields: &Fields, differs: &NewIndex) -> Result<Fields> {
    let there = the_index(cluster, old)?;
    if !source::kept(cluster, old, fields)?.source {
        return Err(Error::usage(
            format!("The index `{old}` keeps no `_source`: what its documents were cannot be read from it"),
            "index the documents themselves anew, with `nsparse ingest`",
        ));
    }
    let vector = Fields { segments: None, ..fields.clone() };
    let fields = if differs.nested { vector.nested() } else { vector };
    if cluster.find(&format!("/{new}"))?.is_none() {
        let body = body_like(&there, old, &fields, differs);
        match cluster.request(Method::Put, &format!("/{new}"), Body::Json(body)) {
            Ok(_) => {}
            // A first try whose answer was lost.
            Err(e) if e.api().is_some_and(|a| a.kind == "resource_already_exists_exception") => {}
            Err(e) => return Err(e),
        }
    }
    let found = crate::segments::fields_of(cluster, new, fields.clone())?;
    if found.segments.is_some() != fields.segments.is_some() {
        let kind = if found.segments.is_some() { "one vector a segment" } else { "one vector a document" };
        return Err(Error::usage(
            format!("The index `{new}` is there already, and takes {kind}"),
            "name a new index, or one that was made in the other way",
        ));
    }
    Ok(found)
}

/// Settings and mapping of the one index that a name stands for. Those of several would have to become one, and the slices
/// by which they are read would each hold several shards.
fn the_index(cluster: &Cluster, name: &str) -> Result<Value> {
    let Some(Value::Object(there)) = cluster.find(&format!("/{name}"))? else {
        return Err(index::missing(cluster, name));
    };
    if there.len() > 1 {
        let names: Vec<&str> = there.keys().map(String::as_str).collect();
        return Err(Error::usage(
            format!("`{name}` stands for several indexes: {}", names.join(", ")),
            "encode each of them anew by itself: --index INDEX --to NEW",
        ));
    }
    there.into_iter().next().map(|(_, body)| body).ok_or_else(|| index::missing(cluster, name))
}

/// The error of documents whose shard is not told by their ids: they would be sent without their routing.
fn routed(what: &str) -> Error {
    Error::usage(
        format!("{what}, and documents are encoded anew without it"),
        "copy the index with the cluster's own `_reindex`, which keeps routing, through a pipeline that encodes; or index \
         the documents anew, without routing",
    )
}

/// Bytes of an index on the cluster's disks, its copies included; `None` where the user may not ask.
pub fn stored_bytes(cluster: &Cluster, index: &str) -> Option<u64> {
    let answer = cluster.get(&format!("/{index}/_stats/store?filter_path=_all.total.store.size_in_bytes")).ok()?;
    answer.pointer("/_all/total/store/size_in_bytes")?.as_u64()
}

fn body_like(old: &Value, name: &str, fields: &Fields, differs: &NewIndex) -> Value {
    let mut settings = old.pointer("/settings/index").and_then(Value::as_object).cloned().unwrap_or_default();
    settings.retain(|key, _| !OWN_SETTINGS.contains(&key.as_str()));
    // A block, such as one against writing during a change, is the old index's.
    settings.remove("blocks");
    // The search pipeline would give queries the old model.
    if let Some(search) = settings.get_mut("search").and_then(Value::as_object_mut) {
        search.remove("default_pipeline");
    }
    let mut mappings = old.get("mappings").cloned().unwrap_or_else(|| json!({}));
    let mut meta = mappings.get("_meta").and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(Value::Object(originals)) = meta.remove(crate::ingest::loading::MARK) {
        // The old index is being loaded, or a load of it was killed: its own settings are these.
        for (key, value) in originals {
            if value.is_null() {
                settings.remove(&key);
            } else {
                settings.insert(key, value);
            }
        }
    }
    // What marks an index as made by a deployment or for a data set says nothing about this one.
    meta.retain(|key, _| key != "nsparse" && !MARKS.contains(&key.as_str()));
    meta.insert("nsparse_reencoded_from".to_owned(), name.into());
    mappings["_meta"] = Value::Object(meta);
    mappings["properties"][fields.vector.as_str()] = fields.vector_mapping();
    let mut body = json!({ "settings": { "index": settings }, "mappings": mappings });
    if differs.exclude_vector {
        source::exclude_vector(&mut body, fields);
    } else if let Some(excludes) = body.pointer_mut("/mappings/_source/excludes").and_then(Value::as_array_mut) {
        excludes.retain(|e| *e != fields.vector);
    }
    body
}

/// The documents of an index at the moment of [`IndexDocuments::open`].
pub struct IndexDocuments {
    cluster: Cluster,
    pit: String,
    pages: Receiver<Result<Block>>,
}

impl IndexDocuments {
    /// Makes visible what was written, fixes the moment and begins to read: pages of so many documents, without the
    /// members named.
    ///
    /// # Errors
    /// If the index is not there, is several behind one name or has documents with a routing, or the cluster refuses.
    pub fn open(cluster: &Cluster, index: &str, page: usize, without: &[String]) -> Result<Self> {
        let there = the_index(cluster, index)?;
        if there.pointer("/mappings/_routing/required") == Some(&Value::Bool(true)) {
            return Err(routed(&format!("The mapping of `{index}` requires a routing of each document")));
        }
        index::refresh(cluster, index)?;
        let path = format!("/{index}/_search/point_in_time?keep_alive={KEEP_ALIVE}");
        let answer = cluster.request_retrying(Method::Post, &path, Body::None)?.body;
        let Some(pit) = answer.get("pit_id").and_then(Value::as_str).map(str::to_owned) else {
            return Err(Error::Unexpected { method: "POST", path, message: format!("no pit_id in {answer}") });
        };
        let shards = there.pointer("/settings/index/number_of_shards").and_then(Value::as_str);
        let slices = shards.and_then(|n| n.parse::<u64>().ok()).unwrap_or(1).max(1);
        // A page a slice is read ahead.
        let (sender, pages) = sync_channel(slices as usize);
        let documents = Self { cluster: cluster.clone(), pit: pit.clone(), pages };
        documents.refuse_routed(index)?;
        for slice in 0..slices {
            let reader = Slice {
                cluster: cluster.clone(),
                pit: pit.clone(),
                // One slice is the whole: the engine wants none named then.
                part: (slices > 1).then(|| json!({ "id": slice, "max": slices })),
                page: page.clamp(1, 10_000),
                without: without.to_vec(),
            };
            let sender = sender.clone();
            std::thread::spawn(move || reader.run(&sender));
        }
        Ok(documents)
    }

    fn refuse_routed(&self, index: &str) -> Result<()> {
        let body = json!({
            "size": 1, "pit": { "id": self.pit, "keep_alive": KEEP_ALIVE }, "_source": false, "track_total_hits": false,
            "query": { "exists": { "field": "_routing" } }
        });
        let path = "/_search?filter_path=hits.hits._id,hits.hits._routing";
        let answer = self.cluster.request_retrying(Method::Post, path, Body::Json(body))?.body;
        let Some(hit) = answer.pointer("/hits/hits/0") else { return Ok(()) };
        let text = |name: &str| hit.get(name).and_then(Value::as_str).unwrap_or_default();
        Err(routed(&format!("The document `{}` of `{index}` has a routing, `{}`", text("_id"), text("_routing"))))
    }
}

impl Documents for IndexDocuments {
    fn next(&mut self, patience: Duration) -> Result<Next> {
        match self.pages.recv_timeout(patience) {
            Ok(block) => Ok(Next::Block(block?)),
            Err(RecvTimeoutError::Timeout) => Ok(Next::Idle),
            Err(RecvTimeoutError::Disconnected) => Ok(Next::End),
        }
    }
}

impl Drop for IndexDocuments {
    /// Lets the cluster forget the moment; it does so by itself later where this fails.
    fn drop(&mut self) {
        let body = Body::Json(json!({ "pit_id": [self.pit] }));
        if let Err(error) = self.cluster.request(Method::Delete, "/_search/point_in_time", body) {
            tracing::debug!(%error, "the point in time ends by itself");
        }
    }
}

/// A part of the documents: those of one shard (the engine gives slice n of as many slices as the index has shards the
/// shard n), so that their order within it is enough to go on by.
struct Slice {
    cluster: Cluster,
    pit: String,
    part: Option<Value>,
    page: usize,
    without: Vec<String>,
}

impl Slice {
    fn run(&self, pages: &SyncSender<Result<Block>>) {
        let mut after: Option<Value> = None;
        loop {
            let page = self.page(after.as_ref());
            let (block, last) = match page {
                Ok(found) => found,
                Err(error) => {
                    // Nobody listens any more where the job was stopped.
                    let _ = pages.send(Err(error));
                    return;
                }
            };
            if block.is_empty() || pages.send(Ok(block)).is_err() || last.is_none() {
                return;
            }
            after = last;
        }
    }

    /// A page behind a place; with the place of its last document.
    fn page(&self, after: Option<&Value>) -> Result<(Block, Option<Value>)> {
        let mut body = json!({
            "size": self.page,
            "pit": { "id": self.pit, "keep_alive": KEEP_ALIVE },
            "sort": [{ "_doc": "asc" }],
            "track_total_hits": false,
            "_source": { "excludes": self.without }
        });
        if let Some(part) = &self.part {
            body["slice"] = part.clone();
        }
        if let Some(after) = after {
            body["search_after"] = after.clone();
        }
        let path = "/_search?filter_path=hits.hits._id,hits.hits._source,hits.hits.sort,_shards.failed";
        let answer = self.cluster.request_retrying(Method::Post, path, Body::Json(body)).map_err(expired)?.body;
        if answer.pointer("/_shards/failed").and_then(Value::as_u64).unwrap_or(0) > 0 {
            return Err(Error::world(
                "A shard did not give its documents",
                "see the cluster's health; then run the same command again: only what is missing is encoded",
            ));
        }
        let mut block = Block::default();
        let mut last = None;
        for hit in answer.pointer("/hits/hits").and_then(Value::as_array).into_iter().flatten() {
            let id = hit.get("_id").and_then(Value::as_str).unwrap_or_default();
            let empty = Value::Object(Map::new());
            block.push_object(id, hit.get("_source").unwrap_or(&empty).to_string().as_bytes());
            last = hit.get("sort").cloned();
        }
        Ok((block, last))
    }
}

/// A point in time that is gone, in words.
fn expired(error: Error) -> Error {
    if error.status() == Some(404) {
        return Error::world(
            format!("The cluster no longer has the moment at which the index was read ({error})"),
            "a node restarted, or took longer than half an hour for a page: run the same command again: only what is \
             missing is encoded",
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_index_is_like_the_old_but_for_what_is_its_own() {
        let old = json!({
            "settings": { "index": {
                "uuid": "u", "creation_date": "1", "provided_name": "old", "version": { "created": "136" },
                "number_of_shards": "3", "number_of_replicas": "0", "refresh_interval": "-1", "default_pipeline": "p",
                "search": { "default_pipeline": "q", "idle": { "after": "60s" } }, "search.default_pipeline": "q",
                "blocks": { "write": "true" }, "analysis": { "analyzer": { "own": { "type": "custom" } } }
            } },
            "mappings": {
                "_meta": {
                    "team": "search", "nsparse_deployment": "d",
                    "nsparse_loading": { "refresh_interval": null, "number_of_replicas": "2" }
                },
                "_source": { "excludes": ["embedding", "raw"] },
                "properties": { "title": { "type": "text" }, "embedding": { "type": "nested" } }
            }
        });
        let body = body_like(&old, "old", &Fields::default(), &NewIndex::default());
        assert_eq!(
            body,
            json!({
                "settings": { "index": {
                    "number_of_shards": "3", "number_of_replicas": "2", "search": { "idle": { "after": "60s" } },
                    "analysis": { "analyzer": { "own": { "type": "custom" } } }
                } },
                "mappings": {
                    "_meta": { "team": "search", "nsparse_reencoded_from": "old" },
                    "_source": { "excludes": ["raw"] },
                    "properties": { "title": { "type": "text" }, "embedding": { "type": "rank_features" } }
                }
            })
        );
        let differs = NewIndex { exclude_vector: true, nested: true };
        let body = body_like(&old, "old", &Fields::default().nested(), &differs);
        assert_eq!(body["mappings"]["_source"]["excludes"], json!(["embedding", "raw"]));
        assert_eq!(body["mappings"]["properties"]["embedding"]["type"], "nested");
    }
}

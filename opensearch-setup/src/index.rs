//! Indexes that nsparse makes for itself: named by kind, set and a hash of what is in them, so that a later run
//! finds them again; marked in `_meta` with what made them and, once everything is in, as complete. Only marked
//! indexes are ever deleted.

use nsparse_core::files::sha256_bytes;
use serde_json::{Map, Value, json};

use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::ml::Fields;

/// Changes when mappings change, so that indexes of older releases are not taken for ours.
const LAYOUT: &str = "1";

/// What an index is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Title and text, searched with BM25.
    Bm25,
    /// Title, text and a vector as `rank_features`, or one a segment.
    Sparse,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bm25 => "bm25",
            Self::Sparse => "sparse",
        }
    }
}

/// An index to be made: its name, its shape and what goes into its `_meta`.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexSpec {
    /// Its full name; lower case, as OpenSearch wants it.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// Analyzer of title and text.
    pub analyzer: String,
    /// Names of its fields; `vector` is used by [`Kind::Sparse`] only.
    pub fields: Fields,
    /// Primary shards. Scores of BM25 depend on it, since each shard counts for itself.
    pub shards: u32,
    /// Copies of each shard.
    pub replicas: u32,
    /// What made it, for people that look: data set, hashes, model.
    pub meta: Map<String, Value>,
}

impl IndexSpec {
    /// An index keyed by content: `nsparse-<kind>-<set>-<hash12>`. The hash covers `content` (whatever tells one
    /// content from another: the corpus's hash, the model's), the analyzer and the layout. One shard, no replica.
    pub fn keyed(kind: Kind, set: &str, analyzer: &str, content: &[&str]) -> Self {
        let mut meta = Map::new();
        meta.insert("set".to_owned(), set.into());
        meta.insert("content".to_owned(), content.into());
        Self {
            name: format!("nsparse-{}-{}-{}", kind.as_str(), plain(set), key(analyzer, content)),
            kind,
            analyzer: analyzer.to_owned(),
            fields: Fields::default(),
            shards: 1,
            replicas: 0,
            meta,
        }
    }

    /// The body of the request that makes it.
    pub fn body(&self) -> Value {
        let text = || json!({ "type": "text", "analyzer": self.analyzer });
        let mut properties = Map::new();
        properties.insert(self.fields.title.clone(), text());
        properties.insert(self.fields.text.clone(), text());
        if self.kind == Kind::Sparse {
            properties.insert(self.fields.vector.clone(), self.fields.vector_mapping());
        }
        json!({
            "settings": { "index": { "number_of_shards": self.shards, "number_of_replicas": self.replicas } },
            "mappings": { "dynamic": false, "_meta": { "nsparse": self.mark(false) }, "properties": properties }
        })
    }

    fn mark(&self, complete: bool) -> Value {
        let mut mark = self.meta.clone();
        mark.insert("kind".to_owned(), self.kind.as_str().into());
        mark.insert("version".to_owned(), env!("CARGO_PKG_VERSION").into());
        mark.insert("complete".to_owned(), complete.into());
        Value::Object(mark)
    }
}

/// The first 12 hex characters of the hash that an index is known by.
fn key(analyzer: &str, content: &[&str]) -> String {
    let mut parts = vec![LAYOUT, analyzer];
    parts.extend(content);
    // Parts are separated by a byte that none of them holds.
    let mut hash = sha256_bytes(parts.join("\0").as_bytes());
    hash.truncate(12);
    hash
}

/// A set's name as part of an index name: lower case, other characters as dashes, at most 60.
fn plain(name: &str) -> String {
    let fit = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let text: String = name.chars().map(fit).take(60).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "data".to_owned() } else { text.to_owned() }
}

/// What is under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing.
    Absent,
    /// An index of ours that is not finished.
    Partial,
    /// An index of ours with everything in it.
    Complete {
        /// Its documents.
        documents: u64,
    },
    /// Somebody else's index or alias.
    Foreign,
}

/// An index of ours, as listed.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnIndex {
    /// Its name.
    pub name: String,
    /// Its mark: `_meta.nsparse`.
    pub mark: Value,
}

impl OwnIndex {
    /// Whether everything is in.
    pub fn is_complete(&self) -> bool {
        self.mark.get("complete") == Some(&Value::Bool(true))
    }
}

/// What is under a name. An index that was complete but has lost or gained documents since is partial.
///
/// # Errors
/// If the cluster does not answer.
pub fn state(cluster: &Cluster, name: &str) -> Result<State> {
    let Some(answer) = cluster.find(&format!("/{name}"))? else { return Ok(State::Absent) };
    // Asked by an alias, the cluster answers with the index behind it.
    let Some(mark) = answer.get(name).and_then(mark_of) else { return Ok(State::Foreign) };
    if mark.get("complete") != Some(&Value::Bool(true)) {
        return Ok(State::Partial);
    }
    let documents = count(cluster, name)?;
    let expected = mark.get("documents").and_then(Value::as_u64);
    Ok(if expected == Some(documents) { State::Complete { documents } } else { State::Partial })
}

/// Makes an index, or takes the one of ours that is there.
///
/// # Errors
/// If the name is somebody else's, or the cluster refuses.
pub fn ensure(cluster: &Cluster, spec: &IndexSpec) -> Result<State> {
    match state(cluster, &spec.name)? {
        State::Absent => {}
        State::Foreign => {
            return Err(Error::usage(
                format!("The index `{}` is there already and was not made by nsparse", spec.name),
                "rename or remove it; nsparse neither writes to nor deletes what it did not make",
            ));
        }
        ours => return Ok(ours),
    }
    match cluster.request(Method::Put, &format!("/{}", spec.name), Body::Json(spec.body())) {
        Ok(_) => Ok(State::Partial),
        // Made by another run in this moment, or by a first try whose answer was lost.
        Err(e) if e.api().is_some_and(|a| a.kind == "resource_already_exists_exception") => state(cluster, &spec.name),
        Err(e) => Err(e),
    }
}

/// Marks an index of ours as complete with the documents that it has now.
///
/// # Errors
/// If it does not have `expected` documents, or the cluster refuses.
pub fn complete(cluster: &Cluster, spec: &IndexSpec, expected: u64) -> Result<()> {
    refresh(cluster, &spec.name)?;
    let documents = count(cluster, &spec.name)?;
    if documents != expected {
        return Err(Error::world(
            format!("The index `{}` has {documents} documents; {expected} were expected", spec.name),
            "remove it with --clean and run again",
        ));
    }
    let mut mark = spec.mark(true);
    mark["documents"] = documents.into();
    cluster.put(&format!("/{}/_mapping", spec.name), json!({ "_meta": { "nsparse": mark } }))?;
    Ok(())
}

/// Deletes an index of ours; whether there was one.
///
/// # Errors
/// If it is somebody else's, or the cluster refuses.
pub fn delete(cluster: &Cluster, name: &str) -> Result<bool> {
    match state(cluster, name)? {
        State::Absent => Ok(false),
        State::Foreign => Err(Error::usage(
            format!("The index `{name}` was not made by nsparse; it stays"),
            "delete it yourself if it is not needed",
        )),
        State::Partial | State::Complete { .. } => Ok(cluster.delete(&format!("/{name}"))?.is_some()),
    }
}

/// All indexes that nsparse made for itself, by name.
///
/// # Errors
/// If the cluster does not answer.
pub fn list(cluster: &Cluster) -> Result<Vec<OwnIndex>> {
    let answer = cluster.find("/nsparse-*?expand_wildcards=open,closed")?.unwrap_or_default();
    let mut found: Vec<OwnIndex> = answer
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, index)| Some(OwnIndex { name: name.clone(), mark: mark_of(index)?.clone() }))
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Deletes all indexes of ours that belong to a data set; gives their names.
///
/// # Errors
/// If the cluster refuses or does not answer.
pub fn clean(cluster: &Cluster, set: &str) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for own in list(cluster)?.into_iter().filter(|own| own.mark.get("set").and_then(Value::as_str) == Some(set)) {
        if delete(cluster, &own.name)? {
            removed.push(own.name);
        }
    }
    Ok(removed)
}

/// Documents that a search can see.
///
/// # Errors
/// If there is no such index, or the cluster does not answer.
pub fn count(cluster: &Cluster, name: &str) -> Result<u64> {
    let path = format!("/{name}/_count");
    let answer = cluster.get(&path)?;
    answer.get("count").and_then(Value::as_u64).ok_or_else(|| Error::Unexpected {
        method: "GET",
        path,
        message: format!("no count in {answer}"),
    })
}

/// Makes everything that was written visible to searches.
///
/// # Errors
/// If there is no such index, or the cluster does not answer.
pub fn refresh(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.request_retrying(Method::Post, &format!("/{name}/_refresh"), Body::None).map(drop)
}

/// What tells this index from one that had its name before.
///
/// # Errors
/// If there is no such index (with what to do), or the cluster does not answer.
pub fn uuid(cluster: &Cluster, name: &str) -> Result<String> {
    let path = format!("/{name}/_settings/index.uuid?flat_settings=true");
    let Some(answer) = cluster.find(&path)? else { return Err(missing(cluster, name)) };
    let uuid = answer
        .as_object()
        .and_then(|o| o.values().next())
        .and_then(|index| index.get("settings")?.get("index.uuid")?.as_str());
    uuid.map(str::to_owned).ok_or_else(|| Error::Unexpected {
        method: "GET",
        path,
        message: format!("no index.uuid in {answer}"),
    })
}

/// The error of a name under which nothing is.
pub(crate) fn missing(cluster: &Cluster, name: &str) -> Error {
    Error::usage(
        format!("There is no index `{name}` on {}", cluster.url()),
        "make it with `nsparse deploy`, or check the name",
    )
}

/// The mark in an index's answer.
fn mark_of(index: &Value) -> Option<&Value> {
    index.pointer("/mappings/_meta/nsparse")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_content() {
        let spec = |set: &str, analyzer: &str, content: &[&str]| IndexSpec::keyed(Kind::Bm25, set, analyzer, content);
        let one = spec("SciFact (test)", "english", &["abc"]);
        assert!(one.name.starts_with("nsparse-bm25-scifact--test-"), "{}", one.name);
        assert_eq!(one.name.rsplit('-').next().map(str::len), Some(12));
        assert_eq!(one, spec("SciFact (test)", "english", &["abc"]));
        for other in
            [spec("x", "standard", &["abc"]), spec("x", "english", &["ab", "c"]), spec("x", "english", &["abd"])]
        {
            assert_ne!(one.name.rsplit('-').next(), other.name.rsplit('-').next());
        }
        assert!(spec("한국어", "english", &[]).name.starts_with("nsparse-bm25-data-"));
    }

    #[test]
    fn only_the_sparse_kind_has_a_vector() {
        let body = |kind| IndexSpec::keyed(kind, "s", "english", &[]).body();
        assert!(body(Kind::Bm25).pointer("/mappings/properties/embedding").is_none());
        assert_eq!(body(Kind::Sparse).pointer("/mappings/properties/embedding/type"), Some(&"rank_features".into()));
        assert_eq!(body(Kind::Bm25).pointer("/mappings/_meta/nsparse/complete"), Some(&false.into()));
        assert_eq!(body(Kind::Bm25).pointer("/mappings/properties/title/analyzer"), Some(&"english".into()));
    }
}

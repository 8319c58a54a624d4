//! The settings of a new index while it is loaded: no refresh, no copies. What they were is kept in the mapping's `_meta`
//! before they are changed, so that whoever comes after a crash finds it and sets it back. An index that an alias points
//! to may be serving, and one that holds documents belongs to somebody: both stay as they are.

use serde_json::{Map, Value, json};

use crate::client::{Body, Cluster, Method, Response};
use crate::error::Result;

/// Where the mapping's `_meta` keeps the settings of before.
pub const MARK: &str = "nsparse_loading";
/// What is changed, and to what.
const CHANGED: [(&str, &str); 2] = [("refresh_interval", "-1"), ("number_of_replicas", "0")];

/// An index as it is found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    /// What tells it from one that had its name before.
    pub(crate) uuid: Option<String>,
    /// Whether an alias points to it, or its name is one.
    is_aliased: bool,
    meta: Map<String, Value>,
    /// The settings that are set, flat, without `index.`; those left to their defaults are not among them.
    settings: Map<String, Value>,
}

/// Looks at an index; `None` where the name stands for none, or for several.
///
/// # Errors
/// If the cluster does not answer.
pub(crate) fn look(cluster: &Cluster, index: &str) -> Result<Option<Found>> {
    let Some(answer) = cluster.find(&format!("/{index}?flat_settings=true"))? else { return Ok(None) };
    Ok(read(index, &answer))
}

fn read(index: &str, answer: &Value) -> Option<Found> {
    let answer = answer.as_object()?;
    let (name, body) = answer.iter().next().filter(|_| answer.len() == 1)?;
    let settings = body.get("settings").and_then(Value::as_object)?;
    let set = |(key, value): (&String, &Value)| Some((key.strip_prefix("index.")?.to_owned(), value.clone()));
    Some(Found {
        uuid: settings.get("index.uuid").and_then(Value::as_str).map(str::to_owned),
        is_aliased: name != index || body.get("aliases").and_then(Value::as_object).is_some_and(|a| !a.is_empty()),
        meta: body.pointer("/mappings/_meta").and_then(Value::as_object).cloned().unwrap_or_default(),
        settings: settings.iter().filter_map(set).collect(),
    })
}

impl Found {
    /// Whether its settings are still those of loading.
    pub(crate) fn is_loading(&self) -> bool {
        self.meta.contains_key(MARK)
    }

    /// Whether an alias points to it.
    pub(crate) fn is_aliased(&self) -> bool {
        self.is_aliased
    }

    /// What is to be remembered; a setting that was left to its default is remembered as null.
    fn originals(&self) -> Map<String, Value> {
        let expands = self.settings.get("auto_expand_replicas").and_then(Value::as_str);
        let has_own_copies = expands.is_none_or(|e| e == "false");
        CHANGED
            .iter()
            .map(|(key, _)| *key)
            // Copies that follow the number of nodes are the cluster's to set.
            .filter(|key| *key != "number_of_replicas" || has_own_copies)
            .map(|key| (key.to_owned(), self.settings.get(key).cloned().unwrap_or(Value::Null)))
            .collect()
    }
}

/// Remembers the settings of an index that is empty and behind no alias, and switches refresh and copies off.
///
/// # Errors
/// If the cluster refuses. Where it refuses the settings for want of rights nothing is left; what else was remembered until
/// then is set back by [`restore`].
pub(crate) fn begin(cluster: &Cluster, index: &str, found: &Found) -> Result<()> {
    let originals = found.originals();
    let mut meta = found.meta.clone();
    let loading: Map<String, Value> = CHANGED
        .iter()
        .filter(|(key, _)| originals.contains_key(*key))
        .map(|(key, value)| ((*key).to_owned(), (*value).into()))
        .collect();
    meta.insert(MARK.to_owned(), Value::Object(originals));
    cluster.put(&format!("/{index}/_mapping"), json!({ "_meta": meta }))?;
    let set = cluster.put(&format!("/{index}/_settings"), json!({ "index": loading }));
    if set.as_ref().is_err_and(|e| e.status() == Some(403)) {
        cluster.put(&format!("/{index}/_mapping"), json!({ "_meta": found.meta }))?;
    }
    set.map(drop)
}

/// Sets back what `begin` changed, in this run or in one that was killed; whether there was anything.
///
/// # Errors
/// If the cluster refuses or does not answer.
pub fn restore(cluster: &Cluster, index: &str) -> Result<bool> {
    restore_by(index, |method, path, body| cluster.request_retrying(method, path, body))
}

/// As [`restore`], each request sent once: a cluster that is down keeps nobody waiting.
///
/// # Errors
/// As [`restore`].
pub(crate) fn restore_once(cluster: &Cluster, index: &str) -> Result<bool> {
    restore_by(index, |method, path, body| cluster.request(method, path, body))
}

fn restore_by(index: &str, ask: impl Fn(Method, &str, Body) -> Result<Response>) -> Result<bool> {
    let answer = match ask(Method::Get, &format!("/{index}?flat_settings=true"), Body::None) {
        Err(e) if e.status() == Some(404) => return Ok(false),
        other => other?.body,
    };
    let Some(found) = read(index, &answer) else { return Ok(false) };
    let Some(originals) = found.meta.get(MARK).and_then(Value::as_object) else { return Ok(false) };
    // Null takes a setting back to its default. The mark goes last: a crash in between finds it again.
    let settings = json!({ "index": originals });
    ask(Method::Put, &format!("/{index}/_settings"), Body::Json(settings))?;
    let mut meta = found.meta.clone();
    meta.remove(MARK);
    ask(Method::Put, &format!("/{index}/_mapping"), Body::Json(json!({ "_meta": meta })))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn answer(aliases: &Value, settings: &Value) -> Value {
        json!({ "i": { "aliases": aliases, "mappings": { "_meta": { "a": 1 } }, "settings": settings } })
    }

    #[test]
    fn defaults_are_remembered_as_null() {
        let settings = json!({ "index.number_of_replicas": "2", "index.uuid": "u", "index.number_of_shards": "1" });
        let found = read("i", &answer(&json!({}), &settings)).unwrap();
        assert_eq!(found.uuid.as_deref(), Some("u"));
        assert!(!found.is_aliased() && !found.is_loading());
        assert_eq!(Value::Object(found.originals()), json!({ "refresh_interval": null, "number_of_replicas": "2" }));
    }

    #[test]
    fn copies_that_follow_the_nodes_are_left_alone() {
        let settings = json!({ "index.auto_expand_replicas": "0-1", "index.number_of_replicas": "0" });
        let found = read("i", &answer(&json!({}), &settings)).unwrap();
        assert_eq!(Value::Object(found.originals()), json!({ "refresh_interval": null }));
    }

    #[test]
    fn aliases_are_seen_from_both_sides() {
        assert!(read("i", &answer(&json!({ "serving": {} }), &json!({}))).unwrap().is_aliased());
        assert!(read("serving", &answer(&json!({}), &json!({}))).unwrap().is_aliased());
        assert_eq!(read("i", &json!({})), None);
    }
}

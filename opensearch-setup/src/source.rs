//! Whether an index keeps the vectors in `_source`. They are most of it, and no search needs them there; but what builds
//! documents anew from `_source` does: an update in place, the cluster's own `_reindex`, a snapshot read elsewhere.

use serde_json::{Value, json};

use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::ml::Fields;

/// Leaves the vector out of `_source`, in the body of a request that makes an index.
pub fn exclude_vector(body: &mut Value, fields: &Fields) {
    let mapping = &mut body["mappings"];
    let mut excludes: Vec<Value> =
        mapping.pointer("/_source/excludes").and_then(Value::as_array).cloned().unwrap_or_default();
    if !excludes.iter().any(|e| *e == fields.vector) {
        excludes.push(fields.vector.as_str().into());
    }
    if mapping["_source"].is_null() {
        mapping["_source"] = json!({});
    }
    mapping["_source"]["excludes"] = excludes.into();
}

/// What an index keeps of a document as it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// `_source` at all.
    pub source: bool,
    /// The vector in it.
    pub vector: bool,
}

/// What an index keeps.
///
/// # Errors
/// If there is no such index, or the cluster does not answer.
pub fn kept(cluster: &Cluster, index: &str, fields: &Fields) -> Result<Kept> {
    let Some(answer) = cluster.find(&format!("/{index}/_mapping"))? else {
        return Err(crate::index::missing(cluster, index));
    };
    let mapping = answer.as_object().and_then(|o| o.values().next()).and_then(|i| i.get("mappings"));
    Ok(read(mapping.unwrap_or(&Value::Null), fields))
}

fn read(mapping: &Value, fields: &Fields) -> Kept {
    let source = mapping.pointer("/_source/enabled") != Some(&Value::Bool(false));
    let names = |key: &str| -> Vec<&str> {
        let list = mapping.get("_source").and_then(|s| s.get(key)).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let covers = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => fields.vector.starts_with(start.trim_end_matches('.')),
        None => pattern == fields.vector,
    };
    let includes = names("includes");
    let vector = source
        && !names("excludes").into_iter().any(covers)
        && (includes.is_empty() || includes.into_iter().any(covers));
    Kept { source, vector }
}

/// Refuses an update in place where it would lose the vector.
///
/// # Errors
/// If the index does not keep it; also as [`kept`].
pub fn check_updates(cluster: &Cluster, index: &str, fields: &Fields) -> Result<()> {
    if kept(cluster, index, fields)?.vector {
        return Ok(());
    }
    Err(Error::usage(
        format!(
            "The index `{index}` leaves `{}` out of `_source`, and an update builds documents anew from there: they \
             would lose their vectors",
            fields.vector
        ),
        "send the whole documents instead (without --update)",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exclusion_is_added_once_and_seen() {
        let fields = Fields::default();
        let mut body = json!({ "mappings": { "properties": {}, "_source": { "excludes": ["x"] } } });
        assert_eq!(read(&body["mappings"], &fields), Kept { source: true, vector: true });
        exclude_vector(&mut body, &fields);
        exclude_vector(&mut body, &fields);
        assert_eq!(body["mappings"]["_source"], json!({ "excludes": ["x", "embedding"] }));
        assert_eq!(read(&body["mappings"], &fields), Kept { source: true, vector: false });
        let mut plain = json!({ "mappings": {} });
        exclude_vector(&mut plain, &fields);
        assert_eq!(plain["mappings"]["_source"], json!({ "excludes": ["embedding"] }));
    }

    #[test]
    fn patterns_and_no_source() {
        let of = |source: Value| read(&json!({ "_source": source }), &Fields::default());
        assert!(!of(json!({ "excludes": ["emb*"] })).vector);
        assert!(!of(json!({ "excludes": ["embedding.*"] })).vector);
        assert!(!of(json!({ "includes": ["title"] })).vector);
        assert!(of(json!({ "includes": ["title", "embedding"] })).vector);
        assert_eq!(of(json!({ "enabled": false })), Kept { source: false, vector: false });
    }
}

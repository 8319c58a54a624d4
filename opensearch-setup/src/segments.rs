//! One nested object a segment in place of one vector a document: its mapping, its sources, its query. The score of a
//! document is then that of its best segment (`score_mode: max`), not that of the maxima over segments.

use nsparse_core::Weight;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::ml::Fields;

/// Name of the `rank_features` field in each nested object, as neural-search's own chunking has it.
pub const SEGMENT_FIELD: &str = "sparse_encoding";

impl Fields {
    /// The same with one nested object a segment.
    #[must_use]
    pub fn nested(mut self) -> Self {
        self.segments = Some(SEGMENT_FIELD.to_owned());
        self
    }

    /// The field that holds features: the vector's own, or the one in its nested objects.
    pub fn features(&self) -> String {
        match &self.segments {
            None => self.vector.clone(),
            Some(inner) => format!("{}.{inner}", self.vector),
        }
    }

    /// The vector field's mapping.
    pub fn vector_mapping(&self) -> Value {
        match &self.segments {
            None => json!({ "type": "rank_features" }),
            Some(inner) => json!({ "type": "nested", "properties": { inner: { "type": "rank_features" } } }),
        }
    }

    /// A clause over [`Fields::features`] as a query of documents.
    pub(crate) fn of_documents(&self, clause: Value) -> Value {
        match &self.segments {
            None => clause,
            Some(_) => json!({ "nested": { "path": self.vector, "score_mode": "max", "query": clause } }),
        }
    }

    /// The vector field's part of a document's source, as JSON; a segment without features is no object.
    pub(crate) fn vector_json(&self, segments: &[Vec<(&str, Weight)>]) -> String {
        let json = |features: &[(&str, Weight)]| {
            serde_json::to_string(&Features(features)).expect("checked weights are always JSON")
        };
        match &self.segments {
            None => json(segments.first().map_or(&[], Vec::as_slice)),
            Some(inner) => {
                let name = Value::from(inner.as_str());
                let object = |features: &Vec<(&str, Weight)>| format!("{{{name}:{}}}", json(features));
                let objects: Vec<String> = segments.iter().filter(|s| !s.is_empty()).map(object).collect();
                format!("[{}]", objects.join(","))
            }
        }
    }
}

/// Features as a JSON object, with the shortest digits that give the same `f32` back.
struct Features<'a>(&'a [(&'a str, Weight)]);

impl Serialize for Features<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// What an index has under the name of the vector field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VectorLayout {
    /// One vector a document: `rank_features`.
    One,
    /// Nested objects, with the name of the `rank_features` field in them.
    Nested(String),
    /// No such field.
    Absent,
    /// A field of another kind.
    Other(String),
}

impl VectorLayout {
    /// Reads a field's mapping.
    pub fn of(mapping: Option<&Value>) -> Self {
        let kind = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("object").to_owned();
        let Some(mapping) = mapping else { return Self::Absent };
        match kind(mapping).as_str() {
            "rank_features" => Self::One,
            "nested" => {
                let inner = mapping.get("properties").and_then(Value::as_object);
                let features = inner.and_then(|p| p.iter().find(|(_, field)| kind(field) == "rank_features"));
                features.map_or_else(
                    || Self::Other("nested without a rank_features field in it".to_owned()),
                    |(name, _)| Self::Nested(name.clone()),
                )
            }
            other => Self::Other(other.to_owned()),
        }
    }
}

/// How an index holds vectors under the name that `fields` has for them.
///
/// # Errors
/// If there is no such index, or the cluster does not answer.
pub fn layout(cluster: &Cluster, index: &str, fields: &Fields) -> Result<VectorLayout> {
    let Some(answer) = cluster.find(&format!("/{index}/_mapping"))? else {
        return Err(crate::index::missing(cluster, index));
    };
    // Asked by an alias, the cluster answers with the index behind it.
    let properties = answer.as_object().and_then(|o| o.values().next()).and_then(|i| i.pointer("/mappings/properties"));
    Ok(VectorLayout::of(properties.and_then(|p| p.get(&fields.vector))))
}

/// The fields as an index at hand has them: nested where its vector field is nested.
///
/// # Errors
/// As [`layout`], or if the vector field is of a kind that holds no vectors.
pub fn fields_of(cluster: &Cluster, index: &str, fields: Fields) -> Result<Fields> {
    match layout(cluster, index, &fields)? {
        VectorLayout::One | VectorLayout::Absent => Ok(Fields { segments: None, ..fields }),
        VectorLayout::Nested(inner) => Ok(Fields { segments: Some(inner), ..fields }),
        VectorLayout::Other(kind) => Err(Error::usage(
            format!("The field `{}` of the index `{index}` is {kind}, which holds no vectors", fields.vector),
            "name the rank_features field, or the nested field that holds one, with --vector-field",
        )),
    }
}

/// Makes sure that an index takes nested segments: adds the field where it has none of that name.
///
/// # Errors
/// As [`layout`], or if the field holds something else.
pub fn ensure_nested(cluster: &Cluster, index: &str, fields: Fields) -> Result<Fields> {
    match layout(cluster, index, &fields)? {
        VectorLayout::Nested(inner) => Ok(Fields { segments: Some(inner), ..fields }),
        VectorLayout::Absent => {
            let fields = fields.nested();
            let body = json!({ "properties": { fields.vector.as_str(): fields.vector_mapping() } });
            cluster.put(&format!("/{index}/_mapping"), body)?;
            Ok(fields)
        }
        VectorLayout::One | VectorLayout::Other(_) => Err(Error::usage(
            format!(
                "The field `{}` of the index `{index}` is not nested, and a field cannot be changed",
                fields.vector
            ),
            "make an index with `nsparse deploy --segments nested`, or name a new field with --vector-field",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts() {
        let (one, nested) = (Fields::default(), Fields::default().nested());
        assert_eq!((one.features().as_str(), nested.features().as_str()), ("embedding", "embedding.sparse_encoding"));
        for fields in [&one, &nested] {
            let found = VectorLayout::of(Some(&fields.vector_mapping()));
            assert_eq!(found, fields.segments.clone().map_or(VectorLayout::One, VectorLayout::Nested));
        }
        let clause = json!({ "match_all": {} });
        assert_eq!(one.of_documents(clause.clone()), clause);
        assert_eq!(
            nested.of_documents(clause.clone()),
            json!({ "nested": { "path": "embedding", "score_mode": "max", "query": clause } })
        );
        let segments = [vec![("a", 0.1)], vec![], vec![("b", 2.0)]];
        assert_eq!(one.vector_json(&segments[..1]), r#"{"a":0.1}"#);
        assert_eq!(nested.vector_json(&segments), r#"[{"sparse_encoding":{"a":0.1}},{"sparse_encoding":{"b":2.0}}]"#);
        assert_eq!((one.vector_json(&[]).as_str(), nested.vector_json(&segments[1..2]).as_str()), ("{}", "[]"));
    }

    #[test]
    fn layouts_of_strangers() {
        let of = |mapping: Value| VectorLayout::of(Some(&mapping));
        assert_eq!(VectorLayout::of(None), VectorLayout::Absent);
        assert_eq!(of(json!({ "type": "knn_vector" })), VectorLayout::Other("knn_vector".to_owned()));
        assert_eq!(of(json!({ "properties": {} })), VectorLayout::Other("object".to_owned()));
        let own =
            json!({ "type": "nested", "properties": { "n": { "type": "long" }, "v": { "type": "rank_features" } } });
        assert_eq!(of(own), VectorLayout::Nested("v".to_owned()));
        assert!(matches!(of(json!({ "type": "nested" })), VectorLayout::Other(_)));
    }
}

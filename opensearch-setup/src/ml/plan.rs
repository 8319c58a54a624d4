//! The bodies that deploy sends besides the models: the ingest pipeline and the index. Pure functions.

use nsparse_core::template::Piece;
use nsparse_core::{DocumentTemplate, Pruning};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::search::number;
use crate::source;

/// Field that holds the templated text inside the pipeline; it never reaches the index.
pub const TEMPORARY_FIELD: &str = "nsparse_text";

/// In an index's `_meta`: the name of the deployment that made it.
pub const DEPLOYMENT: &str = "nsparse_deployment";
/// In an index's `_meta`: what tells the package and the way of indexing that it was made for from others.
pub const VERSION: &str = "nsparse_version";
/// In an index's `_meta`: the ids of the models that it was made with.
pub(super) const MODELS: &str = "nsparse_models";

/// In an index's `_meta`: the run of deploy that made it.
pub(super) const RUN: &str = "nsparse_run";

/// What an index's `_meta` says of the deployment that made it; an index that is made like another leaves it out.
pub(crate) const MARKS: [&str; 4] = [DEPLOYMENT, VERSION, MODELS, RUN];

/// Names of the index's fields.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fields {
    /// The title.
    pub title: String,
    /// The text.
    pub text: String,
    /// The document's vector, of type `rank_features`; or, with `segments`, of type `nested`.
    pub vector: String,
    /// With one nested object a segment: the `rank_features` field in each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<String>,
}

impl Default for Fields {
    fn default() -> Self {
        Self { title: "title".to_owned(), text: "text".to_owned(), vector: "embedding".to_owned(), segments: None }
    }
}

/// How documents are indexed, beyond the fields' names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Indexing {
    /// Documents that the ingest pipeline encodes together; the cluster's own 1 where `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<u32>,
    /// Which entries of a document's vector go into the index; all where `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pruning: Option<Pruning>,
    /// Whether the vector is left out of `_source`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exclude_vector: bool,
}

impl Indexing {
    /// Whether everything is as the cluster has it by itself.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether indexes made so hold the same as those of another: how many are encoded at once tells none apart.
    pub fn holds_as(&self, other: &Self) -> bool {
        (self.pruning, self.exclude_vector) == (other.pruning, other.exclude_vector)
    }
}

/// What marks a thing as made by the deployment of this name.
pub fn mark(name: &str) -> String {
    format!("nsparse deployment {name}")
}

/// The template in mustache: three braces, so that nothing is escaped; a missing field is empty.
pub fn mustache(template: &DocumentTemplate, fields: &Fields) -> String {
    let field = |name: &str| format!("{{{{{{{name}}}}}}}");
    let pieces = template.pieces();
    pieces
        .iter()
        .map(|piece| match piece {
            Piece::Literal(text) => (*text).to_owned(),
            Piece::Title => field(&fields.title),
            Piece::Text => field(&fields.text),
            Piece::Field(name) => field(name),
        })
        .collect()
}

/// The ingest pipeline: the template fills a temporary field, which is trimmed and cut as
/// [`DocumentTemplate::apply`] does, encoded, and removed. Only options that 2.11 has, but for the
/// batch size (2.16) and pruning (2.19).
pub fn pipeline(
    name: &str,
    template: &DocumentTemplate,
    fields: &Fields,
    indexing: &Indexing,
    model_id: &str,
) -> Value {
    let mut encoding = json!({ "model_id": model_id, "field_map": { TEMPORARY_FIELD: fields.vector } });
    if let Some(batch_size) = indexing.batch_size {
        encoding["batch_size"] = batch_size.into();
    }
    if let Some(pruning) = indexing.pruning {
        let (kind, ratio) = pruning.parts();
        encoding["prune_type"] = kind.into();
        encoding["prune_ratio"] = number(ratio);
    }
    json!({
        "description": mark(name),
        "processors": [
            { "set": { "field": TEMPORARY_FIELD, "value": mustache(template, fields) } },
            { "trim": { "field": TEMPORARY_FIELD } },
            { "gsub": {
                "field": TEMPORARY_FIELD,
                "pattern": format!("(?s)^(.{{{}}}).+$", template.max_chars),
                "replacement": "$1"
            } },
            { "sparse_encoding": encoding },
            { "remove": { "field": TEMPORARY_FIELD } }
        ]
    })
}

/// The uuid in an answer to `GET /{index}`.
pub(super) fn index_uuid(index: &Value) -> String {
    index.pointer("/settings/index/uuid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What an index's `_meta` says under this key.
pub(super) fn meta<'a>(index: &'a Value, key: &str) -> Option<&'a str> {
    index.pointer("/mappings/_meta")?.get(key)?.as_str()
}

/// Whether an index, as `GET /{index}` gives it, was made by the deployment of this name.
pub(super) fn is_marked(index: &Value, deployment: &str) -> bool {
    meta(index, DEPLOYMENT) == Some(deployment)
}

/// The search pipeline: a `neural_sparse` query that names no model gets this one.
pub fn search_pipeline(name: &str, model_id: &str) -> Value {
    json!({
        "description": mark(name),
        "request_processors": [{ "neural_query_enricher": { "default_model_id": model_id } }]
    })
}

/// The index: title and text with the english analyzer, the vector as `rank_features` or nested, and, where the cluster
/// encodes, the pipeline as default.
pub fn index(
    name: &str,
    (shards, replicas): (u32, u32),
    fields: &Fields,
    indexing: &Indexing,
    pipeline: Option<&str>,
) -> Value {
    let mut settings = json!({ "number_of_shards": shards, "number_of_replicas": replicas });
    if let Some(pipeline) = pipeline {
        settings["default_pipeline"] = pipeline.into();
    }
    let mut body = json!({
        "settings": { "index": settings },
        "mappings": {
            "_meta": { (DEPLOYMENT): name },
            "properties": {
                fields.title.as_str(): { "type": "text", "analyzer": "english" },
                fields.text.as_str(): { "type": "text", "analyzer": "english" },
                fields.vector.as_str(): fields.vector_mapping()
            }
        }
    });
    if indexing.exclude_vector {
        source::exclude_vector(&mut body, fields);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_becomes_mustache() {
        let fields = Fields { title: "headline".to_owned(), ..Fields::default() };
        assert_eq!(mustache(&DocumentTemplate::default(), &fields), "{{{headline}}} {{{text}}}");
    }

    #[test]
    fn other_fields_of_the_corpus_go_by_their_own_names() {
        let template = DocumentTemplate { pattern: "{url}</s>{title}</s>{body}".to_owned(), max_chars: 10_000 };
        let fields = Fields { text: "content".to_owned(), ..Fields::default() };
        assert_eq!(mustache(&template, &fields), "{{{url}}}</s>{{{title}}}</s>{{{content}}}");
        let body = pipeline("n", &template, &fields, &Indexing::default(), "m");
        assert_eq!(body["processors"][2]["gsub"]["pattern"], "(?s)^(.{10000}).+$");
        let encoding = json!({ "model_id": "m", "field_map": { TEMPORARY_FIELD: "embedding" } });
        assert_eq!(body["processors"][3]["sparse_encoding"], encoding);
    }

    #[test]
    fn what_is_asked_for_beyond_goes_to_the_processor_and_the_mapping() {
        let pruning = Some(Pruning::MaxRatio(0.1));
        let indexing = Indexing { batch_size: Some(16), pruning, exclude_vector: true };
        let body = pipeline("n", &DocumentTemplate::default(), &Fields::default(), &indexing, "m");
        let encoding = json!({
            "model_id": "m", "field_map": { TEMPORARY_FIELD: "embedding" },
            "batch_size": 16, "prune_type": "max_ratio", "prune_ratio": 0.1
        });
        assert_eq!(body["processors"][3]["sparse_encoding"], encoding);
        let index = index("n", (1, 0), &Fields::default(), &indexing, None);
        assert_eq!(index["mappings"]["_source"], json!({ "excludes": ["embedding"] }));
    }

    #[test]
    fn a_field_named_like_a_placeholder_is_not_expanded_again() {
        let fields = Fields { title: "{text}".to_owned(), ..Fields::default() };
        assert_eq!(mustache(&DocumentTemplate::default(), &fields), "{{{{text}}}} {{{text}}}");
    }

    #[test]
    fn the_client_side_index_has_no_pipeline() {
        let body = index("n", (1, 0), &Fields::default(), &Indexing::default(), None);
        assert!(body["settings"]["index"].get("default_pipeline").is_none());
        assert_eq!(body["mappings"]["properties"]["embedding"]["type"], "rank_features");
    }
}

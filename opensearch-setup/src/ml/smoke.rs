//! A few queries before an index is served: does it answer, through the model that applications would use?

use serde::Serialize;
use serde_json::{Value, json};

use super::messages::{Step, explain_error};
use super::options::has_pipelines_by_alias;
use super::record::Deployment;
use crate::capabilities::Version;
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::search::bm25_query;

/// Documents that are asked for by their own words.
const SAMPLE: usize = 3;
/// Words of a document, or tokens of its vector, that a query is made of.
const WORDS: usize = 12;

/// How one query went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// The query, or the id of the document whose own words or tokens it was made of.
    pub what: String,
    /// Documents found, at most ten.
    pub hits: usize,
}

/// Asks an index, or an alias, some queries; each has to find something.
///
/// `texts` are the operator's own; to them come queries of the words of some documents, in any field that the template
/// reads. Where the cluster has a query model they go as `query_text` alone, the way applications send them; else the
/// heaviest tokens of the documents' vectors are asked for. Nothing is asked where no document looked at has either.
///
/// # Errors
/// If a query fails or finds nothing.
pub fn smoke(cluster: &Cluster, target: &str, version: &Deployment, texts: &[String]) -> Result<Vec<Asked>> {
    let subject = format!("index `{target}`");
    let ask = |query: &Value, size: usize, source: Value| -> Result<Vec<Value>> {
        let body = json!({ "size": size, "query": query, "_source": source, "track_total_hits": false });
        let answer = cluster
            .request_retrying(Method::Post, &format!("/{target}/_search"), Body::Json(body))
            .map_err(|e| explain_error(Step::Search, &subject, e))?;
        Ok(answer.body.pointer("/hits/hits").and_then(Value::as_array).cloned().unwrap_or_default())
    };
    let fields = &version.fields;
    let in_cluster = version.query_model.as_ref();
    if in_cluster.is_none() && !texts.is_empty() {
        return Err(Error::usage(
            "This deployment has no query model in the cluster that could encode a query",
            "leave `--query` out: the tokens of stored vectors are asked for instead",
        ));
    }
    let texts_in = text_fields(version);
    let wanted: Vec<&str> = texts_in.iter().copied().chain([fields.vector.as_str()]).collect();
    let mut queries: Vec<(String, Value)> = Vec::new();
    let is_direct = target == version.index;
    let is_in_force = is_direct || Version::parse(&version.version).is_some_and(has_pipelines_by_alias);
    let pipeline = version.search_pipeline.as_ref().filter(|_| is_in_force);
    let by_text = |text: &str| {
        let mut clause = json!({ "query_text": text });
        // Where a search pipeline names the model, queries do not.
        if let (None, Some(model)) = (pipeline, in_cluster) {
            clause["model_id"] = model.id.as_str().into();
        }
        fields.of_documents(json!({ "neural_sparse": { fields.features(): clause } }))
    };
    queries.extend(texts.iter().map(|text| (text.clone(), by_text(text))));
    for hit in ask(&json!({ "match_all": {} }), SAMPLE, json!(wanted))? {
        let id = hit.get("_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        let source = hit.get("_source").cloned().unwrap_or_default();
        let query = if in_cluster.is_some() {
            words(&source, &texts_in).map(|words| by_text(&words))
        } else if let Some(clause) = heaviest(&source, fields) {
            Some(fields.of_documents(clause))
        } else {
            // Of the fields only these two are certain to be indexed as text.
            words(&source, &[&fields.title, &fields.text]).map(|words| bm25_query(&words, fields))
        };
        queries.extend(query.map(|query| (format!("document {id}"), query)));
    }
    let mut asked = Vec::new();
    for (what, query) in queries {
        let hits = ask(&query, 10, json!(false))?.len();
        if hits == 0 {
            return Err(Error::world(
                format!("The smoke test of `{target}` failed: a query ({what}) finds nothing"),
                "look at the index with `nsparse search`; documents may lack their vectors, or have those of another model",
            ));
        }
        asked.push(Asked { what, hits });
    }
    Ok(asked)
}

/// The fields that a document's text may stand in: title, text, and what else the template reads.
pub(super) fn text_fields(version: &Deployment) -> Vec<&str> {
    let mut fields = vec![version.fields.title.as_str(), version.fields.text.as_str()];
    fields.extend(version.template.other_fields());
    fields
}

/// The first words of the first of these fields that has any.
fn words(source: &Value, fields: &[&str]) -> Option<String> {
    let text = |field: &&str| source.get(*field).and_then(Value::as_str).map(str::trim).filter(|t| !t.is_empty());
    let text = fields.iter().find_map(text)?;
    Some(text.split_whitespace().take(WORDS).collect::<Vec<_>>().join(" "))
}

/// The heaviest tokens of a stored vector, or of its first segment, as `rank_feature` clauses.
fn heaviest(source: &Value, fields: &super::plan::Fields) -> Option<Value> {
    let stored = source.get(&fields.vector)?;
    let vector = match &fields.segments {
        None => stored,
        Some(inner) => stored.get(0)?.get(inner)?,
    };
    let mut weights: Vec<(&String, f64)> =
        vector.as_object()?.iter().filter_map(|(token, w)| Some((token, w.as_f64()?))).collect();
    weights.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(b.0)));
    let field = fields.features();
    let clauses: Vec<Value> = weights
        .iter()
        .take(WORDS)
        .map(|(token, _)| json!({ "rank_feature": { "field": format!("{field}.{token}"), "linear": {} } }))
        .collect();
    (!clauses.is_empty()).then(|| json!({ "bool": { "should": clauses } }))
}

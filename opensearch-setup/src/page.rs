//! One search as a person asks it: a page of documents with what is stored of them, filtered, with the matching words
//! marked; and a hybrid of several queries.

use std::collections::HashMap;

use nsparse_core::{Hit, Weight};
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};
use crate::ml::Fields;
use crate::search::{MAX_DEPTH, bm25_query, hits, number};

/// Which documents of a ranking are shown, and how.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// How many documents are passed over first.
    pub from: usize,
    /// How many are shown.
    pub size: usize,
    /// Clauses that all documents found must match; they do not score.
    pub filters: Vec<Value>,
    /// The text whose words are marked in titles and texts, as BM25 would match them.
    pub highlight: Option<Highlight>,
    /// Whether ids and scores are enough: what is stored of a part of them is asked for by [`stored`].
    pub bare: bool,
}

/// What is marked, and how.
#[derive(Debug, Clone)]
pub struct Highlight {
    /// The query's text.
    pub text: String,
    /// Stands before a marked word.
    pub before: String,
    /// Stands behind it.
    pub after: String,
}

/// A document found, with what is stored of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its score.
    pub score: f32,
    /// Its `_source`, without the vector.
    pub source: Value,
    /// Parts of its title and its text with marked words, by field.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub highlight: Value,
}

/// A page of a ranking.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Results {
    /// How many documents match; where there are very many, the cluster stops counting.
    pub total: u64,
    /// Whether there are exactly so many.
    pub is_exact: bool,
    /// The page.
    pub hits: Vec<Found>,
}

/// Asks for one page. `request` is a search's body without page and filters, such as
/// [`crate::SparseSearcher::request`] gives.
///
/// # Errors
/// If the page ends behind the last document that an index gives, or the cluster refuses or does not answer.
pub fn search_page(cluster: &Cluster, index: &str, request: Value, page: &Page, fields: &Fields) -> Result<Results> {
    let last = page.from + page.size;
    if page.size == 0 || last > MAX_DEPTH {
        return Err(Error::usage(
            format!("A page of documents {} to {last} is not possible; an index gives 1 to {MAX_DEPTH}", page.from + 1),
            "narrow the search with --filter instead of paging deeper",
        ));
    }
    let mut body = request;
    filter(&mut body, &page.filters);
    body["size"] = page.size.into();
    if page.from > 0 {
        body["from"] = page.from.into();
    }
    body["_source"] = if page.bare { false.into() } else { json!({ "excludes": [fields.vector] }) };
    if let Some(highlight) = &page.highlight {
        body["highlight"] = json!({
            "fields": { fields.title.as_str(): { "number_of_fragments": 0 }, fields.text.as_str(): { "number_of_fragments": 2 } },
            "pre_tags": [highlight.before], "post_tags": [highlight.after],
            "highlight_query": bm25_query(&highlight.text, fields)
        });
    }
    let path = format!("/{index}/_search");
    let answer = cluster.request_retrying(Method::Post, &path, Body::Json(body))?.body;
    let part = |i: usize, name: &str| answer.pointer(&format!("/hits/hits/{i}/{name}")).cloned().unwrap_or_default();
    let found = hits(index, &answer)?.into_iter().enumerate().map(|(i, hit)| Found {
        id: hit.id,
        score: hit.score,
        source: part(i, "_source"),
        highlight: part(i, "highlight"),
    });
    Ok(Results {
        total: answer.pointer("/hits/total/value").and_then(Value::as_u64).unwrap_or(0),
        is_exact: answer.pointer("/hits/total/relation").and_then(Value::as_str) == Some("eq"),
        hits: found.collect(),
    })
}

/// What is stored of documents found before, with their scores, in their order; those that are gone meanwhile are left out.
///
/// # Errors
/// As [`search_page`].
pub fn stored(
    cluster: &Cluster,
    index: &str,
    hits: &[Hit],
    highlight: Option<Highlight>,
    fields: &Fields,
) -> Result<Vec<Found>> {
    if hits.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = hits.iter().map(|hit| hit.id.as_str()).collect();
    let request = json!({ "query": { "ids": { "values": ids } } });
    let page = Page { size: hits.len(), highlight, ..Page::default() };
    let found = search_page(cluster, index, request, &page, fields)?.hits;
    let mut by_id: HashMap<String, Found> = found.into_iter().map(|found| (found.id.clone(), found)).collect();
    Ok(hits.iter().filter_map(|hit| Some(Found { score: hit.score, ..by_id.remove(&hit.id)? })).collect())
}

/// Puts filters beside a body's query, or beside each query of a hybrid one.
fn filter(body: &mut Value, filters: &[Value]) {
    if filters.is_empty() {
        return;
    }
    let wrap = |query: &mut Value| {
        // As `should`, where neural-search's processors look for sparse clauses too.
        *query = json!({ "bool": { "should": [query.take()], "minimum_should_match": 1, "filter": filters } });
    };
    match body.pointer_mut("/query/hybrid/queries").and_then(Value::as_array_mut) {
        Some(queries) => queries.iter_mut().for_each(wrap),
        None => wrap(&mut body["query"]),
    }
}

/// A body that ranks by several queries together, each with its weight: the scores of each go from 0 to 1 over the
/// documents that it found on a shard, and their weighted mean counts. Needs neural-search, from 2.10.
pub fn hybrid_request(queries: &[(Value, Weight)]) -> Value {
    let clauses: Vec<&Value> = queries.iter().map(|(clause, _)| clause).collect();
    let weights: Vec<Value> = queries.iter().map(|(_, weight)| number(*weight)).collect();
    json!({
        "query": { "hybrid": { "queries": clauses } },
        "search_pipeline": { "phase_results_processors": [ { "normalization-processor": {
            "normalization": { "technique": "min_max" },
            "combination": { "technique": "arithmetic_mean", "parameters": { "weights": weights } }
        } } ] }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_stand_beside_the_query_and_leave_its_score_alone() {
        let mut body = json!({ "query": { "match_all": {} }, "rescore": 1 });
        filter(&mut body, &[]);
        assert_eq!(body, json!({ "query": { "match_all": {} }, "rescore": 1 }));
        let year = json!({ "term": { "year": 2020 } });
        filter(&mut body, std::slice::from_ref(&year));
        let wrapped =
            json!({ "bool": { "should": [{ "match_all": {} }], "minimum_should_match": 1, "filter": [year] } });
        assert_eq!(body, json!({ "query": wrapped, "rescore": 1 }));
    }

    #[test]
    fn each_query_of_a_hybrid_one_is_filtered() {
        let mut body = hybrid_request(&[(json!({ "a": 1 }), 0.3), (json!({ "b": 2 }), 0.7)]);
        filter(&mut body, &[json!({ "term": { "year": 2020 } })]);
        let queries = body.pointer("/query/hybrid/queries").and_then(Value::as_array).cloned().unwrap_or_default();
        let first = |i: usize| queries[i].pointer("/bool/should/0").cloned();
        assert_eq!((first(0), first(1)), (Some(json!({ "a": 1 })), Some(json!({ "b": 2 }))));
        let at = "/search_pipeline/phase_results_processors/0/normalization-processor/combination/parameters/weights";
        assert_eq!(body.pointer(at), Some(&json!([0.3, 0.7])));
    }
}

//! Searching a cluster: BM25 over title and text, and sparse vectors through `neural_sparse` where the plugin is,
//! through `rank_feature` clauses where it is not. Both give the same scores.

use std::collections::HashMap;

use nsparse_core::vector::MAX_QUERY_TOKENS;
use nsparse_core::{Hit, SearchQuery, Searcher, SparseVector, Weight};
use serde_json::{Map, Value, json};

use crate::client::{Body, Cluster, Method, NDJSON};
use crate::error::{ApiError, Error, Result};
use crate::ingest::FeatureNames;
use crate::ml::Fields;
use crate::two_phase::TwoPhase;

mod explain;

pub use explain::TermScore;

/// The deepest page that an index gives by default (`index.max_result_window`).
pub const MAX_DEPTH: usize = 10_000;
/// Queries in one multi-search request.
const QUERIES_A_REQUEST: usize = 50;

/// BM25 over title and text: `multi_match`, `best_fields`, with half of the weaker field's score added.
#[derive(Debug, Clone)]
pub struct Bm25Searcher {
    cluster: Cluster,
    index: String,
    fields: Fields,
}

impl Bm25Searcher {
    /// Over an index with these fields; nothing is asked yet.
    pub fn new(cluster: Cluster, index: impl Into<String>, fields: Fields) -> Self {
        Self { cluster, index: index.into(), fields }
    }

    /// The query clause for a text.
    pub fn query(&self, text: &str) -> Value {
        bm25_query(text, &self.fields)
    }
}

impl Searcher for Bm25Searcher {
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        let requests = queries.iter().map(|q| Some(json!({ "query": self.query(&q.text) }))).collect();
        Ok(multi_search(&self.cluster, &self.index, queries, requests, depth)?)
    }

    fn score(&self, query: &SearchQuery, ids: &[&str]) -> nsparse_core::Result<Option<Vec<f32>>> {
        Ok(Some(score_ids(&self.cluster, &self.index, query, Some(self.query(&query.text)), ids)?))
    }
}

/// `multi_match` over title and text, `tie_breaker` 0.5.
pub fn bm25_query(text: &str, fields: &Fields) -> Value {
    json!({ "multi_match": {
        "query": text, "type": "best_fields", "fields": [fields.title, fields.text], "tie_breaker": 0.5
    } })
}

/// How a sparse query reaches the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SparseMode {
    /// `neural_sparse` with the tokens and weights made here: from 2.14, with the neural-search plugin.
    Tokens,
    /// `neural_sparse` with the text, encoded by a model in the cluster.
    Text {
        /// The deployed query model.
        model_id: String,
    },
    /// One `rank_feature` clause a token: any OpenSearch.
    RankFeature,
}

/// Sparse vectors over a `rank_features` field, or over one in nested segments, of which the best counts.
#[derive(Debug, Clone)]
pub struct SparseSearcher {
    cluster: Cluster,
    index: String,
    fields: Fields,
    vocabulary: Vec<String>,
    mode: SparseMode,
    phases: Option<TwoPhase>,
}

impl SparseSearcher {
    /// Over an index's vector field. Asks the cluster what it can do: `query_tokens` where it takes them, else
    /// `rank_feature` clauses.
    ///
    /// # Errors
    /// If the cluster does not answer.
    pub fn new(cluster: Cluster, index: impl Into<String>, field: &str, vocabulary: &[String]) -> Result<Self> {
        let mode = if cluster.capabilities()?.query_tokens { SparseMode::Tokens } else { SparseMode::RankFeature };
        Ok(Self::with_mode(cluster, index, field, vocabulary, mode))
    }

    /// As [`SparseSearcher::new`], in a mode of choice.
    pub fn with_mode(
        cluster: Cluster,
        index: impl Into<String>,
        field: &str,
        vocabulary: &[String],
        mode: SparseMode,
    ) -> Self {
        let fields = Fields { vector: field.to_owned(), ..Fields::default() };
        let vocabulary = vocabulary.to_vec();
        Self { cluster, index: index.into(), fields, vocabulary, mode, phases: None }
    }

    /// The same in two phases.
    #[must_use]
    pub fn in_two_phases(mut self, phases: Option<TwoPhase>) -> Self {
        self.phases = phases;
        self
    }

    /// The same over an index with these fields: nested where they say so.
    #[must_use]
    pub fn over(mut self, fields: &Fields) -> Self {
        self.fields = fields.clone();
        self
    }

    /// How queries reach the engine.
    pub fn mode(&self) -> &SparseMode {
        &self.mode
    }

    /// The query clause over all tokens; `None` where the query has nothing to search with.
    ///
    /// # Errors
    /// If a weight is not in (0, 64], or there are more than 1024 tokens: the query is named.
    pub fn query(&self, query: &SearchQuery) -> Result<Option<Value>> {
        self.clause(query, &query.vector, &FeatureNames::new(&self.vocabulary))
    }

    /// The part of a search's body that finds the best `depth` documents: `query`, and with two phases `rescore`, or
    /// where the cluster encodes the query its `search_pipeline`. `None` where the query has nothing to search with.
    ///
    /// # Errors
    /// As [`SparseSearcher::query`]; also if the index has segments, whose best one depends on all tokens together.
    pub fn request(&self, query: &SearchQuery, depth: usize) -> Result<Option<Value>> {
        self.request_with(query, depth, &FeatureNames::new(&self.vocabulary))
    }

    fn request_with(&self, query: &SearchQuery, depth: usize, names: &FeatureNames) -> Result<Option<Value>> {
        let in_one_phase = || Ok(self.clause(query, &query.vector, names)?.map(|clause| json!({ "query": clause })));
        let Some(phases) = self.phases else { return in_one_phase() };
        if self.fields.segments.is_some() {
            return Err(Error::usage(
                "Nested segments cannot be searched in two phases: which one is best depends on all tokens together",
                "search in one phase, or keep one vector a document",
            ));
        }
        if let SparseMode::Text { .. } = &self.mode {
            let Some(mut request) = in_one_phase()? else { return Ok(None) };
            if !self.cluster.capabilities()?.two_phase {
                return Err(Error::usage(
                    "This cluster cannot search in two phases with queries that it encodes itself",
                    "give --model DIR, so that queries are encoded here; or search in one phase",
                ));
            }
            request["search_pipeline"] = phases.pipeline();
            return Ok(Some(request));
        }
        let (first, second) = phases.pruning.split(&query.vector);
        let Some(clause) = self.clause(query, &first, names)? else { return in_one_phase() };
        let mut request = json!({ "query": clause });
        if let Some(rest) = self.clause(query, &second, names)? {
            request["rescore"] = phases.rescore(&rest, depth);
        }
        Ok(Some(request))
    }

    /// The clause for some of a query's tokens, or for its text.
    fn clause(&self, query: &SearchQuery, vector: &SparseVector, names: &FeatureNames) -> Result<Option<Value>> {
        let field = self.fields.features();
        if let SparseMode::Text { model_id } = &self.mode {
            // The engine refuses a blank text.
            let clause = json!({ "neural_sparse": { field: { "query_text": query.text, "model_id": model_id } } });
            return Ok((!query.text.trim().is_empty()).then(|| self.fields.of_documents(clause)));
        }
        let features = check_features(&query.id, vector, names)?;
        if features.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.fields.of_documents(if self.mode == SparseMode::Tokens {
            tokens_query(&field, &features)
        } else {
            rank_feature_query(&field, &features)
        })))
    }
}

impl Searcher for SparseSearcher {
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        let names = FeatureNames::new(&self.vocabulary);
        let requests = queries.iter().map(|q| self.request_with(q, depth, &names)).collect::<Result<Vec<_>>>()?;
        Ok(multi_search(&self.cluster, &self.index, queries, requests, depth)?)
    }

    fn score(&self, query: &SearchQuery, ids: &[&str]) -> nsparse_core::Result<Option<Vec<f32>>> {
        Ok(Some(score_ids(&self.cluster, &self.index, query, self.query(query)?, ids)?))
    }
}

/// Scores of named documents: the query itself, with a filter that does not score.
fn score_ids(
    cluster: &Cluster,
    index: &str,
    query: &SearchQuery,
    clause: Option<Value>,
    ids: &[&str],
) -> Result<Vec<f32>> {
    let asked = std::slice::from_ref(query);
    let requests = vec![clause.map(|clause| among(&clause, ids))];
    let found = multi_search(cluster, index, asked, requests, ids.len().clamp(1, MAX_DEPTH))?;
    let hits: HashMap<&str, f32> = found.iter().flatten().map(|hit| (hit.id.as_str(), hit.score)).collect();
    Ok(ids.iter().map(|id| hits.get(id).copied().unwrap_or(0.0)).collect())
}

/// A search of a clause among some documents; the filter does not score.
fn among(clause: &Value, ids: &[&str]) -> Value {
    json!({ "query": { "bool": { "must": [clause], "filter": [{ "ids": { "values": ids } }] } } })
}

/// A query's features, with its id in the error.
fn check_features<'a>(id: &str, vector: &SparseVector, names: &FeatureNames<'a>) -> Result<Vec<(&'a str, Weight)>> {
    let features = names.features(vector).map_err(|why| {
        Error::usage(format!("The query `{id}` cannot be sent: {why}"), "weights come from idf.json; see `nsparse idf`")
    })?;
    if features.len() > MAX_QUERY_TOKENS {
        return Err(Error::usage(
            format!("The query `{id}` has {} tokens; the engine takes {MAX_QUERY_TOKENS}", features.len()),
            "shorten the query",
        ));
    }
    Ok(features)
}

/// A weight as a JSON number with the shortest digits that give the same `f32` back.
pub(crate) fn number(weight: Weight) -> Value {
    weight.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

fn tokens_query(field: &str, features: &[(&str, Weight)]) -> Value {
    let tokens: Map<String, Value> = features.iter().map(|(t, w)| ((*t).to_owned(), number(*w))).collect();
    json!({ "neural_sparse": { field: { "query_tokens": tokens } } })
}

/// A sum of `boost · weight` over the clauses: `linear` is the stored weight itself.
fn rank_feature_query(field: &str, features: &[(&str, Weight)]) -> Value {
    let clause = |(token, weight): &(&str, Weight)| json!({ "rank_feature": { "field": format!("{field}.{token}"), "linear": {}, "boost": number(*weight) } });
    json!({ "bool": { "should": features.iter().map(clause).collect::<Vec<_>>() } })
}

/// Many searches in few requests; only ids and scores come back. Each request is a search's body without its size; a query
/// without one finds nothing.
fn multi_search(
    cluster: &Cluster,
    index: &str,
    queries: &[SearchQuery],
    requests: Vec<Option<Value>>,
    depth: usize,
) -> Result<Vec<Vec<Hit>>> {
    if depth == 0 || depth > MAX_DEPTH {
        return Err(Error::usage(
            format!("A search of depth {depth} is not possible; an index gives 1 to {MAX_DEPTH}"),
            "give a smaller --depth",
        ));
    }
    let mut found = vec![Vec::new(); queries.len()];
    let asked: Vec<(usize, String)> = requests
        .into_iter()
        .enumerate()
        .filter_map(|(i, request)| {
            let mut request = request?;
            request["size"] = depth.into();
            request["_source"] = false.into();
            request["track_total_hits"] = false.into();
            Some((i, request.to_string()))
        })
        .collect();
    for chunk in asked.chunks(QUERIES_A_REQUEST) {
        let mut waiting: Vec<&(usize, String)> = chunk.iter().collect();
        let mut pauses = backon::BackoffBuilder::build(cluster.retry_policy().builder());
        while !waiting.is_empty() {
            let mut busy = Vec::new();
            let mut last = None;
            for (asked, answer) in waiting.iter().zip(ask(cluster, index, &waiting)?) {
                match hits(index, &answer) {
                    Ok(hits) => found[asked.0] = hits,
                    Err(error) if error.is_transient() => {
                        busy.push(*asked);
                        last = Some(error);
                    }
                    Err(error) => {
                        return Err(Error::Failed {
                            fault: error.fault(),
                            message: format!("The query `{}` failed: {error}", queries[asked.0].id),
                            hint: error.hint(),
                        });
                    }
                }
            }
            if let Some(error) = last {
                let Some(pause) = pauses.next() else { return Err(error) };
                tracing::warn!(queries = busy.len(), %error, pause_ms = pause.as_millis() as u64, "searching again");
                std::thread::sleep(pause);
            }
            waiting = busy;
        }
    }
    Ok(found)
}

/// One multi-search request; one answer a query.
fn ask(cluster: &Cluster, index: &str, queries: &[&(usize, String)]) -> Result<Vec<Value>> {
    let mut body = String::new();
    for (_, query) in queries {
        body.push_str("{}\n");
        body.push_str(query);
        body.push('\n');
    }
    let path = format!(
        "/{index}/_msearch?filter_path=responses.status,responses.error,responses.hits.hits._id,\
         responses.hits.hits._score,responses._shards.failures"
    );
    let answer = cluster.request_retrying(Method::Post, &path, Body::Raw(body.into_bytes(), NDJSON))?;
    match answer.body.get("responses").and_then(Value::as_array) {
        Some(responses) if responses.len() == queries.len() => Ok(responses.clone()),
        other => Err(Error::Unexpected {
            method: "POST",
            path,
            message: format!("{} answers to {} searches", other.map_or(0, Vec::len), queries.len()),
        }),
    }
}

/// The hits of one answer; failed shards are an error, since the ranking would be wrong.
pub(crate) fn hits(index: &str, answer: &Value) -> Result<Vec<Hit>> {
    let failed = answer.get("error").is_some() || answer.pointer("/_shards/failures/0").is_some();
    if failed {
        let status = answer.get("status").and_then(Value::as_u64).unwrap_or(500) as u16;
        let reasons = json!({ "error": answer.get("error").or_else(|| answer.pointer("/_shards/failures/0/reason")) });
        let (kind, reason) = crate::client::unwrap_reason(&reasons);
        let path = format!("/{index}/_msearch");
        return Err(Error::Api(Box::new(ApiError {
            method: "POST",
            path,
            status,
            kind,
            reason,
            body: answer.clone(),
        })));
    }
    let list = answer.pointer("/hits/hits").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    list.iter()
        .map(|hit| {
            let id = hit.get("_id").and_then(Value::as_str);
            let score = hit.get("_score").and_then(Value::as_f64);
            id.zip(score).map(|(id, score)| Hit { id: id.to_owned(), score: score as f32 }).ok_or_else(|| {
                Error::Unexpected {
                    method: "POST",
                    path: format!("/{index}/_msearch"),
                    message: format!("a hit without id or score: {hit}"),
                }
            })
        })
        .collect()
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;

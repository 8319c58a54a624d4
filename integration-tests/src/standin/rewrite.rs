//! `neural_sparse` for a node that does not know it: as `rank_feature` clauses, which score the same to the last
//! digit (recorded), with neural-search's own refusals.

use std::collections::BTreeMap;

use axum::body::Bytes;
use serde_json::{Value, json};

use super::Reply;
use super::http::Incoming;
use super::phases;
use super::state::State;

/// The body to send on: of searches rewritten, of search pipelines without what the node does not know, of everything
/// else as it came. `pipeline` is the search pipeline in force.
pub(super) fn body(state: &State, incoming: &Incoming, pipeline: Option<&Value>) -> Result<Bytes, Reply> {
    if !state.options.neural_search {
        return Ok(incoming.body.clone());
    }
    if incoming.method == "PUT" && incoming.path.starts_with("/_search/pipeline/") {
        return Ok(phases::stripped(incoming.json()).to_string().into());
    }
    let default = pipeline.and_then(default_model);
    if incoming.path.ends_with("/_search") {
        let mut request = incoming.json();
        if request.is_null() {
            return Ok(incoming.body.clone());
        }
        search(state, &mut request, pipeline)?;
        return Ok(request.to_string().into());
    }
    if incoming.path.ends_with("/_msearch") {
        let text = String::from_utf8_lossy(&incoming.body);
        let mut out = String::new();
        for line in text.lines() {
            match serde_json::from_str::<Value>(line) {
                Ok(mut query) => {
                    rewrite(state, &mut query, default)?;
                    out.push_str(&query.to_string());
                }
                Err(_) => out.push_str(line),
            }
            out.push('\n');
        }
        return Ok(out.into());
    }
    Ok(incoming.body.clone())
}

/// Rewrites a search's body, with what its pipeline does to it.
pub(super) fn search(state: &State, request: &mut Value, pipeline: Option<&Value>) -> Result<(), Reply> {
    if let Some(request) = request.as_object_mut() {
        request.remove("search_pipeline");
    }
    let default = pipeline.and_then(default_model);
    if let Some(processor) = pipeline.and_then(|p| phases::processor(p, "neural_sparse_two_phase_processor")) {
        phases::split(state, request, processor, default)?;
    }
    rewrite(state, request, default)
}

/// Rewrites every `neural_sparse` in a query, however deep it stands.
pub(super) fn rewrite(state: &State, value: &mut Value, default: Option<&str>) -> Result<(), Reply> {
    match value {
        Value::Array(values) => values.iter_mut().try_for_each(|v| rewrite(state, v, default)),
        Value::Object(object) => {
            if let Some(clause) = object.remove("neural_sparse") {
                let rewritten = clauses(state, &clause, default)?;
                object.extend(rewritten.as_object().cloned().unwrap_or_default());
                return Ok(());
            }
            object.values_mut().try_for_each(|v| rewrite(state, v, default))
        }
        _ => Ok(()),
    }
}

/// The model that a search pipeline gives to queries that name none.
pub(super) fn default_model(pipeline: &Value) -> Option<&str> {
    phases::processor(pipeline, "neural_query_enricher")?.get("default_model_id")?.as_str()
}

/// The index or alias of a search to which a search pipeline of neural-search may do something.
pub(super) fn searched(incoming: &Incoming) -> Option<&str> {
    let target = incoming.path.strip_suffix("/_search")?.trim_matches('/');
    let text = String::from_utf8_lossy(&incoming.body);
    (text.contains("\"neural_sparse\"") || text.contains("\"hybrid\"")).then_some(target)
}

/// The tokens of a `neural_sparse` clause with their weights.
pub(super) fn tokens(state: &State, config: &Value, default: Option<&str>) -> Result<BTreeMap<String, f32>, Reply> {
    let refuse = |reason: &str| Err(Reply::error(400, "illegal_argument_exception", reason));
    match (&config["query_tokens"], &config["query_text"], &config["model_id"]) {
        (Value::Object(tokens), _, _) => {
            Ok(tokens.iter().map(|(t, w)| (t.clone(), w.as_f64().unwrap_or(0.0) as f32)).collect())
        }
        (_, Value::String(text), _) if text.is_empty() => refuse("query_text field can not be empty"),
        (_, Value::String(text), Value::String(model)) => state.infer(model, text),
        (_, Value::String(text), Value::Null) if default.is_some() => state.infer(default.unwrap_or_default(), text),
        _ => refuse("query_text and model_id cannot be null"),
    }
}

fn clauses(state: &State, clause: &Value, default: Option<&str>) -> Result<Value, Reply> {
    let refuse = |kind: &str, reason: String| Reply::error(400, kind, &reason);
    let Some((field, config)) = clause.as_object().and_then(|c| c.iter().next()) else {
        return Err(refuse("parsing_exception", "[neural_sparse] query has no field".to_owned()));
    };
    let tokens = tokens(state, config, default)?;
    if tokens.len() > 1024 {
        return Err(refuse(
            "query_shard_exception",
            "failed to create query: maxClauseCount is set to 1024".to_owned(),
        ));
    }
    if let Some(weight) = tokens.values().find(|w| !(**w > 0.0 && **w <= 64.0)) {
        let reason = format!("failed to create query: weight must be in (0, 64.0], got: {weight:?}");
        return Err(refuse("query_shard_exception", reason));
    }
    if tokens.is_empty() {
        return Ok(json!({ "match_none": {} }));
    }
    let should: Vec<Value> = tokens
        .iter()
        .map(|(token, &weight)| {
            json!({ "rank_feature": { "field": format!("{field}.{token}"), "linear": {}, "boost": weight } })
        })
        .collect();
    let mut query = json!({ "bool": { "should": should } });
    if let Some(boost) = config.get("boost") {
        query["bool"]["boost"] = boost.clone();
    }
    Ok(query)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;
    use crate::standin::Options;

    #[test]
    fn query_tokens_become_rank_feature_clauses_anywhere() {
        let state = State::new(Options::default());
        let mut query = json!({ "query": { "hybrid": { "queries": [
            { "term": { "_id": "3" } },
            { "neural_sparse": { "embedding": { "query_tokens": { "neural": 2.0 }, "boost": 0.5 } } }
        ] } } });
        rewrite(&state, &mut query, None).unwrap();
        let clause = json!({ "rank_feature": { "field": "embedding.neural", "linear": {}, "boost": 2.0 } });
        assert_eq!(
            query.pointer("/query/hybrid/queries/1"),
            Some(&json!({ "bool": { "should": [clause], "boost": 0.5 } }))
        );
    }

    #[test]
    fn refusals_are_the_recorded_ones() {
        let state = State::new(Options::default());
        for (tokens, reason) in [
            (
                json!({ "query_tokens": { "neural": 65.0 } }),
                "failed to create query: weight must be in (0, 64.0], got: 65.0",
            ),
            (
                json!({ "query_tokens": { "neural": 0.0 } }),
                "failed to create query: weight must be in (0, 64.0], got: 0.0",
            ),
            (json!({ "query_text": "neural" }), "query_text and model_id cannot be null"),
            (json!({ "query_text": "", "model_id": "m" }), "query_text field can not be empty"),
            (json!({ "query_text": "x", "model_id": "nosuchmodel" }), "Failed to find model"),
        ] {
            let mut query = json!({ "query": { "neural_sparse": { "embedding": tokens } } });
            let reply = rewrite(&state, &mut query, None).unwrap_err();
            assert_eq!(reply.body["error"]["reason"], reason);
        }
    }
}

//! What neural-search's search pipelines do to a search, for a node that does not know them: two phases become a
//! `rescore`, and a hybrid query becomes one search a part, normalised and combined here.

use nsparse_core::Hit;
use nsparse_retrieval::Fusion;
use serde_json::{Map, Value, json};

use super::Reply;
use super::rewrite;
use super::state::State;

/// Processors of neural-search, which a bare node refuses.
pub(super) const PROCESSORS: [&str; 3] =
    ["neural_query_enricher", "neural_sparse_two_phase_processor", "normalization-processor"];

/// A pipeline without what a bare node does not know.
pub(super) fn stripped(mut pipeline: Value) -> Value {
    for phase in ["request_processors", "phase_results_processors"] {
        if let Some(Value::Array(processors)) = pipeline.get_mut(phase) {
            processors.retain(|p| !PROCESSORS.iter().any(|known| p.get(known).is_some()));
        }
    }
    if pipeline.get("phase_results_processors").and_then(Value::as_array).is_some_and(Vec::is_empty)
        && let Some(pipeline) = pipeline.as_object_mut()
    {
        pipeline.remove("phase_results_processors");
    }
    pipeline
}

/// A processor's configuration in a pipeline.
pub(super) fn processor<'a>(pipeline: &'a Value, name: &str) -> Option<&'a Value> {
    ["request_processors", "phase_results_processors"]
        .iter()
        .filter_map(|phase| pipeline.get(phase)?.as_array())
        .flatten()
        .find_map(|p| p.get(name))
}

/// The recorded refusal of a pipeline.
pub(super) fn check(pipeline: &Value) -> Result<(), Reply> {
    let ratio = processor(pipeline, "neural_sparse_two_phase_processor")
        .and_then(|p| p.pointer("/two_phase_parameter/prune_ratio"))
        .and_then(Value::as_f64);
    match ratio {
        Some(ratio) if !(0.0..=1.0).contains(&ratio) => {
            let reason = format!("The two_phase_parameter.prune_ratio must be within [0, 1]. Received: {ratio:.6}");
            Err(Reply::error(400, "illegal_argument_exception", &reason))
        }
        _ => Ok(()),
    }
}

/// Puts the light tokens of the sparse clauses into a second phase, as the processor does; only clauses that stand
/// alone, or in a `should`.
pub(super) fn split(state: &State, request: &mut Value, processor: &Value, default: Option<&str>) -> Result<(), Reply> {
    if processor.get("enabled") == Some(&json!(false)) {
        return Ok(());
    }
    let parameter = |name: &str, otherwise: f64| {
        processor.pointer(&format!("/two_phase_parameter/{name}")).and_then(Value::as_f64).unwrap_or(otherwise)
    };
    let size = request.get("size").and_then(Value::as_f64).unwrap_or(10.0);
    let (window, most) = (size * parameter("expansion_rate", 5.0), parameter("max_window_size", 10_000.0));
    let mut light = Vec::new();
    if let Some(query) = request.get_mut("query") {
        take_light(state, query, parameter("prune_ratio", 0.4) as f32, default, &mut light)?;
    }
    if light.is_empty() {
        return Ok(());
    }
    if window > most {
        // Its wording is not recorded.
        return Err(Reply::error(400, "illegal_argument_exception", "two-phase window is larger than max_window_size"));
    }
    request["rescore"] = json!({
        "window_size": window as u64,
        "query": { "rescore_query": { "bool": { "should": light } }, "query_weight": 1.0, "rescore_query_weight": 1.0 }
    });
    Ok(())
}

fn take_light(
    state: &State,
    query: &mut Value,
    ratio: f32,
    default: Option<&str>,
    light: &mut Vec<Value>,
) -> Result<(), Reply> {
    if let Some(parts) = query.pointer_mut("/bool/should").and_then(Value::as_array_mut) {
        return parts.iter_mut().try_for_each(|part| take_light(state, part, ratio, default, light));
    }
    let Some((field, config)) =
        query.get_mut("neural_sparse").and_then(Value::as_object_mut).and_then(|c| c.iter_mut().next())
    else {
        return Ok(());
    };
    let tokens = rewrite::tokens(state, config, default)?;
    let threshold = ratio * tokens.values().copied().fold(0.0, f32::max);
    let (first, second): (Map<String, Value>, Map<String, Value>) = tokens
        .into_iter()
        .map(|(token, weight)| (token, json!(weight)))
        .partition(|(_, weight)| weight.as_f64().is_some_and(|weight| weight as f32 >= threshold));
    if !second.is_empty() {
        light.push(json!({ "neural_sparse": { field: { "query_tokens": second } } }));
        *config = json!({ "query_tokens": first });
    }
    Ok(())
}

/// The searches that a hybrid one consists of, and one that counts the documents of them all; `None` where it is not one.
pub(super) fn parts(request: &Value) -> Option<Vec<Value>> {
    let queries = request.pointer("/query/hybrid/queries")?.as_array()?;
    let one = |query: &Value| {
        let mut part = request.clone();
        part["query"] = query.clone();
        part
    };
    let count = json!({ "size": 0, "track_total_hits": true, "query": { "bool": { "should": queries } } });
    Some(queries.iter().map(one).chain([count]).collect())
}

/// The answer of a hybrid search from those of [`parts`].
pub(super) fn combined(pipeline: &Value, request: &Value, mut answers: Vec<Value>) -> Reply {
    let Some(config) = processor(pipeline, "normalization-processor") else {
        return Reply::error(400, "illegal_argument_exception", "a hybrid query without a normalization-processor");
    };
    let total = answers.pop().and_then(|a| a.pointer("/hits/total").cloned()).unwrap_or_default();
    let lists: Vec<&Vec<Value>> =
        answers.iter().filter_map(|a| a.pointer("/hits/hits").and_then(Value::as_array)).collect();
    let weights: Vec<f32> = match config.pointer("/combination/parameters/weights").and_then(Value::as_array) {
        Some(weights) => weights.iter().filter_map(Value::as_f64).map(|w| w as f32).collect(),
        None => vec![1.0; lists.len()],
    };
    let id = |hit: &Value| hit["_id"].as_str().unwrap_or_default().to_owned();
    let ranked: Vec<Vec<Hit>> = lists
        .iter()
        .map(|list| {
            let hit = |hit: &Value| Hit { id: id(hit), score: hit["_score"].as_f64().unwrap_or(0.0) as f32 };
            list.iter().map(hit).collect()
        })
        .collect();
    let size = request.get("size").and_then(Value::as_u64).unwrap_or(10) as usize;
    let hits: Vec<Value> = Fusion::MinMax
        .fuse(&ranked, &weights)
        .into_iter()
        .take(size)
        .filter_map(|fused| {
            let mut hit = lists.iter().copied().flatten().find(|hit| id(hit) == fused.id)?.clone();
            hit["_score"] = json!(fused.score);
            Some(hit)
        })
        .collect();
    let best = hits.first().map_or(Value::Null, |hit| hit["_score"].clone());
    let mut answer = answers.into_iter().next().unwrap_or_default();
    answer["hits"] = json!({ "total": total, "max_score": best, "hits": hits });
    Reply::ok(answer)
}

//! Bulk requests before a real node: documents pass through a pipeline that only the stand-in has, and go on without one.

use axum::body::Bytes;
use serde_json::Value;

use super::Reply;
use super::http::Incoming;
use super::state::State;

/// The pipeline of a bulk request, if it is one that the stand-in keeps.
fn pipeline<'a>(state: &State, incoming: &'a Incoming) -> Option<&'a str> {
    if !incoming.path.ends_with("/_bulk") {
        return None;
    }
    let name = incoming.query.split('&').find_map(|part| part.strip_prefix("pipeline="))?;
    state.node.pipelines.contains_key(name).then_some(name)
}

/// Path and query for the node behind, which lacks that pipeline.
pub(super) fn target(state: &State, incoming: &Incoming) -> String {
    let target = incoming.target();
    match pipeline(state, incoming) {
        Some(name) => target.replace(&format!("pipeline={name}"), "pipeline=_none"),
        None => target,
    }
}

/// The body with each document as the pipeline leaves it; `None` where no pipeline of ours is asked for.
pub(super) fn body(state: &State, incoming: &Incoming) -> Result<Option<Bytes>, Reply> {
    let Some(name) = pipeline(state, incoming) else { return Ok(None) };
    let pipeline = &state.node.pipelines[name];
    let mut out = Vec::new();
    let mut lines = incoming.body.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    while let Some(action) = lines.next() {
        out.extend_from_slice(action);
        out.push(b'\n');
        if !action.starts_with(b"{\"index\"") && !action.starts_with(b"{\"create\"") {
            continue;
        }
        let mut document: Value = lines.next().and_then(|l| serde_json::from_slice(l).ok()).unwrap_or_default();
        state.run(pipeline, &mut document)?;
        out.extend_from_slice(document.to_string().as_bytes());
        out.push(b'\n');
    }
    Ok(Some(out.into()))
}

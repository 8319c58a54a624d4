//! One table that turns what ML Commons and `neural_sparse` answer into a sentence: what failed, where, why,
//! and what to do. An answer that no row knows is quoted, never swallowed.
//!
//! The texts in the table were seen on a real 2.16.0 (`integration-tests/traces`), or stand in the source of ML Commons or
//! OpenSearch.

use std::fmt;

use nsparse_core::Fault;
use serde_json::Value;

pub use super::causes::{Cause, Step};
use super::rows::{ROWS, Row, STATUSES, UNKNOWN};
use crate::error::Error;

/// An answer, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of cause it is.
    pub cause: Cause,
    /// What failed, where and why, with the cluster's own words in quotes.
    pub message: String,
    /// What to do, where something is known.
    pub hint: Option<String>,
    /// Whose fault it is.
    pub fault: Fault,
    /// The cluster's own words.
    pub quoted: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Problem {}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Failed { fault: problem.fault, message: problem.message, hint: problem.hint }
    }
}

/// Explains an error of the client where the cluster answered; everything else stays as it is.
pub(crate) fn explain_error(step: Step, subject: &str, error: Error) -> Error {
    match error.api() {
        Some(api) => explain(step, subject, api.status, &api.body).into(),
        None => error,
    }
}

/// The kind of cause, where the cluster answered.
pub(crate) fn cause_of(step: Step, error: &Error) -> Option<Cause> {
    error.api().map(|api| explain(step, "", api.status, &api.body).cause)
}

/// Explains an error answer: any status of 400 and above, or a body with an `error` object.
/// `subject` names the thing: "model `a` (id b)".
pub fn explain(step: Step, subject: &str, status: u16, body: &Value) -> Problem {
    let reasons = reasons(body);
    let quoted = reasons.first().cloned().unwrap_or_else(|| whole(body));
    let row = find(step, &reasons).or_else(|| find(step, std::slice::from_ref(&quoted)));
    let place = format!("HTTP {status}");
    match row {
        Some(row) => known(step, subject, row, &quoted, &place),
        None => unknown(step, subject, status, &quoted, &place),
    }
}

/// Explains a task that did not complete. Its `error` is a string; after a deploy that string holds JSON again,
/// from node ids to messages.
pub fn explain_task(step: Step, subject: &str, task: &Value) -> Problem {
    let errors = task_errors(task);
    let texts: Vec<String> = errors.iter().map(|(_, text)| text.clone()).collect();
    let nodes: Vec<&str> = errors.iter().filter_map(|(node, _)| node.as_deref()).collect();
    let state = task.get("state").and_then(Value::as_str).unwrap_or("without a state");
    let place = match nodes.as_slice() {
        [] => format!("task {state}"),
        [one] => format!("task {state} on node {one}"),
        many => format!("task {state} on nodes {}", many.join(", ")),
    };
    let mut distinct = texts.clone();
    distinct.dedup();
    let quoted = if distinct.is_empty() { whole(task) } else { distinct.join("; ") };
    match find(step, &texts) {
        Some(row) => known(step, subject, row, &quoted, &place),
        None => unknown(step, subject, 0, &quoted, &place),
    }
}

/// A task's errors: node id, where the task tells it, and message.
pub fn task_errors(task: &Value) -> Vec<(Option<String>, String)> {
    let Some(error) = task.get("error") else { return Vec::new() };
    let text = match error {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(nodes)) => nodes
            .into_iter()
            .map(|(node, message)| {
                let message = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
                (Some(node), message)
            })
            .collect(),
        _ => vec![(None, text)],
    }
}

/// All reasons in an error answer, the most telling first: the innermost cause, then root causes, then the rest.
fn reasons(body: &Value) -> Vec<String> {
    let error = body.get("error").unwrap_or(body);
    let mut out: Vec<String> = Vec::new();
    let mut add = |text: Option<&str>| {
        if let Some(text) = text.filter(|t| !t.is_empty())
            && !out.iter().any(|o| o == text)
        {
            out.push(text.to_owned());
        }
    };
    match error {
        Value::String(text) => add(Some(text)),
        Value::Object(_) => {
            let root = &error["root_cause"][0];
            for start in [root, error] {
                let mut inner = start;
                while inner["caused_by"].is_object() {
                    inner = &inner["caused_by"];
                }
                if start["caused_by"].is_object() {
                    add(inner["reason"].as_str());
                }
            }
            add(root["reason"].as_str());
            add(error["reason"].as_str());
            for shard in error["failed_shards"].as_array().into_iter().flatten() {
                add(shard["reason"]["reason"].as_str());
            }
        }
        _ => {}
    }
    out
}

/// A body without a reason, as it is, cut to a readable length.
fn whole(body: &Value) -> String {
    match body {
        Value::Null => "an empty answer".to_owned(),
        Value::String(text) => cut(text),
        other => cut(&other.to_string()),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn find(step: Step, texts: &[String]) -> Option<&'static Row> {
    texts.iter().find_map(|text| {
        ROWS.iter().find(|row| (row.steps.is_empty() || row.steps.contains(&step)) && text.contains(row.text))
    })
}

fn known(step: Step, subject: &str, row: &Row, quoted: &str, place: &str) -> Problem {
    Problem {
        cause: row.cause,
        message: format!(
            "Failed to {} {subject}: {} (the cluster says \"{}\", {place})",
            step.verb(),
            row.says,
            cut(quoted)
        ),
        hint: Some(row.hint.to_owned()),
        fault: row.fault,
        quoted: quoted.to_owned(),
    }
}

fn unknown(step: Step, subject: &str, status: u16, quoted: &str, place: &str) -> Problem {
    let row = STATUSES.iter().find(|row| row.http == status).unwrap_or(&UNKNOWN);
    let (cause, hint, fault) = (row.cause, row.hint, row.fault);
    Problem {
        cause,
        message: format!("Failed to {} {subject}: the cluster says \"{}\" ({place})", step.verb(), cut(quoted)),
        hint: Some(hint.to_owned()),
        fault,
        quoted: quoted.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_error_is_parsed_twice() {
        let task =
            json!({"state": "FAILED", "error": "{\"n1\":\"model content changed\",\"n2\":\"model content changed\"}"});
        let problem = explain_task(Step::Deploy, "model `m`", &task);
        assert_eq!(problem.cause, Cause::ContentChanged);
        assert!(problem.message.contains("nodes n1, n2"), "{problem}");
        assert_eq!(problem.quoted, "model content changed");
    }

    #[test]
    fn an_unknown_answer_is_quoted() {
        let problem = explain(Step::Deploy, "model `m`", 500, &json!({"error": {"reason": "moon phase"}}));
        assert_eq!(problem.cause, Cause::Unknown);
        assert!(problem.message.contains("\"moon phase\""), "{problem}");
        let problem = explain(Step::Deploy, "model `m`", 502, &json!("<html>bad gateway</html>"));
        assert!(problem.message.contains("bad gateway"), "{problem}");
        let problem = explain_task(Step::Deploy, "model `m`", &json!({"state": "CANCELLED"}));
        assert!(problem.message.contains("CANCELLED"), "{problem}");
    }

    #[test]
    fn a_block_is_no_missing_role_and_no_overload() {
        for (status, reason, cause, hint) in [
            (
                429,
                "index [a] blocked by: [TOO_MANY_REQUESTS/12/disk usage exceeded flood-stage watermark, index has \
                 read-only-allow-delete block];",
                Cause::Limit,
                "free disk space",
            ),
            (
                403,
                "index [a] blocked by: [FORBIDDEN/12/index read-only / allow delete (api)];",
                Cause::Limit,
                "free disk",
            ),
            (403, "blocked by: [FORBIDDEN/10/cluster create-index blocked (api)];", Cause::Limit, "create_index"),
            (403, "blocked by: [FORBIDDEN/6/cluster read-only (api)];", Cause::SwitchedOff, "cluster.blocks.read_only"),
            (403, "index [a] blocked by: [FORBIDDEN/5/index read-only (api)];", Cause::SwitchedOff, "blocks.read_only"),
            (403, "index [a] blocked by: [FORBIDDEN/8/index write (api)];", Cause::SwitchedOff, "blocks.write"),
            (503, "blocked by: [SERVICE_UNAVAILABLE/1/state not recovered / initialized];", Cause::Limit, "wait"),
            (403, "index [a] blocked by: [FORBIDDEN/9/index metadata (api)];", Cause::SwitchedOff, "index.blocks"),
        ] {
            let error = json!({ "type": "cluster_block_exception", "reason": reason });
            let body =
                json!({ "error": { "root_cause": [error], "type": "cluster_block_exception", "reason": reason } });
            let problem = explain(Step::Index, "index `a`", status, &body);
            assert_eq!(problem.cause, cause, "{problem}");
            let advice = problem.hint.unwrap();
            assert!(advice.contains(hint) && !advice.contains("ml_full_access"), "{reason}: {advice}");
            assert_eq!(problem.fault, Fault::World);
        }
    }

    #[test]
    fn the_innermost_cause_decides() {
        let body = json!({"error": {"type": "mapper_parsing_exception", "reason": "failed to parse",
            "caused_by": {"type": "illegal_argument_exception", "reason": "featureValue must be a positive normal float, got: -1.0"}}});
        let problem = explain(Step::Ingest, "index `i`", 400, &body);
        assert_eq!(problem.cause, Cause::Request);
        assert!(problem.quoted.starts_with("featureValue"), "{}", problem.quoted);
    }

    #[test]
    fn a_row_is_reachable_and_has_a_hint() {
        for row in ROWS {
            let step = row.steps.first().copied().unwrap_or(Step::Status);
            let found = find(step, &[row.text.to_owned()]).unwrap();
            assert_eq!(found.text, row.text, "hidden behind another row");
            assert!(!row.hint.is_empty() && !row.says.is_empty());
        }
    }
}

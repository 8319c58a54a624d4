//! What the cluster says to a bulk request: of each document whether it is in, will never be, or may be later.

use serde_json::Value;

use super::batch::Batch;
use super::options::Action;
use crate::error::{ApiError, Error, Unreachable};

/// What became of a batch's documents, by their places.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    /// In the index, or out of it where that was asked for.
    pub(crate) taken: Vec<usize>,
    /// Of these, deletions of what was not there.
    pub(crate) not_there: u64,
    /// Never to be taken, with the reason.
    pub(crate) rejected: Vec<(usize, String)>,
    /// The cluster was too busy for them.
    pub(crate) busy: Vec<usize>,
    /// Why it was, for one of them.
    pub(crate) why: String,
}

impl Sorted {
    /// Whether anything came to its end: taken, or refused for good.
    pub(crate) fn has_settled(&self) -> bool {
        !self.taken.is_empty() || !self.rejected.is_empty()
    }
}

/// Sorts a batch by the cluster's answer for each document.
///
/// # Errors
/// In words, if the answer is none to this batch; an error of the whole index (blocked, closed, forbidden, gone), for
/// which there is no use in going on.
pub(crate) fn sort(batch: &Batch, answer: &Value, path: &str) -> Result<Sorted, Error> {
    let unexpected = |message: String| Error::Unexpected { method: "POST", path: path.to_owned(), message };
    // Where nothing failed there is no need to look at each.
    if answer.get("errors") == Some(&Value::Bool(false)) && batch.items().iter().all(|i| i.action != Action::Delete) {
        return Ok(Sorted { taken: (0..batch.len()).collect(), ..Sorted::default() });
    }
    let items = answer.get("items").and_then(Value::as_array);
    let items = items.ok_or_else(|| unexpected("no items in the answer to a bulk request".to_owned()))?;
    if items.len() != batch.len() {
        return Err(unexpected(format!("{} answers for {} documents", items.len(), batch.len())));
    }
    let mut sorted = Sorted::default();
    for (place, (item, answer)) in batch.items().iter().zip(items).enumerate() {
        let answer = answer.as_object().and_then(|o| o.values().next()).unwrap_or(&Value::Null);
        let status = answer.get("status").and_then(Value::as_u64).unwrap_or(0);
        let kind = answer.pointer("/error/type").and_then(Value::as_str).unwrap_or_default();
        match status {
            200..=299 => sorted.taken.push(place),
            404 if item.action == Action::Delete && answer.get("error").is_none() => {
                sorted.taken.push(place);
                sorted.not_there += 1;
            }
            429 | 500..=599 => {
                sorted.why = reason(answer);
                sorted.busy.push(place);
            }
            _ if concerns_all(status, kind) => {
                let status = u16::try_from(status).unwrap_or(500);
                let (kind, reason, body) = (kind.to_owned(), reason(answer), answer.clone());
                return Err(Error::Api(Box::new(ApiError {
                    method: "POST",
                    path: path.to_owned(),
                    status,
                    kind,
                    reason,
                    body,
                })));
            }
            _ => sorted.rejected.push((place, reason(answer))),
        }
    }
    Ok(sorted)
}

/// Whether a refusal is not about the one document: the next one would get the same.
fn concerns_all(status: u64, kind: &str) -> bool {
    matches!(status, 401 | 403) || matches!(kind, "index_not_found_exception" | "index_closed_exception")
}

/// The reasons of an item's error, outermost first.
pub(crate) fn reason(answer: &Value) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut at = answer.get("error");
    while let Some(error) = at {
        parts.extend(error.get("reason").and_then(Value::as_str).or_else(|| error.as_str()));
        at = error.get("caused_by");
    }
    if parts.is_empty() { answer.to_string() } else { parts.join(": ") }
}

/// Whether a whole request may succeed later: busy, broken or failing servers, and connections that broke anywhere. A
/// bulk request with ids may arrive twice.
pub(crate) fn may_pass(error: &Error) -> bool {
    let is_cut = matches!(error, Error::Unreachable { why, .. } if !matches!(why, Unreachable::Dns | Unreachable::Tls));
    is_cut || error.is_transient() || error.status().is_some_and(|s| s >= 500)
}

/// Whether a whole request was refused for its size or for one document in it, such as an id of over 512 bytes.
pub(crate) fn blames_a_document(error: &Error) -> bool {
    error.api().is_some_and(|e| e.status == 413 || (e.status == 400 && e.kind == "action_request_validation_exception"))
}

/// The error of a cluster that would not take a batch however often it was asked.
pub(crate) fn gave_up(index: &str, path: &str, documents: usize, why: &str) -> Error {
    if why.contains("read-only-allow-delete") || why.contains("read-only / allow delete") {
        return Error::world(
            format!(
                "The index `{index}` takes no documents, because the disk of a node is nearly full ({documents} documents \
                 wait): {why}"
            ),
            "free space or add a node; the cluster lifts the block once there is room (before 2.x: set \
             index.blocks.read_only_allow_delete to null); then run the same command again: only what is missing is sent",
        );
    }
    Error::world(
        format!("The cluster stayed too busy for {documents} documents (POST {path}): {why}"),
        "run the same command again later: only what is missing is sent; or use smaller batches",
    )
}

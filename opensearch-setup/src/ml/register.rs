//! Registering a model: its metadata, then its bytes in numbered chunks, then waiting for REGISTERED.

use std::io::{Read, Seek, SeekFrom};

use nsparse_core::{Cancel, Error as CoreError, Progress};
use serde_json::{Map, Value};

use super::lifecycle::{self, Model};
use super::messages::{Step, explain_error};
use super::package::ModelFile;
use super::poll::{Poll, Seen};
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};

/// The most bytes of one chunk that ML Commons takes.
pub const MAX_CHUNK_BYTES: u64 = 10_000_000;

/// How many chunks `bytes` make.
pub fn chunk_count(bytes: u64, chunk_bytes: u64) -> u64 {
    bytes.div_ceil(chunk_bytes).max(1)
}

/// The register body that is sent: the package's, with the number of chunks, and the group where one is given.
/// Everything that ML Commons would read as a dense model's is left out.
pub fn register_body(body: &Map<String, Value>, chunks: u64, group_id: Option<&str>) -> Map<String, Value> {
    let mut out = body.clone();
    out.remove("model_config");
    out.insert("total_chunks".to_owned(), chunks.into());
    if let Some(id) = group_id {
        out.insert("model_group_id".to_owned(), id.into());
    }
    out
}

/// Sends the metadata; gives the model's id.
///
/// # Errors
/// Why the cluster refuses it, explained.
pub fn register_meta(cluster: &Cluster, body: &Map<String, Value>) -> Result<Model> {
    const PATH: &str = "/_plugins/_ml/models/_register_meta";
    let name = body.get("name").and_then(Value::as_str).unwrap_or_default();
    let answer = cluster
        .post(PATH, Value::Object(body.clone()))
        .map_err(|e| explain_error(Step::Register, &format!("model `{name}`"), e))?;
    let id = answer.get("model_id").and_then(Value::as_str).ok_or_else(|| Error::Unexpected {
        method: Method::Post.as_str(),
        path: PATH.to_owned(),
        message: format!("expected a `model_id`, got {answer}"),
    })?;
    Ok(Model { id: id.to_owned(), name: name.to_owned() })
}

/// Sends chunk `number` (from 0). A chunk may be sent again: the cluster keeps the last.
///
/// # Errors
/// Why the cluster refuses it, explained; it takes 1 to [`MAX_CHUNK_BYTES`] bytes.
pub fn upload_chunk(cluster: &Cluster, model: &Model, number: u64, bytes: Vec<u8>) -> Result<()> {
    let path = format!("/_plugins/_ml/models/{}/upload_chunk/{number}", model.id);
    // ML Commons reads the bytes as they come, but the REST layer refuses content types that it does not know.
    cluster
        .request_retrying(Method::Post, &path, Body::Raw(bytes, "application/json"))
        .map_err(|e| explain_error(Step::Upload, &format!("chunk {number} of {model}"), e))?;
    Ok(())
}

/// Sends all chunks of a zip, in order: the cluster takes the one with the last number as the end.
///
/// # Errors
/// As [`upload_chunk`]; also if the zip cannot be read, or has changed since it was opened.
pub fn upload(
    cluster: &Cluster,
    model: &Model,
    file: &ModelFile,
    chunk_bytes: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    upload_from(cluster, model, file, chunk_bytes, 0, &mut |_| {}, cancel, progress)
}

/// As [`upload`], from chunk `first` on; `sent` hears how many chunks from the first on have arrived.
///
/// # Errors
/// As [`upload`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub(super) fn upload_from(
    cluster: &Cluster,
    model: &Model,
    file: &ModelFile,
    chunk_bytes: u64,
    first: u64,
    sent: &mut dyn FnMut(u64),
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    let chunks = chunk_count(file.bytes, chunk_bytes);
    // The last chunk is what ends a registration: it is always sent.
    let first = first.min(chunks - 1);
    let task = progress.start(&format!("Uploading {}", file.name()), file.bytes);
    let mut reader = std::fs::File::open(&file.zip).map_err(|e| CoreError::io("read", &file.zip, e))?;
    reader.seek(SeekFrom::Start(first * chunk_bytes)).map_err(|e| CoreError::io("read", &file.zip, e))?;
    task.advance(first * chunk_bytes);
    let mut left = file.bytes - first * chunk_bytes;
    for number in first..chunks {
        cancel.check()?;
        let size = left.min(chunk_bytes);
        let mut bytes = Vec::with_capacity(size as usize);
        (&mut reader).take(size).read_to_end(&mut bytes).map_err(|e| CoreError::io("read", &file.zip, e))?;
        if bytes.len() as u64 != size {
            return Err(Error::usage(
                format!("`{}` became shorter while it was uploaded", file.zip.display()),
                "deploy again when nothing writes to the package",
            ));
        }
        upload_chunk(cluster, model, number, bytes)?;
        sent(number + 1);
        left -= size;
        task.advance(size);
    }
    Ok(())
}

/// Lets the cluster fetch a zip by itself; gives the model once its registration has ended.
///
/// # Errors
/// Why the cluster refuses it, explained; or that it did not end in time.
pub fn by_url(
    cluster: &Cluster,
    file: &ModelFile,
    url: &str,
    group_id: Option<&str>,
    poll: &Poll,
    cancel: &Cancel,
) -> Result<Model> {
    const PATH: &str = "/_plugins/_ml/models/_register";
    let mut body = register_body(&file.body, 0, group_id);
    body.remove("total_chunks");
    body.insert("url".to_owned(), url.into());
    let subject = format!("model `{}`", file.name());
    let answer = cluster.post(PATH, Value::Object(body)).map_err(|e| explain_error(Step::RegisterUrl, &subject, e))?;
    let unexpected = |what: &str, answer: &Value| Error::Unexpected {
        method: Method::Post.as_str(),
        path: PATH.to_owned(),
        message: format!("expected a `{what}`, got {answer}"),
    };
    let task = answer.get("task_id").and_then(Value::as_str).ok_or_else(|| unexpected("task_id", &answer))?;
    lifecycle::wait_task(cluster, task, Step::RegisterUrl, &subject, poll, cancel)?;
    let done = cluster
        .get(&format!("/_plugins/_ml/tasks/{task}"))
        .map_err(|e| explain_error(Step::Status, &format!("task {task}"), e))?;
    let id = done.get("model_id").and_then(Value::as_str).ok_or_else(|| unexpected("model_id", &done))?;
    Ok(Model { id: id.to_owned(), name: file.name().to_owned() })
}

/// Waits until the cluster has put the last chunk away, which it does after it has answered.
///
/// # Errors
/// If that does not happen in time, or the registered hash is not `sha256`.
pub fn wait_registered(cluster: &Cluster, model: &Model, sha256: &str, poll: &Poll, cancel: &Cancel) -> Result<()> {
    let info = poll.until(&format!("{model} to be REGISTERED"), cancel, || {
        let info = lifecycle::info(cluster, model)?;
        Ok(match info.state.as_str() {
            "REGISTERING" | "UPLOADING" => Seen::NotYet(info.state),
            _ => Seen::Done(info),
        })
    })?;
    if !info.sha256.is_empty() && !info.sha256.eq_ignore_ascii_case(sha256) {
        return Err(Error::world(
            format!("The cluster registered {model} with sha256 {}, not {sha256}", info.sha256),
            "run `nsparse deploy` again: the package is then registered and uploaded anew",
        ));
    }
    Ok(())
}

/// Registers a model whole; what a failure leaves behind is deleted.
///
/// # Errors
/// As the single steps.
pub fn register(
    cluster: &Cluster,
    file: &ModelFile,
    group_id: Option<&str>,
    chunk_bytes: u64,
    poll: &Poll,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Model> {
    let body = register_body(&file.body, chunk_count(file.bytes, chunk_bytes), group_id);
    let model = register_meta(cluster, &body)?;
    let sent = upload(cluster, &model, file, chunk_bytes, cancel, progress)
        .and_then(|()| wait_registered(cluster, &model, &file.sha256, poll, cancel));
    match sent {
        Ok(()) => Ok(model),
        Err(error) => {
            if let Err(e) = lifecycle::remove(cluster, &model, poll) {
                tracing::warn!(%model, error = %e, "a model that was not fully registered stays in the cluster");
            }
            Err(error)
        }
    }
}

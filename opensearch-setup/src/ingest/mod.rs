//! Documents into an index: batches by size, as many in flight as the cluster takes well, repeated where it is busy,
//! journalled. What the cluster will never take is written down with the reason; the rest is in.
//!
//! ```text
//! documents ──► ready / names ──► batch ──► bulk ◄──► line ──► the cluster
//!  lines, PIT    checked JSON      bytes     │  ▲
//!                                            │  └─ pace: how many, how large, how soon again
//!                                            └──► journal, dead letters, report
//! ```
//!
//! [`pace`] is a pure function of answers and time; `bulk` is the loop, and knows the cluster through `line` only;
//! `session` is what surrounds the loop: the index's settings, its identity, the counts at the end.

mod answer;
mod batch;
mod bulk;
mod dead_letters;
pub mod documents;
mod line;
pub mod loading;
pub(crate) mod names;
mod options;
pub mod pace;
pub mod ready;
mod session;
mod space;
mod stream;

use nsparse_core::beir::Document;
use nsparse_core::journal::content_key;
use nsparse_core::{Cancel, DocumentEncoder, DocumentTemplate, Progress, SparseVector, TokenId};
use serde_json::Value;

use crate::client::Cluster;
use crate::error::Result;
pub(crate) use names::FeatureNames;
use session::Session;

pub use loading::restore as restore_settings;
pub use options::{Action, IngestOptions, IngestReport, Loading, PATIENT, Pipeline, Rejected};
pub use stream::{Encoding, Way, delete_documents, ingest_documents};

/// Sends sources as they are. Of two with one id the later stays; the journal compares sources.
///
/// # Errors
/// If the index is not there, the cluster fails for longer than the retries last, or the job is cancelled. What
/// was taken until then is in the journal.
pub fn ingest(
    cluster: &Cluster,
    index: &str,
    documents: impl IntoIterator<Item = (String, Value)>,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let documents = documents.into_iter();
    let total = documents.size_hint().0 as u64;
    let mut session = Session::open(cluster, index, "Indexing", total, options, progress, cancel)?;
    for (id, source) in documents {
        let source = source.to_string().into_bytes();
        let content = content_key(&source);
        if !session.skips(&id, content) {
            session.push(&id, content, Action::Index, |out| out.extend_from_slice(&source))?;
        }
    }
    session.finish()
}

/// Title and text of each document, for BM25 or for a pipeline that encodes.
///
/// # Errors
/// As [`ingest`].
pub fn ingest_texts(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let total = documents.len() as u64;
    let mut session = Session::open(cluster, index, "Indexing", total, options, progress, cancel)?;
    let mut source = Vec::new();
    for document in documents {
        source.clear();
        source.push(b'{');
        names::write_texts(&mut source, document, &options.fields);
        source.push(b'}');
        let content = content_key(&source);
        if !session.skips(&document.id, content) {
            session.push(&document.id, content, Action::Index, |out| out.extend_from_slice(&source))?;
        }
    }
    session.finish()
}

/// Encodes documents here, in blocks of like length, while earlier ones are on their way. Where the options' fields are
/// nested, each segment becomes an object of its own.
///
/// # Errors
/// As [`ingest`]; also if the encoder fails.
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_vectors(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    encoder: &dyn DocumentEncoder,
    template: &DocumentTemplate,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let total = documents.len() as u64;
    let mut session = Session::open(cluster, index, "Encoding and indexing", total, options, progress, cancel)?;
    let names = FeatureNames::new(encoder.vocabulary());
    let mut waiting: Vec<(&Document, u64, usize)> = Vec::new();
    for document in documents {
        let text = template.apply(document);
        let content = content_key(format!("{}\0{}\0{text}", document.title, document.text).as_bytes());
        if !session.skips(&document.id, content) {
            waiting.push((document, content, text.len()));
        }
    }
    // Longest first: texts of like length waste no padding, and too long a batch shows at once.
    waiting.sort_by_key(|w| std::cmp::Reverse(w.2));
    for block in waiting.chunks(options.block.max(1)) {
        cancel.check()?;
        let texts: Vec<String> = block.iter().map(|(d, ..)| template.apply(d)).collect();
        let vectors = stream::encode(encoder, &texts, &options.fields)?;
        for ((document, content, _), segments) in block.iter().zip(&vectors) {
            session.push_vectors(&document.id, *content, Action::Index, segments, &names, |out| {
                names::write_texts(out, document, &options.fields);
            })?;
        }
        session.nudge()?;
    }
    session.finish()
}

/// Sends documents whose vectors are there already, one each.
///
/// # Errors
/// As [`ingest`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_encoded(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    vectors: &[SparseVector],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let segments: Vec<&[SparseVector]> = vectors.iter().map(std::slice::from_ref).collect();
    ingest_segments(cluster, index, documents, &segments, vocabulary, options, progress, cancel)
}

/// Sends documents whose segments' vectors are there already, into nested fields.
///
/// # Errors
/// As [`ingest`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_segments<S: AsRef<[SparseVector]>>(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    segments: &[S],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    if documents.len() != segments.len() {
        let message = format!("{} vectors for {} documents", segments.len(), documents.len());
        return Err(nsparse_core::Error::invalid(message).into());
    }
    let total = documents.len() as u64;
    let mut session = Session::open(cluster, index, "Indexing", total, options, progress, cancel)?;
    let names = FeatureNames::new(vocabulary);
    for (document, vectors) in documents.iter().zip(segments) {
        // The vectors are part of the content here: there is no model to name them by.
        let mut bytes = format!("{}\0{}\0", document.title, document.text).into_bytes();
        for (segment, vector) in vectors.as_ref().iter().enumerate() {
            if segment > 0 {
                bytes.extend(TokenId::MAX.to_le_bytes());
            }
            for (id, weight) in vector.iter() {
                bytes.extend(id.to_le_bytes());
                bytes.extend(weight.to_le_bytes());
            }
        }
        let content = content_key(&bytes);
        if !session.skips(&document.id, content) {
            session.push_vectors(&document.id, content, Action::Index, vectors.as_ref(), &names, |out| {
                names::write_texts(out, document, &options.fields);
            })?;
        }
    }
    session.finish()
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

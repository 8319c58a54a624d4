//! Indexes of whole corpora on a cluster: made once, known by their content, filled where a killed run left off,
//! reused afterwards.

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Progress, SparseVector};

use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::index::{self, IndexSpec, Kind, State};
use crate::ingest::{IngestOptions, IngestReport, ingest_encoded, ingest_segments, ingest_texts};
use crate::search::{Bm25Searcher, SparseSearcher};

/// The index of a corpus for BM25, filled if it is not there yet, with a searcher over it.
///
/// `set` names the data set, `content` what tells its corpus from others (its hash).
///
/// # Errors
/// If the cluster refuses or fails, a document is rejected, or the job is cancelled (a later call goes on).
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn bm25_searcher(
    cluster: &Cluster,
    set: &str,
    content: &str,
    documents: &[Document],
    analyzer: &str,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Bm25Searcher> {
    cluster.capabilities()?;
    let mut spec = IndexSpec::keyed(Kind::Bm25, set, analyzer, &[content]);
    spec.fields = options.fields.clone();
    fill(cluster, &spec, documents.len(), || ingest_texts(cluster, &spec.name, documents, options, progress, cancel))?;
    Ok(Bm25Searcher::new(cluster.clone(), spec.name, spec.fields))
}

/// The index of a corpus with its vectors, filled if it is not there yet, with a searcher over it.
///
/// `vectors` has one vector a document; `content` are the things that tell these vectors from others: the
/// corpus's hash, the model's.
///
/// # Errors
/// As [`bm25_searcher`]; also if a weight is not in (0, 64].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn sparse_searcher(
    cluster: &Cluster,
    set: &str,
    content: &[&str],
    documents: &[Document],
    vectors: &[SparseVector],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<SparseSearcher> {
    cluster.capabilities()?;
    let mut spec = IndexSpec::keyed(Kind::Sparse, set, "english", content);
    spec.fields = options.fields.clone();
    fill(cluster, &spec, documents.len(), || {
        ingest_encoded(cluster, &spec.name, documents, vectors, vocabulary, options, progress, cancel)
    })?;
    SparseSearcher::new(cluster.clone(), spec.name, &spec.fields.vector, vocabulary)
}

/// As [`sparse_searcher`], with one vector a segment of each document: nested objects, of which the best counts.
///
/// # Errors
/// As [`sparse_searcher`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn segment_searcher(
    cluster: &Cluster,
    set: &str,
    content: &[&str],
    documents: &[Document],
    segments: &[Vec<SparseVector>],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<SparseSearcher> {
    cluster.capabilities()?;
    let content: Vec<&str> = content.iter().copied().chain(["nested"]).collect();
    let mut spec = IndexSpec::keyed(Kind::Sparse, set, "english", &content);
    let options = IngestOptions { fields: options.fields.clone().nested(), ..options.clone() };
    spec.fields = options.fields.clone();
    fill(cluster, &spec, documents.len(), || {
        ingest_segments(cluster, &spec.name, documents, segments, vocabulary, &options, progress, cancel)
    })?;
    Ok(SparseSearcher::new(cluster.clone(), spec.name, &spec.fields.vector, vocabulary)?.over(&spec.fields))
}

/// Makes the index and fills it with `ingest` unless it is complete; every document has to be taken.
fn fill(
    cluster: &Cluster,
    spec: &IndexSpec,
    documents: usize,
    ingest: impl FnOnce() -> Result<IngestReport>,
) -> Result<()> {
    if matches!(index::ensure(cluster, spec)?, State::Complete { .. }) {
        return Ok(());
    }
    let report = ingest()?;
    if let Some(first) = report.rejected.first() {
        return Err(Error::world(
            format!(
                "{} documents were rejected by the index `{}`; the first is `{}`: {}",
                report.rejected.len(),
                spec.name,
                first.id,
                first.reason
            ),
            "mend those documents; figures over a part of a corpus would mislead",
        ));
    }
    index::complete(cluster, spec, documents as u64)
}

//! A BM25 index of a corpus on a cluster: made once, known by its content, reused.

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Progress};

use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::index::{self, IndexSpec, Kind, State};
use crate::ingest::{IngestOptions, ingest_texts};
use crate::search::Bm25Searcher;

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
    if !matches!(index::ensure(cluster, &spec)?, State::Complete { .. }) {
        let report = ingest_texts(cluster, &spec.name, documents, options, progress, cancel)?;
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
        index::complete(cluster, &spec, documents.len() as u64)?;
    }
    Ok(Bm25Searcher::new(cluster.clone(), spec.name, spec.fields))
}

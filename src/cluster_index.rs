//! Indexes of a data set in a cluster, as `eval`, `mine` and `quickstart` use them: made once, reused afterwards.

use nsparse_core::Cancel;
use nsparse_core::beir::{Dataset, Document};
use nsparse_opensearch::{
    Bm25Searcher, Cluster, IngestOptions, SparseSearcher, bm25_searcher, index, segment_searcher, sparse_searcher,
};

use crate::printer::Printer;
use crate::ranking::Vectors;
use crate::settings;

/// BM25 over the set's documents.
pub(crate) fn bm25(
    cluster: &Cluster,
    set: &Dataset,
    documents: &[Document],
    analyzer: &str,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<Bm25Searcher> {
    let hash = set.corpus_hash()?;
    let options = options(cluster, &["bm25", &hash, analyzer]);
    Ok(bm25_searcher(cluster, &set.name, &hash, documents, analyzer, &options, &printer.progress(), cancel)?)
}

/// The set's documents with their vectors.
pub(crate) fn sparse(
    cluster: &Cluster,
    set: &Dataset,
    documents: &[Document],
    vectors: &Vectors,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<SparseSearcher> {
    let vocabulary = vectors.queries.tokenizer().vocabulary();
    let options = options(cluster, &["sparse", &vectors.key]);
    let (content, progress) = ([vectors.key.as_str()], printer.progress());
    let (set, encoded) = (set.name.as_str(), &vectors.documents);
    if let Some(segments) = &vectors.segments {
        return Ok(segment_searcher(
            cluster, set, &content, documents, segments, vocabulary, &options, &progress, cancel,
        )?);
    }
    Ok(sparse_searcher(cluster, set, &content, documents, encoded, vocabulary, &options, &progress, cancel)?)
}

/// Removes the indexes made for a set; gives their names.
pub(crate) fn clean(cluster: &Cluster, set: &Dataset) -> anyhow::Result<Vec<String>> {
    Ok(index::clean(cluster, &set.name)?)
}

/// With a journal of its own for each cluster and content, so that a stopped run goes on.
fn options(cluster: &Cluster, parts: &[&str]) -> IngestOptions {
    let job = parts.join(" ");
    IngestOptions { journal: Some(settings::journal(cluster, &job)), job, ..IngestOptions::default() }
}

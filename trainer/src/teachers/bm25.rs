//! BM25 as a teacher: Lucene's, over the templated texts of all documents of the run.

use std::collections::HashMap;

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Progress};
use nsparse_retrieval::Bm25Index;

use super::{Member, Request};
use crate::Result;
use crate::sections::Bm25Teacher;

/// The index with its documents' places by id.
pub(super) struct Bm25Member {
    index: Bm25Index,
    places: HashMap<String, usize>,
}

impl Bm25Member {
    pub(super) fn new(
        t: &Bm25Teacher,
        documents: &[Document],
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let index = Bm25Index::build_with(documents, t.analyzer, progress, cancel).map_err(|e| match e {
            nsparse_retrieval::Error::Core(e) => e,
            other => nsparse_core::Error::other(other.fault(), other),
        })?;
        Ok(Self { index, places: documents.iter().enumerate().map(|(n, d)| (d.id.clone(), n)).collect() })
    }
}

impl Member for Bm25Member {
    /// 0 for a document that shares no term with the query; none for one that is not indexed.
    fn scores(&mut self, request: &Request<'_>) -> Result<Vec<f32>> {
        let n = request.documents.len();
        let mut out = vec![f32::NAN; request.queries.len() * n];
        for ((query, wanted), row) in request.queries.iter().zip(&request.wanted).zip(out.chunks_exact_mut(n.max(1))) {
            let (columns, places): (Vec<usize>, Vec<usize>) = wanted
                .iter()
                .filter_map(|&d| self.places.get(request.documents[d].id).map(|&place| (d, place)))
                .unzip();
            let scores = self.index.scores(query.text, &places).map_err(nsparse_core::Error::from)?;
            for (column, score) in columns.into_iter().zip(scores) {
                row[column] = score;
            }
        }
        Ok(out)
    }

    fn unit(&self) -> &'static str {
        ""
    }
}

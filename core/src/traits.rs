//! The three traits through which the rooms meet.

use crate::{Result, SparseVector};

/// Turns document texts into sparse vectors. A batch gives the same vectors as its single texts.
pub trait DocumentEncoder {
    /// One vector a text, in the order given. Texts are templated already; an empty text gives whatever the
    /// encoder makes of an empty input.
    ///
    /// # Errors
    /// Whatever the engine behind it reports.
    fn encode(&self, texts: &[&str]) -> Result<Vec<SparseVector>>;

    /// As [`DocumentEncoder::encode`], with one vector for each segment of a text ([`crate::Segments`]), in the
    /// text's order; their maximum is the text's vector. An encoder that reads one window gives one.
    ///
    /// # Errors
    /// As [`DocumentEncoder::encode`].
    fn encode_segments(&self, texts: &[&str]) -> Result<Vec<Vec<SparseVector>>> {
        Ok(self.encode(texts)?.into_iter().map(|vector| vec![vector]).collect())
    }

    /// The vocabulary's strings by token id: how vectors are named outside.
    fn vocabulary(&self) -> &[String];

    /// The most word pieces of a text that the encoder reads, special tokens included.
    fn max_tokens(&self) -> usize;
}

/// One query as a [`Searcher`] takes it: BM25 searchers read `text`, sparse searchers `vector`.
#[derive(Debug, Clone, PartialEq)]
pub struct SearchQuery {
    /// The query's id in its set.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Its sparse vector; empty for a searcher that reads the text.
    pub vector: SparseVector,
}

/// A document found, with its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The document's id in its corpus.
    pub id: String,
    /// Its score, higher is better; `f32` because that is what the engine ranks by.
    pub score: f32,
}

/// Ranks documents for queries: an embedded index, or a cluster.
pub trait Searcher {
    /// For each query its best `depth` documents, best first, in the searcher's own tie order. Documents
    /// that share nothing with the query are not returned.
    ///
    /// # Errors
    /// Whatever the engine behind it reports.
    fn search(&self, queries: &[SearchQuery], depth: usize) -> Result<Vec<Vec<Hit>>>;

    /// Scores of some documents for a query, in the order of `ids` and with the bits that [`Searcher::search`] gives;
    /// 0 for a document that shares nothing with the query or is not there. `None` if the searcher can only rank.
    ///
    /// # Errors
    /// As [`Searcher::search`].
    fn score(&self, _query: &SearchQuery, _ids: &[&str]) -> Result<Option<Vec<f32>>> {
        Ok(None)
    }
}

/// Scores pairs of a query and a document: a teacher.
pub trait Scorer {
    /// One score a pair `(query text, document text)`.
    ///
    /// # Errors
    /// Whatever the teacher behind it reports.
    fn score(&self, pairs: &[(&str, &str)]) -> Result<Vec<f32>>;
}

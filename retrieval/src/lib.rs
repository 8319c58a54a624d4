//! Ranking without a cluster, and how good a ranking is: an exact inverted index over sparse vectors that
//! scores as Lucene does, embedded BM25, lexical document vectors, trec_eval's metrics, significance, and the
//! mining of hard negatives over any [`nsparse_core::Searcher`].
//!
//! Nothing here knows tensors or networks.

pub mod index;
pub mod metrics;

pub use index::{Arithmetic, IndexStats, InvertedIndex};
pub use metrics::{EvalOptions, Evaluation, evaluate};

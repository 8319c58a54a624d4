//! Ranking without a cluster, and how good a ranking is: an exact inverted index over sparse vectors that
//! scores as Lucene does, embedded BM25, lexical document vectors, `trec_eval`'s metrics, significance, and the
//! mining of hard negatives over any [`nsparse_core::Searcher`].
//!
//! Nothing here knows tensors or networks.

pub mod analyzer;
pub mod bm25;
pub mod error;
pub mod fusion;
pub mod index;
pub mod lexical;
pub mod metrics;
pub mod mine;
mod porter;
pub mod segments;
pub mod significance;

pub use analyzer::Analyzer;
pub use bm25::Bm25Index;
pub use error::{Error, Result};
pub use fusion::{FusedSearcher, Fusion};
pub use index::{Arithmetic, IndexStats, InvertedIndex};
pub use lexical::{LexicalEncoder, LexicalWeight};
pub use metrics::{EvalOptions, Evaluation, evaluate};
pub use mine::{MineOptions, MiningReport, mine};
pub use segments::SegmentIndex;
pub use significance::{Comparison, Interval, Resampling};

//! The words that every room of nsparse shares: sparse vectors, the idf table, query vectors, the document
//! template, training rows, BEIR and TREC files, atomic files, the ingest journal, cancellation and progress;
//! and the three traits through which the rooms meet: [`DocumentEncoder`], [`Searcher`] and [`Scorer`].
//!
//! Nothing here knows tensors, networks or command lines.

pub mod beir;
pub mod cancel;
pub mod error;
pub mod files;
pub mod hard_negatives;
pub mod idf;
pub mod journal;
pub mod lineage;
pub mod lock;
pub mod model_dir;
pub mod msmarco;
pub mod progress;
pub mod protobuf;
pub mod pruning;
pub mod query;
pub mod rows;
pub mod segments;
pub mod template;
pub mod tevatron;
pub mod tokenize;
pub mod traits;
pub mod trec;
pub mod vector;
pub mod vector_files;
pub mod wordpiece;

pub use cancel::Cancel;
pub use error::{Error, Fault, Result};
pub use idf::{IdfFormula, IdfTable};
pub use progress::{NoProgress, Progress, Task};
pub use pruning::Pruning;
pub use query::QueryEncoder;
pub use segments::Segments;
pub use template::DocumentTemplate;
pub use tokenize::TextTokenizer;
pub use traits::{DocumentEncoder, Hit, Scorer, SearchQuery, Searcher};
pub use trec::{Qrels, Run};
pub use vector::{SparseVector, TokenId, Weight};

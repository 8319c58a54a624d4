//! BERT-family document encoder: forward, backward, batching; a [`nsparse_core::DocumentEncoder`].
//!
//! Knows nothing of losses or clusters. A [`Backend`] computes pooled vocabulary logits and their gradient;
//! activation and losses act on the `[B, V]` matrix outside.

pub mod backend;
pub mod config;
pub mod dropout;
pub mod model;
pub mod params;

pub use backend::{Backend, Dropout, Forward, TokenBatch};
pub use config::BertConfig;
pub use model::BertMlm;
pub use params::{ParamSpec, Parameters};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files and data.
    #[error(transparent)]
    Core(#[from] nsparse_core::Error),
    /// The tensor library refused something.
    #[error("Tensor operation failed: {0}")]
    Tensor(#[from] candle_core::Error),
    /// The model's files and what is asked of it do not fit together.
    #[error("Unusable model: {0}")]
    Model(String),
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> nsparse_core::Fault {
        match self {
            Self::Core(e) => e.fault(),
            Self::Tensor(_) => nsparse_core::Fault::World,
            Self::Model(_) => nsparse_core::Fault::Usage,
        }
    }
}

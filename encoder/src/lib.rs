//! BERT-family document encoder: forward, backward, batching; a [`nsparse_core::DocumentEncoder`]. Dense encoders and
//! cross-encoders, which are [`nsparse_core::Scorer`]s, run on the same forward.
//!
//! Knows nothing of losses or clusters. A [`Backend`] computes pooled vocabulary logits and their gradient;
//! activation and losses act on the `[B, V]` matrix outside.

pub mod backend;
pub mod config;
pub mod cpu;
pub mod cross;
pub mod dense;
pub mod document;
pub mod dropout;
mod init;
pub mod model;
pub mod params;
pub mod reference;
pub mod work;

pub use backend::{
    Backend, Device, Dropout, Forward, PositionForward, TokenBatch, TokenPositions, create, create_with,
};
pub use config::BertConfig;
pub use cpu::CpuBackend;
pub use cross::CrossEncoder;
pub use dense::{DenseEncoder, DenseSettings, Pooling};
pub use document::{EncodeSettings, SparseEncoder, encode_with};
pub use model::{BertMlm, parameter_shapes};
pub use params::{ParamSpec, Parameters};
pub use reference::{CandleBackend, Precision};

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

    /// As the traits of `nsparse-core` report it.
    pub(crate) fn into_core(self) -> nsparse_core::Error {
        match self {
            Self::Core(e) => e,
            other => nsparse_core::Error::other(other.fault(), other),
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(e) => e.hint(),
            Self::Tensor(_) | Self::Model(_) => None,
        }
    }
}

//! The one error of this crate.

use std::path::PathBuf;

use nsparse_core::Fault;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files and data.
    #[error(transparent)]
    Core(#[from] nsparse_core::Error),
    /// The network.
    #[error(transparent)]
    Encoder(#[from] nsparse_encoder::Error),
    /// The recipe cannot be read, or a value of it cannot be used.
    #[error("{message}")]
    Config {
        /// Which key, what it holds, what was expected.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A loss or a gradient is not a number any more.
    #[error("{what} is not finite at step {step} of the stage `{stage}`")]
    NonFinite {
        /// What is not finite: a part of the loss, or the gradient.
        what: String,
        /// The stage.
        stage: &'static str,
        /// The step, counted from 1.
        step: usize,
        /// The likely cause and what to do.
        hint: String,
    },
    /// A checkpoint cannot be used.
    #[error("The checkpoint `{path}` cannot be used: {message}", path = .path.display())]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// What does not fit.
        message: String,
        /// What to do about it.
        hint: String,
    },
}

impl Error {
    /// A recipe that cannot be used.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self::Config { message: message.into(), hint: None }
    }

    /// A recipe that cannot be used, with what to do about it.
    pub(crate) fn config_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Config { message: message.into(), hint: Some(hint.into()) }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Core(e) => e.fault(),
            Self::Encoder(e) => e.fault(),
            Self::Config { .. } | Self::Checkpoint { .. } | Self::NonFinite { .. } => Fault::Usage,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(e) | Self::Encoder(nsparse_encoder::Error::Core(e)) => e.hint(),
            Self::Encoder(_) => None,
            Self::Config { hint, .. } => hint.clone(),
            Self::NonFinite { hint, .. } | Self::Checkpoint { hint, .. } => Some(hint.clone()),
        }
    }
}

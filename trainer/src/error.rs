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
    /// Another process of the run is gone, or is not where it should be.
    #[error("Rank {rank} of the run {}: {message}", if *.is_gone { "is gone" } else { "is out of step" })]
    Rank {
        /// Which one; 0 leads.
        rank: usize,
        /// Whether it does not answer any more.
        is_gone: bool,
        /// What was seen of it.
        message: String,
    },
}

impl Error {
    /// A process that does not answer any more.
    pub fn lost(rank: usize, message: String) -> Self {
        Self::Rank { rank, is_gone: true, message }
    }

    /// A process that says something else than it should.
    pub(crate) fn out_of_step(rank: usize, message: &str) -> Self {
        Self::Rank { rank, is_gone: false, message: message.to_owned() }
    }

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
            Self::Rank { .. } => Fault::World,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(e) | Self::Encoder(nsparse_encoder::Error::Core(e)) => e.hint(),
            Self::Encoder(_) => None,
            Self::Rank { .. } => Some("no checkpoint is lost: go on from the newest one with --resume".to_owned()),
            Self::Config { hint, .. } => hint.clone(),
            Self::NonFinite { hint, .. } | Self::Checkpoint { hint, .. } => Some(hint.clone()),
        }
    }
}

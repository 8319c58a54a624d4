//! The one error of this crate.

use nsparse_core::Fault;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in ranking, mining and testing.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files, data or the searcher behind a trait.
    #[error(transparent)]
    Core(#[from] nsparse_core::Error),
    /// The embedded text index failed.
    #[error("The embedded text index failed to {action}: {source}")]
    TextIndex {
        /// What was tried: "add a document", "search".
        action: &'static str,
        /// The index's own answer.
        #[source]
        source: tantivy::TantivyError,
    },
    /// An option is out of its range.
    #[error("{message}")]
    Option {
        /// Which option, what it is, what was expected.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// Two runs were compared that do not cover the same queries.
    #[error("Cannot compare by `{metric}`: {message}")]
    Comparison {
        /// The metric.
        metric: String,
        /// What does not fit.
        message: String,
    },
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Core(error) => error.fault(),
            Self::TextIndex { .. } => Fault::World,
            Self::Option { .. } | Self::Comparison { .. } => Fault::Usage,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(error) => error.hint(),
            Self::Option { hint, .. } => Some(hint.clone()),
            Self::Comparison { .. } => {
                Some("evaluate both runs with the same judgments and the same metrics".to_owned())
            }
            Self::TextIndex { .. } => None,
        }
    }
}

impl From<Error> for nsparse_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(error) => error,
            other => Self::other(other.fault(), other),
        }
    }
}

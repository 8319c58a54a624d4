//! The one error of this crate.

use std::path::{Path, PathBuf};

use nsparse_core::Fault;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong while a model is exported, a package read back, or onnxruntime asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files and data.
    #[error(transparent)]
    Core(#[from] nsparse_core::Error),
    /// The model itself.
    #[error(transparent)]
    Model(#[from] nsparse_encoder::Error),
    /// A package cannot be used as it is.
    #[error("Unusable package `{path}`: {message}", path = path.display())]
    Package {
        /// The file that is wrong.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The model cannot be exported as it is.
    #[error("{message}")]
    Export {
        /// What is wrong, where, and what was expected.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// onnxruntime is missing, or refused something.
    #[error("{message}")]
    Runtime {
        /// What was tried, and onnxruntime's answer.
        message: String,
        /// What to do about it.
        hint: String,
        /// Whose fault it is: a library that was named and is not there is the caller's.
        fault: Fault,
    },
}

impl Error {
    /// A package that cannot be used, with what to do about it.
    pub(crate) fn package(path: &Path, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Package { path: path.to_path_buf(), message: message.into(), hint: hint.into() }
    }

    /// A model that cannot be exported, with what to do about it.
    pub(crate) fn export(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Export { message: message.into(), hint: hint.into() }
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Core(e) => e.fault(),
            Self::Model(e) => e.fault(),
            Self::Package { .. } | Self::Export { .. } => Fault::Usage,
            Self::Runtime { fault, .. } => *fault,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(e) => e.hint(),
            Self::Model(e) => e.hint(),
            Self::Package { hint, .. } | Self::Export { hint, .. } | Self::Runtime { hint, .. } => Some(hint.clone()),
        }
    }
}

/// What a zip writer says, as an error of the file it writes.
pub(crate) fn zip_error(path: &Path, error: zip::result::ZipError) -> nsparse_core::Error {
    let source = match error {
        zip::result::ZipError::Io(e) => e,
        other => std::io::Error::other(other),
    };
    nsparse_core::Error::io("write", path, source)
}

//! The one error of this crate: each variant says what is wrong and where; `hint` says what to do.

use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Whose fault an error is; the binary turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller gave something that cannot be used (exit code 2).
    Usage,
    /// The world outside failed: a disk, a network, a cluster (exit code 3).
    World,
}

/// What can go wrong with files and the data in them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read or written.
    #[error("Failed to {action} `{path}`: {source}")]
    Io {
        /// What was tried: "read", "write", "create".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// One line of a data file is broken.
    #[error("Broken line {path}:{line}: {message}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based line number.
        line: usize,
        /// What was expected and what was found.
        message: String,
    },
    /// A file as a whole is not what it should be.
    #[error("Unusable file `{path}`: {message}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        message: String,
    },
    /// A value is out of its range, or two things do not fit together.
    #[error("{message}")]
    Invalid {
        /// What is wrong, where, and what was expected.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A tokenizer could not be loaded or refused a text.
    #[error("Tokenizer failed: {0}")]
    Tokenizer(String),
    /// The user asked to stop.
    #[error("Interrupted")]
    Cancelled,
    /// An implementation of one of the traits failed in its own way.
    #[error("{source}")]
    Other {
        /// Whose fault it is.
        fault: Fault,
        /// The implementation's own error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// An I/O error with the path it happened at.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_path_buf(), source }
    }

    /// A broken line; `line` counts from 1.
    pub fn line(path: &Path, line: usize, message: impl Into<String>) -> Self {
        Self::Line { path: path.to_path_buf(), line, message: message.into() }
    }

    /// A file that is not what it should be.
    pub fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.to_path_buf(), message: message.into() }
    }

    /// A value that could not be written as JSON: mostly because the file could not be written.
    pub fn json(path: &Path, source: serde_json::Error) -> Self {
        if source.is_io() { Self::io("write", path, source.into()) } else { Self::file(path, source.to_string()) }
    }

    /// A value that cannot be used.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), hint: None }
    }

    /// A value that cannot be used, with what to do about it.
    pub fn invalid_with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Invalid { message: message.into(), hint: Some(hint.into()) }
    }

    /// Wraps the error of a trait implementation.
    pub fn other(fault: Fault, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Other { fault, source: Box::new(source) }
    }

    /// Whose fault it is: a missing or broken input is the caller's, a failing disk is the world's.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Fault::Usage,
            Self::Io { .. } | Self::Cancelled => Fault::World,
            Self::Other { fault, .. } => *fault,
            _ => Fault::Usage,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Invalid { hint, .. } => hint.clone(),
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::NotFound => Some("check the path".to_owned()),
                std::io::ErrorKind::StorageFull => Some(
                    "the disk is full: free some space and run the same command again; nothing was replaced".to_owned(),
                ),
                std::io::ErrorKind::PermissionDenied => Some("check the permissions of that path".to_owned()),
                _ => None,
            },
            _ => None,
        }
    }
}

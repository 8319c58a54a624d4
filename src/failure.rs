//! From an error of any room to one message, its hint and the exit code.

use nsparse_core::Fault;

/// What the user sees when a command fails.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What went wrong and where; the chain of causes in one line.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// 2 for wrong use, 3 where the outside world failed.
    pub(crate) code: u8,
}

/// Wrong use found by the binary itself.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct UsageError {
    message: String,
    hint: Option<String>,
}

/// Wrong use: what is wrong, and what to do.
pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    UsageError { message: message.into(), hint: Some(hint.into()) }.into()
}

/// The outside world failed: a download, a server.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct WorldError {
    message: String,
    hint: Option<String>,
}

/// The outside world failed, and what to do.
pub(crate) fn world(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
    WorldError { message: message.into(), hint: Some(hint.into()) }.into()
}

impl From<&anyhow::Error> for Failure {
    fn from(error: &anyhow::Error) -> Self {
        let mut fault = None;
        let mut hint = None;
        for cause in error.chain() {
            if let Some((f, h)) = judge(cause) {
                fault = fault.or(Some(f));
                hint = hint.or(h);
            }
        }
        let mut message = String::new();
        for cause in error.chain() {
            let text = cause.to_string();
            // Wrappers repeat their cause's text; it is said once.
            if !message.contains(&text) {
                if !message.is_empty() {
                    message.push_str(": ");
                }
                message.push_str(&text);
            }
        }
        let code = match fault {
            Some(Fault::Usage) => 2,
            Some(Fault::World) | None => 3,
        };
        Self { message, hint, code }
    }
}

fn judge(cause: &(dyn std::error::Error + 'static)) -> Option<(Fault, Option<String>)> {
    if let Some(e) = cause.downcast_ref::<UsageError>() {
        return Some((Fault::Usage, e.hint.clone()));
    }
    if let Some(e) = cause.downcast_ref::<WorldError>() {
        return Some((Fault::World, e.hint.clone()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_core::Error>() {
        return Some((e.fault(), e.hint()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_encoder::Error>() {
        return Some((e.fault(), e.hint()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_retrieval::Error>() {
        return Some((e.fault(), e.hint()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_trainer::Error>() {
        return Some((e.fault(), e.hint()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_exporter::Error>() {
        return Some((e.fault(), e.hint()));
    }
    if let Some(e) = cause.downcast_ref::<nsparse_opensearch::Error>() {
        return Some((e.fault(), e.hint()));
    }
    None
}

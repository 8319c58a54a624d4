//! The one error of this crate: what failed, where, and (in `hint`) what to do about it. No variant ever holds a
//! password: addresses are stored without user information.

use std::fmt;
use std::time::Duration;

use nsparse_core::Fault;

use crate::client;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why no answer came from a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// Nothing listens at that address.
    Refused,
    /// The host name is not known.
    Dns,
    /// No answer within the time limit.
    Timeout,
    /// The certificate was not accepted, or one side speaks TLS and the other does not.
    Tls,
    /// The connection broke in the middle of a request.
    Reset,
    /// Anything else below HTTP.
    Other,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Refused => "nothing listens there",
            Self::Dns => "the host name is unknown",
            Self::Timeout => "no answer in time",
            Self::Tls => "no secure connection",
            Self::Reset => "the connection broke",
            Self::Other => "the connection failed",
        })
    }
}

/// What OpenSearch said about a request it did not fulfil, unwrapped from its nested JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// GET, PUT, POST, DELETE or HEAD.
    pub method: &'static str,
    /// Path and query as they were sent.
    pub path: String,
    /// HTTP status.
    pub status: u16,
    /// The innermost exception's type, such as `index_not_found_exception`; empty where none was given.
    pub kind: String,
    /// The innermost exception's reason, or the body's first characters where it is no OpenSearch error.
    pub reason: String,
    /// The body as it came, for callers that look deeper.
    pub body: serde_json::Value,
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} was answered with {}", self.method, self.path, self.status)?;
        match (self.kind.is_empty(), self.reason.is_empty()) {
            (true, true) => Ok(()),
            (false, false) => write!(f, " ({}): {}", self.kind, self.reason),
            (false, true) => write!(f, " ({})", self.kind),
            (true, false) => write!(f, ": {}", self.reason),
        }
    }
}

impl std::error::Error for ApiError {}

/// What can go wrong between here and a cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Files, vectors, cancellation.
    #[error(transparent)]
    Core(#[from] nsparse_core::Error),
    /// No answer came.
    #[error("No answer from {url} to {method} {path}: {why} ({detail})")]
    Unreachable {
        /// The cluster's address without user information.
        url: String,
        /// GET, PUT, POST, DELETE or HEAD.
        method: &'static str,
        /// Path and query as they were sent.
        path: String,
        /// The kind of failure.
        why: Unreachable,
        /// The innermost message of the network layer.
        detail: String,
    },
    /// The cluster answered 401: no, or wrong, user and password.
    #[error("{url} does not let {who} in: {method} {path} was answered with 401")]
    Unauthorized {
        /// The cluster's address without user information.
        url: String,
        /// "user `admin`", "this token" or "anonymous users".
        who: String,
        /// GET, PUT, POST, DELETE or HEAD.
        method: &'static str,
        /// Path and query as they were sent.
        path: String,
    },
    /// The cluster answered 403: the user may not do this.
    #[error("{url} does not allow {who} this: {source}")]
    Forbidden {
        /// The cluster's address without user information.
        url: String,
        /// "user `admin`", "this token" or "anonymous users".
        who: String,
        /// What the cluster said.
        source: Box<ApiError>,
    },
    /// Any other status from 400 on.
    #[error("{0}")]
    Api(Box<ApiError>),
    /// A status below 400 with a body that is not what this API answers.
    #[error("{method} {path} was answered with something unexpected: {message}")]
    Unexpected {
        /// GET, PUT, POST, DELETE or HEAD.
        method: &'static str,
        /// Path and query as they were sent.
        path: String,
        /// What was expected and what came.
        message: String,
    },
    /// A condition on the cluster did not come true in time.
    #[error("Gave up after {} s waiting for {what}; last seen: {last}", after.as_secs())]
    Deadline {
        /// What was waited for.
        what: String,
        /// The last state seen.
        last: String,
        /// How long was waited.
        after: Duration,
    },
    /// The cluster lacks something, or a local node could not be made: the message says what and where.
    #[error("{message}")]
    Failed {
        /// Whose fault it is.
        fault: Fault,
        /// What is wrong, and where.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
}

impl Error {
    /// Something the caller gave cannot be used (exit code 2).
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { fault: Fault::Usage, message: message.into(), hint: Some(hint.into()) }
    }

    /// Something outside failed (exit code 3).
    pub fn world(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Failed { fault: Fault::World, message: message.into(), hint: Some(hint.into()) }
    }

    /// The cluster's own words, where it answered with a status from 400 on other than 401.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            Self::Api(e) | Self::Forbidden { source: e, .. } => Some(e),
            _ => None,
        }
    }

    /// The HTTP status, where there was an answer.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Unauthorized { .. } => Some(401),
            other => other.api().map(|e| e.status),
        }
    }

    /// Whether the same request may succeed a moment later: 429, 502, 503, 504, and connections that broke,
    /// were refused or timed out.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { why, .. } => {
                matches!(why, Unreachable::Reset | Unreachable::Refused | Unreachable::Timeout)
            }
            other => matches!(other.status(), Some(429 | 502 | 503 | 504)),
        }
    }

    /// Whose fault it is: a wrong password or a bad setting is the caller's, a dead node the world's.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Core(e) => e.fault(),
            Self::Unauthorized { .. } | Self::Unreachable { why: Unreachable::Dns, .. } => Fault::Usage,
            Self::Failed { fault, .. } => *fault,
            _ => Fault::World,
        }
    }

    /// What the user can do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Core(e) => e.hint(),
            Self::Failed { hint, .. } => hint.clone(),
            Self::Unreachable { why, url, .. } => Some(match why {
                Unreachable::Refused => {
                    "start the cluster, or a local node with `nsparse cluster up`, or give another --url".to_owned()
                }
                Unreachable::Dns => "check the host name in --url".to_owned(),
                Unreachable::Timeout => "the cluster is slow or out of reach; try a longer --timeout".to_owned(),
                Unreachable::Tls if url.starts_with("http://") => {
                    "the server seems to speak TLS: write https:// in --url".to_owned()
                }
                Unreachable::Tls => {
                    "name the cluster's certificate authority with --ca-cert FILE, or, on a development \
                                     cluster only, use --insecure; a server without TLS needs http:// in --url"
                        .to_owned()
                }
                Unreachable::Reset | Unreachable::Other => {
                    "see the cluster's log, and whether --url has the right scheme (http or https)".to_owned()
                }
            }),
            Self::Unauthorized { who, .. } => Some(unauthorized_hint(who).to_owned()),
            Self::Forbidden { .. } => Some("ask the cluster's administrator for a role that allows it".to_owned()),
            Self::Api(e) => api_hint(e),
            Self::Deadline { .. } => Some("see the cluster's log; run the same command again to go on".to_owned()),
            Self::Unexpected { .. } => Some("check that --url is an OpenSearch cluster".to_owned()),
        }
    }
}

/// What helps who was not let in.
fn unauthorized_hint(who: &str) -> &'static str {
    match who {
        client::THIS_KEY => "check that the API key is whole, not expired, and of this cluster",
        client::THIS_TOKEN => "check that the token is whole, not expired, and meant for this cluster",
        client::THIS_CERTIFICATE => {
            "check that the cluster takes client certificates for its REST layer and knows this one's subject"
        }
        _ if who.starts_with(client::AWS_KEY) => {
            "check the keys, --aws-region, and that the domain's access policy names them; keys of a session expire"
        }
        _ => "check user and password (--user, and the password in the environment)",
    }
}

/// What helps against the answers that clusters give most often.
fn api_hint(e: &ApiError) -> Option<String> {
    let text = match e.kind.as_str() {
        "index_not_found_exception" => "check the index name, or make the index first",
        "cluster_block_exception" => {
            "the index is blocked, usually because the disk is nearly full: free space, then lift the block"
        }
        "circuit_breaking_exception" => "the node is short of memory: wait, send less at once, or give it more heap",
        _ if e.status == 429 => "the cluster is overloaded: wait, or send less at once",
        _ if e.status == 413 => "the request is too large for the cluster or a proxy: send smaller batches",
        _ if (502..=504).contains(&e.status) => "the cluster or a proxy before it is not ready: wait and try again",
        _ => return None,
    };
    Some(text.to_owned())
}

/// So that implementations of core's traits can report this crate's errors.
impl From<Error> for nsparse_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Core(e) => e,
            other => Self::other(other.fault(), other),
        }
    }
}

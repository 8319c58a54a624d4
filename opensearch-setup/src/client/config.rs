//! Where a cluster is, and how we prove who we are. Nothing here is ever printed with its secrets.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Everything that was a secret in this process, for [`without_secrets`]; the longest first.
static KNOWN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// What is shorter would be found in any text.
const SHORTEST: usize = 5;

/// A text with every [`Secret`] that this process has had, and every `Authorization` header made of one, as `***`: for
/// what others have written, such as the message of a panic.
pub fn without_secrets(text: &str) -> String {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "***"))
}

/// Makes [`without_secrets`] know a text.
pub(super) fn remember(text: &str) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if text.len() >= SHORTEST && !known.iter().any(|k| k == text) {
        known.push(text.to_owned());
        known.sort_by_key(|k| std::cmp::Reverse(k.len()));
    }
}

/// A string that no log, message or `Debug` output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The string itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        let text = text.into();
        remember(&text);
        Self(text)
    }
}

/// How we prove who we are. A client certificate ([`ClusterConfig::client_certificate`]) may stand beside each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// We do not: a cluster without the security plugin.
    #[default]
    None,
    /// User and password.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: Secret,
    },
    /// `Authorization: ApiKey …`: the key as it was given out.
    ApiKey(Secret),
    /// `Authorization: Bearer …`: a token (a JSON web token).
    Bearer(Secret),
    /// Each request signed with AWS Signature Version 4: Amazon OpenSearch Service and Serverless.
    Aws(AwsSigning),
}

impl Auth {
    /// Who this is, for messages.
    pub(crate) fn who(&self, has_certificate: bool) -> String {
        match self {
            Self::None if has_certificate => THIS_CERTIFICATE.to_owned(),
            Self::None => "anonymous users".to_owned(),
            Self::Basic { user, .. } => format!("user `{user}`"),
            Self::ApiKey(_) => THIS_KEY.to_owned(),
            Self::Bearer(_) => THIS_TOKEN.to_owned(),
            Self::Aws(signing) => format!("{AWS_KEY} `{}`", signing.credentials.access_key_id),
        }
    }
}

/// Who a client certificate is, in messages.
pub(crate) const THIS_CERTIFICATE: &str = "this client certificate";
/// Who an API key is, in messages.
pub(crate) const THIS_KEY: &str = "this API key";
/// Who a token is, in messages.
pub(crate) const THIS_TOKEN: &str = "this token";
/// Who AWS credentials are, in messages; the id of the key, which is no secret, follows.
pub(crate) const AWS_KEY: &str = "the AWS access key";

/// The part of AWS that a cluster belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AwsService {
    /// Amazon OpenSearch Service.
    Es,
    /// Amazon OpenSearch Serverless.
    Aoss,
}

impl AwsService {
    /// As it stands in a signature's scope.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Es => "es",
            Self::Aoss => "aoss",
        }
    }
}

/// An access key of AWS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsCredentials {
    /// `AKIA…` or `ASIA…`; no secret.
    pub access_key_id: String,
    /// What signs.
    pub secret_access_key: Secret,
    /// Goes with temporary keys.
    pub session_token: Option<Secret>,
}

/// With what requests are signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsSigning {
    /// Service or Serverless.
    pub service: AwsService,
    /// `eu-west-1`.
    pub region: String,
    /// The key.
    pub credentials: AwsCredentials,
}

/// A certificate that we show to the cluster, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// PEM: our certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// PEM: the key, not encrypted (PKCS #8, PKCS #1 or SEC 1).
    pub key: PathBuf,
}

/// Where a cluster is and how to talk to it.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// Addresses of one cluster's nodes: `http://` or `https://`, host, port, and a path prefix where a proxy needs
    /// one. Requests go to them in turn. User and password in an address are taken as [`Auth::Basic`] and never shown.
    pub urls: Vec<Secret>,
    /// Who we are.
    pub auth: Auth,
    /// Shown to the cluster when the connection is made.
    pub client_certificate: Option<ClientCertificate>,
    /// Time limit of one request, answer included.
    pub timeout: Duration,
    /// Time limit of making a connection, TLS included.
    pub connect_timeout: Duration,
    /// Accept any certificate: development clusters only.
    pub insecure: bool,
    /// Speak HTTP without TLS to a cluster that is not on this machine.
    pub insecure_http: bool,
    /// A PEM file with the certificate authority that signed the cluster's certificate, trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// The proxy to go through, with user and password where it wants them. Without one the environment's holds
    /// (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`), but not for this machine's own addresses.
    pub proxy: Option<Secret>,
}

impl ClusterConfig {
    /// A cluster at this address, or at these, separated by commas; without authentication, with a limit of 60 s a
    /// request and 10 s a connection.
    pub fn new(url: impl Into<String>) -> Self {
        let urls = url.into().split(',').map(str::trim).filter(|u| !u.is_empty()).map(Secret::from).collect();
        Self {
            urls,
            auth: Auth::None,
            client_certificate: None,
            timeout: Duration::from_mins(1),
            connect_timeout: Duration::from_secs(10),
            insecure: false,
            insecure_http: false,
            ca: None,
            proxy: None,
        }
    }
}

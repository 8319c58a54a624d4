//! The way to a cluster: settings, one transport, requests that come back as JSON or as a typed error, retries.
//!
//! [`Cluster`] owns a tokio runtime and blocks; it must not be called from inside another runtime. What runs
//! several requests at once inside this crate uses the `_async` forms on [`Cluster::runtime`].

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use opensearch::auth::Credentials;
use opensearch::cert::{Certificate, CertificateValidation};
use opensearch::http::headers::{CONTENT_TYPE, HeaderMap, HeaderValue};
use opensearch::http::transport::{SingleNodeConnectionPool, Transport, TransportBuilder};
use opensearch::http::{Method as HttpMethod, Url};
use serde_json::Value;

use crate::capabilities::Capabilities;
use crate::error::{ApiError, Error, Result, Unreachable};

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
        Self(text.into())
    }
}

/// How we prove who we are.
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
    /// A token (a JSON web token).
    Bearer(Secret),
}

impl Auth {
    /// Who this is, for messages.
    fn who(&self) -> String {
        match self {
            Self::None => "anonymous users".to_owned(),
            Self::Basic { user, .. } => format!("user `{user}`"),
            Self::Bearer(_) => "this token".to_owned(),
        }
    }
}

/// Where a cluster is and how to talk to it.
#[derive(Debug, Clone)]
pub struct ClusterConfig {
    /// `http://` or `https://`, host, port, and a path prefix where a proxy needs one. User and password in it
    /// are taken as [`Auth::Basic`] and never shown.
    pub url: String,
    /// Who we are.
    pub auth: Auth,
    /// Time limit of one request.
    pub timeout: Duration,
    /// Accept any certificate: development clusters only.
    pub insecure: bool,
    /// A PEM file with the certificate authority that signed the cluster's certificate.
    pub ca: Option<PathBuf>,
}

impl ClusterConfig {
    /// A cluster at this address, without authentication, with a limit of 60 s a request.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), auth: Auth::None, timeout: Duration::from_mins(1), insecure: false, ca: None }
    }
}

/// The methods that OpenSearch's API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Reads.
    Get,
    /// Makes or replaces.
    Put,
    /// Everything else.
    Post,
    /// Removes.
    Delete,
    /// Asks whether something is there.
    Head,
}

impl Method {
    /// As it stands in a request line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Head => "HEAD",
        }
    }

    fn to_http(self) -> HttpMethod {
        match self {
            Self::Get => HttpMethod::Get,
            Self::Put => HttpMethod::Put,
            Self::Post => HttpMethod::Post,
            Self::Delete => HttpMethod::Delete,
            Self::Head => HttpMethod::Head,
        }
    }
}

/// What a request carries.
#[derive(Debug, Clone, Default)]
pub enum Body {
    /// Nothing.
    #[default]
    None,
    /// A JSON value.
    Json(Value),
    /// Bytes with their content type: `application/x-ndjson`, `application/octet-stream`.
    Raw(Vec<u8>, &'static str),
}

/// Content type of bulk and multi-search bodies.
pub const NDJSON: &str = "application/x-ndjson";

/// An answer with a status below 400.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// The body: JSON where it parses, else the text as a string; null where there is none.
    pub body: Value,
}

/// How often and how long a request that may be repeated is tried again: 429, 502, 503, 504 and broken
/// connections only, with exponential backoff and jitter.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// First pause.
    pub min_delay: Duration,
    /// Longest pause.
    pub max_delay: Duration,
    /// Tries after the first.
    pub retries: usize,
    /// No new pause begins once this much time was paused in all.
    pub deadline: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            min_delay: Duration::from_millis(200),
            max_delay: Duration::from_secs(10),
            retries: 8,
            deadline: Duration::from_mins(2),
        }
    }
}

impl RetryPolicy {
    /// The pauses, for `backon`.
    pub(crate) fn builder(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.min_delay)
            .with_max_delay(self.max_delay)
            .with_max_times(self.retries)
            .with_total_delay(Some(self.deadline))
            .with_jitter()
    }
}

/// A cluster, ready to be asked. Clones share connection pool and runtime.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    runtime: tokio::runtime::Runtime,
    url: String,
    who: String,
    timeout: Duration,
    retry: RetryPolicy,
    capabilities: OnceLock<Capabilities>,
}

impl Cluster {
    /// Prepares the transport; nothing is sent yet ([`Cluster::capabilities`] is a good first request).
    ///
    /// # Errors
    /// If the address or the certificate file cannot be used.
    pub fn connect(config: &ClusterConfig) -> Result<Self> {
        Self::connect_with(config, RetryPolicy::default())
    }

    /// As [`Cluster::connect`], with other pauses between tries.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub fn connect_with(config: &ClusterConfig, retry: RetryPolicy) -> Result<Self> {
        let (url, auth) = split_url(config)?;
        let mut builder =
            TransportBuilder::new(SingleNodeConnectionPool::new(url.clone())).timeout(config.timeout).header(
                opensearch::http::headers::USER_AGENT,
                HeaderValue::from_static(concat!("nsparse/", env!("CARGO_PKG_VERSION"))),
            );
        if is_loopback(&url) {
            // A proxy set for the internet must not stand between us and our own machine.
            builder = builder.disable_proxy();
        }
        match &auth {
            Auth::None => {}
            Auth::Basic { user, password } => {
                builder = builder.auth(Credentials::Basic(user.clone(), password.expose().to_owned()));
            }
            Auth::Bearer(token) => builder = builder.auth(Credentials::Bearer(token.expose().to_owned())),
        }
        if config.insecure {
            builder = builder.cert_validation(CertificateValidation::None);
        } else if let Some(path) = &config.ca {
            let pem = std::fs::read(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
            let chain = Certificate::from_pem(&pem).map_err(|e| {
                Error::usage(
                    format!("The certificate file `{}` cannot be used: {}", path.display(), innermost(&e)),
                    "give a PEM file that begins with -----BEGIN CERTIFICATE-----",
                )
            })?;
            builder = builder.cert_validation(CertificateValidation::Full(chain));
        }
        let transport = builder.build().map_err(|e| {
            Error::world(format!("No HTTP client can be made: {}", innermost(&e)), "check the certificates installed")
        })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("nsparse-http")
            .enable_all()
            .build()
            .map_err(|e| Error::world(format!("No threads for the network: {e}"), "check the limits of this user"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                transport,
                runtime,
                url: url.as_str().trim_end_matches('/').to_owned(),
                who: auth.who(),
                timeout: config.timeout,
                retry,
                capabilities: OnceLock::new(),
            }),
        })
    }

    /// The cluster's address, without user information and without a slash at its end.
    pub fn url(&self) -> &str {
        &self.inner.url
    }

    /// The pauses between tries.
    pub fn retry_policy(&self) -> RetryPolicy {
        self.inner.retry
    }

    /// The runtime on which this cluster's requests run.
    pub fn runtime(&self) -> &tokio::runtime::Runtime {
        &self.inner.runtime
    }

    /// What the cluster is and can do; asked once, then remembered.
    ///
    /// # Errors
    /// If it does not answer, or is nothing that nsparse can work with.
    pub fn capabilities(&self) -> Result<&Capabilities> {
        if let Some(known) = self.inner.capabilities.get() {
            return Ok(known);
        }
        let found = Capabilities::ask(self)?;
        Ok(self.inner.capabilities.get_or_init(|| found))
    }

    /// One request, sent once. `path` begins with a slash and holds the query string, if any.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::Unauthorized`], [`Error::Forbidden`], or [`Error::Api`] for every other
    /// status from 400 on.
    pub fn request(&self, method: Method, path: &str, body: Body) -> Result<Response> {
        self.inner.runtime.block_on(self.request_async(method, path, body))
    }

    /// As [`Cluster::request`], tried again where [`Error::is_transient`] says so. Only for requests that may
    /// arrive twice: reads, replacements, deletions, bulk requests with ids.
    ///
    /// # Errors
    /// As [`Cluster::request`]: the last try's.
    pub fn request_retrying(&self, method: Method, path: &str, body: Body) -> Result<Response> {
        self.inner.runtime.block_on(self.request_retrying_async(method, path, body))
    }

    /// GET, tried again where that can help.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub fn get(&self, path: &str) -> Result<Value> {
        Ok(self.request_retrying(Method::Get, path, Body::None)?.body)
    }

    /// PUT of a JSON body, tried again where that can help.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub fn put(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.request_retrying(Method::Put, path, Body::Json(body))?.body)
    }

    /// POST of a JSON body, sent once; [`Value::Null`] sends no body.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub fn post(&self, path: &str, body: Value) -> Result<Value> {
        let body = if body.is_null() { Body::None } else { Body::Json(body) };
        Ok(self.request(Method::Post, path, body)?.body)
    }

    /// DELETE; `None` where there was nothing to delete (404).
    ///
    /// # Errors
    /// As [`Cluster::request`], 404 excepted.
    pub fn delete(&self, path: &str) -> Result<Option<Value>> {
        found(self.request_retrying(Method::Delete, path, Body::None)).map(|r| r.map(|r| r.body))
    }

    /// GET; `None` where it is not there (404).
    ///
    /// # Errors
    /// As [`Cluster::request`], 404 excepted.
    pub fn find(&self, path: &str) -> Result<Option<Value>> {
        found(self.request_retrying(Method::Get, path, Body::None)).map(|r| r.map(|r| r.body))
    }

    /// As [`Cluster::request`], to be awaited on any runtime.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub async fn request_async(&self, method: Method, path: &str, body: Body) -> Result<Response> {
        let mut headers = HeaderMap::new();
        let bytes = match body {
            Body::None => None,
            Body::Json(value) => Some(value.to_string().into_bytes()),
            Body::Raw(bytes, content_type) => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
                Some(bytes)
            }
        };
        let started = std::time::Instant::now();
        let failed = |e: &opensearch::Error| self.unreachable(method, path, e);
        let answer = self
            .inner
            .transport
            .send(method.to_http(), path, headers, None::<&()>, bytes, Some(self.inner.timeout))
            .await
            .map_err(|e| failed(&e))?;
        let status = answer.status_code().as_u16();
        let text = answer.bytes().await.map_err(|e| failed(&e))?;
        tracing::debug!(method = method.as_str(), path, status, ms = started.elapsed().as_millis() as u64, "request");
        let body = parse(&text);
        if status < 400 { Ok(Response { status, body }) } else { Err(self.refused(method, path, status, body)) }
    }

    /// As [`Cluster::request_retrying`], to be awaited on any runtime.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub async fn request_retrying_async(&self, method: Method, path: &str, body: Body) -> Result<Response> {
        (|| self.request_async(method, path, body.clone()))
            .retry(self.inner.retry.builder())
            .when(Error::is_transient)
            .notify(|error, pause| tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "trying again"))
            .await
    }

    fn unreachable(&self, method: Method, path: &str, error: &opensearch::Error) -> Error {
        Error::Unreachable {
            url: self.inner.url.clone(),
            method: method.as_str(),
            path: path.to_owned(),
            why: why(error),
            detail: innermost(error),
        }
    }

    fn refused(&self, method: Method, path: &str, status: u16, body: Value) -> Error {
        let (url, who) = (self.inner.url.clone(), self.inner.who.clone());
        if status == 401 {
            return Error::Unauthorized { url, who, method: method.as_str(), path: path.to_owned() };
        }
        let (kind, reason) = unwrap_reason(&body);
        let api = Box::new(ApiError { method: method.as_str(), path: path.to_owned(), status, kind, reason, body });
        if status == 403 && api.kind != "cluster_block_exception" {
            Error::Forbidden { url, who, source: api }
        } else {
            Error::Api(api)
        }
    }
}

/// Turns a 404 into `None`.
fn found(answer: Result<Response>) -> Result<Option<Response>> {
    match answer {
        Err(e) if e.status() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

/// The body as JSON, else as text.
fn parse(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// Type and reason of the innermost cause. ML Commons and proxies answer in other shapes than the core does;
/// what is no OpenSearch error gives its first characters as the reason.
pub(crate) fn unwrap_reason(body: &Value) -> (String, String) {
    fn text(value: &Value, key: &str) -> String {
        value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
    let error = match body {
        Value::Null => return (String::new(), String::new()),
        Value::String(text) => return (String::new(), shorten(text)),
        other => other.get("error").unwrap_or(other),
    };
    if let Value::String(text) = error {
        return (String::new(), shorten(text));
    }
    // `all shards failed` says nothing; its root cause does. A cause below that is more precise still.
    let mut at = error.pointer("/root_cause/0").unwrap_or(error);
    let (mut kind, mut reason) = (text(at, "type"), text(at, "reason"));
    if reason.is_empty() {
        at = error;
        (kind, reason) = (text(at, "type"), text(at, "reason"));
    }
    let mut cause = at.get("caused_by").or_else(|| error.get("caused_by"));
    while let Some(inner) = cause {
        let below = text(inner, "reason");
        if !below.is_empty() && !reason.contains(&below) {
            reason = if reason.is_empty() { below } else { format!("{reason}: {below}") };
        }
        cause = inner.get("caused_by");
    }
    if kind.is_empty() && reason.is_empty() {
        reason = shorten(&body.to_string());
    }
    (kind, reason)
}

/// At most 300 characters, on one line.
fn shorten(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// Checks the address and takes user information out of it.
fn split_url(config: &ClusterConfig) -> Result<(Url, Auth)> {
    let wrong = |what: String| Error::usage(what, "write it like http://localhost:9200 or https://search.example:9200");
    // The address may hold a password: an unreadable one is not repeated.
    let mut url = Url::parse(config.url.trim()).map_err(|e| wrong(format!("The cluster's URL cannot be read: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("The cluster's URL has the scheme `{}`, not http or https", url.scheme())));
    }
    let mut auth = config.auth.clone();
    if !url.username().is_empty() || url.password().is_some() {
        if auth == Auth::None {
            let decode = |s: &str| percent_decode(s);
            auth = Auth::Basic {
                user: decode(url.username()),
                password: decode(url.password().unwrap_or_default()).into(),
            };
        }
        // Neither fails on an address that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok((url, auth))
}

/// Undoes `%XX`; anything broken stays as it is.
fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        if let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| bytes[i] == b'%') {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether an address is this machine's own.
fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The message at the end of an error's chain of causes.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// Sorts a network error by what it means to the user.
fn why(error: &opensearch::Error) -> Unreachable {
    if error.is_timeout() {
        return Unreachable::Timeout;
    }
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut messages = String::new();
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind as Kind;
            match io.kind() {
                Kind::ConnectionRefused => return Unreachable::Refused,
                Kind::TimedOut => return Unreachable::Timeout,
                Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => return Unreachable::Reset,
                _ => {}
            }
        }
        messages.push_str(&e.to_string().to_lowercase());
        messages.push('\n');
        at = e.source();
    }
    let has = |words: &[&str]| words.iter().any(|w| messages.contains(w));
    if has(&["dns error", "failed to lookup address"]) {
        Unreachable::Dns
    } else if has(&["certificate", "tls", "invalidcontenttype", "corrupt message", "invalid http version"]) {
        Unreachable::Tls
    } else if has(&["connection closed", "incomplete message", "unexpected eof", "connection reset"]) {
        Unreachable::Reset
    } else {
        Unreachable::Other
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;

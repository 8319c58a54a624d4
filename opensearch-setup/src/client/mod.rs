//! The way to a cluster: settings, nodes in turn, requests that come back as JSON or as a typed error, retries.
//!
//! [`Cluster`] owns a tokio runtime and blocks; it must not be called from inside another runtime. What runs
//! several requests at once inside this crate uses the `_async` forms on [`Cluster::runtime`].

mod answers;
mod auth;
pub mod aws;
mod config;
mod nodes;
mod retry;
#[cfg(feature = "aws")]
mod sigv4;
mod tls;
mod urls;

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use backon::Retryable;
use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use serde_json::Value;

use crate::capabilities::{Capabilities, Managed};
use crate::error::{ApiError, Error, Result, Unreachable};
pub(crate) use answers::unwrap_reason;
use answers::{innermost, parse, why};
use auth::Authorization;
pub(crate) use config::{AWS_KEY, THIS_CERTIFICATE, THIS_KEY, THIS_TOKEN};
pub use config::{
    Auth, AwsCredentials, AwsService, AwsSigning, ClientCertificate, ClusterConfig, Secret, without_secrets,
};
use nodes::{Node, Nodes};
pub use retry::RetryPolicy;
pub use urls::has_user_info;

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

    fn to_http(self) -> reqwest::Method {
        match self {
            Self::Get => reqwest::Method::GET,
            Self::Put => reqwest::Method::PUT,
            Self::Post => reqwest::Method::POST,
            Self::Delete => reqwest::Method::DELETE,
            Self::Head => reqwest::Method::HEAD,
        }
    }

    /// Whether it only reads, so that it may arrive twice.
    fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::Head)
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

/// A cluster, ready to be asked. Clones share connection pool and runtime.
#[derive(Debug, Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    http: reqwest::Client,
    runtime: tokio::runtime::Runtime,
    nodes: Nodes,
    authorization: Authorization,
    who: String,
    timeout: Duration,
    retry: RetryPolicy,
    managed: Option<Managed>,
    capabilities: OnceLock<Capabilities>,
}

/// A body as it is sent, shared between tries.
#[derive(Debug, Clone)]
struct Payload {
    bytes: Bytes,
    content_type: Option<&'static str>,
}

impl From<Body> for Payload {
    fn from(body: Body) -> Self {
        match body {
            Body::None => Self { bytes: Bytes::new(), content_type: None },
            Body::Json(value) => Self { bytes: value.to_string().into(), content_type: Some("application/json") },
            Body::Raw(bytes, content_type) => Self { bytes: bytes.into(), content_type: Some(content_type) },
        }
    }
}

/// One try at one node that did not succeed.
struct Failed {
    error: Error,
    /// Whether the request certainly never arrived.
    unsent: bool,
}

impl Failed {
    /// Whether this node cannot answer now, while another one may: the connection failed, or 502, 503, 504. A node
    /// that was only too slow is not left out, and 429 is the cluster's word.
    fn is_away(&self) -> bool {
        match &self.error {
            Error::Unreachable { why, .. } => self.unsent || *why != Unreachable::Timeout,
            other => matches!(other.status(), Some(502..=504)),
        }
    }
}

impl Cluster {
    /// Prepares the client; nothing is sent yet ([`Cluster::capabilities`] is a good first request).
    ///
    /// # Errors
    /// If an address, a secret, a certificate or the proxy cannot be used, or settings contradict each other.
    pub fn connect(config: &ClusterConfig) -> Result<Self> {
        Self::connect_with(config, RetryPolicy::default())
    }

    /// As [`Cluster::connect`], with other pauses between tries.
    ///
    /// # Errors
    /// As [`Cluster::connect`].
    pub fn connect_with(config: &ClusterConfig, retry: RetryPolicy) -> Result<Self> {
        let (urls, auth) = urls::resolve(config)?;
        let authorization = Authorization::new(&auth)?;
        let http = tls::http_client(config, &urls)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("nsparse-http")
            .enable_all()
            .build()
            .map_err(|e| Error::world(format!("No threads for the network: {e}"), "check the limits of this user"))?;
        Ok(Self {
            inner: Arc::new(Inner {
                http,
                runtime,
                nodes: Nodes::new(&urls),
                authorization,
                who: auth.who(config.client_certificate.is_some()),
                timeout: config.timeout,
                retry,
                managed: aws::service_of(&auth, &urls[0]).map(Managed::from),
                capabilities: OnceLock::new(),
            }),
        })
    }

    /// The address of the cluster's first node, without user information and without a slash at its end.
    pub fn url(&self) -> &str {
        &self.inner.nodes.all()[0].url
    }

    /// The addresses of all nodes that were given.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.inner.nodes.all().iter().map(|n| n.url.as_str())
    }

    /// Whose service this is, by how we prove who we are, or by its host; `None` for a cluster of one's own.
    pub fn managed(&self) -> Option<Managed> {
        self.inner.managed
    }

    /// Time limit of one request.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
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

    /// The cluster's own id, which tells it from every other. Amazon OpenSearch Serverless has no first page that would
    /// tell one: there it is `serverless:` and the collection's host, and nothing is asked.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn uuid(&self) -> Result<String> {
        if self.managed() == Some(Managed::AmazonServerless) {
            let url = reqwest::Url::parse(self.url()).ok();
            return Ok(format!("serverless:{}", url.as_ref().and_then(reqwest::Url::host_str).unwrap_or_default()));
        }
        Ok(self.get("/")?.get("cluster_uuid").and_then(Value::as_str).unwrap_or_default().to_owned())
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
        self.send(method, path, &body.into(), method.is_read()).await
    }

    /// As [`Cluster::request_retrying`], to be awaited on any runtime.
    ///
    /// # Errors
    /// As [`Cluster::request`].
    pub async fn request_retrying_async(&self, method: Method, path: &str, body: Body) -> Result<Response> {
        let payload = Payload::from(body);
        (|| self.send(method, path, &payload, true))
            .retry(self.inner.retry.builder())
            .when(Error::is_transient)
            .notify(|error, pause| tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "trying again"))
            .await
    }

    /// One request to the node whose turn it is; to the next one at once where that node is away. A request that must
    /// not arrive twice goes on only if it never arrived.
    async fn send(&self, method: Method, path: &str, payload: &Payload, repeatable: bool) -> Result<Response> {
        let mut turn = self.inner.nodes.turn(Instant::now()).into_iter();
        let mut next = turn.next();
        loop {
            let node = next.expect("a cluster has a node, and the loop ends with the last one");
            let failed = match self.send_to(node, method, path, payload).await {
                Ok(response) => {
                    node.answered();
                    return Ok(response);
                }
                Err(failed) => failed,
            };
            if !failed.is_away() {
                node.answered();
                return Err(failed.error);
            }
            node.failed(Instant::now());
            next = turn.next().filter(|_| failed.unsent || repeatable);
            match next {
                Some(other) => tracing::warn!(error = %failed.error, next = other.url, "asking another node"),
                None => return Err(failed.error),
            }
        }
    }

    async fn send_to(
        &self,
        node: &Node,
        method: Method,
        path: &str,
        payload: &Payload,
    ) -> std::result::Result<Response, Failed> {
        let request = self.request_for(node, method, path, payload).map_err(|error| Failed { error, unsent: true })?;
        let started = Instant::now();
        let failed = |e: &reqwest::Error| Failed {
            error: Error::Unreachable {
                url: node.url.clone(),
                method: method.as_str(),
                path: path.to_owned(),
                why: why(e),
                detail: innermost(e),
            },
            unsent: e.is_connect(),
        };
        let answer = self.inner.http.execute(request).await.map_err(|e| failed(&e))?;
        let status = answer.status().as_u16();
        let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok()).map(str::to_owned);
        let text = answer.bytes().await.map_err(|e| failed(&e))?;
        let ms = started.elapsed().as_millis() as u64;
        tracing::debug!(method = method.as_str(), node = node.url, path, status, ms, "request");
        let error = match status {
            ..300 => return Ok(Response { status, body: parse(&text) }),
            300..400 => redirected(method, path, status, location.as_deref()),
            _ => self.refused(node, method, path, status, parse(&text)),
        };
        Err(Failed { error, unsent: false })
    }

    fn request_for(&self, node: &Node, method: Method, path: &str, payload: &Payload) -> Result<reqwest::Request> {
        let url = reqwest::Url::parse(&format!("{}{path}", node.url))
            .map_err(|e| Error::usage(format!("No address can be made of {path}: {e}"), "check the names given"))?;
        let mut headers = HeaderMap::new();
        if let Some(kind) = payload.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        self.inner.authorization.apply(&mut headers, method.as_str(), &url, &payload.bytes)?;
        let mut request = reqwest::Request::new(method.to_http(), url);
        *request.headers_mut() = headers;
        if payload.content_type.is_some() {
            *request.body_mut() = Some(payload.bytes.clone().into());
        }
        Ok(request)
    }

    fn refused(&self, node: &Node, method: Method, path: &str, status: u16, body: Value) -> Error {
        let (url, who) = (node.url.clone(), self.inner.who.clone());
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

/// Redirects are not followed: what authorises would go along.
fn redirected(method: Method, path: &str, status: u16, location: Option<&str>) -> Error {
    let to = location.and_then(|l| l.split(['?', '#']).next()).filter(|l| !urls::has_user_info(l));
    let to = to.map_or_else(String::new, |l| format!(" to {l}"));
    Error::Unexpected {
        method: method.as_str(),
        path: path.to_owned(),
        message: format!("a redirect ({status}){to}, which is not followed; give the cluster's own address"),
    }
}

/// Turns a 404 into `None`.
fn found(answer: Result<Response>) -> Result<Option<Response>> {
    match answer {
        Err(e) if e.status() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

#[cfg(test)]
mod tests;

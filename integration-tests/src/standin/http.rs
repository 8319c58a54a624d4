//! The server around the stand-in and the replay: one thread, loopback only, stopped when dropped.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State as Shared};
use axum::response::Response;
use serde_json::Value;

use super::replay::Script;
use super::state::{Routed, State};
use super::{Outage, Reply, Strike};
use super::{bulk, phases, rewrite};

/// OpenSearch's `http.max_content_length`.
const MAX_BODY: usize = 100 << 20;

/// Who answers.
#[derive(Clone)]
pub(super) enum Handler {
    /// The stand-in, with a node behind it or alone.
    StandIn {
        /// Its state.
        state: Arc<Mutex<State>>,
        /// The node behind it.
        upstream: Option<String>,
    },
    /// Recorded answers in their order.
    Replay(Arc<Mutex<Script>>),
}

/// One request, read whole.
pub(super) struct Incoming {
    pub(super) method: String,
    /// Path without the query string.
    pub(super) path: String,
    /// The query string; empty where there is none.
    pub(super) query: String,
    pub(super) content_type: String,
    pub(super) body: Bytes,
}

impl Incoming {
    /// The body as JSON; null where it is none.
    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// Path and query as they were sent.
    pub(super) fn target(&self) -> String {
        if self.query.is_empty() { self.path.clone() } else { format!("{}?{}", self.path, self.query) }
    }
}

/// A running server.
pub(super) struct Server {
    pub(super) url: String,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(handler: Handler) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback interface");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the server");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the socket");
                let router = Router::new().fallback(answer).with_state(handler);
                let served = std::future::IntoFuture::into_future(axum::serve(listener, router));
                tokio::select! {
                    result = served => result.expect("the server runs until it is stopped"),
                    _ = stopped => {}
                }
            });
        });
        Self { url, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // The thread is gone already where it panicked.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn answer(Shared(handler): Shared<Handler>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let content_type = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return render(&Reply::error(413, "content_too_long_exception", "entity content is too long"));
    };
    let incoming = Incoming {
        method: parts.method.as_str().to_owned(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        content_type,
        body,
    };
    match handler {
        Handler::Replay(script) => render(&script.lock().unwrap_or_else(PoisonError::into_inner).answer(&incoming)),
        Handler::StandIn { state, upstream } => stand_in(&state, upstream.as_deref(), incoming).await,
    }
}

async fn stand_in(state: &Arc<Mutex<State>>, upstream: Option<&str>, incoming: Incoming) -> Response {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let struck = lock().log(&incoming);
    let meanwhile = lock().take_meanwhile();
    if let Some(what) = meanwhile {
        // On a thread of its own: its requests come to this server too.
        let (done, is_done) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            what();
            let _ = done.send(());
        });
        // Where it panicked its test has failed.
        let _ = is_done.await;
    }
    let outage = lock().is_out();
    match outage {
        Some(Outage::Unavailable) => return render(&Reply::error(503, "exception", "injected outage")),
        Some(Outage::Cut) => return cut(),
        // Until the client goes away.
        Some(Outage::Silent { works: false }) => std::future::pending().await,
        Some(Outage::Silent { works: true }) | None => {}
    }
    let injected = Reply::error(500, "exception", "injected failure");
    match struck {
        Some(Strike::Before) => return render(&injected),
        Some(Strike::Forbidden) => return render(&Reply::error(403, "security_exception", "no permissions")),
        Some(Strike::After) | None => {}
    }
    let routed = lock().route(&incoming);
    let response = match routed {
        Routed::Answer(reply) => render(&reply),
        Routed::Upstream => match upstream {
            None => render(&lock().fake_node(&incoming)),
            Some(url) => pass_on(state, url, incoming).await,
        },
    };
    if outage.is_some() {
        std::future::pending::<()>().await;
    }
    if struck == Some(Strike::After) { render(&injected) } else { response }
}

/// Sends a request to the node behind, with `neural_sparse` clauses rewritten.
async fn pass_on(state: &Arc<Mutex<State>>, url: &str, incoming: Incoming) -> Response {
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client without a proxy");
    let pipeline = match rewrite::searched(&incoming) {
        Some(target) => search_pipeline(state, &client, url, target, &incoming).await,
        None => None,
    };
    let (target, rewritten) = {
        let state = lock();
        let in_bulk = bulk::body(&state, &incoming);
        let rewritten = || rewrite::body(&state, &incoming, pipeline.as_ref());
        let body = in_bulk.and_then(|body| body.map_or_else(rewritten, Ok));
        (bulk::target(&state, &incoming), body)
    };
    let body = match rewritten {
        Ok(body) => body,
        Err(reply) => return render(&reply),
    };
    let method = reqwest::Method::from_bytes(incoming.method.as_bytes()).expect("axum has parsed the method");
    let send = |body: Bytes| {
        let mut request = client.request(method.clone(), format!("{url}{target}"));
        if !incoming.content_type.is_empty() {
            request = request.header("content-type", &incoming.content_type);
        }
        request.body(body).send()
    };
    if incoming.path.ends_with("/_search") {
        let request: Value = serde_json::from_slice(&body).unwrap_or_default();
        if let Some(parts) = phases::parts(&request) {
            let mut answers = Vec::new();
            for part in parts {
                let Ok(answer) = send(part.to_string().into()).await else {
                    return render(&Reply::error(502, "exception", "the node behind does not answer"));
                };
                let status = answer.status().as_u16();
                let body: Value = serde_json::from_slice(&answer.bytes().await.unwrap_or_default()).unwrap_or_default();
                if status != 200 {
                    return render(&Reply { status, body });
                }
                answers.push(body);
            }
            return render(&phases::combined(&pipeline.unwrap_or_default(), &request, answers));
        }
    }
    let answer = match send(body).await {
        Ok(answer) => answer,
        Err(e) => return render(&Reply::error(502, "exception", &format!("the node behind does not answer: {e}"))),
    };
    let status = answer.status().as_u16();
    let bytes = answer.bytes().await.unwrap_or_default();
    match serde_json::from_slice(&bytes) {
        Ok(body) => render(&lock().after_upstream(&incoming, Reply { status, body })),
        Err(_) => plain(status, bytes),
    }
}

/// The search pipeline in force: the one in the body, or named by the request, or the index's default.
async fn search_pipeline(
    state: &Arc<Mutex<State>>,
    client: &reqwest::Client,
    url: &str,
    target: &str,
    incoming: &Incoming,
) -> Option<Value> {
    if let Some(inline) = incoming.json().get("search_pipeline").filter(|p| p.is_object()) {
        return Some(inline.clone());
    }
    let named = incoming.query.split('&').find_map(|p| p.strip_prefix("search_pipeline=")).map(str::to_owned);
    let name = if let Some(named) = named {
        named
    } else {
        let path = format!("{url}/{target}/_settings/index.search.default_pipeline?flat_settings=true");
        let bytes = client.get(path).send().await.ok()?.bytes().await.ok()?;
        let answer: Value = serde_json::from_slice(&bytes).ok()?;
        let index = answer.as_object()?.values().next()?;
        index.get("settings")?.get("index.search.default_pipeline")?.as_str()?.to_owned()
    };
    let state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.node.search_pipelines.get(&name).cloned()
}

/// An answer that ends before its length: the client's connection is cut.
fn cut() -> Response {
    let parts = [Ok(Bytes::from_static(b"{")), Err(std::io::Error::other("cut"))];
    let mut response = Response::new(Body::from_stream(futures::stream::iter(parts)));
    response.headers_mut().insert("content-length", axum::http::HeaderValue::from_static("100"));
    response
}

fn render(reply: &Reply) -> Response {
    let bytes = if reply.body.is_null() { Vec::new() } else { reply.body.to_string().into_bytes() };
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status(reply.status);
    response.headers_mut().insert("content-type", axum::http::HeaderValue::from_static("application/json"));
    response
}

fn plain(code: u16, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status(code);
    response
}

fn status(code: u16) -> axum::http::StatusCode {
    axum::http::StatusCode::from_u16(code).expect("a status between 100 and 999")
}

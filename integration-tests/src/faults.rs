//! A proxy before a node that does to bulk requests what networks, disks and loaded clusters do; everything else passes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde_json::json;

/// What becomes of a bulk request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// It is refused with this status, and does nothing.
    Status(u16),
    /// The connection is cut before the node hears of it.
    CutBefore,
    /// The node does it, and the connection is cut in the middle of the answer.
    CutAnswer,
    /// The node does it, and no answer comes for as long as the client waits.
    Late,
}

/// A running proxy; dropping it stops it.
pub struct Proxy {
    /// Its address.
    pub url: String,
    bulks: Arc<AtomicUsize>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

type Decide = dyn Fn(usize) -> Fault + Send + Sync;

#[derive(Clone)]
struct Inner {
    upstream: String,
    client: reqwest::Client,
    bulks: Arc<AtomicUsize>,
    decide: Arc<Decide>,
}

impl Proxy {
    /// Starts it on a free port of the loopback interface. `decide` gets each bulk request's number, counted from 0.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(upstream: &str, decide: impl Fn(usize) -> Fault + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback interface");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let bulks = Arc::new(AtomicUsize::new(0));
        let inner = Inner {
            upstream: upstream.to_owned(),
            client: reqwest::Client::builder().no_proxy().build().expect("a client without a proxy"),
            bulks: Arc::clone(&bulks),
            decide: Arc::new(decide),
        };
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the proxy");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the socket");
                let router = Router::new().fallback(answer).with_state(inner);
                let served = std::future::IntoFuture::into_future(axum::serve(listener, router));
                tokio::select! {
                    result = served => result.expect("the proxy runs until it is stopped"),
                    _ = stopped => {}
                }
            });
        });
        Self { url, bulks, stop: Some(stop), thread: Some(thread) }
    }

    /// Bulk requests that came so far.
    pub fn bulks(&self) -> usize {
        self.bulks.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
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

async fn answer(State(inner): State<Inner>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let is_bulk = parts.uri.path().ends_with("/_bulk");
    let Ok(body) = axum::body::to_bytes(body, 200 << 20).await else { return status(413) };
    let fault = if is_bulk {
        let number = inner.bulks.fetch_add(1, Ordering::SeqCst);
        (inner.decide)(number)
    } else {
        Fault::None
    };
    match fault {
        Fault::Status(code) => return status(code),
        Fault::CutBefore => return cut(Vec::new()),
        Fault::None | Fault::CutAnswer | Fault::Late => {}
    }
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let method = reqwest::Method::from_bytes(parts.method.as_str().as_bytes()).expect("axum has parsed the method");
    let mut request = inner.client.request(method, format!("{}{target}", inner.upstream));
    if let Some(kind) = parts.headers.get("content-type").and_then(|v| v.to_str().ok()) {
        request = request.header("content-type", kind);
    }
    let (code, bytes) = match request.body(body).send().await {
        Ok(answer) => (answer.status().as_u16(), answer.bytes().await.unwrap_or_default()),
        // The node is gone: so is the connection.
        Err(_) => return cut(Vec::new()),
    };
    match fault {
        Fault::CutAnswer => return cut(bytes[..bytes.len() / 2].to_vec()),
        // Dropped with the connection, once the client has given it up.
        Fault::Late => std::future::pending().await,
        _ => {}
    }
    respond(code, bytes)
}

fn respond(code: u16, bytes: Bytes) -> Response {
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = StatusCode::from_u16(code).expect("a status between 100 and 999");
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

fn status(code: u16) -> Response {
    let cause = json!({ "type": "injected_exception", "reason": "injected failure" });
    let error = json!({ "root_cause": [cause], "type": "injected_exception", "reason": "injected failure" });
    respond(code, json!({ "error": error, "status": code }).to_string().into())
}

/// The first part of an answer, and then the end of the connection.
fn cut(first: Vec<u8>) -> Response {
    let broken = || std::io::Error::new(std::io::ErrorKind::ConnectionReset, "injected failure");
    let parts = [Ok(Bytes::from(first)), Err(broken())];
    Response::new(Body::from_stream(futures::stream::iter(parts)))
}

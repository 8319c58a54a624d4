//! A stand-in for ML Commons and neural-search 2.16.0, which cannot be had from Maven Central: it answers
//! `/_plugins/_ml/**` as a real cluster did (`traces/`), stores pipelines and indexes in memory, or stands before
//! a real node and passes everything else on.
//!
//! What it does not do: run TorchScript. A `SPARSE_ENCODING` model answers through the closure that the test
//! hands in. Before a real node, bulk requests that name a pipeline get their vectors from it; an index's default
//! pipeline is not run.

mod aliases;
mod bulk;
mod http;
mod ml;
mod node;
mod package;
mod phases;
pub mod replay;
mod rewrite;
mod search;
mod state;
mod stats;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use nsparse_core::DocumentEncoder;
use serde_json::{Value, json};

use state::State;

/// Computes a document's vector from its text, by token string.
pub type EncodeText = Arc<dyn Fn(&str) -> BTreeMap<String, f32> + Send + Sync>;

/// An [`EncodeText`] from an encoder, which is made and asked on a thread of its own.
pub fn encode_with<E: DocumentEncoder>(make: impl FnOnce() -> E + Send + 'static) -> EncodeText {
    let (ask, asked) = mpsc::channel::<(String, mpsc::Sender<BTreeMap<String, f32>>)>();
    // It ends when the last asker is gone.
    std::thread::spawn(move || {
        let encoder = make();
        for (text, answer) in asked {
            let vectors = encoder.encode(&[&text]).expect("the encoder takes any text");
            let named = vectors[0].iter().map(|(id, w)| (encoder.vocabulary()[id as usize].clone(), w));
            // Nobody waits any more where the server was stopped.
            let _ = answer.send(named.collect());
        }
    });
    let ask = Mutex::new(ask);
    Arc::new(move |text| {
        let (answer, answered) = mpsc::channel();
        let sender = ask.lock().unwrap_or_else(PoisonError::into_inner).clone();
        sender.send((text.to_owned(), answer)).expect("the encoder's thread runs");
        answered.recv().expect("the encoder answers")
    })
}

/// What the cluster that is stood in for looks like.
#[derive(Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent property")]
pub struct Options {
    /// The release that it says it is. Of what came with releases it knows one thing: before 2.14 a search by an alias gets
    /// no default pipeline.
    pub version: &'static str,
    /// Amazon OpenSearch Serverless: no first page and no list of plugins.
    pub serverless: bool,
    /// Whether ML Commons is installed.
    pub ml_commons: bool,
    /// Whether neural-search is installed.
    pub neural_search: bool,
    /// The node has no libtorch and may not fetch it.
    pub offline_natives: bool,
    /// How many questions see the old state before a change is visible.
    pub lag: usize,
    /// What `SPARSE_ENCODING` models compute.
    pub encode: EncodeText,
    /// A real node behind the stand-in: `http://127.0.0.1:9200`.
    pub upstream: Option<String>,
    /// The folder with the files that lie behind every `http` URL; without one, nothing does.
    pub behind_urls: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            version: "2.16.0",
            serverless: false,
            ml_commons: true,
            neural_search: true,
            offline_natives: false,
            lag: 1,
            encode: Arc::new(|_| BTreeMap::new()),
            upstream: None,
            behind_urls: None,
        }
    }
}

/// Which request something is done before.
enum When {
    /// The one with this number.
    Number(usize),
    /// The one that holds this, after so many others that do.
    Containing(String, usize),
}

/// What others do while a request waits.
type Meanwhile = Box<dyn FnOnce() + Send>;

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// JSON body.
    pub body: Value,
}

impl Reply {
    fn ok(body: Value) -> Self {
        Self { status: 200, body }
    }

    /// An error as OpenSearch words it.
    fn error(status: u16, kind: &str, reason: &str) -> Self {
        let cause = json!({ "type": kind, "reason": reason });
        Self {
            status,
            body: json!({ "error": { "root_cause": [cause], "type": kind, "reason": reason }, "status": status }),
        }
    }
}

/// When an injected failure strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strike {
    /// The request is refused and does nothing.
    Before,
    /// The request does its work, but its answer is lost.
    After,
    /// The user may not send it: 403, and it does nothing.
    Forbidden,
}

/// How a cluster is out of reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// A proxy before it answers 503.
    Unavailable,
    /// Connections are cut in mid-answer; requests do nothing.
    Cut,
    /// Requests wait for an answer that never comes; whether they do their work is the flag.
    Silent {
        /// Whether requests do their work.
        works: bool,
    },
}

/// What stands in the cluster, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Names of model groups.
    pub groups: Vec<String>,
    /// Names and states of models.
    pub models: Vec<String>,
    /// Names of ingest pipelines.
    pub pipelines: Vec<String>,
    /// Names of search pipelines.
    pub search_pipelines: Vec<String>,
    /// Names of indexes.
    pub indexes: Vec<String>,
    /// Names of aliases, each with its indexes.
    pub aliases: Vec<String>,
}

/// A running stand-in; dropping it stops it.
pub struct StandIn {
    server: http::Server,
    state: Arc<Mutex<State>>,
}

impl StandIn {
    /// Starts it on a free port of the loopback interface.
    pub fn start(options: Options) -> Self {
        let upstream = options.upstream.clone();
        let state = Arc::new(Mutex::new(State::new(options)));
        let server = http::Server::start(http::Handler::StandIn { state: Arc::clone(&state), upstream });
        Self { server, state }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// Fails the request number `n`, counted from 0 from now on, with status 500.
    pub fn fail(&self, n: usize, strike: Strike) {
        let mut state = self.lock();
        let at = state.requests.len() + n;
        state.fail = Some((at, strike));
    }

    /// Does this before the request number `n`, counted from 0 from now on, is answered: what others do meanwhile.
    pub fn meanwhile(&self, n: usize, what: impl FnOnce() + Send + 'static) {
        let mut state = self.lock();
        let at = state.requests.len() + n;
        state.meanwhile = Some((When::Number(at), Box::new(what)));
    }

    /// As [`StandIn::meanwhile`], before the request number `n` of those that hold `part`, counted from 0 from now on.
    pub fn meanwhile_at(&self, part: &str, n: usize, what: impl FnOnce() + Send + 'static) {
        self.lock().meanwhile = Some((When::Containing(part.to_owned(), n), Box::new(what)));
    }

    /// From the request number `n` on, counted from 0 from now on, the cluster is out of reach, until [`StandIn::mend`].
    pub fn out_of_reach(&self, n: usize, outage: Outage) {
        let mut state = self.lock();
        let from = state.requests.len() + n;
        state.outage = Some((from, outage));
    }

    /// Ends an outage.
    pub fn mend(&self) {
        self.lock().outage = None;
    }

    /// Spoils the bytes that this model is put together from at deploys, as a node does that died while it wrote them.
    pub fn spoil(&self, name: &str) {
        let mut state = self.lock();
        let id = state.models.iter().find(|(_, m)| m.name == name).map(|(id, _)| id.clone());
        state.spoiled.extend(id);
    }

    /// Spoils the first model of this name that is registered from now on.
    pub fn spoil_next(&self, name: &str) {
        self.lock().to_spoil = Some(name.to_owned());
    }

    /// All requests so far: method and path.
    pub fn requests(&self) -> Vec<String> {
        self.lock().requests.clone()
    }

    /// What stands in the cluster.
    pub fn contents(&self) -> Contents {
        self.lock().contents()
    }

    /// A document of the in-memory node.
    pub fn document(&self, index: &str, id: &str) -> Option<Value> {
        self.lock().node.document(index, id)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

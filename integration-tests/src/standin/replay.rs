//! A server that answers recorded requests in their order, and notes every request that differs from what was
//! recorded: in method, path, query string, or the keys of its body.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use super::Reply;
use super::http::{Handler, Incoming, Server};

/// One recorded request with its answer.
#[derive(Debug, Clone)]
pub struct Record {
    /// Line in the trace, from 1.
    pub line: usize,
    /// What the recording was about.
    pub scenario: String,
    /// What was special about this request; empty where nothing was.
    pub note: String,
    /// GET, PUT, POST or DELETE.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// JSON body, or text where the body was ndjson; null where there was none.
    pub body: Value,
    /// Size of a raw body, where one was sent.
    pub body_bytes: Option<u64>,
    /// HTTP status of the answer.
    pub status: u16,
    /// JSON body of the answer.
    pub answer: Value,
}

/// The recordings of a real 2.16.0 with ML Commons and neural-search.
pub fn trace() -> Vec<Record> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("traces/ml_commons_2.16.0.jsonl");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .enumerate()
        .map(|(index, line)| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("line {}: {e}", index + 1));
            let text = |at: &str| value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
            let number = |at: &str| value.pointer(at).and_then(Value::as_u64);
            Record {
                line: index + 1,
                scenario: text("/scenario"),
                note: text("/note"),
                method: text("/request/method"),
                path: text("/request/path"),
                body: value.pointer("/request/body").cloned().unwrap_or(Value::Null),
                body_bytes: number("/request/body_bytes"),
                status: number("/response/status").expect("every answer has a status") as u16,
                answer: value.pointer("/response/body").cloned().unwrap_or(Value::Null),
            }
        })
        .collect()
}

/// All paths of keys in a JSON value: `query.bool.should[]`; the keys under a name in `open` are data, not form.
pub fn keys(value: &Value, open: &[&str]) -> BTreeSet<String> {
    fn walk(value: &Value, at: &str, open: &[&str], out: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                if open.iter().any(|o| at.ends_with(o)) {
                    return;
                }
                for (key, inner) in object {
                    let path = format!("{at}.{key}");
                    out.insert(path.clone());
                    walk(inner, &path, open, out);
                }
            }
            Value::Array(values) => values.iter().for_each(|v| walk(v, &format!("{at}[]"), open, out)),
            _ => {}
        }
    }
    let mut out = BTreeSet::new();
    walk(value, "", open, &mut out);
    out
}

/// What is still to be asked, and what was wrong so far.
pub(super) struct Script {
    left: VecDeque<Record>,
    differences: Vec<String>,
}

impl Script {
    pub(super) fn answer(&mut self, incoming: &Incoming) -> Reply {
        let asked = format!("{} {}", incoming.method, incoming.target());
        let Some(record) = self.left.pop_front() else {
            self.differences.push(format!("after the last record: {asked}"));
            return Reply::error(500, "exception", "nothing more was recorded");
        };
        let line = record.line;
        if asked != format!("{} {}", record.method, record.path) {
            self.differences.push(format!("line {line}: expected {} {}, got {asked}", record.method, record.path));
        }
        let sent = incoming.json();
        if let Some(bytes) = record.body_bytes {
            if bytes != incoming.body.len() as u64 {
                self.differences.push(format!("line {line}: {bytes} bytes recorded, {} sent", incoming.body.len()));
            }
            if incoming.content_type != "application/json" {
                self.differences.push(format!("line {line}: content type {}", incoming.content_type));
            }
        } else {
            let (recorded, sent) = (keys(&record.body, &["query_tokens"]), keys(&sent, &["query_tokens"]));
            if recorded != sent {
                self.differences.push(format!("line {line}: keys recorded {recorded:?}, sent {sent:?}"));
            }
        }
        Reply { status: record.status, body: record.answer }
    }
}

/// A running replay; dropping it stops it.
pub struct Replay {
    server: Server,
    script: Arc<Mutex<Script>>,
}

impl Replay {
    /// Answers these records, one after the other.
    pub fn start(records: impl IntoIterator<Item = Record>) -> Self {
        let script = Script { left: records.into_iter().collect(), differences: Vec::new() };
        let script = Arc::new(Mutex::new(script));
        Self { server: Server::start(Handler::Replay(Arc::clone(&script))), script }
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.server.url
    }

    /// What differed, with the records that were never asked for.
    pub fn differences(&self) -> Vec<String> {
        let script = self.lock();
        let missing = script.left.iter().map(|r| format!("line {}: never asked: {} {}", r.line, r.method, r.path));
        script.differences.iter().cloned().chain(missing).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Records by scenario, in the order of the trace.
pub fn scenarios(records: &[Record]) -> Vec<(String, Vec<Record>)> {
    let mut order: Vec<String> = Vec::new();
    let mut map: BTreeMap<String, Vec<Record>> = BTreeMap::new();
    for record in records {
        if !map.contains_key(&record.scenario) {
            order.push(record.scenario.clone());
        }
        map.entry(record.scenario.clone()).or_default().push(record.clone());
    }
    order.into_iter().map(|name| map.remove_entry(&name).expect("each name stands once in the order")).collect()
}

//! The loop against a simulated cluster with a clock of its own: an hour takes no time, and what goes wrong goes wrong at
//! the same moment each time.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "what was reached is shown with --nocapture")]

use std::collections::BTreeMap;
use std::time::Duration;

use nsparse_core::{Cancel, NoProgress, Progress};
use serde_json::{Value, json};

use super::bulk::{Bulk, Parts};
use super::line::{Answer, Line};
use super::options::{Action, IngestOptions, IngestReport};
use crate::error::{ApiError, Error, Result, Unreachable};

const SECOND: Duration = Duration::from_secs(1);

/// A cluster with workers that each take so many bytes a second.
struct Simulated {
    now: Duration,
    /// When each worker is free.
    workers: Vec<Duration>,
    bytes_per_second: f64,
    /// What a request costs besides its bytes.
    overhead: Duration,
    /// What becomes of a request: by its number and the time.
    fault: Box<dyn FnMut(u64, Duration) -> Fault>,
    /// Documents by id, as they were sent last.
    documents: BTreeMap<String, Value>,
    pending: Vec<Answer>,
    /// When requests came.
    requests: Vec<Duration>,
    /// How many were open then, each included.
    open: Vec<usize>,
    /// By how much the work of a request differs from its bytes' share, up or down.
    spread: f64,
    /// How long an answer is waited for; the work goes on without anybody to hear of it.
    patience: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A whole request is refused with this status.
    Status(u16),
    /// The work is done, and the answer is lost.
    Cut,
    /// Nothing is done, and no answer comes.
    Dead,
    /// Each third document is refused with 429.
    Some,
}

impl Simulated {
    fn new(workers: usize, bytes_per_second: f64, fault: impl FnMut(u64, Duration) -> Fault + 'static) -> Self {
        Self {
            now: Duration::ZERO,
            workers: vec![Duration::ZERO; workers],
            bytes_per_second,
            overhead: Duration::from_millis(10),
            fault: Box::new(fault),
            documents: BTreeMap::new(),
            pending: Vec::new(),
            requests: Vec::new(),
            open: Vec::new(),
            spread: 0.0,
            patience: Duration::MAX,
        }
    }

    fn most_open(&self) -> usize {
        self.open.iter().copied().max().unwrap_or(0)
    }

    fn take(&mut self, body: &[u8], fault: Fault) -> Value {
        let mut lines = std::str::from_utf8(body).unwrap().lines();
        let mut items = Vec::new();
        while let Some(action) = lines.next() {
            let action: Value = serde_json::from_str(action).unwrap();
            let (kind, id) = action.as_object().unwrap().iter().next().unwrap();
            let id = id["_id"].as_str().unwrap().to_owned();
            let is_delete = kind == "delete";
            let document = if is_delete { Value::Null } else { serde_json::from_str(lines.next().unwrap()).unwrap() };
            let item = if fault == Fault::Some && items.len() % 3 == 2 {
                json!({ "status": 429, "error": { "type": "rejected", "reason": "queue full" } })
            } else if is_delete {
                json!({ "status": if self.documents.remove(&id).is_some() { 200 } else { 404 } })
            } else {
                self.documents.insert(id, document);
                json!({ "status": 201 })
            };
            items.push(json!({ kind: item }));
        }
        json!({ "errors": fault == Fault::Some, "items": items })
    }
}

fn refused(status: u16) -> Error {
    let (kind, reason) = ("es_rejected_execution_exception".to_owned(), "queue full".to_owned());
    Error::Api(Box::new(ApiError {
        method: "POST",
        path: "/i/_bulk".to_owned(),
        status,
        kind,
        reason,
        body: Value::Null,
    }))
}

fn cut() -> Error {
    unreachable(Unreachable::Other)
}

fn unreachable(why: Unreachable) -> Error {
    let (url, path) = ("http://sim".to_owned(), "/i/_bulk".to_owned());
    Error::Unreachable { url, method: "POST", path, why, detail: "end of file".to_owned() }
}

impl Line for &mut Simulated {
    fn now(&self) -> Duration {
        self.now
    }

    fn send(&mut self, number: u64, body: Vec<u8>) {
        let sent = self.now;
        self.requests.push(sent);
        let fault = (self.fault)(number, sent);
        let quick = sent + Duration::from_millis(5);
        let (result, answered): (Result<Value>, Duration) = match fault {
            Fault::Status(status) => (Err(refused(status)), quick),
            Fault::Dead => (Err(cut()), quick),
            Fault::None | Fault::Some | Fault::Cut => {
                // A low-discrepancy sequence: in the mean over a few requests nothing is won or lost.
                let share = (number as f64 * 0.618_033_988_749_895).fract();
                let work = 1.0 + self.spread * (2.0 * share - 1.0);
                let busy = Duration::from_secs_f64(work * body.len() as f64 / self.bytes_per_second);
                let worker = self.workers.iter_mut().min().unwrap();
                *worker = (*worker).max(sent) + busy;
                let answered = *worker + self.overhead;
                let answer = self.take(&body, fault);
                if answered.saturating_sub(sent) > self.patience {
                    (Err(unreachable(Unreachable::Timeout)), sent + self.patience)
                } else {
                    (if fault == Fault::Cut { Err(cut()) } else { Ok(answer) }, answered)
                }
            }
        };
        self.pending.push(Answer { number, sent, answered, result });
        self.open.push(self.pending.len());
    }

    fn wait(&mut self, until: Option<Duration>) -> Option<Answer> {
        let first = (0..self.pending.len()).min_by_key(|&i| (self.pending[i].answered, self.pending[i].number));
        let Some(first) = first.filter(|&i| until.is_none_or(|until| self.pending[i].answered <= until)) else {
            self.now = self.now.max(until.unwrap());
            return None;
        };
        let answer = self.pending.swap_remove(first);
        self.now = self.now.max(answer.answered);
        Some(answer)
    }
}

/// Documents of a kilobyte, sent by the loop; the report, or why it gave up.
fn run(cluster: &mut Simulated, documents: usize, options: &IngestOptions) -> Result<IngestReport> {
    let cancel = Cancel::default();
    let mut bulk = open(cluster, options, &cancel);
    for i in 0..documents {
        bulk.push(&format!("d{i}"), i as u64, Action::Index, |out| out.extend(source(i).bytes()))?;
    }
    bulk.drain()?;
    Ok(std::mem::take(&mut bulk.report))
}

fn open<'a>(cluster: &'a mut Simulated, options: &'a IngestOptions, cancel: &'a Cancel) -> Bulk<'a, &'a mut Simulated> {
    Bulk::new(Parts {
        line: cluster,
        index: "i".to_owned(),
        path: "/i/_bulk".to_owned(),
        options,
        timeout: Duration::ZERO,
        cancel,
        task: NoProgress.start("", 0),
        journal: None,
        dead_letters: None,
    })
}

fn source(i: usize) -> String {
    format!("{{\"n\":{i},\"x\":\"{}\"}}", "y".repeat(980))
}

fn check_all_in(cluster: &Simulated, documents: usize) {
    assert_eq!(cluster.documents.len(), documents);
    for i in 0..documents {
        assert_eq!(cluster.documents[&format!("d{i}")]["n"], i);
    }
}

fn options() -> IngestOptions {
    IngestOptions { max_documents: usize::MAX, ..IngestOptions::default() }
}

#[test]
fn refused_for_half_a_minute() {
    let outage = 10 * SECOND..40 * SECOND;
    let during = outage.clone();
    let mut cluster =
        Simulated::new(2, 2e6, move |_, now| if during.contains(&now) { Fault::Status(429) } else { Fault::None });
    let report = run(&mut cluster, 120_000, &options()).unwrap();
    check_all_in(&cluster, 120_000);
    assert_eq!((report.indexed, report.rejected.len()), (120_000, 0));
    // Asked ever more rarely while it refuses, not given up, and back to full work soon after.
    let asked = cluster.requests.iter().filter(|at| outage.contains(at)).count();
    assert!((4..=14).contains(&asked), "{asked} requests in the outage");
    let undisturbed = report.bytes as f64 / 4e6;
    let lost = cluster.now.as_secs_f64() - undisturbed - 30.0;
    assert!(lost < 15.0, "{lost} s lost beside the outage, of {:.1}", cluster.now.as_secs_f64());
}

#[test]
fn a_cluster_that_never_comes_back_is_given_up() {
    for (fault, status) in [(Fault::Status(503), Some(503)), (Fault::Dead, None)] {
        let mut cluster = Simulated::new(1, 1e6, move |number, _| if number > 3 { fault } else { Fault::None });
        let error = run(&mut cluster, 30_000, &options()).unwrap_err();
        assert_eq!(error.status(), status);
        // Some five minutes.
        let seconds = cluster.now.as_secs();
        assert!((200..=500).contains(&seconds), "{seconds}");
    }
}

#[test]
fn concurrency_follows_what_the_cluster_can_do() {
    for (workers, low, high) in [(1, 1, 4), (2, 2, 5), (4, 4, 8)] {
        let mut cluster = Simulated::new(workers, 4e6, |_, _| Fault::None);
        let report = run(&mut cluster, 200_000, &options()).unwrap();
        check_all_in(&cluster, 200_000);
        let ideal = report.bytes as f64 / (4e6 * workers as f64);
        let share = ideal / cluster.now.as_secs_f64();
        println!("{workers} workers: at most {} at once, {share:.3} of what they can do", cluster.most_open());
        assert!(share > 0.9, "{workers} workers: {share}");
        assert!((low..=high).contains(&cluster.most_open()), "{workers} workers: {} at once", cluster.most_open());
    }
}

/// After minutes as at the start: what is on the way beyond what the workers do only waits.
#[test]
fn concurrency_stays_where_it_helps() {
    // Of sixteen workers at most eight get work: that many are on the way, but for the start and the probes.
    let cases =
        [(1, 0.0, 4.0, 0.95), (2, 0.0, 5.0, 0.95), (2, 0.4, 5.0, 0.95), (4, 0.4, 7.0, 0.95), (16, 0.4, 8.0, 0.9)];
    for (workers, spread, most, least_share) in cases {
        let mut cluster = Simulated::new(workers, 2e5, |_, _| Fault::None);
        cluster.spread = spread;
        let options = IngestOptions { max_bytes: 200_000, ..options() };
        let report = run(&mut cluster, 300_000, &options).unwrap();
        check_all_in(&cluster, 300_000);
        let share = report.bytes as f64 / (2e5 * workers.min(8) as f64) / cluster.now.as_secs_f64();
        let late = &cluster.open[cluster.open.len() / 2..];
        let mean = late.iter().sum::<usize>() as f64 / late.len() as f64;
        let seconds = cluster.now.as_secs();
        println!(
            "{workers} workers, spread {spread}: {mean:.2} at once late in {seconds} s, {share:.3} of what they can do"
        );
        assert!(share > least_share, "{workers} workers: {share}");
        assert!((workers.min(7) as f64..=most).contains(&mean), "{workers} workers: {mean} at once");
    }
}

#[test]
fn a_slow_node_gets_small_batches() {
    let mut cluster = Simulated::new(1, 50_000.0, |_, _| Fault::None);
    let options = options();
    let cancel = Cancel::default();
    let mut bulk = open(&mut cluster, &options, &cancel);
    let sizes = |bulk: &Bulk<&mut Simulated>| bulk.report.bytes / bulk.sent().max(1);
    for i in 0..20_000 {
        bulk.push(&format!("d{i}"), 0, Action::Index, |out| out.extend(source(i).bytes())).unwrap();
    }
    bulk.drain().unwrap();
    let mean = sizes(&bulk);
    drop(bulk);
    assert!(mean < 1_000_000, "{mean} bytes a batch");
    check_all_in(&cluster, 20_000);
}

/// A request that the cluster cannot answer in time would not be answered the next time either.
#[test]
fn what_comes_too_late_is_sent_again_smaller() {
    let mut cluster = Simulated::new(1, 20_000.0, |_, _| Fault::None);
    cluster.patience = 60 * SECOND;
    // Batches that end for their size, and such that end for their number of documents.
    for max_documents in [usize::MAX, 1500] {
        let before = cluster.requests.len();
        let options = IngestOptions { max_documents, ..options() };
        let report = run(&mut cluster, 20_000, &options).unwrap();
        check_all_in(&cluster, 20_000);
        let sent = (cluster.requests.len() - before) as u64;
        println!("{sent} requests, {} of them again, in {} s", report.retries, cluster.now.as_secs());
        assert!(report.retries < 15, "{} retries", report.retries);
        assert!(report.bytes < 2 * 20_000 * 1_100, "{} bytes sent", report.bytes);
    }
}

/// Batches of small documents end for their number: the pace learns from these as well.
#[test]
fn small_documents_are_sent_at_full_pace() {
    for workers in [1, 4] {
        // A third of the documents are refused once: one cut, and back to full work.
        let fault = |number, _| if number == 20 { Fault::Some } else { Fault::None };
        let mut cluster = Simulated::new(workers, 1e6, fault);
        let report = run(&mut cluster, 200_000, &IngestOptions { max_documents: 200, ..options() }).unwrap();
        check_all_in(&cluster, 200_000);
        let share = report.bytes as f64 / (1e6 * workers as f64) / cluster.now.as_secs_f64();
        println!("{workers} workers: at most {} at once, {share:.3} of what they can do", cluster.most_open());
        assert!(share > 0.9, "{workers} workers: {share}");
    }
}

/// Any mixture of faults, repeated and changed ids, and deletions: at the end stands what was asked for last.
#[test]
fn faults_of_every_kind_leave_what_was_asked_for() {
    for seed in 0..150u64 {
        let mut state = seed;
        let mut next = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let mut faults = next;
        let mut cluster = Simulated::new(2, 1e6, move |_, _| match faults(9) {
            0 => Fault::Status(429),
            1 => Fault::Status(503),
            2 => Fault::Cut,
            3 => Fault::Dead,
            4 => Fault::Some,
            _ => Fault::None,
        });
        let options = IngestOptions { max_bytes: 20_000, max_documents: 7, seed, ..IngestOptions::default() };
        let cancel = Cancel::default();
        let mut expected = BTreeMap::new();
        let mut bulk = open(&mut cluster, &options, &cancel);
        for i in 0..300 {
            let id = format!("d{}", next(120));
            if next(5) == 0 {
                bulk.push(&id, 1, Action::Delete, |_| {}).unwrap();
                expected.remove(&id);
            } else {
                bulk.push(&id, 0, Action::Index, |out| out.extend(source(i).bytes())).unwrap();
                expected.insert(id, i);
            }
            if next(10) == 0 {
                bulk.nudge().unwrap();
            }
        }
        bulk.drain().unwrap();
        assert_eq!(bulk.present(), expected.len() as u64, "seed {seed}");
        drop(bulk);
        let found: BTreeMap<String, usize> =
            cluster.documents.iter().map(|(id, d)| (id.clone(), d["n"].as_u64().unwrap() as usize)).collect();
        assert_eq!(found, expected, "seed {seed}");
    }
}

#[test]
fn a_request_too_large_teaches_the_size() {
    let mut cluster = Simulated::new(2, 4e6, |_, _| Fault::None);
    let options = options();
    // By size, which the fault does not see: every body of the first requests is too large.
    cluster.fault = Box::new(|number, _| if number <= 3 { Fault::Status(413) } else { Fault::None });
    let report = run(&mut cluster, 40_000, &options).unwrap();
    check_all_in(&cluster, 40_000);
    let mean = report.bytes / report.requests;
    assert!(mean < 1_100_000, "{mean} bytes a batch after refusals of 2 MB");
}

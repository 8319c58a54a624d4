//! The way of bulk requests to a cluster, and the clock: what the loop that sends needs to know of the world. A test puts
//! a simulated cluster with a clock of its own in its place.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::{Id, JoinSet};

use crate::client::{Body, Cluster, Method, NDJSON};
use crate::error::{Error, Result};

/// The end of a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The request's number.
    pub(crate) number: u64,
    /// When it was sent.
    pub(crate) sent: Duration,
    /// When it came to its end.
    pub(crate) answered: Duration,
    /// The answer's body.
    pub(crate) result: Result<Value>,
}

/// Sends bulk bodies and brings back answers.
pub(crate) trait Line {
    /// The time since any one moment.
    fn now(&self) -> Duration;
    /// Sends a body; its answer comes under this number.
    fn send(&mut self, number: u64, body: Vec<u8>);
    /// The next answer; `None` once the time has come. Where no time is given something is on the way.
    fn wait(&mut self, until: Option<Duration>) -> Option<Answer>;
}

/// Requests to a cluster, each a task on its runtime.
pub(crate) struct ClusterLine {
    cluster: Cluster,
    path: String,
    start: Instant,
    /// Each with the time at which its answer came, which may be long before anybody waits for it.
    sending: JoinSet<(Result<Value>, Instant)>,
    /// Number and time of each task.
    numbers: HashMap<Id, (u64, Duration)>,
}

impl ClusterLine {
    pub(crate) fn new(cluster: &Cluster, path: String) -> Self {
        let sending = JoinSet::new();
        Self { cluster: cluster.clone(), path, start: Instant::now(), sending, numbers: HashMap::new() }
    }
}

impl Line for ClusterLine {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn send(&mut self, number: u64, body: Vec<u8>) {
        let (cluster, path) = (self.cluster.clone(), self.path.clone());
        let request = async move {
            let result = cluster.request_async(Method::Post, &path, Body::Raw(body, NDJSON)).await;
            (result.map(|answer| answer.body), Instant::now())
        };
        let task = self.sending.spawn_on(request, self.cluster.runtime().handle());
        self.numbers.insert(task.id(), (number, self.start.elapsed()));
    }

    fn wait(&mut self, until: Option<Duration>) -> Option<Answer> {
        let deadline = until.map(|until| tokio::time::Instant::from_std(self.start + until));
        let (sending, is_idle) = (&mut self.sending, self.numbers.is_empty());
        let joined = self.cluster.runtime().block_on(async {
            match deadline {
                None => sending.join_next_with_id().await,
                Some(deadline) if is_idle => {
                    tokio::time::sleep_until(deadline).await;
                    None
                }
                Some(deadline) => tokio::time::timeout_at(deadline, sending.join_next_with_id()).await.ok().flatten(),
            }
        })?;
        let (id, result, answered) = match joined {
            Ok((id, (result, at))) => (id, result, at),
            Err(e) => {
                let failed =
                    Error::world(format!("A request came to no end: {e}"), "this is a defect: please report it");
                (e.id(), Err(failed), Instant::now())
            }
        };
        let answered = answered.duration_since(self.start);
        let (number, sent) = self.numbers.remove(&id)?;
        Some(Answer { number, sent, answered, result })
    }
}

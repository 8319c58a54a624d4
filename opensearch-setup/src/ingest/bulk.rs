//! The loop that sends: fills batches, keeps as many on the way as the pace allows, sorts answers, sends again what the
//! cluster was too busy for, and writes down what is in.

use std::collections::{HashMap, VecDeque};
use std::fmt::Write as _;
use std::time::Duration;

use nsparse_core::journal::{Journal, id_key};
use nsparse_core::{Cancel, Task};

use super::answer::{self, Sorted};
use super::batch::Batch;
use super::dead_letters::DeadLetters;
use super::line::{Answer, Line};
use super::options::{Action, IngestOptions, IngestReport, PATIENT, Rejected};
use super::pace::{Limits, Pace, Seen, Sight};
use crate::client::RetryPolicy;
use crate::error::{Error, Result, Unreachable};

/// The smallest batch that is aimed at.
const MIN_BYTES: usize = 64 << 10;
/// How long a stop by the user may go unheard.
const TICK: Duration = Duration::from_millis(200);
/// On the way there are at most this many times the largest batch's bytes. More would only wait there, and be held in
/// memory here.
const LARGEST_ON_THE_WAY: usize = 2;
/// So many answers that come too late are waited for at least.
const LATE_TRIES: u32 = 6;
/// A batch has room for this much more than it should have: its last document may not fit.
const ROOM: usize = 64 << 10;

/// One ingest on its way.
pub(crate) struct Bulk<'a, L: Line> {
    line: L,
    pace: Pace,
    index: String,
    path: String,
    options: &'a IngestOptions,
    retry: RetryPolicy,
    cancel: &'a Cancel,
    task: Box<dyn Task>,
    journal: Option<Journal>,
    dead_letters: Option<DeadLetters>,
    /// The batch that is being filled.
    current: Batch,
    /// Batches that are to be sent, or to be sent again.
    waiting: VecDeque<Batch>,
    /// Batches on the way by number.
    on_the_way: HashMap<u64, Sent>,
    bytes_on_the_way: usize,
    number: u64,
    /// Ids in the three above, and in how many batches.
    unsettled: HashMap<u64, u32>,
    /// Since when nothing was taken, while there was something to take.
    failing_since: Option<Duration>,
    /// When the last batch was full: documents came faster than they went.
    whole_at: Duration,
    /// Ids that went through this run, and whether their document is in.
    present: HashMap<u64, bool>,
    pub(crate) report: IngestReport,
}

/// A batch on the way.
struct Sent {
    batch: Batch,
    /// Whether no more were allowed when it went out.
    is_full: bool,
    /// The most that were on the way at once since then.
    among: usize,
}

/// What the loop is made of.
pub(crate) struct Parts<'a, L> {
    pub(crate) line: L,
    pub(crate) index: String,
    /// For messages.
    pub(crate) path: String,
    pub(crate) options: &'a IngestOptions,
    /// After how long the line gives a request up.
    pub(crate) timeout: Duration,
    pub(crate) cancel: &'a Cancel,
    pub(crate) task: Box<dyn Task>,
    pub(crate) journal: Option<Journal>,
    pub(crate) dead_letters: Option<DeadLetters>,
}

impl<'a, L: Line> Bulk<'a, L> {
    pub(crate) fn new(parts: Parts<'a, L>) -> Self {
        let Parts { line, index, path, options, timeout, cancel, task, journal, dead_letters } = parts;
        let retry = options.retry.unwrap_or(PATIENT);
        // Some tries have to fit in, each half as large as the one before.
        let retry = RetryPolicy { deadline: retry.deadline.max(LATE_TRIES * timeout), ..retry };
        let limits = Limits {
            min_bytes: MIN_BYTES,
            max_bytes: options.max_bytes,
            max_in_flight: options.in_flight.max(1),
            max_on_the_way: options.max_bytes.saturating_mul(LARGEST_ON_THE_WAY),
        };
        Self {
            line,
            pace: Pace::new(limits, retry, options.seed),
            index,
            path,
            options,
            retry,
            cancel,
            task,
            journal,
            dead_letters,
            current: Batch::default(),
            waiting: VecDeque::new(),
            on_the_way: HashMap::new(),
            bytes_on_the_way: 0,
            number: 0,
            unsettled: HashMap::new(),
            failing_since: None,
            whole_at: Duration::ZERO,
            present: HashMap::new(),
            report: IngestReport::default(),
        }
    }

    /// Whether the journal has this content as done.
    pub(crate) fn skips(&mut self, id: &str, content: u64) -> bool {
        let done = self.journal.as_ref().is_some_and(|j| j.is_done(id, content));
        // Another content of this id may be on its way: then this one comes after it.
        if done && !self.unsettled.contains_key(&id_key(id)) {
            self.report.skipped += 1;
            self.present.insert(id_key(id), true);
            self.task.advance(1);
            return true;
        }
        false
    }

    /// Writes down a document that cannot be sent; `document` is its JSON where it has any.
    pub(crate) fn reject(&mut self, id: &str, reason: String, document: &[u8]) -> Result<()> {
        if let Some(letters) = &mut self.dead_letters {
            letters.push(id, &reason, document)?;
        }
        self.report.rejected.push(Rejected { id: id.to_owned(), reason });
        self.task.advance(1);
        Ok(())
    }

    /// Takes a document; `write` appends its JSON. Sends batches that are full.
    pub(crate) fn push(
        &mut self,
        id: &str,
        content: u64,
        action: Action,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let key = id_key(id);
        while self.unsettled.contains_key(&key) {
            // Batches may overtake one another: of two documents with one id the later wins only if it waits.
            self.close();
            self.pump(0)?;
            if self.unsettled.contains_key(&key) {
                self.collect(None)?;
            }
        }
        if self.current.is_empty() {
            self.current = Batch::with_room(self.pace.bytes() + ROOM);
        }
        self.current.push(id, content, action, write);
        *self.unsettled.entry(key).or_default() += 1;
        if self.current.len() > 1 && self.current.bytes() > self.pace.bytes() {
            let last = self.current.split_off(self.current.len() - 1);
            self.close_whole();
            self.current = Batch::with_room(self.pace.bytes() + ROOM);
            self.current.append(last);
        }
        if self.current.len() >= self.options.max_documents.max(1) {
            self.close_whole();
        }
        self.pump(0)
    }

    /// Sends what there is if nothing is on the way: the cluster need not wait for a full batch.
    pub(crate) fn nudge(&mut self) -> Result<()> {
        self.poll()?;
        if self.on_the_way.is_empty() && self.waiting.is_empty() {
            self.close();
        }
        self.pump(0)
    }

    /// Takes the answers that have come.
    pub(crate) fn poll(&mut self) -> Result<()> {
        while !self.on_the_way.is_empty() {
            let now = self.line.now();
            let Some(answer) = self.line.wait(Some(now)) else { break };
            self.settle(answer)?;
        }
        Ok(())
    }

    /// Sends everything and waits until all of it is settled.
    pub(crate) fn drain(&mut self) -> Result<()> {
        self.close();
        loop {
            self.pump(0)?;
            if self.on_the_way.is_empty() && self.waiting.is_empty() {
                return Ok(());
            }
            self.collect(None)?;
        }
    }

    /// Ids that went through this run and whose documents are in.
    pub(crate) fn present(&self) -> u64 {
        self.present.values().filter(|there| **there).count() as u64
    }

    /// When the last batch was full.
    pub(crate) fn whole_at(&self) -> Duration {
        self.whole_at
    }

    /// Batches that went out so far.
    pub(crate) fn sent(&self) -> u64 {
        self.number
    }

    /// The time of this ingest's clock.
    pub(crate) fn now(&self) -> Duration {
        self.line.now()
    }

    fn close_whole(&mut self) {
        self.current.is_whole = true;
        self.whole_at = self.line.now();
        self.close();
    }

    fn close(&mut self) {
        if !self.current.is_empty() {
            self.waiting.push_back(std::mem::take(&mut self.current));
        }
    }

    /// Sends until at most `left` batches wait.
    fn pump(&mut self, left: usize) -> Result<()> {
        while self.waiting.len() > left {
            self.cancel.check()?;
            let has_room = self.has_room();
            let not_before = self.pace.not_before();
            if has_room && self.line.now() >= not_before {
                if let Some(batch) = self.waiting.pop_front() {
                    self.start(batch);
                }
            } else {
                self.collect(has_room.then_some(not_before))?;
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        let next = self.waiting.front().map_or(0, Batch::bytes);
        // Batches that were closed under an earlier pace may be larger than it asks for now.
        let most = self.options.max_bytes.saturating_mul(LARGEST_ON_THE_WAY + 1);
        self.on_the_way.is_empty()
            || self.on_the_way.len() < self.pace.in_flight() && self.bytes_on_the_way + next <= most
    }

    fn start(&mut self, batch: Batch) {
        self.number += 1;
        self.bytes_on_the_way += batch.bytes();
        self.report.bytes += batch.bytes() as u64;
        self.line.send(self.number, batch.body().to_vec());
        let among = self.on_the_way.len() + 1;
        for sent in self.on_the_way.values_mut() {
            sent.among = sent.among.max(among);
        }
        let is_full = among >= self.pace.in_flight();
        self.on_the_way.insert(self.number, Sent { batch, is_full, among });
        self.report.most_in_flight = self.report.most_in_flight.max(among as u64);
    }

    /// Waits for one answer, or until the time has come.
    fn collect(&mut self, until: Option<Duration>) -> Result<()> {
        loop {
            let tick = self.line.now() + TICK;
            let answer = self.line.wait(Some(until.map_or(tick, |until| until.min(tick))));
            if let Some(answer) = answer {
                return self.settle(answer);
            }
            self.cancel.check()?;
            if until.is_some_and(|until| self.line.now() >= until) {
                return Ok(());
            }
        }
    }

    /// Writes down what became of a batch.
    fn settle(&mut self, answer: Answer) -> Result<()> {
        let Some(Sent { mut batch, is_full, among }) = self.on_the_way.remove(&answer.number) else { return Ok(()) };
        let (bytes, is_whole) = (batch.bytes(), batch.is_whole);
        self.bytes_on_the_way -= bytes;
        let sight =
            |seen| Sight { sent: answer.sent, answered: answer.answered, bytes, is_whole, is_full, among, seen };
        let error = match answer.result {
            Ok(body) => {
                self.report.requests += 1;
                let sorted = answer::sort(&batch, &body, &self.path)?;
                let some_taken = sorted.has_settled();
                let seen = if sorted.busy.is_empty() { Seen::Taken } else { Seen::Busy { some_taken } };
                self.pace.see(&sight(seen));
                return self.sorted(&batch, sorted);
            }
            Err(error) => error,
        };
        if answer::may_pass(&error) {
            self.pace.see(&sight(seen_in(&error)));
            return self.again(batch, &error.to_string(), Some(error));
        }
        if answer::blames_a_document(&error) {
            self.report.requests += 1;
            if error.status() == Some(413) {
                self.pace.see(&sight(Seen::TooLarge));
            }
            if batch.len() > 1 {
                let rest = batch.split_off(batch.len() / 2);
                self.waiting.push_front(rest);
                self.waiting.push_front(batch);
                return Ok(());
            }
            let sorted = Sorted { rejected: vec![(0, error.to_string())], ..Sorted::default() };
            return self.sorted(&batch, sorted);
        }
        Err(error)
    }

    fn sorted(&mut self, batch: &Batch, sorted: Sorted) -> Result<()> {
        let items = batch.items();
        if sorted.has_settled() {
            self.failing_since = None;
        }
        if let Some(journal) = &mut self.journal {
            journal.record(sorted.taken.iter().map(|&place| (&*items[place].id, items[place].content)))?;
        }
        for &place in &sorted.taken {
            let item = &items[place];
            self.present.insert(item.key, item.action != Action::Delete);
            if item.action == Action::Delete {
                self.report.deleted += 1;
            } else {
                self.report.indexed += 1;
            }
            self.forget(item.key);
        }
        self.report.deleted -= sorted.not_there;
        self.report.not_there += sorted.not_there;
        self.task.advance(sorted.taken.len() as u64);
        for (place, reason) in sorted.rejected {
            let item = &items[place];
            self.forget(item.key);
            self.reject(&item.id, reason, batch.document(item))?;
        }
        if let Some(letters) = &mut self.dead_letters {
            letters.flush()?;
        }
        self.tell();
        if sorted.busy.is_empty() {
            return Ok(());
        }
        let mut busy = batch.only(&sorted.busy);
        if sorted.busy.len() < batch.len() {
            busy.tries = 0;
        }
        self.again(busy, &sorted.why, None)
    }

    /// Puts a batch before all others, unless it was tried too often or nothing was taken for too long. One that is larger
    /// than batches should be by now goes in halves.
    fn again(&mut self, mut batch: Batch, why: &str, error: Option<Error>) -> Result<()> {
        batch.tries += 1;
        let now = self.line.now();
        let failing_since = *self.failing_since.get_or_insert(now);
        if batch.tries > self.retry.retries || now > failing_since + self.retry.deadline {
            let documents = batch.len();
            return Err(error.unwrap_or_else(|| answer::gave_up(&self.index, &self.path, documents, why)));
        }
        let pause = self.pace.not_before().saturating_sub(now);
        tracing::warn!(documents = batch.len(), why, pause_ms = pause.as_millis() as u64, "again");
        self.task.message(&format!("waiting {:.1} s: {why}", pause.as_secs_f64()));
        self.report.retries += 1;
        if batch.len() > 1 && 2 * batch.bytes() > 3 * self.pace.bytes() {
            let rest = batch.split_off(batch.len() / 2);
            self.waiting.push_front(rest);
        }
        self.waiting.push_front(batch);
        Ok(())
    }

    fn forget(&mut self, key: u64) {
        if let Some(count) = self.unsettled.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.unsettled.remove(&key);
            }
        }
    }

    fn tell(&self) {
        let seconds = self.line.now().as_secs_f64().max(1e-3);
        let done = self.report.indexed + self.report.deleted;
        let mut text = format!(
            "{:.0} documents/s, {} of {} requests on the way, batches of {:.1} MB",
            done as f64 / seconds,
            self.on_the_way.len(),
            self.pace.in_flight(),
            self.pace.bytes() as f64 / 1e6
        );
        if !self.report.rejected.is_empty() {
            let _ = write!(text, ", {} rejected", self.report.rejected.len());
        }
        self.task.message(&text);
    }
}

impl<L: Line> Drop for Bulk<'_, L> {
    /// After an error, what is on its way is still waited for and written down: it is in the index.
    fn drop(&mut self) {
        while !self.on_the_way.is_empty() {
            let Some(answer) = self.line.wait(None) else { return };
            if let Err(error) = self.settle(answer) {
                tracing::debug!(%error, "a batch failed after another");
            }
        }
    }
}

/// How a failed request looks to the pace.
fn seen_in(error: &Error) -> Seen {
    match error {
        Error::Unreachable { why: Unreachable::Timeout, .. } => Seen::Late,
        Error::Unreachable { .. } => Seen::Silent,
        other if other.status() == Some(429) => Seen::Busy { some_taken: false },
        _ => Seen::Silent,
    }
}

/// The path of bulk requests.
pub(crate) fn path(index: &str, options: &IngestOptions) -> String {
    use super::options::Pipeline;
    let pipeline = match &options.pipeline {
        Pipeline::None => "pipeline=_none&".to_owned(),
        Pipeline::Default => String::new(),
        Pipeline::Named(name) => format!("pipeline={name}&"),
    };
    format!("/{index}/_bulk?{pipeline}filter_path=errors,items.*.status,items.*.error")
}

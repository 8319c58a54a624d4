//! Documents into an index: batches by size, several in flight, repeated where the cluster is busy, journalled.
//! What the cluster will never take is listed by id and reason; the rest is in.

use std::path::PathBuf;

use nsparse_core::beir::Document;
use nsparse_core::journal::{Journal, content_hash};
use nsparse_core::vector::MAX_WEIGHT;
use nsparse_core::{Cancel, DocumentEncoder, DocumentTemplate, Progress, SparseVector, Task, TokenId, Weight};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::task::JoinSet;

use crate::client::{Body, Cluster, Method, NDJSON, RetryPolicy};
use crate::error::{Error, Result};
use crate::index;
use crate::ml::Fields;

/// How documents are sent.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// A batch ends before it would be larger than this.
    pub max_bytes: usize,
    /// A batch has at most so many documents.
    pub max_documents: usize,
    /// Batches on the way at once; more wait.
    pub in_flight: usize,
    /// Documents that are encoded together, sorted by length.
    pub block: usize,
    /// Where to keep the journal; `None` keeps none.
    pub journal: Option<PathBuf>,
    /// What made the sources besides their text, such as the model's hash: a journal of another is started anew.
    pub job: String,
    /// Pauses between tries; `None` takes the cluster's.
    pub retry: Option<RetryPolicy>,
    /// Names of the index's fields.
    pub fields: Fields,
}

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            max_bytes: 5 << 20,
            max_documents: 500,
            in_flight: 2,
            block: 256,
            journal: None,
            job: String::new(),
            retry: None,
            fields: Fields::default(),
        }
    }
}

/// A document that is not in the index, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Rejected {
    /// Its id.
    pub id: String,
    /// The cluster's reason, or ours.
    pub reason: String,
}

/// What an ingest did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IngestReport {
    /// Documents that the cluster took now.
    pub indexed: u64,
    /// Documents that the journal had as done; they were not sent.
    pub skipped: u64,
    /// Documents that are not in, in ascending order of ids.
    pub rejected: Vec<Rejected>,
    /// Bulk requests that were answered.
    pub requests: u64,
    /// Bulk requests that were sent again, or whose busy items were.
    pub retries: u64,
    /// Documents in the index afterwards, whoever put them there.
    pub documents: u64,
}

/// A document ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    id: String,
    /// Its `_source`, as JSON on one line.
    source: Vec<u8>,
    /// Its content hash in the journal.
    hash: String,
}

impl Item {
    /// Bytes that it takes in a bulk body, nearly.
    fn bytes(&self) -> usize {
        self.source.len() + self.id.len() + 32
    }
}

/// Sends sources as they are. Ids are unique; the journal compares sources.
///
/// # Errors
/// If the index is not there, the cluster fails for longer than the retries last, or the job is cancelled. What
/// was taken until then is in the journal.
pub fn ingest(
    cluster: &Cluster,
    index: &str,
    documents: impl IntoIterator<Item = (String, Value)>,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let documents = documents.into_iter();
    let task = progress.start("Indexing", documents.size_hint().0 as u64);
    let mut bulk = Bulk::open(cluster, index, options, task, cancel)?;
    for (id, source) in documents {
        let source = source.to_string().into_bytes();
        let hash = content_hash(&source);
        if !bulk.skips(&id, &hash) {
            bulk.push(Item { id, source, hash })?;
        }
    }
    bulk.finish()
}

/// Title and text of each document, for BM25.
///
/// # Errors
/// As [`ingest`].
pub fn ingest_texts(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let source = |d: &Document| (d.id.clone(), Value::Object(texts(d, &options.fields)));
    ingest(cluster, index, documents.iter().map(source), options, progress, cancel)
}

/// Encodes documents here, in blocks of like length, while earlier ones are on their way. Where the options' fields are
/// nested, each segment becomes an object of its own.
///
/// # Errors
/// As [`ingest`]; also if the encoder fails.
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_vectors(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    encoder: &dyn DocumentEncoder,
    template: &DocumentTemplate,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let task = progress.start("Encoding and indexing", documents.len() as u64);
    let mut bulk = Bulk::open(cluster, index, options, task, cancel)?;
    let names = FeatureNames::new(encoder.vocabulary());
    let mut waiting: Vec<(&Document, String, usize)> = Vec::new();
    for document in documents {
        let text = template.apply(document);
        let hash = vector_hash(document, &text);
        if !bulk.skips(&document.id, &hash) {
            waiting.push((document, hash, text.len()));
        }
    }
    // Longest first: texts of like length waste no padding, and too long a batch shows at once.
    waiting.sort_by_key(|w| std::cmp::Reverse(w.2));
    for block in waiting.chunks(options.block.max(1)) {
        cancel.check()?;
        let texts: Vec<String> = block.iter().map(|(d, ..)| template.apply(d)).collect();
        let views: Vec<&str> = texts.iter().map(String::as_str).collect();
        let vectors = if options.fields.segments.is_some() {
            encoder.encode_segments(&views)?
        } else {
            encoder.encode(&views)?.into_iter().map(|vector| vec![vector]).collect()
        };
        if vectors.len() != block.len() {
            return Err(nsparse_core::Error::invalid(format!(
                "The encoder gave {} vectors for {} texts",
                vectors.len(),
                block.len()
            ))
            .into());
        }
        for ((document, hash, _), segments) in block.iter().zip(&vectors) {
            bulk.push_vectors(document, segments, &names, &options.fields, hash.clone())?;
        }
    }
    bulk.finish()
}

/// Sends documents whose vectors are there already, one each.
///
/// # Errors
/// As [`ingest`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_encoded(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    vectors: &[SparseVector],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let segments: Vec<&[SparseVector]> = vectors.iter().map(std::slice::from_ref).collect();
    ingest_segments(cluster, index, documents, &segments, vocabulary, options, progress, cancel)
}

/// Sends documents whose segments' vectors are there already, into nested fields.
///
/// # Errors
/// As [`ingest`].
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_segments<S: AsRef<[SparseVector]>>(
    cluster: &Cluster,
    index: &str,
    documents: &[Document],
    segments: &[S],
    vocabulary: &[String],
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    if documents.len() != segments.len() {
        let message = format!("{} vectors for {} documents", segments.len(), documents.len());
        return Err(nsparse_core::Error::invalid(message).into());
    }
    let task = progress.start("Indexing", documents.len() as u64);
    let mut bulk = Bulk::open(cluster, index, options, task, cancel)?;
    let names = FeatureNames::new(vocabulary);
    for (document, vectors) in documents.iter().zip(segments) {
        // The vectors are part of the content here: there is no model to name them by.
        let mut bytes = format!("{}\0{}\0", document.title, document.text).into_bytes();
        for (segment, vector) in vectors.as_ref().iter().enumerate() {
            if segment > 0 {
                bytes.extend(TokenId::MAX.to_le_bytes());
            }
            for (id, weight) in vector.iter() {
                bytes.extend(id.to_le_bytes());
                bytes.extend(weight.to_le_bytes());
            }
        }
        let hash = content_hash(&bytes);
        if !bulk.skips(&document.id, &hash) {
            bulk.push_vectors(document, vectors.as_ref(), &names, &options.fields, hash)?;
        }
    }
    bulk.finish()
}

/// What the journal knows a document by, before its vector is made.
fn vector_hash(document: &Document, text: &str) -> String {
    content_hash(format!("{}\0{}\0{text}", document.title, document.text).as_bytes())
}

fn texts(document: &Document, fields: &Fields) -> Map<String, Value> {
    let mut source = Map::new();
    source.insert(fields.title.clone(), document.title.as_str().into());
    source.insert(fields.text.clone(), document.text.as_str().into());
    source
}

/// Vocabulary strings by token id, without those that hold a dot: `rank_feature` cannot reach them.
pub(crate) struct FeatureNames<'a>(Vec<Option<&'a str>>);

impl<'a> FeatureNames<'a> {
    pub(crate) fn new(vocabulary: &'a [String]) -> Self {
        Self(vocabulary.iter().map(|t| Some(t.as_str()).filter(|t| !t.contains('.'))).collect())
    }

    /// The features of a vector, checked: finite weights in (0, 64].
    ///
    /// # Errors
    /// The offending token and its weight, in words.
    pub(crate) fn features(&self, vector: &SparseVector) -> std::result::Result<Vec<(&'a str, Weight)>, String> {
        let mut features = Vec::with_capacity(vector.len());
        for (id, weight) in vector.iter() {
            let name = self
                .0
                .get(id as usize)
                .ok_or_else(|| format!("token {id} is not in the vocabulary, which has {} entries", self.0.len()))?;
            let Some(name) = name else { continue };
            // The engine wants a normal float; below that it refuses the document.
            if !(f32::MIN_POSITIVE..=MAX_WEIGHT).contains(&weight) {
                return Err(format!("the weight {weight} of token `{name}` is not in (0, {MAX_WEIGHT}]"));
            }
            features.push((*name, weight));
        }
        Ok(features)
    }
}

fn vector_source(document: &Document, segments: &[Vec<(&str, Weight)>], fields: &Fields) -> Vec<u8> {
    let string = |text: &str| serde_json::to_string(text).expect("a string is always JSON");
    let vector = fields.vector_json(segments);
    format!(
        "{{{}:{},{}:{},{}:{vector}}}",
        string(&fields.title),
        string(&document.title),
        string(&fields.text),
        string(&document.text),
        string(&fields.vector)
    )
    .into_bytes()
}

/// One ingest on its way.
struct Bulk<'a> {
    cluster: &'a Cluster,
    index: String,
    options: &'a IngestOptions,
    retry: RetryPolicy,
    cancel: &'a Cancel,
    task: Box<dyn Task>,
    journal: Option<Journal>,
    batch: Vec<Item>,
    batch_bytes: usize,
    sending: JoinSet<Result<Outcome>>,
    report: IngestReport,
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Outcome {
    /// Id and hash of what is in.
    taken: Vec<(String, String)>,
    rejected: Vec<Rejected>,
    requests: u64,
    retries: u64,
}

impl<'a> Bulk<'a> {
    fn open(
        cluster: &'a Cluster,
        index: &str,
        options: &'a IngestOptions,
        task: Box<dyn Task>,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        // Also a check that it is there: a bulk request would make an index without our mapping.
        let uuid = index::uuid(cluster, index)?;
        let job = format!("{index} {uuid} {}", options.job);
        let journal = options.journal.as_deref().map(|path| Journal::open(path, &job)).transpose()?;
        Ok(Self {
            cluster,
            index: index.to_owned(),
            options,
            retry: options.retry.unwrap_or_else(|| cluster.retry_policy()),
            cancel,
            task,
            journal,
            batch: Vec::new(),
            batch_bytes: 0,
            sending: JoinSet::new(),
            report: IngestReport::default(),
        })
    }

    /// Whether the journal has this content as done.
    fn skips(&mut self, id: &str, hash: &str) -> bool {
        let done = self.journal.as_ref().is_some_and(|j| j.is_done(id, hash));
        if done {
            self.report.skipped += 1;
            self.task.advance(1);
        }
        done
    }

    fn push_vectors(
        &mut self,
        document: &Document,
        vectors: &[SparseVector],
        names: &FeatureNames,
        fields: &Fields,
        hash: String,
    ) -> Result<()> {
        match vectors.iter().map(|vector| names.features(vector)).collect::<std::result::Result<Vec<_>, _>>() {
            Ok(segments) => {
                let source = vector_source(document, &segments, fields);
                self.push(Item { id: document.id.clone(), source, hash })
            }
            Err(reason) => {
                self.report.rejected.push(Rejected { id: document.id.clone(), reason });
                self.task.advance(1);
                Ok(())
            }
        }
    }

    /// Takes a document; sends the batch that is full without it.
    fn push(&mut self, item: Item) -> Result<()> {
        let full = self.batch_bytes + item.bytes() > self.options.max_bytes
            || self.batch.len() >= self.options.max_documents.max(1);
        if full && !self.batch.is_empty() {
            self.send()?;
        }
        self.batch_bytes += item.bytes();
        self.batch.push(item);
        Ok(())
    }

    /// Sends the batch at hand, once fewer than `in_flight` others are on their way.
    fn send(&mut self) -> Result<()> {
        while self.sending.len() >= self.options.in_flight.max(1) {
            self.collect()?;
        }
        self.cancel.check()?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let sender = Sender { cluster: self.cluster.clone(), path: bulk_path(&self.index), retry: self.retry };
        self.sending.spawn_on(async move { sender.send(batch).await }, self.cluster.runtime().handle());
        Ok(())
    }

    /// Waits for one batch and writes down what became of it.
    fn collect(&mut self) -> Result<()> {
        let Some(done) = self.cluster.runtime().block_on(self.sending.join_next()) else { return Ok(()) };
        let outcome = done.expect("a sending task neither panics nor is aborted")?;
        if let Some(journal) = &mut self.journal {
            journal.record(&outcome.taken)?;
        }
        self.task.advance((outcome.taken.len() + outcome.rejected.len()) as u64);
        self.report.indexed += outcome.taken.len() as u64;
        self.report.requests += outcome.requests;
        self.report.retries += outcome.retries;
        self.report.rejected.extend(outcome.rejected);
        if !self.report.rejected.is_empty() {
            self.task.message(&format!("{} rejected", self.report.rejected.len()));
        }
        Ok(())
    }

    /// Sends the rest, waits for everything, makes it visible and counts.
    fn finish(mut self) -> Result<IngestReport> {
        if !self.batch.is_empty() {
            self.send()?;
        }
        while !self.sending.is_empty() {
            self.collect()?;
        }
        index::refresh(self.cluster, &self.index)?;
        self.report.documents = index::count(self.cluster, &self.index)?;
        self.report.rejected.sort_by(|a, b| a.id.cmp(&b.id));
        let expected = self.report.indexed + self.report.skipped;
        if self.report.documents < expected {
            let journal = self.options.journal.as_ref().map_or_else(
                || "see the cluster's log".to_owned(),
                |path| format!("delete the journal `{}` and run again", path.display()),
            );
            return Err(Error::world(
                format!(
                    "The index `{}` has {} documents after {expected} were sent: some were deleted, or share an id",
                    self.index, self.report.documents
                ),
                journal,
            ));
        }
        Ok(std::mem::take(&mut self.report))
    }
}

impl Drop for Bulk<'_> {
    /// After an error, what is on its way is still waited for and written down: it is in the index.
    fn drop(&mut self) {
        while !self.sending.is_empty() {
            if let Err(error) = self.collect() {
                tracing::debug!(%error, "a batch failed after another");
            }
        }
    }
}

/// Documents that come encoded do not pass through the index's own pipeline.
fn bulk_path(index: &str) -> String {
    format!("/{index}/_bulk?pipeline=_none&filter_path=items.*._id,items.*.status,items.*.error")
}

/// Sends one batch until each document is in or rejected.
struct Sender {
    cluster: Cluster,
    path: String,
    retry: RetryPolicy,
}

impl Sender {
    async fn send(&self, batch: Vec<Item>) -> Result<Outcome> {
        use backon::BackoffBuilder;
        let mut outcome = Outcome::default();
        // A stack: a request that is refused for one of its documents is halved until that one is alone.
        let mut waiting = vec![batch];
        let mut pauses = self.retry.builder().build();
        while let Some(items) = waiting.pop() {
            let answer = self.cluster.request_async(Method::Post, &self.path, Body::Raw(ndjson(&items), NDJSON)).await;
            let busy = match answer {
                Ok(answer) => {
                    outcome.requests += 1;
                    sort_out(items, &answer.body, &mut outcome).map_err(|message| Error::Unexpected {
                        method: "POST",
                        path: self.path.clone(),
                        message,
                    })?
                }
                Err(e) if blames_a_document(&e) => {
                    outcome.requests += 1;
                    split(items, &e, &mut waiting, &mut outcome);
                    continue;
                }
                Err(e) if may_pass(&e) => Busy { items, why: e.to_string(), error: Some(e) },
                Err(e) => return Err(e),
            };
            if busy.items.is_empty() {
                pauses = self.retry.builder().build();
                continue;
            }
            let Some(pause) = pauses.next() else { return Err(busy.give_up(&self.path)) };
            tracing::warn!(documents = busy.items.len(), why = busy.why, pause_ms = pause.as_millis() as u64, "again");
            outcome.retries += 1;
            tokio::time::sleep(pause).await;
            waiting.push(busy.items);
        }
        Ok(outcome)
    }
}

/// Documents that the cluster was too busy for.
struct Busy {
    items: Vec<Item>,
    why: String,
    error: Option<Error>,
}

impl Busy {
    fn give_up(self, path: &str) -> Error {
        self.error.unwrap_or_else(|| {
            Error::world(
                format!("The cluster stayed too busy for {} documents (POST {path}): {}", self.items.len(), self.why),
                "run the same command again later: only what is missing is sent; or use smaller batches",
            )
        })
    }
}

/// Whether a whole request may succeed later: busy, broken or failing servers.
fn may_pass(error: &Error) -> bool {
    error.is_transient() || error.status().is_some_and(|s| s >= 500)
}

/// Whether a whole request was refused for its size or for one document in it, such as an id of over 512 bytes.
fn blames_a_document(error: &Error) -> bool {
    error.api().is_some_and(|e| e.status == 413 || (e.status == 400 && e.kind == "action_request_validation_exception"))
}

/// Halves a batch; a single document is rejected.
fn split(mut items: Vec<Item>, error: &Error, waiting: &mut Vec<Vec<Item>>, outcome: &mut Outcome) {
    if items.len() > 1 {
        let rest = items.split_off(items.len() / 2);
        waiting.push(rest);
        waiting.push(items);
        return;
    }
    outcome.rejected.extend(items.into_iter().map(|item| Rejected { id: item.id, reason: error.to_string() }));
}

/// Two lines a document.
fn ndjson(items: &[Item]) -> Vec<u8> {
    let mut body = Vec::with_capacity(items.iter().map(Item::bytes).sum());
    for item in items {
        body.extend_from_slice(br#"{"index":{"_id":"#);
        serde_json::to_writer(&mut body, &item.id).expect("writing to memory does not fail");
        body.extend_from_slice(b"}}\n");
        body.extend_from_slice(&item.source);
        body.push(b'\n');
    }
    body
}

/// Sorts a batch by the cluster's answer for each document: in, rejected, or to be sent again.
fn sort_out(items: Vec<Item>, answer: &Value, outcome: &mut Outcome) -> std::result::Result<Busy, String> {
    let answers = answer.get("items").and_then(Value::as_array).ok_or("no items in the answer to a bulk request")?;
    if answers.len() != items.len() {
        return Err(format!("{} answers for {} documents", answers.len(), items.len()));
    }
    let mut busy = Busy { items: Vec::new(), why: String::new(), error: None };
    for (item, answer) in items.into_iter().zip(answers) {
        let answer = answer.as_object().and_then(|o| o.values().next()).unwrap_or(&Value::Null);
        let status = answer.get("status").and_then(Value::as_u64).unwrap_or(0);
        match status {
            200..=299 => outcome.taken.push((item.id, item.hash)),
            429 | 500..=599 => {
                busy.why = reason(answer);
                busy.items.push(item);
            }
            _ => outcome.rejected.push(Rejected { reason: reason(answer), id: item.id }),
        }
    }
    Ok(busy)
}

/// The reasons of an item's error, outermost first.
fn reason(answer: &Value) -> String {
    let mut parts: Vec<&str> = Vec::new();
    let mut at = answer.get("error");
    while let Some(error) = at {
        parts.extend(error.get("reason").and_then(Value::as_str).or_else(|| error.as_str()));
        at = error.get("caused_by");
    }
    if parts.is_empty() { answer.to_string() } else { parts.join(": ") }
}

#[cfg(test)]
#[path = "ingest_tests.rs"]
mod tests;

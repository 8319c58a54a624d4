//! How documents are sent, and what came of it.

use std::path::PathBuf;

use serde::Serialize;

use crate::client::RetryPolicy;
use crate::ml::Fields;

/// How documents are sent.
#[derive(Debug, Clone)]
pub struct IngestOptions {
    /// A batch ends before it would be larger than this. Batches begin with half of it and grow while answers come
    /// quickly.
    pub max_bytes: usize,
    /// A batch has at most so many documents.
    pub max_documents: usize,
    /// Most batches on the way at once; how many there are follows the cluster's answers.
    pub in_flight: usize,
    /// Documents that are encoded together, sorted by length.
    pub block: usize,
    /// Where to keep the journal; `None` keeps none.
    pub journal: Option<PathBuf>,
    /// What made the sources besides their text, such as the model's hash: a journal of another is started anew.
    pub job: String,
    /// Whether the journal of whatever job filled the index is taken, and none is made where there is none: for changes
    /// and deletions, which that job has to know of.
    pub journal_of_any_job: bool,
    /// Where documents that the cluster will never take are written with the reasons; `None` writes none.
    pub dead_letters: Option<PathBuf>,
    /// Pauses between tries, and how often a batch is tried while nothing of it is taken; `None` takes
    /// [`PATIENT`], five to ten minutes.
    pub retry: Option<RetryPolicy>,
    /// Names of the index's fields.
    pub fields: Fields,
    /// The ingest pipeline that documents pass through.
    pub pipeline: Pipeline,
    /// Whether a new index is refreshed and copied only once it is loaded.
    pub loading: Loading,
    /// Bytes that will be indexed, about, where known: the disks are looked at before anything is sent.
    pub expected_bytes: Option<u64>,
    /// Seed of the pauses' jitter.
    pub seed: u64,
}

/// The pauses of an ingest: a cluster that is busy, restarting or cut off is asked again for five to ten minutes.
pub const PATIENT: RetryPolicy = RetryPolicy {
    min_delay: std::time::Duration::from_millis(200),
    max_delay: std::time::Duration::from_secs(10),
    retries: 34,
    deadline: std::time::Duration::from_mins(10),
};

impl Default for IngestOptions {
    fn default() -> Self {
        Self {
            max_bytes: 4 << 20,
            max_documents: 1000,
            in_flight: 8,
            block: 256,
            journal: None,
            job: String::new(),
            journal_of_any_job: false,
            dead_letters: None,
            retry: None,
            fields: Fields::default(),
            pipeline: Pipeline::None,
            loading: Loading::default(),
            expected_bytes: None,
            seed: 0,
        }
    }
}

/// The ingest pipeline that documents pass through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Pipeline {
    /// None, not even the index's own: documents come encoded.
    #[default]
    None,
    /// The index's own.
    Default,
    /// The one of this name.
    Named(String),
}

/// What happens to the settings of an index that is new: empty, and behind no alias.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Loading {
    /// No refresh and no replicas until everything is in; then as before.
    #[default]
    New,
    /// Nothing.
    Keep,
}

/// What to do with a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Action {
    /// Make it, or replace the one of its id.
    #[default]
    Index,
    /// Merge its fields into the document that is there.
    Update {
        /// Make it where it is not there.
        upsert: bool,
    },
    /// Remove the document of its id.
    Delete,
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
    /// Documents that the cluster took now: made, replaced or updated.
    pub indexed: u64,
    /// Documents that were deleted now.
    pub deleted: u64,
    /// Documents that were to be deleted and were not there.
    pub not_there: u64,
    /// Documents that the journal had as done; they were not sent.
    pub skipped: u64,
    /// Documents that are not in, in ascending order of ids.
    pub rejected: Vec<Rejected>,
    /// Bulk requests that were answered.
    pub requests: u64,
    /// Bulk requests that were sent again, or whose busy items were.
    pub retries: u64,
    /// Bytes of all bulk bodies, repeated ones as often as they were sent.
    pub bytes: u64,
    /// The most batches that were on the way at once.
    pub most_in_flight: u64,
    /// Whether refresh and replicas were off meanwhile.
    pub loaded_quietly: bool,
    /// Documents in the index afterwards, whoever put them there.
    pub documents: u64,
}

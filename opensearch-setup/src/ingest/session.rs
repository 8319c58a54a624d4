//! One ingest against a real index: the loop that sends, and what surrounds it. The index is looked at before, now and
//! then, and after: its name may be given to another one meanwhile, and a bulk request would not notice.

use std::time::Duration;

use nsparse_core::journal::Journal;
use nsparse_core::{Cancel, Progress, SparseVector};

use super::bulk::{self, Bulk, Parts};
use super::dead_letters::DeadLetters;
use super::line::ClusterLine;
use super::loading;
use super::names::{self, FeatureNames};
use super::options::{Action, IngestOptions, IngestReport, Loading};
use super::space;
use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::index;

/// How often the index is looked at while documents go in.
const LOOK: Duration = Duration::from_secs(5);

/// An ingest on its way.
pub(super) struct Session<'a> {
    cluster: &'a Cluster,
    index: String,
    uuid: String,
    options: &'a IngestOptions,
    bulk: Bulk<'a, ClusterLine>,
    quiet: Quiet,
    looked: Duration,
    /// When setting them back failed last.
    kept_quiet_at: Duration,
}

/// Whether refresh and copies are off.
enum Quiet {
    /// They stay on.
    Never,
    /// The index is new: they are switched off once it shows that there is much to come.
    Possible,
    /// They are off, by this run or one before it.
    Now,
}

impl<'a> Session<'a> {
    /// Looks at index and disks, and opens the journal.
    ///
    /// # Errors
    /// If the index is not there, there is no room, or the journal cannot be opened.
    pub(super) fn open(
        cluster: &'a Cluster,
        index: &str,
        name: &str,
        total: u64,
        options: &'a IngestOptions,
        progress: &dyn Progress,
        cancel: &'a Cancel,
    ) -> Result<Self> {
        // Also a check that it is there: a bulk request would make an index without our mapping.
        let uuid = index::uuid(cluster, index)?;
        let quiet = look(cluster, index, options)?;
        space::check_cluster(cluster, options.expected_bytes, &|text| progress.warn(text))?;
        if let Some(path) = &options.journal {
            space::check_own(path, options.expected_bytes)?;
        }
        let job = format!("{index} {uuid} {}", options.job);
        let journal = match options.journal.as_deref() {
            None => None,
            Some(path) if options.journal_of_any_job => Journal::open_of(path, &format!("{index} {uuid} "))?,
            Some(path) => Some(Journal::open(path, &job)?),
        };
        let dead_letters = options.dead_letters.as_deref().map(DeadLetters::new).transpose()?;
        let path = bulk::path(index, options);
        let mut bulk = Bulk::new(Parts {
            line: ClusterLine::new(cluster, path.clone()),
            index: index.to_owned(),
            path,
            options,
            timeout: cluster.timeout(),
            cancel,
            task: progress.start(name, total),
            journal,
            dead_letters,
        });
        let looked = bulk.now();
        bulk.report.loaded_quietly = matches!(quiet, Quiet::Now);
        Ok(Self { cluster, index: index.to_owned(), uuid, options, bulk, quiet, looked, kept_quiet_at: Duration::ZERO })
    }

    /// Whether the journal has this content as done.
    pub(super) fn skips(&mut self, id: &str, content: u64) -> bool {
        self.bulk.skips(id, content)
    }

    /// Takes a document; `write` appends its JSON.
    pub(super) fn push(
        &mut self,
        id: &str,
        content: u64,
        action: Action,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let sent = self.bulk.sent();
        let pushed = self.bulk.push(id, content, action, write);
        self.or_gone(pushed)?;
        if self.bulk.sent() > sent { self.watch() } else { Ok(()) }
    }

    /// Takes a document with its vectors, whose other members `write` appends; one that the engine would refuse is
    /// rejected here.
    pub(super) fn push_vectors(
        &mut self,
        id: &str,
        content: u64,
        action: Action,
        vectors: &[SparseVector],
        names: &FeatureNames,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Result<()> {
        let fields = &self.options.fields;
        match names.segments(vectors) {
            Ok(segments) => self.push(id, content, action, |out| {
                out.push(b'{');
                let start = out.len();
                write(out);
                if out.len() > start {
                    out.push(b',');
                }
                names::write_vector(out, &segments, fields);
                out.push(b'}');
            }),
            Err(reason) => {
                let mut document = vec![b'{'];
                write(&mut document);
                document.push(b'}');
                self.bulk.reject(id, reason, &document)
            }
        }
    }

    /// Writes down a document that cannot be sent.
    pub(super) fn reject(&mut self, id: &str, reason: String, document: &[u8]) -> Result<()> {
        self.bulk.reject(id, reason, document)
    }

    /// Sends what there is if the cluster has nothing to do.
    pub(super) fn nudge(&mut self) -> Result<()> {
        let nudged = self.bulk.nudge();
        self.or_gone(nudged)
    }

    /// The input gives nothing for a moment: sends what there is. Where no batch has been full for a while that is no load:
    /// what it gave is to be seen, and copied.
    pub(super) fn pause(&mut self) -> Result<()> {
        self.nudge()?;
        if matches!(self.quiet, Quiet::Now) && self.bulk.now() > self.bulk.whole_at().max(self.kept_quiet_at) + LOOK {
            match loading::restore(self.cluster, &self.index) {
                Ok(_) => self.quiet = Quiet::Never,
                // A cluster that is away for a while is no reason to stop: it is tried again.
                Err(error) => {
                    tracing::warn!(%error, index = self.index, "refresh and replicas are not set back yet");
                    self.kept_quiet_at = self.bulk.now();
                }
            }
        }
        self.look_again()
    }

    /// Once a batch went out: refresh and copies go off, and the index is looked at now and then.
    fn watch(&mut self) -> Result<()> {
        if matches!(self.quiet, Quiet::Possible) {
            self.quiet = self.begin()?;
            self.bulk.report.loaded_quietly |= matches!(self.quiet, Quiet::Now);
        }
        self.look_again()
    }

    /// Switches refresh and copies off, unless an alias came meanwhile, or the user may not.
    fn begin(&self) -> Result<Quiet> {
        let Some(found) = loading::look(self.cluster, &self.index)? else { return Ok(Quiet::Never) };
        if found.is_aliased() || found.is_loading() {
            return Ok(Quiet::Never);
        }
        match loading::begin(self.cluster, &self.index, &found) {
            Ok(()) => Ok(Quiet::Now),
            Err(error) if error.status() == Some(403) => {
                tracing::warn!(%error, index = self.index, "refresh and replicas stay as they are");
                Ok(Quiet::Never)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks at the index if that is due.
    fn look_again(&mut self) -> Result<()> {
        if self.bulk.now() < self.looked + LOOK {
            return Ok(());
        }
        self.looked = self.bulk.now();
        self.check_index()
    }

    /// Whether the index is still the one that was there at the start; if an alias points to it now, it may be serving.
    fn check_index(&mut self) -> Result<()> {
        match index::uuid(self.cluster, &self.index) {
            Ok(uuid) if uuid == self.uuid => {}
            Ok(_) => return Err(self.gone(true)),
            Err(Error::Failed { fault: nsparse_core::Fault::Usage, .. }) => return Err(self.gone(false)),
            // While the cluster is down the loop waits for it: that is no reason to stop here.
            Err(error) => {
                tracing::debug!(%error, "the index was not looked at");
                return Ok(());
            }
        }
        if matches!(self.quiet, Quiet::Now)
            && loading::look(self.cluster, &self.index).is_ok_and(|found| found.is_some_and(|f| f.is_aliased()))
        {
            loading::restore(self.cluster, &self.index)?;
            self.quiet = Quiet::Never;
        }
        Ok(())
    }

    /// Where the cluster says that there is no such index, it was there at the start.
    fn or_gone(&mut self, done: Result<()>) -> Result<()> {
        if done.as_ref().is_err_and(|e| e.api().is_some_and(|api| api.kind == "index_not_found_exception")) {
            self.check_index()?;
        }
        done
    }

    fn gone(&mut self, is_another: bool) -> Error {
        self.quiet = Quiet::Never;
        let index = &self.index;
        if is_another {
            return Error::world(
                format!("The index `{index}` was deleted while documents went in, and another has its name now"),
                "if nobody made it, the last batches did, without its mapping: delete it, make the index again, and run \
                 the same command again",
            );
        }
        Error::world(
            format!("The index `{index}` was deleted while documents went in"),
            "make it again, and run the same command again: the journal knows that it is another index",
        )
    }

    /// Sends the rest, waits for everything, sets settings back, makes it visible and counts.
    pub(super) fn finish(mut self) -> Result<IngestReport> {
        let drained = self.bulk.drain();
        self.or_gone(drained)?;
        self.check_index()?;
        if matches!(self.quiet, Quiet::Now) {
            loading::restore(self.cluster, &self.index)?;
            self.quiet = Quiet::Never;
        }
        index::refresh(self.cluster, &self.index)?;
        let documents = index::count(self.cluster, &self.index)?;
        let expected = self.bulk.present();
        let mut report = std::mem::take(&mut self.bulk.report);
        report.documents = documents;
        report.rejected.sort_by(|a, b| a.id.cmp(&b.id));
        if documents < expected {
            let mend = self.options.journal.as_ref().map_or_else(
                || "see the cluster's log".to_owned(),
                |path| format!("delete the journal `{}` and run again", path.display()),
            );
            return Err(Error::world(
                format!(
                    "The index `{}` has {documents} documents after {expected} were sent: some were deleted meanwhile",
                    self.index
                ),
                mend,
            ));
        }
        Ok(report)
    }
}

impl Drop for Session<'_> {
    /// After an error settings are set back where that is possible; else the next run does it.
    fn drop(&mut self) {
        if matches!(self.quiet, Quiet::Now)
            && let Err(error) = loading::restore_once(self.cluster, &self.index)
        {
            tracing::warn!(%error, index = self.index, "refresh and replicas stay off until the next ingest");
        }
    }
}

/// What may be done with an index's settings. Those that a killed run left switched off are set back if an alias points
/// to the index by now.
fn look(cluster: &Cluster, index: &str, options: &IngestOptions) -> Result<Quiet> {
    let Some(found) = loading::look(cluster, index)? else { return Ok(Quiet::Never) };
    if found.is_loading() {
        if found.is_aliased() || options.loading == Loading::Keep {
            loading::restore(cluster, index)?;
            return Ok(Quiet::Never);
        }
        return Ok(Quiet::Now);
    }
    let is_new = options.loading == Loading::New
        && found.uuid.is_some()
        && !found.is_aliased()
        && index::refresh(cluster, index).and_then(|()| index::count(cluster, index))? == 0;
    Ok(if is_new { Quiet::Possible } else { Quiet::Never })
}

//! The long job behind `nsparse encode`: blocks of documents are read ahead, encoded, and written before the next.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use nsparse_core::vector_files::{
    Block, Blocks, Counts, DocumentStream, FileMeta, InputPosition, Job, Layout, Opened, PartFile, check_documents,
};
use nsparse_core::{Cancel, DocumentEncoder as _, Error, Progress, SparseVector, Task};

use crate::document_encoder::DocumentModel;
use crate::failure::usage;
use crate::printer::Printer;

/// How long a stop by the user may go unheard while the input gives nothing.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where documents come from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// A file of jsonl. It is looked through before anything is encoded.
    File(PathBuf),
    /// Standard input: jsonl that comes when it comes.
    Stdin,
}

impl Source {
    fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Stdin => Path::new("standard input"),
        }
    }

    fn stream(&self, job: &Job) -> anyhow::Result<DocumentStream<Box<dyn Read + Send>>> {
        let input: Box<dyn Read + Send> = match self {
            Self::File(path) => Box::new(std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?),
            Self::Stdin => Box::new(std::io::stdin()),
        };
        Ok(DocumentStream::new(input, self.name(), &job.fields()))
    }
}

/// What is to be done.
pub(crate) struct Plan {
    /// What decides the file's bytes besides the documents.
    pub(crate) job: Job,
    /// The documents.
    pub(crate) source: Source,
    /// What encodes.
    pub(crate) model: DocumentModel,
    /// The file.
    pub(crate) out: PathBuf,
    /// Whether what is there is made anew.
    pub(crate) force: bool,
}

/// What was done.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    /// What the file has now.
    pub(crate) counts: Counts,
    /// What this run did of it.
    pub(crate) work: Work,
    /// Whether the file is whole; else the user stopped the run.
    pub(crate) is_finished: bool,
    /// sha256 of the file, once it is whole.
    pub(crate) sha256: Option<String>,
}

/// What one run did.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Work {
    /// What it encoded.
    pub(crate) encoded: Counts,
    /// Seconds that it encoded and wrote.
    pub(crate) seconds: f64,
}

impl Work {
    /// A number of things in a second.
    pub(crate) fn rate(&self, things: u64) -> f64 {
        if self.seconds > 0.0 { things as f64 / self.seconds } else { 0.0 }
    }
}

impl Plan {
    /// Does what is left of it.
    pub(crate) fn run(mut self, printer: &Printer, cancel: &Cancel) -> anyhow::Result<Report> {
        self.model = self.model.with_batch_tokens(usize::try_from(self.job.batch_tokens).unwrap_or(usize::MAX));
        let layout = Layout::new(&self.job, self.model.vocabulary())?;
        let mut part = match PartFile::open(&self.out, &self.job, &layout, self.force)? {
            Opened::Part(part) => part,
            Opened::Finished(meta) => return self.nothing_to_do(&meta),
        };
        let mut work = Work::default();
        let end = match self.encode(&mut part, &layout, &mut work, printer, cancel) {
            Ok(end) => end,
            Err(error) => {
                let counts = part.checkpoint().counts;
                part.leave()?;
                if is_stop(&error) {
                    return Ok(Report { counts, work, is_finished: false, sha256: None });
                }
                return Err(error);
            }
        };
        let meta = part.finish(end, &layout)?;
        Ok(Report { counts: meta.counts, work, is_finished: true, sha256: Some(meta.sha256) })
    }

    /// The file is whole; what is left is to see that it was made from these documents.
    fn nothing_to_do(&self, meta: &FileMeta) -> anyhow::Result<Report> {
        let mut stream = self.source.stream(&self.job)?;
        stream.skip_to(&meta.input)?;
        if stream.next_document()?.is_some() {
            return Err(usage(
                format!("`{}` has more documents than `{}`", self.source.name().display(), self.out.display()),
                "encode them into another file, or all of them anew with --force",
            ));
        }
        let sha256 = Some(meta.sha256.clone());
        Ok(Report { counts: meta.counts, work: Work::default(), is_finished: true, sha256 })
    }

    /// Encodes what the part lacks; gives the end of the input.
    fn encode(
        &self,
        part: &mut PartFile,
        layout: &Layout,
        work: &mut Work,
        printer: &Printer,
        cancel: &Cancel,
    ) -> anyhow::Result<InputPosition> {
        let done = part.checkpoint().clone();
        let total = match &self.source {
            Source::Stdin => 0,
            Source::File(path) => {
                let all = check_documents(path, &self.job.fields(), &printer.progress(), cancel)?.documents;
                self.job.shard.map_or(all, |shard| shard.share(all, self.job.block))
            }
        };
        let mut stream = self.source.stream(&self.job)?;
        if done.counts.documents > 0 {
            stream.skip_to(&done.input)?;
            printer.note(format!("{} documents are done already", done.counts.documents));
        }
        let items = read_ahead(Blocks::new(stream, &self.job, &self.model.template));
        let meter = Meter::start(&printer.progress(), total.saturating_sub(done.counts.documents));
        loop {
            let block = match receive(&items, cancel)? {
                Item::Block(block) => block,
                Item::End(end) => {
                    // Ctrl-C in a shell also ends what fills the pipe: that is no end of the documents.
                    cancel.check()?;
                    if end.documents == 0 {
                        return Err(Error::file(self.source.name(), "it has no document").into());
                    }
                    return Ok(end);
                }
            };
            let encoded = self.model.encode_counted(&block.texts, &meter, cancel)?;
            let (bytes, counts) = written(layout, &block, &encoded.vectors, encoded.tokens)?;
            part.push(&block.ids, &bytes, &counts)?;
            work.encoded.add(&counts);
            work.seconds = meter.seconds();
            meter.tokens(work.encoded.tokens);
            if block.is_full {
                part.commit(block.end)?;
            }
        }
    }
}

/// A block's documents as the file has them.
fn written(layout: &Layout, block: &Block, vectors: &[SparseVector], tokens: u64) -> anyhow::Result<(Vec<u8>, Counts)> {
    if vectors.len() != block.ids.len() {
        anyhow::bail!("the encoder gave {} vectors for {} texts", vectors.len(), block.ids.len());
    }
    let mut bytes = Vec::new();
    let mut counts = Counts { documents: block.ids.len() as u64, tokens, ..Counts::default() };
    for ((id, text), vector) in block.ids.iter().zip(&block.texts).zip(vectors) {
        let active = layout.push(&mut bytes, id, text, vector)? as u64;
        counts.active += active;
        counts.zero_vectors += u64::from(active == 0);
    }
    Ok((bytes, counts))
}

/// What the reading thread hands over.
enum Item {
    Block(Block),
    End(InputPosition),
}

/// Reads one block ahead in a thread of its own, which ends with the input or with the receiver.
fn read_ahead(mut blocks: Blocks<Box<dyn Read + Send>>) -> Receiver<Result<Item, Error>> {
    let (sender, receiver) = sync_channel(1);
    std::thread::spawn(move || {
        loop {
            let item = match blocks.next_block() {
                Ok(Some(block)) => Ok(Item::Block(block)),
                Ok(None) => Ok(Item::End(blocks.position())),
                Err(error) => Err(error),
            };
            let is_last = !matches!(item, Ok(Item::Block(_)));
            if sender.send(item).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// The next item; a stop by the user is heard while none comes.
fn receive(items: &Receiver<Result<Item, Error>>, cancel: &Cancel) -> anyhow::Result<Item> {
    loop {
        cancel.check()?;
        match items.recv_timeout(PATIENCE) {
            Ok(item) => return Ok(item?),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the thread that reads the documents has ended"),
        }
    }
}

/// Whether an error only says that the user asked to stop.
fn is_stop(error: &anyhow::Error) -> bool {
    let core = if let Some(nsparse_encoder::Error::Core(core)) = error.downcast_ref() {
        Some(core)
    } else if let Some(nsparse_exporter::Error::Core(core)) = error.downcast_ref() {
        Some(core)
    } else {
        error.downcast_ref::<Error>()
    };
    matches!(core, Some(Error::Cancelled))
}

/// One bar over all blocks, with rates.
struct Meter(Arc<Rates>);

struct Rates {
    bar: Box<dyn Task>,
    started: Instant,
    documents: AtomicU64,
    tokens_per_second: AtomicU64,
}

impl Rates {
    fn show(&self) {
        let documents = self.documents.load(Ordering::Relaxed) as f64 / self.started.elapsed().as_secs_f64();
        // Documents are counted batch by batch, tokens block by block.
        let tokens = match self.tokens_per_second.load(Ordering::Relaxed) {
            0 => String::new(),
            rate => format!(", {rate} tokens/s"),
        };
        self.bar.message(&format!("{documents:.1} documents/s{tokens}"));
    }
}

impl Meter {
    fn start(progress: &dyn Progress, total: u64) -> Self {
        let bar = progress.start("Encoding", total);
        let (documents, tokens_per_second) = (AtomicU64::new(0), AtomicU64::new(0));
        Self(Arc::new(Rates { bar, started: Instant::now(), documents, tokens_per_second }))
    }

    /// A block is written; so many tokens were encoded until now.
    fn tokens(&self, tokens: u64) {
        self.0.tokens_per_second.store((tokens as f64 / self.seconds()) as u64, Ordering::Relaxed);
        self.0.show();
    }

    fn seconds(&self) -> f64 {
        self.0.started.elapsed().as_secs_f64()
    }
}

impl Progress for Meter {
    fn start(&self, _name: &str, _total: u64) -> Box<dyn Task> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

impl Task for Meter {
    fn advance(&self, units: u64) {
        self.0.bar.advance(units);
        self.0.documents.fetch_add(units, Ordering::Relaxed);
        self.0.show();
    }

    fn message(&self, text: &str) {
        self.0.bar.message(text);
    }
}

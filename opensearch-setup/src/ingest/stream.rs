//! Documents of any number, as they come: encoded here, encoded by the cluster, or ready; and ids that are to go.

use std::time::Duration;

use nsparse_core::beir::Document;
use nsparse_core::journal::content_key;
use nsparse_core::{Cancel, DocumentEncoder, DocumentTemplate, Progress, SparseVector};
use serde_json::{Map, Value};

use super::documents::{Block, Documents, Entry, Next};
use super::names::FeatureNames;
use super::options::{Action, IngestOptions, IngestReport};
use super::session::Session;
use crate::client::Cluster;
use crate::error::Result;
use crate::ml::Fields;

/// How long an input may give nothing before what there is goes out.
const IDLE: Duration = Duration::from_millis(200);
/// What the journal has in place of a document's contents once it is deleted.
const DELETED: &[u8] = b"\0deleted";

/// Who makes the vectors.
pub enum Way<'a> {
    /// They are in the documents, or a pipeline of the cluster makes them ([`IngestOptions::pipeline`]).
    AsIs(Action),
    /// This encoder.
    Encode(Encoding<'a>),
}

/// How documents are encoded here.
pub struct Encoding<'a> {
    /// What encodes.
    pub encoder: &'a dyn DocumentEncoder,
    /// How a document's members become the text that is encoded.
    pub template: &'a DocumentTemplate,
    /// The member that is the template's title.
    pub title: &'a str,
    /// The member that is the template's text.
    pub text: &'a str,
}

/// Sends documents as they come, each with all its members. `total` is their number, 0 where it is not known.
///
/// # Errors
/// As [`super::ingest`]; also if a document cannot be read, or the encoder fails.
#[expect(clippy::too_many_arguments, reason = "each is a different thing; a struct would only rename them")]
pub fn ingest_documents(
    cluster: &Cluster,
    index: &str,
    documents: &mut dyn Documents,
    way: &Way,
    total: u64,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let name = if matches!(way, Way::Encode(_)) { "Encoding and indexing" } else { "Indexing" };
    let mut session = Session::open(cluster, index, name, total, options, progress, cancel)?;
    let mut encoder = match way {
        Way::AsIs(_) => None,
        Way::Encode(encoding) => {
            Some(Blocks { encoding, names: FeatureNames::new(encoding.encoder.vocabulary()), waiting: Vec::new() })
        }
    };
    loop {
        cancel.check()?;
        match documents.next(IDLE)? {
            Next::Block(block) => {
                for entry in block.entries() {
                    if let Some(reason) = &entry.fault {
                        session.reject(&entry.id, reason.clone(), block.json(entry))?;
                    } else if encoder.as_ref().is_some_and(|b| b.holds(&entry.id))
                        || !session.skips(&entry.id, entry.content)
                    {
                        match (&mut encoder, way) {
                            (Some(blocks), _) => blocks.take(&block, entry, &mut session, options, cancel)?,
                            (None, Way::AsIs(action)) => {
                                let json = block.json(entry);
                                session.push(&entry.id, entry.content, *action, |out| out.extend_from_slice(json))?;
                            }
                            (None, Way::Encode(_)) => {}
                        }
                    }
                }
            }
            Next::Idle => {
                if let Some(blocks) = &mut encoder {
                    blocks.encode(&mut session, options)?;
                }
                session.pause()?;
            }
            Next::End => break,
        }
    }
    // Ctrl-C in a shell also ends what fills the pipe: that is no end of the documents.
    cancel.check()?;
    if let Some(blocks) = &mut encoder {
        blocks.encode(&mut session, options)?;
    }
    session.finish()
}

/// Documents that wait to be encoded together.
struct Blocks<'a> {
    encoding: &'a Encoding<'a>,
    names: FeatureNames<'a>,
    waiting: Vec<Waiting>,
}

struct Waiting {
    id: String,
    content: u64,
    json: Vec<u8>,
    text: String,
}

impl Blocks<'_> {
    fn holds(&self, id: &str) -> bool {
        self.waiting.iter().any(|w| w.id == id)
    }

    fn take(
        &mut self,
        block: &Block,
        entry: &Entry,
        session: &mut Session,
        options: &IngestOptions,
        cancel: &Cancel,
    ) -> Result<()> {
        let json = block.json(entry);
        let text = templated(json, self.encoding);
        if text.is_empty() {
            let reason = format!("it has no text: `{}` gives nothing", self.encoding.template.pattern);
            return session.reject(&entry.id, reason, json);
        }
        // The later of two with one id wins: both in one block would stand in the order of their lengths.
        if self.holds(&entry.id) {
            self.encode(session, options)?;
        }
        self.waiting.push(Waiting { id: entry.id.clone(), content: entry.content, json: json.to_vec(), text });
        if self.waiting.len() >= options.block.max(1) {
            cancel.check()?;
            self.encode(session, options)?;
        }
        Ok(())
    }

    fn encode(&mut self, session: &mut Session, options: &IngestOptions) -> Result<()> {
        let mut block = std::mem::take(&mut self.waiting);
        if block.is_empty() {
            return Ok(());
        }
        // Texts of like length waste no padding.
        block.sort_by_key(|w| std::cmp::Reverse(w.text.len()));
        let texts: Vec<&str> = block.iter().map(|w| w.text.as_str()).collect();
        let vectors = encode(self.encoding.encoder, &texts, &options.fields)?;
        for (document, segments) in block.iter().zip(&vectors) {
            session.push_vectors(&document.id, document.content, Action::Index, segments, &self.names, |out| {
                // The object without its braces.
                out.extend_from_slice(document.json[1..document.json.len() - 1].trim_ascii());
            })?;
        }
        session.nudge()
    }
}

/// A document's text by the template; a member that is not there, or no text, is empty.
fn templated(json: &[u8], encoding: &Encoding) -> String {
    let Ok(mut object) = serde_json::from_slice::<Map<String, Value>>(json) else { return String::new() };
    let mut string = |name: &str| match object.remove(name) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    };
    let mut document = Document { title: string(encoding.title), text: string(encoding.text), ..Document::default() };
    for name in encoding.template.other_fields() {
        document.other.insert(name.to_owned(), string(name));
    }
    encoding.template.apply(&document)
}

/// The vectors of texts: one each, or one a segment where the fields are nested.
pub(super) fn encode<T: AsRef<str>>(
    encoder: &dyn DocumentEncoder,
    texts: &[T],
    fields: &Fields,
) -> Result<Vec<Vec<SparseVector>>> {
    let views: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let vectors = if fields.segments.is_some() {
        encoder.encode_segments(&views)?
    } else {
        encoder.encode(&views)?.into_iter().map(|vector| vec![vector]).collect()
    };
    if vectors.len() != texts.len() {
        let message = format!("The encoder gave {} vectors for {} texts", vectors.len(), texts.len());
        return Err(nsparse_core::Error::invalid(message).into());
    }
    Ok(vectors)
}

/// Deletes documents by their ids. What is not there is counted, and is no error. The journal of whatever filled the
/// index is told, so that the same documents go in again when they come again.
///
/// # Errors
/// As [`super::ingest`].
pub fn delete_documents(
    cluster: &Cluster,
    index: &str,
    ids: impl IntoIterator<Item = nsparse_core::Result<String>>,
    options: &IngestOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<IngestReport> {
    let options = IngestOptions { journal_of_any_job: true, ..options.clone() };
    let mut session = Session::open(cluster, index, "Deleting", 0, &options, progress, cancel)?;
    let content = content_key(DELETED);
    for id in ids {
        session.push(&id?, content, Action::Delete, |_| {})?;
    }
    session.finish()
}

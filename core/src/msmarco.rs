//! MS MARCO's files, passages or documents, made into a data set in BEIR's form with lists of hard negatives. The
//! collection is read line by line and never held.
//!
//! Read are `collection.tsv` (`pid ⇥ text`), tevatron's `corpus.tsv` (`pid ⇥ title ⇥ text`), `msmarco-docs.tsv`
//! (`docid ⇥ url ⇥ title ⇥ body`), queries (`qid ⇥ text`), judgments (`qid 0 pid 1`) and id triples
//! (`qid ⇥ positive ⇥ negative`).

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::beir::Document;
use crate::hard_negatives::tab_separated_line;
use crate::trec::{self, Qrels};
use crate::{Cancel, Error, Progress, Result, files};

/// Lines between two looks at the user's wish to stop.
const LINES: usize = 4096;

/// A file to read, packed or not.
pub struct Input {
    /// What messages call it.
    pub path: PathBuf,
    /// Opens it from its start.
    pub open: Box<dyn Fn() -> Result<Box<dyn BufRead>>>,
}

/// A split's files.
pub struct SplitInput {
    /// `train`, `dev`.
    pub name: String,
    /// `qid ⇥ text`.
    pub queries: Input,
    /// Judgments, in any form that [`trec::read_qrels`] takes.
    pub qrels: Input,
}

/// Where negatives come from.
pub enum NegativeInput {
    /// `qid ⇥ positive ⇥ negative`, in any order.
    Triples(Input),
    /// Lists, in any form that [`crate::hard_negatives`] takes.
    Lists(PathBuf),
}

/// Everything that is read.
pub struct Inputs {
    /// Passages or documents.
    pub collection: Input,
    /// Splits; negatives belong to the first.
    pub splits: Vec<SplitInput>,
    /// Negatives of the first split's queries, where there are any.
    pub negatives: Option<NegativeInput>,
}

/// How a set is made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Queries of each split, drawn by the seed; `None`: all that are judged. With a number the corpus is cut down to
    /// the documents that judgments and negatives name.
    pub sample: Option<usize>,
    /// With a sample: so many other documents beside those.
    pub others: usize,
    /// Negatives that are kept for a query, drawn by the seed.
    pub negatives: usize,
    /// What is drawn comes from it.
    pub seed: u64,
    /// Whether texts whose UTF-8 was once read as Latin-1 are mended.
    pub repair: bool,
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Documents written.
    pub documents: usize,
    /// Documents in the collection.
    pub collection: usize,
    /// Queries written, of all splits.
    pub queries: usize,
    /// Queries and judgments of each split.
    pub splits: Vec<(String, usize, usize)>,
    /// Lists of hard negatives written.
    pub lists: usize,
    /// Negatives in them.
    pub negatives: usize,
    /// Queries of the first split without any negative.
    pub without_negatives: usize,
}

/// Name of the file of hard negatives beside `corpus.jsonl`.
pub const NEGATIVES: &str = "negatives.tsv";

/// Writes `corpus.jsonl`, `queries.jsonl`, `qrels/SPLIT.tsv` and `negatives.tsv` into a folder; each file appears whole.
///
/// # Errors
/// A broken line, by file and number; a judged query without a text; a judged document or a negative that the
/// collection does not have; the user's wish to stop.
pub fn prepare(
    inputs: &Inputs,
    options: &Options,
    folder: &Path,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut report = Report::default();
    // Hashes of the documents' ids that are named somewhere: each has to be in the collection.
    let mut named = HashSet::new();
    let mut judgments = Vec::new();
    for split in &inputs.splits {
        let mut qrels = read_qrels(&split.qrels)?;
        if let Some(count) = options.sample {
            let mut ids: Vec<String> = qrels.keys().cloned().collect();
            ids.sort_by_cached_key(|id| hash(options.seed, id.as_bytes()));
            for id in ids.drain(count.min(ids.len())..) {
                qrels.remove(&id);
            }
        }
        let count = qrels.values().map(std::collections::BTreeMap::len).sum();
        named.extend(qrels.values().flat_map(|d| d.keys()).map(|id| hash(0, id.as_bytes())));
        trec::write_beir_qrels(&folder.join("qrels").join(format!("{}.tsv", split.name)), &qrels)?;
        report.splits.push((split.name.clone(), qrels.len(), count));
        judgments.push(qrels);
    }
    report.queries = write_queries(inputs, &judgments, options, &folder.join("queries.jsonl"), cancel)?;
    if let (Some(input), Some(qrels)) = (&inputs.negatives, judgments.first()) {
        let mut kept = match input {
            NegativeInput::Triples(input) => Kept::Numbers(from_triples(input, qrels, options, cancel, progress)?),
            NegativeInput::Lists(path) => Kept::Ids(from_lists(path, qrels, options, cancel, progress)?),
        };
        let path = folder.join(NEGATIVES);
        files::write_atomic(&path, |out| {
            for query in qrels.keys() {
                let negatives = kept.take(query);
                if negatives.is_empty() {
                    continue;
                }
                report.lists += 1;
                report.negatives += negatives.len();
                named.extend(negatives.iter().map(|id| hash(0, id.as_bytes())));
                out.write_all(tab_separated_line(query, &negatives).as_bytes())
                    .map_err(|e| Error::io("write", &path, e))?;
            }
            Ok(())
        })?;
        report.without_negatives = qrels.len() - report.lists;
    }
    drop(judgments);
    write_corpus(&inputs.collection, options, named, &folder.join("corpus.jsonl"), &mut report, cancel, progress)?;
    Ok(report)
}

fn read_qrels(input: &Input) -> Result<Qrels> {
    trec::read_qrels_from((input.open)()?, &input.path)
}

/// Texts of all judged queries, in the order of their files; a query of two splits stands there once.
fn write_queries(
    inputs: &Inputs,
    judgments: &[Qrels],
    options: &Options,
    path: &Path,
    cancel: &Cancel,
) -> Result<usize> {
    let mut written = HashSet::new();
    files::write_atomic(path, |out| {
        for (split, qrels) in inputs.splits.iter().zip(judgments) {
            let mut found = 0;
            each_line(&split.queries, cancel, |line, text| {
                let (id, text) = text
                    .split_once('\t')
                    .ok_or_else(|| Error::line(&split.queries.path, line, "no tab; expected `query-id ⇥ text`"))?;
                if !qrels.contains_key(id) {
                    return Ok(());
                }
                found += 1;
                if written.insert(id.to_owned()) {
                    let line = serde_json::json!({ "_id": id, "text": mended(text.trim(), options.repair) });
                    writeln!(out, "{line}").map_err(|e| Error::io("write", path, e))?;
                }
                Ok(())
            })?;
            if found < qrels.len() {
                let first = qrels.keys().find(|id| !written.contains(*id)).map_or("", String::as_str);
                return Err(Error::file(
                    &split.queries.path,
                    format!("{} judged queries have no text in it, the first is `{first}`", qrels.len() - found),
                ));
            }
        }
        Ok(())
    })?;
    Ok(written.len())
}

/// The `keep` negatives of least hash for each judged query: the same ones in whatever order the triples stand.
fn from_triples(
    input: &Input,
    qrels: &Qrels,
    options: &Options,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<HashMap<String, Least>> {
    let task = progress.start("Reading triples", 0);
    let mut kept: HashMap<String, Least> = HashMap::new();
    let mut last = 0;
    each_line(input, cancel, |line, text| {
        let columns: Vec<&str> = text.split('\t').map(str::trim).collect();
        let [query, _positive, negative] = columns.as_slice() else {
            let message =
                format!("{} columns; expected `query-id ⇥ positive ⇥ negative`, tab-separated", columns.len());
            return Err(Error::line(&input.path, line, message));
        };
        let id: u32 = negative.parse().map_err(|_| {
            Error::line(&input.path, line, format!("the passage id `{negative}` is no number of at most 32 bits"))
        })?;
        if line - last >= LINES {
            task.advance((line - last) as u64);
            last = line;
        }
        let Some(judged) = qrels.get(*query) else { return Ok(()) };
        if judged.get(*negative).is_some_and(|&grade| grade > 0) {
            return Ok(());
        }
        if !kept.contains_key(*query) {
            kept.insert((*query).to_owned(), Least::new(options, query));
        }
        if let Some(least) = kept.get_mut(*query) {
            least.add(id);
        }
        Ok(())
    })?;
    Ok(kept)
}

/// Negatives of each query until they are written: 4 bytes each where ids are numbers.
enum Kept {
    Numbers(HashMap<String, Least>),
    Ids(HashMap<String, Vec<String>>),
}

impl Kept {
    /// A query's ids, which are then gone.
    fn take(&mut self, query: &str) -> Vec<String> {
        match self {
            Self::Numbers(kept) => kept
                .remove(query)
                .map_or_else(Vec::new, |least| least.finish().into_iter().map(|id| id.to_string()).collect()),
            Self::Ids(kept) => kept.remove(query).unwrap_or_default(),
        }
    }
}

/// Ids of least hash, at most `keep`.
struct Least {
    keep: usize,
    seed: u64,
    ids: Vec<u32>,
    /// Ids of this hash or above are no longer among them.
    limit: u64,
}

impl Least {
    fn new(options: &Options, query: &str) -> Self {
        Self { keep: options.negatives, seed: hash(options.seed, query.as_bytes()), ids: Vec::new(), limit: u64::MAX }
    }

    fn hash(&self, id: u32) -> u64 {
        hash(self.seed, &id.to_le_bytes())
    }

    fn add(&mut self, id: u32) {
        if self.hash(id) < self.limit {
            self.ids.push(id);
            if self.ids.len() >= 2 * self.keep.max(1) {
                self.shrink();
            }
        }
    }

    fn shrink(&mut self) {
        let mut ids = std::mem::take(&mut self.ids);
        ids.sort_unstable_by_key(|&id| (self.hash(id), id));
        ids.dedup();
        if ids.len() > self.keep {
            self.limit = self.hash(ids[self.keep]);
            ids.truncate(self.keep);
        }
        self.ids = ids;
    }

    fn finish(mut self) -> Vec<u32> {
        self.shrink();
        self.ids
    }
}

/// The first negatives of each judged query's list.
fn from_lists(
    path: &Path,
    qrels: &Qrels,
    options: &Options,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<HashMap<String, Vec<String>>> {
    let task = progress.start("Reading lists", 0);
    let mut kept: HashMap<String, Vec<String>> = HashMap::new();
    crate::hard_negatives::each(path, |line, lists| {
        if line.is_multiple_of(LINES) {
            task.advance(LINES as u64);
            cancel.check()?;
        }
        let Some(query) = lists.query_id else {
            return Err(Error::line(path, line, "no `query_id`, by which the judgments could be found"));
        };
        let Some(judged) = qrels.get(&query) else { return Ok(()) };
        let own = kept.entry(query).or_default();
        let room = options.negatives.saturating_sub(own.len());
        own.extend(lists.neg_ids.into_iter().filter(|id| judged.get(id).is_none_or(|&g| g <= 0)).take(room));
        Ok(())
    })?;
    Ok(kept)
}

#[derive(Serialize)]
struct CorpusLine<'a> {
    #[serde(rename = "_id")]
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<&'a str>,
    #[serde(skip_serializing_if = "str::is_empty")]
    title: &'a str,
    text: &'a str,
}

fn write_corpus(
    input: &Input,
    options: &Options,
    mut named: HashSet<u64>,
    path: &Path,
    report: &mut Report,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<()> {
    let others =
        if options.sample.is_some() { drawn_others(input, options, &named, cancel, progress)? } else { HashSet::new() };
    let task = progress.start("Writing the corpus", 0);
    let mut ids = HashSet::new();
    files::write_atomic(path, |out| {
        each_document(input, options.repair, cancel, |line, document| {
            report.collection += 1;
            if report.collection.is_multiple_of(LINES) {
                task.advance(LINES as u64);
            }
            let key = hash(0, document.id.as_bytes());
            if !ids.insert(key) {
                return Err(Error::line(&input.path, line, format!("the id `{}` comes twice", document.id)));
            }
            if !named.remove(&key) && options.sample.is_some() && !others.contains(&key) {
                return Ok(());
            }
            let url = document.other.get("url").map(String::as_str);
            let line = CorpusLine { id: &document.id, url, title: &document.title, text: &document.text };
            serde_json::to_writer(&mut *out, &line).map_err(|e| Error::json(path, e))?;
            out.write_all(b"\n").map_err(|e| Error::io("write", path, e))?;
            report.documents += 1;
            Ok(())
        })?;
        if named.is_empty() {
            return Ok(());
        }
        Err(Error::invalid_with_hint(
            format!("{} documents that judgments or negatives name are not in `{}`", named.len(), input.path.display()),
            "collection, judgments and negatives must be of the same release, with the same ids",
        ))
    })
}

/// Keys of documents that are named nowhere, drawn by the seed.
fn drawn_others(
    input: &Input,
    options: &Options,
    named: &HashSet<u64>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<HashSet<u64>> {
    if options.others == 0 {
        return Ok(HashSet::new());
    }
    let task = progress.start("Drawing documents", 0);
    let mut least = std::collections::BinaryHeap::with_capacity(options.others + 1);
    each_document(input, false, cancel, |line, document| {
        if line.is_multiple_of(LINES) {
            task.advance(LINES as u64);
        }
        let key = hash(0, document.id.as_bytes());
        if !named.contains(&key) {
            least.push((hash(options.seed, document.id.as_bytes()), key));
            if least.len() > options.others {
                least.pop();
            }
        }
        Ok(())
    })?;
    Ok(least.into_iter().map(|(_, key)| key).collect())
}

/// Calls `take` with each document of a collection and its line; what the columns are follows from the first line.
///
/// # Errors
/// A broken line, by file and number; a file without documents; whatever `take` answers.
pub fn each_document(
    input: &Input,
    repair: bool,
    cancel: &Cancel,
    mut take: impl FnMut(usize, Document) -> Result<()>,
) -> Result<()> {
    let mut width = 0;
    each_line(input, cancel, |line, text| {
        if width == 0 {
            width = text.split('\t').count().min(4);
            if width == 1 {
                let message =
                    "no tab; expected `id ⇥ text`, `id ⇥ title ⇥ text` or `id ⇥ url ⇥ title ⇥ body`, tab-separated";
                return Err(Error::line(&input.path, line, message));
            }
        }
        // A tab too many belongs to the text.
        let columns: Vec<&str> = text.splitn(width, '\t').collect();
        let (id, url, title, text) = match columns.as_slice() {
            [id, text] if width == 2 => (id, None, "", text),
            [id, title, text] if width == 3 => (id, None, *title, text),
            [id, url, title, text] => (id, Some(*url), *title, text),
            other => {
                let message = format!("{} tab-separated columns, the first line has {width}", other.len());
                return Err(Error::line(&input.path, line, message));
            }
        };
        if id.trim().is_empty() {
            return Err(Error::line(&input.path, line, "the id is empty"));
        }
        let other = url.map(|u| ("url".to_owned(), u.trim().to_owned())).into_iter().collect();
        take(
            line,
            Document {
                id: id.trim().to_owned(),
                title: mended(title.trim(), repair),
                text: mended(text.trim(), repair),
                other,
            },
        )
    })?;
    if width == 0 { Err(Error::file(&input.path, "it has no document")) } else { Ok(()) }
}

fn each_line(input: &Input, cancel: &Cancel, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut reader = (input.open)()?;
    let mut bytes = Vec::new();
    for line in 1usize.. {
        bytes.clear();
        if reader.read_until(b'\n', &mut bytes).map_err(|e| Error::io("read", &input.path, e))? == 0 {
            break;
        }
        if line.is_multiple_of(LINES) {
            cancel.check()?;
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| Error::line(&input.path, line, "it is not UTF-8"))?;
        let text = text.trim_end_matches(['\n', '\r']);
        if !text.trim().is_empty() {
            take(line, text)?;
        }
    }
    Ok(())
}

/// A text whose UTF-8 bytes were read as Latin-1 gets its characters back; any other stays as it is.
fn mended(text: &str, repair: bool) -> String {
    if !repair || text.is_ascii() {
        return text.to_owned();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
    bytes.and_then(|b| String::from_utf8(b).ok()).unwrap_or_else(|| text.to_owned())
}

/// 64 bits of a seed and some bytes: FNV-1a, then splitmix64's mixing. Drawing and joining need no more.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    h = h.wrapping_add(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^ (h >> 31)
}

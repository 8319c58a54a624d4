//! Data sets in BEIR's three-file form (`corpus.jsonl`, `queries.jsonl`, `qrels/<split>.tsv`), and plain jsonl
//! with field names given.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::trec::{self, Qrels};
use crate::{Error, Result, files};

/// One document of a corpus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Document {
    /// Its id, unique in the corpus.
    pub id: String,
    /// Its title; empty where it has none.
    pub title: String,
    /// Its text.
    pub text: String,
    /// Its other fields that hold a string, by name: what a template may ask for, such as `url`.
    pub other: BTreeMap<String, String>,
}

/// One query.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// Its id, unique in the set.
    pub id: String,
    /// Its text.
    pub text: String,
}

/// Which jsonl fields hold what. BEIR's names by default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldNames {
    /// The id's field.
    pub id: String,
    /// The title's field; a document without it has an empty title.
    pub title: String,
    /// The text's field.
    pub text: String,
}

impl Default for FieldNames {
    fn default() -> Self {
        Self { id: "_id".to_owned(), title: "title".to_owned(), text: "text".to_owned() }
    }
}

/// A data set's folder with its files found, nothing read yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The set's name: its folder's.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Field names of its jsonl files.
    pub fields: FieldNames,
}

impl Dataset {
    /// Opens a folder with `corpus.jsonl`, and queries and qrels where a command needs them.
    ///
    /// # Errors
    /// If there is no `corpus.jsonl` in it; the message says which files go where.
    pub fn open(folder: &Path) -> Result<Self> {
        let corpus = folder.join("corpus.jsonl");
        if !corpus.is_file() {
            return Err(Error::invalid_with_hint(
                format!("`{}` is no data set: it has no corpus.jsonl", folder.display()),
                expected_files(folder),
            ));
        }
        let name = folder
            .canonicalize()
            .ok()
            .as_deref()
            .unwrap_or(folder)
            .file_name()
            .map_or_else(|| "data".to_owned(), |n| n.to_string_lossy().into_owned());
        Ok(Self { name, folder: folder.to_path_buf(), fields: FieldNames::default() })
    }

    /// `folder` itself or `folder/name`, whichever holds the set.
    pub fn find(folder: &Path, name: &str) -> Option<Self> {
        [folder.join(name), folder.to_path_buf()].iter().find_map(|f| Self::open(f).ok())
    }

    /// All documents.
    ///
    /// # Errors
    /// The first broken line.
    pub fn corpus(&self) -> Result<Vec<Document>> {
        read_corpus(&self.folder.join("corpus.jsonl"), &self.fields)
    }

    /// All queries, of every split.
    ///
    /// # Errors
    /// The first broken line.
    pub fn queries(&self) -> Result<Vec<Query>> {
        read_queries(&self.folder.join("queries.jsonl"), &self.fields)
    }

    /// The judgments of a split: `train`, `dev`, `test`.
    ///
    /// # Errors
    /// If there is no such split (the message lists those that are there), or a line is broken.
    pub fn qrels(&self, split: &str) -> Result<Qrels> {
        let path = self.folder.join("qrels").join(format!("{split}.tsv"));
        if !path.is_file() {
            let splits = self.splits();
            let hint = if splits.is_empty() {
                "no judgments are there; a split is a file qrels/SPLIT.tsv (query-id, corpus-id, score, \
                 tab-separated, with a header line)"
                    .to_owned()
            } else {
                format!("splits there: {}", splits.join(", "))
            };
            return Err(Error::invalid_with_hint(
                format!("The data set `{}` has no split `{split}`: no file `{}`", self.name, path.display()),
                hint,
            ));
        }
        trec::read_qrels(&path)
    }

    /// The splits that have judgments, sorted.
    pub fn splits(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.folder.join("qrels")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.filter_map(|e| e.ok()?.file_name().to_str()?.strip_suffix(".tsv").map(str::to_owned)).collect();
        names.sort();
        names
    }

    /// The queries that a split judges, in the order of `queries.jsonl`.
    ///
    /// # Errors
    /// As [`Dataset::queries`]; also if a judged query has no text.
    pub fn judged_queries(&self, qrels: &Qrels) -> Result<Vec<Query>> {
        let queries: Vec<Query> = self.queries()?.into_iter().filter(|q| qrels.contains_key(&q.id)).collect();
        if queries.len() < qrels.len() {
            let missing = qrels.keys().find(|id| queries.iter().all(|q| &q.id != *id));
            return Err(Error::invalid(format!(
                "{} judged queries have no text in `{}`, the first is `{}`",
                qrels.len() - queries.len(),
                self.folder.join("queries.jsonl").display(),
                missing.map_or("", String::as_str)
            )));
        }
        Ok(queries)
    }

    /// sha256 of `corpus.jsonl`: what indexes are keyed by.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn corpus_hash(&self) -> Result<String> {
        Ok(files::sha256_file(&self.folder.join("corpus.jsonl"))?.0)
    }
}

/// Which files a data set has, for messages.
pub fn expected_files(folder: &Path) -> String {
    format!(
        "expected: {0}/corpus.jsonl ({{\"_id\",\"title\",\"text\"}} a line), {0}/queries.jsonl ({{\"_id\",\"text\"}}), \
         {0}/qrels/test.tsv (query-id, corpus-id, score, tab-separated, with a header line)",
        folder.display()
    )
}

/// Reads documents from jsonl.
///
/// # Errors
/// A broken line, a missing text, an id that comes twice: by file and line.
pub fn read_corpus(path: &Path, fields: &FieldNames) -> Result<Vec<Document>> {
    let mut seen = std::collections::HashMap::new();
    let mut documents = Vec::new();
    each_document(path, fields, |line, document| {
        if let Some(first) = seen.insert(document.id.clone(), line) {
            return Err(twice(path, line, &document.id, first));
        }
        documents.push(document);
        Ok(())
    })?;
    Ok(documents)
}

/// Calls `take` with each document of a jsonl file and its line, from 1: never more than one is in memory. That no id
/// comes twice is the caller's to check.
///
/// # Errors
/// A broken line or a missing text, by file and line; a file without documents; whatever `take` answers.
pub fn each_document(
    path: &Path,
    fields: &FieldNames,
    mut take: impl FnMut(usize, Document) -> Result<()>,
) -> Result<()> {
    let mut is_empty = true;
    each_object(path, |line, object| {
        let id = id_of(path, line, object, &fields.id)?;
        is_empty = false;
        take(line, document_of(path, line, object, fields, id)?)
    })?;
    if is_empty { Err(Error::file(path, "it has no document")) } else { Ok(()) }
}

/// The error of an id that stood in line `first` already.
pub fn twice(path: &Path, line: usize, id: &str, first: usize) -> Error {
    Error::line(path, line, format!("the id `{id}` stands in line {first} already"))
}

/// One line of jsonl as a document; `path` and `line` (from 1) are for the message. That its id comes once is the
/// caller's to check.
///
/// # Errors
/// If the line is not a JSON object, or has no id or no text.
pub fn parse_document(path: &Path, line: usize, json: &str, fields: &FieldNames) -> Result<Document> {
    let object = object_of(path, line, json)?;
    let id = id_of(path, line, &object, &fields.id)?;
    document_of(path, line, &object, fields, id)
}

fn document_of(
    path: &Path,
    line: usize,
    object: &Map<String, Value>,
    fields: &FieldNames,
    id: String,
) -> Result<Document> {
    let title = string_of(path, line, object, &fields.title)?.unwrap_or_default();
    let text = string_of(path, line, object, &fields.text)?
        .ok_or_else(|| Error::line(path, line, missing(object, &fields.text)))?;
    let is_other = |name: &str| ![&fields.id, &fields.title, &fields.text].iter().any(|f| *f == name);
    let other = object
        .iter()
        .filter_map(|(name, value)| Some((name, value.as_str()?)))
        .filter(|(name, _)| is_other(name))
        .map(|(name, value)| (name.clone(), value.to_owned()))
        .collect();
    Ok(Document { id, title, text, other })
}

/// A JSON object as a document.
///
/// # Errors
/// If it has no id or no text, by file and line.
pub(crate) fn object_document(
    path: &Path,
    line: usize,
    object: &Map<String, Value>,
    fields: &FieldNames,
) -> Result<Document> {
    let id = id_of(path, line, object, &fields.id)?;
    document_of(path, line, object, fields, id)
}

/// Reads queries from jsonl.
///
/// # Errors
/// A broken line, a missing text, an id that comes twice: by file and line.
pub fn read_queries(path: &Path, fields: &FieldNames) -> Result<Vec<Query>> {
    let mut seen = std::collections::HashMap::new();
    let mut queries = Vec::new();
    each_object(path, |line, object| {
        let id = id_of(path, line, object, &fields.id)?;
        if let Some(first) = seen.insert(id.clone(), line) {
            return Err(twice(path, line, &id, first));
        }
        let text = string_of(path, line, object, &fields.text)?
            .ok_or_else(|| Error::line(path, line, missing(object, &fields.text)))?;
        queries.push(Query { id, text });
        Ok(())
    })?;
    Ok(queries)
}

/// Calls `take` with each line's JSON object and its 1-based number; empty lines are skipped.
fn each_object(path: &Path, mut take: impl FnMut(usize, &Map<String, Value>) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    for (index, line) in BufReader::with_capacity(1 << 18, file).lines().enumerate() {
        let line = line.map_err(|e| Error::line(path, index + 1, e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        take(index + 1, &object_of(path, index + 1, &line)?)?;
    }
    Ok(())
}

pub(crate) fn object_of(path: &Path, line: usize, json: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str::<Value>(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::line(path, line, "expected a JSON object")),
        Err(e) => Err(Error::line(path, line, format!("not JSON: {e}"))),
    }
}

pub(crate) fn id_of(path: &Path, line: usize, object: &Map<String, Value>, field: &str) -> Result<String> {
    match object.get(field) {
        Some(Value::String(id)) if !id.is_empty() => Ok(id.clone()),
        Some(Value::Number(id)) => Ok(id.to_string()),
        Some(other) => Err(Error::line(path, line, format!("the id field `{field}` is {other}; expected a string"))),
        None => Err(Error::line(path, line, missing(object, field))),
    }
}

pub(crate) fn string_of(path: &Path, line: usize, object: &Map<String, Value>, field: &str) -> Result<Option<String>> {
    match object.get(field) {
        Some(Value::String(text)) => Ok(Some(text.clone())),
        None | Some(Value::Null) => Ok(None),
        Some(_) => Err(Error::line(path, line, format!("the field `{field}` is not a string"))),
    }
}

pub(crate) fn missing(object: &Map<String, Value>, field: &str) -> String {
    let fields: Vec<&str> = object.keys().map(String::as_str).collect();
    format!("no field `{field}`; the line has: {}", fields.join(", "))
}

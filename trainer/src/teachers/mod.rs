//! Teachers: models and files that score queries with documents while a run learns from them. What models compute is
//! kept on disk by teacher and text, so later epochs and runs read it.

pub mod ensemble;

mod bm25;
mod cache;
mod cross;
pub mod rows;
mod scores;
pub(crate) mod training;
mod vectors;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Progress, files};
use nsparse_encoder::Device;
use serde::{Deserialize, Serialize};

pub use self::ensemble::TeacherScores;

use self::bm25::Bm25Member;
use self::cache::{Key, Store};
use self::cross::CrossMember;
use self::scores::ScoresMember;
use self::vectors::VectorMember;
use crate::sections::{TeacherSection, TeachersSection};
use crate::{Error, Result};

/// Items that are computed before they are written to the cache.
const CHUNK: usize = 256;

/// A query or a document as teachers see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'a> {
    /// Its id, by which score files know it.
    pub id: &'a str,
    /// Its text; a document's is templated.
    pub text: &'a str,
}

/// Which pairs of some queries and documents are to be scored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request<'a> {
    /// The queries.
    pub queries: Vec<Text<'a>>,
    /// The documents.
    pub documents: Vec<Text<'a>>,
    /// For each query the places of the documents whose scores are wanted, ascending.
    pub wanted: Vec<Vec<usize>>,
}

impl Request<'_> {
    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.wanted.iter().enumerate().flat_map(|(q, documents)| documents.iter().map(move |&d| (q, d)))
    }
}

/// One teacher.
trait Member: Send {
    /// What it has to compute for a request, by key: nothing where scores need no model.
    fn items(&self, _request: &Request<'_>) -> Vec<Key> {
        Vec::new()
    }

    /// Whether an item is in the cache.
    fn is_kept(&self, _item: &Key) -> bool {
        true
    }

    /// Computes what requests need and the cache does not have; how many items that were. `done` hears them.
    fn prepare(&mut self, _requests: &[Request<'_>], _cancel: &Cancel, _done: &mut dyn FnMut(usize)) -> Result<usize> {
        Ok(0)
    }

    /// Scores `[Q, N]` of a request that was prepared; NaN where there is none, or none was wanted.
    fn scores(&mut self, request: &Request<'_>) -> Result<Vec<f32>>;

    /// Lets the model go.
    fn unload(&mut self) {}

    /// What its items are called.
    fn unit(&self) -> &'static str {
        "texts"
    }
}

/// How one teacher worked, or will.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TeacherWork {
    /// The teacher: its kind and folder.
    pub name: String,
    /// What it computes: `texts` (each once) or `pairs` of a query and a document; empty where it computes nothing.
    pub unit: String,
    /// So many were computed.
    pub computed: usize,
}

/// What a teacher will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TeacherEstimate {
    /// The teacher: its kind and folder.
    pub name: String,
    /// What it computes: `texts` (each once) or `pairs` of a query and a document; empty where it computes nothing.
    pub unit: String,
    /// Distinct ones that the run asks for.
    pub needed: usize,
    /// Those that the cache does not have yet.
    pub missing: usize,
    /// Estimated seconds for the missing ones.
    pub seconds: f64,
}

struct Entry {
    name: String,
    weight: f64,
    member: Box<dyn Member>,
    computed: usize,
}

/// What teachers need to know of where they are asked.
pub struct Surroundings<'a> {
    /// Where models are computed.
    pub device: Device,
    /// The cache's folder where the section names none.
    pub cache: PathBuf,
    /// Whether the cache is written; if not, what is computed stays in memory.
    pub is_cache_written: bool,
    /// All documents, for BM25; their text is the templated one.
    pub documents: &'a dyn Fn() -> Result<Vec<Document>>,
    /// Whether a query's id will be asked for: of a score file only such queries are kept.
    pub is_asked: &'a dyn Fn(&str) -> bool,
    /// Read while models are hashed and documents indexed.
    pub cancel: &'a Cancel,
    /// Bars.
    pub progress: &'a dyn Progress,
}

/// The ensemble of a recipe.
pub struct Teachers {
    entries: Vec<Entry>,
    scale: f64,
    identity: String,
}

impl Teachers {
    /// Opens every member; models are loaded when they are first needed.
    ///
    /// # Errors
    /// If a folder or file is missing or broken, or a key does not fit what it names.
    pub fn open(section: &TeachersSection, around: &Surroundings<'_>) -> Result<Self> {
        let cache = section.cache.as_deref().unwrap_or(&around.cache);
        let mut entries = Vec::with_capacity(section.members.len());
        let mut identity = String::new();
        for (number, member) in section.members.iter().enumerate() {
            around.cancel.check()?;
            let (opened, id): (Box<dyn Member>, String) = match member {
                TeacherSection::Dense(t) => {
                    let (settings, id) = VectorMember::dense_settings(t)?;
                    let store = store(cache, member, &id, around)?;
                    (Box::new(VectorMember::dense(t, settings, store, around.device)), id)
                }
                TeacherSection::Sparse(t) => {
                    let (settings, id) = VectorMember::sparse_settings(t, number)?;
                    let store = store(cache, member, &id, around)?;
                    (Box::new(VectorMember::sparse(t, settings, store, around.device)?), id)
                }
                TeacherSection::CrossEncoder(t) => {
                    let id = CrossMember::identity(t)?;
                    let store = store(cache, member, &id, around)?;
                    (Box::new(CrossMember::new(t, store, around.device)), id)
                }
                TeacherSection::Bm25(t) => {
                    let documents = (around.documents)()?;
                    let opened = Bm25Member::new(t, &documents, around.cancel, around.progress)?;
                    (Box::new(opened), "bm25".to_owned())
                }
                TeacherSection::Scores(t) => {
                    let opened = ScoresMember::read(t, around.is_asked)?;
                    (Box::new(opened), files::sha256_file(&t.file)?.0)
                }
            };
            identity.push_str(&id);
            identity.push('\n');
            entries.push(Entry { name: member.name(), weight: member.weight(), member: opened, computed: 0 });
        }
        Ok(Self { entries, scale: section.scale, identity: files::sha256_bytes(identity.as_bytes()) })
    }

    /// sha256 over weights, tokenizers and files of all members: a run that goes on must find the same.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Computes what requests need and the cache does not have. `done` hears how many items more there are.
    ///
    /// # Errors
    /// If a model or the disk fails, or the user asked to stop; what was computed till then is kept.
    pub fn prepare(&mut self, requests: &[Request<'_>], cancel: &Cancel, done: &mut dyn FnMut(usize)) -> Result<()> {
        for entry in &mut self.entries {
            let name = &entry.name;
            let computed = entry.member.prepare(requests, cancel, done).map_err(|e| of_teacher(name, e))?;
            entry.computed += computed;
        }
        Ok(())
    }

    /// All members' scores of a request; what is missing is computed.
    ///
    /// # Errors
    /// If a model or the disk fails.
    pub fn scores(&mut self, request: &Request<'_>) -> Result<TeacherScores> {
        self.prepare(std::slice::from_ref(request), &Cancel::default(), &mut |_| ())?;
        let mut teachers = Vec::with_capacity(self.entries.len());
        for entry in &mut self.entries {
            let scores = entry.member.scores(request).map_err(|e| of_teacher(&entry.name, e))?;
            teachers.push((entry.weight, scores));
        }
        let (queries, documents) = (request.queries.len(), request.documents.len());
        Ok(TeacherScores { queries, documents, teachers, scale: self.scale })
    }

    /// Lets the models go; one that is asked again is loaded again.
    pub fn unload(&mut self) {
        for entry in &mut self.entries {
            entry.member.unload();
        }
    }

    /// What each member computed so far.
    pub fn work(&self) -> Vec<TeacherWork> {
        self.entries
            .iter()
            .map(|e| TeacherWork { name: e.name.clone(), unit: e.member.unit().to_owned(), computed: e.computed })
            .collect()
    }

    /// What requests will cost: counts distinct items, and measures on some of the first request's.
    ///
    /// # Errors
    /// As [`Teachers::prepare`].
    pub fn estimate<'a>(
        &mut self,
        mut requests: impl Iterator<Item = Request<'a>>,
        cancel: &Cancel,
    ) -> Result<Vec<TeacherEstimate>> {
        let Some(first) = requests.next() else { return Ok(Vec::new()) };
        let mut seen: Vec<(HashSet<Key>, usize)> = vec![(HashSet::new(), 0); self.entries.len()];
        let mut count = |entries: &[Entry], request: &Request<'_>| {
            for (entry, (seen, missing)) in entries.iter().zip(&mut seen) {
                for item in entry.member.items(request) {
                    *missing += usize::from(seen.insert(item) && !entry.member.is_kept(&item));
                }
            }
        };
        count(&self.entries, &first);
        let mut rates = Vec::with_capacity(self.entries.len());
        for entry in &mut self.entries {
            // Loading the model is no part of the rate.
            let name = &entry.name;
            let mut one = first.clone();
            one.queries.truncate(1);
            one.wanted.truncate(1);
            one.documents.truncate(1);
            one.wanted.iter_mut().for_each(|wanted| wanted.retain(|&d| d < 1));
            entry.member.prepare(&[one], cancel, &mut |_| ()).map_err(|e| of_teacher(name, e))?;
            let started = Instant::now();
            let requests = std::slice::from_ref(&first);
            let computed = entry.member.prepare(requests, cancel, &mut |_| ()).map_err(|e| of_teacher(name, e))?;
            rates.push(started.elapsed().as_secs_f64() / computed.max(1) as f64);
        }
        for request in requests {
            cancel.check()?;
            count(&self.entries, &request);
        }
        Ok(self
            .entries
            .iter()
            .zip(seen)
            .zip(rates)
            .map(|((entry, (needed, missing)), rate)| TeacherEstimate {
                name: entry.name.clone(),
                unit: entry.member.unit().to_owned(),
                needed: needed.len(),
                missing,
                seconds: rate * missing as f64,
            })
            .collect())
    }
}

/// Says whose error it is.
fn of_teacher(name: &str, error: Error) -> Error {
    match error {
        Error::Encoder(nsparse_encoder::Error::Model(message)) => {
            Error::config(format!("The teacher `{name}` cannot be used: {message}"))
        }
        other => other,
    }
}

/// The cache of a model: a folder by the hash of what its numbers depend on.
fn store(cache: &Path, member: &TeacherSection, id: &str, around: &Surroundings<'_>) -> Result<Store> {
    let folder = cache.join(&id[..16]);
    let store = Store::open(&folder, around.is_cache_written)?;
    let about = folder.join("teacher.json");
    if around.is_cache_written && !about.is_file() {
        files::write_json(&about, &serde_json::json!({ "id": id, "teacher": member }))?;
    }
    Ok(store)
}

/// sha256 over a model's files and the settings that its numbers depend on.
fn identity(folder: &Path, settings: &serde_json::Value) -> Result<String> {
    let mut about = format!("1 {settings}");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let path = folder.join(name);
        if !path.is_file() {
            return Err(nsparse_core::Error::invalid_with_hint(
                format!("The teacher `{}` has no {name}", folder.display()),
                "give a folder with config.json, model.safetensors and tokenizer.json",
            )
            .into());
        }
        about.push(' ');
        about.push_str(&files::sha256_file(&path)?.0);
    }
    Ok(files::sha256_bytes(about.as_bytes()))
}

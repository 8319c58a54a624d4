//! What a job is: everything that decides the bytes of its file besides the documents. Two runs with the same job
//! and the same documents write the same file; a file of another job is never continued.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::beir::FieldNames;
use crate::{Error, Result, files};

/// The form of a file of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `{"id": …, "vector": {token: weight}}` a line: what a `rank_features` field takes.
    Jsonl,
    /// `{"id": …, "contents": …, "vector": {token: integer}}` a line: Anserini's `JsonVectorCollection`.
    Anserini,
    /// The compact form of [`super::binary`].
    Binary,
}

/// How exactly weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As computed: `f32`.
    Full,
    /// As Lucene keeps them: 9 significant bits ([`crate::vector::engine_weight`]).
    Stored,
}

/// One of several jobs over the same documents. Blocks of documents go round: of three shards the first has blocks
/// 1, 4, 7, …, so that no shard has to know how many documents there are, and each block is encoded as it would be
/// without shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Which one, counted from 1.
    pub index: u64,
    /// Of how many.
    pub of: u64,
}

impl Shard {
    /// Whether a block, counted from 0, is this shard's.
    pub fn has(self, block: u64) -> bool {
        block % self.of == self.index - 1
    }

    /// How many of `documents` are this shard's, in blocks of `block`.
    pub fn share(self, documents: u64, block: u64) -> u64 {
        let (whole, rest) = (documents / block, documents % block);
        let mine = whole / self.of + u64::from(whole % self.of >= self.index);
        mine * block + if self.has(whole) { rest } else { 0 }
    }
}

impl std::fmt::Display for Shard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl std::str::FromStr for Shard {
    type Err = Error;

    /// `2/8`: the second of eight.
    fn from_str(s: &str) -> Result<Self> {
        s.split_once('/')
            .and_then(|(index, of)| Some(Self { index: index.parse().ok()?, of: of.parse().ok()? }))
            .filter(|shard| (1..=shard.of).contains(&shard.index))
            .ok_or_else(|| {
                Error::invalid_with_hint(
                    format!("`{s}` is no shard"),
                    "give I/N: the I-th of N shards counted from 1, such as 1/4, 2/4, 3/4 and 4/4",
                )
            })
    }
}

/// What decides a file's bytes besides its documents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// sha256 (hex) over what makes the vectors: weights, configuration, tokenizer, window, activation, template.
    pub model: String,
    /// What computes them: a device, a runtime. Engines agree within rounding, not to the last bit.
    pub engine: String,
    /// The file's form.
    pub format: Format,
    /// How exactly weights are kept.
    pub weights: Precision,
    /// What weights are multiplied by before they are rounded to integers; [`Format::Anserini`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<u32>,
    /// Documents in a block: encoded together, noted as done together; at least 1.
    pub block: u64,
    /// Most tokens in a batch.
    pub batch_tokens: u64,
    /// Field of the id in the documents' jsonl.
    pub id_field: String,
    /// Field of the title.
    pub title_field: String,
    /// Field of the text.
    pub text_field: String,
    /// Which part of the documents; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

impl Job {
    /// Names of the documents' fields.
    pub fn fields(&self) -> FieldNames {
        FieldNames { id: self.id_field.clone(), title: self.title_field.clone(), text: self.text_field.clone() }
    }

    /// Whether a block, counted from 0, is this job's.
    pub fn has(&self, block: u64) -> bool {
        self.shard.is_none_or(|shard| shard.has(block))
    }

    /// The job without its shard.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self { shard: None, ..self.clone() }
    }

    /// In what `self`, which a file was made by, differs from `other`, for a message; empty if in nothing.
    pub fn differences(&self, other: &Self) -> String {
        let of = |job: &Self| match serde_json::to_value(job) {
            Ok(serde_json::Value::Object(object)) => object,
            _ => serde_json::Map::new(),
        };
        let (there, here) = (of(self), of(other));
        let mut keys: Vec<&String> = there.keys().chain(here.keys()).collect();
        keys.sort();
        keys.dedup();
        let said = |value: Option<&serde_json::Value>| match value {
            None => "not set".to_owned(),
            // Hashes are told apart by their beginnings.
            Some(serde_json::Value::String(text)) => text.chars().take(12).collect(),
            Some(serde_json::Value::Object(shard)) => format!("{}/{}", shard["index"], shard["of"]),
            Some(other) => other.to_string(),
        };
        keys.into_iter()
            .filter(|key| there.get(*key) != here.get(*key))
            .map(|key| format!("{key} is {} there and {} here", said(there.get(key)), said(here.get(key))))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// How far a job has read its input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputPosition {
    /// Documents read, of all shards.
    pub documents: u64,
    /// Lines read, empty ones included.
    pub lines: u64,
    /// Bytes read.
    pub bytes: u64,
    /// sha256 (hex) of those bytes.
    pub sha256: String,
}

/// What stands in a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Documents.
    pub documents: u64,
    /// Tokens that the encoder read, special ones included.
    pub tokens: u64,
    /// Weights in the file.
    pub active: u64,
    /// Documents without any.
    pub zero_vectors: u64,
}

impl Counts {
    /// Sums.
    pub fn add(&mut self, other: &Self) {
        self.documents += other.documents;
        self.tokens += other.tokens;
        self.active += other.active;
        self.zero_vectors += other.zero_vectors;
    }

    /// Weights a document.
    pub fn mean_active(&self) -> f64 {
        self.active as f64 / self.documents.max(1) as f64
    }
}

/// `FILE.meta`: what made a finished file, and what is in it. It holds no times, so that equal files have equal ones.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileMeta {
    /// What made it.
    pub job: Job,
    /// What is in it.
    pub counts: Counts,
    /// The file's size.
    pub bytes: u64,
    /// sha256 (hex) of the file.
    pub sha256: String,
    /// The whole input.
    pub input: InputPosition,
}

impl FileMeta {
    /// Reads the meta of a file.
    ///
    /// # Errors
    /// If it is not there or not ours.
    pub fn load(file: &Path) -> Result<Self> {
        files::read_json(&beside(file, "meta"))
    }

    /// Writes it beside its file.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn save(&self, file: &Path) -> Result<()> {
        files::write_json(&beside(file, "meta"), self)
    }

    /// Whether the file is there with this meta's size.
    pub fn fits(&self, file: &Path) -> bool {
        std::fs::metadata(file).is_ok_and(|found| found.is_file() && found.len() == self.bytes)
    }
}

/// The file's name with an ending more: `FILE.part`, `FILE.journal`, `FILE.meta`.
pub fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(ending);
    PathBuf::from(name)
}

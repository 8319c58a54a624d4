//! `teachers`: models and files whose scores of queries and documents are learned from, and how they become one.

use std::path::{Path, PathBuf};

use nsparse_core::model_dir::Activation;
use nsparse_encoder::Pooling;
use nsparse_retrieval::Analyzer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LossSection, Teacher};
use crate::{Error, Result};

/// `teachers`: the ensemble that a `teacher: ensemble` of the losses asks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TeachersSection {
    /// Whose scores are put together; each is brought to [0, 1] over a query's candidates, then averaged.
    pub members: Vec<TeacherSection>,
    /// The average is multiplied by it.
    pub scale: f64,
    /// Where vectors and scores of models are kept, for later epochs and runs; without it `teachers` in the run's
    /// folder.
    pub cache: Option<PathBuf>,
}

impl Default for TeachersSection {
    fn default() -> Self {
        Self { members: Vec::new(), scale: 30.0, cache: None }
    }
}

/// One member of `teachers.members`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TeacherSection {
    /// A dense encoder: BERT with pooled hidden states.
    Dense(DenseTeacher),
    /// A sparse encoder: one that nsparse trained, or another masked language model.
    Sparse(SparseTeacher),
    /// A cross-encoder: BERT that reads query and document together.
    CrossEncoder(CrossTeacher),
    /// BM25 over all documents of the run.
    Bm25(Bm25Teacher),
    /// Scores made elsewhere.
    Scores(ScoresTeacher),
}

/// A member with `kind: dense`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DenseTeacher {
    /// A Hugging Face folder: `config.json`, `model.safetensors`, `tokenizer.json`.
    pub path: PathBuf,
    /// `mean` or `cls`; without it what the folder's sentence-transformers files say, else `mean`.
    #[serde(default)]
    pub pooling: Option<Pooling>,
    /// Whether vectors are scaled to length 1; without it what those files say, else true.
    #[serde(default)]
    pub normalize: Option<bool>,
    /// Put before each query: `"query: "`.
    #[serde(default)]
    pub query_prefix: String,
    /// Put before each document: `"passage: "`.
    #[serde(default)]
    pub document_prefix: String,
    /// Most tokens of a text that it reads; without it what those files say, else 512 or what the network has.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Its share in the average.
    #[serde(default = "one")]
    pub weight: f64,
}

/// How a sparse teacher reads queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TeacherQuery {
    /// Their distinct tokens with the folder's `idf.json`: a doc-only model.
    Idf,
    /// Through the same network as documents: a siamese model.
    Encoder,
}

/// A member with `kind: sparse`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SparseTeacher {
    /// A model directory of nsparse, or a Hugging Face folder of a BERT with masked-language-model head.
    pub path: PathBuf,
    /// How queries are read; without it `idf` where the folder has an `idf.json`, else `encoder`.
    #[serde(default)]
    pub query: Option<TeacherQuery>,
    /// How a pooled logit becomes a weight, in a folder without `nsparse.json`; without it `splade`.
    #[serde(default)]
    pub activation: Option<Activation>,
    /// Most tokens of a text that it reads; without it what `nsparse.json` says, else 512 or what the network has.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Its share in the average.
    #[serde(default = "one")]
    pub weight: f64,
}

/// A member with `kind: cross_encoder`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CrossTeacher {
    /// A Hugging Face folder of a `BertForSequenceClassification` with one label (the score) or two (their logits'
    /// difference, the second less the first, is the score).
    pub path: PathBuf,
    /// Most tokens of query and document together; without it 512 or what the network has.
    #[serde(default)]
    pub max_tokens: Option<usize>,
    /// Its share in the average.
    #[serde(default = "one")]
    pub weight: f64,
}

/// A member with `kind: bm25`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bm25Teacher {
    /// `english` (stemmed, without stop words) or `standard`.
    #[serde(default)]
    pub analyzer: Analyzer,
    /// Its share in the average.
    #[serde(default = "one")]
    pub weight: f64,
}

/// What a pair that a score file does not have counts as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MissingScore {
    /// The document is no candidate of the query's.
    #[default]
    Drop,
    /// The lowest score that the file has for the query: right for rankings, which hold the best documents only.
    Lowest,
}

/// A member with `kind: scores`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoresTeacher {
    /// Lines `{"query_id", "doc_id", "score"}`, or `query document score`, or a TREC run.
    pub file: PathBuf,
    /// `drop` or `lowest`: what a pair that the file does not have counts as.
    #[serde(default)]
    pub missing: MissingScore,
    /// Its share in the average.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

impl TeacherSection {
    /// Its share in the average.
    pub fn weight(&self) -> f64 {
        match self {
            Self::Dense(t) => t.weight,
            Self::Sparse(t) => t.weight,
            Self::CrossEncoder(t) => t.weight,
            Self::Bm25(t) => t.weight,
            Self::Scores(t) => t.weight,
        }
    }

    /// What it is called in messages: `dense minilm`.
    pub fn name(&self) -> String {
        let of = |kind: &str, path: &Path| format!("{kind} {}", path.file_name().unwrap_or(path.as_os_str()).display());
        match self {
            Self::Dense(t) => of("dense", &t.path),
            Self::Sparse(t) => of("sparse", &t.path),
            Self::CrossEncoder(t) => of("cross_encoder", &t.path),
            Self::Bm25(_) => "bm25".to_owned(),
            Self::Scores(t) => of("scores", &t.file),
        }
    }

    fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Dense(t) => t.max_tokens,
            Self::Sparse(t) => t.max_tokens,
            Self::CrossEncoder(t) => t.max_tokens,
            Self::Bm25(_) | Self::Scores(_) => None,
        }
    }
}

impl TeachersSection {
    /// Checks the members, and that the losses ask them if there are any.
    ///
    /// # Errors
    /// The first value that cannot be used, by its key.
    pub fn validate(&self, losses: &LossSection, is_trained: bool) -> Result<()> {
        self.validate_members()?;
        match (losses.asks_ensemble(), self.members.is_empty()) {
            (Some(key), true) => Err(Error::config_with_hint(
                format!("`train.losses.{key}` asks for the ensemble, but `teachers.members` is empty"),
                "name at least one teacher: teachers: {members: [{kind: dense, path: FOLDER}]}",
            )),
            (None, false) if is_trained => Err(Error::config_with_hint(
                "`teachers.members`: no loss asks them",
                "set train.losses.kl: {weight: 1, teacher: ensemble}, or take the section out",
            )),
            _ => Ok(()),
        }
    }

    /// The section `teachers` of a file: a recipe, or one that holds nothing else.
    ///
    /// # Errors
    /// If the file cannot be read, has no such section, or a value cannot be used.
    pub fn load(path: &Path) -> Result<Self> {
        let text = nsparse_core::files::read_text(path)?;
        let unusable = |message: String| nsparse_core::Error::file(path, message);
        let mut file: serde_json::Value = serde_saphyr::from_str(&text).map_err(|e| unusable(e.to_string()))?;
        let section = file.get_mut("teachers").map(serde_json::Value::take).unwrap_or_default();
        let section: Option<Self> =
            serde_json::from_value(section).map_err(|e| unusable(format!("`teachers`: {e}")))?;
        let section = section.filter(|s| !s.members.is_empty()).ok_or_else(|| {
            unusable("it names no teacher; write teachers: {members: [{kind: dense, path: FOLDER}]}".to_owned())
        })?;
        section.validate_members()?;
        Ok(section)
    }

    fn validate_members(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`teachers{key}`: {problem}")));
        if !(self.scale > 0.0 && self.scale.is_finite()) {
            return bad(".scale", "a number above 0");
        }
        for (number, member) in self.members.iter().enumerate() {
            if !(member.weight() > 0.0 && member.weight().is_finite()) {
                return bad(&format!(".members[{number}].weight"), "a number above 0; take the member out instead");
            }
            let least = if matches!(member, TeacherSection::CrossEncoder(_)) { 5 } else { 3 };
            if member.max_tokens().is_some_and(|n| n < least) {
                return bad(&format!(".members[{number}].max_tokens"), &format!("at least {least}"));
            }
        }
        Ok(())
    }
}

impl LossSection {
    /// The first key by which a term that counts asks the ensemble.
    pub fn asks_ensemble(&self) -> Option<&'static str> {
        let masks = self.infonce.false_negatives.is_some_and(|f| f.teacher == Teacher::Ensemble);
        [
            (self.kl.weight > 0.0 && self.kl.teacher == Teacher::Ensemble, "kl.teacher"),
            (self.margin_mse.weight > 0.0 && self.margin_mse.teacher == Teacher::Ensemble, "margin_mse.teacher"),
            (self.infonce.weight > 0.0 && masks, "infonce.false_negatives.teacher"),
        ]
        .into_iter()
        .find_map(|(asks, key)| asks.then_some(key))
    }
}

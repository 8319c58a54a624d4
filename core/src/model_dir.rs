//! The model directory: Hugging Face's layout plus `idf.json` and `nsparse.json`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::lineage::Lineage;
use crate::{DocumentTemplate, Error, IdfTable, QueryEncoder, Result, Segments, TextTokenizer, TokenId, files};

/// How a pooled logit `v` becomes a weight.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `ln(1 + relu(v))` (SPLADE).
    #[default]
    Splade,
    /// `ln(1 + ln(1 + relu(v)))` (arXiv 2504.14839).
    L0,
}

impl Activation {
    /// The weight of a pooled logit.
    pub fn apply(self, v: f32) -> f32 {
        let once = v.max(0.0).ln_1p();
        match self {
            Self::Splade => once,
            Self::L0 => once.ln_1p(),
        }
    }

    /// d weight / d pooled logit; 0 at and below 0, as PyTorch's relu.
    pub fn derivative(self, v: f32) -> f32 {
        if v <= 0.0 {
            return 0.0;
        }
        match self {
            Self::Splade => 1.0 / (1.0 + v),
            Self::L0 => 1.0 / ((1.0 + v) * (1.0 + v.ln_1p())),
        }
    }
}

/// What makes a query's vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuerySideKind {
    /// Tokenizer and `idf.json`: a doc-only model.
    #[default]
    Table,
    /// The document encoder: a siamese model, without `idf.json`.
    Encoder,
}

impl QuerySideKind {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
    fn is_table(&self) -> bool {
        *self == Self::Table
    }
}

/// `nsparse.json`: what the Hugging Face files do not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFacts {
    /// Version of this file's form.
    pub format: u32,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
    /// Most tokens of a document that are read, special tokens included.
    pub max_tokens: usize,
    /// How a longer document is read; `None`: it is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// Ids that are zeroed besides special tokens, `[unusedN]` and tokens with a dot. Ascending.
    #[serde(default)]
    pub dead_ids: Vec<TokenId>,
    /// The document template the model was trained with.
    pub template: DocumentTemplate,
    /// What makes a query's vector; not written for a doc-only model.
    #[serde(default, skip_serializing_if = "QuerySideKind::is_table")]
    pub query_side: QuerySideKind,
    /// sha256 of `model.safetensors`, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_sha256: Option<String>,
    /// The resolved recipe, as the trainer wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipe: Option<serde_json::Value>,
    /// What its training started from and read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// Version of nsparse that wrote it.
    pub nsparse_version: String,
}

impl ModelFacts {
    /// Facts of a new model.
    pub fn new(activation: Activation, max_tokens: usize, template: DocumentTemplate) -> Self {
        Self {
            format: 1,
            activation,
            max_tokens,
            segments: None,
            dead_ids: Vec::new(),
            template,
            query_side: QuerySideKind::Table,
            weights_sha256: None,
            recipe: None,
            lineage: None,
            nsparse_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// A model directory whose files were found; weights are the encoder's to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDir {
    folder: PathBuf,
}

impl ModelDir {
    /// Opens a folder.
    ///
    /// # Errors
    /// If it is no folder or misses `config.json`, `model.safetensors` or `tokenizer.json`.
    pub fn open(folder: &Path) -> Result<Self> {
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            if !folder.join(name).is_file() {
                return Err(Error::invalid_with_hint(
                    format!("`{}` is no model directory: it has no {name}", folder.display()),
                    "give a folder with config.json, model.safetensors and tokenizer.json",
                ));
            }
        }
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// `nsparse.json`.
    ///
    /// # Errors
    /// If it is missing: the folder is then an encoder that nsparse has not trained.
    pub fn facts(&self) -> Result<ModelFacts> {
        let path = self.file("nsparse.json");
        if !path.is_file() {
            return Err(Error::invalid_with_hint(
                format!("`{}` has no nsparse.json: it is not a model that nsparse trained", self.folder.display()),
                "train it first: `nsparse train CONFIG --set model.path=FOLDER`",
            ));
        }
        files::read_json(&path)
    }

    /// `tokenizer.json`.
    ///
    /// # Errors
    /// If it is broken.
    pub fn tokenizer(&self) -> Result<TextTokenizer> {
        TextTokenizer::load(&self.file("tokenizer.json"))
    }

    /// Tokenizer and `idf.json`: the query side.
    ///
    /// # Errors
    /// If a file is missing or broken, the two disagree, or the model is siamese.
    pub fn query_encoder(&self) -> Result<QueryEncoder> {
        if self.is_siamese()? {
            return Err(Error::invalid_with_hint(
                format!(
                    "The model `{}` is siamese: its queries are encoded by the network, so it has no query table",
                    self.folder.display()
                ),
                "train with `query.side: idf`, `trained_idf` or `table` for a doc-only model",
            ));
        }
        let tokenizer = self.tokenizer()?;
        let idf = IdfTable::load(&self.file("idf.json"), &tokenizer)?;
        QueryEncoder::new(tokenizer, idf)
    }

    /// Whether queries are encoded by the network, as documents are.
    ///
    /// # Errors
    /// If `nsparse.json` is broken.
    pub fn is_siamese(&self) -> Result<bool> {
        Ok(self.file("nsparse.json").is_file() && self.facts()?.query_side == QuerySideKind::Encoder)
    }

    /// Ids that never carry weight in a document: the tokenizer's weightless ones and `dead_ids`. Ascending.
    ///
    /// # Errors
    /// If a file is missing or broken.
    pub fn zeroed_ids(&self) -> Result<Vec<TokenId>> {
        let mut ids = self.tokenizer()?.weightless();
        ids.extend(self.facts()?.dead_ids);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

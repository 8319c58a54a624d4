//! `run`, `model` and `data`: what is trained, from what, and where.

use std::path::PathBuf;

use nsparse_core::model_dir::Activation;
use nsparse_core::{DocumentTemplate, IdfFormula, Segments};
use nsparse_encoder::Precision;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Mixing, SetSection};

/// `run`: where the run lives and what it draws from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunSection {
    /// The run's folder; made if it is not there.
    pub dir: PathBuf,
    /// Everything random comes from it.
    pub seed: u64,
    /// `cpu`, `cpu-reference`, `cuda` or `cuda:N`.
    pub device: String,
    /// Matrix products in `f32` or `bf16`; without it bf16 on `cuda`, else f32. Parameters and gradients are f32.
    pub precision: Option<Precision>,
    /// Every so many steps a line goes to `metrics.jsonl`; at least 1.
    pub log_every: usize,
    /// Whether TensorBoard's event files are written beside it.
    pub tensorboard: bool,
}

impl Default for RunSection {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("runs/default"),
            seed: 42,
            device: "cpu".to_owned(),
            precision: None,
            log_every: 1,
            tensorboard: true,
        }
    }
}

/// `model`: a Hugging Face folder, or the shape of a new model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A folder with `config.json`, `model.safetensors`, `tokenizer.json`.
    pub path: Option<PathBuf>,
    /// Instead of `path`: the shape of a model with random weights.
    pub random: Option<RandomModel>,
    /// `tokenizer.json`; needed with `random`, else the one in `path` is used.
    pub tokenizer: Option<PathBuf>,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
}

/// `model.random`: the shape of a new BERT; its vocabulary is the tokenizer's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RandomModel {
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Most positions of a text.
    pub max_position_embeddings: usize,
    /// Standard deviation of new weights.
    pub initializer_range: f64,
}

impl Default for RandomModel {
    fn default() -> Self {
        Self {
            hidden_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            intermediate_size: 512,
            max_position_embeddings: 512,
            initializer_range: 0.02,
        }
    }
}

/// `data`: what is learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// A data set in BEIR's three-file form.
    pub dir: Option<PathBuf>,
    /// The split whose judgments are trained on.
    pub split: String,
    /// Training rows (jsonl), as `nsparse mine` writes them: the short form of one set. Without rows and sets the
    /// pairs are the split's judgments.
    pub rows: Option<PathBuf>,
    /// What is trained on, where it is more than one file or has another form.
    pub sets: Vec<SetSection>,
    /// How sets share the batches: `weighted` or `round_robin`.
    pub mixing: Mixing,
    /// Most tokens of a window, special tokens included; at least 3. A longer document is cut there, or read in
    /// several windows with `segments`.
    pub max_tokens: usize,
    /// How a document longer than the window is read: `{max: 4, overlap: 0, min_last: 50}`.
    pub segments: Option<Segments>,
    /// How a document's fields become the text that is encoded.
    pub template: DocumentTemplate,
    /// Where query weights come from.
    pub idf: IdfSection,
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            dir: None,
            split: "train".to_owned(),
            rows: None,
            sets: Vec::new(),
            mixing: Mixing::Weighted,
            max_tokens: 256,
            segments: None,
            template: DocumentTemplate::default(),
            idf: IdfSection::default(),
        }
    }
}

/// `data.idf`: a table at hand, or the formula by which one is made from the corpus.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct IdfSection {
    /// `bm25` or `smooth`; not used where `file` is given.
    pub formula: IdfFormula,
    /// An `idf.json` made before.
    pub file: Option<PathBuf>,
}

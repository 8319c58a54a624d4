//! A BERT with masked-language-model head: its config and parameters, from and to Hugging Face folders.

use std::path::Path;

use crate::{BertConfig, Parameters, Result};

/// Config and parameters of one model. Parameter names are Hugging Face's for `BertForMaskedLM`; the decoder
/// is tied, so `cls.predictions.decoder.weight` is not stored: it is `bert.embeddings.word_embeddings.weight`.
#[derive(Debug, Clone, PartialEq)]
pub struct BertMlm {
    /// The shape.
    pub config: BertConfig,
    /// Encoder and head.
    pub parameters: Parameters,
    /// Whether the head was not in the files and is freshly made: it needs calibration and the warm start.
    pub head_is_new: bool,
}

impl BertMlm {
    /// Loads `config.json` and `model.safetensors` of a folder.
    ///
    /// # Errors
    /// If a file is missing or broken, a tensor is missing or has another shape, or it is not a BERT.
    pub fn load(_folder: &Path, _seed: u64) -> Result<Self> {
        todo!("helper: encoder")
    }

    /// A new model with random weights (normal, `initializer_range`; biases 0, norms 1).
    pub fn random(_config: BertConfig, _seed: u64) -> Self {
        todo!("helper: encoder")
    }

    /// Writes `config.json` and `model.safetensors` into a folder.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, _folder: &Path) -> Result<()> {
        todo!("helper: encoder")
    }
}

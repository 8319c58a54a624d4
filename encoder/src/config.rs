//! `config.json` of a BERT-family masked language model.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The shape of a BERT encoder, by Hugging Face's names. Keys that do not change the network are ignored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BertConfig {
    /// Must be `bert`.
    pub model_type: String,
    /// Vocabulary entries (V).
    pub vocab_size: usize,
    /// Width of a hidden state (H).
    pub hidden_size: usize,
    /// Encoder layers.
    pub num_hidden_layers: usize,
    /// Attention heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Must be `gelu` (the exact one, by erf).
    pub hidden_act: String,
    /// Most positions of a text.
    pub max_position_embeddings: usize,
    /// Token types; documents are of type 0, the second text of a pair is of type 1.
    pub type_vocab_size: usize,
    /// Added to the variance in every `LayerNorm`.
    pub layer_norm_eps: f64,
    /// Dropout after embeddings, attention output and feed-forward output.
    #[serde(default = "default_dropout")]
    pub hidden_dropout_prob: f32,
    /// Dropout on attention probabilities.
    #[serde(default = "default_dropout")]
    pub attention_probs_dropout_prob: f32,
    /// Standard deviation of new weights.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// The padding token.
    #[serde(default)]
    pub pad_token_id: u32,
    /// Written for other tools.
    #[serde(default = "default_architectures")]
    pub architectures: Vec<String>,
}

fn default_dropout() -> f32 {
    0.1
}

fn default_initializer_range() -> f64 {
    0.02
}

fn default_architectures() -> Vec<String> {
    vec!["BertForMaskedLM".to_owned()]
}

impl BertConfig {
    /// Reads and checks `config.json`.
    ///
    /// # Errors
    /// If it is missing or broken, or of an architecture that this encoder does not compute.
    pub fn load(path: &Path) -> Result<Self> {
        let value: serde_json::Value = nsparse_core::files::read_json(path)?;
        let kind = value.get("model_type").and_then(|v| v.as_str()).unwrap_or("(none)");
        if kind != "bert" {
            return Err(nsparse_core::Error::invalid_with_hint(
                format!("`{}` is of the architecture `{kind}`; nsparse computes `bert`", path.display()),
                "give a BERT encoder in Hugging Face form (model_type bert: bert-base, MiniLM, co-condenser, …)",
            )
            .into());
        }
        if let Some(positions) = value.get("position_embedding_type").and_then(|v| v.as_str())
            && positions != "absolute"
        {
            return Err(nsparse_core::Error::file(
                path,
                format!("position_embedding_type is `{positions}`; only `absolute` is computed"),
            )
            .into());
        }
        if value.get("is_decoder").and_then(serde_json::Value::as_bool) == Some(true) {
            return Err(nsparse_core::Error::file(path, "is_decoder is true; only encoders are computed").into());
        }
        let config: Self = serde_json::from_value(value).map_err(|e| nsparse_core::Error::file(path, e.to_string()))?;
        config.validate().map_err(|e| nsparse_core::Error::file(path, e.to_string()))?;
        Ok(config)
    }

    /// Writes `config.json` as transformers reads it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut value = serde_json::to_value(self).map_err(|e| nsparse_core::Error::file(path, e.to_string()))?;
        value["architectures"] = serde_json::json!(default_architectures());
        value["position_embedding_type"] = serde_json::json!("absolute");
        value["tie_word_embeddings"] = serde_json::json!(true);
        nsparse_core::files::write_json(path, &value)?;
        Ok(())
    }

    /// Checks that the shape can be computed.
    ///
    /// # Errors
    /// If sizes do not fit each other or the activation is another one.
    pub fn validate(&self) -> Result<()> {
        if self.hidden_act != "gelu" {
            return Err(Error::Model(format!("hidden_act is `{}`; only `gelu` is computed", self.hidden_act)));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return Err(Error::Model(format!(
                "hidden_size {} cannot be split over {} attention heads",
                self.hidden_size, self.num_attention_heads
            )));
        }
        if self.vocab_size == 0 || self.max_position_embeddings < 3 || self.max_position_embeddings > 1 << 15 {
            return Err(Error::Model("vocab_size or max_position_embeddings is out of range".to_owned()));
        }
        Ok(())
    }

    /// Width of one attention head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

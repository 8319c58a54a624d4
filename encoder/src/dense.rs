//! Dense sentence encoders: the last hidden states of a text, pooled into one vector.

use std::collections::HashMap;
use std::path::Path;

use nsparse_core::{Cancel, Scorer, TextTokenizer};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::document::{DEFAULT_BATCH_TOKENS, batches};
use crate::{Backend, BertMlm, Device, Error, Parameters, Precision, Result, TokenBatch, create_with};

/// Most tokens of a text that are read where nothing says otherwise.
const DEFAULT_TOKENS: usize = 512;

/// How a text's hidden states become one vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean over all tokens, special ones included.
    #[default]
    Mean,
    /// The state of `[CLS]`.
    Cls,
}

/// How a dense encoder makes vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DenseSettings {
    /// How hidden states are pooled.
    pub pooling: Pooling,
    /// Whether vectors are scaled to length 1.
    pub normalize: bool,
    /// Most tokens of a text that are read, special tokens included; at least 3.
    pub max_tokens: usize,
}

/// A module of a sentence-transformers model.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl DenseSettings {
    /// What a folder's sentence-transformers files say (`modules.json`, the pooling's `config.json`,
    /// `sentence_bert_config.json`); where they say nothing: mean pooling, length 1, 512 tokens or what the network has.
    ///
    /// # Errors
    /// If a file is broken, or the model has parts that are not computed here: another pooling, a dense layer.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let positions = crate::BertConfig::load(&folder.join("config.json"))?.max_position_embeddings;
        let mut out = Self { pooling: Pooling::Mean, normalize: true, max_tokens: DEFAULT_TOKENS.min(positions) };
        let limits = folder.join("sentence_bert_config.json");
        if limits.is_file() {
            let limits: serde_json::Value = nsparse_core::files::read_json(&limits)?;
            if let Some(most) = limits["max_seq_length"].as_u64() {
                out.max_tokens = (most as usize).min(positions);
            }
        }
        let list = folder.join("modules.json");
        if !list.is_file() {
            return Ok(out);
        }
        out.normalize = false;
        let modules: Vec<Module> = nsparse_core::files::read_json(&list)?;
        for module in modules {
            match module.kind.rsplit('.').next() {
                Some("Transformer") => {}
                Some("Normalize") => out.normalize = true,
                Some("Pooling") => out.pooling = pooling_of(&folder.join(&module.path).join("config.json"))?,
                _ => {
                    let problem = format!("it has the module `{}`, which nsparse does not compute", module.kind);
                    return Err(nsparse_core::Error::file(&list, problem).into());
                }
            }
        }
        Ok(out)
    }
}

/// The pooling of sentence-transformers' `1_Pooling/config.json`.
fn pooling_of(path: &Path) -> Result<Pooling> {
    let config: serde_json::Value = nsparse_core::files::read_json(path)?;
    // Newer files name the mode, older ones have a flag for each.
    let mut modes: Vec<String> = config["pooling_mode"].as_str().map(str::to_owned).into_iter().collect();
    if let Some(map) = config.as_object().filter(|_| modes.is_empty()) {
        let on = map.iter().filter(|(key, value)| key.starts_with("pooling_mode_") && value.as_bool() == Some(true));
        modes.extend(on.map(|(key, _)| key["pooling_mode_".len()..].to_owned()));
    }
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean" | "mean_tokens"] => Ok(Pooling::Mean),
        ["cls" | "cls_token"] => Ok(Pooling::Cls),
        other => {
            let problem = format!("its pooling is `{}`; nsparse computes the mean or [CLS]", other.join("` + `"));
            Err(nsparse_core::Error::file(path, problem).into())
        }
    }
}

/// A BERT whose pooled hidden states are a text's vector.
pub struct DenseEncoder {
    parameters: Parameters,
    backend: Box<dyn Backend>,
    hidden: usize,
    tokenizer: TextTokenizer,
    settings: DenseSettings,
}

impl DenseEncoder {
    /// Loads a Hugging Face folder: `config.json`, `model.safetensors`, `tokenizer.json`. Heads are left out.
    ///
    /// # Errors
    /// If a file is missing or broken, the files do not belong together, or the device cannot be used.
    pub fn load(folder: &Path, device: Device, settings: DenseSettings) -> Result<Self> {
        let model = BertMlm::load(folder, 0)?;
        let tokenizer = TextTokenizer::load(&folder.join("tokenizer.json"))?;
        check_window(&model, &tokenizer, settings.max_tokens, 3)?;
        let backend = create_with(&model.config, device, Precision::F32)?;
        let hidden = model.config.hidden_size;
        Ok(Self { parameters: model.parameters, backend, hidden, tokenizer, settings })
    }

    /// Numbers of a vector.
    pub fn dimensions(&self) -> usize {
        self.hidden
    }

    /// One vector a text, in the order given. `done` hears how many texts more are done; `cancel` is read between
    /// batches.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, the network gives a number that is not finite, the device fails, or the
    /// user asked to stop.
    pub fn encode<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        cancel: &Cancel,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<Vec<f32>>> {
        let (tokenizer, most) = (&self.tokenizer, self.settings.max_tokens);
        let windows: Vec<Vec<u32>> =
            texts.par_iter().map(|text| Ok(tokenizer.window(text.as_ref(), most)?.0)).collect::<Result<_>>()?;
        let mut out = vec![Vec::new(); texts.len()];
        for places in batches(&windows, DEFAULT_BATCH_TOKENS, usize::MAX) {
            cancel.check()?;
            let own: Vec<&[u32]> = places.iter().map(|&place| windows[place].as_slice()).collect();
            let batch = TokenBatch::new(&own);
            let states = self.backend.last_hidden_states(&self.parameters, &batch)?;
            for (document, &place) in places.iter().enumerate() {
                let rows = &states[batch.offsets[document] * self.hidden..batch.offsets[document + 1] * self.hidden];
                out[place] = pooled(rows, self.hidden, self.settings);
                check_finite(&out[place], texts[place].as_ref())?;
            }
            done(places.len());
        }
        Ok(out)
    }
}

/// The vector of hidden states `[L, H]`; sums in double.
fn pooled(states: &[f32], hidden: usize, settings: DenseSettings) -> Vec<f32> {
    let mut sum = vec![0.0f64; hidden];
    let rows = match settings.pooling {
        Pooling::Cls => &states[..hidden],
        Pooling::Mean => states,
    };
    for row in rows.chunks_exact(hidden) {
        for (s, &x) in sum.iter_mut().zip(row) {
            *s += f64::from(x);
        }
    }
    let divisor = if settings.normalize {
        sum.iter().map(|s| s * s).sum::<f64>().sqrt().max(1e-12)
    } else {
        (rows.len() / hidden) as f64
    };
    sum.into_iter().map(|s| (s / divisor) as f32).collect()
}

/// Tokenizer, window and network belong together.
pub(crate) fn check_window(model: &BertMlm, tokenizer: &TextTokenizer, tokens: usize, least: usize) -> Result<()> {
    let (named, rows) = (tokenizer.vocabulary().len(), model.config.vocab_size);
    if named > rows {
        return Err(Error::Model(format!(
            "the tokenizer has {named} tokens, but the embedding table only {rows}; they are of different models"
        )));
    }
    let positions = model.config.max_position_embeddings;
    if tokens < least || tokens > positions {
        return Err(Error::Model(format!(
            "a window of {tokens} tokens does not fit: this model takes {least} to {positions}"
        )));
    }
    Ok(())
}

/// Broken weights show here and not as scores.
pub(crate) fn check_finite(values: &[f32], text: &str) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        None => Ok(()),
        Some(value) => {
            let start: String = text.chars().take(60).collect();
            Err(Error::Model(format!("it gives {value} for the text `{start}…`; its weights are broken")))
        }
    }
}

/// Σ a·b, in double.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
}

impl Scorer for DenseEncoder {
    /// The dot product of the two vectors; each distinct text is encoded once.
    fn score(&self, pairs: &[(&str, &str)]) -> nsparse_core::Result<Vec<f32>> {
        let mut places: HashMap<&str, usize> = HashMap::new();
        let mut texts = Vec::new();
        for text in pairs.iter().flat_map(|&(query, document)| [query, document]) {
            places.entry(text).or_insert_with(|| {
                texts.push(text);
                texts.len() - 1
            });
        }
        let vectors = self.encode(&texts, &Cancel::default(), |_| ()).map_err(Error::into_core)?;
        Ok(pairs.iter().map(|(q, d)| dot(&vectors[places[q]], &vectors[places[d]])).collect())
    }
}

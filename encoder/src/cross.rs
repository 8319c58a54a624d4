//! Cross-encoders: a query and a document read together, one score for the pair
//! (Hugging Face's `BertForSequenceClassification`).

use std::path::Path;

use nsparse_core::{Cancel, Scorer, TextTokenizer};
use rayon::prelude::*;

use crate::dense::{check_finite, check_window};
use crate::document::{DEFAULT_BATCH_TOKENS, batches};
use crate::{Backend, BertMlm, Device, Error, Parameters, Precision, Result, TokenBatch, create_with};

/// A dense layer y = x Wᵀ + b, `[out, in]`.
struct Layer {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Layer {
    /// Sums in double.
    fn apply(&self, x: &[f32]) -> Vec<f32> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
        self.weight.chunks_exact(x.len()).zip(&self.bias).map(|(row, b)| (dot(row) + f64::from(*b)) as f32).collect()
    }
}

/// A BERT that reads `[CLS] query [SEP] document [SEP]` and classifies the pair.
pub struct CrossEncoder {
    parameters: Parameters,
    backend: Box<dyn Backend>,
    hidden: usize,
    tokenizer: TextTokenizer,
    pooler: Layer,
    classifier: Layer,
    max_tokens: usize,
}

impl CrossEncoder {
    /// Loads a Hugging Face folder with one label (a score) or two (not relevant, relevant). `max_tokens`: of query and
    /// document together, special tokens included; without it 512, or what the network has.
    ///
    /// # Errors
    /// If a file is missing or broken, there are more labels, or the device cannot be used.
    pub fn load(folder: &Path, device: Device, max_tokens: Option<usize>) -> Result<Self> {
        let model = BertMlm::load(folder, 0)?;
        let tokenizer = TextTokenizer::load(&folder.join("tokenizer.json"))?;
        let max_tokens = max_tokens.unwrap_or(model.config.max_position_embeddings.min(512));
        check_window(&model, &tokenizer, max_tokens, 5)?;
        let path = folder.join("model.safetensors");
        let unusable = |message: String| Error::from(nsparse_core::Error::file(&path, message));
        let mut tensors = Parameters::read_tensors(&path)?;
        let hidden = model.config.hidden_size;
        let mut layer = |name: &str, most: usize| -> Result<Layer> {
            let mut take = |part: &str| {
                let name = format!("{name}.{part}");
                tensors.remove(&name).ok_or_else(|| {
                    unusable(format!("tensor `{name}` is missing; a cross-encoder is a BertForSequenceClassification"))
                })
            };
            let ((shape, weight), (_, bias)) = (take("weight")?, take("bias")?);
            if shape.len() != 2 || shape[1] != hidden || shape[0] > most || shape[0] != bias.len() {
                return Err(unusable(format!(
                    "tensor `{name}.weight` has shape {shape:?}; expected at most {most} rows of {hidden}"
                )));
            }
            Ok(Layer { weight, bias })
        };
        let (pooler, classifier) = (layer("bert.pooler.dense", hidden)?, layer("classifier", 2)?);
        let backend = create_with(&model.config, device, Precision::F32)?;
        Ok(Self { parameters: model.parameters, backend, hidden, tokenizer, pooler, classifier, max_tokens })
    }

    /// One score a pair (query, document), in the order given: the logit of the one label, or that of the second less
    /// that of the first. `done` hears how many pairs more are done; `cancel` is read between batches.
    ///
    /// # Errors
    /// If the tokenizer refuses a text, the network gives a number that is not finite, the device fails, or the
    /// user asked to stop.
    pub fn score_pairs(
        &self,
        pairs: &[(&str, &str)],
        cancel: &Cancel,
        mut done: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let (tokenizer, most) = (&self.tokenizer, self.max_tokens);
        let (windows, types): (Vec<Vec<u32>>, Vec<Vec<u8>>) = pairs
            .par_iter()
            .map(|(query, document)| Ok(tokenizer.pair_window(query, document, most)?))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip();
        let mut out = vec![0.0; pairs.len()];
        for places in batches(&windows, DEFAULT_BATCH_TOKENS, usize::MAX) {
            cancel.check()?;
            let own: Vec<(&[u32], &[u8])> = places.iter().map(|&p| (&windows[p][..], &types[p][..])).collect();
            let batch = TokenBatch::of_pairs(&own);
            let states = self.backend.last_hidden_states(&self.parameters, &batch)?;
            for (pair, &place) in places.iter().enumerate() {
                let first = batch.offsets[pair] * self.hidden;
                out[place] = self.classify(&states[first..first + self.hidden]);
                check_finite(&out[place..=place], pairs[place].0)?;
            }
            done(places.len());
        }
        Ok(out)
    }

    /// The score of `[CLS]`'s last hidden state.
    fn classify(&self, state: &[f32]) -> f32 {
        let pooled: Vec<f32> = self.pooler.apply(state).into_iter().map(f32::tanh).collect();
        let logits = self.classifier.apply(&pooled);
        if let [negative, positive] = logits[..] { positive - negative } else { logits[0] }
    }
}

impl Scorer for CrossEncoder {
    fn score(&self, pairs: &[(&str, &str)]) -> nsparse_core::Result<Vec<f32>> {
        self.score_pairs(pairs, &Cancel::default(), |_| ()).map_err(Error::into_core)
    }
}

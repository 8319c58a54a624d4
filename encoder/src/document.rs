//! The document encoder: texts to sparse vectors, through tokenizer, network, activation and zeroing.

use std::sync::Arc;

use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::segments::{Windows, maximum};
use nsparse_core::{Cancel, DocumentEncoder, NoProgress, Progress, Segments, SparseVector, TextTokenizer, TokenId};
use rayon::prelude::*;

use crate::{Backend, BertMlm, Device, Error, Parameters, Precision, Result, TokenBatch, create_with};

/// Tokens in one batch unless said otherwise: large products, small memory.
pub const DEFAULT_BATCH_TOKENS: usize = 4096;

/// Most pooled logits in one batch, over all its documents: 64 Mi entries are 384 MiB with their positions.
const MAX_POOLED: usize = 64 << 20;

/// How texts become vectors besides the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodeSettings {
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
    /// Most tokens of a window, special tokens included; at least 3.
    pub max_tokens: usize,
    /// How a longer text is read; `None`: it is cut.
    pub segments: Option<Segments>,
    /// Ids that never carry weight ([`ModelDir::zeroed_ids`]), in any order.
    pub zeroed: Vec<TokenId>,
    /// Most tokens in one batch; a longer text is a batch of its own.
    pub batch_tokens: usize,
}

impl EncodeSettings {
    /// Settings with [`DEFAULT_BATCH_TOKENS`].
    pub fn new(activation: Activation, max_tokens: usize, zeroed: Vec<TokenId>) -> Self {
        Self { activation, max_tokens, segments: None, zeroed, batch_tokens: DEFAULT_BATCH_TOKENS }
    }
}

/// Vectors, and what they were made from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// One vector a text, in the order given.
    pub vectors: Vec<SparseVector>,
    /// Tokens of all texts that the network read, special ones included.
    pub tokens: u64,
}

/// One vector a text, in the order given: with [`EncodeSettings::segments`] the maximum over its windows. A batch gives the same vectors as its single texts. Progress counts
/// texts; `cancel` is read between batches.
///
/// # Errors
/// If the tokenizer refuses a text, the network gives a number that is not finite, the device fails, or the
/// user asked to stop.
pub fn encode_with<T: AsRef<str> + Sync>(
    parameters: &Parameters,
    backend: &dyn Backend,
    tokenizer: &TextTokenizer,
    settings: &EncodeSettings,
    texts: &[T],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<SparseVector>> {
    Ok(encode_counted(parameters, backend, tokenizer, settings, texts, progress, cancel)?.vectors)
}

/// As [`encode_with`], with the number of tokens.
///
/// # Errors
/// As [`encode_with`].
pub fn encode_counted<T: AsRef<str> + Sync>(
    parameters: &Parameters,
    backend: &dyn Backend,
    tokenizer: &TextTokenizer,
    settings: &EncodeSettings,
    texts: &[T],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Encoded> {
    let (logits, tokens) = window_logits(parameters, backend, tokenizer, settings, texts, progress, cancel)?;
    // The maximum over all positions of all windows, then the activation.
    let vectors = logits.into_par_iter().map(|windows| activated(&maximum(&windows), settings.activation)).collect();
    Ok(Encoded { vectors, tokens })
}

/// As [`encode_with`], with one vector for each window of a text; their maximum is the text's vector.
///
/// # Errors
/// As [`encode_with`].
pub fn encode_segments_with<T: AsRef<str> + Sync>(
    parameters: &Parameters,
    backend: &dyn Backend,
    tokenizer: &TextTokenizer,
    settings: &EncodeSettings,
    texts: &[T],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Vec<Vec<SparseVector>>> {
    let (logits, _) = window_logits(parameters, backend, tokenizer, settings, texts, progress, cancel)?;
    let each = |windows: Vec<SparseVector>| windows.iter().map(|w| activated(w, settings.activation)).collect();
    Ok(logits.into_par_iter().map(each).collect())
}

/// Of each text's windows the pooled logits above zero, and the tokens of all.
fn window_logits<T: AsRef<str> + Sync>(
    parameters: &Parameters,
    backend: &dyn Backend,
    tokenizer: &TextTokenizer,
    settings: &EncodeSettings,
    texts: &[T],
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<(Vec<Vec<SparseVector>>, u64)> {
    let of_text = |text: &T| Ok(tokenizer.windows(text.as_ref(), settings.max_tokens, settings.segments.as_ref())?.0);
    let windows = Windows::new(texts.par_iter().map(of_text).collect::<Result<_>>()?);
    let mut logits = vec![SparseVector::default(); windows.windows.len()];
    let mut waiting: Vec<usize> = windows.first.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let task = progress.start("Encoding", texts.len() as u64);
    let max_windows = MAX_POOLED / tokenizer.vocabulary().len().max(1);
    for places in batches(&windows.windows, settings.batch_tokens, max_windows) {
        cancel.check()?;
        let batch: Vec<&[u32]> = places.iter().map(|&place| windows.windows[place].as_slice()).collect();
        let forward = backend.forward_positive(parameters, &TokenBatch::new(&batch), None, false)?;
        let vocabulary = forward.pooled.len() / places.len();
        let silent = silent_entries(vocabulary, tokenizer, settings);
        let rows: Vec<SparseVector> = forward
            .pooled
            .par_chunks_exact(vocabulary)
            .zip(&places)
            .map(|(row, &place)| {
                positive(row, &silent)
                    .map_err(|entry| not_finite(row[entry], entry, texts[windows.texts[place]].as_ref()))
            })
            .collect::<Result<_>>()?;
        let mut done = 0;
        for (row, &place) in rows.into_iter().zip(&places) {
            logits[place] = row;
            let left = &mut waiting[windows.texts[place]];
            *left -= 1;
            done += u64::from(*left == 0);
        }
        task.advance(done);
    }
    Ok((windows.by_text(logits), windows.tokens()))
}

/// Places of windows, batch after batch: the longest first, so that those of like length stand together. A batch of
/// very short ones ends at `max_windows`: each has a row of the vocabulary's size.
pub(crate) fn batches(windows: &[Vec<u32>], batch_tokens: usize, max_windows: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..windows.len()).collect();
    order.sort_by_key(|&place| std::cmp::Reverse(windows[place].len()));
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for place in order {
        let len = windows[place].len();
        match out.last_mut() {
            Some(batch) if tokens + len <= batch_tokens && batch.len() < max_windows => {
                batch.push(place);
                tokens += len;
            }
            _ => {
                out.push(vec![place]);
                tokens = len;
            }
        }
    }
    out
}

/// Which entries never carry weight: the zeroed ones, and rows of the embedding table that no token names
/// (models pad their table to a round number).
fn silent_entries(vocabulary: usize, tokenizer: &TextTokenizer, settings: &EncodeSettings) -> Vec<bool> {
    let mut silent = vec![false; vocabulary];
    if let Some(unnamed) = silent.get_mut(tokenizer.vocabulary().len()..) {
        unnamed.fill(true);
    }
    for &id in &settings.zeroed {
        if let Some(entry) = silent.get_mut(id as usize) {
            *entry = true;
        }
    }
    silent
}

/// The logits of one row above zero, without the silent entries; or the first entry that is not finite.
fn positive(row: &[f32], silent: &[bool]) -> std::result::Result<SparseVector, usize> {
    let mut out = SparseVector::default();
    for (entry, (&logit, &is_silent)) in row.iter().zip(silent).enumerate() {
        if !logit.is_finite() {
            return Err(entry);
        }
        if logit > 0.0 && !is_silent {
            out.ids.push(entry as TokenId);
            out.weights.push(logit);
        }
    }
    Ok(out)
}

/// The vector of logits above zero.
fn activated(logits: &SparseVector, activation: Activation) -> SparseVector {
    let mut out = SparseVector::default();
    for (id, logit) in logits.iter() {
        let weight = activation.apply(logit);
        if weight > 0.0 {
            out.ids.push(id);
            out.weights.push(weight);
        }
    }
    out
}

fn not_finite(logit: f32, entry: usize, text: &str) -> Error {
    let start: String = text.chars().take(60).collect();
    Error::Model(format!(
        "the logit of vocabulary entry {entry} is {logit} for the text `{start}…`; the weights are broken"
    ))
}

/// A model with its tokenizer and backend.
pub struct SparseEncoder {
    parameters: Arc<Parameters>,
    backend: Box<dyn Backend>,
    tokenizer: TextTokenizer,
    settings: EncodeSettings,
}

impl SparseEncoder {
    /// Loads a model directory that nsparse trained.
    ///
    /// # Errors
    /// If a file is missing or broken, the files do not belong together, or the device cannot be used.
    pub fn load(folder: &std::path::Path, device: Device) -> Result<Self> {
        let directory = ModelDir::open(folder)?;
        let facts = directory.facts()?;
        let segments = facts.segments;
        let settings = EncodeSettings {
            segments,
            ..EncodeSettings::new(facts.activation, facts.max_tokens, directory.zeroed_ids()?)
        };
        let tokenizer = directory.tokenizer()?;
        let model = BertMlm::load(folder, 0)?;
        if model.head_is_new {
            return Err(nsparse_core::Error::file(
                &directory.file("model.safetensors"),
                "it has no masked-language-model head (`cls.predictions.…`), so it cannot weigh the vocabulary",
            )
            .into());
        }
        Self::new(model, device, tokenizer, settings)
    }

    /// From a model in memory.
    ///
    /// # Errors
    /// If tokenizer, window and model do not belong together, or the device cannot be used.
    pub fn new(model: BertMlm, device: Device, tokenizer: TextTokenizer, settings: EncodeSettings) -> Result<Self> {
        let (named, rows) = (tokenizer.vocabulary().len(), model.config.vocab_size);
        if named > rows {
            return Err(Error::Model(format!(
                "the tokenizer has {named} tokens, but the embedding table only {rows}; they are of different models"
            )));
        }
        let positions = model.config.max_position_embeddings;
        if settings.max_tokens < 3 || settings.max_tokens > positions {
            return Err(Error::Model(format!(
                "a window of {} tokens does not fit: this model takes 3 to {positions}",
                settings.max_tokens
            )));
        }
        settings.segments.map_or(Ok(()), |segments| segments.validate(settings.max_tokens))?;
        // Vectors are the same wherever they are made: bf16 is for training.
        let backend = create_with(&model.config, device, Precision::F32)?;
        Ok(Self::from_parts(Arc::new(model.parameters), backend, tokenizer, settings))
    }

    /// From parts that were checked already.
    pub fn from_parts(
        parameters: Arc<Parameters>,
        backend: Box<dyn Backend>,
        tokenizer: TextTokenizer,
        settings: EncodeSettings,
    ) -> Self {
        Self { parameters, backend, tokenizer, settings }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The settings.
    pub fn settings(&self) -> &EncodeSettings {
        &self.settings
    }

    /// In how many windows a text is read.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn segments_of(&self, text: &str) -> Result<usize> {
        let settings = &self.settings;
        Ok(self.tokenizer.windows(text, settings.max_tokens, settings.segments.as_ref())?.0.len())
    }

    /// The same with another number of tokens in a batch.
    #[must_use]
    pub fn with_batch_tokens(mut self, batch_tokens: usize) -> Self {
        self.settings.batch_tokens = batch_tokens;
        self
    }

    /// As [`SparseEncoder::encode_reporting`], with the number of tokens.
    ///
    /// # Errors
    /// As [`encode_with`].
    pub fn encode_counted<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Encoded> {
        encode_counted(&self.parameters, &*self.backend, &self.tokenizer, &self.settings, texts, progress, cancel)
    }

    /// [`DocumentEncoder::encode`] with progress, and stopped when asked.
    ///
    /// # Errors
    /// As [`encode_with`].
    pub fn encode_reporting<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<SparseVector>> {
        encode_with(&self.parameters, &*self.backend, &self.tokenizer, &self.settings, texts, progress, cancel)
    }

    /// [`DocumentEncoder::encode_segments`] with progress, and stopped when asked.
    ///
    /// # Errors
    /// As [`encode_with`].
    pub fn encode_segments_reporting<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Vec<Vec<SparseVector>>> {
        encode_segments_with(&self.parameters, &*self.backend, &self.tokenizer, &self.settings, texts, progress, cancel)
    }
}

impl DocumentEncoder for SparseEncoder {
    fn encode(&self, texts: &[&str]) -> nsparse_core::Result<Vec<SparseVector>> {
        self.encode_reporting(texts, &NoProgress, &Cancel::default()).map_err(Error::into_core)
    }

    fn encode_segments(&self, texts: &[&str]) -> nsparse_core::Result<Vec<Vec<SparseVector>>> {
        self.encode_segments_reporting(texts, &NoProgress, &Cancel::default()).map_err(Error::into_core)
    }

    fn vocabulary(&self) -> &[String] {
        self.tokenizer.vocabulary()
    }

    fn max_tokens(&self) -> usize {
        self.settings.max_tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_like_lengths_and_neither_too_many_tokens_nor_too_many_documents() {
        let lengths = [3usize, 9, 3, 40, 3, 3, 10, 3];
        let windows: Vec<Vec<u32>> = lengths.iter().map(|&n| vec![0; n]).collect();
        assert_eq!(batches(&windows, 19, 100), [vec![3], vec![6, 1], vec![0, 2, 4, 5, 7]]);
        assert_eq!(batches(&windows, 19, 3), [vec![3], vec![6, 1], vec![0, 2, 4], vec![5, 7]]);
        assert!(batches(&[], 19, 3).is_empty());
    }
}

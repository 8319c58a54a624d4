//! The masked-language stage: windows with hidden tokens, the mean cross entropy of what stood there, its gradient,
//! and how well held-out windows are told.

use std::time::Instant;

use nsparse_core::{Cancel, Progress, TokenId};
use nsparse_encoder::{Backend, Parameters, TokenBatch, TokenPositions};
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::masking::{MaskedWindow, Masker};
use super::sections::MlmSection;
use super::texts::TextData;
use crate::Result;
use crate::batches::Stream;
use crate::warm_start::dropout_of;

/// Most tokens of one batch of an evaluation.
const INFERENCE_TOKENS: usize = 4096;

/// One evaluation on held-out windows, every chosen token behind `[MASK]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MlmEvaluation {
    /// The stage: `mlm`.
    pub stage: String,
    /// Steps of the stage that are done.
    pub step: usize,
    /// What `value` is: `masked_accuracy`.
    pub metric: String,
    /// Share of the hidden tokens that the largest logit names.
    pub value: f64,
    /// Mean cross entropy, in nats.
    pub cross_entropy: f64,
    /// e to the cross entropy.
    pub perplexity: f64,
    /// Hidden tokens.
    pub positions: usize,
    /// Windows.
    pub windows: usize,
    /// How long it took.
    pub seconds: f64,
}

/// The same held-out tokens told without looking: from how often each token stands in the texts trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct UnigramReference {
    /// Accuracy of always naming the most frequent token.
    pub masked_accuracy: f64,
    /// Mean cross entropy of the shares (counts plus one), in nats.
    pub cross_entropy: f64,
}

/// What a step gave.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MlmOutcome {
    /// Mean cross entropy over the hidden tokens.
    pub loss: f64,
    /// Share of them that the largest logit names.
    pub accuracy: f64,
    /// Hidden tokens.
    pub positions: usize,
    /// Windows.
    pub windows: usize,
    /// Their tokens.
    pub tokens: usize,
}

/// The stage over a run's windows.
pub struct Mlm<'a> {
    section: &'a MlmSection,
    data: &'a TextData,
    masker: Masker,
    stream: Stream,
    steps: usize,
    seed: u64,
    /// Held-out windows of an evaluation.
    judged: Vec<usize>,
}

impl<'a> Mlm<'a> {
    /// Over the windows that are not held out.
    ///
    /// # Errors
    /// As [`Masker::new`].
    pub fn new(section: &'a MlmSection, data: &'a TextData, seed: u64) -> Result<Self> {
        let steps = section.steps.unwrap_or_else(|| {
            let windows = section.epochs.unwrap_or(1.0) * data.training.len() as f64;
            ((windows / section.batch_windows as f64).ceil() as usize).max(1)
        });
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6a75_6467_6564);
        let wanted = section.evaluate_windows.min(data.held_out.len());
        let mut judged: Vec<usize> =
            index::sample(&mut rng, data.held_out.len(), wanted).iter().map(|i| data.held_out[i]).collect();
        judged.sort_unstable();
        Ok(Self {
            section,
            data,
            masker: Masker::new(&section.mask, data.query_encoder.tokenizer(), seed)?,
            stream: Stream::new(data.training.len(), seed ^ 0x006d_6c6d),
            steps,
            seed,
            judged,
        })
    }

    /// Optimizer steps.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// Held-out windows of an evaluation.
    pub fn judged(&self) -> &[usize] {
        &self.judged
    }

    /// Adds the gradient of a 0-based step's loss to a buffer laid out like the parameters.
    ///
    /// # Errors
    /// If the device fails.
    pub fn accumulate(
        &mut self,
        backend: &dyn Backend,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<MlmOutcome> {
        let count = self.section.batch_windows;
        let windows: Vec<(usize, MaskedWindow)> = self
            .stream
            .take(step * count, count)
            .into_iter()
            .map(|(epoch, item)| {
                let number = self.data.training[item];
                (number, self.masker.mask(self.data.windows.window(number), epoch, number))
            })
            .collect();
        let positions: usize = windows.iter().map(|(_, w)| w.places.len()).sum();
        let dropout = dropout_of(self.section.dropout, self.seed, step);
        let micro = if self.section.micro_batch == 0 { count } else { self.section.micro_batch };
        let mut sums = Sums::default();
        let mut tokens = 0;
        for chunk in windows.chunks(micro) {
            let (batch, places) = pack(chunk);
            tokens += batch.tokens();
            let forward = backend.forward_positions(parameters, &batch, &places, dropout, true)?;
            sums.add(&forward.log_probabilities, &forward.best, &places.labels);
            if sums.loss.is_finite() {
                let slopes = vec![-1.0 / positions as f32; places.rows.len()];
                backend.backward_positions(parameters, &batch, forward, &slopes, gradient)?;
            }
        }
        Ok(MlmOutcome {
            loss: sums.loss / positions as f64,
            accuracy: sums.correct as f64 / positions as f64,
            positions,
            windows: windows.len(),
            tokens,
        })
    }

    /// Tells the hidden tokens of the held-out windows.
    ///
    /// # Errors
    /// If the device fails, or the user asked to stop.
    pub fn evaluate(
        &self,
        backend: &dyn Backend,
        parameters: &Parameters,
        step: usize,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<MlmEvaluation> {
        let started = Instant::now();
        let task = progress.start("Evaluating", self.judged.len() as u64);
        let mut sums = Sums::default();
        let longest = self.judged.iter().map(|&w| self.data.windows.window(w).len()).max().unwrap_or(1);
        for chunk in self.judged.chunks((INFERENCE_TOKENS / longest).max(1)) {
            cancel.check()?;
            let hidden: Vec<(usize, MaskedWindow)> = chunk.iter().map(|&number| (number, self.hide(number))).collect();
            let (batch, places) = pack(&hidden);
            let forward = backend.forward_positions(parameters, &batch, &places, None, false)?;
            sums.add(&forward.log_probabilities, &forward.best, &places.labels);
            task.advance(chunk.len() as u64);
        }
        let n = sums.positions.max(1) as f64;
        let cross_entropy = sums.loss / n;
        Ok(MlmEvaluation {
            stage: "mlm".to_owned(),
            step,
            metric: "masked_accuracy".to_owned(),
            value: sums.correct as f64 / n,
            cross_entropy,
            perplexity: cross_entropy.exp(),
            positions: sums.positions,
            windows: self.judged.len(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// A held-out window as an evaluation shows it.
    pub fn hide(&self, number: usize) -> MaskedWindow {
        self.masker.hide(self.data.windows.window(number), number)
    }

    /// What telling the same tokens from their frequency alone gives; `None` where nothing is held out.
    pub fn unigram(&self, vocab: usize) -> Option<UnigramReference> {
        let shares = self.shares(vocab);
        let best = (0..vocab).fold(0, |best, id| if shares[id] > shares[best] { id } else { best });
        let labels: Vec<TokenId> = self.judged.iter().flat_map(|&number| self.hide(number).labels).collect();
        let n = labels.len() as f64;
        (!labels.is_empty()).then(|| UnigramReference {
            masked_accuracy: labels.iter().filter(|&&l| l as usize == best).count() as f64 / n,
            cross_entropy: -labels.iter().map(|&l| shares[l as usize].ln()).sum::<f64>() / n,
        })
    }

    /// The decoder's bias of a head that knows nothing but how frequent tokens are: ln of their shares, `[V]`.
    pub fn frequency_bias(&self, vocab: usize) -> Vec<f32> {
        self.shares(vocab).iter().map(|share| share.ln() as f32).collect()
    }

    /// Shares of ordinary tokens in the windows that are trained on, counts plus one; special ones are as rare as
    /// what was never seen.
    fn shares(&self, vocab: usize) -> Vec<f64> {
        let mut counts = self.data.counts(vocab);
        let named = self.data.query_encoder.tokenizer().vocabulary().len();
        for (id, count) in counts.iter_mut().enumerate() {
            if id >= named || !self.masker.is_ordinary(id as TokenId) {
                *count = 0;
            }
        }
        let all: u64 = counts.iter().map(|c| c + 1).sum();
        counts.iter().map(|&c| (c + 1) as f64 / all as f64).collect()
    }
}

#[derive(Default)]
struct Sums {
    loss: f64,
    correct: usize,
    positions: usize,
}

impl Sums {
    fn add(&mut self, log_probabilities: &[f32], best: &[u32], labels: &[TokenId]) {
        self.loss -= log_probabilities.iter().map(|&l| f64::from(l)).sum::<f64>();
        self.correct += best.iter().zip(labels).filter(|(a, b)| a == b).count();
        self.positions += labels.len();
    }
}

/// Windows in one batch; dropout masks are keyed by their numbers.
fn pack(windows: &[(usize, MaskedWindow)]) -> (TokenBatch, TokenPositions) {
    let mut batch = TokenBatch { offsets: vec![0], ..TokenBatch::default() };
    let mut positions = TokenPositions::default();
    for (number, window) in windows {
        positions.rows.extend(window.places.iter().map(|place| batch.ids.len() + place));
        positions.labels.extend_from_slice(&window.labels);
        batch.ids.extend_from_slice(&window.ids);
        batch.offsets.push(batch.ids.len());
        batch.document_keys.push(*number as u64);
    }
    (batch, positions)
}

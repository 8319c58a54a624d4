//! The contrastive stage: batches of queries with their documents, the objective, and its gradient, in one piece
//! or cached (arXiv 2101.06983): vectors first without activations, then each part of the batch again with.

use nsparse_encoder::Parameters;

use crate::batches::{Batch, Stream};
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::network::Network;
use crate::objective::Objective;
use crate::regularisers::LexicalTerm;
use crate::sections::{Decay, LearningRate, TrainSection};
use crate::stage::{Stage, StepOutcome};
use crate::warm_start::{LexicalTargets, dropout_of};
use crate::{Error, Result};

/// The stage over a run's examples.
pub struct Contrastive<'a> {
    section: &'a TrainSection,
    data: &'a TrainingData,
    objective: Objective<'a>,
    stream: Stream,
    steps: usize,
    seed: u64,
}

impl<'a> Contrastive<'a> {
    /// Over the examples that are not held out.
    ///
    /// # Errors
    /// If there is no example, or a term has nothing to act on: a positive for `InfoNCE`, scores for a stored
    /// teacher.
    pub fn new(config: &'a TrainConfig, data: &'a TrainingData, zeroed: &'a [bool]) -> Result<Self> {
        let section = &config.train;
        if data.examples.is_empty() {
            return Err(Error::config_with_hint(
                "There is no training example: no row and no judged pair is left to train on",
                "give `data.rows`, or a data set with judgments for `data.split`; \
                 `train.steps: 0` stops after the warm start",
            ));
        }
        let l = &section.losses;
        if l.infonce.weight > 0.0 && data.examples.iter().all(|e| e.positive.is_none()) {
            return Err(Error::config_with_hint(
                "`train.losses.infonce.weight` is above 0, but no training row has a `pos`",
                "set it to 0, or give rows with `pos` and `negs`",
            ));
        }
        let stored = (l.kl.weight > 0.0 && l.kl.teacher == crate::sections::Teacher::Rows)
            || (l.margin_mse.weight > 0.0 && l.margin_mse.teacher == crate::sections::Teacher::Rows);
        if stored && data.examples.iter().all(|e| e.scores.is_empty()) {
            return Err(Error::config_with_hint(
                "A teacher of `rows` is asked for, but no training row has `scores`",
                "use `teacher: lexical`, or give rows with `docs` and `scores`",
            ));
        }
        let per_step = section.batch_queries * section.accumulation;
        let steps = section.steps.unwrap_or_else(|| {
            let epochs = section.epochs.unwrap_or(1.0);
            ((epochs * data.examples.len() as f64 / per_step as f64).ceil() as usize).max(1)
        });
        let w = &config.warm_start;
        Ok(Self {
            section,
            data,
            objective: Objective {
                losses: l,
                queries: &data.queries,
                targets: LexicalTargets::new(&data.documents, w, zeroed),
                lexical: LexicalTerm { other_weight: w.other_weight, slope_below_zero: w.slope_below_zero },
            },
            stream: Stream::new(data.examples.len(), config.run.seed ^ 0x0074_7261_696e),
            steps,
            seed: config.run.seed,
        })
    }

    /// The `place`-th batch of the run.
    pub fn batch(&mut self, place: usize) -> Batch {
        let count = self.section.batch_queries;
        let examples = self.stream.take(place * count, count);
        Batch::new(self.data, &examples, self.section.negatives, self.seed)
    }
}

impl Stage for Contrastive<'_> {
    fn name(&self) -> &'static str {
        "contrastive"
    }

    fn steps(&self) -> usize {
        self.steps
    }

    fn learning_rate(&self) -> &LearningRate {
        &self.section.learning_rate
    }

    fn schedule(&self) -> (usize, Decay) {
        (self.section.warmup_steps, self.section.decay)
    }

    fn is_evaluated(&self) -> bool {
        true
    }

    fn accumulate(
        &mut self,
        network: &Network,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<StepOutcome> {
        let batches = self.section.accumulation;
        let share = 1.0 / batches as f64;
        let (vocab, documents) = (network.vocab, &self.data.documents);
        let mut outcome = StepOutcome::default();
        for part in 0..batches {
            let place = step * batches + part;
            let batch = self.batch(place);
            let dropout = dropout_of(self.section.dropout, self.seed, place);
            let micro = match self.section.micro_batch {
                0 => batch.documents.len(),
                n => n.min(batch.documents.len()),
            };
            let mut slopes;
            if micro == batch.documents.len() {
                let encoded = network.encode(parameters, documents, &batch.documents, dropout, true)?;
                slopes = self.objective.evaluate(&batch, &encoded.weights, vocab, step, share);
                if slopes.outcome.loss.is_finite() {
                    network.backward(parameters, encoded, slopes.weights, slopes.below.as_deref(), gradient)?;
                }
            } else {
                let mut weights = Vec::with_capacity(batch.documents.len() * vocab);
                for chunk in batch.documents.chunks(micro) {
                    weights.extend(network.encode(parameters, documents, chunk, dropout, false)?.weights);
                }
                slopes = self.objective.evaluate(&batch, &weights, vocab, step, share);
                drop(weights);
                for (i, chunk) in batch.documents.chunks(micro).enumerate() {
                    if !slopes.outcome.loss.is_finite() {
                        break;
                    }
                    // The same keys give the same dropout masks as before.
                    let encoded = network.encode(parameters, documents, chunk, dropout, true)?;
                    let range = i * micro * vocab..(i * micro + chunk.len()) * vocab;
                    let below = slopes.below.as_ref().map(|b| &b[range.clone()]);
                    let own = slopes.weights[range.clone()].to_vec();
                    network.backward(parameters, encoded, own, below, gradient)?;
                }
            }
            slopes.outcome.tokens = batch.documents.iter().map(|&d| documents.window(d).len()).sum();
            outcome.add(&slopes.outcome, share);
        }
        Ok(outcome)
    }
}

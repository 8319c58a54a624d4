//! The lexical warm start: document weights learn BM25's tf part for the tokens of the text, and 0 for all others.
//! It needs no labels; with idf on the query side its target is BM25 over word pieces.

use nsparse_core::{SparseVector, TokenId};
use nsparse_encoder::{Dropout, Parameters};
use nsparse_retrieval::lexical::bm25_tf;

use crate::Result;
use crate::batches::Stream;
use crate::data::Documents;
use crate::network::Network;
use crate::regularisers::LexicalTerm;
use crate::sections::{Decay, LearningRate, WarmStartSection};
use crate::segments::parts;
use crate::stage::{Stage, StepOutcome};

/// BM25's tf part of every document, on demand: tokens are counted where the encoder reads, the length is the whole
/// document's.
#[derive(Debug, Clone)]
pub struct LexicalTargets<'a> {
    documents: &'a Documents,
    average_length: f64,
    k1: f32,
    b: f32,
    zeroed: &'a [bool],
}

impl<'a> LexicalTargets<'a> {
    /// Targets with a section's k1 and b; `zeroed`: one flag a vocabulary entry that never carries weight.
    pub fn new(documents: &'a Documents, section: &WarmStartSection, zeroed: &'a [bool]) -> Self {
        Self {
            documents,
            average_length: documents.average_length(),
            k1: section.k1 as f32,
            b: section.b as f32,
            zeroed,
        }
    }

    /// The target vector of one document; all other tokens have the target 0.
    pub fn of(&self, number: usize) -> SparseVector {
        let mut ids: Vec<TokenId> = self.documents.read(number).filter(|&id| !self.zeroed[id as usize]).collect();
        ids.sort_unstable();
        let length = self.documents.length(number);
        let mut out = SparseVector::default();
        for same in ids.chunk_by(|a, b| a == b) {
            out.ids.push(same[0]);
            out.weights.push(bm25_tf(same.len() as u32, length, self.average_length, self.k1, self.b));
        }
        out
    }
}

/// The stage: batches of documents drawn from the whole store.
pub struct WarmStart<'a> {
    section: &'a WarmStartSection,
    documents: &'a Documents,
    targets: LexicalTargets<'a>,
    stream: Stream,
    seed: u64,
}

impl<'a> WarmStart<'a> {
    /// Over all documents of a store.
    pub fn new(section: &'a WarmStartSection, documents: &'a Documents, network: &'a [bool], seed: u64) -> Self {
        let targets = LexicalTargets::new(documents, section, network);
        Self { section, documents, targets, stream: Stream::new(documents.len(), seed ^ 0x7761_726d), seed }
    }
}

impl Stage for WarmStart<'_> {
    fn name(&self) -> &'static str {
        "warm_start"
    }

    fn steps(&self) -> usize {
        self.section.steps
    }

    fn learning_rate(&self) -> &LearningRate {
        &self.section.learning_rate
    }

    fn schedule(&self) -> (usize, Decay) {
        (self.section.warmup_steps, self.section.decay)
    }

    fn is_evaluated(&self) -> bool {
        false
    }

    fn accumulate(
        &mut self,
        network: &Network,
        parameters: &Parameters,
        step: usize,
        gradient: &mut [f32],
    ) -> Result<StepOutcome> {
        let count = self.section.batch_documents;
        let numbers: Vec<usize> = self.stream.take(step * count, count).into_iter().map(|(_, n)| n).collect();
        let term =
            LexicalTerm { other_weight: self.section.other_weight, slope_below_zero: self.section.slope_below_zero };
        let lengths: Vec<usize> = numbers.iter().map(|&n| self.documents.tokens(n).len()).collect();
        let own = &numbers[network.team.share(&lengths)];
        let mut outcome = StepOutcome::default();
        let mut rows = Vec::new();
        for chunk in parts(self.documents, own, self.section.micro_batch, self.section.segment_budget) {
            let dropout = dropout_of(self.section.dropout, self.seed, step);
            let encoded = network.encode(parameters, self.documents, chunk, dropout, true)?;
            let targets: Vec<SparseVector> = chunk.iter().map(|&n| self.targets.of(n)).collect();
            let targets: Vec<&SparseVector> = targets.iter().collect();
            let mut slopes = vec![0.0; encoded.weights.len()];
            let mut below = vec![0.0; encoded.weights.len()];
            let share = chunk.len() as f64 / numbers.len() as f64;
            let loss = term.add(&encoded.weights, network.vocab, &targets, share, &mut slopes, &mut below);
            let part = StepOutcome {
                loss,
                parts: [("lexical", loss)].into(),
                tokens: chunk.iter().map(|&n| self.documents.tokens(n).len()).sum(),
                ..StepOutcome::of_vectors(&encoded.weights, network.vocab)
            };
            outcome.add(&part, share);
            if network.team.size() > 1 {
                rows.extend_from_slice(&encoded.weights);
            }
            network.backward(parameters, encoded, slopes, Some(&below), gradient)?;
        }
        if network.team.size() > 1 {
            // The loss is a mean over documents, so nobody needs the others' vectors; the figures do.
            let loss = network.team.sum_value(outcome.loss)?;
            let rows = network.team.gather_rows(&rows, network.vocab)?;
            outcome = StepOutcome {
                loss,
                parts: [("lexical", loss)].into(),
                tokens: lengths.iter().sum(),
                ..StepOutcome::of_vectors(&rows, network.vocab)
            };
        }
        Ok(outcome)
    }
}

/// Dropout of a step, or none where the rate is 0.
pub(crate) fn dropout_of(rate: f32, seed: u64, step: usize) -> Option<Dropout> {
    (rate > 0.0).then_some(Dropout { hidden: rate, attention: rate, seed, step: step as u64 })
}

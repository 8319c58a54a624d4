//! The query side while it is trained: a learned table, or the document encoder itself.
//!
//! Losses take their slopes in query weights as a dense `[Q, V]`; this module takes those back to parameters, which
//! lie in the model's own buffer.

pub mod table;
pub mod tune;
pub mod tuned_model;

use nsparse_core::{Cancel, IdfTable, QueryEncoder, SparseVector, TokenId, Weight};
use nsparse_encoder::{BertMlm, Dropout, Parameters};

pub use table::Table;

use crate::Result;
use crate::batches::Batch;
use crate::config::TrainConfig;
use crate::data::{Documents, TrainingData};
use crate::network::{Encoded, Network};
use crate::regularisers::{Ramp, flops, l1};
use crate::sections::{QuerySection, Side};

/// Sets queries' dropout apart from that of the documents of the same numbers.
const DROPOUT_KEY: u64 = 0x7175_6572_6965_7321;

/// What is learned on the query side. `None` where the recipe's `query.side` is `idf`.
pub struct QuerySide {
    section: QuerySection,
    form: Form,
}

enum Form {
    Table(Table),
    /// All queries as the encoder reads them, by their numbers.
    Siamese(Documents),
}

/// A batch's queries with what their backward needs.
pub struct BatchVectors {
    /// One vector a query of the batch.
    pub vectors: Vec<SparseVector>,
    encoded: Option<Encoded>,
}

/// Penalties on query weights: value and weight of FLOPS and L1.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct QueryPressure {
    /// Weight of FLOPS.
    pub flops: f64,
    /// Weight of L1.
    pub l1: f64,
}

impl QuerySide {
    /// What a recipe asks for; with `siamese` all queries are tokenised.
    ///
    /// # Errors
    /// If the tokenizer refuses a query.
    pub fn new(config: &TrainConfig, data: &TrainingData) -> Result<Option<Self>> {
        let section = config.query.clone();
        let form = match (section.side, Table::of(&section)) {
            (_, Some(table)) => Form::Table(table),
            (Side::Siamese, _) => {
                let mut texts = Documents::default();
                for query in &data.queries {
                    let (window, length) =
                        data.query_encoder.tokenizer().window(&query.text, config.data.max_tokens)?;
                    texts.push(query.id.clone(), &window, length);
                }
                Form::Siamese(texts)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { section, form }))
    }

    /// The learned table, if it is one.
    pub fn table(&self) -> Option<Table> {
        match &self.form {
            Form::Table(table) => Some(*table),
            Form::Siamese(_) => None,
        }
    }

    /// Puts the table's parameters into a model's; with `siamese` there are none.
    ///
    /// # Errors
    /// If the model has no word embeddings.
    pub fn extend(&self, model: &mut BertMlm) -> Result<()> {
        if let Form::Table(table) = self.form {
            model.parameters = table.extend(&model.parameters)?;
        }
        Ok(())
    }

    /// Sets the table's start, before the first step of the stage that trains it.
    ///
    /// # Errors
    /// As [`Table::begin`].
    pub fn begin(&self, parameters: &mut Parameters, idf: &IdfTable, seed: u64) -> Result<()> {
        match self.form {
            Form::Table(table) => table.begin(parameters, idf.weights(), self.section.start.unwrap_or_default(), seed),
            Form::Siamese(_) => Ok(()),
        }
    }

    /// Weights of the penalties at a 0-based step.
    pub fn pressure(&self, step: usize) -> QueryPressure {
        let factor = Ramp::Quadratic.factor(step, self.section.ramp_steps);
        QueryPressure { flops: factor * self.section.flops, l1: factor * self.section.l1 }
    }

    /// A batch's query vectors, kept for a backward.
    ///
    /// # Errors
    /// If the device fails.
    pub fn encode(
        &self,
        network: &Network,
        parameters: &Parameters,
        data: &TrainingData,
        batch: &Batch,
        dropout: Option<Dropout>,
    ) -> Result<BatchVectors> {
        match &self.form {
            Form::Table(table) => {
                let vector = |q: &crate::batches::BatchQuery| table.vector(parameters, tokens(data, q.query));
                let vectors = batch.queries.iter().map(vector).collect::<Result<_>>()?;
                Ok(BatchVectors { vectors, encoded: None })
            }
            Form::Siamese(texts) => {
                let numbers: Vec<usize> = batch.queries.iter().map(|q| q.query).collect();
                let dropout = dropout.map(|d| Dropout { seed: d.seed ^ DROPOUT_KEY, ..d });
                let encoded = network.encode(parameters, texts, &numbers, dropout, true)?;
                // A weight that is not a number must show in the loss.
                let row = |row: &[f32]| {
                    let (ids, weights) = row
                        .iter()
                        .enumerate()
                        .filter(|(_, w)| **w > 0.0 || w.is_nan())
                        .map(|(id, &w)| (id as TokenId, w))
                        .unzip();
                    SparseVector { ids, weights }
                };
                let vectors = encoded.weights.chunks_exact(network.vocab).map(row).collect();
                Ok(BatchVectors { vectors, encoded: Some(encoded) })
            }
        }
    }

    /// Adds the gradient of a batch's queries, given dL/d query weight `[Q, V]`.
    ///
    /// # Errors
    /// If the device fails.
    pub fn backward(
        &self,
        network: &Network,
        parameters: &Parameters,
        data: &TrainingData,
        batch: &Batch,
        (vectors, slopes): (BatchVectors, Vec<f32>),
        gradient: &mut [f32],
    ) -> Result<()> {
        match (&self.form, vectors.encoded) {
            (Form::Table(table), _) => {
                let ids: Vec<&[TokenId]> = batch.queries.iter().map(|q| tokens(data, q.query)).collect();
                table.backward(parameters, &ids, &slopes, gradient)
            }
            (Form::Siamese(_), Some(encoded)) => network.backward(parameters, encoded, slopes, None, gradient),
            (Form::Siamese(_), None) => Ok(()),
        }
    }

    /// Vectors of queries by their numbers, without dropout.
    ///
    /// # Errors
    /// If the device fails, a weight is not finite, or the user asked to stop.
    pub fn vectors(
        &self,
        network: &Network,
        parameters: &Parameters,
        data: &TrainingData,
        numbers: &[usize],
        cancel: &Cancel,
    ) -> Result<Vec<SparseVector>> {
        match &self.form {
            Form::Table(table) => numbers.iter().map(|&q| table.vector(parameters, tokens(data, q))).collect(),
            Form::Siamese(texts) => network.vectors(parameters, texts, numbers, cancel, |_| {}),
        }
    }

    /// The query side as a saved model has it: a learned table's weights.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn saved(&self, parameters: &Parameters, encoder: &QueryEncoder) -> Result<SavedSide> {
        match self.form {
            Form::Siamese(_) => Ok(SavedSide::Siamese),
            Form::Table(table) => {
                let start = encoder.idf().weights();
                let weights = table.weights(parameters, start.len())?;
                Ok(SavedSide::Table(LearnedTable::new(self.section.clone(), start, weights)))
            }
        }
    }
}

/// A query's distinct tokens.
fn tokens(data: &TrainingData, query: usize) -> &[TokenId] {
    &data.queries[query].vector.ids
}

/// What a saved model's query side is, where it is not the idf table.
#[derive(Debug, Clone, PartialEq)]
pub enum SavedSide {
    /// A learned table: saved as `idf.json`.
    Table(LearnedTable),
    /// The document encoder: there is no `idf.json`.
    Siamese,
}

/// A learned table with what became of the tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct LearnedTable {
    section: QuerySection,
    /// One weight a token, in `[0, 64]`.
    pub weights: Vec<Weight>,
    /// Tokens whose weight is not the idf's.
    pub moved: usize,
    /// Tokens that had a weight and have none any more.
    pub zeroed: usize,
}

impl LearnedTable {
    fn new(section: QuerySection, start: &[Weight], mut weights: Vec<Weight>) -> Self {
        // Special tokens never have a weight.
        for (weight, _) in weights.iter_mut().zip(start).filter(|(_, s)| **s == 0.0) {
            *weight = 0.0;
        }
        let (moved, zeroed) = moved_and_zeroed(start, &weights);
        Self { section, weights, moved, zeroed }
    }

    /// What stands beside `idf.json` about it.
    pub fn metadata(&self) -> serde_json::Value {
        serde_json::json!({ "query": self.section, "tokens_moved": self.moved, "tokens_zeroed": self.zeroed })
    }
}

/// How many weights differ from a start, and how many of those above zero are so no more.
pub fn moved_and_zeroed(start: &[Weight], weights: &[Weight]) -> (usize, usize) {
    let pairs = || start.iter().zip(weights);
    let moved = pairs().filter(|(s, w)| s.to_bits() != w.to_bits()).count();
    let silent = nsparse_core::idf::SILENT;
    (moved, pairs().filter(|(s, w)| **s > silent && **w <= silent).count())
}

/// FLOPS and L1 on query vectors: values with their names, slopes times `share` added to dL/d query weight `[Q, V]`.
pub fn penalise(
    queries: &[SparseVector],
    vocab: usize,
    pressure: QueryPressure,
    share: f64,
    slopes: &mut [f32],
) -> Vec<(&'static str, f64, f64)> {
    if pressure.flops + pressure.l1 == 0.0 {
        return Vec::new();
    }
    let mut dense = vec![0.0f32; queries.len() * vocab];
    for (row, query) in dense.chunks_exact_mut(vocab).zip(queries) {
        for (id, weight) in query.iter() {
            row[id as usize] = weight;
        }
    }
    let mut out = Vec::new();
    if pressure.flops > 0.0 {
        let value = flops(&dense, vocab, 0, pressure.flops * share, slopes);
        out.push(("query_flops", value, pressure.flops));
    }
    if pressure.l1 > 0.0 {
        out.push(("query_l1", l1(&dense, vocab, pressure.l1 * share, slopes), pressure.l1));
    }
    out
}

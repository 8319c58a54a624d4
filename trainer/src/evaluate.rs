//! Evaluation during a run: held-out training queries, ranked by the current model over a part of the corpus.

use std::collections::BTreeSet;
use std::time::Instant;

use nsparse_core::{Cancel, Progress, Qrels, Run, SearchQuery, Searcher, SparseVector};
use nsparse_encoder::Parameters;
use nsparse_retrieval::{EvalOptions, InvertedIndex};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::data::TrainingData;
use crate::held_out::HeldOutQuery;
use crate::network::Network;
use crate::sections::EvalSection;
use crate::warm_start::LexicalTargets;
use crate::{Error, Result};

/// Hits that are looked at.
const DEPTH: usize = 1000;

/// One evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// The stage.
    pub stage: String,
    /// Steps of the stage that are done.
    pub step: usize,
    /// The metric's name.
    pub metric: String,
    /// Its mean over the held-out queries.
    pub value: f64,
    /// Mean active dimensions of the encoded documents.
    pub active_dimensions: f64,
    /// Mean active dimensions of the held-out queries, where query weights are learned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_dimensions: Option<f64>,
    /// Held-out queries.
    pub queries: usize,
    /// Documents encoded.
    pub documents: usize,
    /// Where the penalty's weight is steered to a target: the density that the loop sees over that target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over_target: Option<f64>,
    /// How long it took.
    pub seconds: f64,
}

/// A density this near its target, as a ratio, is on it.
const ON_TARGET: f64 = 1.1;

impl EvaluationRecord {
    /// How far the density is from its target, as a logarithm; 0 where it is on it or there is none.
    fn off_target(&self) -> f64 {
        let off = self.over_target.map_or(0.0, |ratio| ratio.ln().abs());
        if off <= ON_TARGET.ln() { 0.0 } else { off }
    }

    /// Whether the model of this evaluation is to be kept rather than that of an earlier one: by the metric, but a
    /// density on its target goes first, and of two that are off the nearer one.
    pub fn is_better_than(&self, earlier: &Self) -> bool {
        let (off, earlier_off) = (self.off_target(), earlier.off_target());
        if off > 0.0 || earlier_off > 0.0 { off < earlier_off } else { self.value > earlier.value }
    }
}

/// Whether the newest of some evaluations is at least the `patience`-th in a row whose metric is not more than
/// `min_delta` above the best before. Evaluations on the way to a target's density do not count.
pub fn is_out_of_patience<'a>(
    evaluations: impl IntoIterator<Item = &'a EvaluationRecord>,
    patience: usize,
    min_delta: f64,
) -> bool {
    let (mut best, mut waited) = (f64::NEG_INFINITY, 0);
    for e in evaluations.into_iter().filter(|e| e.off_target() == 0.0) {
        if e.value > best + min_delta {
            (best, waited) = (e.value, 0);
        } else {
            waited += 1;
        }
    }
    waited >= patience
}

/// Queries, judgments and the pool of documents, chosen once.
pub struct Evaluator<'a> {
    data: &'a TrainingData,
    metric: String,
    options: EvalOptions,
    queries: Vec<SearchQuery>,
    qrels: Qrels,
    pool: Vec<usize>,
}

impl<'a> Evaluator<'a> {
    /// `None` if nothing is held out.
    ///
    /// # Errors
    /// If the metric is not known.
    pub fn new(section: &EvalSection, data: &'a TrainingData, seed: u64) -> Result<Option<Self>> {
        if data.held_out.is_empty() {
            return Ok(None);
        }
        let mut queries = Vec::new();
        let mut qrels = Qrels::new();
        for &number in &data.held_out {
            let query = &data.queries[number];
            queries.push(SearchQuery { id: query.id.clone(), text: query.text.clone(), vector: query.vector.clone() });
            let grades = query.grades.iter().map(|(&d, &g)| (data.documents.id(d).to_owned(), g)).collect();
            qrels.insert(query.id.clone(), grades);
        }
        let mut options = EvalOptions { max_depth: Some(DEPTH), ..EvalOptions::default() };
        if let Some(k) = section.metric.split_once('@').and_then(|(_, k)| k.parse().ok()) {
            options.ks = vec![k];
        }
        let known = nsparse_retrieval::evaluate(&qrels, &Run::new(), &options).mean;
        if !known.contains_key(&section.metric) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(Error::config(format!(
                "`eval.metric`: `{}` is not known; there are {}",
                section.metric,
                names.join(", ")
            )));
        }
        let pool = pool(section.documents, data, seed);
        Ok(Some(Self { data, metric: section.metric.clone(), options, queries, qrels, pool }))
    }

    /// Documents that an evaluation encodes.
    pub fn documents(&self) -> usize {
        self.pool.len()
    }

    /// Encodes the pool and ranks it for the held-out queries, by learned vectors of these where there are some: what
    /// comes out on the whole, and query by query.
    ///
    /// # Errors
    /// If the device fails, or the user asked to stop.
    pub fn run(
        &self,
        network: &Network,
        parameters: &Parameters,
        queries: Option<Vec<SparseVector>>,
        (stage, step): (&str, usize),
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<(EvaluationRecord, Vec<HeldOutQuery>)> {
        let started = Instant::now();
        let task = progress.start("Evaluating", self.pool.len() as u64);
        let documents = &self.data.documents;
        let vectors = network.vectors(parameters, documents, &self.pool, cancel, |done| task.advance(done as u64))?;
        let mean = |all: &[SparseVector]| all.iter().map(|v| v.len() as f64).sum::<f64>() / all.len().max(1) as f64;
        let active = mean(&vectors);
        let query_dimensions = queries.as_deref().map(mean);
        let (value, queries) = self.rank(vectors, queries)?;
        task.message(&format!("{} {value:.4}", self.metric));
        let record = EvaluationRecord {
            stage: stage.to_owned(),
            step,
            metric: self.metric.clone(),
            value,
            active_dimensions: active,
            query_dimensions,
            queries: self.queries.len(),
            documents: self.pool.len(),
            over_target: None,
            seconds: started.elapsed().as_secs_f64(),
        };
        Ok((record, queries))
    }

    /// The metric of the warm start's own targets over the same queries and pool: what BM25's tf part as document
    /// weight gives, and so what training has to add to.
    ///
    /// # Errors
    /// If the search fails.
    pub fn lexical_reference(&self, targets: &LexicalTargets<'_>) -> Result<f64> {
        Ok(self.rank(self.pool.iter().map(|&number| targets.of(number)).collect(), None)?.0)
    }

    /// The metric of document vectors that stand in the order of the pool, and each query's ranking; queries have
    /// their idf where no vectors are given.
    fn rank(&self, vectors: Vec<SparseVector>, queries: Option<Vec<SparseVector>>) -> Result<(f64, Vec<HeldOutQuery>)> {
        let documents = &self.data.documents;
        let index = InvertedIndex::build(
            self.pool.iter().zip(vectors).map(|(&number, vector)| (documents.id(number).to_owned(), vector)),
        );
        let hits = match queries {
            None => index.search(&self.queries, DEPTH)?,
            Some(vectors) => {
                let queries = self.queries.iter().zip(vectors);
                let queries: Vec<SearchQuery> =
                    queries.map(|(q, vector)| SearchQuery { vector, ..q.clone() }).collect();
                index.search(&queries, DEPTH)?
            }
        };
        let run: Run = self.queries.iter().map(|q| q.id.clone()).zip(hits.iter().cloned()).collect();
        let evaluation = nsparse_retrieval::evaluate(&self.qrels, &run, &self.options);
        let queries = HeldOutQuery::all(&self.queries, hits, &self.qrels, &evaluation, &self.metric);
        Ok((evaluation.mean[&self.metric], queries))
    }
}

/// Judged and mined documents of the held-out queries, filled up with others drawn by the seed. Ascending.
fn pool(wanted: usize, data: &TrainingData, seed: u64) -> Vec<usize> {
    let all = data.documents.len();
    if wanted == 0 || wanted >= all {
        return (0..all).collect();
    }
    let mut pool: BTreeSet<usize> = data.held_out_documents.iter().copied().collect();
    let mut others: Vec<usize> = (0..all).filter(|n| !pool.contains(n)).collect();
    others.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x706f_6f6c));
    let missing = wanted.saturating_sub(pool.len());
    pool.extend(others.into_iter().take(missing));
    pool.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(value: f64, over_target: Option<f64>) -> EvaluationRecord {
        EvaluationRecord {
            stage: "contrastive".to_owned(),
            step: 0,
            metric: "ndcg@10".to_owned(),
            value,
            active_dimensions: 0.0,
            query_dimensions: None,
            queries: 1,
            documents: 1,
            over_target,
            seconds: 0.0,
        }
    }

    #[test]
    fn a_density_on_its_target_goes_before_the_metric() {
        let better = |a: (f64, Option<f64>), b: (f64, Option<f64>)| record(a.0, a.1).is_better_than(&record(b.0, b.1));
        assert!(better((0.6, None), (0.5, None)) && !better((0.5, None), (0.5, None)));
        // On the target within a tenth; then the metric decides.
        assert!(better((0.5, Some(1.09)), (0.9, Some(2.0))) && !better((0.9, Some(2.0)), (0.5, Some(0.95))));
        assert!(better((0.6, Some(0.95)), (0.5, Some(1.05))));
        // Off it the nearer one, from above as from below.
        assert!(better((0.1, Some(1.5)), (0.9, Some(0.5))) && better((0.1, Some(0.8)), (0.9, Some(1.5))));
    }

    #[test]
    fn patience_counts_evaluations_in_a_row_without_improvement() {
        let out = |values: &[f64], patience, min_delta| {
            let all: Vec<EvaluationRecord> = values.iter().map(|&v| record(v, None)).collect();
            is_out_of_patience(&all, patience, min_delta)
        };
        assert!(!out(&[], 1, 0.0) && !out(&[0.5], 1, 0.0) && !out(&[0.5, 0.6, 0.6], 2, 0.0));
        assert!(out(&[0.5, 0.6, 0.6, 0.55], 2, 0.0));
        assert!(!out(&[0.5, 0.4, 0.6, 0.5], 2, 0.0), "an improvement starts anew");
        // Small steps add up: they are measured from the last improvement that counted.
        assert!(out(&[0.5, 0.505, 0.509], 2, 0.01) && !out(&[0.5, 0.505, 0.511], 2, 0.01));
        let steered = [record(0.9, Some(3.0)), record(0.8, Some(2.0)), record(0.7, Some(1.0)), record(0.7, Some(1.0))];
        assert!(!is_out_of_patience(&steered[..3], 1, 0.0) && is_out_of_patience(&steered, 1, 0.0));
    }
}

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
use crate::network::Network;
use crate::sections::EvalSection;
use crate::warm_start::LexicalTargets;
use crate::{Error, Result};

/// Hits that are looked at.
const DEPTH: usize = 1000;

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Held-out queries.
    pub queries: usize,
    /// Documents encoded.
    pub documents: usize,
    /// How long it took.
    pub seconds: f64,
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

    /// Encodes the pool and ranks it for the held-out queries.
    ///
    /// # Errors
    /// If the device fails, or the user asked to stop.
    pub fn run(
        &self,
        network: &Network,
        parameters: &Parameters,
        stage: &str,
        step: usize,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<EvaluationRecord> {
        let started = Instant::now();
        let task = progress.start("Evaluating", self.pool.len() as u64);
        let documents = &self.data.documents;
        let vectors = network.vectors(parameters, documents, &self.pool, cancel, |done| task.advance(done as u64))?;
        let active = vectors.iter().map(|v| v.len() as f64).sum::<f64>() / vectors.len().max(1) as f64;
        let value = self.rank(vectors)?;
        task.message(&format!("{} {value:.4}", self.metric));
        Ok(EvaluationRecord {
            stage: stage.to_owned(),
            step,
            metric: self.metric.clone(),
            value,
            active_dimensions: active,
            queries: self.queries.len(),
            documents: self.pool.len(),
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// The metric of the warm start's own targets over the same queries and pool: what BM25's tf part as document
    /// weight gives, and so what training has to add to.
    ///
    /// # Errors
    /// If the search fails.
    pub fn lexical_reference(&self, targets: &LexicalTargets<'_>) -> Result<f64> {
        self.rank(self.pool.iter().map(|&number| targets.of(number)).collect())
    }

    /// The metric of document vectors that stand in the order of the pool.
    fn rank(&self, vectors: Vec<SparseVector>) -> Result<f64> {
        let documents = &self.data.documents;
        let index = InvertedIndex::build(
            self.pool.iter().zip(vectors).map(|(&number, vector)| (documents.id(number).to_owned(), vector)),
        );
        let hits = index.search(&self.queries, DEPTH)?;
        let run: Run = self.queries.iter().map(|q| q.id.clone()).zip(hits).collect();
        Ok(nsparse_retrieval::evaluate(&self.qrels, &run, &self.options).mean[&self.metric])
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

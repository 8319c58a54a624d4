//! Further training of the query table with documents frozen: ADORE's idea (arXiv 2104.08051) where the query side is
//! a table.
//!
//! Each step searches with the table as it is, takes the cross entropy of the first retrieved relevant document over
//! the hits, and moves the weights of the query's tokens. Documents are never encoded again, so the index stays.
//! A weight that a step takes below zero is put to zero: the token is then left out of queries, but what its slope
//! says can bring it back.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use nsparse_core::idf::SILENT;
use nsparse_core::vector::MAX_WEIGHT;
use nsparse_core::{Cancel, Hit, Progress, Qrels, Run, SearchQuery, Searcher, SparseVector, TokenId, Weight};
use nsparse_encoder::ParamSpec;
use nsparse_retrieval::significance::compare_evaluations;
use nsparse_retrieval::{Comparison, EvalOptions, Evaluation, Resampling, evaluate};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::moved_and_zeroed;
use crate::batches::Stream;
use crate::optimizer::AdamW;
use crate::sections::OptimizerSection;
use crate::{Error, Result};

/// Queries searched at once while nothing is learned.
const BLOCK: usize = 64;
/// Hits that an evaluation looks at, at least.
const EVALUATION_DEPTH: usize = 100;
/// Tokens listed in the report, each way.
const LISTED: usize = 10;

/// How the table is trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuneOptions {
    /// Most passes over the training queries, at least 1.
    pub epochs: usize,
    /// Queries a step, at least 1.
    pub batch: usize,
    /// `AdamW`'s rate; a step moves a weight by about so much.
    pub learning_rate: f64,
    /// Hits that the positive is compared with, at least 2.
    pub depth: usize,
    /// Scores are divided by it.
    pub temperature: f64,
    /// Weight of `½ Σ (w − start)²`, which pulls the table back to its start; 0: not at all.
    pub pull: f64,
    /// Share of the queries that is not trained on: one half chooses the epoch, the other is measured once.
    pub held_out: f64,
    /// Epochs without a better one after which it ends; 0: never.
    pub patience: usize,
    /// What chooses the epoch, as `nsparse eval` names it.
    pub metric: String,
    /// Everything random comes from it.
    pub seed: u64,
}

impl Default for TuneOptions {
    fn default() -> Self {
        Self {
            epochs: 30,
            batch: 32,
            learning_rate: 0.02,
            depth: 200,
            temperature: 1.0,
            pull: 0.0,
            held_out: 0.3,
            patience: 5,
            metric: "ndcg@10".to_owned(),
            seed: 42,
        }
    }
}

impl TuneOptions {
    /// Checks the values.
    ///
    /// # Errors
    /// The first that cannot be used.
    pub fn validate(&self) -> Result<()> {
        let bad = |name: &str, problem: &str| Err(Error::config(format!("`{name}`: {problem}")));
        for (name, value, least) in [("epochs", self.epochs, 1), ("batch", self.batch, 1), ("depth", self.depth, 2)] {
            if value < least {
                return bad(name, &format!("at least {least}"));
            }
        }
        for (name, value) in [("learning rate", self.learning_rate), ("temperature", self.temperature)] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(name, "a number above 0");
            }
        }
        if !(self.pull >= 0.0 && self.pull.is_finite()) {
            return bad("pull", "a number of at least 0");
        }
        if !(self.held_out > 0.0 && self.held_out <= 0.9) {
            return bad("held out", "a share above 0, at most 0.9");
        }
        Ok(())
    }
}

/// A query with its judgments.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneQuery {
    /// Its id.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Its distinct tokens that may carry weight.
    pub tokens: Vec<TokenId>,
    /// Grades of judged documents by their ids.
    pub grades: BTreeMap<String, i64>,
}

/// What is searched, and with what.
pub struct TuneInput<'a> {
    /// All judged queries.
    pub queries: &'a [TuneQuery],
    /// The frozen documents' vectors by their ids.
    pub documents: &'a HashMap<&'a str, &'a SparseVector>,
    /// Ranks these documents.
    pub searcher: &'a dyn Searcher,
    /// The table that is begun with: one weight a token.
    pub start: &'a [Weight],
    /// The tokens' strings, for the report.
    pub vocabulary: &'a [String],
}

/// One pass over the training queries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// 0 is the table that was begun with.
    pub epoch: usize,
    /// Mean loss of its queries; none for epoch 0.
    pub loss: Option<f64>,
    /// Share of its queries for which no relevant document was among the hits.
    pub not_retrieved: Option<f64>,
    /// The metric over the queries that choose.
    pub value: f64,
    /// Seconds.
    pub seconds: f64,
}

/// A token whose weight changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenChange {
    /// The token.
    pub token: String,
    /// Its weight before.
    pub before: Weight,
    /// Its weight afterwards.
    pub after: Weight,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuneReport {
    /// The settings.
    pub options: TuneOptions,
    /// Queries that were trained on.
    pub trained_queries: usize,
    /// Queries that chose the epoch.
    pub choosing_queries: usize,
    /// Queries that were measured once, and neither trained on nor chosen by.
    pub measured_queries: usize,
    /// Queries without a relevant document in the corpus, or without a token of weight.
    pub left_out_queries: usize,
    /// The epochs, the start first.
    pub epochs: Vec<EpochRecord>,
    /// The epoch whose table was kept; 0: none was better than the start, and the table is the same.
    pub best_epoch: usize,
    /// Whether it ended because no epoch was better for a while.
    pub stopped_early: bool,
    /// The metric of the measured queries with the table before.
    pub before: f64,
    /// And afterwards.
    pub after: f64,
    /// Afterwards less before on the measured queries, paired.
    pub comparison: Comparison,
    /// Tokens whose weight is another.
    pub tokens_moved: usize,
    /// Tokens that had a weight and are left out of queries now.
    pub tokens_zeroed: usize,
    /// The tokens that gained most.
    pub raised: Vec<TokenChange>,
    /// The tokens that lost most.
    pub lowered: Vec<TokenChange>,
    /// Seconds in all.
    pub seconds: f64,
}

/// Trains a table. Gives the best epoch's weights, each 0 or in `(0, 64]`, and the report. The same input, options
/// and ranking give the same table.
///
/// # Errors
/// If an option cannot be used, there are too few queries, the searcher fails or ranks unknown documents, a number
/// is not finite, or the user asked to stop: nothing is then kept.
pub fn tune(
    input: &TuneInput<'_>,
    options: &TuneOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Vec<Weight>, TuneReport)> {
    options.validate()?;
    let started = Instant::now();
    let split = Split::new(input, options)?;
    let mut table = input.start.to_vec();
    let metric = Metric::new(&options.metric)?;
    let evaluated = |table: &[Weight], queries: &[usize]| metric.of(input, table, queries, cancel);

    let before = evaluated(&table, &split.measured)?;
    let first = metric.mean(&evaluated(&table, &split.choosing)?);
    let start = EpochRecord {
        epoch: 0,
        loss: None,
        not_retrieved: None,
        value: first,
        seconds: started.elapsed().as_secs_f64(),
    };
    let mut epochs = vec![start];
    let (mut best, mut best_epoch, mut stopped_early) = (table.clone(), 0, false);

    let spec = [ParamSpec { name: "query.idf.weight".to_owned(), shape: vec![table.len()], offset: 0 }];
    let settings = OptimizerSection { weight_decay: 0.0, max_grad_norm: None, ..OptimizerSection::default() };
    let mut optimizer = AdamW::new(&spec, &settings, |_| options.learning_rate);
    let mut stream = Stream::new(split.trained.len(), options.seed ^ 0x7475_6e65);
    let steps = split.trained.len().div_ceil(options.batch);
    let task = progress.start("Tuning", (options.epochs * split.trained.len()) as u64);
    let mut gradient = vec![0.0f32; table.len()];
    for epoch in 1..=options.epochs {
        let at = Instant::now();
        let (mut loss, mut not_retrieved) = (0.0, 0);
        for step in 0..steps {
            cancel.check()?;
            let count = options.batch.min(split.trained.len() - step * options.batch);
            let places = stream.take((epoch - 1) * split.trained.len() + step * options.batch, count);
            let batch: Vec<&TuneQuery> = places.iter().map(|&(_, i)| &input.queries[split.trained[i]]).collect();
            gradient.fill(0.0);
            for found in compared(input, &table, &batch, options)? {
                loss += found.add(&table, options.temperature, 1.0 / batch.len() as f64, &mut gradient);
                not_retrieved += usize::from(!found.was_retrieved);
            }
            if options.pull > 0.0 {
                for ((g, w), s) in gradient.iter_mut().zip(&table).zip(input.start) {
                    *g += (options.pull * f64::from(w - s)) as f32;
                }
            }
            if !(loss.is_finite() && optimizer.step(&mut table, &gradient, 1.0).is_finite()) {
                return Err(Error::config_with_hint(
                    format!("The loss is not finite in epoch {epoch}"),
                    "lower the learning rate",
                ));
            }
            for (weight, start) in table.iter_mut().zip(input.start) {
                // Special tokens have no weight and get none.
                *weight = if *start == 0.0 { 0.0 } else { weight.clamp(0.0, MAX_WEIGHT) };
            }
            task.advance(count as u64);
        }
        let value = metric.mean(&evaluated(&table, &split.choosing)?);
        let trained = split.trained.len() as f64;
        let record = EpochRecord {
            epoch,
            loss: Some(loss / trained),
            not_retrieved: Some(not_retrieved as f64 / trained),
            value,
            seconds: at.elapsed().as_secs_f64(),
        };
        task.message(&format!("epoch {epoch}: loss {:.4}, {} {value:.4}", loss / trained, options.metric));
        epochs.push(record);
        if value > epochs[best_epoch].value {
            (best, best_epoch) = (table.clone(), epoch);
        }
        if options.patience > 0 && epoch - best_epoch >= options.patience && epoch < options.epochs {
            stopped_early = true;
            break;
        }
    }

    let after = evaluated(&best, &split.measured)?;
    let resampling = Resampling { seed: options.seed, ..Resampling::default() };
    let (tokens_moved, tokens_zeroed) = moved_and_zeroed(input.start, &best);
    let (raised, lowered) = changes(input, &best);
    let report = TuneReport {
        options: options.clone(),
        trained_queries: split.trained.len(),
        choosing_queries: split.choosing.len(),
        measured_queries: split.measured.len(),
        left_out_queries: split.left_out,
        epochs,
        best_epoch,
        stopped_early,
        before: metric.mean(&before),
        after: metric.mean(&after),
        comparison: compare_evaluations(&before, &after, &options.metric, &resampling)
            .map_err(|e| Error::config(e.to_string()))?,
        tokens_moved,
        tokens_zeroed,
        raised,
        lowered,
        seconds: started.elapsed().as_secs_f64(),
    };
    Ok((best, report))
}

/// A query as a table weighs it; tokens of weight 0 are left out.
fn vector(table: &[Weight], tokens: &[TokenId]) -> SparseVector {
    let kept = tokens.iter().filter(|&&id| table[id as usize] > SILENT);
    let (ids, weights) = kept.map(|&id| (id, table[id as usize])).unzip();
    SparseVector { ids, weights }
}

/// The hits of some queries.
fn search(input: &TuneInput<'_>, table: &[Weight], queries: &[&TuneQuery], depth: usize) -> Result<Vec<Vec<Hit>>> {
    let asked: Vec<SearchQuery> = queries
        .iter()
        .map(|q| SearchQuery { id: q.id.clone(), text: q.text.clone(), vector: vector(table, &q.tokens) })
        .collect();
    Ok(input.searcher.search(&asked, depth)?)
}

/// One query's documents: the positive first.
struct Compared<'a> {
    tokens: &'a [TokenId],
    documents: Vec<&'a SparseVector>,
    was_retrieved: bool,
}

/// For each query the first retrieved relevant document and the hits that are not relevant; where no relevant one was
/// retrieved, the one that scores best.
fn compared<'a>(
    input: &TuneInput<'a>,
    table: &[Weight],
    batch: &[&'a TuneQuery],
    options: &TuneOptions,
) -> Result<Vec<Compared<'a>>> {
    let known = |id: &str| {
        input.documents.get(id).copied().ok_or_else(|| {
            Error::config_with_hint(
                format!("The search found the document `{id}`, of which there is no vector"),
                "index and vectors must be of the same documents",
            )
        })
    };
    let mut out = Vec::with_capacity(batch.len());
    for (query, hits) in batch.iter().zip(search(input, table, batch, options.depth)?) {
        let is_relevant = |id: &str| query.grades.get(id).is_some_and(|&g| g > 0);
        let retrieved = hits.iter().find(|h| is_relevant(&h.id));
        let positive = match retrieved {
            Some(hit) => known(&hit.id)?,
            None => best_positive(input, table, query)?,
        };
        let mut documents = vec![positive];
        for hit in hits.iter().filter(|h| !is_relevant(&h.id)) {
            documents.push(known(&hit.id)?);
        }
        out.push(Compared { tokens: &query.tokens, documents, was_retrieved: retrieved.is_some() });
    }
    Ok(out)
}

/// A query's relevant document that scores best; of equals the first by id.
fn best_positive<'a>(input: &TuneInput<'a>, table: &[Weight], query: &TuneQuery) -> Result<&'a SparseVector> {
    let asked = vector(table, &query.tokens);
    let mut best: Option<(f64, &SparseVector)> = None;
    for (id, _) in query.grades.iter().filter(|(_, g)| **g > 0) {
        if let Some(&document) = input.documents.get(id.as_str()) {
            let score = asked.dot(document);
            if best.is_none_or(|(most, _)| score > most) {
                best = Some((score, document));
            }
        }
    }
    best.map(|(_, document)| document)
        .ok_or_else(|| Error::config(format!("The query `{}` has no relevant document in the corpus", query.id)))
}

impl Compared<'_> {
    /// The query's cross entropy `−log softmax(s / τ)` at the positive; adds `share` of its slopes in the weights of
    /// the query's tokens, those of weight 0 among them.
    fn add(&self, table: &[Weight], temperature: f64, share: f64, gradient: &mut [f32]) -> f64 {
        let score = |document: &SparseVector| -> f64 {
            self.tokens.iter().map(|&id| f64::from(table[id as usize]) * f64::from(document.weight(id))).sum()
        };
        let logits: Vec<f64> = self.documents.iter().map(|d| score(d) / temperature).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = most + logits.iter().map(|l| (l - most).exp()).sum::<f64>().ln();
        for (place, (document, logit)) in self.documents.iter().zip(&logits).enumerate() {
            let slope = share * ((logit - log_sum).exp() - f64::from(u8::from(place == 0))) / temperature;
            for &id in self.tokens {
                gradient[id as usize] += (slope * f64::from(document.weight(id))) as f32;
            }
        }
        log_sum - logits[0]
    }
}

/// Which queries are trained on, choose, and are measured.
struct Split {
    trained: Vec<usize>,
    choosing: Vec<usize>,
    measured: Vec<usize>,
    left_out: usize,
}

impl Split {
    fn new(input: &TuneInput<'_>, options: &TuneOptions) -> Result<Self> {
        let usable = |q: &TuneQuery| {
            q.tokens.iter().any(|&id| input.start[id as usize] > SILENT)
                && q.grades.iter().any(|(id, &g)| g > 0 && input.documents.contains_key(id.as_str()))
        };
        let mut all: Vec<usize> = (0..input.queries.len()).filter(|&i| usable(&input.queries[i])).collect();
        let left_out = input.queries.len() - all.len();
        all.shuffle(&mut rand_chacha::ChaCha8Rng::seed_from_u64(options.seed ^ 0x6865_6c64));
        let half = (all.len() as f64 * options.held_out / 2.0).round() as usize;
        if half == 0 || 2 * half >= all.len() {
            return Err(Error::config_with_hint(
                format!(
                    "{} queries can be used ({left_out} have no relevant document or no token): too few to train on \
                     some, choose by some and measure on others",
                    all.len()
                ),
                "name a split with more judged queries, or another share that is held out",
            ));
        }
        let mut trained = all.split_off(2 * half);
        let mut measured = all.split_off(half);
        for part in [&mut trained, &mut all, &mut measured] {
            part.sort_unstable();
        }
        Ok(Self { trained, choosing: all, measured, left_out })
    }
}

/// The metric, known to be one.
struct Metric<'a> {
    name: &'a str,
    options: EvalOptions,
}

impl<'a> Metric<'a> {
    fn new(name: &'a str) -> Result<Self> {
        let mut options = EvalOptions::default();
        if let Some(k) = name.split_once('@').and_then(|(_, k)| k.parse().ok()) {
            options.ks = vec![k];
        }
        let one = evaluate(&Qrels::from([("q".to_owned(), BTreeMap::new())]), &Run::new(), &options);
        if !one.mean.contains_key(name) {
            let names: Vec<&str> = one.mean.keys().map(String::as_str).collect();
            return Err(Error::config(format!("the metric `{name}` is not known; there are {}", names.join(", "))));
        }
        Ok(Self { name, options })
    }

    fn of(&self, input: &TuneInput<'_>, table: &[Weight], queries: &[usize], cancel: &Cancel) -> Result<Evaluation> {
        let depth = self.options.ks.iter().copied().max().unwrap_or(0).max(EVALUATION_DEPTH);
        let (mut run, mut qrels) = (Run::new(), Qrels::new());
        for block in queries.chunks(BLOCK) {
            cancel.check()?;
            let block: Vec<&TuneQuery> = block.iter().map(|&i| &input.queries[i]).collect();
            for (query, hits) in block.iter().zip(search(input, table, &block, depth)?) {
                run.insert(query.id.clone(), hits);
                qrels.insert(query.id.clone(), query.grades.iter().map(|(d, &g)| (d.clone(), g)).collect());
            }
        }
        Ok(evaluate(&qrels, &run, &self.options))
    }

    fn mean(&self, evaluation: &Evaluation) -> f64 {
        evaluation.mean.get(self.name).copied().unwrap_or_default()
    }
}

/// The tokens that gained and lost most.
fn changes(input: &TuneInput<'_>, table: &[Weight]) -> (Vec<TokenChange>, Vec<TokenChange>) {
    let mut moved: Vec<usize> = (0..table.len()).filter(|&i| table[i].to_bits() != input.start[i].to_bits()).collect();
    let by = |i: usize| table[i] - input.start[i];
    moved.sort_by(|&a, &b| by(b).total_cmp(&by(a)).then(a.cmp(&b)));
    let change = |i: usize| TokenChange { token: input.vocabulary[i].clone(), before: input.start[i], after: table[i] };
    let raised = moved.iter().filter(|&&i| by(i) > 0.0).take(LISTED).map(|&i| change(i)).collect();
    let lowered = moved.iter().rev().filter(|&&i| by(i) < 0.0).take(LISTED).map(|&i| change(i)).collect();
    (raised, lowered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_equal_differences() {
        let documents: Vec<SparseVector> =
            [vec![(1, 0.5), (2, 1.5), (3, 0.25)], vec![(1, 1.0), (3, 2.0)], vec![(2, 0.75), (5, 1.0)], vec![(5, 3.0)]]
                .map(SparseVector::from_pairs)
                .into();
        let compared = Compared { tokens: &[1, 2, 3, 4], documents: documents.iter().collect(), was_retrieved: true };
        // Token 3 has no weight, but a slope.
        let table = [0.0f32, 1.2, 0.4, 0.0, 2.0, 1.0];
        let mut gradient = [0.0f32; 6];
        compared.add(&table, 0.7, 0.5, &mut gradient);
        for (i, got) in gradient.iter().enumerate() {
            let at = |step: f32| {
                let mut moved = table;
                moved[i] += step;
                0.5 * compared.add(&moved, 0.7, 0.0, &mut [0.0; 6])
            };
            let difference = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((difference - f64::from(*got)).abs() < 1e-4, "{i}: {difference} {got}");
        }
        assert!(gradient[3] != 0.0 && gradient[4].to_bits() == 0 && gradient[5].to_bits() == 0);
    }
}

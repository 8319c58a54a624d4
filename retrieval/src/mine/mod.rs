//! Hard negatives: documents that a searcher ranks high for a query and that nobody judged as answers.
//!
//! For each training query the searcher's ranks `first_rank..=depth` are the candidates, less every judged
//! positive of that query and every copy of a positive's text, and less what the [`Filters`] leave out; `samples`
//! of them are drawn evenly, anew for each positive. The draw depends on the seed and the query's id only, so
//! neither the order of queries nor threads change it. [`union`] joins rows of other miners.

use std::collections::{BTreeMap, HashMap, HashSet};

use nsparse_core::beir::{Document, Query};
use nsparse_core::rows::TrainingRow;
use nsparse_core::{Cancel, DocumentTemplate, Hit, Progress, Qrels, SearchQuery, Searcher, SparseVector};
use serde::{Deserialize, Serialize};

use crate::metrics::trec_order;
use crate::{Error, Result};

mod draw;
pub mod filters;
pub mod sentences;
#[cfg(test)]
mod tests;
pub mod union;

use draw::{Candidate, Draw};
pub use filters::{Filtered, Filters, Judge, MarginFrom, PairJudge, StoredScores};
pub use sentences::{SentenceOptions, SentenceReport, sentence_rows, sentences};
pub use union::{Union, UnionReport};

/// What is mined, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct MineOptions {
    /// How many hits of a query are looked at; the last rank of the window.
    pub depth: usize,
    /// First rank of the window, from 1: above 1, the very best hits (often unjudged answers) are passed over.
    pub first_rank: usize,
    /// Negatives a row.
    pub samples: usize,
    /// The seed.
    pub seed: u64,
    /// How documents become the rows' texts.
    pub template: DocumentTemplate,
    /// Limits on the candidates' scores.
    pub filters: Filters,
    /// The searcher's name in the rows' `source`: "bm25-local".
    pub engine: String,
    /// What tells the searcher's model from others, for `source`.
    pub model: Option<String>,
    /// The teacher's name, for `source`.
    pub teacher: Option<String>,
    /// Queries a call of the searcher; also how often it can be stopped.
    pub batch: usize,
}

impl Default for MineOptions {
    fn default() -> Self {
        Self {
            depth: 100,
            first_rank: 1,
            samples: 7,
            seed: 42,
            template: DocumentTemplate::default(),
            filters: Filters::default(),
            engine: "bm25-local".to_owned(),
            model: None,
            teacher: None,
            batch: 64,
        }
    }
}

impl MineOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// If a count is 0, the window is empty, or a filter lets nothing pass.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String, hint: &str| Err(Error::Option { message, hint: hint.to_owned() });
        if self.samples == 0 {
            return wrong("0 negatives a row were asked for".to_owned(), "ask for at least 1 sample");
        }
        if self.batch == 0 {
            return wrong("A batch of 0 queries was asked for".to_owned(), "ask for at least 1 query a batch");
        }
        if self.first_rank == 0 || self.first_rank > self.depth {
            return wrong(
                format!("The window from rank {} to {} holds no document", self.first_rank, self.depth),
                "ranks count from 1, and the depth is the window's last rank",
            );
        }
        self.filters.validate()?;
        self.template.validate()?;
        Ok(())
    }

    /// What the rows say about their origin.
    pub fn source(&self) -> String {
        let named = |name: &str, value: &Option<String>| {
            value.as_ref().map_or_else(String::new, |value| format!(" {name}={value}"))
        };
        format!(
            "engine={}{} ranks={}-{} samples={} seed={}{}{}",
            self.engine,
            named("model", &self.model),
            self.first_rank,
            self.depth,
            self.samples,
            self.seed,
            self.filters.source(),
            named("teacher", &self.teacher),
        )
    }
}

/// What came out, in counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MiningReport {
    /// Queries with at least one positive: those that were searched.
    pub queries: usize,
    /// Queries left out because no document is judged positive for them.
    pub without_positives: usize,
    /// Rows made, one a pair of query and positive.
    pub rows: usize,
    /// Negatives in all rows.
    pub negatives: usize,
    /// Queries with fewer candidates than samples for one of their positives; such rows hold what there is.
    pub too_few: usize,
    /// Queries without any candidate for one of their positives; such rows hold no negative.
    pub without_negatives: usize,
    /// Hits passed over because they are judged positives of their query.
    pub positives_excluded: usize,
    /// Hits passed over because their text equals a positive's.
    pub copies_excluded: usize,
    /// Candidates left out by their scores.
    pub filtered: Filtered,
    /// Positives that were not among the hits; where a margin is asked for, their scores were looked up.
    pub positives_not_found: usize,
    /// Positives with a score of 0: they share nothing with their query, so no candidate passes a margin.
    pub positives_out_of_reach: usize,
    /// Positives that the teacher has no score for.
    pub positives_unscored: usize,
    /// Judged positives that the corpus does not have, as `query/document`; no row is written for them.
    pub missing_positives: Vec<String>,
    /// What the rows say about their origin.
    pub source: String,
}

/// Queries for a searcher that reads texts.
pub fn text_queries(queries: &[Query]) -> Vec<SearchQuery> {
    queries
        .iter()
        .map(|q| SearchQuery { id: q.id.clone(), text: q.text.clone(), vector: SparseVector::default() })
        .collect()
}

/// Mines negatives for every query that has a positive (a grade above 0) in `qrels`. Rows stand in the order
/// of `queries`, those of one query in the order of their positives' ids.
///
/// # Errors
/// If an option is out of its range, the searcher fails, a hit is not in the corpus, or the user stops it.
pub fn mine(
    searcher: &dyn Searcher,
    queries: &[SearchQuery],
    qrels: &Qrels,
    documents: &[Document],
    options: &MineOptions,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Vec<TrainingRow>, MiningReport)> {
    let mut all = Vec::new();
    let miner = Miner::new(searcher, None, qrels, documents, options)?;
    let report = miner.run(
        queries,
        &mut |found| {
            all.extend(found.rows);
            Ok(())
        },
        cancel,
        progress,
    )?;
    Ok((all, report))
}

/// What one query gave.
#[derive(Debug)]
pub struct Found<'a> {
    /// The query.
    pub query: &'a SearchQuery,
    /// Its hits to the window's depth, best first, ties by id as `trec_eval` breaks them.
    pub hits: &'a [Hit],
    /// Its rows.
    pub rows: Vec<TrainingRow>,
}

/// A mining over a corpus.
pub struct Miner<'a> {
    searcher: &'a dyn Searcher,
    judge: Option<&'a dyn Judge>,
    qrels: &'a Qrels,
    corpus: HashMap<&'a str, &'a Document>,
    options: &'a MineOptions,
    source: String,
}

struct Positive<'a> {
    id: &'a str,
    text: String,
    /// What margins are taken from.
    score: Option<f32>,
}

impl<'a> Miner<'a> {
    /// Over a searcher, with a teacher whose scores the filters look at, if there is one.
    ///
    /// # Errors
    /// If an option is out of its range, or a teacher has nothing to judge.
    pub fn new(
        searcher: &'a dyn Searcher,
        judge: Option<&'a dyn Judge>,
        qrels: &'a Qrels,
        documents: &'a [Document],
        options: &'a MineOptions,
    ) -> Result<Self> {
        options.validate()?;
        if judge.is_some() {
            options.filters.require_any()?;
        }
        let corpus = documents.iter().map(|d| (d.id.as_str(), d)).collect();
        Ok(Self { searcher, judge, qrels, corpus, options, source: options.source() })
    }

    /// Hands over what each query with a positive gives, in the order of `queries`.
    ///
    /// # Errors
    /// If the searcher, the teacher or `take` fails, a hit is not in the corpus, or the user stops it.
    pub fn run(
        &self,
        queries: &[SearchQuery],
        take: &mut dyn FnMut(Found<'_>) -> Result<()>,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<MiningReport> {
        let mut report = MiningReport { source: self.source.clone(), ..MiningReport::default() };
        let has_positive = |q: &&SearchQuery| self.qrels.get(&q.id).is_some_and(|j| j.values().any(|&g| g > 0));
        let (with, without): (Vec<&SearchQuery>, Vec<&SearchQuery>) = queries.iter().partition(has_positive);
        report.queries = with.len();
        report.without_positives = without.len();
        let task = progress.start("Mining negatives", with.len() as u64);
        for batch in with.chunks(self.options.batch) {
            cancel.check()?;
            let batch: Vec<SearchQuery> = batch.iter().map(|q| (*q).clone()).collect();
            for (query, mut hits) in batch.iter().zip(self.searcher.search(&batch, self.options.depth)?) {
                cancel.check()?;
                // Engines break ties in their own ways; this order is the same for all.
                hits.sort_by(trec_order);
                hits.truncate(self.options.depth);
                let rows = self.one_query(query, &hits, &mut report)?;
                report.rows += rows.len();
                report.negatives += rows.iter().map(|r| r.negs.len()).sum::<usize>();
                take(Found { query, hits: &hits, rows })?;
                task.advance(1);
            }
        }
        Ok(report)
    }

    fn text(&self, id: &str) -> Option<String> {
        self.corpus.get(id).map(|d| self.options.template.apply(d))
    }

    fn one_query(&self, query: &SearchQuery, hits: &[Hit], report: &mut MiningReport) -> Result<Vec<TrainingRow>> {
        let judgments = &self.qrels[&query.id];
        let mut positives: Vec<Positive<'_>> = Vec::new();
        for id in judgments.iter().filter(|(_, grade)| **grade > 0).map(|(id, _)| id.as_str()) {
            match self.text(id) {
                Some(text) => positives.push(Positive { id, text, score: None }),
                None => report.missing_positives.push(format!("{}/{id}", query.id)),
            }
        }
        let candidates = self.candidates(hits, judgments, &positives, report)?;
        self.score_positives(query, hits, &mut positives, report)?;
        let mut draw = Draw::new(self, query, candidates)?;
        let mut rows = Vec::with_capacity(positives.len());
        for positive in &positives {
            let drawn = draw.negatives(positive.score, report)?;
            let negatives = drawn.iter().map(|&i| &draw.candidates[i]);
            rows.push(TrainingRow {
                query: query.text.clone(),
                pos: Some(positive.text.clone()),
                negs: negatives.clone().map(|c| c.text.clone()).collect(),
                query_id: Some(query.id.clone()),
                pos_id: Some(positive.id.to_owned()),
                neg_ids: negatives.map(|c| c.id.clone()).collect(),
                source: Some(self.source.clone()),
                ..TrainingRow::default()
            });
        }
        report.too_few += usize::from(rows.iter().any(|r| r.negs.len() < self.options.samples));
        report.without_negatives += usize::from(rows.iter().any(|r| r.negs.is_empty()));
        Ok(rows)
    }

    /// The window's documents that are no positives and no copies of one, in rank order.
    fn candidates(
        &self,
        hits: &[Hit],
        judgments: &BTreeMap<String, i64>,
        positives: &[Positive<'_>],
        report: &mut MiningReport,
    ) -> Result<Vec<Candidate>> {
        let texts: HashSet<&str> = positives.iter().map(|p| p.text.as_str()).collect();
        let mut candidates = Vec::new();
        for hit in hits.iter().skip(self.options.first_rank - 1) {
            if judgments.get(&hit.id).is_some_and(|&grade| grade > 0) {
                report.positives_excluded += 1;
                continue;
            }
            let Some(text) = self.text(&hit.id) else {
                return Err(Error::Option {
                    message: format!("The searcher found `{}`, which the corpus does not have", hit.id),
                    hint: "the index was made from another corpus: make it again".to_owned(),
                });
            };
            if texts.contains(text.as_str()) {
                report.copies_excluded += 1;
            } else {
                candidates.push(Candidate { id: hit.id.clone(), text, score: hit.score });
            }
        }
        Ok(candidates)
    }

    /// The scores that margins are taken from: the teacher's; else the searcher's, looked up for positives that are
    /// not among the hits.
    fn score_positives(
        &self,
        query: &SearchQuery,
        hits: &[Hit],
        positives: &mut [Positive<'_>],
        report: &mut MiningReport,
    ) -> Result<()> {
        let found: HashMap<&str, f32> = hits.iter().map(|h| (h.id.as_str(), h.score)).collect();
        report.positives_not_found += positives.iter().filter(|p| !found.contains_key(p.id)).count();
        if !self.options.filters.needs_positive() {
            return Ok(());
        }
        if let Some(judge) = self.judge {
            let named: Vec<(&str, &str)> = positives.iter().map(|p| (p.id, p.text.as_str())).collect();
            let scores = judge.scores(query, &named)?;
            for (positive, score) in positives.iter_mut().zip(scores) {
                positive.score = score;
            }
            report.positives_unscored += positives.iter().filter(|p| p.score.is_none()).count();
        } else {
            let lost: Vec<&str> = positives.iter().map(|p| p.id).filter(|id| !found.contains_key(id)).collect();
            let looked_up = self.look_up(query, &lost)?;
            for positive in positives.iter_mut() {
                positive.score = found.get(positive.id).or_else(|| looked_up.get(positive.id)).copied();
            }
            report.positives_out_of_reach += positives.iter().filter(|p| p.score == Some(0.0)).count();
        }
        if self.options.filters.margin_from == MarginFrom::Lowest {
            let lowest = positives.iter().filter_map(|p| p.score).min_by(f32::total_cmp);
            for positive in positives {
                positive.score = lowest;
            }
        }
        Ok(())
    }

    fn look_up(&self, query: &SearchQuery, ids: &[&str]) -> Result<HashMap<String, f32>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let mut scores: HashMap<String, f32> = ids.iter().map(|id| ((*id).to_owned(), 0.0)).collect();
        if let Some(found) = self.searcher.score(query, ids)? {
            scores.extend(ids.iter().map(|id| (*id).to_owned()).zip(found));
        } else {
            // A searcher that only ranks: whatever shares something with the query is in its whole ranking.
            let all = self.searcher.search(std::slice::from_ref(query), self.corpus.len())?;
            for hit in all.into_iter().flatten() {
                scores.entry(hit.id).and_modify(|score| *score = hit.score);
            }
        }
        Ok(scores)
    }
}

//! Hard negatives: documents that a searcher ranks high for a query and that nobody judged as answers.
//!
//! For each training query the searcher's ranks `first_rank..=depth` are the candidates, less every judged
//! positive of that query and every copy of a positive's text; `samples` of them are drawn evenly, anew for
//! each positive. The draw depends on the seed and the query's id only, so neither the order of queries nor
//! threads change it.

use std::collections::{BTreeMap, HashMap, HashSet};

use nsparse_core::beir::{Document, Query};
use nsparse_core::rows::TrainingRow;
use nsparse_core::{Cancel, DocumentTemplate, Hit, Progress, Qrels, SearchQuery, Searcher, SparseVector};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::metrics::trec_order;
use crate::{Error, Result};

/// What is mined, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// The searcher's name in the rows' `source`: "bm25-local".
    pub engine: String,
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
            engine: "bm25-local".to_owned(),
            batch: 64,
        }
    }
}

impl MineOptions {
    /// Checks the ranges.
    ///
    /// # Errors
    /// If a count is 0 or the window is empty.
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
        self.template.validate()?;
        Ok(())
    }

    /// What the rows say about their origin.
    pub fn source(&self) -> String {
        format!(
            "engine={} ranks={}-{} samples={} seed={}",
            self.engine, self.first_rank, self.depth, self.samples, self.seed
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
    /// Rows written, one a pair of query and positive.
    pub rows: usize,
    /// Negatives in all rows.
    pub negatives: usize,
    /// Queries with fewer candidates than samples; their rows hold what there is.
    pub too_few: usize,
    /// Queries without any candidate; their rows hold no negative.
    pub without_negatives: usize,
    /// Hits passed over because they are judged positives of their query.
    pub positives_excluded: usize,
    /// Hits passed over because their text equals a positive's.
    pub copies_excluded: usize,
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
    options.validate()?;
    let corpus: HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
    let mut report = MiningReport { source: options.source(), ..MiningReport::default() };
    let none = BTreeMap::new();
    let (with, without): (Vec<&SearchQuery>, Vec<&SearchQuery>) =
        queries.iter().partition(|q| qrels.get(&q.id).unwrap_or(&none).values().any(|&g| g > 0));
    report.queries = with.len();
    report.without_positives = without.len();
    let mut rows = Vec::new();
    let task = progress.start("Mining negatives", with.len() as u64);
    for batch in with.chunks(options.batch) {
        cancel.check()?;
        let batch: Vec<SearchQuery> = batch.iter().map(|q| (*q).clone()).collect();
        for (query, hits) in batch.iter().zip(searcher.search(&batch, options.depth)?) {
            one_query(query, hits, &qrels[&query.id], &corpus, options, &mut rows, &mut report)?;
        }
        task.advance(batch.len() as u64);
    }
    report.rows = rows.len();
    report.negatives = rows.iter().map(|r| r.negs.len()).sum();
    Ok((rows, report))
}

fn one_query(
    query: &SearchQuery,
    mut hits: Vec<Hit>,
    judgments: &BTreeMap<String, i64>,
    corpus: &HashMap<&str, &Document>,
    options: &MineOptions,
    rows: &mut Vec<TrainingRow>,
    report: &mut MiningReport,
) -> Result<()> {
    let text = |id: &str| corpus.get(id).map(|d| options.template.apply(d));
    let mut positives: Vec<(&str, String)> = Vec::new();
    for id in judgments.iter().filter(|(_, grade)| **grade > 0).map(|(id, _)| id.as_str()) {
        match text(id) {
            Some(text) => positives.push((id, text)),
            None => report.missing_positives.push(format!("{}/{id}", query.id)),
        }
    }
    let positive_texts: HashSet<&str> = positives.iter().map(|(_, text)| text.as_str()).collect();
    // Engines break ties in their own ways; this order is the same for all.
    hits.sort_by(trec_order);
    let mut candidates: Vec<(String, String)> = Vec::new();
    for hit in hits.into_iter().take(options.depth).skip(options.first_rank - 1) {
        if judgments.get(&hit.id).is_some_and(|&grade| grade > 0) {
            report.positives_excluded += 1;
            continue;
        }
        let Some(text) = text(&hit.id) else {
            return Err(Error::Option {
                message: format!("The searcher found `{}`, which the corpus does not have", hit.id),
                hint: "the index was made from another corpus: make it again".to_owned(),
            });
        };
        if positive_texts.contains(text.as_str()) {
            report.copies_excluded += 1;
        } else {
            candidates.push((hit.id, text));
        }
    }
    report.too_few += usize::from(candidates.len() < options.samples);
    report.without_negatives += usize::from(candidates.is_empty());
    let mut rng = query_rng(options.seed, &query.id);
    for (id, text) in &positives {
        // Drawn evenly, written in rank order.
        let amount = options.samples.min(candidates.len());
        let mut drawn = rand::seq::index::sample(&mut rng, candidates.len(), amount).into_vec();
        drawn.sort_unstable();
        rows.push(TrainingRow {
            query: query.text.clone(),
            pos: Some(text.clone()),
            negs: drawn.iter().map(|&i| candidates[i].1.clone()).collect(),
            query_id: Some(query.id.clone()),
            pos_id: Some((*id).to_owned()),
            neg_ids: drawn.iter().map(|&i| candidates[i].0.clone()).collect(),
            source: Some(report.source.clone()),
            ..TrainingRow::default()
        });
    }
    Ok(())
}

/// A generator that only the seed and the query's id decide.
fn query_rng(seed: u64, query: &str) -> ChaCha8Rng {
    let mut hasher = Sha256::new();
    hasher.update(seed.to_le_bytes());
    hasher.update(query.as_bytes());
    ChaCha8Rng::from_seed(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::NoProgress;
    use proptest::prelude::*;

    use super::*;

    /// Ranks all documents by number for every query; remembers nothing.
    struct Fixed {
        hits: Vec<Hit>,
    }

    impl Searcher for Fixed {
        fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
            Ok(queries.iter().map(|_| self.hits.iter().take(depth).cloned().collect()).collect())
        }
    }

    fn corpus(n: usize) -> Vec<Document> {
        (0..n)
            .map(|i| Document {
                id: format!("d{i:03}"),
                title: format!("title {i}"),
                text: format!("text {i}"),
                ..Document::default()
            })
            .collect()
    }

    fn fixed(n: usize) -> Fixed {
        Fixed { hits: (0..n).map(|i| Hit { id: format!("d{i:03}"), score: (n - i) as f32 }).collect() }
    }

    fn queries(n: usize) -> Vec<SearchQuery> {
        let queries: Vec<Query> = (0..n).map(|i| Query { id: format!("q{i}"), text: format!("query {i}") }).collect();
        text_queries(&queries)
    }

    fn qrels(rows: &[(&str, &str, i64)]) -> Qrels {
        let mut out = Qrels::new();
        for &(q, d, g) in rows {
            out.entry(q.to_owned()).or_default().insert(d.to_owned(), g);
        }
        out
    }

    fn run(
        searcher: &Fixed,
        queries: &[SearchQuery],
        qrels: &Qrels,
        documents: &[Document],
        options: &MineOptions,
    ) -> (Vec<TrainingRow>, MiningReport) {
        mine(searcher, queries, qrels, documents, options, &Cancel::default(), &NoProgress).unwrap()
    }

    #[test]
    fn one_row_a_pair_and_no_positive_among_the_negatives() {
        let judged = qrels(&[("q0", "d000", 1), ("q0", "d003", 2), ("q0", "d001", 0), ("q1", "d001", 0)]);
        let options = MineOptions { depth: 6, samples: 4, ..MineOptions::default() };
        let (rows, report) = run(&fixed(20), &queries(3), &judged, &corpus(20), &options);
        assert_eq!(rows.len(), 2);
        // Ranks 1 to 6 less the two positives are exactly four candidates, the grade 0 among them.
        for (row, positive) in rows.iter().zip(["d000", "d003"]) {
            assert_eq!(row.pos_id.as_deref(), Some(positive));
            assert_eq!(row.neg_ids, ["d001", "d002", "d004", "d005"]);
            assert_eq!(row.negs[0], "title 1 text 1");
            assert_eq!(row.problem(), None);
            assert_eq!(row.source.as_deref(), Some("engine=bm25-local ranks=1-6 samples=4 seed=42"));
        }
        assert_eq!((report.queries, report.without_positives, report.rows, report.negatives), (1, 2, 2, 8));
        assert_eq!((report.positives_excluded, report.too_few, report.without_negatives), (2, 0, 0));
    }

    #[test]
    fn too_few_hits_are_counted_and_copies_of_the_positive_left_out() {
        let mut documents = corpus(3);
        documents[1].title = documents[0].title.clone();
        documents[1].text = documents[0].text.clone();
        let judged = qrels(&[("q0", "d000", 1)]);
        let options = MineOptions { samples: 2, ..MineOptions::default() };
        let (rows, report) = run(&fixed(3), &queries(1), &judged, &documents, &options);
        assert_eq!(rows[0].neg_ids, ["d002"]);
        assert_eq!((report.too_few, report.copies_excluded, report.without_negatives), (1, 1, 0));
        let (rows, report) = run(&fixed(1), &queries(1), &judged, &documents, &options);
        assert!(rows[0].negs.is_empty());
        assert_eq!((report.too_few, report.without_negatives, report.rows), (1, 1, 1));
    }

    #[test]
    fn the_window_passes_over_the_best() {
        let judged = qrels(&[("q0", "d019", 1)]);
        let options = MineOptions { first_rank: 4, depth: 6, samples: 3, ..MineOptions::default() };
        let (rows, _) = run(&fixed(20), &queries(1), &judged, &corpus(20), &options);
        assert_eq!(rows[0].neg_ids, ["d003", "d004", "d005"]);
    }

    #[test]
    fn positives_that_the_corpus_lacks_are_listed() {
        let judged = qrels(&[("q0", "d000", 1), ("q0", "gone", 1)]);
        let (rows, report) = run(&fixed(5), &queries(1), &judged, &corpus(5), &MineOptions::default());
        assert_eq!((rows.len(), report.missing_positives), (1, vec!["q0/gone".to_owned()]));
        let options = MineOptions::default();
        let error = mine(&fixed(6), &queries(1), &judged, &corpus(5), &options, &Cancel::default(), &NoProgress);
        assert!(error.unwrap_err().to_string().contains("`d005`"));
    }

    #[test]
    fn bad_options_and_a_stop() {
        let judged = qrels(&[("q0", "d000", 1)]);
        let good = MineOptions::default();
        for options in [
            MineOptions { samples: 0, ..good.clone() },
            MineOptions { batch: 0, ..good.clone() },
            MineOptions { first_rank: 0, ..good.clone() },
            MineOptions { first_rank: 101, ..good.clone() },
        ] {
            let result = mine(&fixed(5), &queries(1), &judged, &corpus(5), &options, &Cancel::default(), &NoProgress);
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Option { .. }) && error.hint().is_some(), "{options:?}");
        }
        let cancel = Cancel::default();
        cancel.cancel();
        let stopped = mine(&fixed(5), &queries(1), &judged, &corpus(5), &good, &cancel, &NoProgress);
        assert!(matches!(stopped, Err(Error::Core(nsparse_core::Error::Cancelled))));
    }

    proptest! {
        /// The same seed gives each query the same rows, whatever the order and the batches; another seed
        /// gives others; the negatives are distinct, in the window, and no positives.
        #[test]
        fn the_draw_belongs_to_the_query(seed in any::<u64>(), batch in 1usize..9, turn in 0usize..8) {
            let (documents, searcher) = (corpus(60), fixed(60));
            let judged: Qrels = (0..8)
                .map(|i| (format!("q{i}"), BTreeMap::from([(format!("d{:03}", i * 3), 1)])))
                .collect();
            let options = MineOptions { depth: 50, samples: 5, seed, ..MineOptions::default() };
            let (rows, _) = run(&searcher, &queries(8), &judged, &documents, &options);
            let mut turned = queries(8);
            turned.rotate_left(turn);
            let other = MineOptions { batch, ..options.clone() };
            let (mut again, _) = run(&searcher, &turned, &judged, &documents, &other);
            again.sort_by(|a, b| a.query_id.cmp(&b.query_id));
            prop_assert_eq!(&rows, &again);
            let reseeded = MineOptions { seed: seed ^ 1, ..options };
            let (different, _) = run(&searcher, &queries(8), &judged, &documents, &reseeded);
            prop_assert!(rows.iter().zip(&different).any(|(a, b)| a.neg_ids != b.neg_ids));
            for row in &rows {
                prop_assert_eq!(row.negs.len(), 5);
                let distinct: HashSet<&String> = row.neg_ids.iter().collect();
                prop_assert_eq!(distinct.len(), 5);
                prop_assert!(row.neg_ids.iter().all(|id| id.as_str() < "d050" && Some(id) != row.pos_id.as_ref()));
            }
        }
    }
}

#![allow(clippy::unwrap_used, reason = "a test may panic")]
use std::collections::BTreeSet;

use nsparse_core::rows::{joined_source, origins};
use nsparse_core::{NoProgress, Run, Scorer};
use proptest::prelude::*;

use super::*;
use crate::InvertedIndex;

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

/// One query with the positive `d002`, which scores 8; all others score 10, 9, 7, 6, …
fn with_limits(filters: Filters) -> (Vec<TrainingRow>, MiningReport) {
    let judged = qrels(&[("q0", "d002", 1)]);
    let options = MineOptions { depth: 10, samples: 10, filters, ..MineOptions::default() };
    run(&fixed(10), &queries(1), &judged, &corpus(10), &options)
}

#[test]
fn limits_on_scores_as_sentence_transformers_has_them() {
    let none = Filters::default();
    // s + 1.5 > 8: all above 6.5 go.
    let (rows, report) = with_limits(Filters { absolute_margin: Some(1.5), ..none.clone() });
    assert_eq!(rows[0].neg_ids, ["d004", "d005", "d006", "d007", "d008", "d009"]);
    assert_eq!(report.filtered, Filtered { absolute_margin: 3, ..Filtered::default() });
    // An equal distance stays.
    let (rows, _) = with_limits(Filters { absolute_margin: Some(1.0), ..none.clone() });
    assert_eq!(rows[0].neg_ids[0], "d003");
    // s > 8 - 8 · 0.5: all above 4 go.
    let (rows, report) = with_limits(Filters { relative_margin: Some(0.5), ..none.clone() });
    assert_eq!(rows[0].neg_ids, ["d006", "d007", "d008", "d009"]);
    assert_eq!(report.filtered, Filtered { relative_margin: 5, ..Filtered::default() });
    let (rows, report) = with_limits(Filters { max_score: Some(9.0), min_score: Some(5.0), ..none.clone() });
    assert_eq!(rows[0].neg_ids, ["d001", "d003", "d004", "d005"]);
    assert_eq!(report.filtered, Filtered { max_score: 1, min_score: 4, ..Filtered::default() });
    // What one limit took is not counted by the next.
    let both = Filters { absolute_margin: Some(0.0), max_score: Some(6.5), ..none };
    let (rows, report) = with_limits(both);
    assert_eq!(rows[0].neg_ids[0], "d004");
    assert_eq!(report.filtered, Filtered { absolute_margin: 2, max_score: 1, ..Filtered::default() });
    assert!(rows[0].source.as_ref().unwrap().ends_with("seed=42 absolute-margin=0 max-score=6.5"));
    assert_eq!(report.filtered.total(), 3);
}

#[test]
fn a_positive_beyond_the_window_is_looked_up() {
    let judged = qrels(&[("q0", "d008", 1)]);
    let filters = Filters { absolute_margin: Some(0.0), ..Filters::default() };
    let options = MineOptions { depth: 5, samples: 5, filters, ..MineOptions::default() };
    // It scores 2, and everything in the window more.
    let (rows, report) = run(&fixed(10), &queries(1), &judged, &corpus(10), &options);
    assert!(rows[0].negs.is_empty());
    assert_eq!((report.positives_not_found, report.positives_out_of_reach, report.filtered.total()), (1, 0, 5));
    // Its score is 0 where the searcher never finds it.
    let (rows, report) = run(&fixed(5), &queries(1), &judged, &corpus(10), &options);
    assert!(rows[0].negs.is_empty());
    assert_eq!((report.positives_not_found, report.positives_out_of_reach), (1, 1));
    // Without a margin nothing is asked of it.
    let options = MineOptions { filters: Filters::default(), ..options };
    let (rows, report) = run(&fixed(10), &queries(1), &judged, &corpus(10), &options);
    assert_eq!((rows[0].negs.len(), report.positives_not_found), (5, 1));
}

#[test]
fn a_margin_is_taken_from_the_rows_own_positive_or_from_the_lowest() {
    let judged = qrels(&[("q0", "d001", 1), ("q0", "d006", 1)]);
    let mined = |margin_from| {
        let filters = Filters { absolute_margin: Some(0.0), margin_from, ..Filters::default() };
        let options = MineOptions { samples: 10, filters, ..MineOptions::default() };
        let (rows, _) = run(&fixed(10), &queries(1), &judged, &corpus(10), &options);
        rows.into_iter().map(|r| r.neg_ids.len()).collect::<Vec<_>>()
    };
    assert_eq!(mined(MarginFrom::Own), [7, 3]);
    assert_eq!(mined(MarginFrom::Lowest), [3, 3]);
}

/// Scores a pair by the number at the end of the document's text; counts what it was asked.
struct Texts(std::cell::Cell<usize>);

impl Scorer for Texts {
    fn score(&self, pairs: &[(&str, &str)]) -> nsparse_core::Result<Vec<f32>> {
        self.0.set(self.0.get() + pairs.len());
        Ok(pairs.iter().map(|(_, text)| text.rsplit(' ').next().unwrap().parse().unwrap()).collect())
    }
}

fn judged_run(judge: &dyn Judge, options: &MineOptions, judged: &Qrels) -> (Vec<TrainingRow>, MiningReport) {
    let (documents, searcher) = (corpus(40), fixed(40));
    let miner = Miner::new(&searcher, Some(judge), judged, &documents, options).unwrap();
    let mut rows = Vec::new();
    let take = &mut |found: Found<'_>| {
        rows.extend(found.rows);
        Ok(())
    };
    let report = miner.run(&queries(4), take, &Cancel::default(), &NoProgress).unwrap();
    (rows, report)
}

#[test]
fn a_teacher_judges_in_place_of_the_searcher() {
    // By the searcher d010 stands above d020; by the teacher a document's number is its score.
    let judged = qrels(&[("q0", "d020", 1), ("q1", "d010", 1)]);
    let filters = Filters { relative_margin: Some(0.1), ..Filters::default() };
    let options = MineOptions { depth: 40, samples: 4, filters, ..MineOptions::default() };
    let stored: Run = (0..2)
        .map(|q| (format!("q{q}"), (0..40).map(|d| Hit { id: format!("d{d:03}"), score: d as f32 }).collect()))
        .collect();
    let scorer = Texts(std::cell::Cell::new(0));
    let (live, counted) = judged_run(&PairJudge(&scorer), &options, &judged);
    let (at_hand, all_counted) = judged_run(&StoredScores::new(stored), &options, &judged);
    // Scored one by one or all at once, the rows are the same.
    assert_eq!(live, at_hand);
    for row in &live {
        let limit = if row.query_id.as_deref() == Some("q0") { 18 } else { 9 };
        assert_eq!(row.neg_ids.len(), 4);
        assert!(row.neg_ids.iter().all(|id| id[1..].parse::<u32>().unwrap() <= limit), "{row:?}");
    }
    // Of q0's 39 candidates the 20 above 18 go, of q1's the 29 above 9 (without the positive).
    assert_eq!(all_counted.filtered.relative_margin, 20 + 29);
    assert!(counted.filtered.relative_margin < 49 && scorer.0.get() < 80, "{} {counted:?}", scorer.0.get());
}

#[test]
fn what_the_teacher_does_not_score_is_left_out_and_counted() {
    let judged = qrels(&[("q0", "d020", 1), ("q1", "d010", 1)]);
    let filters = Filters { absolute_margin: Some(0.0), ..Filters::default() };
    let options = MineOptions { depth: 40, samples: 40, filters, ..MineOptions::default() };
    let hit = |d: u32, score| Hit { id: format!("d{d:03}"), score };
    let stored = StoredScores::new(Run::from([
        ("q0".to_owned(), vec![hit(20, 5.0), hit(1, 4.0), hit(2, 6.0)]),
        ("q1".to_owned(), vec![hit(1, 4.0)]),
    ]));
    let (rows, report) = judged_run(&stored, &options, &judged);
    assert_eq!(rows[0].neg_ids, ["d001"]);
    assert!(rows[1].neg_ids.is_empty());
    assert_eq!((report.positives_unscored, report.filtered.absolute_margin), (1, 1));
    // 37 of q0 have no score; of q1 38 have none, and the one that has cannot be compared.
    assert_eq!(report.filtered.unscored, 37 + 39);
}

#[test]
fn an_index_scores_positives_with_the_bits_of_its_search() {
    let vector = |i: usize| SparseVector::from_pairs(vec![(1, 0.3 * i as f32 + 0.1), (i as u32 + 2, 1.7)]);
    let index = InvertedIndex::build((0..9).map(|i| (format!("d{i:03}"), vector(i))));
    let query = SearchQuery {
        id: "q".to_owned(),
        text: String::new(),
        vector: SparseVector::from_pairs(vec![(1, 0.7), (5, 1.3), (40, 1.0)]),
    };
    let hits = index.search(std::slice::from_ref(&query), 9).unwrap().remove(0);
    let ids: Vec<&str> = hits.iter().map(|h| h.id.as_str()).chain(["nobody"]).collect();
    let scores = index.score(&query, &ids).unwrap().unwrap();
    assert!(hits.iter().zip(&scores).all(|(hit, score)| hit.score.to_bits() == score.to_bits()));
    assert_eq!((hits.len(), scores[9]), (9, 0.0));
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let none = Filters::default();
    for filters in [
        Filters { absolute_margin: Some(-1.0), ..none.clone() },
        Filters { relative_margin: Some(1.5), ..none.clone() },
        Filters { relative_margin: Some(f32::NAN), ..none.clone() },
        Filters { max_score: Some(f32::INFINITY), ..none.clone() },
        Filters { max_score: Some(1.0), min_score: Some(2.0), ..none.clone() },
        Filters { margin_from: MarginFrom::Lowest, max_score: Some(1.0), ..none.clone() },
    ] {
        let options = MineOptions { filters, ..MineOptions::default() };
        let error = options.validate().unwrap_err();
        assert!(matches!(error, Error::Option { .. }) && error.hint().is_some(), "{options:?}");
    }
    // A teacher without anything to judge.
    let (judged, documents, searcher) = (qrels(&[]), corpus(1), fixed(1));
    let (stored, options) = (StoredScores::default(), MineOptions::default());
    assert!(Miner::new(&searcher, Some(&stored), &judged, &documents, &options).is_err());
}

fn at_hand(query: &str, pos: &str, negs: &[&str], source: Option<&str>) -> TrainingRow {
    TrainingRow {
        query: format!("query {}", &query[1..]),
        query_id: Some(query.to_owned()),
        pos: Some(text(pos)),
        pos_id: Some(pos.to_owned()),
        negs: negs.iter().map(|d| text(d)).collect(),
        neg_ids: negs.iter().map(|d| (*d).to_owned()).collect(),
        source: source.map(str::to_owned),
        ..TrainingRow::default()
    }
}

fn text(id: &str) -> String {
    let number: u32 = id[1..].parse().unwrap();
    format!("title {number} text {number}")
}

fn union_of(rows: Vec<TrainingRow>, judged: &Qrels) -> Union {
    let mut union = Union::default();
    union.add(rows, "bm25.jsonl", judged, &corpus(20), &DocumentTemplate::default()).unwrap();
    union
}

#[test]
fn rows_of_one_query_and_positive_are_joined() {
    let judged = qrels(&[("q0", "d000", 1), ("q0", "d009", 1)]);
    let mined = at_hand("q0", "d000", &["d003", "d004"], Some("engine=sparse"));
    let mut union = union_of(
        vec![
            at_hand("q0", "d000", &["d004", "d009", "d005"], Some("engine=bm25")),
            at_hand("q7", "d001", &["d002"], None),
            at_hand("q0", "d000", &["d005", "d006"], None),
        ],
        &judged,
    );
    let mut joined = mined.clone();
    union.join(&mut joined);
    assert_eq!(joined.neg_ids, ["d003", "d004", "d005", "d006"]);
    assert_eq!(joined.negs, ["d003", "d004", "d005", "d006"].map(text));
    assert_eq!(joined.problem(), None);
    let source = joined.source.as_deref().unwrap();
    assert_eq!(source, "engine=sparse negatives=1-2 + engine=bm25 negatives=3-3 + bm25.jsonl negatives=4-4");
    let parts: Vec<_> = origins(source).collect();
    assert_eq!(parts, [("engine=sparse", Some((1, 2))), ("engine=bm25", Some((3, 3))), ("bm25.jsonl", Some((4, 4)))]);
    let (left, report) = union.finish();
    assert_eq!(left, [TrainingRow { source: Some("bm25.jsonl".to_owned()), ..at_hand("q7", "d001", &["d002"], None) }]);
    let expected =
        UnionReport { rows: 3, joined: 2, kept: 1, negatives_added: 2, duplicates: 2, positives_excluded: 1 };
    assert_eq!(report, expected);

    // A union of a union says each negative's own origin.
    let mut again = union_of(vec![joined.clone()], &judged);
    let mut other = at_hand("q0", "d000", &["d008", "d003"], Some("engine=idf"));
    again.join(&mut other);
    assert_eq!(other.neg_ids, ["d008", "d003", "d004", "d005", "d006"]);
    assert_eq!(
        other.source.unwrap(),
        "engine=idf negatives=1-2 + engine=sparse negatives=3-3 + engine=bm25 negatives=4-4 + bm25.jsonl negatives=5-5"
    );
}

#[test]
fn rows_without_ids_are_joined_by_their_texts() {
    let mut bare = at_hand("q0", "d000", &["d004", "d005", "d000"], None);
    bare.negs.push("somewhere else".to_owned());
    (bare.query_id, bare.pos_id, bare.neg_ids) = (None, None, Vec::new());
    let mut union = union_of(vec![bare], &qrels(&[]));
    let mut row = at_hand("q0", "d000", &["d004"], Some("mined"));
    union.join(&mut row);
    assert_eq!(row.neg_ids[..2], ["d004", "d005"]);
    assert!(row.neg_ids[2].starts_with("text:"));
    assert_eq!((row.negs.len(), row.negs[2].as_str()), (3, "somewhere else"));
    let (_, report) = union.finish();
    assert_eq!((report.duplicates, report.positives_excluded, report.negatives_added), (1, 1, 2));
    // Scored documents are no negatives.
    let scored = TrainingRow { query: "q".to_owned(), docs: vec!["d".to_owned()], ..TrainingRow::default() };
    let refused = Union::default().add(vec![scored], "kd.jsonl", &qrels(&[]), &[], &DocumentTemplate::default());
    assert!(refused.unwrap_err().to_string().contains("kd.jsonl"));
}

#[test]
fn one_origin_alone_needs_no_ranges() {
    assert_eq!(joined_source(["a", "a"]), "a");
    assert_eq!(joined_source([]), "");
    assert_eq!(joined_source(["a", "a", "b"]), "a negatives=1-2 + b negatives=3-3");
    assert_eq!(origins("plain").collect::<Vec<_>>(), [("plain", None)]);
}

proptest! {
    /// With limits and a teacher the draw still belongs to the query, and holds what a plain filter lets pass.
    #[test]
    fn a_judged_draw_belongs_to_the_query_too(seed in any::<u64>(), turn in 0usize..4, margin in 0u8..10) {
        let judged: Qrels =
            (0..4).map(|i| (format!("q{i}"), BTreeMap::from([(format!("d{:03}", 10 + i * 7), 1)]))).collect();
        let margin = f32::from(margin) / 10.0;
        let filters = Filters { relative_margin: Some(margin), ..Filters::default() };
        let options = MineOptions { depth: 30, samples: 3, seed, filters, ..MineOptions::default() };
        let (documents, searcher) = (corpus(40), fixed(40));
        let scorer = Texts(std::cell::Cell::new(0));
        let judge = PairJudge(&scorer);
        let miner = Miner::new(&searcher, Some(&judge), &judged, &documents, &options).unwrap();
        let mut turned = queries(4);
        turned.rotate_left(turn);
        let mined = |queries: &[SearchQuery]| {
            let mut rows = Vec::new();
            let take = &mut |found: Found<'_>| {
                rows.extend(found.rows);
                Ok(())
            };
            miner.run(queries, take, &Cancel::default(), &NoProgress).unwrap();
            rows.sort_by(|a: &TrainingRow, b| a.query_id.cmp(&b.query_id));
            rows
        };
        let rows = mined(&queries(4));
        prop_assert_eq!(&rows, &mined(&turned));
        for (i, row) in rows.iter().enumerate() {
            let positive = (10 + i * 7) as f32;
            let passing = (0..30).filter(|&d| d as f32 <= positive - positive * margin && d != 10 + i * 7).count();
            prop_assert_eq!(row.negs.len(), passing.min(3));
            prop_assert!(row.neg_ids.iter().all(|id| id[1..].parse::<f32>().unwrap() <= positive - positive * margin));
        }
    }
}

/// Scores every document, those that share nothing with the query included, as dense retrieval does.
struct Dense(Vec<(String, Vec<f32>)>, BTreeMap<String, Vec<f32>>);

impl Searcher for Dense {
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        let score = |q: &[f32], d: &[f32]| q.iter().zip(d).map(|(a, b)| a * b).sum::<f32>();
        let hits = |query: &SearchQuery| {
            let of = &self.1[&query.id];
            let mut hits: Vec<Hit> = self.0.iter().map(|(id, d)| Hit { id: id.clone(), score: score(of, d) }).collect();
            hits.sort_by(trec_order);
            hits.truncate(depth);
            hits
        };
        Ok(queries.iter().map(hits).collect())
    }
}

#[derive(Deserialize)]
struct Golden {
    documents: BTreeMap<String, Vec<f32>>,
    queries: BTreeMap<String, Vec<f32>>,
    positives: BTreeMap<String, Vec<String>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    limits: BTreeMap<String, f32>,
    kept: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
}

/// What `mine_hard_negatives` of sentence-transformers keeps (`golden/make_mining.py`).
#[test]
fn keeps_what_sentence_transformers_keeps() {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../integration-tests/golden/mining/expected.json"));
    let golden: Golden = serde_json::from_str(text).unwrap();
    let documents: Vec<Document> = golden
        .documents
        .keys()
        .map(|id| Document { id: id.clone(), text: id.clone(), ..Document::default() })
        .collect();
    let queries: Vec<Query> = golden.queries.keys().map(|id| Query { id: id.clone(), text: id.clone() }).collect();
    let judged: Qrels =
        golden.positives.iter().map(|(q, ds)| (q.clone(), ds.iter().map(|d| (d.clone(), 1)).collect())).collect();
    let searcher = Dense(golden.documents.into_iter().collect(), golden.queries);
    assert_eq!(golden.cases.len(), 9);
    for case in golden.cases {
        let limit = |name: &str| case.limits.get(name).copied();
        let mut filters = Filters {
            absolute_margin: limit("absolute_margin"),
            relative_margin: limit("relative_margin"),
            max_score: limit("max_score"),
            min_score: limit("min_score"),
            margin_from: MarginFrom::Own,
        };
        if filters.needs_positive() {
            // One of the queries has two positives.
            filters.margin_from = MarginFrom::Lowest;
        }
        for depth in [documents.len(), 12] {
            let options = MineOptions { depth, samples: 50, filters: filters.clone(), ..MineOptions::default() };
            let (cancel, queries) = (Cancel::default(), text_queries(&queries));
            let (rows, _) = mine(&searcher, &queries, &judged, &documents, &options, &cancel, &NoProgress).unwrap();
            assert_eq!(rows.len(), 7);
            for row in rows {
                let query = row.query_id.unwrap();
                let mut kept = case.kept[&query][&row.pos_id.unwrap()].clone();
                if depth < documents.len() {
                    let asked = SearchQuery { id: query, text: String::new(), vector: SparseVector::default() };
                    let window = searcher.search(&[asked], depth).unwrap().remove(0);
                    kept.retain(|id| window.iter().any(|hit| hit.id == *id));
                }
                assert_eq!(row.neg_ids.into_iter().collect::<BTreeSet<_>>(), kept, "{:?}", case.limits);
            }
        }
    }
}

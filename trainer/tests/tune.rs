//! Tuning of a query table over frozen documents.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};

use nsparse_core::{Cancel, Hit, NoProgress, SearchQuery, Searcher, SparseVector, Weight};
use nsparse_retrieval::InvertedIndex;
use nsparse_trainer::query_side::tune::{TuneInput, TuneOptions, TuneQuery, TuneReport, tune};

/// Tokens 1 to 10 tell topics apart, 11 to 20 mislead; 0 is special.
const TOKENS: usize = 31;

struct World {
    documents: Vec<(String, SparseVector)>,
    queries: Vec<TuneQuery>,
    start: Vec<Weight>,
    vocabulary: Vec<String>,
}

/// 100 documents, each of a topic and with a misleading token that weighs more; a query holds one of each, and its
/// relevant documents are those of its topic.
fn world() -> World {
    let mut documents = Vec::new();
    for d in 0..100u32 {
        let (topic, other, common) = (1 + d % 10, 11 + d / 10, 21 + d % 7);
        let pairs = vec![(topic, 1.0 + (d % 3) as f32 * 0.25), (other, 1.5), (common, 0.5)];
        documents.push((format!("d{d}"), SparseVector::from_pairs(pairs)));
    }
    let mut queries = Vec::new();
    for q in 0..80u32 {
        let (topic, other) = (1 + q % 10, 11 + (q / 10 + q) % 10);
        let grades: BTreeMap<String, i64> =
            (0..100).filter(|d| 1 + d % 10 == topic).map(|d| (format!("d{d}"), 1)).collect();
        queries.push(TuneQuery { id: format!("q{q}"), text: String::new(), tokens: vec![topic, other], grades });
    }
    let mut start = vec![2.0; TOKENS];
    start[0] = 0.0;
    World { documents, queries, start, vocabulary: (0..TOKENS).map(|i| format!("t{i}")).collect() }
}

fn options() -> TuneOptions {
    TuneOptions { batch: 8, learning_rate: 0.1, depth: 20, epochs: 6, held_out: 0.4, ..TuneOptions::default() }
}

fn tuned(
    world: &World,
    searcher: &dyn Searcher,
    options: &TuneOptions,
) -> nsparse_trainer::Result<(Vec<Weight>, TuneReport)> {
    let by_id: HashMap<&str, &SparseVector> = world.documents.iter().map(|(id, v)| (id.as_str(), v)).collect();
    let input = TuneInput {
        queries: &world.queries,
        documents: &by_id,
        searcher,
        start: &world.start,
        vocabulary: &world.vocabulary,
    };
    tune(&input, options, &Cancel::default(), &NoProgress)
}

#[test]
fn tokens_that_help_gain_and_rankings_with_them() {
    let world = world();
    let index = InvertedIndex::build(world.documents.clone());
    let (table, report) = tuned(&world, &index, &options()).unwrap();
    assert_eq!((report.trained_queries, report.choosing_queries, report.measured_queries), (48, 16, 16));
    let mean = |range: std::ops::Range<usize>| range.clone().map(|i| table[i]).sum::<f32>() / range.len() as f32;
    assert!(mean(1..11) > mean(11..21) + 0.5, "{table:?}");
    assert!(report.best_epoch > 0 && report.after > report.before + 0.2, "{report:?}");
    assert!(report.comparison.difference.low > 0.0, "{report:?}");
    // No query holds the others; special tokens have no weight.
    assert!(table[21..].iter().all(|w| w.to_bits() == 2.0f32.to_bits()) && table[0].to_bits() == 0);
    assert_eq!(report.tokens_moved, (1..21).filter(|&i| table[i].to_bits() != world.start[i].to_bits()).count());
    assert!(report.raised.iter().all(|c| c.after > c.before) && report.lowered.iter().all(|c| c.after < c.before));
    // The same again, bit for bit; another seed splits otherwise.
    let again = tuned(&world, &index, &options()).unwrap();
    assert_eq!(again.0, table);
    let other = tuned(&world, &index, &TuneOptions { seed: 7, ..options() }).unwrap();
    assert_ne!(other.0, table);
}

#[test]
fn a_large_step_leaves_tokens_out_and_never_goes_below_zero() {
    let world = world();
    let index = InvertedIndex::build(world.documents.clone());
    let (table, report) = tuned(&world, &index, &TuneOptions { learning_rate: 3.0, patience: 0, ..options() }).unwrap();
    assert!(table.iter().all(|&w| (0.0..=64.0).contains(&w)), "{table:?}");
    assert_eq!(report.epochs.len(), 7);
    assert!(report.tokens_zeroed > 0, "{report:?}");
    let zeroed = (1..TOKENS).filter(|&i| table[i] <= nsparse_core::idf::SILENT).count();
    assert_eq!(report.tokens_zeroed, zeroed);
}

#[test]
fn a_pull_keeps_the_table_near_its_start() {
    let world = world();
    let index = InvertedIndex::build(world.documents.clone());
    let distance = |pull: f64| {
        // Every epoch is seen through, the last one kept or not: how far the best one went is what is compared.
        let (table, _) = tuned(&world, &index, &TuneOptions { pull, ..options() }).unwrap();
        table.iter().zip(&world.start).map(|(a, b)| f64::from(a - b).abs()).sum::<f64>()
    };
    assert!(distance(1.0) < 0.7 * distance(0.0));
}

/// An index without the relevant documents: their own score stands in.
struct Without<'a>(&'a InvertedIndex, AtomicUsize);

impl Searcher for Without<'_> {
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        self.1.fetch_add(queries.len(), Ordering::SeqCst);
        let mut found = self.0.search(queries, depth)?;
        for (query, hits) in queries.iter().zip(&mut found) {
            let topic = (query.id[1..].parse::<usize>().unwrap()) % 10;
            hits.retain(|h| h.id[1..].parse::<usize>().unwrap() % 10 != topic);
        }
        Ok(found)
    }
}

#[test]
fn a_positive_that_was_not_retrieved_still_teaches() {
    let world = world();
    let index = InvertedIndex::build(world.documents.clone());
    let searcher = Without(&index, AtomicUsize::new(0));
    let (_, report) = tuned(&world, &searcher, &TuneOptions { patience: 0, ..options() }).unwrap();
    // Nothing relevant is ever found, so no epoch is better than the start.
    assert_eq!(report.best_epoch, 0);
    assert!(report.epochs[1..].iter().all(|e| (e.not_retrieved.unwrap() - 1.0).abs() < 1e-12));
    let losses: Vec<f64> = report.epochs.iter().filter_map(|e| e.loss).collect();
    assert!(losses[5] < 0.8 * losses[0], "{losses:?}");
    // Every epoch searches for all training and choosing queries, and the measured ones are searched twice.
    assert_eq!(searcher.1.load(Ordering::SeqCst), 6 * 48 + 7 * 16 + 2 * 16);
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut world = world();
    let index = InvertedIndex::build(world.documents.clone());
    let message = |world: &World, options: &TuneOptions| tuned(world, &index, options).unwrap_err().to_string();
    for (changed, part) in [
        (TuneOptions { epochs: 0, ..options() }, "epochs"),
        (TuneOptions { depth: 1, ..options() }, "depth"),
        (TuneOptions { held_out: 0.0, ..options() }, "held out"),
        (TuneOptions { learning_rate: f64::NAN, ..options() }, "learning rate"),
        (TuneOptions { metric: "ndgc@10".to_owned(), ..options() }, "ndcg@10"),
        (TuneOptions { held_out: 0.01, ..options() }, "too few"),
    ] {
        let message = message(&world, &changed);
        assert!(message.contains(part), "{part}: {message}");
    }
    let cancel = Cancel::default();
    cancel.cancel();
    let by_id: HashMap<&str, &SparseVector> = world.documents.iter().map(|(id, v)| (id.as_str(), v)).collect();
    let input = TuneInput {
        queries: &world.queries,
        documents: &by_id,
        searcher: &index,
        start: &world.start,
        vocabulary: &world.vocabulary,
    };
    assert!(tune(&input, &options(), &cancel, &NoProgress).is_err());
    // The index has a document of which there is no vector.
    world.documents.pop();
    assert!(message(&world, &options()).contains("d99"));
}

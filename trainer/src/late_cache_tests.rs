#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test may panic; copies are equal")]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::batches::BatchQuery;

const VOCAB: usize = 9;

fn query(pairs: &[(u32, f32)], positives: &[usize]) -> TrainingQuery {
    TrainingQuery {
        id: String::new(),
        text: String::new(),
        vector: SparseVector::from_pairs(pairs.to_vec()),
        positives: positives.to_vec(),
        grades: BTreeMap::new(),
    }
}

/// A batch whose query `i` has the positive in column `i`; all columns but other known positives are candidates.
fn batch(queries: &[usize], documents: &[usize], all: &[TrainingQuery]) -> Batch {
    let of = |(column, &query): (usize, &usize)| BatchQuery {
        query,
        positive: Some(column),
        others: Vec::new(),
        scores: Vec::new(),
        known: (0..documents.len()).filter(|&c| all[query].positives.contains(&documents[c])).collect(),
    };
    Batch { queries: queries.iter().enumerate().map(of).collect(), documents: documents.to_vec() }
}

fn sets(batch: &Batch) -> Vec<Option<CandidateSet>> {
    (0..batch.queries.len()).map(|b| batch.candidates(b, crate::sections::Candidates::Batch)).collect()
}

fn scores(batch: &Batch, queries: &[TrainingQuery], weights: &[f32]) -> Scores {
    let vectors: Vec<&SparseVector> = batch.queries.iter().map(|q| &queries[q.query].vector).collect();
    Scores::of(&vectors, weights, VOCAB)
}

fn numbers(cache: &LateCache) -> Vec<usize> {
    cache.documents.iter().map(|d| d.number).collect()
}

#[test]
fn the_last_documents_stay_each_once() {
    let queries: Vec<TrainingQuery> = (0..6).map(|i| query(&[(i, 1.0)], &[10 * i as usize])).collect();
    let mut cache = LateCache::new(4);
    let push = |cache: &mut LateCache, of: &[usize], documents: &[usize]| {
        let weights: Vec<f32> = documents.iter().flat_map(|&d| vec![d as f32 + cache.len() as f32; VOCAB]).collect();
        cache.push(&batch(of, documents, &queries), &weights, VOCAB);
    };
    push(&mut cache, &[0, 1], &[0, 10, 5]);
    assert_eq!((numbers(&cache), cache.queries.len()), (vec![0, 10, 5], 2));
    // Document 10 is seen again: its newer copy stays, at its new place; document 0 leaves with its query.
    push(&mut cache, &[2, 1], &[20, 10, 7]);
    assert_eq!(numbers(&cache), [5, 20, 10, 7]);
    assert_eq!(cache.documents[2].vector.weights[0], 13.0);
    assert_eq!(cache.queries.iter().map(|q| (q.query, q.positive)).collect::<Vec<_>>(), [(2, 20), (1, 10)]);
    // A batch that is larger than the cache leaves its own last ones.
    push(&mut cache, &[3, 4], &[30, 40, 1, 2, 3]);
    assert_eq!(numbers(&cache), [40, 1, 2, 3]);
    assert_eq!(cache.queries.iter().map(|q| q.query).collect::<Vec<_>>(), [4]);
}

#[test]
fn only_the_heaviest_weights_are_kept() {
    let row: Vec<f32> = (0..3000).map(|i| ((i * 7919) % 3000) as f32).collect();
    let kept = heaviest(&row);
    assert_eq!(kept.len(), MOST_ACTIVE);
    assert!(kept.weights.iter().all(|&w| w >= (3000 - MOST_ACTIVE) as f32));
    assert_eq!(heaviest(&row[..1000]), SparseVector::from_dense(&row[..1000]));
}

#[test]
fn a_checkpoint_gives_back_the_same_bits() {
    let queries = [query(&[(1, 1.0)], &[3])];
    let mut cache = LateCache::new(3);
    let weights: Vec<f32> = (0..2 * VOCAB).map(|i| (i as f32 * 0.737).sin().abs() * 1e-3).collect();
    cache.push(&batch(&[0], &[3, 4], &queries), &weights, VOCAB);
    let text = serde_json::to_string(&cache).unwrap();
    assert_eq!(serde_json::from_str::<LateCache>(&text).unwrap(), cache);
}

#[test]
fn an_empty_cache_changes_nothing() {
    let queries = [query(&[(0, 1.0), (3, 0.5)], &[0]), query(&[(1, 2.0)], &[1])];
    let now = batch(&[0, 1], &[0, 1, 2], &queries);
    let weights: Vec<f32> = (0..3 * VOCAB).map(|i| ((i * 5) % 7) as f32 / 3.0).collect();
    let scores = scores(&now, &queries, &weights);
    let plain = infonce(&scores, &sets(&now), 0.7);
    let late = LateCache::new(5).infonce(&now, &scores, sets(&now), &queries, &weights, VOCAB, 0.7);
    assert_eq!(late.loss, plain);
    assert!(late.queries.is_empty() && late.cached.values.is_empty());
}

/// Queries, further documents and weights of a batch.
type Step = (Vec<usize>, Vec<usize>, Vec<f32>);

/// A random world: queries with known positives among twelve documents, batches, weights.
fn worlds() -> impl Strategy<Value = (Vec<TrainingQuery>, Vec<Step>, usize)> {
    let one = (proptest::collection::vec((0u32..VOCAB as u32, 0.1f32..2.0), 1..5), 0usize..12, 0usize..12);
    let queries = proptest::collection::vec(one, 6).prop_map(|all| {
        all.into_iter()
            .map(|(pairs, a, b)| {
                let mut positives = vec![a, b];
                positives.sort_unstable();
                positives.dedup();
                query(&pairs, &positives)
            })
            .collect::<Vec<_>>()
    });
    let weight = prop_oneof![1 => Just(0.0f32), 2 => 0.01f32..1.5];
    let step = (
        proptest::sample::subsequence((0..6usize).collect::<Vec<_>>(), 2),
        proptest::sample::subsequence((0..12usize).collect::<Vec<_>>(), 3),
        proptest::collection::vec(weight, 5 * VOCAB),
    );
    (queries, proptest::collection::vec(step, 4), 1usize..9)
}

/// The batch of two queries: their first positives, then three more documents, each document once.
fn step_of(queries: &[TrainingQuery], of: &[usize], more: &[usize], weights: &[f32]) -> (Batch, Vec<f32>) {
    let mut documents: Vec<usize> = Vec::new();
    let mut kept = Vec::new();
    for &q in of {
        let positive = queries[q].positives[0];
        // Two queries with one positive would share a column; the second goes.
        if !documents.contains(&positive) {
            documents.push(positive);
            kept.push(q);
        }
    }
    for &d in more {
        if !documents.contains(&d) {
            documents.push(d);
        }
    }
    let batch = batch(&kept, &documents, queries);
    (batch, weights[..documents.len() * VOCAB].to_vec())
}

/// The loss by hand: rows and columns by document numbers, with the rules written out once more.
fn slow(
    cache: &[(usize, Vec<f32>)],
    rows: &[(usize, usize)],
    batch: &Batch,
    queries: &[TrainingQuery],
    weights: &[f64],
    temperature: f64,
) -> f64 {
    let mut columns: Vec<(usize, Vec<f64>)> =
        batch.documents.iter().enumerate().map(|(c, &d)| (d, weights[c * VOCAB..(c + 1) * VOCAB].to_vec())).collect();
    for (number, vector) in cache {
        if !batch.documents.contains(number) {
            columns.push((*number, vector.iter().map(|&w| f64::from(w)).collect()));
        }
    }
    let mut all: Vec<(usize, usize)> =
        batch.queries.iter().map(|q| (q.query, batch.documents[q.positive.unwrap()])).collect();
    for &(query, positive) in rows {
        if batch.queries.iter().all(|q| q.query != query) {
            all.push((query, positive));
        }
    }
    let mut sum = 0.0;
    for &(query, positive) in &all {
        let score = |vector: &[f64]| -> f64 {
            queries[query].vector.iter().map(|(j, w)| f64::from(w) * vector[j as usize]).sum::<f64>() / temperature
        };
        let (mut total, mut target) = (0.0, 0.0);
        for (number, vector) in &columns {
            if *number == positive {
                target = score(vector);
                total += target.exp();
            } else if !queries[query].positives.contains(number) {
                total += score(vector).exp();
            }
        }
        sum += total.ln() - target;
    }
    sum / all.len() as f64
}

proptest! {
    /// Value against the loss by hand, slopes against finite differences of it, over a few steps of random batches.
    #[test]
    fn value_and_slopes_are_those_of_the_loss_by_hand((queries, steps, size) in worlds()) {
        let temperature = 0.8;
        let mut cache = LateCache::new(size);
        for (of, more, weights) in &steps {
            let (batch, weights) = step_of(&queries, of, more, weights);
            let held: Vec<(usize, Vec<f32>)> = cache
                .documents
                .iter()
                .map(|d| (d.number, (0..VOCAB as u32).map(|j| d.vector.weight(j)).collect()))
                .collect();
            let rows: Vec<(usize, usize)> = cache.queries.iter().map(|q| (q.query, q.positive)).collect();
            let scores = scores(&batch, &queries, &weights);
            let late = cache.infonce(&batch, &scores, sets(&batch), &queries, &weights, VOCAB, temperature);
            let exact: Vec<f64> = weights.iter().map(|&w| f64::from(w)).collect();
            let by_hand = |w: &[f64]| slow(&held, &rows, &batch, &queries, w, temperature);
            prop_assert!((late.loss.value - by_hand(&exact)).abs() < 1e-6, "{} {}", late.loss.value, by_hand(&exact));

            let mut slopes = vec![0.0f32; weights.len()];
            let vectors: Vec<&SparseVector> = batch.queries.iter().map(|q| &queries[q.query].vector).collect();
            late.loss.gradient.backward_documents(&vectors, &mut slopes, VOCAB);
            let cached: Vec<&SparseVector> = late.queries.iter().map(|&q| &queries[q].vector).collect();
            late.cached.backward_documents(&cached, &mut slopes, VOCAB);
            for (at, slope) in slopes.iter().enumerate() {
                let moved = |by: f64| {
                    let mut w = exact.clone();
                    w[at] += by;
                    by_hand(&w)
                };
                let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                prop_assert!((difference - f64::from(*slope)).abs() < 1e-5, "{difference} {slope}");
            }
            cache.push(&batch, &weights, VOCAB);
            prop_assert!(cache.len() <= size);
        }
    }
}

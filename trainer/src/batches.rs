//! Which examples and documents a step sees: a pure function of seed and step, so that a resumed run goes on with
//! the very same batches.

use std::collections::HashMap;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::data::TrainingData;
use crate::draw::Draw;
use crate::losses::CandidateSet;
use crate::sections::{Candidates, NegativeOrder, ShortRows};

/// An endless stream over `0..len`: each epoch in an order of its own, drawn from the seed.
#[derive(Debug, Clone)]
pub struct Stream {
    len: usize,
    seed: u64,
    epoch: usize,
    order: Vec<usize>,
}

impl Stream {
    /// Over `len` items (at least 1).
    pub fn new(len: usize, seed: u64) -> Self {
        debug_assert!(len > 0, "a stream has items");
        Self { len, seed, epoch: 0, order: shuffled(len, seed, 0) }
    }

    /// Items `start .. start + count` of the endless stream, each with its epoch. Batches may straddle epochs.
    pub fn take(&mut self, start: usize, count: usize) -> Vec<(usize, usize)> {
        (start..start + count)
            .map(|place| {
                let epoch = place / self.len;
                if epoch != self.epoch {
                    self.order = shuffled(self.len, self.seed, epoch);
                    self.epoch = epoch;
                }
                (epoch, self.order[place % self.len])
            })
            .collect()
    }
}

fn shuffled(len: usize, seed: u64, epoch: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    order.shuffle(&mut generator(seed, epoch as u64, u64::MAX));
    order
}

/// A generator of its own for each pair of numbers.
pub(crate) fn generator(seed: u64, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    for (place, number) in key.chunks_exact_mut(8).zip([seed, a, b, 0x6261_7463_6865_7321]) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    // One word thrown away keeps the stream apart from other uses of the same key.
    let _ = rng.next_u64();
    rng
}

/// One query of a batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BatchQuery {
    /// Its number in the data.
    pub query: usize,
    /// Column of its positive.
    pub positive: Option<usize>,
    /// Columns of its hard negatives or scored documents.
    pub others: Vec<usize>,
    /// Teacher scores of `others`; empty where the row has none.
    pub scores: Vec<f32>,
    /// Columns of all its known positives, this one among them.
    pub known: Vec<usize>,
}

/// Queries and the distinct documents they are scored against.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The queries.
    pub queries: Vec<BatchQuery>,
    /// Numbers of the documents by column; no document stands twice.
    pub documents: Vec<usize>,
}

impl Batch {
    /// Examples (with their epochs) put together; each draws up to `negatives` of its others, anew each epoch.
    pub fn new(data: &TrainingData, examples: &[(usize, usize)], negatives: usize, seed: u64) -> Self {
        let (order, short_rows) = (NegativeOrder::Random, ShortRows::Take);
        Self::drawn(data, examples, &Draw { negatives, order, short_rows, queries_per_document: 1, seed })
    }

    /// Examples (with their epochs) put together, with others as `draw` says.
    pub fn drawn(data: &TrainingData, examples: &[(usize, usize)], draw: &Draw) -> Self {
        let mut batch = Self::default();
        let mut columns: HashMap<usize, usize> = HashMap::new();
        for &(epoch, number) in examples {
            let example = &data.examples[number];
            let mut column = |document: usize| {
                *columns.entry(document).or_insert_with(|| {
                    batch.documents.push(document);
                    batch.documents.len() - 1
                })
            };
            let positive = example.positive.map(&mut column);
            let drawn = draw.places(example, epoch, number);
            let filling = draw.filling(data, epoch, number, drawn.len());
            let mut others = Vec::with_capacity(drawn.len());
            let mut scores = Vec::new();
            for place in drawn {
                let at = column(example.others[place]);
                if !others.contains(&at) {
                    others.push(at);
                    scores.extend(example.scores.get(place));
                }
            }
            others.extend(filling.into_iter().map(&mut column));
            batch.queries.push(BatchQuery { query: example.query, positive, others, scores, known: Vec::new() });
        }
        if draw.queries_per_document > 1 {
            batch.add_companions(data, examples, draw);
        }
        for query in &mut batch.queries {
            let positives = &data.queries[query.query].positives;
            query.known =
                (0..batch.documents.len()).filter(|&c| positives.binary_search(&batch.documents[c]).is_ok()).collect();
        }
        batch
    }

    /// Further queries of the examples' positives; they bring no document.
    fn add_companions(&mut self, data: &TrainingData, examples: &[(usize, usize)], draw: &Draw) {
        let Some(set) = examples.first().and_then(|e| data.sets.iter().find(|s| s.examples.contains(&e.1))) else {
            return;
        };
        for (column, &document) in self.documents.iter().enumerate() {
            let of_document = examples.iter().filter(|e| data.examples[e.1].positive == Some(document));
            let taken: Vec<usize> = of_document.clone().map(|e| e.1).collect();
            let Some(epoch) = of_document.map(|e| e.0).max() else { continue };
            for number in draw.companions(data, &set.examples, document, epoch, &taken) {
                let query = data.examples[number].query;
                if self.queries.iter().all(|q| q.query != query) {
                    self.queries.push(BatchQuery { query, positive: Some(column), ..BatchQuery::default() });
                }
            }
        }
    }

    /// Columns by slot: all positives, all first hard negatives, and so on. A document of several queries stands in
    /// each of its slots once.
    pub fn slots(&self) -> Vec<Vec<usize>> {
        let mut slots: Vec<Vec<usize>> = Vec::new();
        for query in &self.queries {
            for (slot, column) in query.positive.into_iter().chain(query.others.iter().copied()).enumerate() {
                if slot == slots.len() {
                    slots.push(Vec::new());
                }
                if !slots[slot].contains(&column) {
                    slots[slot].push(column);
                }
            }
        }
        slots
    }

    /// Columns that a query's positive is compared with, by rule; known positives other than the target are
    /// left out. `None` for a query without positive.
    pub fn candidates(&self, query: usize, rule: Candidates) -> Option<CandidateSet> {
        let q = &self.queries[query];
        let target = q.positive?;
        let mut columns: Vec<usize> = match rule {
            Candidates::Batch => (0..self.documents.len()).collect(),
            Candidates::HardNegatives => {
                let mut all: Vec<usize> = self.queries.iter().flat_map(|q| q.others.iter().copied()).collect();
                all.push(target);
                all.sort_unstable();
                all.dedup();
                all
            }
            Candidates::Own => {
                let mut own = vec![target];
                own.extend(q.others.iter().copied().filter(|&c| c != target));
                own
            }
        };
        columns.retain(|c| *c == target || !q.known.contains(c));
        Some(CandidateSet { target, columns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_each_item_once_in_its_own_order() {
        let mut stream = Stream::new(7, 3);
        let all = stream.take(0, 21);
        for epoch in 0..3 {
            let mut items: Vec<usize> = all.iter().filter(|i| i.0 == epoch).map(|i| i.1).collect();
            items.sort_unstable();
            assert_eq!(items, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(
            all[..7].iter().map(|i| i.1).collect::<Vec<_>>(),
            all[7..14].iter().map(|i| i.1).collect::<Vec<_>>()
        );
        // Any place can be read alone.
        assert_eq!(Stream::new(7, 3).take(11, 4), all[11..15]);
        assert_ne!(Stream::new(7, 4).take(0, 21), all);
    }

    #[test]
    fn candidate_rules() {
        let query = |positive, others: &[usize], known: &[usize]| BatchQuery {
            query: 0,
            positive: Some(positive),
            others: others.to_vec(),
            scores: Vec::new(),
            known: known.to_vec(),
        };
        // Column 2 is another known positive of query 0; query 1's negative is query 0's negative too.
        let batch =
            Batch { queries: vec![query(0, &[1], &[0, 2]), query(2, &[1, 3], &[2])], documents: vec![10, 11, 12, 13] };
        let columns = |q, rule| batch.candidates(q, rule).map(|c| c.columns);
        assert_eq!(batch.slots(), [vec![0, 2], vec![1], vec![3]]);
        assert_eq!(columns(0, Candidates::Batch), Some(vec![0, 1, 3]));
        assert_eq!(columns(1, Candidates::Batch), Some(vec![0, 1, 2, 3]));
        assert_eq!(columns(0, Candidates::HardNegatives), Some(vec![0, 1, 3]));
        assert_eq!(columns(1, Candidates::HardNegatives), Some(vec![1, 2, 3]));
        assert_eq!(columns(1, Candidates::Own), Some(vec![2, 1, 3]));
    }
}

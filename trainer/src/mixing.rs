//! Which set a batch is of, and which of its examples: a pure function of seed and place, so that a resumed run goes on
//! with the very same batches.

use rand::RngExt as _;
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

use crate::batches::{Stream, generator};
use crate::config::TrainConfig;
use crate::data::{SetCounts, TrainingData, TrainingSet};
use crate::sections::Mixing;

/// Batches over which weights hold: each set has its share of them, to within one batch.
pub const BLOCK: usize = 64;

/// What the streams of examples are drawn from, beside the run's seed.
const STREAM: u64 = 0x0074_7261_696e;
/// And the order of sets.
const ORDER: u64 = 0x6d69_7869_6e67;

/// Which set each place is of.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Cumulative shares, the last one 1; empty with round robin.
    cumulative: Vec<f64>,
    sets: usize,
    seed: u64,
    /// A block, and how many places of each set lie before it: blocks are mostly asked for in their order.
    counted: (usize, Vec<usize>),
}

impl Schedule {
    /// Over sets with these weights (above 0), or in turns.
    pub fn new(weights: &[f64], mixing: Mixing, seed: u64) -> Self {
        let total: f64 = weights.iter().sum();
        let mut sum = 0.0;
        let cumulative = match mixing {
            Mixing::RoundRobin => Vec::new(),
            Mixing::Weighted => weights
                .iter()
                .map(|w| {
                    sum += w / total;
                    sum
                })
                .collect(),
        };
        Self { cumulative, sets: weights.len(), seed, counted: (0, vec![0; weights.len()]) }
    }

    /// The sets of a block's places: evenly spaced points on the line of shares, from a start that is drawn, in an order
    /// that is drawn.
    fn block(&self, block: usize) -> Vec<usize> {
        let mut rng = generator(self.seed, block as u64, ORDER);
        let start: f64 = rng.random();
        let mut sets: Vec<usize> = (0..BLOCK)
            .map(|i| {
                let point = (i as f64 + start) / BLOCK as f64;
                self.cumulative.partition_point(|&c| c <= point).min(self.sets - 1)
            })
            .collect();
        sets.shuffle(&mut rng);
        sets
    }

    /// The set of a place, and how many earlier places are of that set.
    pub fn at(&mut self, place: usize) -> (usize, usize) {
        if self.sets < 2 {
            return (0, place);
        }
        if self.cumulative.is_empty() {
            return (place % self.sets, place / self.sets);
        }
        self.count_to(place / BLOCK);
        let block = self.block(place / BLOCK);
        let set = block[place % BLOCK];
        let here = block[..place % BLOCK].iter().filter(|&&s| s == set).count();
        (set, self.counted.1[set] + here)
    }

    /// How many of the first `places` are of each set.
    pub fn counts(&mut self, places: usize) -> Vec<usize> {
        if self.sets < 2 {
            return vec![places; self.sets];
        }
        if self.cumulative.is_empty() {
            return (0..self.sets).map(|s| (places + self.sets - 1 - s) / self.sets).collect();
        }
        self.count_to(places / BLOCK);
        let mut counts = self.counted.1.clone();
        for set in &self.block(places / BLOCK)[..places % BLOCK] {
            counts[*set] += 1;
        }
        counts
    }

    fn count_to(&mut self, block: usize) {
        if block < self.counted.0 {
            self.counted = (0, vec![0; self.sets]);
        }
        while self.counted.0 < block {
            for set in self.block(self.counted.0) {
                self.counted.1[set] += 1;
            }
            self.counted.0 += 1;
        }
    }
}

/// An endless stream of batches over several sets, one set a batch.
#[derive(Debug, Clone)]
pub struct Mixer {
    schedule: Schedule,
    /// Each set's first example, and the stream over its examples.
    sets: Vec<(usize, Stream)>,
    count: usize,
}

impl Mixer {
    /// Batches of `count` examples. Sets without examples are passed over; at least one has some.
    pub fn new(sets: &[TrainingSet], mixing: Mixing, count: usize, seed: u64) -> Self {
        let sets: Vec<&TrainingSet> = sets.iter().filter(|s| !s.examples.is_empty()).collect();
        debug_assert!(!sets.is_empty(), "there are examples");
        Self {
            schedule: Schedule::new(&weights(&sets), mixing, seed ^ STREAM),
            sets: sets
                .iter()
                .enumerate()
                .map(|(i, s)| (s.examples.start, Stream::new(s.examples.len(), seed ^ STREAM ^ ((i as u64) << 48))))
                .collect(),
            count,
        }
    }

    /// The `place`-th batch: examples with the epoch of their set, all of one set.
    pub fn take(&mut self, place: usize) -> Vec<(usize, usize)> {
        let (set, before) = self.schedule.at(place);
        let (first, stream) = &mut self.sets[set];
        let mut examples = stream.take(before * self.count, self.count);
        for (_, number) in &mut examples {
            *number += *first;
        }
        examples
    }
}

/// Weights of the recipe, or how many examples each has.
fn weights(sets: &[&TrainingSet]) -> Vec<f64> {
    sets.iter().map(|s| s.weight.unwrap_or(s.examples.len() as f64)).collect()
}

/// A set as it was read, and what of it is or will be seen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SetReport {
    /// Its name.
    pub name: String,
    /// The key of `data.sets` that named it.
    pub form: String,
    /// Examples that are trained on.
    pub examples: usize,
    /// Examples of held-out queries.
    pub held_out: usize,
    /// What was found while it was read.
    #[serde(flatten)]
    pub counts: SetCounts,
    /// Share of the batches, from 0 to 1.
    pub share: f64,
    /// Batches of it.
    pub batches: usize,
    /// How often they go through it.
    pub epochs: f64,
}

/// The sets of a run, with what the first `batches` batches take of each.
pub fn set_reports(config: &TrainConfig, data: &TrainingData, batches: usize) -> Vec<SetReport> {
    let used: Vec<&TrainingSet> = data.sets.iter().filter(|s| !s.examples.is_empty()).collect();
    let weights = weights(&used);
    let mut schedule = Schedule::new(&weights, config.data.mixing, config.run.seed ^ STREAM);
    let counts = if used.is_empty() { Vec::new() } else { schedule.counts(batches) };
    let total: f64 = weights.iter().sum();
    let mut places = 0..used.len();
    data.sets
        .iter()
        .map(|set| {
            let place = if set.examples.is_empty() { None } else { places.next() };
            let batches = place.map_or(0, |p| counts[p]);
            SetReport {
                name: set.name.clone(),
                form: set.form.to_owned(),
                examples: set.examples.len(),
                held_out: set.held_out,
                counts: set.counts,
                share: place.map_or(0.0, |p| match config.data.mixing {
                    Mixing::Weighted => weights[p] / total,
                    Mixing::RoundRobin => 1.0 / used.len() as f64,
                }),
                batches,
                epochs: (batches * config.train.batch_queries) as f64 / set.examples.len().max(1) as f64,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(examples: std::ops::Range<usize>, weight: Option<f64>) -> TrainingSet {
        TrainingSet { weight, examples, ..TrainingSet::default() }
    }

    proptest! {
        #[test]
        fn shares_hold_in_every_block_and_any_place_can_be_read_alone(
            weights in prop::collection::vec(0.01f64..10.0, 2..6),
            seed: u64,
            place in 0usize..2000,
        ) {
            let total: f64 = weights.iter().sum();
            let mut schedule = Schedule::new(&weights, Mixing::Weighted, seed);
            let places: Vec<(usize, usize)> = (0..20 * BLOCK).map(|p| schedule.at(p)).collect();
            let mut seen = vec![0usize; weights.len()];
            for (p, &(set, before)) in places.iter().enumerate() {
                prop_assert_eq!(before, seen[set], "earlier places of the set at {}", p);
                seen[set] += 1;
                if (p + 1).is_multiple_of(BLOCK) {
                    prop_assert_eq!(&schedule.counts(p + 1), &seen);
                }
            }
            for block in places.chunks(BLOCK) {
                for (set, weight) in weights.iter().enumerate() {
                    let count = block.iter().filter(|p| p.0 == set).count() as f64;
                    prop_assert!((count - weight / total * BLOCK as f64).abs() < 1.0 + 1e-9, "{} of {:?}", count, weights);
                }
            }
            // The same from the start, from anywhere, and after going back.
            let place = place % places.len();
            prop_assert_eq!(Schedule::new(&weights, Mixing::Weighted, seed).at(place), places[place]);
            prop_assert_eq!(schedule.at(place), places[place]);
            let mut counts = vec![0; weights.len()];
            for &(set, _) in &places[..place] {
                counts[set] += 1;
            }
            prop_assert_eq!(schedule.counts(place), counts);
        }

        #[test]
        fn a_batch_is_of_one_set_and_an_epoch_shows_each_example_once(
            sizes in prop::collection::vec(1usize..20, 1..5),
            count in 1usize..7,
            seed: u64,
            round_robin: bool,
        ) {
            let mut first = 0;
            let sets: Vec<TrainingSet> = sizes.iter().map(|&n| {
                first += n;
                set(first - n..first, None)
            }).collect();
            let mixing = if round_robin { Mixing::RoundRobin } else { Mixing::Weighted };
            let mut mixer = Mixer::new(&sets, mixing, count, seed);
            let batches: Vec<Vec<(usize, usize)>> = (0..150).map(|p| mixer.take(p)).collect();
            let mut seen: std::collections::HashMap<(usize, usize), usize> = std::collections::HashMap::new();
            for (p, batch) in batches.iter().enumerate() {
                prop_assert_eq!(batch.len(), count);
                let of: Vec<usize> =
                    batch.iter().map(|(_, e)| sets.iter().position(|s| s.examples.contains(e)).unwrap_or(usize::MAX)).collect();
                prop_assert!(of.iter().all(|&s| s == of[0] && s < sets.len()), "batch {} mixes {:?}", p, of);
                if round_robin {
                    prop_assert_eq!(of[0], p % sets.len());
                }
                for &item in batch {
                    *seen.entry(item).or_default() += 1;
                }
                // A mixer that begins here goes on with the same.
                prop_assert_eq!(&Mixer::new(&sets, mixing, count, seed).take(p), batch);
            }
            prop_assert!(seen.values().all(|&n| n == 1), "an example comes twice in an epoch");
        }
    }

    #[test]
    fn seeds_and_weights_matter() {
        let order = |seed, weights: &[f64]| -> Vec<usize> {
            let mut schedule = Schedule::new(weights, Mixing::Weighted, seed);
            (0..BLOCK).map(|p| schedule.at(p).0).collect()
        };
        assert_ne!(order(1, &[1.0, 1.0]), order(2, &[1.0, 1.0]));
        let heavy = order(1, &[3.0, 1.0]);
        assert_eq!(heavy.iter().filter(|&&s| s == 0).count(), 48);
        // Sets without examples take no batch.
        let sets = [set(0..0, None), set(0..5, None)];
        assert!(Mixer::new(&sets, Mixing::RoundRobin, 2, 1).take(7).iter().all(|e| e.1 < 5));
    }
}

//! Which of its negatives an example gives to a batch, and what fills it up where it has too few.

use std::ops::Range;

use rand::RngExt as _;
use rand::seq::{SliceRandom as _, index};

use crate::batches::generator;
use crate::data::{Example, TrainingData};
use crate::sections::{NegativeOrder, ShortRows};

/// Draws whose document is taken already, for each document wanted, before a small collection is given up.
const TRIES: usize = 50;

/// How negatives are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draw {
    /// Negatives a query.
    pub negatives: usize,
    /// Which of them.
    pub order: NegativeOrder,
    /// What becomes of an example with fewer; those to be dropped are gone by now.
    pub short_rows: ShortRows,
    /// Queries of a positive document, those that were drawn by themselves among them.
    pub queries_per_document: usize,
    /// What they are drawn from.
    pub seed: u64,
}

impl Draw {
    /// Places in `others` of the `number`-th example that it gives in an epoch, ascending, each once.
    pub fn places(&self, example: &Example, epoch: usize, number: usize) -> Vec<usize> {
        let (len, wanted) = (example.others.len(), example.wanted(self.negatives));
        if len <= wanted {
            return (0..len).collect();
        }
        let mut drawn = match self.order {
            NegativeOrder::Random => {
                let mut rng = generator(self.seed, epoch as u64, number as u64);
                index::sample(&mut rng, len, wanted).into_vec()
            }
            NegativeOrder::Window => {
                let mut order: Vec<usize> = (0..len).collect();
                order.shuffle(&mut generator(self.seed, u64::MAX, number as u64));
                // Modulo the length first: an epoch is any number.
                let start = (epoch % len) * wanted % len;
                (0..wanted).map(|i| order[(start + i) % len]).collect()
            }
        };
        drawn.sort_unstable();
        drawn
    }

    /// Documents that fill up an example which gives `given` of its own: any but its query's known positives. As many
    /// as are missing, unless the collection is too small.
    pub fn filling(&self, data: &TrainingData, epoch: usize, number: usize, given: usize) -> Vec<usize> {
        let example = &data.examples[number];
        let missing = example.wanted(self.negatives).saturating_sub(given);
        if self.short_rows != ShortRows::Fill || !example.scores.is_empty() || missing == 0 {
            return Vec::new();
        }
        let positives = &data.queries[example.query].positives;
        let mut rng = generator(self.seed, epoch as u64, number as u64 | 1 << 63);
        let mut drawn = Vec::with_capacity(missing);
        for _ in 0..TRIES * missing {
            let document = rng.random_range(0..data.documents.len());
            let is_taken = example.positive == Some(document)
                || positives.binary_search(&document).is_ok()
                || example.others.contains(&document)
                || drawn.contains(&document);
            if !is_taken {
                drawn.push(document);
                if drawn.len() == missing {
                    break;
                }
            }
        }
        drawn
    }

    /// Further examples of the set whose positive is `document`, beside the `taken` ones: as many as are missing to
    /// [`Draw::queries_per_document`], in ascending order.
    pub fn companions(
        &self,
        data: &TrainingData,
        set: &Range<usize>,
        document: usize,
        epoch: usize,
        taken: &[usize],
    ) -> Vec<usize> {
        let missing = self.queries_per_document.saturating_sub(taken.len());
        if missing == 0 {
            return Vec::new();
        }
        let first = data.by_positive.partition_point(|&entry| entry < (document, set.start));
        let others: Vec<usize> = data.by_positive[first..]
            .iter()
            .take_while(|&&(positive, number)| positive == document && number < set.end)
            .map(|&(_, number)| number)
            .filter(|number| !taken.contains(number))
            .collect();
        let mut rng = generator(self.seed, epoch as u64, document as u64 | 1 << 62);
        let mut drawn: Vec<usize> =
            index::sample(&mut rng, others.len(), missing.min(others.len())).iter().map(|i| others[i]).collect();
        drawn.sort_unstable();
        drawn
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::batches::Batch;
    use crate::synthetic::RandomData;

    fn draw(negatives: usize, order: NegativeOrder, short_rows: ShortRows) -> Draw {
        Draw { negatives, order, short_rows, queries_per_document: 1, seed: 7 }
    }

    fn example(others: usize) -> Example {
        Example { query: 0, positive: Some(0), others: (1..=others).collect(), scores: Vec::new() }
    }

    proptest! {
        #[test]
        fn windows_rotate_until_all_negatives_were_seen(len in 1usize..40, n in 1usize..9, number in 0usize..1000, first in 0usize..500) {
            let (draw, example) = (draw(n, NegativeOrder::Window, ShortRows::Take), example(len));
            let epochs = len.div_ceil(n);
            let mut seen = BTreeSet::new();
            let mut total = 0;
            for epoch in first..first + epochs {
                let places = draw.places(&example, epoch, number);
                prop_assert_eq!(places.len(), n.min(len));
                prop_assert!(places.windows(2).all(|p| p[0] < p[1]) && places.iter().all(|&p| p < len));
                prop_assert_eq!(&places, &draw.places(&example, epoch, number));
                total += places.len();
                seen.extend(places);
            }
            prop_assert_eq!(seen.len(), len, "{} of {} in {} epochs", total, len, epochs);
            // After `len` epochs the window stands where it began.
            prop_assert_eq!(draw.places(&example, first, number), draw.places(&example, first + len, number));
        }
    }

    #[test]
    fn rows_have_orders_of_their_own() {
        let places = |order, epoch, number| draw(3, order, ShortRows::Take).places(&example(30), epoch, number);
        for order in [NegativeOrder::Random, NegativeOrder::Window] {
            assert_ne!(places(order, 0, 1), places(order, 0, 2));
            assert_ne!(places(order, 0, 1), places(order, 1, 1));
        }
        // A row without a positive gives one document more.
        let scored = Example { positive: None, scores: vec![0.0; 30], ..example(30) };
        assert_eq!(draw(3, NegativeOrder::Window, ShortRows::Take).places(&scored, 2, 5).len(), 4);
    }

    #[test]
    fn short_rows_are_filled_with_documents_that_are_no_answers() {
        let mut data = RandomData { queries: 9, tokens: 4, vocabulary: 40, seed: 3 }.generate().unwrap();
        data.queries[2].positives = vec![4, 6, 8];
        let fill = draw(5, NegativeOrder::Random, ShortRows::Fill);
        for epoch in 0..40 {
            let batch = Batch::drawn(&data, &[(epoch, 2)], &fill);
            let query = &batch.queries[0];
            assert_eq!((query.others.len(), batch.documents.len()), (5, 6));
            assert!(query.others.iter().all(|&c| ![4, 6, 8].contains(&batch.documents[c])));
            // Its own negative comes first.
            assert_eq!(batch.documents[query.others[0]], 5);
            assert_eq!(batch, Batch::drawn(&data, &[(epoch, 2)], &fill));
        }
        assert_ne!(fill.filling(&data, 0, 2, 1), fill.filling(&data, 1, 2, 1));
        assert!(draw(5, NegativeOrder::Random, ShortRows::Take).filling(&data, 0, 2, 1).is_empty());
        // More than there are: all others, each once.
        let most = draw(100, NegativeOrder::Random, ShortRows::Fill).filling(&data, 0, 2, 1);
        assert_eq!(most.iter().collect::<BTreeSet<_>>().len(), most.len());
        assert_eq!(most.len(), 18 - 3 - 1);
        // Stored scores belong to documents: nothing is added to them.
        data.examples[2].scores = vec![1.0];
        assert!(fill.filling(&data, 0, 2, 1).is_empty());
    }
}

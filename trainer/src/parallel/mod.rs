//! Several processes that train one model together.
//!
//! Every process (a rank, counted from 0) reads the same data and holds the same parameters. Of each batch a rank
//! encodes its share of the documents; the vectors are gathered, sparse, so every rank sees the whole batch,
//! computes the same loss and the same slopes, and goes backward through its own documents alone. The gradients are
//! then summed. So in-batch negatives, penalties, the steering of their weight and what is logged are over the whole
//! batch however many processes there are, and the optimizer makes the same step everywhere.
//!
//! Rank 0 leads: it alone writes, evaluates and decides whether there is a next step.

mod rows;
mod sockets;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use sockets::{Invitation, Meeting, Sockets, join};

use crate::{Error, Result};

/// What ranks exchange. All of them call the same function at the same time; each call ends on all ranks or on none.
pub trait AllReduce: Send {
    /// This process's number, from 0.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// Replaces the values (equally many on each rank) by their sums over all ranks, added up in the order of the
    /// ranks: every rank gets the same bits, and the same bits each time.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    fn sum(&mut self, values: &mut [f32]) -> Result<()>;

    /// Every rank's bytes, in the order of the ranks.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    fn gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>>;

    /// Replaces the bytes by rank 0's.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    fn broadcast(&mut self, bytes: &mut Vec<u8>) -> Result<()>;
}

/// The processes of a run, seen from one of them.
pub struct Team {
    link: Option<Mutex<Box<dyn AllReduce>>>,
    rank: usize,
    size: usize,
}

impl Default for Team {
    fn default() -> Self {
        Self::alone()
    }
}

impl Team {
    /// One process: nothing is exchanged.
    pub fn alone() -> Self {
        Self { link: None, rank: 0, size: 1 }
    }

    /// The processes that a link connects.
    pub fn new(link: Box<dyn AllReduce>) -> Self {
        let (rank, size) = (link.rank(), link.size());
        Self { link: (size > 1).then(|| Mutex::new(link)), rank, size }
    }

    /// This process's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether this is rank 0.
    pub fn leads(&self) -> bool {
        self.rank == 0
    }

    /// This rank's share of items with costs: neighbours, about a `size`-th of all costs. The shares of all ranks
    /// follow one another and leave nothing out; one may be empty.
    pub fn share(&self, costs: &[usize]) -> Range<usize> {
        let total: u128 = costs.iter().map(|&c| c as u128).sum();
        let mut before = 0u128;
        // An item belongs to the rank in whose part of the costs its middle lies.
        let ranks: Vec<usize> = costs
            .iter()
            .map(|&cost| {
                let middle = 2 * before + cost as u128;
                before += cost as u128;
                // The last items may cost nothing: their middle is the end.
                if total == 0 { 0 } else { ((middle * self.size as u128 / (2 * total)) as usize).min(self.size - 1) }
            })
            .collect();
        ranks.partition_point(|&r| r < self.rank)..ranks.partition_point(|&r| r <= self.rank)
    }

    /// Rows `[n, vocab]` of all ranks, in the order of the ranks. They travel as their entries that are not 0.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    pub fn gather_rows<'a>(&self, own: &'a [f32], vocab: usize) -> Result<Cow<'a, [f32]>> {
        let Some(link) = &self.link else { return Ok(Cow::Borrowed(own)) };
        let all = lock(link).gather(&rows::pack(own, vocab))?;
        let mut out = Vec::new();
        for (rank, bytes) in all.iter().enumerate() {
            rows::unpack(bytes, vocab, &mut out).ok_or_else(|| Error::out_of_step(rank, "its vectors are broken"))?;
        }
        Ok(Cow::Owned(out))
    }

    /// Sums over all ranks, in place.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    pub fn sum(&self, values: &mut [f32]) -> Result<()> {
        self.link.as_ref().map_or(Ok(()), |link| lock(link).sum(values))
    }

    /// Sums of single doubles over all ranks, in the order of the ranks.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    pub fn sum_value(&self, value: f64) -> Result<f64> {
        let Some(link) = &self.link else { return Ok(value) };
        let mut sum = 0.0;
        for (rank, bytes) in lock(link).gather(&value.to_le_bytes())?.into_iter().enumerate() {
            let bytes = bytes.try_into().map_err(|_| Error::out_of_step(rank, "a figure of it is broken"))?;
            sum += f64::from_le_bytes(bytes);
        }
        Ok(sum)
    }

    /// What rank 0 says; the others' value is not looked at.
    ///
    /// # Errors
    /// If a rank is gone or out of step, or the value cannot be written as JSON.
    pub fn tell<T: Serialize + DeserializeOwned>(&self, value: T) -> Result<T> {
        let Some(link) = &self.link else { return Ok(value) };
        let broken = |e: serde_json::Error| Error::out_of_step(0, &e.to_string());
        let mut bytes = if self.leads() { serde_json::to_vec(&value).map_err(broken)? } else { Vec::new() };
        lock(link).broadcast(&mut bytes)?;
        if self.leads() { Ok(value) } else { serde_json::from_slice(&bytes).map_err(broken) }
    }

    /// Replaces values by rank 0's, bit for bit; there must be as many.
    ///
    /// # Errors
    /// If a rank is gone or out of step.
    pub fn tell_values(&self, values: &mut [f32]) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let mut bytes = if self.leads() { values.iter().flat_map(|v| v.to_le_bytes()).collect() } else { Vec::new() };
        lock(link).broadcast(&mut bytes)?;
        if bytes.len() != 4 * values.len() {
            return Err(Error::out_of_step(0, "it has another number of parameters"));
        }
        for (value, raw) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
        }
        Ok(())
    }

    /// Checks that a text is the same on all ranks.
    ///
    /// # Errors
    /// If it is not: with the first rank that has another. Every rank gets the error.
    pub fn require_same(&self, what: &str, text: &str) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        let all = lock(link).gather(text.as_bytes())?;
        match all.iter().position(|other| *other != all[0]) {
            None => Ok(()),
            Some(rank) => Err(Error::out_of_step(rank, &format!("{what} there is another one"))),
        }
    }
}

/// A link is left in a state that its next call can judge, so a panic elsewhere does not matter.
fn lock(link: &Mutex<Box<dyn AllReduce>>) -> std::sync::MutexGuard<'_, Box<dyn AllReduce>> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A link that only knows its place.
    struct Place(usize, usize);

    impl AllReduce for Place {
        fn rank(&self) -> usize {
            self.0
        }
        fn size(&self) -> usize {
            self.1
        }
        fn sum(&mut self, _values: &mut [f32]) -> Result<()> {
            Ok(())
        }
        fn gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
            Ok(vec![own.to_vec(); self.1])
        }
        fn broadcast(&mut self, _bytes: &mut Vec<u8>) -> Result<()> {
            Ok(())
        }
    }

    proptest! {
        #[test]
        fn shares_follow_one_another_and_are_about_even(costs in proptest::collection::vec(0usize..300, 0..40), size in 1usize..6) {
            let mut next = 0;
            let most = costs.iter().copied().max().unwrap_or(0);
            let total: usize = costs.iter().sum();
            for rank in 0..size {
                let share = Team::new(Box::new(Place(rank, size))).share(&costs);
                prop_assert_eq!(share.start, next);
                next = share.end;
                let cost: usize = costs[share].iter().sum();
                prop_assert!(cost <= total / size + 1 + most, "{} of {}", cost, total);
            }
            prop_assert_eq!(next, costs.len());
        }
    }

    #[test]
    fn alone_nothing_changes() {
        let team = Team::alone();
        assert!(team.leads());
        assert_eq!(team.share(&[3, 1, 9]), 0..3);
        assert!(matches!(team.gather_rows(&[1.0, 0.0], 2), Ok(Cow::Borrowed(rows)) if rows == [1.0, 0.0]));
    }
}

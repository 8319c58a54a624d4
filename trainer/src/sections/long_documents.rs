//! The keys for long documents, checked: `data.segments`, `segment_budget` of both stages, `train.late_cache`.

use super::{Candidates, DataSection, Side, TrainSection, WarmStartSection};
use crate::{Error, Result};

impl DataSection {
    /// Whether `data.segments` can be used with the window.
    ///
    /// # Errors
    /// The key that cannot.
    pub(crate) fn validate_segments(&self) -> Result<()> {
        let Some(segments) = &self.segments else { return Ok(()) };
        segments.validate(self.max_tokens).map_err(|e| Error::config(format!("`data.segments`: {e}")))
    }
}

/// Whether a stage's budget of segments does something.
fn validate_budget(stage: &str, budget: usize, micro_batch: usize, data: &DataSection) -> Result<()> {
    let bad = |key: &str, problem: &str| Err(Error::config(format!("`{stage}.{key}`: {problem}")));
    if budget == 0 {
        return Ok(());
    }
    if micro_batch > 0 {
        return bad("micro_batch", "`segment_budget` bounds the same; give one of the two");
    }
    match &data.segments {
        None => bad("segment_budget", "without `data.segments` each document is one: use `micro_batch`"),
        Some(segments) if budget < segments.max => {
            bad("segment_budget", "less than `data.segments.max`: the longest documents would not fit")
        }
        Some(_) => Ok(()),
    }
}

impl WarmStartSection {
    /// Whether the budget does something.
    ///
    /// # Errors
    /// The key that does not.
    pub(crate) fn validate_long_documents(&self, data: &DataSection) -> Result<()> {
        validate_budget("warm_start", self.segment_budget, self.micro_batch, data)
    }
}

impl TrainSection {
    /// Whether the budget and the late cache do something.
    ///
    /// # Errors
    /// The key that does not.
    pub(crate) fn validate_long_documents(&self, data: &DataSection, side: Side) -> Result<()> {
        validate_budget("train", self.segment_budget, self.micro_batch, data)?;
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`train.{key}`: {problem}")));
        let infonce = &self.losses.infonce;
        if self.late_cache > 0 && infonce.weight == 0.0 {
            return bad("late_cache", "it gives negatives to `losses.infonce`, whose weight is 0");
        }
        if self.late_cache > 0 && infonce.candidates != Candidates::Batch {
            return bad("late_cache", "it adds to the candidates of a whole batch: `losses.infonce.candidates: batch`");
        }
        if self.late_cache > 0 && side != Side::Idf {
            return bad("late_cache", "it scores earlier documents with fixed query weights: `query.side: idf`");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use crate::config::TrainConfig;

    #[test]
    fn keys_that_would_do_nothing_are_named() {
        let own = "train.losses.infonce.candidates=own";
        for (sets, key) in [
            (&["data.segments={max: 0}"][..], "`data.segments`"),
            (&["data.segments={max: 3, overlap: 254}"], "`segments.overlap`"),
            (&["data.segments={max: 1, overlap: 2}"], "`segments.overlap`"),
            (&["data.segments={max: 3, min_last: 255}"], "`segments.min_last`"),
            (&["data.segments={max: 3, last: 2}"], "last"),
            (&["train.segment_budget=16"], "`train.segment_budget`"),
            (&["data.segments={max: 4}", "train.segment_budget=3"], "`train.segment_budget`"),
            (&["data.segments={max: 4}", "train.segment_budget=4", "train.micro_batch=2"], "`train.micro_batch`"),
            (&["train.late_cache=5", own], "`train.late_cache`"),
            (
                &["train.late_cache=5", "train.losses.infonce.weight=0", "train.losses.kl.weight=1"],
                "`train.late_cache`",
            ),
        ] {
            let sets: Vec<String> = sets.iter().map(|s| (*s).to_owned()).collect();
            let message = TrainConfig::parse("model: {path: m}\ndata: {dir: d}\n", &sets).unwrap_err().to_string();
            assert!(message.contains(key), "{sets:?}: {message}");
        }
        let good =
            ["data.segments={max: 4, overlap: 20, min_last: 30}", "train.segment_budget=4", "train.late_cache=9"]
                .map(str::to_owned);
        let config = TrainConfig::parse("model: {path: m}\ndata: {dir: d}\n", &good).unwrap();
        assert_eq!(config.data.segments.unwrap().min_last, Some(30));
        assert_eq!(TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        let one = TrainConfig::parse("model: {path: m}\ndata: {dir: d, segments: {max: 1}}\n", &[]).unwrap();
        assert_eq!(one.data.segments.unwrap().max, 1);
    }
}

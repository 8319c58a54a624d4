//! Pruning: which entries of a sparse vector are worth their cost. The rules, their ranges and their arithmetic in `f32`
//! are those of neural-search's `PruneUtils` (2.19), so that a vector pruned here is the one that the cluster would make.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::vector::{SparseVector, Weight};

/// A rule. Which entries stay does not depend on where they stand, but for equal weights at a cut by number: there the
/// smaller token id stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Pruning {
    /// The heaviest so many entries.
    TopK(usize),
    /// Entries of at least this share of the heaviest one, in [0, 1).
    MaxRatio(Weight),
    /// The heaviest entries whose sum is at most this share of all weights, in [0, 1); the entry that crosses the share
    /// goes, so that one dominant entry can leave an empty vector.
    AlphaMass(Weight),
    /// Entries of at least this weight, from 0.
    AbsValue(Weight),
}

impl Pruning {
    /// The entries that stay.
    #[must_use]
    pub fn prune(self, vector: &SparseVector) -> SparseVector {
        self.split(vector).0
    }

    /// The entries that stay, and those that go.
    #[must_use]
    pub fn split(self, vector: &SparseVector) -> (SparseVector, SparseVector) {
        let keep_at_least = |least: Weight| vector.iter().partition(|&(_, weight)| weight >= least);
        let (kept, gone): (Vec<_>, Vec<_>) = match self {
            Self::AbsValue(least) => keep_at_least(least),
            Self::MaxRatio(ratio) => keep_at_least(ratio * vector.weights.iter().copied().fold(0.0, Weight::max)),
            Self::TopK(count) => {
                let mut pairs = vector.heaviest_first();
                let gone = pairs.split_off(count.min(pairs.len()));
                (pairs, gone)
            }
            Self::AlphaMass(share) => {
                let total = vector.weights.iter().map(|&w| f64::from(w)).sum::<f64>() as Weight;
                let mut pairs = vector.heaviest_first();
                let mut sum: Weight = 0.0;
                let kept = pairs.iter().take_while(|&&(_, weight)| {
                    sum += weight;
                    sum <= share * total
                });
                let count = kept.count();
                let gone = pairs.split_off(count);
                (pairs, gone)
            }
        };
        (SparseVector::from_pairs(kept), SparseVector::from_pairs(gone))
    }

    /// The name and the value that neural-search has for the rule: `prune_type` and `prune_ratio`.
    pub fn parts(self) -> (&'static str, Weight) {
        match self {
            Self::TopK(count) => ("top_k", count as Weight),
            Self::MaxRatio(ratio) => ("max_ratio", ratio),
            Self::AlphaMass(share) => ("alpha_mass", share),
            Self::AbsValue(least) => ("abs_value", least),
        }
    }
}

impl fmt::Display for Pruning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, value) = self.parts();
        write!(f, "{name}:{value}")
    }
}

impl From<Pruning> for String {
    fn from(pruning: Pruning) -> Self {
        pruning.to_string()
    }
}

impl TryFrom<String> for Pruning {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Pruning {
    type Err = String;

    /// `max_ratio:0.1`, `top_k:100`, `alpha_mass:0.9`, `abs_value:0.5`; a bare number is a `max_ratio`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once(':').unwrap_or(("max_ratio", text));
        let number: Weight = value.parse().map_err(|_| format!("`{value}` is no number"))?;
        let below_one = |make: fn(Weight) -> Self| {
            if (0.0..1.0).contains(&number) {
                Ok(make(number))
            } else {
                Err(format!("{name} takes a share from 0 to below 1, not {value}"))
            }
        };
        match name {
            "max_ratio" => below_one(Self::MaxRatio),
            "alpha_mass" => below_one(Self::AlphaMass),
            "top_k" if number >= 1.0 && number.fract() == 0.0 && number.is_finite() => Ok(Self::TopK(number as usize)),
            "top_k" => Err(format!("top_k takes a whole number from 1, not {value}")),
            "abs_value" if number >= 0.0 && number.is_finite() => Ok(Self::AbsValue(number)),
            "abs_value" => Err(format!("abs_value takes a weight from 0, not {value}")),
            _ => Err(format!("`{name}` is no way to prune: there are max_ratio, top_k, alpha_mass and abs_value")),
        }
    }
}

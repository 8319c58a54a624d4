//! Sparse vectors over the vocabulary, and how the engine stores their weights.

use serde::{Deserialize, Serialize};

/// A vocabulary entry: its row in the embedding table.
pub type TokenId = u32;
/// The weight of a token in a document or query; `(0, 64]` once it leaves for the engine.
pub type Weight = f32;

/// The largest weight that the engine takes in a query clause.
pub const MAX_WEIGHT: Weight = 64.0;
/// The most tokens that a query may have: the engine's default clause limit.
pub const MAX_QUERY_TOKENS: usize = 1024;

/// A sparse vector: token ids strictly ascending, each with a positive, finite weight.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SparseVector {
    /// Token ids, strictly ascending.
    pub ids: Vec<TokenId>,
    /// Weights, in the order of `ids`; positive and finite.
    pub weights: Vec<Weight>,
}

impl SparseVector {
    /// From pairs in any order. Entries that are not above zero are left out; of two entries with one id the
    /// larger weight stays.
    pub fn from_pairs(mut pairs: Vec<(TokenId, Weight)>) -> Self {
        pairs.retain(|&(_, w)| w > 0.0);
        pairs.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.total_cmp(&a.1)));
        pairs.dedup_by_key(|p| p.0);
        let (ids, weights) = pairs.into_iter().unzip();
        Self { ids, weights }
    }

    /// From one row of `V` weights; entries that are not above zero are left out.
    pub fn from_dense(row: &[Weight]) -> Self {
        let mut out = Self::default();
        for (id, &weight) in row.iter().enumerate() {
            if weight > 0.0 {
                out.ids.push(id as TokenId);
                out.weights.push(weight);
            }
        }
        out
    }

    /// Active dimensions: how many weights are above zero.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether no dimension is active.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Pairs in ascending order of ids.
    pub fn iter(&self) -> impl Iterator<Item = (TokenId, Weight)> + '_ {
        self.ids.iter().copied().zip(self.weights.iter().copied())
    }

    /// The weight of one token, 0 where it is not active.
    pub fn weight(&self, id: TokenId) -> Weight {
        self.ids.binary_search(&id).map_or(0.0, |i| self.weights[i])
    }

    /// Dot product, summed in double in ascending order of ids.
    pub fn dot(&self, other: &Self) -> f64 {
        let (mut i, mut j, mut sum) = (0, 0, 0.0);
        while i < self.len() && j < other.len() {
            match self.ids[i].cmp(&other.ids[j]) {
                std::cmp::Ordering::Less => i += 1,
                std::cmp::Ordering::Greater => j += 1,
                std::cmp::Ordering::Equal => {
                    sum += f64::from(self.weights[i]) * f64::from(other.weights[j]);
                    i += 1;
                    j += 1;
                }
            }
        }
        sum
    }

    /// Pairs, heaviest first; equal weights in ascending order of ids.
    pub fn heaviest_first(&self) -> Vec<(TokenId, Weight)> {
        let mut pairs: Vec<_> = self.iter().collect();
        pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        pairs
    }

    /// The vector as the engine stores it: each weight cut to 9 significant bits ([`engine_weight`]).
    #[must_use]
    pub fn as_stored(&self) -> Self {
        Self::from_pairs(self.iter().map(|(id, w)| (id, engine_weight(w))).collect())
    }
}

/// A weight as Lucene's `FeatureField` stores it in a term frequency: the upper 17 bits of the `f32`
/// (sign, exponent, 8 bits of fraction: 9 significant bits), cut towards zero.
pub fn engine_weight(weight: Weight) -> Weight {
    Weight::from_bits(weight.to_bits() >> 15 << 15)
}

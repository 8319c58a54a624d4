//! A learned table of query weights: what it is as parameters, its weights, and slopes in them back to those.
//!
//! - free: `w_i = relu(x_i)`, x starting at the idf table; what is learned is saved as it is looked up.
//! - projection (Li-LSR, arXiv 2505.01452): `w_i = ln(1 + relu(w·e_i + b))`, `e_i` the word embedding of token i that
//!   the document encoder has at that moment. Embeddings get their part of the gradient.
//!
//! Its parameters lie in the model's buffer under `query.`, so that clipping, moments, checkpoints and sums over
//! processes hold for them too; a saved model has its weights in `idf.json` instead.

use nsparse_core::idf::SILENT;
use nsparse_core::vector::MAX_WEIGHT;
use nsparse_core::{SparseVector, TokenId, Weight};
use nsparse_encoder::cpu::transposed_product;
use nsparse_encoder::{ParamSpec, Parameters};
use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::fit_head::{cholesky, solve_in_place};
use crate::sections::{QuerySection, Side, TableStart};
use crate::{Error, Result};

/// What the names of the query side's parameters begin with; none of the encoder's does.
pub const PREFIX: &str = "query.";
const FREE: &str = "query.idf.weight";
const PROJECTION: &str = "query.projection.weight";
const BIAS: &str = "query.projection.bias";
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
/// Ridge of the projection's start, relative to the mean variance of an embedding's entries.
const RIDGE: f64 = 1e-3;
/// Rows of one product while it is fitted.
const ROWS: usize = 1024;

/// The form of a learned table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// One free weight a token.
    Free,
    /// A linear layer over the word embeddings.
    Projection,
}

/// Whether a parameter is the query side's.
pub fn is_query(spec: &ParamSpec) -> bool {
    spec.name.starts_with(PREFIX)
}

/// Weight and its slope at a raw value.
fn activation(table: Table, raw: f64) -> (f64, f64) {
    if raw <= 0.0 {
        return (0.0, 0.0);
    }
    let (weight, slope) = match table {
        Table::Free => (raw, 1.0),
        Table::Projection => (raw.ln_1p(), 1.0 / (1.0 + raw)),
    };
    // The engine takes no more; the slope stays, so that a weight can come back.
    (weight.min(f64::from(MAX_WEIGHT)), slope)
}

impl Table {
    /// The table of a recipe, if it learns one.
    pub fn of(section: &QuerySection) -> Option<Self> {
        match section.side {
            Side::TrainedIdf => Some(Self::Free),
            Side::Table => Some(Self::Projection),
            Side::Idf | Side::Siamese => None,
        }
    }

    /// The parameters with the table's beside them, all 0 until [`Table::begin`].
    ///
    /// # Errors
    /// If the model has no word embeddings.
    pub fn extend(self, parameters: &Parameters) -> Result<Parameters> {
        let (vocab, hidden) = shape(parameters)?;
        let mut tensors = std::collections::BTreeMap::new();
        for spec in parameters.specs().iter().filter(|s| !is_query(s)) {
            tensors.insert(spec.name.clone(), (spec.shape.clone(), parameters.get(&spec.name)?.to_vec()));
        }
        let mut add = |name: &str, len: usize| tensors.insert(name.to_owned(), (vec![len], vec![0.0; len]));
        match self {
            Self::Free => {
                add(FREE, vocab);
            }
            Self::Projection => {
                add(PROJECTION, hidden);
                add(BIAS, 1);
            }
        }
        Ok(Parameters::from_tensors(tensors)?)
    }

    /// Sets the table's start. `idf`: one weight a token of the tokenizer, 0 where a token never has one.
    ///
    /// # Errors
    /// If the parameters are not those of [`Table::extend`], or the embeddings are not finite.
    pub fn begin(self, parameters: &mut Parameters, idf: &[Weight], start: TableStart, seed: u64) -> Result<()> {
        let hidden = shape(parameters)?.1;
        match (self, start) {
            (Self::Free, _) => {
                let table = parameters.get_mut(FREE)?;
                table.fill(0.0);
                table[..idf.len()].copy_from_slice(idf);
            }
            (Self::Projection, TableStart::Random) => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x7175_6572_7974_6162);
                let most = (hidden as f32).sqrt().recip();
                for name in [PROJECTION, BIAS] {
                    for value in parameters.get_mut(name)? {
                        *value = rng.random_range(-most..most);
                    }
                }
            }
            (Self::Projection, TableStart::Idf) => {
                let (weight, bias) = fit(parameters.get(WORDS)?, hidden, idf)?;
                for (to, from) in parameters.get_mut(PROJECTION)?.iter_mut().zip(weight) {
                    *to = from as f32;
                }
                parameters.get_mut(BIAS)?[0] = bias as f32;
            }
        }
        Ok(())
    }

    /// Raw values of some tokens, before the activation.
    fn raw(self, parameters: &Parameters, ids: impl Iterator<Item = TokenId>) -> Result<Vec<f64>> {
        Ok(match self {
            Self::Free => {
                let table = parameters.get(FREE)?;
                ids.map(|id| f64::from(table[id as usize])).collect()
            }
            Self::Projection => {
                let (words, weight) = (parameters.get(WORDS)?, parameters.get(PROJECTION)?);
                let (hidden, bias) = (weight.len(), f64::from(parameters.get(BIAS)?[0]));
                let dot = |id: TokenId| -> f64 {
                    let row = &words[id as usize * hidden..][..hidden];
                    row.iter().zip(weight).map(|(&e, &w)| f64::from(e) * f64::from(w)).sum()
                };
                ids.map(|id| dot(id) + bias).collect()
            }
        })
    }

    /// Weights of the first `count` tokens, each in `[0, 64]`.
    ///
    /// # Errors
    /// If the parameters are not those of [`Table::extend`], or a weight is not finite.
    pub fn weights(self, parameters: &Parameters, count: usize) -> Result<Vec<Weight>> {
        let raw = self.raw(parameters, 0..count as TokenId)?;
        if let Some(id) = raw.iter().position(|r| !r.is_finite()) {
            return Err(Error::config_with_hint(
                format!("The query table's weight of token {id} is {}: not a finite number", raw[id]),
                "lower `query.learning_rate`",
            ));
        }
        Ok(raw.into_iter().map(|r| activation(self, r).0 as Weight).collect())
    }

    /// A query's vector: its distinct tokens with their weights; tokens of weight 0 are left out.
    ///
    /// # Errors
    /// If the parameters are not those of [`Table::extend`].
    pub fn vector(self, parameters: &Parameters, ids: &[TokenId]) -> Result<SparseVector> {
        let raw = self.raw(parameters, ids.iter().copied())?;
        // A value that is not a number must show in the loss, not vanish.
        let weight = |r: f64| if r.is_nan() { Weight::NAN } else { activation(self, r).0 as Weight };
        let mut vector = SparseVector::default();
        for (&id, r) in ids.iter().zip(raw) {
            let weight = weight(r);
            if weight > SILENT || weight.is_nan() {
                vector.ids.push(id);
                vector.weights.push(weight);
            }
        }
        Ok(vector)
    }

    /// Adds to the gradient, given each query's distinct tokens and dL/d query weight, dense `[Q, V]`.
    ///
    /// # Errors
    /// If the parameters are not those of [`Table::extend`].
    pub fn backward(
        self,
        parameters: &Parameters,
        queries: &[&[TokenId]],
        slopes: &[f32],
        gradient: &mut [f32],
    ) -> Result<()> {
        let vocab = slopes.len() / queries.len().max(1);
        let mut sums: std::collections::BTreeMap<TokenId, f64> = std::collections::BTreeMap::new();
        for (ids, row) in queries.iter().zip(slopes.chunks_exact(vocab.max(1))) {
            for &id in *ids {
                *sums.entry(id).or_default() += f64::from(row[id as usize]);
            }
        }
        let raw = self.raw(parameters, sums.keys().copied())?;
        let slopes = sums.into_iter().zip(raw).map(|((id, sum), r)| (id as usize, sum * activation(self, r).1));
        let place = |name: &str| -> Result<usize> {
            parameters.spec(name).map(|s| s.offset).ok_or_else(|| Error::config(format!("no parameter `{name}`")))
        };
        match self {
            Self::Free => {
                let at = place(FREE)?;
                for (id, slope) in slopes {
                    gradient[at + id] += slope as f32;
                }
            }
            Self::Projection => {
                let (words, weight) = (parameters.get(WORDS)?, parameters.get(PROJECTION)?);
                let (hidden, at) = (weight.len(), place(WORDS)?);
                let mut to_weight = vec![0.0f64; hidden];
                let mut to_bias = 0.0;
                for (id, slope) in slopes {
                    let row = id * hidden..(id + 1) * hidden;
                    for (sum, &e) in to_weight.iter_mut().zip(&words[row.clone()]) {
                        *sum += slope * f64::from(e);
                    }
                    for (g, &w) in gradient[at + row.start..at + row.end].iter_mut().zip(weight) {
                        *g += (slope * f64::from(w)) as f32;
                    }
                    to_bias += slope;
                }
                let (at, at_bias) = (place(PROJECTION)?, place(BIAS)?);
                for (g, sum) in gradient[at..at + hidden].iter_mut().zip(to_weight) {
                    *g += sum as f32;
                }
                gradient[at_bias] += to_bias as f32;
            }
        }
        Ok(())
    }
}

/// Rows and columns of the word embeddings.
fn shape(parameters: &Parameters) -> Result<(usize, usize)> {
    match parameters.spec(WORDS).map(|s| s.shape.as_slice()) {
        Some(&[vocab, hidden]) => Ok((vocab, hidden)),
        _ => Err(nsparse_encoder::Error::Model(format!("it has no `{WORDS}`")).into()),
    }
}

/// Ridge regression of the idf on word embeddings: `w·e + b ≈ idf`, over the tokens that the corpus shows (those
/// below the largest idf, which is that of df = 0), or all where there are too few.
fn fit(words: &[f32], h: usize, idf: &[Weight]) -> Result<(Vec<f64>, f64)> {
    let largest = idf.iter().copied().fold(0.0, Weight::max);
    let mut chosen: Vec<usize> = (0..idf.len()).filter(|&i| idf[i] > SILENT && idf[i] < largest).collect();
    if chosen.len() < 2 {
        chosen = (0..idf.len()).filter(|&i| idf[i] > SILENT).collect();
    }
    if chosen.is_empty() {
        return Err(Error::config("`query.start`: the idf table has no weight to start from"));
    }
    let n = chosen.len() as f64;
    let mean_idf = chosen.iter().map(|&i| f64::from(idf[i])).sum::<f64>() / n;
    let mut mean = vec![0.0f64; h];
    for &i in &chosen {
        for (m, &v) in mean.iter_mut().zip(&words[i * h..(i + 1) * h]) {
            *m += f64::from(v) / n;
        }
    }
    let (mut covariance, mut with_idf) = (vec![0.0f64; h * h], vec![0.0f64; h]);
    for block in chosen.chunks(ROWS) {
        let mut rows = Vec::with_capacity(block.len() * h);
        for &i in block {
            rows.extend(words[i * h..(i + 1) * h].iter().zip(&mean).map(|(&v, m)| (f64::from(v) - m) as f32));
        }
        for (sum, product) in covariance.iter_mut().zip(transposed_product(&rows, &rows, block.len())) {
            *sum += f64::from(product) / n;
        }
        for (row, &i) in rows.chunks_exact(h).zip(block) {
            for (sum, &v) in with_idf.iter_mut().zip(row) {
                *sum += f64::from(v) * (f64::from(idf[i]) - mean_idf) / n;
            }
        }
    }
    let ridge = RIDGE * (0..h).map(|k| covariance[k * h + k]).sum::<f64>() / h as f64;
    for k in 0..h {
        covariance[k * h + k] += ridge.max(1e-12);
    }
    let factor = cholesky(covariance, h)
        .ok_or_else(|| nsparse_encoder::Error::Model("its word embeddings are not finite".to_owned()))?;
    solve_in_place(&factor, &mut with_idf, h);
    let bias = mean_idf - mean.iter().zip(&with_idf).map(|(m, w)| m * w).sum::<f64>();
    Ok((with_idf, bias))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const V: usize = 7;
    const H: usize = 3;

    fn model(seed: u64) -> Parameters {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let words = (0..V * H).map(|_| rng.random_range(-1.0f32..1.0)).collect();
        Parameters::from_tensors([(WORDS.to_owned(), (vec![V, H], words))].into()).unwrap()
    }

    /// Σ over queries and tokens of c · weight, with coefficients that depend on both.
    fn value(table: Table, parameters: &Parameters, queries: &[&[TokenId]], slopes: &[f32]) -> f64 {
        queries
            .iter()
            .zip(slopes.chunks_exact(V))
            .map(|(ids, c)| {
                let vector = table.vector(parameters, ids).unwrap();
                vector.iter().map(|(id, w)| f64::from(w) * f64::from(c[id as usize])).sum::<f64>()
            })
            .sum()
    }

    #[test]
    fn slopes_equal_differences() {
        let queries: [&[TokenId]; 3] = [&[1, 4], &[4, 5, 6], &[]];
        let slopes: Vec<f32> = (0..3 * V).map(|i| (i as f32 * 0.37).sin() + 1.5).collect();
        for (table, start) in [
            (Table::Free, TableStart::Idf),
            (Table::Projection, TableStart::Random),
            (Table::Projection, TableStart::Idf),
        ] {
            let mut parameters = table.extend(&model(1)).unwrap();
            table.begin(&mut parameters, &[0.0, 2.0, 1.0, 3.0, 0.5, 2.5, 1.5], start, 3).unwrap();
            if table == Table::Free {
                // At and below 0 there is no slope.
                parameters.get_mut(FREE).unwrap()[5] = -0.5;
            }
            let mut gradient = vec![0.0f32; parameters.len()];
            table.backward(&parameters, &queries, &slopes, &mut gradient).unwrap();
            assert!(gradient.iter().filter(|g| **g != 0.0).count() >= 3, "{table:?}: {gradient:?}");
            for (i, got) in gradient.iter().enumerate() {
                let at = |step: f32| {
                    let mut moved = parameters.clone();
                    moved.data_mut()[i] += step;
                    value(table, &moved, &queries, &slopes)
                };
                let difference = (at(1e-3) - at(-1e-3)) / 2e-3;
                assert!((difference - f64::from(*got)).abs() < 2e-3, "{table:?} {i}: {difference} {got}");
            }
        }
    }

    #[test]
    fn a_table_starts_at_the_idf() {
        let idf = [0.0, 2.0, 1.0, 3.0, 0.5, 2.5, 1.5];
        let mut parameters = Table::Free.extend(&model(2)).unwrap();
        Table::Free.begin(&mut parameters, &idf, TableStart::Idf, 0).unwrap();
        assert_eq!(Table::Free.weights(&parameters, V).unwrap(), idf);
        assert_eq!(Table::Free.vector(&parameters, &[0, 2, 5]).unwrap().ids, [2, 5]);
        // An idf that is linear in the embeddings is met, but for what the ridge takes from directions in which seven
        // embeddings hardly vary; the mean alone would be off by up to 0.08.
        let mut parameters = Table::Projection.extend(&model(2)).unwrap();
        let words = parameters.get(WORDS).unwrap().to_vec();
        let linear: Vec<f32> = words.chunks_exact(H).map(|e| 3.0 + 0.5 * e[0] - 0.25 * e[1] + 0.125 * e[2]).collect();
        Table::Projection.begin(&mut parameters, &linear, TableStart::Idf, 0).unwrap();
        for (weight, idf) in Table::Projection.weights(&parameters, V).unwrap().iter().zip(&linear) {
            assert!((weight - idf.ln_1p()).abs() < 1e-2, "{weight} for an idf of {idf}");
        }
    }

    #[test]
    fn weights_that_are_not_finite_are_named_and_large_ones_kept_in_range() {
        let mut parameters = Table::Free.extend(&model(2)).unwrap();
        parameters.get_mut(FREE).unwrap()[3] = 100.0;
        assert_eq!(Table::Free.weights(&parameters, V).unwrap()[3].to_bits(), MAX_WEIGHT.to_bits());
        parameters.get_mut(FREE).unwrap()[4] = f32::NAN;
        assert!(Table::Free.vector(&parameters, &[4]).unwrap().weights[0].is_nan());
        assert!(Table::Free.weights(&parameters, V).unwrap_err().to_string().contains("token 4"));
    }
}

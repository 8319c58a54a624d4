//! Some documents that are encoded now and then to see how dense the model is: without dropout, and none that the
//! batches hold.

use nsparse_encoder::Parameters;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use crate::Result;
use crate::data::{Documents, TrainingData};
use crate::network::Network;
use crate::stage::StepOutcome;

/// Documents of a probe.
const DOCUMENTS: usize = 32;
/// So many encoded at once.
pub(crate) const BATCH: usize = 8;

/// Documents that no example holds: what the target is to hold for. All, where there are few of those.
pub(crate) fn pool(data: &TrainingData) -> Vec<usize> {
    let outside = data.outside_of_examples();
    if outside.len() < 2 * DOCUMENTS { (0..data.documents.len()).collect() } else { outside }
}

/// Those of them that a step's probe encodes.
pub(crate) fn draw(of: &[usize], seed: u64, step: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x7072_6f62_6500_0000 ^ step as u64);
    let drawn = index::sample(&mut rng, of.len(), DOCUMENTS.min(of.len()));
    drawn.into_iter().map(|place| of[place]).collect()
}

/// Their vectors `[N, V]`, without dropout.
pub(crate) fn encode(
    network: &Network,
    parameters: &Parameters,
    documents: &Documents,
    numbers: &[usize],
) -> Result<Vec<f32>> {
    let mut weights = Vec::with_capacity(numbers.len() * network.vocab);
    for chunk in numbers.chunks(BATCH) {
        weights.extend(network.encode(parameters, documents, chunk, None, false)?.weights);
    }
    Ok(weights)
}

/// What vectors show, in the target's unit too.
pub(crate) fn seen(weights: &[f32], vocab: usize, shares: Option<&[f32]>) -> StepOutcome {
    let mut seen = StepOutcome::of_vectors(weights, vocab);
    seen.matches = shares.map_or(0.0, |shares| matches(weights, shares));
    seen
}

/// A density in the target's unit: expected matches where there are shares of the queries, else active dimensions.
pub(crate) fn density(outcome: &StepOutcome, shares: Option<&[f32]>) -> f64 {
    let sum = if shares.is_some() { outcome.matches } else { outcome.active as f64 };
    sum / outcome.documents.max(1) as f64
}

/// Share of the training queries that hold each token, `[V]`.
pub(crate) fn query_shares(data: &TrainingData, vocab: usize) -> Vec<f32> {
    let mut shares = vec![0.0f32; vocab];
    for query in &data.queries {
        for &id in &query.vector.ids {
            shares[id as usize] += 1.0;
        }
    }
    let n = data.queries.len().max(1) as f32;
    for s in &mut shares {
        *s /= n;
    }
    shares
}

/// Sum over documents of the tokens that a query is expected to share with each.
pub(crate) fn matches(weights: &[f32], query_shares: &[f32]) -> f64 {
    let of_row = |row: &[f32]| -> f64 {
        row.iter().zip(query_shares).filter(|(w, _)| **w > 0.0).map(|(_, &share)| f64::from(share)).sum()
    };
    weights.chunks_exact(query_shares.len()).map(of_row).sum()
}

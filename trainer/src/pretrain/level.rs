//! Where zero lies among the logits after masked-language modelling.
//!
//! A softmax does not change when one number is taken from all logits, so masked-language modelling leaves open
//! where zero lies; a sparse vector is what lies above it. The decoder's bias is lowered by one number for all
//! tokens, so that a document has about as many active dimensions as asked for. What the model predicts at a masked
//! position stays the same.

use nsparse_core::{Cancel, Progress};
use nsparse_encoder::Parameters;
use rand::SeedableRng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::sections::LevelSection;
use super::texts::TextData;
use crate::network::Network;
use crate::{Error, Result};

/// The decoder's bias.
pub(super) const BIAS: &str = "cls.predictions.bias";
/// Windows of one forward pass.
const BATCH: usize = 16;

/// What was done to the bias.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LevelReport {
    /// Windows it was set on.
    pub documents: usize,
    /// Mean active dimensions before.
    pub active_before: f64,
    /// Mean active dimensions afterwards.
    pub active_after: f64,
    /// What was taken from every entry of the bias.
    pub lowered_by: f64,
}

/// Lowers (or raises) the bias by one number.
///
/// # Errors
/// If a logit is not finite, the device fails, or the user asked to stop.
pub fn set_level(
    network: &Network,
    parameters: &mut Parameters,
    data: &TextData,
    section: &LevelSection,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<LevelReport> {
    let first = data.first_windows();
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x006c_6576_656c);
    let drawn = index::sample(&mut rng, first.len(), section.documents.min(first.len())).into_vec();
    let windows: Vec<usize> = drawn.into_iter().map(|i| first[i]).collect();
    let task = progress.start("Setting the level", windows.len() as u64);
    let mut logits: Vec<f32> = Vec::with_capacity(windows.len() * network.vocab);
    for chunk in windows.chunks(BATCH) {
        cancel.check()?;
        let rows = network.logits(parameters, &data.windows, chunk)?;
        for row in rows.chunks_exact(network.vocab) {
            logits.extend(row.iter().zip(&network.zeroed).filter(|(_, zeroed)| !**zeroed).map(|(&v, _)| v));
        }
        task.advance(chunk.len() as u64);
    }
    if logits.iter().any(|v| !v.is_finite()) {
        return Err(Error::Encoder(nsparse_encoder::Error::Model(
            "the head gives logits that are not finite".to_owned(),
        )));
    }
    let count = windows.len() as f64;
    let active_before = logits.iter().filter(|&&v| v > 0.0).count() as f64 / count;
    let place = (section.active_dimensions * windows.len()).min(logits.len() - 1);
    let (_, &mut at, _) = logits.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
    for bias in parameters.get_mut(BIAS)? {
        *bias -= at;
    }
    let active_after = logits.iter().filter(|&&v| v - at > 0.0).count() as f64 / count;
    Ok(LevelReport { documents: windows.len(), active_before, active_after, lowered_by: f64::from(at) })
}

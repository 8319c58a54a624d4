//! How dense a finished run's model is, on documents that its batches did not hold.

use nsparse_core::{Cancel, Progress};
use nsparse_encoder::Parameters;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::data::TrainingData;
use crate::network::Network;
use crate::probe::query_shares;
use crate::sections::TargetSection;

/// So many documents are encoded.
const DOCUMENTS: usize = 500;
/// Where fewer than so many stand outside of all examples, others are taken too.
const ENOUGH: usize = 100;

/// What a density is counted in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Mean active dimensions of a document.
    DocDims,
    /// Expected tokens that a training query and a document share.
    Flops,
}

/// `density` of `summary.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DensityReport {
    /// Documents that were encoded: up to 500, drawn by the seed.
    pub documents: usize,
    /// Those of them that no example of the training holds, as positive or as negative: all, unless there are fewer
    /// than 100 of those.
    pub held_out: usize,
    /// What `mean` and `target` count.
    pub measure: Measure,
    /// The mean over these documents.
    pub mean: f64,
    /// What the penalty's weight was steered to, where it was.
    pub target: Option<f64>,
    /// Mean active dimensions, whatever the measure is.
    pub active_dimensions: f64,
}

/// Encodes documents of a run's data.
///
/// # Errors
/// If the device fails, a weight is not finite, or the user asked to stop.
pub fn measure(
    network: &Network,
    parameters: &Parameters,
    data: &TrainingData,
    target: Option<TargetSection>,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<DensityReport> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x6465_6e73_6974_7900);
    let mut drawn = data.outside_of_examples();
    let mut rest: Vec<usize> = (0..data.documents.len()).filter(|n| drawn.binary_search(n).is_err()).collect();
    drawn.shuffle(&mut rng);
    rest.shuffle(&mut rng);
    drawn.truncate(DOCUMENTS);
    let held_out = drawn.len();
    if held_out < ENOUGH {
        drawn.extend(rest.into_iter().take(DOCUMENTS - held_out));
    }

    let task = progress.start("Measuring the density", drawn.len() as u64);
    let vectors = network.vectors(parameters, &data.documents, &drawn, cancel, |done| task.advance(done as u64))?;
    let n = vectors.len().max(1) as f64;
    let active_dimensions = vectors.iter().map(|v| v.len() as f64).sum::<f64>() / n;
    let (measure, mean) = if target.is_some_and(|t| t.flops.is_some()) {
        let shares = query_shares(data, network.vocab);
        let matches = vectors.iter().flat_map(|v| v.ids.iter()).map(|&id| f64::from(shares[id as usize]));
        (Measure::Flops, matches.sum::<f64>() / n)
    } else {
        (Measure::DocDims, active_dimensions)
    };
    let target = target.map(|t| t.value());
    Ok(DensityReport { documents: drawn.len(), held_out, measure, mean, target, active_dimensions })
}

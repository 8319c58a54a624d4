//! Calibration of a fresh head's bias: about so many active dimensions a document come out, evenly over tokens.
//!
//! Over some documents each token's pooled logit has a mean and a deviation. The bias is moved so that
//! a token is active where its logit lies c deviations above its mean, with one c for all tokens, chosen so
//! that the mean number of active dimensions over these documents is the one asked for.

use nsparse_core::{Cancel, Progress, TokenId};
use nsparse_encoder::reference::CandleBackend;
use nsparse_encoder::{BertMlm, Parameters};
use rand::SeedableRng;
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::data::Documents;
use crate::network::Network;
use crate::regularisers::active;
use crate::sections::CalibrationSection;
use crate::{Error, Result};

/// The decoder's bias: one value a vocabulary entry.
const BIAS: &str = "cls.predictions.bias";
/// Documents of one forward pass.
const BATCH: usize = 16;

/// What the calibration did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CalibrationReport {
    /// Documents it was set on.
    pub documents: usize,
    /// Mean active dimensions before.
    pub active_before: f64,
    /// Mean active dimensions asked for.
    pub active_wanted: f64,
    /// Mean active dimensions afterwards, on documents it was not set on where there are enough.
    pub active_after: f64,
}

/// Makes a fresh head ready: its transform is fitted where `calibration.fit_head` asks for it, then its bias is
/// calibrated.
///
/// # Errors
/// As [`fit_head`](crate::fit_head::fit_head) and [`calibrate`].
pub fn prepare_head(
    network: &Network,
    model: &mut BertMlm,
    documents: &Documents,
    section: &CalibrationSection,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<CalibrationReport> {
    if section.fit_head {
        let backend = CandleBackend::cpu(&model.config);
        let last = model.config.num_hidden_layers;
        let hidden = |parameters: &Parameters, ids: &[TokenId]| -> Result<Vec<f32>> {
            Ok(backend.hidden_states(parameters, ids)?.swap_remove(last))
        };
        let (config, parameters) = (&model.config, &mut model.parameters);
        crate::fit_head::fit_head(config, parameters, documents, section.documents, seed, &hidden, cancel, progress)?;
    }
    calibrate(network, &mut model.parameters, documents, section, seed, cancel, progress)
}

/// Moves the bias; everything else stays.
///
/// # Errors
/// If there are fewer than 2 documents, a logit is not finite, the device fails, or the user asked to stop.
pub fn calibrate(
    network: &Network,
    parameters: &mut Parameters,
    documents: &Documents,
    section: &CalibrationSection,
    seed: u64,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<CalibrationReport> {
    let n = section.documents.min(documents.len());
    if n < 2 {
        return Err(Error::config("`calibration.documents`: the data has fewer than 2 documents"));
    }
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x6361_6c69_6272);
    let drawn = index::sample(&mut rng, documents.len(), (2 * n).min(documents.len())).into_vec();
    let set_on = &drawn[..n];
    let measured = if drawn.len() >= 2 * n { &drawn[n..2 * n] } else { set_on };
    let task = progress.start("Calibrating", 2 * n as u64);

    let vocab = network.vocab;
    let mut logits: Vec<f32> = Vec::with_capacity(n * vocab);
    let mut active_before = 0;
    for chunk in set_on.chunks(BATCH) {
        cancel.check()?;
        let encoded = network.encode(parameters, documents, chunk, None, false)?;
        logits.extend_from_slice(encoded.pooled());
        active_before += encoded.weights.chunks_exact(vocab).map(active).sum::<usize>();
        task.advance(chunk.len() as u64);
    }
    let (mean, deviation) = moments(&logits, vocab);
    if mean.iter().chain(&deviation).any(|v| !v.is_finite()) {
        return Err(nsparse_encoder::Error::Model("its logits are not finite numbers".to_owned()).into());
    }
    let threshold = threshold(&logits, network, &mean, &deviation, section.active_dimensions * n);
    let bias = parameters.get_mut(BIAS)?;
    for ((b, m), d) in bias.iter_mut().zip(&mean).zip(&deviation) {
        *b -= (m + threshold * d) as f32;
    }
    drop(logits);

    let mut active_after = 0;
    for chunk in measured.chunks(BATCH) {
        cancel.check()?;
        let encoded = network.encode(parameters, documents, chunk, None, false)?;
        active_after += encoded.weights.chunks_exact(vocab).map(active).sum::<usize>();
        task.advance(chunk.len() as u64);
    }
    Ok(CalibrationReport {
        documents: n,
        active_before: active_before as f64 / n as f64,
        active_wanted: section.active_dimensions as f64,
        active_after: active_after as f64 / measured.len() as f64,
    })
}

/// Mean and deviation of each column of `[N, V]`.
fn moments(logits: &[f32], vocab: usize) -> (Vec<f64>, Vec<f64>) {
    let n = (logits.len() / vocab) as f64;
    let mut mean = vec![0.0f64; vocab];
    for row in logits.chunks_exact(vocab) {
        for (m, &v) in mean.iter_mut().zip(row) {
            *m += f64::from(v) / n;
        }
    }
    let mut variance = vec![0.0f64; vocab];
    for row in logits.chunks_exact(vocab) {
        for ((s, m), &v) in variance.iter_mut().zip(&mean).zip(row) {
            *s += (f64::from(v) - m).powi(2) / n;
        }
    }
    // A column without spread would turn every rounding error into a deviation.
    (mean, variance.into_iter().map(|v| v.sqrt().max(1e-6)).collect())
}

/// The number of deviations that `wanted` entries of all lie above.
fn threshold(logits: &[f32], network: &Network, mean: &[f64], deviation: &[f64], wanted: usize) -> f64 {
    let mut scores: Vec<f32> = logits
        .chunks_exact(network.vocab)
        .flat_map(|row| {
            row.iter()
                .zip(mean)
                .zip(deviation)
                .zip(&network.zeroed)
                .filter(|(_, zeroed)| !**zeroed)
                .map(|(((&v, m), d), _)| ((f64::from(v) - m) / d) as f32)
        })
        .collect();
    let place = wanted.min(scores.len().saturating_sub(1));
    let (_, at, _) = scores.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
    f64::from(*at)
}

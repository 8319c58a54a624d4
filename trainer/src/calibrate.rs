//! Calibration of a fresh head's bias and scale: about so many active dimensions a document come out, evenly over
//! tokens, and their weights are about as large as the warm start wants them.
//!
//! Over some documents that do not hold it, each token's pooled logit has a mean and a deviation. The bias is moved
//! so that a token is active where its logit lies c deviations above that mean, with one c for all tokens, chosen
//! so that the mean number of active dimensions over these documents is the one asked for. The logits above that
//! threshold are then scaled by one factor, through the head's `LayerNorm`: the one with which the warm start's
//! loss over these documents is least. Where a logit is above the threshold it stays above it.

use nsparse_core::{Cancel, Progress, TokenId};
use nsparse_encoder::cpu::CpuBackend;
use nsparse_encoder::{BertMlm, Parameters, TokenBatch};
use rand::SeedableRng;
use rand::seq::index;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::data::Documents;
use crate::network::Network;
use crate::regularisers::active;
use crate::sections::WarmStartSection;
use crate::warm_start::LexicalTargets;
use crate::{Error, Result};

/// The decoder's bias: one value a vocabulary entry.
const BIAS: &str = "cls.predictions.bias";
/// What the decoder reads: scaling both scales all logits, but for the bias.
const SCALED: [&str; 2] = ["cls.predictions.transform.LayerNorm.weight", "cls.predictions.transform.LayerNorm.bias"];
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
    /// Share of the tokens of those texts that are active afterwards.
    pub own_active: f64,
    /// What the logits were multiplied with.
    pub scale: f64,
}

/// Makes a fresh head ready: its transform is fitted where `calibration.fit_head` asks for it, then its bias is
/// calibrated. The documents are drawn by the run's seed.
///
/// # Errors
/// As [`fit_head`](crate::fit_head::fit_head) and [`calibrate`].
pub fn prepare_head(
    network: &Network,
    model: &mut BertMlm,
    documents: &Documents,
    config: &TrainConfig,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<CalibrationReport> {
    let (section, seed) = (&config.calibration, config.run.seed);
    if section.fit_head {
        let backend = CpuBackend::new(&model.config);
        let hidden = |parameters: &Parameters, ids: &[TokenId]| -> Result<Vec<f32>> {
            Ok(backend.hidden_states(parameters, &TokenBatch::new(&[ids]))?)
        };
        let (shape, parameters) = (&model.config, &mut model.parameters);
        crate::fit_head::fit_head(shape, parameters, documents, section.documents, seed, &hidden, cancel, progress)?;
    }
    calibrate(network, &mut model.parameters, documents, config, cancel, progress)
}

/// Moves the bias and scales the logits; everything else stays.
///
/// # Errors
/// If there are fewer than 2 documents, a logit is not finite, the device fails, or the user asked to stop.
pub fn calibrate(
    network: &Network,
    parameters: &mut Parameters,
    documents: &Documents,
    config: &TrainConfig,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<CalibrationReport> {
    let (section, seed) = (&config.calibration, config.run.seed);
    let n = section.documents.min(documents.len());
    if n < 2 {
        return Err(Error::config("`calibration.documents`: the data has fewer than 2 documents"));
    }
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x6361_6c69_6272);
    // Backgrounds come from three quarters, threshold and scale from the last one: on documents that they are made
    // of, backgrounds fit too well, and others would then come out denser.
    let quarter = if n >= 8 { n / 4 } else { 0 };
    let drawn = index::sample(&mut rng, documents.len(), (n + quarter).min(documents.len())).into_vec();
    let set_on = &drawn[..n];
    let measured = if quarter > 0 && drawn.len() == n + quarter { &drawn[n..] } else { set_on };
    let task = progress.start("Calibrating", (n + measured.len()) as u64);

    let vocab = network.vocab;
    let mut logits: Vec<f32> = Vec::with_capacity(n * vocab);
    let mut active_before = 0;
    for chunk in set_on.chunks(BATCH) {
        cancel.check()?;
        let part = network.logits(parameters, documents, chunk)?;
        active_before += network.activate(&part).chunks_exact(vocab).map(active).sum::<usize>();
        logits.extend(part);
        task.advance(chunk.len() as u64);
    }
    let (first, rest) = set_on.split_at(n - quarter);
    let (first_logits, rest_logits) = logits.split_at((n - quarter) * vocab);
    let (chosen, chosen_logits) = if rest.is_empty() { (first, first_logits) } else { (rest, rest_logits) };
    let (mean, deviation) = background(first_logits, network, documents, first);
    if mean.iter().chain(&deviation).any(|v| !v.is_finite()) {
        return Err(nsparse_encoder::Error::Model("its logits are not finite numbers".to_owned()).into());
    }
    let threshold = threshold(chosen_logits, network, &mean, &deviation, section.active_dimensions * chosen.len());
    let shift: Vec<f64> = mean.iter().zip(&deviation).map(|(m, d)| m + threshold * d).collect();
    let scale = best_scale(chosen_logits, &shift, network, documents, chosen, &config.warm_start);
    drop(logits);
    for (b, s) in parameters.get_mut(BIAS)?.iter_mut().zip(&shift) {
        *b = (scale * (f64::from(*b) - s)) as f32;
    }
    for name in SCALED {
        for value in parameters.get_mut(name)? {
            *value = (scale * f64::from(*value)) as f32;
        }
    }

    let targets = LexicalTargets::new(documents, &config.warm_start, &network.zeroed);
    let (mut active_after, mut own, mut own_active) = (0, 0, 0);
    for chunk in measured.chunks(BATCH) {
        cancel.check()?;
        let encoded = network.encode(parameters, documents, chunk, None, false)?;
        for (row, &number) in encoded.weights.chunks_exact(vocab).zip(chunk) {
            let target = targets.of(number);
            active_after += active(row);
            own += target.len();
            own_active += target.ids.iter().filter(|&&id| row[id as usize] > 0.0).count();
        }
        task.advance(chunk.len() as u64);
    }
    Ok(CalibrationReport {
        documents: n,
        active_before: active_before as f64 / n as f64,
        active_wanted: section.active_dimensions as f64,
        active_after: active_after as f64 / measured.len() as f64,
        own_active: own_active as f64 / own.max(1) as f64,
        scale,
    })
}

/// The factor of the logits above their thresholds with which the lexical loss is least: searched on a grid of
/// powers of two, then by thirds between the best one's neighbours.
fn best_scale(
    logits: &[f32],
    shift: &[f64],
    network: &Network,
    documents: &Documents,
    numbers: &[usize],
    section: &WarmStartSection,
) -> f64 {
    let targets = LexicalTargets::new(documents, section, &network.zeroed);
    // (logit above the threshold, target, weight of the error)
    let mut entries: Vec<(f32, f32, f32)> = Vec::new();
    for (row, &number) in logits.chunks_exact(network.vocab).zip(numbers) {
        let target = targets.of(number);
        for (j, (&v, s)) in row.iter().zip(shift).enumerate() {
            let above = (f64::from(v) - s) as f32;
            if above > 0.0 && !network.zeroed[j] {
                let wanted = target.weight(j as TokenId);
                let weight = if wanted > 0.0 { 1.0 } else { section.other_weight as f32 };
                entries.push((above, wanted, weight));
            }
        }
    }
    let loss = |exponent: f64| -> f64 {
        let scale = exponent.exp2() as f32;
        let term = |&(v, t, o): &(f32, f32, f32)| f64::from(o * (network.activation.apply(scale * v) - t).powi(2));
        entries.iter().map(term).sum()
    };
    let start = (-12..=6).map(f64::from).min_by(|a, b| loss(*a).total_cmp(&loss(*b))).unwrap_or(0.0);
    let (mut low, mut high) = (start - 1.0, start + 1.0);
    for _ in 0..20 {
        let third = (high - low) / 3.0;
        if loss(low + third) < loss(high - third) { high -= third } else { low += third }
    }
    f64::midpoint(low, high).exp2()
}

/// Mean and deviation of each column of `[N, V]` over the documents that do not hold the token: its background.
/// A token that stands in nearly all of them gets the mean background of the others.
fn background(logits: &[f32], network: &Network, documents: &Documents, numbers: &[usize]) -> (Vec<f64>, Vec<f64>) {
    let vocab = network.vocab;
    let mut count = vec![0.0f64; vocab];
    let (mut mean, mut deviation) = (vec![0.0f64; vocab], vec![0.0f64; vocab]);
    let mut holds = vec![false; vocab];
    let mut each = |take: &mut dyn FnMut(usize, f64)| {
        for (row, &number) in logits.chunks_exact(vocab).zip(numbers) {
            let window = documents.tokens(number);
            for &id in window {
                holds[id as usize] = true;
            }
            for (j, &v) in row.iter().enumerate().filter(|(j, _)| !holds[*j]) {
                take(j, f64::from(v));
            }
            for &id in window {
                holds[id as usize] = false;
            }
        }
    };
    each(&mut |j, v| {
        count[j] += 1.0;
        mean[j] += v;
    });
    mean.iter_mut().zip(&count).for_each(|(m, c)| *m /= c.max(1.0));
    each(&mut |j, v| deviation[j] += (v - mean[j]).powi(2));
    // A column without spread would turn every rounding error into a deviation.
    deviation.iter_mut().zip(&count).for_each(|(d, c)| *d = (*d / c.max(1.0)).sqrt().max(1e-6));

    let enough = (numbers.len() as f64 / 8.0).max(2.0);
    let known: Vec<usize> = (0..vocab).filter(|&j| count[j] >= enough && !network.zeroed[j]).collect();
    let average = |values: &[f64]| known.iter().map(|&j| values[j]).sum::<f64>() / known.len().max(1) as f64;
    let (usual_mean, usual_deviation) = (average(&mean), average(&deviation));
    for j in (0..vocab).filter(|&j| count[j] < enough) {
        (mean[j], deviation[j]) = (usual_mean, usual_deviation);
    }
    (mean, deviation)
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

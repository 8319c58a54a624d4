//! `--check`: reads everything a recipe names, takes one masked-language step on the side, and reports counts,
//! lengths, pairs, and what the run will cost.

use std::collections::BTreeMap;
use std::time::Instant;

use nsparse_core::{Cancel, Progress};
use serde::Serialize;

use super::config::PretrainConfig;
use super::mlm::{Mlm, UnigramReference};
use super::pairs::Pairs;
use super::run::{load, network};
use super::sections::MlmSection;
use super::texts::TextData;
use crate::Result;
use crate::check::{LengthReport, length_report, peak_memory};

/// What a recipe will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PretrainCheck {
    /// Documents read.
    pub documents: usize,
    /// Those that are held out.
    pub held_out_documents: usize,
    /// Windows that are trained on.
    pub windows: usize,
    /// Windows of held-out documents.
    pub held_out_windows: usize,
    /// Word pieces of a document.
    pub lengths: LengthReport,
    /// Share of the word pieces that the vocabulary does not know (`[UNK]`).
    pub unknown: f64,
    /// Parameters of the model.
    pub parameters: usize,
    /// Whether the head is new.
    pub head_is_new: bool,
    /// The masked-language stage.
    pub mlm: Option<MlmEstimate>,
    /// The pair stage.
    pub pairs: Option<PairsEstimate>,
    /// Estimated seconds of both stages, without evaluations.
    pub seconds: f64,
    /// Estimated peak memory in bytes, where the system tells what the step on the side took.
    pub memory_bytes: Option<u64>,
}

/// What the masked-language stage will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MlmEstimate {
    /// Its steps.
    pub steps: usize,
    /// Passes over the windows that this makes.
    pub epochs: f64,
    /// Seconds of the one step taken on the side.
    pub step_seconds: f64,
    /// Tokens of that step.
    pub step_tokens: usize,
    /// Hidden tokens of that step.
    pub step_positions: usize,
    /// Their mean cross entropy, before any training.
    pub cross_entropy: f64,
    /// What the evaluations are to be compared with.
    pub unigram: Option<UnigramReference>,
    /// Estimated seconds of the stage.
    pub seconds: f64,
}

/// What the pair stage will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairsEstimate {
    /// Pairs of each kind.
    pub counts: BTreeMap<&'static str, usize>,
    /// Pairs trained on.
    pub training: usize,
    /// Held-out pairs that are judged.
    pub held_out: usize,
    /// The first pair: query and document.
    pub example: Option<(String, String)>,
    /// Its steps.
    pub steps: usize,
    /// Estimated seconds of the stage, from the tokens a second of the step on the side.
    pub seconds: f64,
}

/// Reads everything and measures one step; writes nothing.
///
/// # Errors
/// Whatever would stop the run itself.
pub fn check(config: &PretrainConfig, cancel: &Cancel, progress: &dyn Progress) -> Result<PretrainCheck> {
    config.validate()?;
    let (model, tokenizer) = load(config)?;
    let data = TextData::load(config, &tokenizer, cancel, progress)?;
    let network = network(config, &model, &tokenizer)?;
    let pairs = config
        .pairs
        .as_ref()
        .map(|section| Pairs::make(section, &data, config.data.held_out, config.run.seed))
        .transpose()?;

    // Without a masked-language stage a step of one tells how fast this machine is, if the vocabulary allows it.
    let section = config.mlm.clone().unwrap_or_else(|| MlmSection { batch_windows: 8, ..MlmSection::default() });
    let mut stage = match Mlm::new(&section, &data, config.run.seed) {
        Err(_) if config.mlm.is_none() => None,
        other => Some(other?),
    };
    let mut gradient = vec![0.0; model.parameters.len()];
    let started = Instant::now();
    let outcome = match &mut stage {
        Some(stage) => stage.accumulate(network.backend(), &model.parameters, 0, &mut gradient)?,
        None => super::mlm::MlmOutcome::default(),
    };
    let step_seconds = started.elapsed().as_secs_f64();
    let second_per_token = step_seconds / outcome.tokens.max(1) as f64;
    let mlm = stage.filter(|_| config.mlm.is_some()).map(|stage| MlmEstimate {
        steps: stage.steps(),
        epochs: (stage.steps() * section.batch_windows) as f64 / data.training.len() as f64,
        step_seconds,
        step_tokens: outcome.tokens,
        step_positions: outcome.positions,
        cross_entropy: outcome.loss,
        unigram: stage.unigram(network.vocab),
        seconds: step_seconds * stage.steps() as f64,
    });
    let pairs = config.pairs.as_ref().zip(pairs).map(|(section, pairs)| {
        let train = &section.train;
        let per_step = train.batch_queries * train.accumulation;
        let steps = train.steps.unwrap_or_else(|| {
            ((train.epochs.unwrap_or(1.0) * pairs.training.len() as f64 / per_step as f64).ceil() as usize).max(1)
        });
        // A positive is at most a window long, most often a document's first.
        let first = data.first_windows();
        let mean =
            first.iter().map(|&w| data.windows.window(w).len()).sum::<usize>() as f64 / first.len().max(1) as f64;
        PairsEstimate {
            training: pairs.training.len(),
            held_out: pairs.held_out.len(),
            example: pairs.training.first().map(|row| (row.query.clone(), row.pos.clone().unwrap_or_default())),
            counts: pairs.counts,
            steps,
            seconds: second_per_token * mean * (steps * per_step) as f64,
        }
    });
    // Two moments of the optimizer come on top of what was measured.
    let memory_bytes = peak_memory().map(|peak| peak + 8 * model.parameters.len() as u64);
    let unk = tokenizer.special().unk;
    let (mut unknown, mut all) = (0usize, 0usize);
    for window in (0..data.windows.len()).map(|w| data.windows.window(w)) {
        unknown += window.iter().filter(|&&id| id == unk).count();
        all += window.len() - 2;
    }
    Ok(PretrainCheck {
        documents: data.documents.len(),
        held_out_documents: data.is_held_out.iter().filter(|&&held| held).count(),
        windows: data.training.len(),
        held_out_windows: data.held_out.len(),
        lengths: length_report(data.lengths.clone()),
        unknown: unknown as f64 / all.max(1) as f64,
        parameters: model.parameters.len(),
        head_is_new: model.head_is_new || config.model.random.is_some(),
        seconds: mlm.as_ref().map_or(0.0, |m| m.seconds) + pairs.as_ref().map_or(0.0, |p| p.seconds),
        mlm,
        pairs,
        memory_bytes,
    })
}

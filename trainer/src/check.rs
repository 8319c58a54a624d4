//! `--check`: reads everything a recipe names, takes one step of each stage on the side, and reports counts,
//! lengths, and what the run will cost.

use std::time::Instant;

use nsparse_core::{Cancel, Progress};
use serde::Serialize;

use crate::Result;
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::evaluate::Evaluator;
use crate::mixing::{SetReport, set_reports};
use crate::run::{build_network, load_model, needs_calibration, stages};
use crate::teachers::{TeacherEstimate, training};

/// Upper edges of the length histogram, in word pieces.
const EDGES: [usize; 9] = [16, 32, 64, 128, 256, 384, 512, 1024, usize::MAX];

/// What a recipe will do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckReport {
    /// Documents, of the corpus and of rows.
    pub documents: usize,
    /// Queries of rows and judgments.
    pub queries: usize,
    /// Queries without any positive document.
    pub queries_without_positive: usize,
    /// Queries whose vector is empty: no token of theirs can carry weight.
    pub empty_queries: usize,
    /// Training rows, or pairs made from judgments.
    pub rows: usize,
    /// Rows without a positive document.
    pub rows_without_positive: usize,
    /// Rows with fewer hard negatives than `train.negatives`.
    pub rows_short_of_negatives: usize,
    /// Queries held out for choosing the best step.
    pub held_out_queries: usize,
    /// Examples that are trained on.
    pub examples: usize,
    /// The sets, with what the run will take of each.
    pub sets: Vec<SetReport>,
    /// Word pieces of a document: mean, median, 95th percentile, most.
    pub lengths: LengthReport,
    /// Share of documents that are not read to their end: cut at `data.max_tokens`, or beyond `data.segments`.
    pub truncated_documents: f64,
    /// Share of word pieces that are lost by it.
    pub truncated_pieces: f64,
    /// Segments of a document on average, with `data.segments`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segments: Option<f64>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Whether the head is new and will be calibrated.
    pub calibration: bool,
    /// Each stage with its estimated cost.
    pub stages: Vec<StageEstimate>,
    /// Each teacher with what it has to compute before the first step.
    pub teachers: Vec<TeacherEstimate>,
    /// Documents of one evaluation; 0 if there is none.
    pub evaluation_documents: usize,
    /// How many evaluations there will be.
    pub evaluations: usize,
    /// Estimated seconds of all of them.
    pub evaluation_seconds: f64,
    /// Estimated seconds of the whole run.
    pub seconds: f64,
    /// Estimated peak memory in bytes, where the system tells what the step on the side took.
    pub memory_bytes: Option<u64>,
}

/// Word pieces of documents.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LengthReport {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub median: usize,
    /// 95th percentile.
    pub p95: usize,
    /// Most.
    pub max: usize,
    /// Documents up to each edge (and above the edge before it); the last edge is open.
    pub histogram: Vec<(usize, usize)>,
}

/// What a stage will cost.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StageEstimate {
    /// Its name.
    pub name: String,
    /// Its steps.
    pub steps: usize,
    /// Seconds of the one step taken on the side.
    pub step_seconds: f64,
    /// Tokens of that step.
    pub step_tokens: usize,
    /// Mean active dimensions in that step, before any training.
    pub active_dimensions: f64,
    /// Estimated seconds of the stage.
    pub seconds: f64,
}

/// Reads everything and measures one step of each stage; writes nothing.
///
/// # Errors
/// Whatever would stop the run itself.
pub fn check(config: &TrainConfig, cancel: &Cancel, progress: &dyn Progress) -> Result<CheckReport> {
    config.validate()?;
    let (mut model, tokenizer) = load_model(config)?;
    let mut data = TrainingData::load(config, &tokenizer, cancel, progress)?;
    let asked = training::open(config, &mut data, false, cancel, progress)?;
    let network = build_network(config, &model, &tokenizer)?;
    let calibration = needs_calibration(config, &model);
    if calibration {
        crate::calibrate::prepare_head(&network, &mut model, &data.documents, config, cancel, progress)?;
    }
    let zeroed = network.zeroed.clone();
    let mut estimates = Vec::new();
    if let Some(side) = crate::query_side::QuerySide::new(config, &data)? {
        side.extend(&mut model)?;
        side.begin(&mut model.parameters, data.query_encoder.idf(), config.run.seed)?;
    }
    let mut gradient = vec![0.0; model.parameters.len()];
    let (mut step_seconds, mut step_tokens) = (0.0, 0);
    let mut teachers = Vec::new();
    for stage in &mut stages(config, &data, &zeroed, asked)? {
        cancel.check()?;
        teachers.extend(stage.teacher_estimates(cancel)?);
        let started = Instant::now();
        let outcome = stage.accumulate(&network, &model.parameters, 0, &mut gradient)?;
        let seconds = started.elapsed().as_secs_f64();
        step_seconds += seconds;
        step_tokens += outcome.tokens;
        estimates.push(StageEstimate {
            name: stage.name().to_owned(),
            steps: stage.steps(),
            step_seconds: seconds,
            step_tokens: outcome.tokens,
            active_dimensions: outcome.active_dimensions(),
            seconds: seconds * stage.steps() as f64,
        });
    }
    // Two moments of the optimizer come on top of what was measured.
    let memory_bytes = peak_memory().map(|peak| peak + 8 * model.parameters.len() as u64);
    let evaluator = if config.has_contrastive() { Evaluator::new(&config.eval, &data, config.run.seed)? } else { None };
    let evaluation_documents = evaluator.as_ref().map_or(0, Evaluator::documents);
    let steps = estimates.last().map_or(0, |e| e.steps);
    let evaluations = match (evaluation_documents, config.eval.every) {
        (0, _) => 0,
        (_, 0) => 2,
        (_, every) => 2 + steps.saturating_sub(1) / every,
    };
    let contrastive = if config.has_contrastive() { steps * config.train.accumulation } else { 0 };
    let documents = &data.documents;
    let tokens_read = |n: usize| documents.tokens(n).len();
    let average_window = (0..documents.len()).map(tokens_read).sum::<usize>() as f64 / documents.len() as f64;
    // A forward pass is about a third of a step.
    let tokens_per_second = 3.0 * step_tokens as f64 / f64::max(step_seconds, 1e-9);
    let evaluation_seconds = if step_tokens == 0 {
        0.0
    } else {
        evaluations as f64 * evaluation_documents as f64 * average_window / tokens_per_second
    };
    let lengths: Vec<usize> = (0..documents.len()).map(|n| documents.length(n)).collect();
    let lost: Vec<usize> = (0..documents.len()).map(|n| lengths[n] - documents.pieces_read(n)).collect();
    let segments: usize = (0..documents.len()).map(|n| documents.segments(n).len()).sum();
    Ok(CheckReport {
        documents: documents.len(),
        queries: data.queries.len(),
        queries_without_positive: data.queries.iter().filter(|q| q.positives.is_empty()).count(),
        empty_queries: data.queries.iter().filter(|q| q.vector.is_empty()).count(),
        rows: data.rows,
        rows_without_positive: data.rows_without_positive,
        rows_short_of_negatives: data.rows_short_of_negatives,
        held_out_queries: data.held_out.len(),
        examples: data.examples.len(),
        sets: set_reports(config, &data, contrastive),
        truncated_documents: lost.iter().filter(|&&l| l > 0).count() as f64 / lengths.len().max(1) as f64,
        truncated_pieces: lost.iter().sum::<usize>() as f64 / lengths.iter().sum::<usize>().max(1) as f64,
        segments: config.data.segments.map(|_| segments as f64 / documents.len().max(1) as f64),
        lengths: length_report(lengths),
        parameters: model.parameters.len(),
        calibration,
        evaluation_documents,
        evaluations,
        evaluation_seconds,
        seconds: estimates.iter().map(|e| e.seconds).sum::<f64>()
            + teachers.iter().map(|t| t.seconds).sum::<f64>()
            + evaluation_seconds,
        stages: estimates,
        teachers,
        memory_bytes,
    })
}

pub(crate) fn length_report(mut lengths: Vec<usize>) -> LengthReport {
    lengths.sort_unstable();
    let Some(&max) = lengths.last() else { return LengthReport::default() };
    let mut from = 0;
    let histogram = EDGES
        .iter()
        .map(|&edge| {
            let to = lengths.partition_point(|&l| l <= edge);
            let count = to - from;
            from = to;
            (edge, count)
        })
        .collect();
    LengthReport {
        mean: lengths.iter().sum::<usize>() as f64 / lengths.len() as f64,
        median: lengths[lengths.len() / 2],
        p95: lengths[(lengths.len() * 95 / 100).min(lengths.len() - 1)],
        max,
        histogram,
    }
}

/// The most memory this process has held so far, in bytes, as Linux tells it; `None` elsewhere. Other than
/// `getrusage`'s figure it knows nothing of the process that started this one.
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}

impl std::fmt::Display for CheckReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "documents            {}", self.documents)?;
        let l = &self.lengths;
        writeln!(f, "  word pieces        mean {:.0}, median {}, p95 {}, most {}", l.mean, l.median, l.p95, l.max)?;
        let mut from = 0;
        for &(edge, count) in &l.histogram {
            let to = if edge == usize::MAX { "up".to_owned() } else { edge.to_string() };
            writeln!(f, "    {from:>5} to {to:<6} {count}")?;
            from = edge.saturating_add(1);
        }
        let cause = if self.segments.is_some() { "beyond segments" } else { "cut by max_tokens" };
        writeln!(
            f,
            "  {cause:<18} {:.1} % of documents, {:.1} % of word pieces",
            100.0 * self.truncated_documents,
            100.0 * self.truncated_pieces
        )?;
        if let Some(segments) = self.segments {
            writeln!(f, "  segments           {segments:.2} a document")?;
        }
        writeln!(
            f,
            "queries              {} ({} held out, {} without positive, {} with an empty vector)",
            self.queries, self.held_out_queries, self.queries_without_positive, self.empty_queries
        )?;
        writeln!(
            f,
            "training rows        {} ({} without positive, {} short of negatives); {} examples after holding out",
            self.rows, self.rows_without_positive, self.rows_short_of_negatives, self.examples
        )?;
        let head = if self.calibration { ", the head is new and gets calibrated" } else { "" };
        writeln!(f, "parameters           {}{head}", self.parameters)?;
        for s in &self.stages {
            writeln!(
                f,
                "{:<20} {} steps of {:.2} s ({} tokens): {}",
                s.name,
                s.steps,
                s.step_seconds,
                s.step_tokens,
                duration(s.seconds)
            )?;
        }
        for t in &self.teachers {
            write!(f, "teacher              {}", t.name)?;
            if t.unit.is_empty() {
                writeln!(f)?;
            } else {
                writeln!(f, ": {} {}, {} to compute: {}", t.needed, t.unit, t.missing, duration(t.seconds))?;
            }
        }
        writeln!(
            f,
            "evaluations          {} over {} documents: {}",
            self.evaluations,
            self.evaluation_documents,
            duration(self.evaluation_seconds)
        )?;
        write!(f, "estimate             {}", duration(self.seconds))?;
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {:.1} GiB of memory", bytes as f64 / f64::from(1 << 30))?;
        }
        Ok(())
    }
}

/// `90 s`, `12 min`, `3.4 h`.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("about {s:.0} s"),
        s if s < 7200.0 => format!("about {:.0} min", s / 60.0),
        s => format!("about {:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fall_into_their_bins() {
        let report = length_report(vec![16, 17, 5, 2000, 64]);
        assert_eq!(report.histogram.iter().map(|h| h.1).collect::<Vec<_>>(), [2, 1, 1, 0, 0, 0, 0, 0, 1]);
        assert_eq!((report.median, report.max), (17, 2000));
    }
}

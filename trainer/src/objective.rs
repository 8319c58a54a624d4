//! The weighted sum of losses and penalties that the contrastive stage minimises, with its slopes in the document
//! vectors.

use nsparse_core::SparseVector;

use crate::batches::{Batch, BatchQuery};
use crate::data::TrainingQuery;
use crate::late_cache::{LateCache, LateLoss};
use crate::losses::{CandidateSet, Scores, TeacherRow, infonce, kl, margin_mse, mask_by_teacher};
use crate::query_side::{QueryPressure, penalise};
use crate::regularisers::{LexicalTerm, Mask, anti_zero, flops_of_groups, l1};
use crate::sections::{Candidates, FlopsForm, LossSection, Teacher};
use crate::stage::StepOutcome;
use crate::teachers::TeacherScores;
use crate::warm_start::LexicalTargets;

/// The terms with what they need to know.
pub struct Objective<'a> {
    /// Weights and temperatures.
    pub losses: &'a LossSection,
    /// All queries, by number.
    pub queries: &'a [TrainingQuery],
    /// The lexical teacher.
    pub targets: LexicalTargets<'a>,
    /// The lexical term's own settings.
    pub lexical: LexicalTerm,
    /// Documents of earlier batches as further negatives, where they are asked for.
    pub late: Option<LateCache>,
}

/// The penalties' weights in one step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure<'a> {
    /// Weight of FLOPS.
    pub flops: f64,
    /// Weight of L1.
    pub l1: f64,
    /// With DF-FLOPS one factor a token.
    pub factors: Option<&'a [f32]>,
    /// Where query weights are learned: one vector a query of the batch,
    pub queries: Option<&'a [SparseVector]>,
    /// and the penalties on them.
    pub on_queries: QueryPressure,
    /// The ensemble's scores, where a term asks for them.
    pub teachers: Option<&'a TeacherScores>,
}

/// Value and slopes of a batch.
pub struct Slopes {
    /// Loss and parts.
    pub outcome: StepOutcome,
    /// dL/d weight, `[N, V]`.
    pub weights: Vec<f32>,
    /// Slopes that act on the pooled logits directly, `[N, V]`, where there are any.
    pub below: Option<Vec<f32>>,
    /// dL/d query weight, `[Q, V]`, where query weights are learned.
    pub queries: Option<Vec<f32>>,
}

impl Objective<'_> {
    /// Evaluates a batch's document vectors `[N, V]` under penalties of a step; everything is multiplied by `share`,
    /// the batch's part of the step, but for the reported values.
    pub fn evaluate(&self, batch: &Batch, weights: &[f32], vocab: usize, press: Pressure<'_>, share: f64) -> Slopes {
        // Teachers know idf alone, whatever the query side learns.
        let fixed: Vec<&SparseVector> = batch.queries.iter().map(|q| &self.queries[q.query].vector).collect();
        let queries: Vec<&SparseVector> = press.queries.map_or_else(|| fixed.clone(), |all| all.iter().collect());
        let scores = Scores::of(&queries, weights, vocab);
        let mut by_score = Scores::zeros(scores.queries, scores.documents);
        let mut slopes = vec![0.0f32; weights.len()];
        let mut below = None;
        let mut outcome = StepOutcome::of_vectors(weights, vocab);
        let mut masked = 0;
        let mut penalty = 0.0;
        let mut report = |name, value: f64, weight: f64| {
            outcome.parts.insert(name, value);
            outcome.loss += weight * value;
        };
        let l = self.losses;
        let needs_targets = l.lexical.weight > 0.0
            || (l.kl.weight > 0.0 && l.kl.teacher == Teacher::Lexical)
            || (l.margin_mse.weight > 0.0 && l.margin_mse.teacher == Teacher::Lexical)
            || (l.infonce.weight > 0.0 && l.infonce.false_negatives.is_some_and(|f| f.teacher == Teacher::Lexical));
        let targets: Vec<SparseVector> =
            if needs_targets { batch.documents.iter().map(|&d| self.targets.of(d)).collect() } else { Vec::new() };
        let asked = Asked { batch, queries: &fixed, targets: &targets, teachers: press.teachers };

        if l.infonce.weight > 0.0 {
            let mut sets: Vec<Option<CandidateSet>> =
                (0..batch.queries.len()).map(|b| batch.candidates(b, l.infonce.candidates)).collect();
            if let Some(f) = l.infonce.false_negatives {
                let rows = asked.rows(f.teacher, l.infonce.candidates, 1.0);
                masked = mask_by_teacher(&mut sets, &rows, f.margin);
            }
            let loss = match &self.late {
                None => infonce(&scores, &sets, l.infonce.temperature),
                Some(late) => {
                    let t = l.infonce.temperature;
                    let found = late.infonce(batch, &scores, sets, self.queries, weights, vocab, t);
                    self.add_cached_rows(&found, l.infonce.weight * share, &mut slopes, vocab);
                    found.loss
                }
            };
            report("infonce", loss.value, l.infonce.weight);
            by_score.add_scaled(&loss.gradient, l.infonce.weight);
        }
        if l.kl.weight > 0.0 {
            let rows = asked.rows(l.kl.teacher, l.kl.candidates, l.kl.teacher_scale);
            let loss = kl(&scores, &rows, l.kl.temperature, l.kl.scaled);
            report("kl", loss.value, l.kl.weight);
            by_score.add_scaled(&loss.gradient, l.kl.weight);
        }
        if l.margin_mse.weight > 0.0 {
            let m = &l.margin_mse;
            let mut rows = asked.rows(m.teacher, Candidates::Own, m.teacher_scale);
            if m.teacher == Teacher::Ensemble {
                // Margins are against the first; where the ensemble does not know it there are none.
                for (b, row) in rows.iter_mut().enumerate() {
                    let first = teacher_columns(batch, b, Candidates::Own).first().copied();
                    row.take_if(|row| row.columns.first().copied() != first);
                }
            }
            let loss = margin_mse(&scores, &rows);
            report("margin_mse", loss.value, m.weight);
            by_score.add_scaled(&loss.gradient, m.weight);
        }
        for slope in &mut by_score.values {
            *slope *= share;
        }
        by_score.backward_documents(&queries, &mut slopes, vocab);
        let mut at_queries = press.queries.map(|_| by_score.backward_queries(weights, vocab));
        if l.lexical.weight > 0.0 {
            let targets: Vec<&SparseVector> = targets.iter().collect();
            let at = below.insert(vec![0.0f32; weights.len()]);
            let value = self.lexical.add(weights, vocab, &targets, l.lexical.weight * share, &mut slopes, at);
            report("lexical", value, l.lexical.weight);
        }
        let others = norm(&slopes);
        let mut pressed = vec![0.0f32; weights.len()];
        if press.flops > 0.0 {
            let groups = match l.flops.form {
                FlopsForm::Grouped => batch.slots(),
                FlopsForm::Mean | FlopsForm::Df => vec![(0..batch.documents.len()).collect()],
            };
            let mask = Mask { spare_below: l.flops.spare_below, factors: press.factors };
            let value = flops_of_groups(weights, vocab, &groups, mask, press.flops * share, &mut pressed);
            report("flops", value, press.flops);
            penalty += press.flops * value;
        }
        if press.l1 > 0.0 {
            let value = l1(weights, vocab, press.l1 * share, &mut pressed);
            report("l1", value, press.l1);
            penalty += press.l1 * value;
        }
        let strength = norm(&pressed);
        if l.anti_zero.weight > 0.0 {
            let of_queries: f64 = queries.iter().flat_map(|q| q.weights.iter()).map(|&w| f64::from(w)).sum();
            let term = anti_zero(of_queries, weights, l.anti_zero.weight * share, &mut pressed);
            report("anti_zero", term.value, l.anti_zero.weight);
            if let Some(at) = &mut at_queries {
                let slope = (term.query_slope * l.anti_zero.weight * share) as f32;
                for (row, query) in at.chunks_exact_mut(vocab).zip(&queries) {
                    query.ids.iter().for_each(|&id| row[id as usize] += slope);
                }
            }
        }
        if let (Some(all), Some(at)) = (press.queries, &mut at_queries) {
            for (name, value, weight) in penalise(all, vocab, press.on_queries, share, at) {
                report(name, value, weight);
            }
        }
        for (slope, more) in slopes.iter_mut().zip(&pressed) {
            *slope += more;
        }
        let is_pressed = press.flops + press.l1 > 0.0;
        outcome.slopes = is_pressed.then(|| (strength / share, others / share));
        outcome.lambda = is_pressed.then_some(if press.flops > 0.0 { press.flops } else { press.l1 });
        outcome.masked = masked;
        outcome.penalty = penalty;
        Slopes { outcome, weights: slopes, below, queries: at_queries }
    }

    /// What cached queries do to the batch's documents, times `weight`.
    fn add_cached_rows(&self, late: &LateLoss, weight: f64, slopes: &mut [f32], vocab: usize) {
        let queries: Vec<&SparseVector> = late.queries.iter().map(|&q| &self.queries[q].vector).collect();
        let mut weighted = Scores::zeros(late.cached.queries, late.cached.documents);
        weighted.add_scaled(&late.cached, weight);
        weighted.backward_documents(&queries, slopes, vocab);
    }
}

/// Euclidean norm, summed in double.
fn norm(values: &[f32]) -> f64 {
    values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt()
}

/// Columns of the documents that a teacher is asked about for a query, its positive first or in the columns' order.
pub(crate) fn teacher_columns(batch: &Batch, query: usize, candidates: Candidates) -> Vec<usize> {
    let own = |q: &BatchQuery| -> Vec<usize> { q.positive.into_iter().chain(q.others.iter().copied()).collect() };
    match candidates {
        Candidates::Own => own(&batch.queries[query]),
        Candidates::Batch => (0..batch.documents.len()).collect(),
        Candidates::HardNegatives => {
            batch.candidates(query, candidates).map_or_else(|| own(&batch.queries[query]), |set| set.columns)
        }
    }
}

/// What teachers say about a batch.
struct Asked<'a> {
    batch: &'a Batch,
    queries: &'a [&'a SparseVector],
    /// By column, where the lexical teacher is asked.
    targets: &'a [SparseVector],
    teachers: Option<&'a TeacherScores>,
}

impl Asked<'_> {
    /// A teacher's scores of each query.
    fn rows(&self, teacher: Teacher, candidates: Candidates, scale: f64) -> Vec<Option<TeacherRow>> {
        let columns = |b| teacher_columns(self.batch, b, candidates);
        let of = |(b, q): (usize, &BatchQuery)| match teacher {
            Teacher::Rows => (q.scores.len() == q.others.len() && q.scores.len() > 1).then(|| TeacherRow {
                columns: q.others.clone(),
                scores: q.scores.iter().map(|&s| scale * f64::from(s)).collect(),
            }),
            Teacher::Lexical => {
                let columns = columns(b);
                let scores = columns.iter().map(|&c| scale * self.queries[b].dot(&self.targets[c])).collect();
                (columns.len() > 1).then_some(TeacherRow { columns, scores })
            }
            Teacher::Ensemble => {
                let mut row = self.teachers?.row(b, &columns(b))?;
                row.scores.iter_mut().for_each(|s| *s *= scale);
                Some(row)
            }
        };
        self.batch.queries.iter().enumerate().map(of).collect()
    }
}

//! Ranking losses on the matrix of scores, each with its gradient written out, and the step from scores to the
//! document vectors.
//!
//! `s(q, d) = Σ_j q_j d_j`. Every loss takes scores `[Q, N]` and returns its value and dL/dscore of the same
//! shape, in double: at a temperature of 0.05 scores reach hundreds, and exponentials are taken after the
//! maximum is subtracted.

use nsparse_core::SparseVector;
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A dense row-major matrix of doubles: scores of Q queries with N documents, or their gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Q.
    pub queries: usize,
    /// N.
    pub documents: usize,
    /// `[Q, N]`.
    pub values: Vec<f64>,
}

impl Scores {
    /// All zero.
    pub fn zeros(queries: usize, documents: usize) -> Self {
        Self { queries, documents, values: vec![0.0; queries * documents] }
    }

    /// Scores of sparse queries with dense document vectors `[N, V]`.
    pub fn of(queries: &[&SparseVector], documents: &[f32], vocab: usize) -> Self {
        let n = documents.len() / vocab;
        let values = queries
            .par_iter()
            .flat_map_iter(|query| {
                documents
                    .chunks_exact(vocab)
                    .map(|row| query.iter().map(|(id, w)| f64::from(w) * f64::from(row[id as usize])).sum::<f64>())
            })
            .collect();
        Self { queries: queries.len(), documents: n, values }
    }

    /// One query's scores.
    pub fn row(&self, query: usize) -> &[f64] {
        &self.values[query * self.documents..(query + 1) * self.documents]
    }

    fn row_mut(&mut self, query: usize) -> &mut [f64] {
        &mut self.values[query * self.documents..(query + 1) * self.documents]
    }

    /// Adds `weight · other`.
    pub fn add_scaled(&mut self, other: &Self, weight: f64) {
        debug_assert_eq!((self.queries, self.documents), (other.queries, other.documents));
        for (a, b) in self.values.iter_mut().zip(&other.values) {
            *a += weight * b;
        }
    }

    /// Adds `dL/dd = Σ_b dL/ds_bd · q_b` to the gradient of the document vectors `[N, V]`, `self` being dL/ds.
    pub fn backward_documents(&self, queries: &[&SparseVector], gradient: &mut [f32], vocab: usize) {
        gradient.par_chunks_exact_mut(vocab).enumerate().for_each(|(d, row)| {
            for (b, query) in queries.iter().enumerate() {
                let slope = self.values[b * self.documents + d];
                if slope != 0.0 {
                    for (id, w) in query.iter() {
                        row[id as usize] += (slope * f64::from(w)) as f32;
                    }
                }
            }
        });
    }

    /// `dL/dq_b = Σ_d dL/ds_bd · d`, dense `[Q, V]`: for query weights that are learned.
    pub fn backward_queries(&self, documents: &[f32], vocab: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.queries * vocab];
        out.par_chunks_exact_mut(vocab).enumerate().for_each(|(b, row)| {
            for (slope, document) in self.row(b).iter().zip(documents.chunks_exact(vocab)) {
                for (g, &w) in row.iter_mut().zip(document) {
                    *g += (slope * f64::from(w)) as f32;
                }
            }
        });
        out
    }
}

/// A loss and its slope in every score.
#[derive(Debug, Clone, PartialEq)]
pub struct Loss {
    /// The value.
    pub value: f64,
    /// dL/ds, `[Q, N]`.
    pub gradient: Scores,
}

/// Which documents a query's scores are compared over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CandidateSet {
    /// The positive's column.
    pub target: usize,
    /// Columns of all candidates, the target among them, each once.
    pub columns: Vec<usize>,
}

/// `InfoNCE`: mean over queries of `−log softmax(s / τ)` at the positive, over each query's candidates, of which
/// there may be different numbers. Queries without a set (no positive), or with nothing in it but the positive, say
/// nothing and do not count; with none at all the value is 0.
pub fn infonce(scores: &Scores, sets: &[Option<CandidateSet>], temperature: f64) -> Loss {
    let mut gradient = Scores::zeros(scores.queries, scores.documents);
    let counted = sets.iter().flatten().filter(|s| s.columns.len() > 1).count().max(1) as f64;
    let mut value = 0.0;
    for (b, set) in sets.iter().enumerate() {
        let Some(set) = set.as_ref().filter(|s| s.columns.len() > 1) else { continue };
        debug_assert!(set.columns.contains(&set.target), "the positive is a candidate");
        let row = scores.row(b);
        let logits: Vec<f64> = set.columns.iter().map(|&c| row[c] / temperature).collect();
        let log_sum = log_sum_exp(&logits);
        value += (log_sum - row[set.target] / temperature) / counted;
        let out = gradient.row_mut(b);
        for (&column, logit) in set.columns.iter().zip(&logits) {
            let hit = if column == set.target { 1.0 } else { 0.0 };
            out[column] = ((logit - log_sum).exp() - hit) / (temperature * counted);
        }
    }
    Loss { value, gradient }
}

/// A teacher's scores for one query.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TeacherRow {
    /// Columns of the documents that have a score.
    pub columns: Vec<usize>,
    /// The teacher's score of each.
    pub scores: Vec<f64>,
}

/// How far below its positive a candidate's teacher score may come before it counts as a false negative.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Margin {
    /// A candidate is left out if `t > t_pos − m`.
    Absolute(f64),
    /// A candidate is left out if `t > t_pos − m·|t_pos|`: 0.05 keeps those below 95 % of the positive (NV-Retriever,
    /// arXiv 2407.15831).
    Relative(f64),
}

impl Margin {
    /// The teacher score above which a candidate is left out.
    fn limit(self, positive: f64) -> f64 {
        match self {
            Self::Absolute(m) => positive - m,
            Self::Relative(m) => positive - m * positive.abs(),
        }
    }
}

/// Takes the candidates out that the teacher holds for (nearly) as good as the positive; how many. Candidates
/// without a teacher score stay, and so do all of a query whose positive has none.
pub fn mask_by_teacher(sets: &mut [Option<CandidateSet>], teacher: &[Option<TeacherRow>], margin: Margin) -> usize {
    let mut masked = 0;
    for (set, row) in sets.iter_mut().zip(teacher) {
        let (Some(set), Some(row)) = (set, row) else { continue };
        let score = |column: usize| row.columns.iter().position(|&c| c == column).map(|at| row.scores[at]);
        let Some(limit) = score(set.target).map(|t| margin.limit(t)) else { continue };
        let before = set.columns.len();
        let target = set.target;
        set.columns.retain(|&c| c == target || score(c).is_none_or(|t| t <= limit));
        masked += before - set.columns.len();
    }
    masked
}

/// Kullback–Leibler divergence: mean over queries of Σ p·log(p/r), p = softmax(teacher/T),
/// r = softmax(student/T), times T² if `scaled` (which keeps gradients comparable over temperatures).
/// Queries without teacher scores do not count.
pub fn kl(scores: &Scores, teacher: &[Option<TeacherRow>], temperature: f64, scaled: bool) -> Loss {
    let mut gradient = Scores::zeros(scores.queries, scores.documents);
    let counted = teacher.iter().flatten().count().max(1) as f64;
    let factor = if scaled { temperature * temperature } else { 1.0 };
    let mut value = 0.0;
    for (b, teacher) in teacher.iter().enumerate() {
        let Some(teacher) = teacher else { continue };
        let row = scores.row(b);
        let student: Vec<f64> = teacher.columns.iter().map(|&c| row[c] / temperature).collect();
        let target: Vec<f64> = teacher.scores.iter().map(|t| t / temperature).collect();
        let (student_sum, target_sum) = (log_sum_exp(&student), log_sum_exp(&target));
        let out = gradient.row_mut(b);
        for ((&column, s), t) in teacher.columns.iter().zip(&student).zip(&target) {
            let (log_r, log_p) = (s - student_sum, t - target_sum);
            let p = log_p.exp();
            if p > 0.0 {
                value += factor * p * (log_p - log_r) / counted;
            }
            out[column] = factor * (log_r.exp() - p) / (temperature * counted);
        }
    }
    Loss { value, gradient }
}

/// Margin MSE: mean over all pairs (query, k ≥ 1) of `((s_0 − s_k) − (t_0 − t_k))²`, the first column of each
/// teacher row being the positive (arXiv 2010.02666).
pub fn margin_mse(scores: &Scores, teacher: &[Option<TeacherRow>]) -> Loss {
    let mut gradient = Scores::zeros(scores.queries, scores.documents);
    let pairs = teacher.iter().flatten().map(|t| t.columns.len().saturating_sub(1)).sum::<usize>().max(1) as f64;
    let mut value = 0.0;
    for (b, teacher) in teacher.iter().enumerate() {
        let Some(teacher) = teacher.as_ref().filter(|t| t.columns.len() > 1) else { continue };
        let row = scores.row(b).to_vec();
        let first = teacher.columns[0];
        let out = gradient.row_mut(b);
        for (&column, t) in teacher.columns.iter().zip(&teacher.scores).skip(1) {
            let error = (row[first] - row[column]) - (teacher.scores[0] - t);
            value += error * error / pairs;
            out[first] += 2.0 * error / pairs;
            out[column] -= 2.0 * error / pairs;
        }
    }
    Loss { value, gradient }
}

/// log Σ exp, the maximum taken out first.
fn log_sum_exp(logits: &[f64]) -> f64 {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max.is_finite() { max + logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() } else { max }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    /// Central differences of a loss in every score.
    fn numeric(scores: &Scores, loss: impl Fn(&Scores) -> f64) -> Vec<f64> {
        (0..scores.values.len())
            .map(|i| {
                let at = |step: f64| {
                    let mut moved = scores.clone();
                    moved.values[i] += step;
                    loss(&moved)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            })
            .collect()
    }

    fn close(a: &[f64], b: &[f64]) -> bool {
        a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6 * (1.0 + b.abs()))
    }

    proptest! {
        /// Every gradient equals central differences.
        #[test]
        fn gradients(values in proptest::collection::vec(-4.0f64..4.0, 12), teach in proptest::collection::vec(-3.0f64..3.0, 8), t in 0.3f64..3.0) {
            let scores = Scores { queries: 3, documents: 4, values };
            let sets = vec![
                Some(CandidateSet { target: 1, columns: vec![0, 1, 3] }),
                None,
                Some(CandidateSet { target: 0, columns: vec![0, 2] }),
            ];
            let loss = infonce(&scores, &sets, t);
            prop_assert!(close(&loss.gradient.values, &numeric(&scores, |s| infonce(s, &sets, t).value)));
            let teacher = vec![
                Some(TeacherRow { columns: vec![2, 0, 1], scores: teach[..3].to_vec() }),
                Some(TeacherRow { columns: vec![0, 1, 2, 3], scores: teach[3..7].to_vec() }),
                None,
            ];
            let loss = kl(&scores, &teacher, t, true);
            prop_assert!(loss.value >= -1e-12);
            prop_assert!(close(&loss.gradient.values, &numeric(&scores, |s| kl(s, &teacher, t, true).value)));
            let loss = margin_mse(&scores, &teacher);
            prop_assert!(close(&loss.gradient.values, &numeric(&scores, |s| margin_mse(s, &teacher).value)));
        }
    }

    #[test]
    fn large_scores_stay_finite() {
        let scores = Scores { queries: 1, documents: 2, values: vec![98.0, -40.0] };
        let set = vec![Some(CandidateSet { target: 1, columns: vec![0, 1] })];
        let loss = infonce(&scores, &set, 0.05);
        assert!((loss.value - 138.0 / 0.05).abs() < 1e-9);
        assert!(loss.gradient.values.iter().all(|g| g.is_finite()));
    }

    #[test]
    fn no_positive_gives_zero() {
        let scores = Scores { queries: 1, documents: 2, values: vec![1.0, 2.0] };
        let loss = infonce(&scores, &[None], 1.0);
        assert_eq!((loss.value, loss.gradient.values), (0.0, vec![0.0, 0.0]));
    }

    #[test]
    fn candidates_as_good_as_the_positive_are_left_out() {
        let set = |target, columns: &[usize]| Some(CandidateSet { target, columns: columns.to_vec() });
        let row =
            |columns: &[usize], scores: &[f64]| Some(TeacherRow { columns: columns.to_vec(), scores: scores.to_vec() });
        let sets = [set(1, &[0, 1, 2, 3]), None, set(0, &[0, 1]), set(2, &[0, 2])];
        let teacher =
            [row(&[1, 0, 2], &[10.0, 9.6, 9.4]), row(&[0], &[1.0]), row(&[1], &[99.0]), row(&[0, 2], &[-1.0, -1.02])];
        let masked = |margin| {
            let mut sets = sets.clone();
            let count = mask_by_teacher(&mut sets, &teacher, margin);
            (count, sets.map(|s| s.map(|s| s.columns)))
        };
        // Column 3 has no score, query 2's positive has none; a negative score's margin still points downwards.
        let kept = [Some(vec![1, 2, 3]), None, Some(vec![0, 1]), Some(vec![2])];
        assert_eq!(masked(Margin::Relative(0.05)), (2, kept));
        let kept = [Some(vec![0, 1, 2, 3]), None, Some(vec![0, 1]), Some(vec![2])];
        assert_eq!(masked(Margin::Absolute(0.0)), (1, kept));
        let kept = [Some(vec![1, 3]), None, Some(vec![0, 1]), Some(vec![2])];
        assert_eq!(masked(Margin::Absolute(1.0)), (3, kept));
        // A query that lost all its negatives gives a loss of 0, no slope, and nothing that is not a number.
        let scores = Scores { queries: 1, documents: 2, values: vec![3.0, 2.0] };
        let loss = infonce(&scores, &[set(0, &[0])], 1.0);
        assert_eq!((loss.value, loss.gradient.values), (0.0, vec![0.0, 0.0]));
    }

    /// Queries with different numbers of candidates, a lone positive and one without any.
    #[test]
    fn a_ragged_batch_is_the_mean_of_its_queries() {
        let n = 6;
        let mut scores = Scores::zeros(5, n);
        for (i, value) in scores.values.iter_mut().enumerate() {
            *value = ((i * 37 % 23) as f64 - 11.0) / 4.0;
        }
        let columns: [&[usize]; 5] = [&[0, 1, 2, 3, 4, 5], &[2, 5], &[3], &[], &[1, 0, 4]];
        let sets: Vec<Option<CandidateSet>> =
            columns.iter().map(|c| c.first().map(|&target| CandidateSet { target, columns: c.to_vec() })).collect();
        let rows: Vec<Option<TeacherRow>> = columns
            .iter()
            .map(|c| {
                (c.len() > 1).then(|| TeacherRow {
                    columns: c.to_vec(),
                    scores: c.iter().map(|&d| (d * d % 5) as f64).collect(),
                })
            })
            .collect();
        // One query at a time, on a matrix that has its candidates alone.
        let alone = |b: usize, loss: &dyn Fn(&Scores) -> Loss| -> (f64, Vec<f64>) {
            let mut own = Scores::zeros(1, columns[b].len());
            own.values = columns[b].iter().map(|&c| scores.row(b)[c]).collect();
            let loss = loss(&own);
            (loss.value, loss.gradient.values)
        };
        let check = |whole: &Loss, single: &dyn Fn(usize) -> (f64, Vec<f64>)| {
            let mut expected = Scores::zeros(5, n);
            let mut value = 0.0;
            for b in [0, 1, 4] {
                let (v, gradient) = single(b);
                value += v / 3.0;
                for (&c, g) in columns[b].iter().zip(gradient) {
                    expected.values[b * n + c] = g / 3.0;
                }
            }
            assert!((whole.value - value).abs() < 1e-12, "{} against {value}", whole.value);
            for (a, b) in whole.gradient.values.iter().zip(&expected.values) {
                assert!((a - b).abs() < 1e-12, "{a} against {b}");
            }
        };
        check(&infonce(&scores, &sets, 0.7), &|b| {
            let set = Some(CandidateSet { target: 0, columns: (0..columns[b].len()).collect() });
            alone(b, &|own| infonce(own, std::slice::from_ref(&set), 0.7))
        });
        check(&kl(&scores, &rows, 1.3, true), &|b| {
            let scores = rows[b].as_ref().map_or_else(Vec::new, |r| r.scores.clone());
            let row = Some(TeacherRow { columns: (0..columns[b].len()).collect(), scores });
            alone(b, &|own| kl(own, std::slice::from_ref(&row), 1.3, true))
        });
        // Nothing to compare with: no value, no gradient, no division by zero.
        let lone = [Some(CandidateSet { target: 3, columns: vec![3] })];
        let loss = infonce(&Scores::zeros(1, n), &lone, 1.0);
        assert!(loss.value == 0.0 && loss.gradient.values.iter().all(|&g| g == 0.0));
    }
}

//! How the scores of several teachers become one: each is brought to [0, 1] over a query's candidates, then they are
//! averaged and scaled, as `opensearch-sparse-model-tuning-sample` does it (`bi_encoder_wrapper`).

use crate::losses::TeacherRow;
use crate::sections::TeachersSection;

/// Keeps a constant row at 0.
const EPSILON: f64 = 1e-6;

/// `(s − min) / (max − min + 1e-6)`.
pub fn min_max(scores: &[f64]) -> Vec<f64> {
    let min = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter().map(|s| (s - min) / (max - min + EPSILON)).collect()
}

/// Weighted mean over teachers of their [`min_max`] over one query's candidates, times `scale`. All have the same
/// candidates.
pub fn ensemble(teachers: &[(f64, &[f64])], scale: f64) -> Vec<f64> {
    let total: f64 = teachers.iter().map(|(weight, _)| weight).sum();
    let mut out = vec![0.0; teachers.first().map_or(0, |(_, scores)| scores.len())];
    for (weight, scores) in teachers {
        for (sum, score) in out.iter_mut().zip(min_max(scores)) {
            *sum += scale * weight / total * score;
        }
    }
    out
}

/// Every teacher's scores of a batch's queries with its documents.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TeacherScores {
    /// Q.
    pub queries: usize,
    /// N.
    pub documents: usize,
    /// Each teacher's weight and its scores `[Q, N]`; NaN where it has none.
    pub teachers: Vec<(f64, Vec<f32>)>,
    /// What the average is multiplied by.
    pub scale: f64,
}

impl TeacherScores {
    /// Of the section's members, nothing known yet.
    pub(crate) fn unknown(section: &TeachersSection, queries: usize, documents: usize) -> Self {
        let none = || vec![f32::NAN; queries * documents];
        let teachers = section.members.iter().map(|member| (member.weight(), none())).collect();
        Self { queries, documents, teachers, scale: section.scale }
    }

    /// The ensemble's scores of a query over candidate columns. A teacher without any score of them is left out for
    /// this query, a candidate that one of the others has no score of is left out too. `None` if fewer than two
    /// candidates are left.
    pub fn row(&self, query: usize, columns: &[usize]) -> Option<TeacherRow> {
        let of = |scores: &[f32], column: usize| f64::from(scores[query * self.documents + column]);
        let asked: Vec<&(f64, Vec<f32>)> = self
            .teachers
            .iter()
            .filter(|(_, scores)| columns.iter().any(|&column| !of(scores, column).is_nan()))
            .collect();
        let columns: Vec<usize> = columns
            .iter()
            .copied()
            .filter(|&column| asked.iter().all(|(_, scores)| !of(scores, column).is_nan()))
            .collect();
        if asked.is_empty() || columns.len() < 2 {
            return None;
        }
        let rows: Vec<(f64, Vec<f64>)> = asked
            .iter()
            .map(|(weight, scores)| (*weight, columns.iter().map(|&column| of(scores, column)).collect()))
            .collect();
        let rows: Vec<(f64, &[f64])> = rows.iter().map(|(weight, row)| (*weight, row.as_slice())).collect();
        let scores = ensemble(&rows, self.scale);
        Some(TeacherRow { columns, scores })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn weights_share_the_mean_and_a_constant_row_gives_nothing() {
        let got = ensemble(&[(3.0, &[1.0, 3.0, 2.0]), (1.0, &[5.0, 5.0, 5.0])], 40.0);
        for (got, want) in got.iter().zip([0.0, 30.0, 15.0]) {
            assert!((got - want).abs() < 1e-4, "{got} {want}");
        }
        assert!(ensemble(&[], 30.0).is_empty());
    }

    #[test]
    fn what_a_teacher_does_not_know_is_left_out() {
        let nan = f32::NAN;
        let scores = TeacherScores {
            queries: 2,
            documents: 3,
            teachers: vec![(1.0, vec![0.0, 1.0, 2.0, 0.0, 1.0, 2.0]), (1.0, vec![7.0, nan, 3.0, nan, nan, nan])],
            scale: 30.0,
        };
        let row = scores.row(0, &[2, 1, 0]).unwrap();
        assert_eq!(row.columns, [2, 0]);
        assert!((row.scores[0] - 15.0).abs() < 1e-4 && (row.scores[1] - 15.0).abs() < 1e-4, "{row:?}");
        let row = scores.row(1, &[0, 1, 2]).unwrap();
        assert_eq!(row.columns, [0, 1, 2]);
        assert!((row.scores[2] - 30.0).abs() < 1e-4, "{row:?}");
        assert_eq!(scores.row(0, &[1, 0]), None);
        assert_eq!(scores.row(1, &[0]), None);
    }
}

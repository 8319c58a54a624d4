//! Which candidates are too good, or too far off, to be negatives.

use nsparse_core::{Qrels, Run, Scorer, SearchQuery};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Which positive a margin is taken from, where a query has several.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MarginFrom {
    /// The row's own (NV-Retriever, arXiv 2407.15831).
    #[default]
    Own,
    /// The one with the lowest score (sentence-transformers): fewer negatives, safer ones.
    Lowest,
}

/// Limits on the candidates' scores, as sentence-transformers' `mine_hard_negatives` has them. With `s` the candidate's
/// score and `p` the positive's, a candidate is left out if
///
/// | filter | left out if |
/// |---|---|
/// | `absolute_margin: m` | `s + m > p` |
/// | `relative_margin: r` | `s > p − abs(p)·r` (NV-Retriever's `TopK-PercPos` of 95 % is `r = 0.05`) |
/// | `max_score` | `s > max_score` |
/// | `min_score` | `s < min_score` |
///
/// tried in this order.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Filters {
    /// Least distance below the positive's score; at least 0.
    pub absolute_margin: Option<f32>,
    /// The same as a share of the positive's score; in [0, 1].
    pub relative_margin: Option<f32>,
    /// Highest score.
    pub max_score: Option<f32>,
    /// Lowest score.
    pub min_score: Option<f32>,
    /// Whose score the margins are taken from.
    pub margin_from: MarginFrom,
}

/// Candidates left out, each counted once for each row that it might have stood in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filtered {
    /// By the absolute margin.
    pub absolute_margin: usize,
    /// By the relative margin.
    pub relative_margin: usize,
    /// By the highest score.
    pub max_score: usize,
    /// By the lowest score.
    pub min_score: usize,
    /// Because the teacher has no score for the candidate, or none for the positive that a margin is taken from.
    pub unscored: usize,
}

impl Filtered {
    /// All together.
    pub fn total(&self) -> usize {
        self.absolute_margin + self.relative_margin + self.max_score + self.min_score + self.unscored
    }
}

impl Filters {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        !self.needs_positive() && self.max_score.is_none() && self.min_score.is_none()
    }

    /// Whether the positive's score is asked for.
    pub fn needs_positive(&self) -> bool {
        self.absolute_margin.is_some() || self.relative_margin.is_some()
    }

    /// Checks the ranges.
    ///
    /// # Errors
    /// If a limit is not finite, a margin is out of its range, or no score can pass.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String, hint: &str| Err(Error::Option { message, hint: hint.to_owned() });
        for (name, value, most) in
            [("absolute", self.absolute_margin, f32::MAX), ("relative", self.relative_margin, 1.0)]
        {
            if value.is_some_and(|v| !(0.0..=most).contains(&v)) {
                return wrong(
                    format!("The {name} margin is {}", value.unwrap_or_default()),
                    "an absolute margin is at least 0, a relative one is a share from 0 to 1, such as 0.05",
                );
            }
        }
        if [self.max_score, self.min_score].iter().flatten().any(|v| !v.is_finite()) {
            return wrong("A limit on the score is not a finite number".to_owned(), "leave it out for no limit");
        }
        if let (Some(low), Some(high)) = (self.min_score, self.max_score)
            && low > high
        {
            return wrong(format!("No score is at least {low} and at most {high}"), "swap the two limits");
        }
        if self.margin_from != MarginFrom::Own && !self.needs_positive() {
            return wrong(
                "Which positive a margin is taken from says nothing without a margin".to_owned(),
                "give an absolute or a relative margin",
            );
        }
        Ok(())
    }

    /// Checks that a teacher has something to judge.
    ///
    /// # Errors
    /// If nothing is limited.
    pub fn require_any(&self) -> Result<()> {
        if !self.is_empty() {
            return Ok(());
        }
        Err(Error::Option {
            message: "A teacher is named, but no limit on its scores".to_owned(),
            hint: "give a margin or a highest score; a relative margin of 0.05 is a good start".to_owned(),
        })
    }

    /// Whether a candidate passes; if not, `counts` says why.
    pub fn pass(&self, score: f32, positive: Option<f32>, counts: &mut Filtered) -> bool {
        if self.needs_positive() {
            let Some(positive) = positive else {
                counts.unscored += 1;
                return false;
            };
            if self.absolute_margin.is_some_and(|m| score + m > positive) {
                counts.absolute_margin += 1;
                return false;
            }
            if self.relative_margin.is_some_and(|r| score > positive - positive.abs() * r) {
                counts.relative_margin += 1;
                return false;
            }
        }
        if self.max_score.is_some_and(|m| score > m) {
            counts.max_score += 1;
            return false;
        }
        if self.min_score.is_some_and(|m| score < m) {
            counts.min_score += 1;
            return false;
        }
        true
    }

    /// What rows say about them, with a blank in front; empty without any.
    pub(super) fn source(&self) -> String {
        let named = [
            ("absolute-margin", self.absolute_margin),
            ("relative-margin", self.relative_margin),
            ("max-score", self.max_score),
            ("min-score", self.min_score),
        ];
        let mut out: String = named.iter().filter_map(|(n, v)| Some(format!(" {n}={}", (*v)?))).collect();
        if self.margin_from == MarginFrom::Lowest {
            out.push_str(" margin-from=lowest");
        }
        out
    }
}

/// A teacher whose scores the filters look at in place of the searcher's.
pub trait Judge {
    /// One score a document `(id, text)`; `None` where it has none. Higher is better.
    ///
    /// # Errors
    /// Whatever the teacher behind it reports.
    fn scores(&self, query: &SearchQuery, documents: &[(&str, &str)]) -> Result<Vec<Option<f32>>>;

    /// Whether scores cost next to nothing, so that all candidates are scored and counted. If not, candidates are
    /// scored in the order they are drawn in until there are enough; the rows are the same.
    fn is_cheap(&self) -> bool {
        true
    }
}

/// Scores at hand: query id, document id, score.
#[derive(Debug, Clone, Default)]
pub struct StoredScores(std::collections::HashMap<String, std::collections::HashMap<String, f32>>);

impl StoredScores {
    /// From a ranking's scores.
    pub fn new(run: Run) -> Self {
        Self(run.into_iter().map(|(q, hits)| (q, hits.into_iter().map(|h| (h.id, h.score)).collect())).collect())
    }

    /// How many of the judged queries it has a score for.
    pub fn queries(&self, qrels: &Qrels) -> usize {
        qrels.keys().filter(|q| self.0.contains_key(*q)).count()
    }
}

impl Judge for StoredScores {
    fn scores(&self, query: &SearchQuery, documents: &[(&str, &str)]) -> Result<Vec<Option<f32>>> {
        let of = self.0.get(&query.id);
        Ok(documents.iter().map(|(id, _)| of?.get(*id).copied()).collect())
    }
}

/// A teacher that reads pairs of texts, such as a cross-encoder.
pub struct PairJudge<'a>(pub &'a dyn Scorer);

impl Judge for PairJudge<'_> {
    fn scores(&self, query: &SearchQuery, documents: &[(&str, &str)]) -> Result<Vec<Option<f32>>> {
        let pairs: Vec<(&str, &str)> = documents.iter().map(|(_, text)| (query.text.as_str(), *text)).collect();
        Ok(self.0.score(&pairs)?.into_iter().map(Some).collect())
    }

    fn is_cheap(&self) -> bool {
        false
    }
}

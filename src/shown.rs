//! Documents found, as people and programs see them.

use std::fmt::Write as _;

use nsparse_core::TextTokenizer;
use nsparse_opensearch::TermScore;
use nsparse_opensearch::ml::Fields;
use serde::Serialize;
use serde_json::Value;

/// Characters of a text that are shown.
const SNIPPET: usize = 160;
/// Characters of the longest bar.
const BAR: usize = 24;

/// One document found.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    pub(crate) rank: usize,
    pub(crate) id: String,
    pub(crate) score: f32,
    pub(crate) title: String,
    pub(crate) text: String,
    /// Parts of title and text with marked words, by field.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub(crate) highlight: Value,
    /// What each term gave, heaviest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) terms: Option<Vec<Term>>,
}

/// A term of the query and its part of a score.
#[derive(Debug, Serialize)]
pub(crate) struct Term {
    #[serde(flatten)]
    pub(crate) score: TermScore,
    /// Whether it is no word piece of the document's text; `None` where no tokenizer is at hand.
    pub(crate) expansion: Option<bool>,
}

impl Shown {
    /// In the terminal, with so many of its terms.
    pub(crate) fn draw(&self, most: Option<usize>) -> String {
        let marked = |field: &str| {
            let parts = self.highlight.as_object().into_iter().flatten().find(|(name, _)| *name == field)?.1;
            let parts: Vec<&str> = parts.as_array()?.iter().filter_map(Value::as_str).collect();
            Some(parts.join(" … "))
        };
        let fields = Fields::default();
        let title = marked(&fields.title).unwrap_or_else(|| self.title.clone());
        let mut out = format!("{:>3}  {:<10.4} {}  {title}", self.rank, self.score, self.id);
        let snippet = marked(&fields.text).unwrap_or_else(|| {
            let start: String = self.text.chars().take(SNIPPET).collect();
            let more = if self.text.chars().count() > SNIPPET { "…" } else { "" };
            format!("{start}{more}")
        });
        let _ = write!(out, "\n                {snippet}");
        let (Some(terms), Some(most)) = (&self.terms, most) else { return out };
        let heaviest = terms.first().map_or(1.0, |t| t.score.score);
        for term in terms.iter().take(most) {
            let bar = "█".repeat(((term.score.score / heaviest * BAR as f32).round() as usize).max(1));
            let mark = if term.expansion == Some(true) { '+' } else { ' ' };
            let TermScore { token, query_weight, score } = &term.score;
            let in_document = score / query_weight;
            let _ = write!(
                out,
                "\n              {mark} {token:<16} {score:>8.4}  {bar:<BAR$}  {query_weight:.3} × {in_document:.3}"
            );
        }
        if terms.len() > most {
            let rest: f32 = terms[most..].iter().map(|t| t.score.score).sum();
            let _ = write!(out, "\n                … {} more {:>9.4}", terms.len() - most, rest);
        }
        out
    }
}

/// Which terms are no word pieces of the document's text.
pub(crate) fn terms(
    scores: Vec<TermScore>,
    text: &str,
    tokenizer: Option<&TextTokenizer>,
) -> anyhow::Result<Vec<Term>> {
    let pieces: Option<Vec<&str>> = match tokenizer {
        None => None,
        Some(t) => Some(t.pieces(text)?.into_iter().map(|id| t.vocabulary()[id as usize].as_str()).collect()),
    };
    let expansion = |token: &str| pieces.as_ref().map(|p| !p.contains(&token));
    Ok(scores.into_iter().map(|score| Term { expansion: expansion(&score.token), score }).collect())
}

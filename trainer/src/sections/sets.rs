//! `data.sets`, and what of a row a batch takes: the sets that are trained on, how they share the batches, which
//! negatives are drawn.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DataSection, TrainSection};
use crate::{Error, Result};

/// `data.mixing`: how sets share the batches. A batch holds queries of one set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mixing {
    /// By their weights, drawn by the seed: 64 batches hold each set's share to within one batch.
    #[default]
    Weighted,
    /// One batch of each, in turns; small sets come round more often.
    RoundRobin,
}

/// What becomes of an id that the corpus or the queries do not have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Missing {
    /// An error with file, line and id.
    #[default]
    Error,
    /// Left out and counted.
    Skip,
}

/// Whose ids a set's rows have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum IdSpace {
    /// Those of `data.dir`: an id that its corpus has means that document.
    #[default]
    Corpus,
    /// Another collection's: documents are what their texts say.
    Own,
}

/// One entry of `data.sets`: exactly one of `rows`, `hard_negatives`, `tevatron` and `judgments` is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SetSection {
    /// Its name in reports; without one the file's, or `judgments`.
    pub name: Option<String>,
    /// Rows with texts (jsonl): `{query, pos, negs}` or `{query, docs, scores}`.
    pub rows: Option<PathBuf>,
    /// Lists of ids, joined with `data.dir`: jsonl, tab-separated, or one JSON object.
    pub hard_negatives: Option<PathBuf>,
    /// Tevatron's rows (jsonl): query, `positive_passages`, `negative_passages`.
    pub tevatron: Option<PathBuf>,
    /// Pairs of a split's judgments.
    pub judgments: Option<String>,
    /// Its share of the batches against the other sets' weights. Without any weight sets count by their examples.
    pub weight: Option<f64>,
    /// With `hard_negatives`: only the first so many ids of a list are read; at least 1.
    pub top: Option<usize>,
    /// With `hard_negatives`: `error` or `skip` where an id is not known.
    pub missing: Option<Missing>,
    /// With `rows` and `tevatron`: `corpus` or `own`.
    pub ids: Option<IdSpace>,
}

/// Where a set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetSource<'a> {
    /// `rows`.
    Rows(&'a Path),
    /// `hard_negatives`.
    HardNegatives(&'a Path),
    /// `tevatron`.
    Tevatron(&'a Path),
    /// `judgments`: the split.
    Judgments(&'a str),
}

impl SetSource<'_> {
    /// The key that named it.
    pub fn form(self) -> &'static str {
        match self {
            Self::Rows(_) => "rows",
            Self::HardNegatives(_) => "hard_negatives",
            Self::Tevatron(_) => "tevatron",
            Self::Judgments(_) => "judgments",
        }
    }
}

impl SetSection {
    /// Where the set comes from.
    ///
    /// # Errors
    /// If none or more than one place is given.
    pub fn source(&self) -> Result<SetSource<'_>> {
        let mut given = [
            self.rows.as_deref().map(SetSource::Rows),
            self.hard_negatives.as_deref().map(SetSource::HardNegatives),
            self.tevatron.as_deref().map(SetSource::Tevatron),
            self.judgments.as_deref().map(SetSource::Judgments),
        ]
        .into_iter()
        .flatten();
        match (given.next(), given.next()) {
            (Some(source), None) => Ok(source),
            _ => Err(Error::config(
                "`data.sets`: each set needs exactly one of `rows`, `hard_negatives`, `tevatron`, `judgments`",
            )),
        }
    }

    /// Its name in reports.
    ///
    /// # Errors
    /// As [`SetSection::source`].
    pub fn title(&self) -> Result<String> {
        let of_file = |path: &Path| path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(match (&self.name, self.source()?) {
            (Some(name), _) => name.clone(),
            (None, SetSource::Rows(path) | SetSource::HardNegatives(path) | SetSource::Tevatron(path)) => of_file(path),
            (None, SetSource::Judgments(_)) => "judgments".to_owned(),
        })
    }
}

impl DataSection {
    /// The sets that are read: `sets`, or what `rows` and `split` say in their place.
    pub fn training_sets(&self) -> Vec<SetSection> {
        if !self.sets.is_empty() {
            return self.sets.clone();
        }
        match (&self.rows, &self.dir) {
            (Some(rows), _) => vec![SetSection { rows: Some(rows.clone()), ..SetSection::default() }],
            (None, Some(_)) => vec![SetSection { judgments: Some(self.split.clone()), ..SetSection::default() }],
            (None, None) => Vec::new(),
        }
    }

    /// Checks the sets and how they are mixed.
    ///
    /// # Errors
    /// A set without or with several places, a name that comes twice, a key that would do nothing.
    pub(crate) fn validate_sets(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`data.{key}`: {problem}")));
        if !self.sets.is_empty() && self.rows.is_some() {
            return bad("rows", "it is the short form of one set; with `sets` make it one of them");
        }
        let mut names = Vec::new();
        for set in &self.sets {
            let source = set.source()?;
            let name = set.title()?;
            let bad = |key: &str, problem: &str| {
                Err(Error::config(format!("`data.sets`: `{key}` of the set `{name}`: {problem}")))
            };
            let needs_corpus = matches!(source, SetSource::HardNegatives(_) | SetSource::Judgments(_));
            if needs_corpus && self.dir.is_none() {
                return bad(source.form(), "it has ids alone; give the data set that they belong to as `data.dir`");
            }
            let is_list = matches!(source, SetSource::HardNegatives(_));
            if set.top == Some(0) {
                return bad("top", "at least 1");
            }
            if set.top.is_some() && !is_list {
                return bad("top", "only `hard_negatives` uses it");
            }
            if set.missing.is_some() && !is_list {
                return bad("missing", "only `hard_negatives` uses it");
            }
            if set.ids.is_some() && (needs_corpus || self.dir.is_none()) {
                return bad("ids", "only `rows` and `tevatron` beside a `data.dir` use it");
            }
            match set.weight {
                Some(w) if !(w > 0.0 && w.is_finite()) => return bad("weight", "a number above 0"),
                Some(_) if self.mixing == Mixing::RoundRobin => {
                    return bad("weight", "`mixing: round_robin` has no weights; take it out");
                }
                Some(_) if self.sets.len() == 1 => return bad("weight", "there is only one set; take it out"),
                _ => {}
            }
            if names.contains(&name) {
                return bad("name", "another set is called so too; give each its `name`");
            }
            names.push(name);
        }
        let weights = self.sets.iter().filter(|s| s.weight.is_some()).count();
        if weights != 0 && weights != self.sets.len() {
            return bad("sets", "give every set a `weight`, or none: then they count by their examples");
        }
        if self.mixing == Mixing::RoundRobin && self.sets.len() < 2 {
            return bad("mixing", "there are no two `sets` to mix; take it out");
        }
        Ok(())
    }
}

/// `train.negative_order`: which of its negatives a row gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NegativeOrder {
    /// Drawn anew each epoch.
    #[default]
    Random,
    /// A window over an order of its own that moves on with each epoch, so that all come round before one comes again.
    Window,
}

/// `train.short_rows`: what becomes of a row with fewer negatives than asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ShortRows {
    /// It gives what it has.
    #[default]
    Take,
    /// Documents drawn from all others fill it up; rows with stored scores give what they have.
    Fill,
    /// It is left out.
    Drop,
}

impl TrainSection {
    /// Checks what is said of negatives.
    ///
    /// # Errors
    /// A key that would do nothing.
    pub(crate) fn validate_negatives(&self) -> Result<()> {
        let inert = |key: &str| Err(Error::config(format!("`train.{key}`: `train.negatives` is 0; take it out")));
        if self.negatives == 0 && self.negative_order != NegativeOrder::default() {
            return inert("negative_order");
        }
        if self.negatives == 0 && self.short_rows != ShortRows::default() {
            return inert("short_rows");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use crate::TrainConfig;

    fn problem(data: &str) -> String {
        let text = format!("model: {{path: m}}\ndata: {data}\n");
        TrainConfig::parse(&text, &[]).err().map_or_else(String::new, |e| e.to_string())
    }

    #[test]
    fn sets_that_would_do_nothing_or_too_much_are_refused() {
        for (data, part) in [
            ("{dir: d, sets: [{weight: 1}]}", "exactly one of"),
            ("{dir: d, sets: [{rows: a, tevatron: b}]}", "exactly one of"),
            ("{dir: d, rows: a, sets: [{rows: b}]}", "`data.rows`"),
            ("{sets: [{hard_negatives: a.tsv}]}", "give the data set that they belong to"),
            ("{sets: [{judgments: train}, {rows: a}]}", "give the data set that they belong to"),
            ("{dir: d, sets: [{rows: a, weight: 2}]}", "only one set"),
            ("{dir: d, sets: [{rows: a, weight: 2}, {rows: b}]}", "every set a `weight`"),
            ("{dir: d, sets: [{rows: a, weight: 0}, {rows: b, weight: 1}]}", "a number above 0"),
            ("{dir: d, mixing: round_robin, sets: [{rows: a, weight: 1}, {rows: b, weight: 1}]}", "no weights"),
            ("{dir: d, mixing: round_robin, sets: [{rows: a}]}", "`data.mixing`"),
            ("{dir: d, mixing: round_robin, rows: a}", "`data.mixing`"),
            ("{dir: d, sets: [{rows: x/a.jsonl}, {rows: y/a.jsonl}]}", "`name` of the set `a`"),
            ("{dir: d, sets: [{rows: a, top: 3}]}", "`top` of the set `a`"),
            ("{dir: d, sets: [{hard_negatives: a, top: 0}]}", "at least 1"),
            ("{dir: d, sets: [{tevatron: a, missing: skip}]}", "`missing` of the set `a`"),
            ("{dir: d, sets: [{hard_negatives: a, ids: own}]}", "`ids` of the set `a`"),
            ("{sets: [{rows: a, ids: own}]}", "`ids` of the set `a`"),
            ("{sets: [{rows: a, wieght: 1}]}", "wieght"),
        ] {
            let message = problem(data);
            assert!(message.contains(part), "{data}: {message}");
        }
        for data in [
            "{sets: [{rows: a}]}",
            "{dir: d, sets: [{rows: a, weight: 1, ids: own}, {hard_negatives: b, weight: 0.5, top: 3, missing: skip}]}",
            "{dir: d, mixing: round_robin, sets: [{tevatron: a}, {judgments: train}]}",
        ] {
            assert_eq!(problem(data), "", "{data}");
        }
    }

    #[test]
    fn keys_about_negatives_need_some() {
        for (key, value) in [("negative_order", "window"), ("short_rows", "drop")] {
            let text = format!("model: {{path: m}}\ndata: {{dir: d}}\ntrain: {{negatives: 0, {key}: {value}}}\n");
            let message = TrainConfig::parse(&text, &[]).unwrap_err().to_string();
            assert!(message.contains(&format!("`train.{key}`")), "{message}");
        }
    }
}

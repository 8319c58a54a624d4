//! Training rows (jsonl): `{"query","pos","negs"}` for contrastive training, `{"query","docs","scores"}` for
//! stored teacher scores.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result, files};

/// One training row. Either `pos` (and `negs`) or `docs` (and `scores`) is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRow {
    /// The query's text.
    pub query: String,
    /// The positive document's text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos: Option<String>,
    /// Texts of hard negatives.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub negs: Vec<String>,
    /// Documents with stored teacher scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub docs: Vec<String>,
    /// One teacher score a document of `docs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scores: Vec<f32>,
    /// The query's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_id: Option<String>,
    /// The positive's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pos_id: Option<String>,
    /// The negatives' ids, in the order of `negs`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub neg_ids: Vec<String>,
    /// Where the row comes from: miner, depth, seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

impl TrainingRow {
    /// What is wrong with the row's shape, if anything.
    pub fn problem(&self) -> Option<String> {
        if self.query.trim().is_empty() {
            return Some("`query` is empty".to_owned());
        }
        match (&self.pos, self.docs.is_empty()) {
            (None, true) => Some("a row needs `pos` (with `negs`) or `docs` (with `scores`)".to_owned()),
            (Some(_), false) => Some("a row has either `pos` or `docs`, not both".to_owned()),
            _ if !self.scores.is_empty() && self.scores.len() != self.docs.len() => {
                Some(format!("{} `scores` for {} `docs`", self.scores.len(), self.docs.len()))
            }
            _ if !self.neg_ids.is_empty() && self.neg_ids.len() != self.negs.len() => {
                Some(format!("{} `neg_ids` for {} `negs`", self.neg_ids.len(), self.negs.len()))
            }
            _ if self.scores.iter().any(|s| !s.is_finite()) => Some("a score is not a finite number".to_owned()),
            _ => None,
        }
    }
}

/// Reads rows; empty lines are skipped.
///
/// # Errors
/// The first broken line, by file and line number; a file without rows.
pub fn read(path: &Path) -> Result<Vec<TrainingRow>> {
    let mut rows = Vec::new();
    each(path, |_, row| {
        rows.push(row);
        Ok(())
    })?;
    Ok(rows)
}

/// Calls `take` with each row and its line, from 1.
///
/// # Errors
/// As [`read`]; whatever `take` answers.
pub fn each(path: &Path, mut take: impl FnMut(usize, TrainingRow) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut is_empty = true;
    for (index, line) in BufReader::with_capacity(1 << 18, file).lines().enumerate() {
        let line = line.map_err(|e| Error::line(path, index + 1, e.to_string()))?;
        if line.trim().is_empty() {
            continue;
        }
        let row: TrainingRow = serde_json::from_str(&line).map_err(|e| {
            let place =
                other_form(&line).map_or_else(String::new, |key| format!("; rows of this form are read as `{key}`"));
            Error::line(path, index + 1, format!("not a training row: {e}{place}"))
        })?;
        if let Some(problem) = row.problem() {
            return Err(Error::line(path, index + 1, problem));
        }
        is_empty = false;
        take(index + 1, row)?;
    }
    if is_empty { Err(Error::file(path, "it has no training row")) } else { Ok(()) }
}

/// The key of `data.sets` that reads a line of another form.
fn other_form(line: &str) -> Option<&'static str> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).ok()?;
    if object.contains_key("positive_passages") {
        Some("tevatron")
    } else if object.contains_key("pos_ids") || (object.contains_key("neg_ids") && !object.contains_key("negs")) {
        Some("hard_negatives")
    } else {
        None
    }
}

/// Writes rows, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write(path: &Path, rows: &[TrainingRow]) -> Result<()> {
    files::write_atomic(path, |out| {
        for row in rows {
            serde_json::to_writer(&mut *out, row).map_err(|e| Error::json(path, e))?;
            out.write_all(b"\n").map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })
}

/// Between two origins in a row's `source`.
const AND: &str = " + ";
/// Before the negatives that an origin gave, counted from 1.
const GAVE: &str = " negatives=";

/// The `source` of a row whose negatives come from these origins, one a negative. Of one origin alone it is the
/// origin itself; of several each says which negatives it gave: `A negatives=1-3 + B negatives=4-4`.
pub fn joined_source<'a>(origins: impl IntoIterator<Item = &'a str>) -> String {
    let mut runs: Vec<(&str, usize)> = Vec::new();
    for origin in origins {
        match runs.last_mut() {
            Some((last, count)) if *last == origin => *count += 1,
            _ => runs.push((origin, 1)),
        }
    }
    if let [(only, _)] = runs[..] {
        return only.to_owned();
    }
    let mut last = 0;
    let named = runs.iter().map(|(origin, count)| {
        let first = last + 1;
        last += count;
        format!("{origin}{GAVE}{first}-{last}")
    });
    named.collect::<Vec<_>>().join(AND)
}

/// The origins that a row's `source` names, each with its negatives where it says which (the first and the last,
/// counted from 1).
pub fn origins(source: &str) -> impl Iterator<Item = (&str, Option<(usize, usize)>)> {
    source.split(AND).map(|part| {
        let range = part.rsplit_once(GAVE).and_then(|(origin, range)| {
            let (first, last) = range.split_once('-')?;
            Some((origin, (first.parse().ok()?, last.parse().ok()?)))
        });
        range.map_or((part, None), |(origin, range)| (origin, Some(range)))
    })
}

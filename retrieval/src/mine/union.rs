//! The union of mined rows with rows at hand, such as BM25's: one row a query and positive, every negative once.

use std::collections::{HashMap, HashSet};

use nsparse_core::beir::Document;
use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::{DocumentTemplate, Qrels, files};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a union did, in counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnionReport {
    /// Rows at hand.
    pub rows: usize,
    /// Of these, those whose negatives went into a mined row.
    pub joined: usize,
    /// Of these, those that no mined row belongs to: they stand behind the mined ones as they are.
    pub kept: usize,
    /// Negatives that mined rows got.
    pub negatives_added: usize,
    /// Negatives that the mined row has already.
    pub duplicates: usize,
    /// Negatives left out because they are positives of their query, or copies of one.
    pub positives_excluded: usize,
}

/// Rows that wait for mined rows of the same query and positive.
///
/// Queries and positives are the same if their ids are; where one side has no ids, if their texts are.
#[derive(Debug, Default)]
pub struct Union {
    rows: Vec<Option<Waiting>>,
    by_ids: HashMap<(String, String), Vec<usize>>,
    by_texts: HashMap<(String, String), Vec<usize>>,
    origins: Vec<String>,
    report: UnionReport,
}

#[derive(Debug)]
struct Waiting {
    row: TrainingRow,
    /// Numbers of the negatives' origins.
    from: Vec<usize>,
}

impl Waiting {
    /// Keeps the negatives that `keep` says, by id and text; how many went.
    fn retain(&mut self, keep: impl Fn(&str, &str) -> bool) -> usize {
        let (row, before) = (&mut self.row, self.from.len());
        let pairs = std::mem::take(&mut row.neg_ids).into_iter().zip(std::mem::take(&mut row.negs));
        for ((id, text), from) in pairs.zip(std::mem::take(&mut self.from)) {
            if keep(&id, &text) {
                row.neg_ids.push(id);
                row.negs.push(text);
                self.from.push(from);
            }
        }
        before - self.from.len()
    }
}

impl Union {
    /// Takes rows at hand; `name` stands for the origin of rows that do not say theirs. Negatives that `qrels` judge
    /// as positives are left out. Negatives without an id get that of the document with the same text, or, where
    /// the corpus has none, one made from the text.
    ///
    /// # Errors
    /// If a row has scored documents in place of a positive.
    pub fn add(
        &mut self,
        rows: Vec<TrainingRow>,
        name: &str,
        qrels: &Qrels,
        documents: &[Document],
        template: &DocumentTemplate,
    ) -> Result<()> {
        if let Some(row) = rows.iter().find(|r| r.pos.is_none()) {
            return Err(Error::Option {
                message: format!("`{name}` has a row without a positive; its query is `{}`", row.query),
                hint: "only rows with `pos` and `negs` can be merged; keep rows with scores in a file of their own"
                    .to_owned(),
            });
        }
        let ids = ids_by_text(&rows, documents, template);
        for mut row in rows {
            if row.neg_ids.is_empty() {
                let id = |text: &String| ids.get(text).map_or_else(|| made_up(text), |id| (*id).to_owned());
                row.neg_ids = row.negs.iter().map(id).collect();
            }
            let from = self.origins_of(&row, name);
            let mut waiting = Waiting { row, from };
            let judgments = waiting.row.query_id.as_ref().and_then(|q| qrels.get(q));
            if let Some(judgments) = judgments {
                self.report.positives_excluded +=
                    waiting.retain(|id, _| judgments.get(id).is_none_or(|&grade| grade <= 0));
            }
            self.wait(waiting);
        }
        Ok(())
    }

    fn wait(&mut self, waiting: Waiting) {
        let (row, place) = (&waiting.row, self.rows.len());
        if let (Some(query), Some(positive)) = (&row.query_id, &row.pos_id) {
            self.by_ids.entry((query.clone(), positive.clone())).or_default().push(place);
        }
        let texts = (row.query.trim().to_owned(), row.pos.clone().unwrap_or_default());
        self.by_texts.entry(texts).or_default().push(place);
        self.report.rows += 1;
        self.rows.push(Some(waiting));
    }

    /// Numbers of the origins of a row's negatives.
    fn origins_of(&mut self, row: &TrainingRow, name: &str) -> Vec<usize> {
        let mut out = vec![0; row.negs.len()];
        for (origin, range) in rows::origins(row.source.as_deref().unwrap_or(name)) {
            let number = self.number(origin);
            let (first, last) = range.unwrap_or((1, out.len()));
            for from in out.iter_mut().take(last).skip(first.saturating_sub(1)) {
                *from = number;
            }
        }
        out
    }

    fn number(&mut self, origin: &str) -> usize {
        // There are few: one a miner.
        self.origins.iter().position(|o| o == origin).unwrap_or_else(|| {
            self.origins.push(origin.to_owned());
            self.origins.len() - 1
        })
    }

    /// Adds the negatives of the rows at hand that have this row's query and positive, behind the row's own. The
    /// row's `source` then says which of its negatives come from where.
    pub fn join(&mut self, row: &mut TrainingRow) {
        let mut places = match (&row.query_id, &row.pos_id) {
            (Some(query), Some(positive)) => self.by_ids.get(&(query.clone(), positive.clone())).cloned(),
            _ => None,
        }
        .unwrap_or_default();
        let texts = (row.query.trim().to_owned(), row.pos.clone().unwrap_or_default());
        places.extend(self.by_texts.get(&texts).into_iter().flatten());
        places.sort_unstable();
        let own = self.number(row.source.as_deref().unwrap_or_default());
        let mut from = vec![own; row.negs.len()];
        for place in places {
            let Some(mut other) = self.rows[place].take() else { continue };
            self.report.joined += 1;
            self.report.positives_excluded +=
                other.retain(|id, text| row.pos.as_deref() != Some(text) && row.pos_id.as_deref() != Some(id));
            for ((id, text), origin) in other.row.neg_ids.into_iter().zip(other.row.negs).zip(other.from) {
                if row.neg_ids.contains(&id) || row.negs.contains(&text) {
                    self.report.duplicates += 1;
                } else {
                    row.neg_ids.push(id);
                    row.negs.push(text);
                    from.push(origin);
                    self.report.negatives_added += 1;
                }
            }
        }
        if !from.is_empty() {
            row.source = Some(rows::joined_source(from.iter().map(|&n| self.origins[n].as_str())));
        }
    }

    /// The rows that no mined row belongs to, in their order, and the counts.
    pub fn finish(mut self) -> (Vec<TrainingRow>, UnionReport) {
        let origins = self.origins;
        let left: Vec<TrainingRow> = self
            .rows
            .into_iter()
            .flatten()
            .map(|Waiting { mut row, from }| {
                if !from.is_empty() {
                    row.source = Some(rows::joined_source(from.iter().map(|&n| origins[n].as_str())));
                }
                row
            })
            .collect();
        self.report.kept = left.len();
        (left, self.report)
    }
}

/// Ids of the documents whose texts rows have as negatives without ids.
fn ids_by_text<'a>(
    rows: &[TrainingRow],
    documents: &'a [Document],
    template: &DocumentTemplate,
) -> HashMap<String, &'a str> {
    let wanted: HashSet<&str> =
        rows.iter().filter(|r| r.neg_ids.is_empty()).flat_map(|r| &r.negs).map(String::as_str).collect();
    if wanted.is_empty() {
        return HashMap::new();
    }
    let texts = documents.iter().map(|d| (template.apply(d), d.id.as_str()));
    texts.filter(|(text, _)| wanted.contains(text.as_str())).collect()
}

/// An id for a text that no document of the corpus has.
fn made_up(text: &str) -> String {
    let mut hash = files::sha256_bytes(text.as_bytes());
    hash.truncate(16);
    format!("text:{hash}")
}

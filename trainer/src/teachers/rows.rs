//! Training rows with the ensemble's scores: `{query, pos, negs}` or `{query, docs}` in, `{query, docs, scores}` out.

use std::collections::HashSet;

use nsparse_core::beir::Document;
use nsparse_core::rows::TrainingRow;
use nsparse_core::{Cancel, Progress};
use serde::Serialize;

use super::{Request, Teachers, Text};
use crate::{Error, Result};

/// Rows that are asked about at once.
const GROUP: usize = 64;

/// What became of rows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ScoreReport {
    /// Rows with scores.
    pub rows: usize,
    /// Their documents.
    pub documents: usize,
    /// Documents left out, as a teacher has no score of them.
    pub without_score: usize,
    /// Rows left out, as fewer than two of their documents have a score.
    pub left_out: usize,
}

/// A row's documents with their ids: the positive first. A text without an id is its own id.
fn documents(row: &TrainingRow) -> Vec<Text<'_>> {
    let positive = row.pos.as_deref().map(|text| Text { id: row.pos_id.as_deref().unwrap_or(text), text });
    let others = row
        .negs
        .iter()
        .chain(&row.docs)
        .enumerate()
        .map(|(i, text)| Text { id: row.neg_ids.get(i).map_or(text.as_str(), String::as_str), text });
    positive.into_iter().chain(others).collect()
}

/// The ids by which queries are asked for: their own, else their texts.
pub fn query_ids(rows: &[TrainingRow]) -> HashSet<&str> {
    rows.iter().map(query_id).collect()
}

fn query_id(row: &TrainingRow) -> &str {
    row.query_id.as_deref().unwrap_or(&row.query)
}

/// The documents that BM25 counts over: a corpus (texts templated already), and those of rows that it does not have.
pub fn all_documents(corpus: Vec<Document>, rows: &[TrainingRow]) -> Vec<Document> {
    let mut seen: HashSet<String> = corpus.iter().map(|d| d.id.clone()).collect();
    let mut out = corpus;
    for document in rows.iter().flat_map(documents) {
        if seen.insert(document.id.to_owned()) {
            out.push(Document { id: document.id.to_owned(), text: document.text.to_owned(), ..Document::default() });
        }
    }
    out
}

/// Scores every row's documents. With `is_raw` the scores are the only teacher's own, else the ensemble's over the row's
/// documents. Documents that a teacher does not know are left out, and rows with fewer than two others.
///
/// # Errors
/// If raw scores are asked of several teachers, a model or the disk fails, or the user asked to stop; what models
/// computed till then is kept in the cache.
pub fn score_rows(
    teachers: &mut Teachers,
    rows: &[TrainingRow],
    is_raw: bool,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(Vec<TrainingRow>, ScoreReport)> {
    if is_raw && teachers.entries.len() != 1 {
        return Err(Error::config_with_hint(
            format!("Raw scores are those of one teacher, but there are {}", teachers.entries.len()),
            "name one member, or leave --raw out to get the ensemble's scores",
        ));
    }
    let task = progress.start("Scoring rows", rows.len() as u64);
    let (mut out, mut report) = (Vec::with_capacity(rows.len()), ScoreReport::default());
    for group in rows.chunks(GROUP) {
        cancel.check()?;
        let requests: Vec<Request<'_>> = group
            .iter()
            .map(|row| {
                let documents = documents(row);
                let wanted = vec![(0..documents.len()).collect()];
                Request { queries: vec![Text { id: query_id(row), text: &row.query }], documents, wanted }
            })
            .collect();
        teachers.prepare(&requests, cancel, &mut |_| ())?;
        for (row, request) in group.iter().zip(&requests) {
            let all = teachers.scores(request)?;
            let columns: Vec<usize> = (0..request.documents.len()).collect();
            let Some(mut scored) = all.row(0, &columns) else {
                report.left_out += 1;
                continue;
            };
            if is_raw {
                let (_, raw) = &all.teachers[0];
                scored.scores = scored.columns.iter().map(|&column| f64::from(raw[column])).collect();
            }
            report.rows += 1;
            report.documents += scored.columns.len();
            report.without_score += columns.len() - scored.columns.len();
            out.push(TrainingRow {
                query: row.query.clone(),
                docs: scored.columns.iter().map(|&column| request.documents[column].text.to_owned()).collect(),
                scores: scored.scores.iter().map(|&s| s as f32).collect(),
                query_id: row.query_id.clone(),
                source: row.source.clone(),
                ..TrainingRow::default()
            });
        }
        task.advance(group.len() as u64);
    }
    Ok((out, report))
}

//! Judgments and runs: TREC, BEIR and MS MARCO forms, read and written.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use crate::{Error, Hit, Result, files};

/// Judgments: query id → document id → grade. A grade above 0 is relevant.
pub type Qrels = BTreeMap<String, BTreeMap<String, i64>>;
/// A ranking: query id → documents with scores, in the order of the file or the searcher. Metrics sort it anew.
pub type Run = BTreeMap<String, Vec<Hit>>;

/// Reads judgments: TREC (`query iteration document grade`), BEIR (three tab-separated columns with a header)
/// or MS MARCO (TREC's four, tab-separated); what it is follows from the lines.
///
/// # Errors
/// A broken line, by file and line number.
pub fn read_qrels(path: &Path) -> Result<Qrels> {
    let mut qrels = Qrels::new();
    each_line(path, |number, line| {
        let columns = split(line);
        if number == 1 && columns.first().is_some_and(|c| *c == "query-id") {
            return Ok(());
        }
        let (query, document, grade) = match columns.as_slice() {
            // Comments may stand behind TREC's four columns.
            [query, _iteration, document, grade, ..] => (query, document, grade),
            [query, document, grade] => (query, document, grade),
            _ => {
                return Err(Error::line(
                    path,
                    number,
                    format!(
                        "{} columns; expected `query document grade` or `query iteration document grade`",
                        columns.len()
                    ),
                ));
            }
        };
        let grade: i64 = grade
            .parse()
            .map_err(|_| Error::line(path, number, format!("the grade `{grade}` is not a whole number")))?;
        qrels.entry((*query).to_owned()).or_default().insert((*document).to_owned(), grade);
        Ok(())
    })?;
    if qrels.is_empty() {
        return Err(Error::file(path, "it has no judgment"));
    }
    Ok(qrels)
}

/// Reads a ranking: TREC (`query Q0 document rank score tag`) or MS MARCO (`query document rank`; the score is
/// then 1/rank).
///
/// # Errors
/// A broken line, or a document that a query has twice: by file and line number.
pub fn read_run(path: &Path) -> Result<Run> {
    let mut run = Run::new();
    let mut seen = std::collections::HashSet::new();
    each_line(path, |number, line| {
        let columns = split(line);
        let (query, document, score) = match columns.as_slice() {
            [query, _q0, document, _rank, score, _tag, ..] => {
                let score: f32 = score
                    .parse()
                    .map_err(|_| Error::line(path, number, format!("the score `{score}` is not a number")))?;
                (query, document, score)
            }
            [query, document, rank] => {
                let rank: u32 =
                    rank.parse().ok().filter(|r| *r > 0).ok_or_else(|| {
                        Error::line(path, number, format!("the rank `{rank}` is not a number from 1"))
                    })?;
                (query, document, 1.0 / rank as f32)
            }
            _ => {
                return Err(Error::line(
                    path,
                    number,
                    format!(
                        "{} columns; expected `query Q0 document rank score tag` or `query document rank`",
                        columns.len()
                    ),
                ));
            }
        };
        if !seen.insert(((*query).to_owned(), (*document).to_owned())) {
            return Err(Error::line(path, number, format!("query `{query}` has document `{document}` twice")));
        }
        run.entry((*query).to_owned()).or_default().push(Hit { id: (*document).to_owned(), score });
        Ok(())
    })?;
    Ok(run)
}

/// Writes a ranking in TREC's form; ranks count from 1 in the order given.
///
/// # Errors
/// If the file cannot be written.
pub fn write_run(path: &Path, run: &Run, tag: &str) -> Result<()> {
    files::write_atomic(path, |out| {
        for (query, hits) in run {
            for (rank, hit) in hits.iter().enumerate() {
                writeln!(out, "{query} Q0 {} {} {} {tag}", hit.id, rank + 1, hit.score)
                    .map_err(|e| Error::io("write", path, e))?;
            }
        }
        Ok(())
    })
}

/// Writes a ranking in MS MARCO's form: `query document rank`, tab-separated.
///
/// # Errors
/// If the file cannot be written.
pub fn write_msmarco_run(path: &Path, run: &Run) -> Result<()> {
    files::write_atomic(path, |out| {
        for (query, hits) in run {
            for (rank, hit) in hits.iter().enumerate() {
                writeln!(out, "{query}\t{}\t{}", hit.id, rank + 1).map_err(|e| Error::io("write", path, e))?;
            }
        }
        Ok(())
    })
}

/// Writes judgments in BEIR's form, header included.
///
/// # Errors
/// If the file cannot be written.
pub fn write_beir_qrels(path: &Path, qrels: &Qrels) -> Result<()> {
    files::write_atomic(path, |out| {
        let write = |e| Error::io("write", path, e);
        writeln!(out, "query-id\tcorpus-id\tscore").map_err(write)?;
        for (query, documents) in qrels {
            for (document, grade) in documents {
                writeln!(out, "{query}\t{document}\t{grade}").map_err(write)?;
            }
        }
        Ok(())
    })
}

/// Tab-separated where there is a tab (BEIR ids may hold blanks), else by white space.
fn split(line: &str) -> Vec<&str> {
    if line.contains('\t') { line.split('\t').map(str::trim).collect() } else { line.split_whitespace().collect() }
}

fn each_line(path: &Path, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Error::line(path, index + 1, e.to_string()))?;
        if !line.trim().is_empty() {
            take(index + 1, &line)?;
        }
    }
    Ok(())
}

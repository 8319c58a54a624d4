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
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    read_qrels_from(BufReader::new(file), path)
}

/// As [`read_qrels`], from an open file that messages call `path`.
///
/// # Errors
/// As [`read_qrels`].
pub fn read_qrels_from(input: impl BufRead, path: &Path) -> Result<Qrels> {
    let mut qrels = Qrels::new();
    each_line(input, path, |number, line| {
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
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    each_line(BufReader::new(file), path, |number, line| {
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

/// The forms in which judgments and rankings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Judgments `query 0 document grade`, rankings `query Q0 document rank score tag`, blanks between.
    Trec,
    /// Judgments `query 0 document grade`, rankings `query document rank`, tabs between.
    MsMarco,
    /// Judgments `query document grade`, tabs between, under a header. Rankings are TREC's.
    Beir,
}

/// Writes a ranking; ranks count from 1 in the order given. `tag` is TREC's last column.
///
/// # Errors
/// If the file cannot be written.
pub fn write_run_as(path: &Path, run: &Run, form: Form, tag: &str) -> Result<()> {
    files::write_atomic(path, |out| {
        for (query, hits) in run {
            for (index, hit) in hits.iter().enumerate() {
                let rank = index + 1;
                match form {
                    Form::MsMarco => writeln!(out, "{query}\t{}\t{rank}", hit.id),
                    Form::Trec | Form::Beir => writeln!(out, "{query} Q0 {} {rank} {} {tag}", hit.id, hit.score),
                }
                .map_err(|e| Error::io("write", path, e))?;
            }
        }
        Ok(())
    })
}

/// Writes a ranking in TREC's form; ranks count from 1 in the order given.
///
/// # Errors
/// If the file cannot be written.
pub fn write_run(path: &Path, run: &Run, tag: &str) -> Result<()> {
    write_run_as(path, run, Form::Trec, tag)
}

/// Writes a ranking in MS MARCO's form: `query document rank`, tab-separated.
///
/// # Errors
/// If the file cannot be written.
pub fn write_msmarco_run(path: &Path, run: &Run) -> Result<()> {
    write_run_as(path, run, Form::MsMarco, "")
}

/// Writes judgments.
///
/// # Errors
/// If the file cannot be written.
pub fn write_qrels_as(path: &Path, qrels: &Qrels, form: Form) -> Result<()> {
    files::write_atomic(path, |out| {
        let write = |e| Error::io("write", path, e);
        if form == Form::Beir {
            writeln!(out, "query-id\tcorpus-id\tscore").map_err(write)?;
        }
        for (query, documents) in qrels {
            for (document, grade) in documents {
                match form {
                    Form::Trec => writeln!(out, "{query} 0 {document} {grade}"),
                    Form::MsMarco => writeln!(out, "{query}\t0\t{document}\t{grade}"),
                    Form::Beir => writeln!(out, "{query}\t{document}\t{grade}"),
                }
                .map_err(write)?;
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
    write_qrels_as(path, qrels, Form::Beir)
}

/// Tab-separated where there is a tab (BEIR ids may hold blanks), else by white space.
fn split(line: &str) -> Vec<&str> {
    if line.contains('\t') { line.split('\t').map(str::trim).collect() } else { line.split_whitespace().collect() }
}

fn each_line(input: impl BufRead, path: &Path, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    for (index, line) in input.lines().enumerate() {
        let line = line.map_err(|e| Error::line(path, index + 1, e.to_string()))?;
        if !line.trim().is_empty() {
            take(index + 1, &line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn every_form_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let qrels: Qrels = [
            ("1".to_owned(), [("7".to_owned(), 1), ("8".to_owned(), 0)].into()),
            ("20".to_owned(), [("D9".to_owned(), 3)].into()),
        ]
        .into();
        for form in [Form::Trec, Form::MsMarco, Form::Beir] {
            write_qrels_as(&path, &qrels, form).unwrap();
            assert_eq!(read_qrels(&path).unwrap(), qrels, "{form:?}");
        }
        let hit = |id: &str, score| Hit { id: id.to_owned(), score };
        let run: Run =
            [("1".to_owned(), vec![hit("8", 2.5), hit("7", 0.25)]), ("20".to_owned(), vec![hit("D9", 1.0)])].into();
        write_run_as(&path, &run, Form::Trec, "tag").unwrap();
        assert_eq!(read_run(&path).unwrap(), run);
        // MS MARCO's form keeps the order alone.
        write_run_as(&path, &run, Form::MsMarco, "").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\t8\t1\n1\t7\t2\n20\tD9\t1\n");
        let back = read_run(&path).unwrap();
        assert_eq!(back["1"], [hit("8", 1.0), hit("7", 0.5)]);
    }

    #[test]
    fn msmarco_files_are_read_as_they_are_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "1185869\t0\t0\t1\r\n1185868\t0\t16\t1\r\n").unwrap();
        let qrels = read_qrels(&path).unwrap();
        assert_eq!((qrels.len(), qrels["1185869"]["0"]), (2, 1));
        // The documents' judgments have blanks.
        std::fs::write(&path, "3 0 D312959 1\n").unwrap();
        assert_eq!(read_qrels(&path).unwrap()["3"]["D312959"], 1);
    }
}

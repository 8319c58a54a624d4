//! Scores made elsewhere, by the ids of query and document.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::{Member, Request};
use crate::Result;
use crate::sections::{MissingScore, ScoresTeacher};

/// One query's scores by document.
#[derive(Debug, Default)]
struct OfQuery {
    scores: HashMap<String, f32>,
    lowest: f32,
}

/// A score file.
#[derive(Debug)]
pub(super) struct ScoresMember {
    queries: HashMap<String, OfQuery>,
    missing: MissingScore,
}

#[derive(Deserialize)]
struct Line {
    query_id: String,
    doc_id: String,
    score: f32,
}

impl ScoresMember {
    /// Reads a file: JSON lines, three columns (query, document, score) or a TREC run. Queries that will not be asked
    /// for are left out.
    ///
    /// # Errors
    /// A broken line, or a pair that stands there twice with two scores: by file and line number. A file without any
    /// query that is asked for.
    pub(super) fn read(t: &ScoresTeacher, is_asked: &dyn Fn(&str) -> bool) -> Result<Self> {
        let path = &t.file;
        let broken = |number: usize, message: String| nsparse_core::Error::line(path, number, message);
        let file = std::fs::File::open(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
        let mut queries: HashMap<String, OfQuery> = HashMap::new();
        let mut example = None;
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let number = index + 1;
            let line = line.map_err(|e| broken(number, e.to_string()))?;
            if line.trim().is_empty() {
                continue;
            }
            let line = parse(&line).map_err(|message| broken(number, message))?;
            if !line.score.is_finite() {
                return Err(broken(number, "the score is not a finite number".to_owned()).into());
            }
            if !is_asked(&line.query_id) {
                example.get_or_insert(line.query_id);
                continue;
            }
            let of_query =
                queries.entry(line.query_id).or_insert_with(|| OfQuery { lowest: f32::INFINITY, ..OfQuery::default() });
            of_query.lowest = of_query.lowest.min(line.score);
            if let Some(before) = of_query.scores.insert(line.doc_id, line.score)
                && before.to_bits() != line.score.to_bits()
            {
                return Err(broken(number, format!("the pair has the score {before} further up")).into());
            }
        }
        if queries.is_empty() {
            return Err(no_query(path, example));
        }
        Ok(Self { queries, missing: t.missing })
    }
}

fn no_query(path: &Path, example: Option<String>) -> crate::Error {
    let problem = match example {
        None => "it has no score".to_owned(),
        Some(id) => format!("none of its query ids is one of the training queries'; it has `{id}`, for instance"),
    };
    nsparse_core::Error::file(path, problem).into()
}

fn parse(line: &str) -> std::result::Result<Line, String> {
    if line.trim_start().starts_with('{') {
        return serde_json::from_str(line).map_err(|e| format!("not {{query_id, doc_id, score}}: {e}"));
    }
    // Ids may hold blanks where tabs part the columns.
    let columns: Vec<&str> =
        if line.contains('\t') { line.split('\t').map(str::trim).collect() } else { line.split_whitespace().collect() };
    let ([query, document, score] | [query, _, document, _, score, ..]) = columns[..] else {
        return Err(format!(
            "{} columns; expected `query document score` or `query Q0 document rank score tag`",
            columns.len()
        ));
    };
    let score = score.parse().map_err(|_| format!("the score `{score}` is not a number"))?;
    Ok(Line { query_id: query.to_owned(), doc_id: document.to_owned(), score })
}

impl Member for ScoresMember {
    fn scores(&mut self, request: &Request<'_>) -> Result<Vec<f32>> {
        let n = request.documents.len();
        let mut out = vec![f32::NAN; request.queries.len() * n];
        for (q, d) in request.pairs() {
            let Some(of_query) = self.queries.get(request.queries[q].id) else { continue };
            let score = of_query.scores.get(request.documents[d].id).copied();
            let fallback = if self.missing == MissingScore::Lowest { of_query.lowest } else { f32::NAN };
            out[q * n + d] = score.unwrap_or(fallback);
        }
        Ok(out)
    }

    fn unit(&self) -> &'static str {
        ""
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::super::Text;
    use super::*;

    fn read(text: &str, missing: MissingScore) -> Result<ScoresMember> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("scores");
        std::fs::write(&file, text).unwrap();
        ScoresMember::read(&ScoresTeacher { file, missing, weight: 1.0 }, &|id| id != "other")
    }

    fn scores(member: &mut ScoresMember) -> Vec<f32> {
        let text = |id| Text { id, text: "" };
        let request = Request {
            queries: vec![text("q1"), text("q2")],
            documents: vec![text("a"), text("b"), text("c")],
            wanted: vec![vec![0, 1, 2], vec![0, 1]],
        };
        member.scores(&request).unwrap()
    }

    fn same(a: &[f32], b: &[f32]) -> bool {
        a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()))
    }

    #[test]
    fn every_form_is_read() {
        let nan = f32::NAN;
        for text in [
            "q1 a 3\nq1 b -2.5\nother a 1\n\nq2 b 7\n",
            "q1\ta\t3\nq1\tb\t-2.5\nq2\tb\t7\n",
            "q1 Q0 a 1 3 run\nq1 Q0 b 2 -2.5 run\nq2 Q0 b 1 7 run\n",
            "{\"query_id\":\"q1\",\"doc_id\":\"a\",\"score\":3}\n{\"query_id\":\"q1\",\"doc_id\":\"b\",\"score\":-2.5}\n{\"query_id\":\"q2\",\"doc_id\":\"b\",\"score\":7.0}\n",
        ] {
            let got = scores(&mut read(text, MissingScore::Drop).unwrap());
            assert!(same(&got, &[3.0, -2.5, nan, nan, 7.0, nan]), "{text}: {got:?}");
            let got = scores(&mut read(text, MissingScore::Lowest).unwrap());
            assert!(same(&got, &[3.0, -2.5, -2.5, 7.0, 7.0, nan]), "{text}: {got:?}");
        }
    }

    #[test]
    fn what_is_broken_is_named() {
        let message = |text: &str| read(text, MissingScore::Drop).unwrap_err().to_string();
        assert!(message("q1 a 3\nq1 b\n").contains("scores:2: 2 columns"));
        assert!(message("q1 a three\n").contains("`three` is not a number"));
        assert!(message("q1 a NaN\n").contains("finite"));
        assert!(message("q1 a 1\nq1 a 2\n").contains("scores:2"));
        assert!(message("other a 1\n").contains("`other`"));
        assert!(message("").contains("no score"));
    }
}

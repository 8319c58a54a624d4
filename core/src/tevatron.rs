//! Training rows as tevatron has them, with the documents' texts in them (jsonl):
//! `{"query_id", "query", "positive_passages": [{"docid", "title", "text"}], "negative_passages": […]}`.
//! Other keys, such as `answers`, are passed over.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use crate::beir::{self, Document, FieldNames};
use crate::{Error, Result};

/// One query with its passages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TevatronRow {
    /// The query's id, where the row has one.
    pub query_id: Option<String>,
    /// The query's text.
    pub query: String,
    /// Passages that answer it; at least one.
    pub positives: Vec<Document>,
    /// Passages that do not.
    pub negatives: Vec<Document>,
}

/// Calls `take` with each row and its line, from 1.
///
/// # Errors
/// A row that is none, has been tokenised already, or has no positive passage: by file and line; a file without rows;
/// whatever `take` answers.
pub fn each(path: &Path, mut take: impl FnMut(usize, TevatronRow) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut is_empty = true;
    for (index, text) in BufReader::with_capacity(1 << 18, file).lines().enumerate() {
        let line = index + 1;
        let text = text.map_err(|e| Error::line(path, line, e.to_string()))?;
        if text.trim().is_empty() {
            continue;
        }
        is_empty = false;
        take(line, parse(path, line, &beir::object_of(path, line, &text)?)?)?;
    }
    if is_empty { Err(Error::file(path, "it has no training row")) } else { Ok(()) }
}

fn parse(path: &Path, line: usize, object: &Map<String, Value>) -> Result<TevatronRow> {
    let broken = |message: String| Error::line(path, line, message);
    if matches!(object.get("query"), Some(Value::Array(_))) || object.contains_key("positives") {
        return Err(broken(
            "the row is tokenised already: `query` and passages are lists of token ids of some tokenizer, which \
             cannot be told; give the rows that it was made of, with texts (query, positive_passages, \
             negative_passages)"
                .to_owned(),
        ));
    }
    let query = match object.get("query") {
        Some(Value::String(query)) if !query.trim().is_empty() => query.clone(),
        Some(Value::String(_)) => return Err(broken("`query` is empty".to_owned())),
        Some(_) => return Err(broken("`query` is not a text".to_owned())),
        None => return Err(broken(beir::missing(object, "query"))),
    };
    let query_id =
        if object.contains_key("query_id") { Some(beir::id_of(path, line, object, "query_id")?) } else { None };
    let positives = passages(path, line, object, "positive_passages")?
        .ok_or_else(|| broken(beir::missing(object, "positive_passages")))?;
    if positives.is_empty() {
        return Err(broken("`positive_passages` is empty".to_owned()));
    }
    let negatives = passages(path, line, object, "negative_passages")?.unwrap_or_default();
    Ok(TevatronRow { query_id, query, positives, negatives })
}

fn passages(path: &Path, line: usize, object: &Map<String, Value>, key: &str) -> Result<Option<Vec<Document>>> {
    let Some(value) = object.get(key) else { return Ok(None) };
    let wrong = || Error::line(path, line, format!("`{key}` is not a list of objects with `docid` and `text`"));
    let fields = FieldNames { id: "docid".to_owned(), ..FieldNames::default() };
    let list = value.as_array().ok_or_else(wrong)?;
    list.iter()
        .map(|passage| {
            let passage = passage.as_object().ok_or_else(wrong)?;
            beir::object_document(path, line, passage, &fields)
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn read(text: &str) -> Result<Vec<TevatronRow>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut found = Vec::new();
        each(file.path(), |_, row| {
            found.push(row);
            Ok(())
        })?;
        Ok(found)
    }

    #[test]
    fn a_row_has_its_documents() {
        let rows = read(
            "{\"query_id\": 12, \"query\": \"q\", \"answers\": [\"a\"], \"positive_passages\": [{\"docid\": \"d1\", \
             \"title\": \"T\", \"text\": \"x\", \"url\": \"u\"}], \"negative_passages\": [{\"docid\": 7, \"text\": \"y\"}]}\n\
             \n{\"query\": \"r\", \"positive_passages\": [{\"docid\": \"d2\", \"text\": \"z\"}]}\n",
        )
        .unwrap();
        assert_eq!(rows.len(), 2);
        assert_eq!((rows[0].query_id.as_deref(), rows[0].query.as_str()), (Some("12"), "q"));
        assert_eq!((rows[0].positives[0].title.as_str(), rows[0].positives[0].other["url"].as_str()), ("T", "u"));
        assert_eq!((rows[0].negatives[0].id.as_str(), rows[0].negatives[0].title.as_str()), ("7", ""));
        assert_eq!((rows[1].query_id.clone(), rows[1].negatives.len()), (None, 0));
    }

    #[test]
    fn broken_rows_name_their_line() {
        let good = "{\"query\": \"r\", \"positive_passages\": [{\"docid\": \"d2\", \"text\": \"z\"}]}";
        for (row, part) in [
            ("{\"query\": [101, 7], \"positives\": [[1]], \"negatives\": [[2]]}", "tokenised already"),
            ("{\"query\": \"q\", \"positives\": [[1]], \"negatives\": [[2]]}", "tokenised already"),
            ("{\"query\": \"q\", \"positive_passages\": []}", "`positive_passages` is empty"),
            ("{\"query\": \"q\", \"pos\": \"x\"}", "no field `positive_passages`; the line has: pos, query"),
            ("{\"query\": \"q\", \"positive_passages\": [{\"docid\": \"1\"}]}", "no field `text`"),
            ("{\"query\": \"q\", \"positive_passages\": [{\"text\": \"1\"}]}", "no field `docid`"),
            ("{\"query\": \"q\", \"positive_passages\": [[1, 2]]}", "not a list of objects"),
            ("{\"query\": \" \", \"positive_passages\": [{\"docid\": \"1\", \"text\": \"\"}]}", "`query` is empty"),
            ("[]", "expected a JSON object"),
        ] {
            let error = read(&format!("{good}\n{row}\n")).unwrap_err();
            assert!(matches!(&error, Error::Line { line: 2, .. }), "{row}: {error}");
            assert!(error.to_string().contains(part), "{row}: {error}");
        }
        assert!(read("").unwrap_err().to_string().contains("no training row"));
    }
}

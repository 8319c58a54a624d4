//! Lists of hard negatives by ids alone, to be joined with a corpus. Read in three forms, told apart by their
//! beginning, and never more than one list in memory:
//!
//! - jsonl: `{"query_id": "1", "pos_ids": ["7"], "neg_ids": ["8", "9"]}`; `query` (a text) may stand in place of
//!   `query_id` or beside it, `pos_ids` may be missing (judgments then say what answers the query);
//! - tab-separated, as MS MARCO and tevatron have it: `query-id ⇥ id,id,…`; with three columns
//!   `query-id ⇥ positive,… ⇥ negative,…`, so that MS MARCO's id triples are rows too;
//! - one JSON object, as `SeDR` writes it: `{"query-id": [id, …], …}`.
//!
//! Ids are strings or whole numbers.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;

use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result, files};

/// One query's lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HardNegatives {
    /// The query's id.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "optional_id")]
    pub query_id: Option<String>,
    /// The query's text; with it no id has to be looked up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// Ids of documents that answer it; empty: the judgments say.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "ids")]
    pub pos_ids: Vec<String>,
    /// Ids of documents that do not, the hardest first.
    #[serde(deserialize_with = "ids")]
    pub neg_ids: Vec<String>,
}

/// Calls `take` with each query's lists and the line they stand in, from 1; all of one JSON object stand in line 1.
///
/// # Errors
/// A file that has no list or a line that is none, by file and line; whatever `take` answers.
pub fn each(path: &Path, mut take: impl FnMut(usize, HardNegatives) -> Result<()>) -> Result<()> {
    let file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut input = BufReader::with_capacity(1 << 18, file);
    let mut count = 0usize;
    let mut counted = |line: usize, lists: HardNegatives| {
        count += 1;
        take(line, lists)
    };
    let beginning = input.fill_buf().map_err(|e| Error::io("read", path, e))?;
    match first_key(beginning) {
        Beginning::Other => each_line(path, input, |line, text| counted(line, tab_separated(path, line, text)?))?,
        Beginning::Object { is_row: true } => each_line(path, input, |line, text| {
            let lists: HardNegatives = serde_json::from_str(text)
                .map_err(|e| Error::line(path, line, format!("not a list of hard negatives: {e}")))?;
            if lists.query_id.is_none() && lists.query.is_none() {
                return Err(Error::line(path, line, "neither `query_id` nor `query` is given"));
            }
            counted(line, lists)
        })?,
        Beginning::Object { is_row: false } => each_entry(path, input, &mut counted)?,
    }
    if count == 0 { Err(Error::file(path, "it has no list of hard negatives")) } else { Ok(()) }
}

/// Writes lists as jsonl, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_jsonl(path: &Path, lists: &[HardNegatives]) -> Result<()> {
    files::write_atomic(path, |out| {
        for list in lists {
            serde_json::to_writer(&mut *out, list).map_err(|e| Error::json(path, e))?;
            out.write_all(b"\n").map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })
}

/// One line of the tab-separated form, with its end.
pub fn tab_separated_line(query_id: &str, neg_ids: &[impl AsRef<str>]) -> String {
    let ids: Vec<&str> = neg_ids.iter().map(AsRef::as_ref).collect();
    format!("{query_id}\t{}\n", ids.join(","))
}

/// What a file begins with.
enum Beginning {
    /// A JSON object; its first key is one of a row's or not.
    Object {
        is_row: bool,
    },
    Other,
}

/// Looks at the first key alone: an object of all queries may be one line of a gigabyte.
fn first_key(bytes: &[u8]) -> Beginning {
    let text = String::from_utf8_lossy(bytes);
    let Some(inside) = text.trim_start().strip_prefix('{') else { return Beginning::Other };
    let key = inside.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next());
    Beginning::Object { is_row: key.is_some_and(|k| ["query_id", "query", "pos_ids", "neg_ids"].contains(&k)) }
}

fn each_line(path: &Path, input: impl BufRead, mut take: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    for (index, line) in input.lines().enumerate() {
        let line = line.map_err(|e| Error::line(path, index + 1, e.to_string()))?;
        if !line.trim().is_empty() {
            take(index + 1, &line)?;
        }
    }
    Ok(())
}

fn tab_separated(path: &Path, line: usize, text: &str) -> Result<HardNegatives> {
    let columns: Vec<&str> = text.trim_end_matches('\r').split('\t').map(str::trim).collect();
    let list = |column: &str| -> Result<Vec<String>> {
        if column.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<String> = column.split(',').map(|id| id.trim().to_owned()).collect();
        if ids.iter().any(String::is_empty) {
            return Err(Error::line(path, line, "an id between two commas is empty"));
        }
        Ok(ids)
    };
    let (query, pos_ids, neg_ids) = match columns.as_slice() {
        [query, negatives] => (query, Vec::new(), list(negatives)?),
        [query, positives, negatives] => (query, list(positives)?, list(negatives)?),
        other => {
            return Err(Error::line(
                path,
                line,
                format!(
                    "{} tab-separated columns; expected `query-id ⇥ id,id,…`, `query-id ⇥ positive,… ⇥ negative,…`, \
                     or a JSON object",
                    other.len()
                ),
            ));
        }
    };
    if query.is_empty() {
        return Err(Error::line(path, line, "the query's id is empty"));
    }
    Ok(HardNegatives { query_id: Some((*query).to_owned()), query: None, pos_ids, neg_ids })
}

/// Reads `{"query-id": [id, …], …}` entry by entry.
fn each_entry(path: &Path, input: impl Read, take: &mut dyn FnMut(usize, HardNegatives) -> Result<()>) -> Result<()> {
    let mut refused = None;
    let mut deserializer = serde_json::Deserializer::from_reader(input);
    let seed = Entries { take, refused: &mut refused };
    let outcome = seed.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    match (refused, outcome) {
        (Some(error), _) => Err(error),
        (None, Ok(())) => Ok(()),
        (None, Err(e)) => Err(Error::line(
            path,
            e.line().max(1),
            format!(
                "not an object of lists: {e}; expected {{\"query-id\": [id, …], …}}, or a line \
                 {{\"query_id\", \"pos_ids\", \"neg_ids\"}} for each query"
            ),
        )),
    }
}

struct Entries<'a> {
    take: &'a mut dyn FnMut(usize, HardNegatives) -> Result<()>,
    refused: &'a mut Option<Error>,
}

impl<'de> DeserializeSeed<'de> for Entries<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of lists of ids")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some((query, negatives)) = map.next_entry::<String, Vec<Id>>()? {
            let neg_ids = negatives.into_iter().map(|id| id.0).collect();
            let lists = HardNegatives { query_id: Some(query), neg_ids, ..HardNegatives::default() };
            if let Err(error) = (self.take)(1, lists) {
                *self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

/// An id: a string or a whole number.
struct Id(String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Any;
        impl Visitor<'_> for Any {
            type Value = Id;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an id: a string or a whole number")
            }

            fn visit_str<E>(self, id: &str) -> std::result::Result<Id, E> {
                Ok(Id(id.to_owned()))
            }

            fn visit_u64<E>(self, id: u64) -> std::result::Result<Id, E> {
                Ok(Id(id.to_string()))
            }

            fn visit_i64<E>(self, id: i64) -> std::result::Result<Id, E> {
                Ok(Id(id.to_string()))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

fn ids<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    Ok(Vec::<Id>::deserialize(deserializer)?.into_iter().map(|id| id.0).collect())
}

fn optional_id<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<String>, D::Error> {
    Ok(Option::<Id>::deserialize(deserializer)?.map(|id| id.0))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn read(text: &str) -> Result<Vec<(usize, HardNegatives)>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let mut found = Vec::new();
        each(file.path(), |line, lists| {
            found.push((line, lists));
            Ok(())
        })?;
        Ok(found)
    }

    fn lists(query: &str, positives: &[&str], negatives: &[&str]) -> HardNegatives {
        let owned = |ids: &[&str]| ids.iter().map(|s| (*s).to_owned()).collect();
        HardNegatives {
            query_id: Some(query.to_owned()),
            query: None,
            pos_ids: owned(positives),
            neg_ids: owned(negatives),
        }
    }

    #[test]
    fn three_forms_say_the_same() {
        let expected = [lists("1", &[], &["8", "9"]), lists("2", &[], &["7"])];
        for (text, numbers) in [
            ("1\t8,9\r\n\r\n2\t7\r\n", [1, 3]),
            ("{\"query_id\": 1, \"neg_ids\": [8, \"9\"]}\n{\"neg_ids\": [7], \"query_id\": \"2\"}\n", [1, 2]),
            ("{\"1\": [8, 9], \"2\": [\"7\"]}", [1, 1]),
            ("\n{\n \"1\": [8,\n 9],\n \"2\": [7]}\n", [1, 1]),
        ] {
            let found = read(text).unwrap();
            assert_eq!(found.iter().map(|f| f.0).collect::<Vec<_>>(), numbers, "{text}");
            assert_eq!(found.into_iter().map(|f| f.1).collect::<Vec<_>>(), expected, "{text}");
        }
        assert_eq!(read("q\tp1,p2\tn\n").unwrap()[0].1, lists("q", &["p1", "p2"], &["n"]));
        assert_eq!(read("q\t\n").unwrap()[0].1, lists("q", &[], &[]));
        assert_eq!(tab_separated_line("1", &["8", "9"]), "1\t8,9\n");
    }

    #[test]
    fn jsonl_comes_back_as_it_was_written() {
        let all = [
            lists("1", &["a"], &["b", "c"]),
            HardNegatives { query_id: None, query: Some("a \"text\"".into()), ..lists("", &[], &["b"]) },
        ];
        let file = tempfile::NamedTempFile::new().unwrap();
        write_jsonl(file.path(), &all).unwrap();
        let back = read(&std::fs::read_to_string(file.path()).unwrap()).unwrap();
        assert_eq!(back.into_iter().map(|b| b.1).collect::<Vec<_>>(), all);
    }

    #[test]
    fn broken_files_name_their_line() {
        for (text, line, part) in [
            ("1\t8\n2\n", 2, "1 tab-separated columns"),
            ("1\t8,,9\n", 1, "empty"),
            ("\t8\n", 1, "the query's id is empty"),
            ("{\"query_id\": \"1\", \"neg_ids\": []}\n{\"query_id\": \"1\", \"negs\": []}\n", 2, "negs"),
            ("{\"neg_ids\": [\"1\"]}\n", 1, "neither `query_id` nor `query`"),
            ("{\"query_id\": \"1\", \"neg_ids\": [1.5]}\n", 1, "a string or a whole number"),
            ("{\"1\": [8],\n\"2\": \"7\"}", 2, "expected {\"query-id\""),
        ] {
            let error = read(text).unwrap_err();
            assert!(matches!(&error, Error::Line { line: l, .. } if *l == line), "{text}: {error}");
            assert!(error.to_string().contains(part), "{text}: {error}");
        }
        assert!(read(" \n").unwrap_err().to_string().contains("no list"));
        // What the caller refuses comes back as it is, out of every form.
        for text in ["1\t8\n", "{\"1\": [8]}", "{\"query_id\": 1, \"neg_ids\": []}"] {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), text).unwrap();
            let error = each(file.path(), |_, _| Err(Error::invalid("not this one"))).unwrap_err();
            assert_eq!(error.to_string(), "not this one");
        }
    }
}

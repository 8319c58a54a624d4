//! The one document template that training, client-side ingest and the cluster's `set` processor share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::beir::Document;
use crate::{Error, Result};

/// How a document's fields become the one text that is encoded: `{title} {text}` by default.
///
/// ```
/// use nsparse_core::{DocumentTemplate, beir::Document};
/// let template = DocumentTemplate { pattern: "{url} | {title} | {body}".into(), max_chars: 15 };
/// let mut document = Document { title: "A".into(), text: "long text".into(), ..Document::default() };
/// document.other.insert("url".into(), "x.org".into());
/// assert_eq!(template.apply(&document), "x.org | A | lon");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DocumentTemplate {
    /// The pattern. `{title}` and `{text}` (or `{body}`, the same) are replaced, and so is `{name}` by the corpus's
    /// field of that name: `{url}`. A field that a document does not have is empty; everything else stands as it is.
    #[serde(default = "default_pattern")]
    pub pattern: String,
    /// At most this many characters (Unicode scalar values) of the result are kept; at least 1.
    #[serde(default = "default_max_chars")]
    pub max_chars: usize,
}

fn default_pattern() -> String {
    "{title} {text}".to_owned()
}

fn default_max_chars() -> usize {
    20_000
}

impl Default for DocumentTemplate {
    fn default() -> Self {
        Self { pattern: default_pattern(), max_chars: default_max_chars() }
    }
}

/// A part of a template's pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Characters that stand as they are.
    Literal(&'a str),
    /// `{title}`.
    Title,
    /// `{text}` or `{body}`.
    Text,
    /// Another field of the corpus, by its name.
    Field(&'a str),
}

impl DocumentTemplate {
    /// Checks pattern and cap.
    ///
    /// # Errors
    /// If a brace belongs to no placeholder, a placeholder is no field's name, no field is named, or the cap is 0.
    pub fn validate(&self) -> Result<()> {
        let pieces = self.pieces();
        for piece in &pieces {
            let wrong = match piece {
                Piece::Literal(text) => text.contains(['{', '}']).then_some(*text),
                Piece::Field(name) if !is_field_name(name) => Some(*name),
                _ => None,
            };
            if let Some(part) = wrong {
                return Err(Error::invalid_with_hint(
                    format!("Unknown placeholder in the document template `{}`, at `{part}`", self.pattern),
                    "write {title}, {text} or the name of another field of the corpus, such as {url}: letters, digits, _ and -",
                ));
            }
        }
        if !pieces.iter().any(|p| !matches!(p, Piece::Literal(_))) {
            return Err(Error::invalid(format!("The document template `{}` names no field", self.pattern)));
        }
        if self.max_chars == 0 {
            return Err(Error::invalid("The document template's `max_chars` must be at least 1"));
        }
        Ok(())
    }

    /// The pattern in its parts.
    pub fn pieces(&self) -> Vec<Piece<'_>> {
        let mut pieces = Vec::new();
        let mut rest = self.pattern.as_str();
        while let Some(open) = rest.find('{') {
            let Some(close) = rest[open..].find('}').map(|at| open + at) else { break };
            if open > 0 {
                pieces.push(Piece::Literal(&rest[..open]));
            }
            pieces.push(match &rest[open + 1..close] {
                "title" => Piece::Title,
                "text" | "body" => Piece::Text,
                name => Piece::Field(name),
            });
            rest = &rest[close + 1..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Literal(rest));
        }
        pieces
    }

    /// Names of the corpus's fields beside title and text that the pattern asks for, each once.
    pub fn other_fields(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self
            .pieces()
            .into_iter()
            .filter_map(|p| if let Piece::Field(name) = p { Some(name) } else { None })
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Checks that each field that the pattern asks for is in some document.
    ///
    /// # Errors
    /// The first field that no document has: most likely a slip.
    pub fn require_fields(&self, documents: &[Document]) -> Result<()> {
        let nowhere = |name: &&str| documents.iter().all(|d| !d.other.contains_key(*name));
        match self.other_fields().into_iter().find(nowhere) {
            None => Ok(()),
            Some(name) => Err(Error::invalid_with_hint(
                format!("The document template asks for `{name}`, a field that no document has"),
                "fields are named as in corpus.jsonl and hold a string; {title} and {text} are always there",
            )),
        }
    }

    /// The text that is encoded: fields put in, ends trimmed, cut to `max_chars` characters. What stands in a field
    /// is never taken for a placeholder.
    pub fn apply(&self, document: &Document) -> String {
        let mut filled = String::with_capacity(document.title.len() + document.text.len() + self.pattern.len());
        for piece in self.pieces() {
            filled.push_str(match piece {
                Piece::Literal(text) => text,
                Piece::Title => &document.title,
                Piece::Text => &document.text,
                Piece::Field(name) => document.other.get(name).map_or("", String::as_str),
            });
        }
        let trimmed = filled.trim();
        match trimmed.char_indices().nth(self.max_chars) {
            Some((end, _)) => trimmed[..end].to_owned(),
            None => trimmed.to_owned(),
        }
    }
}

fn is_field_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn template(pattern: &str) -> DocumentTemplate {
        DocumentTemplate { pattern: pattern.to_owned(), ..DocumentTemplate::default() }
    }

    fn document() -> Document {
        let other = [("url".to_owned(), "http://x/{text}".to_owned()), ("year".to_owned(), "1999".to_owned())];
        Document { id: "d".into(), title: "T {text} {url}".into(), text: "body {title}".into(), other: other.into() }
    }

    #[test]
    fn fields_are_put_in_once() {
        let apply = |pattern: &str| template(pattern).apply(&document());
        assert_eq!(apply("{title} {text}"), "T {text} {url} body {title}");
        assert_eq!(apply("{url}</s>{title}</s>{body}"), "http://x/{text}</s>T {text} {url}</s>body {title}");
        assert_eq!(apply("{year}: {text}{text}"), "1999: body {title}body {title}");
        // A field that is not there is empty, and ends are trimmed.
        assert_eq!(apply("{author} {text} "), "body {title}");
        assert_eq!(template("{b} {a}{b}").other_fields(), ["a", "b"]);
    }

    #[test]
    fn the_cap_counts_characters() {
        let document = Document { text: "äöü€𝄞x".into(), ..Document::default() };
        for (max_chars, expected) in [(1, "ä"), (4, "äöü€"), (5, "äöü€𝄞"), (6, "äöü€𝄞x"), (7, "äöü€𝄞x")]
        {
            assert_eq!(DocumentTemplate { pattern: "{text}".into(), max_chars }.apply(&document), expected);
        }
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for pattern in ["{title} {text}", "{body}", "{url}</s>{text}", "{größe} {a_b-2}"] {
            template(pattern).validate().unwrap();
        }
        for pattern in ["", "text", "{", "{text", "text}", "{a b} {text}", "{}", "{{text}}", "{text} }", "{a.b}{text}"]
        {
            assert!(template(pattern).validate().is_err(), "{pattern}");
        }
        assert!(DocumentTemplate { max_chars: 0, ..DocumentTemplate::default() }.validate().is_err());
    }
}

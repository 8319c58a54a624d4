//! The one document template that training, client-side ingest and the cluster's `set` processor share.

use serde::{Deserialize, Serialize};

use crate::beir::Document;
use crate::{Error, Result};

/// How a document's fields become the one text that is encoded: `{title} {text}` by default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentTemplate {
    /// The pattern; `{title}` and `{text}` are replaced, everything else stands as it is.
    #[serde(default = "default_pattern")]
    pub pattern: String,
    /// At most this many characters (Unicode scalar values) of the result are kept.
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

impl DocumentTemplate {
    /// Checks the pattern.
    ///
    /// # Errors
    /// If a placeholder is not `{title}` or `{text}`, or neither is there.
    pub fn validate(&self) -> Result<()> {
        let rest = self.pattern.replace("{title}", "").replace("{text}", "");
        if rest.contains('{') || rest.contains('}') {
            return Err(Error::invalid_with_hint(
                format!("Unknown placeholder in the document template `{}`", self.pattern),
                "use {title} and {text} only",
            ));
        }
        if !self.pattern.contains("{text}") && !self.pattern.contains("{title}") {
            return Err(Error::invalid(format!("The document template `{}` names no field", self.pattern)));
        }
        Ok(())
    }

    /// The text that is encoded: fields put in, ends trimmed, cut to `max_chars` characters.
    pub fn apply(&self, document: &Document) -> String {
        // Split at the text's place first, so that a title holding "{text}" is not expanded again.
        let filled: String = self
            .pattern
            .split("{text}")
            .map(|part| part.replace("{title}", &document.title))
            .collect::<Vec<_>>()
            .join(&document.text);
        let trimmed = filled.trim();
        match trimmed.char_indices().nth(self.max_chars) {
            Some((end, _)) => trimmed[..end].to_owned(),
            None => trimmed.to_owned(),
        }
    }
}

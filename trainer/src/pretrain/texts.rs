//! What pre-training reads: documents of a data set or of files, cut into windows, some of them held out.

use std::path::Path;

use nsparse_core::beir::{Dataset, Document};
use nsparse_core::idf::IdfMetadata;
use nsparse_core::{Cancel, IdfTable, Progress, QueryEncoder, TextTokenizer, TokenId, files};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::Value;
use sha2::Digest as _;

use super::config::PretrainConfig;
use super::sections::TextSection;
use crate::data::Documents;
use crate::{Error, Result};

/// A document's last window with fewer pieces than this is left out, unless it is the only one.
const SHORT_TAIL: usize = 8;

/// Everything that a pre-training run reads.
pub struct TextData {
    /// The documents, as they were read.
    pub documents: Vec<Document>,
    /// One flag a document: it is held out.
    pub is_held_out: Vec<bool>,
    /// Windows of all documents, in their order.
    pub windows: Documents,
    /// The document of each window.
    pub sources: Vec<usize>,
    /// Word pieces of each document, untruncated.
    pub lengths: Vec<usize>,
    /// Windows that are trained on, ascending.
    pub training: Vec<usize>,
    /// Windows of documents that are held out, ascending.
    pub held_out: Vec<usize>,
    /// Tokenizer and idf.
    pub query_encoder: QueryEncoder,
    /// Where the idf comes from; `None` if it was read from a file.
    pub idf_metadata: Option<IdfMetadata>,
    /// sha256 over the windows and what is held out: a resumed run must see the same.
    pub fingerprint: String,
}

impl TextData {
    /// Reads and tokenises what the recipe names.
    ///
    /// # Errors
    /// If a file is missing or broken, there is no text, nothing is left to train on, or the user asked to stop.
    pub fn load(
        config: &PretrainConfig,
        tokenizer: &TextTokenizer,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let section = &config.data;
        let documents = read(section)?;
        let texts: Vec<String> = documents.iter().map(|d| section.template.apply(d)).collect();
        let (table, idf_metadata) = if let Some(file) = &section.idf.file {
            (IdfTable::load(file, tokenizer)?, None)
        } else {
            let counted = texts.iter().map(String::as_str);
            let pattern = &section.template.pattern;
            let (table, metadata) =
                IdfTable::build(counted, tokenizer, section.idf.formula, pattern, cancel, progress)?;
            (table, Some(metadata))
        };
        let query_encoder = QueryEncoder::new(tokenizer.clone(), table)?;
        let is_held_out = hold_out(documents.len(), section.held_out, config.run.seed);
        let mut data = Self {
            documents,
            is_held_out,
            windows: Documents::default(),
            sources: Vec::new(),
            lengths: Vec::new(),
            training: Vec::new(),
            held_out: Vec::new(),
            query_encoder,
            idf_metadata,
            fingerprint: String::new(),
        };
        data.cut(&texts, tokenizer, section.max_tokens, cancel, progress)?;
        if data.training.is_empty() {
            return Err(Error::config_with_hint(
                "No text is left to train on: no document has a token of the vocabulary",
                "check that tokenizer.json is for the language of the texts, and lower `data.held_out`",
            ));
        }
        data.fingerprint = data.hash();
        Ok(data)
    }

    /// Windows of all texts; those without an ordinary token are left out.
    fn cut(
        &mut self,
        texts: &[String],
        tokenizer: &TextTokenizer,
        max_tokens: usize,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<()> {
        let special = tokenizer.special();
        let is_ordinary = |id: &TokenId| special.all.binary_search(id).is_err();
        let task = progress.start("Tokenizing", texts.len() as u64);
        for (chunk, texts) in texts.chunks(1024).enumerate() {
            cancel.check()?;
            let pieces =
                texts.par_iter().map(|text| tokenizer.pieces(text)).collect::<nsparse_core::Result<Vec<_>>>()?;
            for (i, pieces) in pieces.iter().enumerate() {
                let document = chunk * 1024 + i;
                self.lengths.push(pieces.len());
                for (part, pieces) in pieces.chunks(max_tokens - 2).enumerate() {
                    if (part > 0 && pieces.len() < SHORT_TAIL) || !pieces.iter().any(is_ordinary) {
                        continue;
                    }
                    let mut window = Vec::with_capacity(pieces.len() + 2);
                    window.push(special.cls);
                    window.extend_from_slice(pieces);
                    window.push(special.sep);
                    let id = format!("{}#{part}", self.documents[document].id);
                    let number = self.windows.push(id, &window, pieces.len());
                    self.sources.push(document);
                    let side = if self.is_held_out[document] { &mut self.held_out } else { &mut self.training };
                    side.push(number);
                }
            }
            task.advance(texts.len() as u64);
        }
        Ok(())
    }

    /// The first windows of documents that are trained on.
    pub fn first_windows(&self) -> Vec<usize> {
        let is_first = |w: &usize| *w == 0 || self.sources[*w] != self.sources[*w - 1];
        self.training.iter().copied().filter(is_first).collect()
    }

    /// How often each vocabulary entry stands in the windows that are trained on, `[vocab]`.
    pub fn counts(&self, vocab: usize) -> Vec<u64> {
        let mut counts = vec![0u64; vocab];
        for &window in &self.training {
            for &id in self.windows.window(window) {
                counts[id as usize] += 1;
            }
        }
        counts
    }

    fn hash(&self) -> String {
        let mut hasher = sha2::Sha256::new();
        for (window, &source) in self.sources.iter().enumerate() {
            hasher.update([u8::from(self.is_held_out[source])]);
            for id in self.windows.window(window) {
                hasher.update(id.to_le_bytes());
            }
        }
        files::hex(&hasher.finalize())
    }
}

/// A seeded share of the documents, at least one where the share is above 0 and one stays.
fn hold_out(documents: usize, share: f64, seed: u64) -> Vec<bool> {
    let mut count = (documents as f64 * share).round() as usize;
    if share > 0.0 {
        count = count.max(1).min(documents.saturating_sub(1));
    }
    let mut order: Vec<usize> = (0..documents).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ 0x7465_7874_5f6f_7574));
    let mut out = vec![false; documents];
    for &document in &order[..count] {
        out[document] = true;
    }
    out
}

/// The documents that a recipe names.
///
/// # Errors
/// The first file that is missing, or its first broken line; or no text at all.
pub fn read(section: &TextSection) -> Result<Vec<Document>> {
    let mut documents = Vec::new();
    if let Some(folder) = &section.dir {
        documents.extend(Dataset::open(folder)?.corpus()?);
    }
    for path in &section.files {
        let text = files::read_text(path)?;
        let before = documents.len();
        if path.extension().is_some_and(|e| e == "jsonl") {
            read_jsonl(path, &text, &mut documents)?;
        } else {
            read_plain(path, &text, &mut documents);
        }
        if documents.len() == before {
            return Err(nsparse_core::Error::file(path, "it has no text").into());
        }
    }
    documents.retain(|d| !(d.text.trim().is_empty() && d.title.trim().is_empty()));
    if documents.is_empty() {
        return Err(Error::config("`data`: no document has a text"));
    }
    Ok(documents)
}

fn name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn read_jsonl(path: &Path, text: &str, documents: &mut Vec<Document>) -> Result<()> {
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let broken = |message: String| nsparse_core::Error::line(path, index + 1, message);
        let value: Value = serde_json::from_str(line).map_err(|e| broken(format!("not JSON: {e}")))?;
        let Some(text) = value["text"].as_str() else {
            return Err(broken("expected an object with the string `text`".to_owned()).into());
        };
        let title = match &value["title"] {
            Value::String(title) => title.clone(),
            Value::Null => String::new(),
            _ => return Err(broken("`title` is not a string".to_owned()).into()),
        };
        let id = [&value["_id"], &value["id"]].into_iter().find_map(|id| match id {
            Value::String(id) => Some(id.clone()),
            Value::Number(id) => Some(id.to_string()),
            _ => None,
        });
        let id = id.unwrap_or_else(|| format!("{}:{}", name(path), index + 1));
        documents.push(Document { id, title, text: text.to_owned(), ..Document::default() });
    }
    Ok(())
}

/// A blank line ends a document; where there is none, each line is one.
fn read_plain(path: &Path, text: &str, documents: &mut Vec<Document>) {
    let has_blank = text.trim().lines().any(|line| line.trim().is_empty());
    let mut lines: Vec<&str> = Vec::new();
    let mut begins = 1;
    let mut close = |lines: &mut Vec<&str>, begins: usize| {
        if !lines.is_empty() {
            let id = format!("{}:{begins}", name(path));
            documents.push(Document { id, text: lines.join("\n"), ..Document::default() });
            lines.clear();
        }
    };
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            close(&mut lines, begins);
            continue;
        }
        if lines.is_empty() {
            begins = index + 1;
        }
        lines.push(line.trim_end());
        if !has_blank {
            close(&mut lines, begins);
        }
    }
    close(&mut lines, begins);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn section(files: &[(&str, &str)]) -> (tempfile::TempDir, TextSection) {
        let folder = tempfile::tempdir().unwrap();
        let paths = files
            .iter()
            .map(|(name, text)| {
                std::fs::write(folder.path().join(name), text).unwrap();
                folder.path().join(name)
            })
            .collect();
        (folder, TextSection { files: paths, ..TextSection::default() })
    }

    #[test]
    fn files_become_documents() {
        let (_folder, section) = section(&[
            ("a.txt", "one\ntwo  \n\n\nthree\n"),
            ("b.txt", "first\nsecond\n"),
            ("c.jsonl", "{\"id\": 7, \"title\": \"T\", \"text\": \"x\", \"url\": \"u\"}\n\n{\"text\": \"y\"}\n"),
        ]);
        let got: Vec<(String, String, String)> =
            read(&section).unwrap().into_iter().map(|d| (d.id, d.title, d.text)).collect();
        let want = [
            ("a.txt:1", "", "one\ntwo"),
            ("a.txt:5", "", "three"),
            ("b.txt:1", "", "first"),
            ("b.txt:2", "", "second"),
            ("7", "T", "x"),
            ("c.jsonl:3", "", "y"),
        ];
        assert_eq!(got, want.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned())));
    }

    #[test]
    fn broken_files_are_named_by_line() {
        for (text, part) in
            [("{\"text\": 3}\n", "x.jsonl:1"), ("{\"text\": \"a\"}\n{\n", "x.jsonl:2"), ("\n", "no text")]
        {
            let (_folder, section) = section(&[("x.jsonl", text)]);
            let message = read(&section).unwrap_err().to_string();
            assert!(message.contains("x.jsonl") && message.contains(part), "{message}");
        }
        let missing = TextSection { files: vec!["nowhere.txt".into()], ..TextSection::default() };
        assert!(read(&missing).unwrap_err().to_string().contains("nowhere.txt"));
    }

    #[test]
    fn some_are_held_out_and_one_stays() {
        let count = |n, share| hold_out(n, share, 1).iter().filter(|&&held| held).count();
        assert_eq!((count(100, 0.1), count(10, 0.01), count(1, 0.5), count(50, 0.0)), (10, 1, 0, 0));
        assert_ne!(hold_out(100, 0.1, 1), hold_out(100, 0.1, 2));
    }
}

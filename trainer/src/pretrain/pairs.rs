//! Pairs of a query and a document that texts hold by themselves, as training rows: a title and its text, a
//! sentence and what stands around it; or pairs from a file. What comes of a held-out document is held out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nsparse_core::beir::Document;
use nsparse_core::files;
use nsparse_core::rows::TrainingRow;
use nsparse_retrieval::mine::sentences;
use rand::SeedableRng;
use rand::seq::{SliceRandom, index};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::sections::{PairKind, PairsSection};
use super::texts::TextData;
use crate::batches::generator;
use crate::{Error, Result};

/// A sentence with fewer characters says too little to be a query.
const SHORT_SENTENCE: usize = 10;

/// Rows to train on, and rows of held-out sources.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Pairs {
    /// What is trained on.
    pub training: Vec<TrainingRow>,
    /// At most `pairs.evaluate_pairs` of the others.
    pub held_out: Vec<TrainingRow>,
    /// How many there are of each kind, held-out ones included; `file` for those of a file.
    pub counts: BTreeMap<&'static str, usize>,
}

impl Pairs {
    /// Makes and reads what a recipe asks for.
    ///
    /// # Errors
    /// If a line of the file is broken, or no pair is left to train on.
    pub fn make(section: &PairsSection, data: &TextData, held_out: f64, seed: u64) -> Result<Self> {
        let mut out = Self::default();
        for (number, document) in data.documents.iter().enumerate() {
            for &kind in &section.kinds {
                for (n, (query, pos)) in of_document(kind, document, section, number, seed).into_iter().enumerate() {
                    *out.counts.entry(kind.name()).or_insert(0) += 1;
                    let row = TrainingRow {
                        query_id: Some(format!("{}#{}#{n}", document.id, kind.name())),
                        query,
                        pos: Some(pos),
                        pos_id: Some(format!("{}#{}#{n}", document.id, kind.name())),
                        source: Some(document.id.clone()),
                        ..TrainingRow::default()
                    };
                    if data.is_held_out[number] { &mut out.held_out } else { &mut out.training }.push(row);
                }
            }
        }
        if let Some(file) = &section.file {
            let rows = read(file)?;
            out.counts.insert("file", rows.len());
            let sources: BTreeSet<&str> = rows.iter().filter_map(|row| row.source.as_deref()).collect();
            let mut order: Vec<&str> = sources.into_iter().collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed ^ 0x7061_6972_5f6f_7574));
            let count = (order.len() as f64 * held_out).round() as usize;
            let out_there: BTreeSet<String> = order[..count].iter().map(|s| (*s).to_owned()).collect();
            for row in rows {
                let is_out = row.source.as_ref().is_some_and(|s| out_there.contains(s));
                if is_out { &mut out.held_out } else { &mut out.training }.push(row);
            }
        }
        // A query that is trained on says nothing about others, whatever it was held out with.
        let known: BTreeSet<&str> = out.training.iter().map(|row| row.query.trim()).collect();
        out.held_out.retain(|row| !known.contains(row.query.trim()));
        if out.held_out.len() > section.evaluate_pairs {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x7061_6972_7365_7400);
            let mut drawn = index::sample(&mut rng, out.held_out.len(), section.evaluate_pairs).into_vec();
            drawn.sort_unstable();
            out.held_out = drawn.into_iter().map(|i| out.held_out[i].clone()).collect();
        }
        if out.training.is_empty() {
            let kinds: Vec<&str> = section.kinds.iter().map(|kind| kind.name()).collect();
            return Err(Error::config_with_hint(
                format!("`pairs`: the texts hold no pair of the kinds {}", kinds.join(", ")),
                "titles are needed for title_*, several sentences for sentence_context; or give `pairs.file`",
            ));
        }
        Ok(out)
    }
}

/// Pairs of one kind that a document holds.
fn of_document(
    kind: PairKind,
    document: &Document,
    section: &PairsSection,
    number: usize,
    seed: u64,
) -> Vec<(String, String)> {
    let (title, text) = (document.title.trim(), document.text.trim());
    if text.is_empty() || (title.is_empty() && kind != PairKind::SentenceContext) {
        return Vec::new();
    }
    let titled = |texts: Vec<String>| texts.into_iter().map(|text| (title.to_owned(), text)).collect();
    let draw = |count: usize| -> Vec<usize> {
        let mut rng = generator(seed ^ 0x7061_6972_7300_0000, kind as u64, number as u64);
        let mut drawn = index::sample(&mut rng, count, section.per_document.min(count)).into_vec();
        drawn.sort_unstable();
        drawn
    };
    match kind {
        PairKind::TitleText => titled(vec![text.to_owned()]),
        PairKind::TitleSummary => {
            let sentences = sentences(text);
            titled(vec![sentences[..section.sentences.min(sentences.len())].join(" ")])
        }
        PairKind::TitleParagraph => {
            let paragraphs: Vec<&str> = text
                .lines()
                .map(str::trim)
                .filter(|p| (section.paragraph_min..=section.paragraph_max).contains(&p.chars().count()))
                .collect();
            titled(draw(paragraphs.len()).into_iter().map(|i| paragraphs[i].to_owned()).collect())
        }
        PairKind::SentenceContext => {
            let sentences = sentences(text);
            if sentences.len() < 2 {
                return Vec::new();
            }
            let long: Vec<usize> =
                (0..sentences.len()).filter(|&i| sentences[i].chars().count() >= SHORT_SENTENCE).collect();
            draw(long.len())
                .into_iter()
                .map(|at| {
                    let i = long[at];
                    let before = &sentences[i.saturating_sub(section.sentences)..i];
                    let after = &sentences[i + 1..(i + 1 + section.sentences).min(sentences.len())];
                    (sentences[i].to_owned(), [before, after].concat().join(" "))
                })
                .collect()
        }
    }
}

/// Pairs of a file; a row's source is `source_id` (or `source`), else its query.
fn read(path: &Path) -> Result<Vec<TrainingRow>> {
    let text = files::read_text(path)?;
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let broken = |message: String| nsparse_core::Error::line(path, index + 1, message);
        let value: Value = serde_json::from_str(line).map_err(|e| broken(format!("not JSON: {e}")))?;
        let one = |names: &[&str]| names.iter().find_map(|name| value[*name].as_str()).map(str::to_owned);
        let many = |names: &[&str]| -> Result<Vec<String>> {
            let Some((name, list)) = names.iter().find_map(|name| Some((*name, value.get(*name)?))) else {
                return Ok(Vec::new());
            };
            let texts = list.as_array().and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect());
            Ok(texts.ok_or_else(|| broken(format!("`{name}` is not a list of strings")))?)
        };
        let (Some(query), Some(pos)) = (one(&["query"]), one(&["pos", "document"])) else {
            return Err(
                broken("expected an object with the strings `query` and `document` (or `pos`)".to_owned()).into()
            );
        };
        if query.trim().is_empty() || pos.trim().is_empty() {
            return Err(broken("`query` or `document` is empty".to_owned()).into());
        }
        let source = one(&["source_id", "source"]).or_else(|| value["source_id"].as_i64().map(|n| n.to_string()));
        rows.push(TrainingRow {
            source: Some(source.unwrap_or_else(|| query.trim().to_owned())),
            query,
            pos: Some(pos),
            negs: many(&["negs", "hard_negatives"])?,
            query_id: one(&["query_id"]),
            pos_id: one(&["pos_id"]),
            ..TrainingRow::default()
        });
    }
    if rows.is_empty() {
        return Err(nsparse_core::Error::file(path, "it has no pair").into());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    fn document() -> Document {
        Document {
            id: "d".to_owned(),
            title: " Shards ".to_owned(),
            text: "A shard is a piece of an index. It holds documents. Yes. Replicas copy it!\n\
                   How large it may be depends on the heap, on the disk and on how long a recovery is allowed to take \
                   in the worst case."
                .to_owned(),
            ..Document::default()
        }
    }

    fn of(kind: PairKind, section: &PairsSection) -> Vec<(String, String)> {
        of_document(kind, &document(), section, 0, 7)
    }

    #[test]
    fn each_kind_takes_its_part() {
        let section = PairsSection { sentences: 2, ..PairsSection::default() };
        let summary = of(PairKind::TitleSummary, &section);
        assert_eq!(summary, [("Shards".to_owned(), "A shard is a piece of an index. It holds documents.".to_owned())]);
        let paragraph = of(PairKind::TitleParagraph, &section);
        assert_eq!(paragraph.len(), 1);
        assert!(paragraph[0].1.starts_with("How large") && paragraph[0].1.ends_with("worst case."));
        assert_eq!(of(PairKind::TitleText, &section)[0].1, document().text);

        let all = PairsSection { per_document: 9, ..section.clone() };
        let contexts = of(PairKind::SentenceContext, &all);
        // "Yes." is too short to be asked for, but it is context.
        assert_eq!(contexts.len(), 4);
        assert_eq!(contexts[1].0, "It holds documents.");
        assert_eq!(contexts[1].1, "A shard is a piece of an index. Yes. Replicas copy it!");
        for (sentence, context) in &contexts {
            assert!(!context.contains(sentence.as_str()), "{sentence}");
        }
        assert_eq!(of(PairKind::SentenceContext, &section).len(), 1);
    }

    #[test]
    fn nothing_comes_of_what_is_not_there() {
        let section = PairsSection::default();
        let bare = Document { title: String::new(), ..document() };
        assert!(of_document(PairKind::TitleText, &bare, &section, 0, 7).is_empty());
        assert!(!of_document(PairKind::SentenceContext, &bare, &section, 0, 7).is_empty());
        let single = Document { text: "Only one sentence stands here.".to_owned(), ..document() };
        assert!(of_document(PairKind::SentenceContext, &single, &section, 0, 7).is_empty());
    }

    #[test]
    fn pairs_of_files_are_read_in_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pairs.jsonl");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write(
            "{\"query\": \"q\", \"document\": \"d\", \"query_type\": \"title\", \"source_id\": \"ko_7\"}\n\
             {\"query\": \"r\", \"pos\": \"p\", \"hard_negatives\": [\"n\"]}\n",
        );
        let rows = read(&path).unwrap();
        assert_eq!((rows[0].pos.as_deref(), rows[0].source.as_deref()), (Some("d"), Some("ko_7")));
        assert_eq!((rows[1].negs.len(), rows[1].source.as_deref()), (1, Some("r")));
        for (text, part) in [
            ("{\"query\": \"q\"}\n", "pairs.jsonl:1"),
            ("{\"query\": \"q\", \"pos\": \"p\", \"negs\": 3}\n", "`negs`"),
            ("{\"query\": \" \", \"pos\": \"p\"}\n", "empty"),
            ("\n", "no pair"),
        ] {
            write(text);
            let message = read(&path).unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}

//! Training rows out of documents alone: sentences that are taken out of a document are the queries that the rest of it
//! answers (the inverse cloze task, arXiv 1906.00300, with several sentences at once), with negatives of a searcher.

use nsparse_core::beir::Document;
use nsparse_core::rows::TrainingRow;
use nsparse_core::{Cancel, DocumentTemplate, Progress, SearchQuery, Searcher, SparseVector};
use rand::RngExt as _;
use rand::seq::index;
use serde::{Deserialize, Serialize};
use unicode_segmentation::UnicodeSegmentation as _;

use super::draw::query_rng;
use crate::{Error, Result};

/// Documents whose queries are searched for at once.
const CHUNK: usize = 256;

/// What is taken out, and what it is set against.
#[derive(Debug, Clone, PartialEq)]
pub struct SentenceOptions {
    /// Most sentences that are taken out of a document; at least 1.
    pub per_document: usize,
    /// Share of a document's sentences that is taken out, in (0, 1): rounded, at least one, and one at least stays.
    pub share: f64,
    /// How often the title is a query as well, and leaves the document; in [0, 1].
    pub titles: f64,
    /// Characters of a sentence that can be a query: from, to.
    pub characters: (usize, usize),
    /// How often each document is taken apart, each time elsewhere.
    pub variants: usize,
    /// Negatives of each query: drawn from the searcher's first hits.
    pub negatives: usize,
    /// Hits that negatives are drawn from.
    pub depth: usize,
    /// What everything is drawn from, with the document's id.
    pub seed: u64,
    /// How documents become the rows' texts.
    pub template: DocumentTemplate,
}

impl Default for SentenceOptions {
    fn default() -> Self {
        Self {
            per_document: 4,
            share: 0.4,
            titles: 0.4,
            characters: (40, 300),
            variants: 2,
            negatives: 3,
            depth: 30,
            seed: 42,
            template: DocumentTemplate::default(),
        }
    }
}

impl SentenceOptions {
    fn validate(&self) -> Result<()> {
        let bad = |message: String, hint: &str| Err(Error::Option { message, hint: hint.to_owned() });
        if self.per_document == 0 || self.variants == 0 {
            return bad(
                "No sentence is to be taken".to_owned(),
                "take at least one a document, in at least one variant",
            );
        }
        if !(self.share > 0.0 && self.share < 1.0) {
            return bad(format!("The share of sentences is {}", self.share), "give one above 0 and below 1");
        }
        if !(0.0..=1.0).contains(&self.titles) {
            return bad(format!("The share of titles is {}", self.titles), "give one from 0 to 1");
        }
        if self.negatives > self.depth {
            let message = format!("{} negatives are to be drawn from {} hits", self.negatives, self.depth);
            return bad(message, "raise the depth, or take fewer negatives");
        }
        Ok(())
    }
}

/// What came out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SentenceReport {
    /// Rows: one a query.
    pub rows: usize,
    /// Queries that are titles.
    pub titles: usize,
    /// Documents with fewer than two sentences, or none of a fitting length, and no title that was taken.
    pub passed_over: usize,
    /// Rows with fewer negatives than asked for.
    pub too_few: usize,
}

/// Sentences by UAX #29, trimmed, without empty ones.
pub fn sentences(text: &str) -> Vec<&str> {
    text.split_sentence_bounds().map(str::trim).filter(|s| !s.is_empty()).collect()
}

/// A document taken apart.
struct Apart {
    id: String,
    /// What is left of it.
    rest: String,
    queries: Vec<String>,
    has_title: bool,
}

/// Takes documents apart and gives the rows, document by document, in the corpus's order. The draws of a document depend on
/// the seed and its id alone.
///
/// # Errors
/// If an option is out of range, the searcher or `take` fails, or the user asked to stop.
pub fn sentence_rows(
    documents: &[Document],
    searcher: &dyn Searcher,
    options: &SentenceOptions,
    take: &mut dyn FnMut(&TrainingRow) -> nsparse_core::Result<()>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<SentenceReport> {
    options.validate()?;
    let texts: std::collections::HashMap<&str, &Document> = documents.iter().map(|d| (d.id.as_str(), d)).collect();
    let mut report = SentenceReport::default();
    let task = progress.start("Taking sentences", (documents.len() * options.variants) as u64);
    for variant in 0..options.variants {
        for chunk in documents.chunks(CHUNK) {
            cancel.check()?;
            let apart: Vec<(&Document, Apart)> =
                chunk.iter().filter_map(|d| Some((d, take_apart(d, variant, options)?))).collect();
            report.passed_over += chunk.len() - apart.len();
            let asked: Vec<SearchQuery> = apart
                .iter()
                .flat_map(|(_, a)| a.queries.iter().enumerate().map(|(n, text)| (format!("{}-{n}", a.id), text)))
                .map(|(id, text)| SearchQuery { id, text: text.clone(), vector: SparseVector::default() })
                .collect();
            // The document itself is among the hits.
            let hits = if options.negatives > 0 { searcher.search(&asked, options.depth + 1)? } else { Vec::new() };
            let mut hits = hits.into_iter();
            for (document, apart) in &apart {
                report.titles += usize::from(apart.has_title);
                for (n, query) in apart.queries.iter().enumerate() {
                    let query_id = format!("{}-{n}", apart.id);
                    let found: Vec<String> = hits
                        .next()
                        .unwrap_or_default()
                        .into_iter()
                        .map(|h| h.id)
                        .filter(|id| *id != document.id)
                        .collect();
                    let found = &found[..found.len().min(options.depth)];
                    let mut rng = query_rng(options.seed, &query_id);
                    let mut places =
                        index::sample(&mut rng, found.len(), options.negatives.min(found.len())).into_vec();
                    places.sort_unstable();
                    report.too_few += usize::from(places.len() < options.negatives);
                    let negatives: Vec<&Document> =
                        places.iter().filter_map(|&place| texts.get(found[place].as_str()).copied()).collect();
                    take(&TrainingRow {
                        query: query.clone(),
                        pos: Some(apart.rest.clone()),
                        negs: negatives.iter().map(|d| options.template.apply(d)).collect(),
                        neg_ids: negatives.iter().map(|d| d.id.clone()).collect(),
                        query_id: Some(query_id),
                        pos_id: Some(apart.id.clone()),
                        source: Some(format!("sentences document={} seed={}", document.id, options.seed)),
                        ..TrainingRow::default()
                    })?;
                    report.rows += 1;
                }
            }
            task.advance(chunk.len() as u64);
        }
    }
    Ok(report)
}

/// One way to take a document apart; `None` if there is nothing to ask, or nothing would be left.
fn take_apart(document: &Document, variant: usize, options: &SentenceOptions) -> Option<Apart> {
    let id = format!("{}#{variant}", document.id);
    let mut rng = query_rng(options.seed, &id);
    let sentences = sentences(&document.text);
    let (shortest, longest) = options.characters;
    let fitting: Vec<usize> =
        (0..sentences.len()).filter(|&n| (shortest..=longest).contains(&sentences[n].chars().count())).collect();
    let wanted = ((sentences.len() as f64 * options.share).round() as usize).clamp(1, options.per_document);
    let count = wanted.min(fitting.len()).min(sentences.len().saturating_sub(1));
    let mut taken: Vec<usize> = index::sample(&mut rng, fitting.len(), count).iter().map(|n| fitting[n]).collect();
    taken.sort_unstable();
    let mut queries: Vec<String> = taken.iter().map(|&n| sentences[n].to_owned()).collect();
    let mut rest = document.clone();
    let has_title = !document.title.trim().is_empty() && !document.text.trim().is_empty();
    // Drawn in any case, so that the sentences do not depend on it.
    let has_title = rng.random_bool(options.titles) && has_title;
    if has_title {
        queries.push(std::mem::take(&mut rest.title).trim().to_owned());
    }
    if queries.is_empty() {
        return None;
    }
    let kept = (0..sentences.len()).filter(|n| taken.binary_search(n).is_err()).map(|n| sentences[n]);
    rest.text = kept.collect::<Vec<_>>().join(" ");
    Some(Apart { id, rest: options.template.apply(&rest), queries, has_title })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::NoProgress;
    use proptest::prelude::*;

    use super::*;
    use crate::Bm25Index;

    fn corpus(lengths: &[usize]) -> Vec<Document> {
        let text = |d: usize, n: usize| format!("Sentence number {n} of document {d} says thing {}.", (d * 7 + n) % 11);
        lengths
            .iter()
            .enumerate()
            .map(|(d, &length)| Document {
                id: format!("d{d}"),
                title: if d % 3 == 0 { String::new() } else { format!("Title {d}") },
                text: (0..length).map(|n| text(d, n)).collect::<Vec<_>>().join(" "),
                ..Document::default()
            })
            .collect()
    }

    fn sentence_queries(documents: &[Document], options: &SentenceOptions) -> Vec<String> {
        let variants = 0..options.variants;
        let apart = variants.flat_map(|v| documents.iter().filter_map(move |d| take_apart(d, v, options)));
        apart.flat_map(|a| a.queries).collect()
    }

    fn rows(documents: &[Document], options: &SentenceOptions) -> (Vec<TrainingRow>, SentenceReport) {
        let index = Bm25Index::build(documents, &NoProgress).unwrap();
        let mut rows = Vec::new();
        let mut take = |row: &TrainingRow| {
            rows.push(row.clone());
            Ok(())
        };
        let report = sentence_rows(documents, &index, options, &mut take, &Cancel::default(), &NoProgress).unwrap();
        (rows, report)
    }

    proptest! {
        #[test]
        fn what_is_asked_for_is_not_in_the_rest_and_nothing_is_lost(
            lengths in prop::collection::vec(0usize..12, 1..12), per_document in 1usize..5, share in 0.05f64..0.95, seed: u64,
        ) {
            let documents = corpus(&lengths);
            let options =
                SentenceOptions { per_document, share, seed, characters: (10, 80), depth: 5, ..SentenceOptions::default() };
            let (rows, report) = rows(&documents, &options);
            prop_assert_eq!(report.rows, rows.len());
            for row in &rows {
                let (own, _) = row.pos_id.as_deref().unwrap().split_once('#').unwrap();
                let document = documents.iter().find(|d| d.id == own).unwrap();
                let rest = row.pos.as_deref().unwrap();
                prop_assert!(!rest.trim().is_empty() && !rest.contains(&row.query), "{} | {}", row.query, rest);
                prop_assert!(!row.neg_ids.iter().any(|id| id == own), "the document is its own negative");
                prop_assert!(row.negs.len() <= options.negatives && row.problem().is_none());
                // Queries and rest together are the document.
                let same: Vec<&TrainingRow> = rows.iter().filter(|r| r.pos_id == row.pos_id).collect();
                let asked = same.iter().filter(|r| r.query != document.title).count();
                let total = sentences(&document.text).len();
                prop_assert_eq!(asked + sentences(rest.trim_start_matches(document.title.as_str())).len(), total);
                prop_assert!(asked <= per_document);
            }
            // A document's draws do not depend on the others.
            let alone: Vec<String> = sentence_queries(&documents[..1], &options);
            let among: Vec<String> =
                rows.iter().filter(|r| r.pos_id.as_deref().unwrap().starts_with("d0#")).map(|r| r.query.clone()).collect();
            prop_assert_eq!(alone, among);
        }
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let documents = corpus(&[4]);
        let index = Bm25Index::build(&documents, &NoProgress).unwrap();
        for options in [
            SentenceOptions { share: 1.0, ..SentenceOptions::default() },
            SentenceOptions { variants: 0, ..SentenceOptions::default() },
            SentenceOptions { negatives: 31, ..SentenceOptions::default() },
        ] {
            let done = sentence_rows(&documents, &index, &options, &mut |_| Ok(()), &Cancel::default(), &NoProgress);
            assert!(done.is_err(), "{options:?}");
        }
    }
}

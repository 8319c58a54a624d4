//! What document vectors use of a vocabulary: tokens that are active nearly everywhere, heavy ones, dead ones.

use std::path::Path;

use nsparse_core::beir::{Document, FieldNames, parse_document};
use nsparse_core::{SparseVector, TokenId};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::Result;

/// How a token is used by the documents of a survey.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenUse {
    /// The token.
    pub token: String,
    /// Documents whose vector has it.
    pub documents: usize,
    /// Documents whose text has it, as far as the model reads.
    pub in_texts: usize,
    /// Mean weight where it is active.
    pub mean_weight: f64,
    /// Its share of all weights of all documents.
    pub weight_share: f64,
}

/// What the vectors of some documents show.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Survey {
    /// Documents.
    pub documents: usize,
    /// Vocabulary entries that may carry weight.
    pub vocabulary: usize,
    /// Active dimensions of a document: least, 5 %, median, 95 %, most.
    pub active: [usize; 5],
    /// Their mean.
    pub active_mean: f64,
    /// Documents without an active dimension.
    pub empty: usize,
    /// Share of active dimensions that are no word piece of the document's text.
    pub expansion_share: f64,
    /// Tokens in use, by the number of documents, most first.
    pub most_documents: Vec<TokenUse>,
    /// Tokens in use, by their share of all weights, most first.
    pub heaviest: Vec<TokenUse>,
    /// Entries that may carry weight and are active in no document.
    pub never_active: usize,
    /// Those of them that stand in texts, by the number of documents, most first.
    pub dead_in_texts: Vec<TokenUse>,
}

impl Survey {
    /// Of vectors and, in the same order, the distinct tokens of the windows that they are made of. `zeroed`:
    /// entries that never carry weight. The lists have at most `listed` entries.
    pub fn new(
        vectors: &[SparseVector],
        windows: &[Vec<TokenId>],
        vocabulary: &[String],
        zeroed: &[TokenId],
        listed: usize,
    ) -> Self {
        let size = vocabulary.len();
        let (mut documents, mut in_texts, mut weights) = (vec![0usize; size], vec![0usize; size], vec![0f64; size]);
        let (mut own, mut lengths) = (0, Vec::with_capacity(vectors.len()));
        for (vector, window) in vectors.iter().zip(windows) {
            for (id, weight) in vector.iter() {
                documents[id as usize] += 1;
                weights[id as usize] += f64::from(weight);
                own += usize::from(window.contains(&id));
            }
            for &id in window {
                in_texts[id as usize] += 1;
            }
            lengths.push(vector.len());
        }
        lengths.sort_unstable();
        let total: usize = lengths.iter().sum();
        let quantile = |q: f64| lengths[((lengths.len() - 1) as f64 * q).round() as usize];
        let all_weights: f64 = weights.iter().sum();
        let mut is_zeroed = vec![false; size];
        for &id in zeroed.iter().filter(|&&id| (id as usize) < size) {
            is_zeroed[id as usize] = true;
        }
        let of = |id: usize| TokenUse {
            token: vocabulary[id].clone(),
            documents: documents[id],
            in_texts: in_texts[id],
            mean_weight: weights[id] / documents[id].max(1) as f64,
            weight_share: weights[id] / all_weights.max(f64::MIN_POSITIVE),
        };
        // The id decides between equals, so that a page of the same run is the same.
        let top = |candidates: Vec<usize>, key: &dyn Fn(usize) -> f64| -> Vec<TokenUse> {
            let mut sorted = candidates;
            sorted.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
            sorted.into_iter().take(listed).map(of).collect()
        };
        let used: Vec<usize> = (0..size).filter(|&id| documents[id] > 0).collect();
        let dead: Vec<usize> = (0..size).filter(|&id| documents[id] == 0 && !is_zeroed[id]).collect();
        Self {
            documents: vectors.len(),
            vocabulary: is_zeroed.iter().filter(|z| !**z).count(),
            active: if lengths.is_empty() { [0; 5] } else { [0.0, 0.05, 0.5, 0.95, 1.0].map(quantile) },
            active_mean: total as f64 / vectors.len().max(1) as f64,
            empty: lengths.iter().filter(|n| **n == 0).count(),
            expansion_share: (total - own) as f64 / total.max(1) as f64,
            most_documents: top(used.clone(), &|id| documents[id] as f64),
            heaviest: top(used, &|id| weights[id]),
            never_active: dead.len(),
            dead_in_texts: top(dead.into_iter().filter(|&id| in_texts[id] > 0).collect(), &|id| in_texts[id] as f64),
        }
    }
}

/// Documents drawn evenly from a corpus in one pass, in the order of the file (Vitter's algorithm R), and besides
/// them each one that `wanted` names.
///
/// # Errors
/// If the file cannot be read, or a line of it is broken.
pub fn draw_documents(
    corpus: &Path,
    fields: &FieldNames,
    count: usize,
    seed: u64,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<(Vec<Document>, Vec<Document>)> {
    use std::io::BufRead as _;
    let io = |e| nsparse_core::Error::io("read", corpus, e);
    let file = std::io::BufReader::new(std::fs::File::open(corpus).map_err(io)?);
    let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x7375_7276_6579);
    let (mut drawn, mut named, mut seen): (Vec<(usize, Document)>, Vec<Document>, usize) = (Vec::new(), Vec::new(), 0);
    for (number, line) in file.lines().enumerate() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        let document = parse_document(corpus, number + 1, &line, fields)?;
        if wanted(&document.id) {
            named.push(document.clone());
        }
        seen += 1;
        let place = if drawn.len() < count { drawn.len() } else { rng.random_range(0..seen) };
        if place == drawn.len() && place < count {
            drawn.push((number, document));
        } else if place < count {
            drawn[place] = (number, document);
        }
    }
    drawn.sort_by_key(|(number, _)| *number);
    Ok((drawn.into_iter().map(|(_, document)| document).collect(), named))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn uses_are_counted() {
        let vocabulary: Vec<String> = ["[PAD]", "a", "b", "c", "d", "e"].iter().map(|t| (*t).to_owned()).collect();
        let vector = |pairs: &[(u32, f32)]| SparseVector {
            ids: pairs.iter().map(|p| p.0).collect(),
            weights: pairs.iter().map(|p| p.1).collect(),
        };
        let vectors = [vector(&[(1, 1.0), (2, 3.0)]), vector(&[(1, 1.0)]), vector(&[])];
        let windows = [vec![2, 3], vec![1, 3], vec![3, 4]];
        let survey = Survey::new(&vectors, &windows, &vocabulary, &[0], 10);
        assert_eq!((survey.documents, survey.vocabulary, survey.empty, survey.never_active), (3, 5, 1, 3));
        assert_eq!(survey.active, [0, 0, 1, 2, 2]);
        // Of three active entries one, `a` in the first document, is no word of the text.
        assert!((survey.expansion_share - 1.0 / 3.0).abs() < 1e-12 && (survey.active_mean - 1.0).abs() < 1e-12);
        let names = |list: &[TokenUse]| list.iter().map(|t| t.token.clone()).collect::<Vec<_>>().join(" ");
        assert_eq!(names(&survey.most_documents), "a b");
        assert_eq!(names(&survey.heaviest), "b a");
        assert_eq!(names(&survey.dead_in_texts), "c d");
        let b = &survey.heaviest[0];
        assert!((b.weight_share - 0.6).abs() < 1e-12 && (b.mean_weight - 3.0).abs() < 1e-12);
        assert_eq!((b.documents, b.in_texts, survey.dead_in_texts[0].in_texts), (1, 1, 3));
        assert_eq!(Survey::new(&[], &[], &vocabulary, &[0], 10).never_active, 5);
    }

    #[test]
    fn every_document_is_drawn_as_often() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("corpus.jsonl");
        let mut text = String::new();
        for d in 0..20 {
            writeln!(text, "{{\"_id\":\"{d}\",\"title\":\"\",\"text\":\"t\"}}").unwrap();
        }
        std::fs::write(&path, text).unwrap();
        let mut counts = [0usize; 20];
        for seed in 0..1000 {
            let (drawn, named) =
                draw_documents(&path, &FieldNames::default(), 5, seed, &|id| id == "3" || id == "none").unwrap();
            let ids: Vec<usize> = drawn.iter().map(|d| d.id.parse().unwrap()).collect();
            assert!(ids.len() == 5 && ids.is_sorted_by(|a, b| a < b));
            assert_eq!(named.len(), 1);
            for id in ids {
                counts[id] += 1;
            }
        }
        // 250 each on average with a standard deviation of 14.
        assert!(counts.iter().all(|n| (180..320).contains(n)), "{counts:?}");
        assert_eq!(draw_documents(&path, &FieldNames::default(), 50, 1, &|_| false).unwrap().0.len(), 20);
    }
}

//! A WordPiece vocabulary trained on own text, in BERT's form: for encoders that start from nothing.

use std::collections::{BTreeMap, BTreeSet};

use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{
    AddedToken, NormalizedString, Normalizer as _, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer as _, Tokenizer,
};

use crate::{Error, Result, TextTokenizer};

/// BERT's special tokens in BERT's order: their ids are 0 to 4.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Trains an uncased WordPiece vocabulary of at most `size` entries on texts: all characters, then the most
/// frequent pairs of neighbouring pieces, merged one after the other as in byte-pair encoding. Ties go to the
/// pair that comes first by name. (The trainers of the tokenizers crate break ties by hash order, so that the
/// same texts give another vocabulary each time; a run of nsparse has to repeat.)
///
/// # Errors
/// If `size` has no room for the special tokens, or the texts have more characters than that.
pub fn train<'a>(texts: impl Iterator<Item = &'a str>, size: usize) -> Result<TextTokenizer> {
    if size < 100 {
        return Err(Error::invalid(format!("A vocabulary of {size} entries is too small; use at least 100")));
    }
    let words = count_words(texts)?;
    let mut split: Vec<(Vec<String>, u64)> = words
        .into_iter()
        .map(|(word, count)| {
            let pieces = word.chars().enumerate();
            (pieces.map(|(i, c)| if i == 0 { c.to_string() } else { format!("##{c}") }).collect(), count)
        })
        .collect();
    let mut pieces: BTreeSet<String> = split.iter().flat_map(|(pieces, _)| pieces.iter().cloned()).collect();
    if pieces.len() + SPECIAL.len() > size {
        return Err(Error::invalid(format!(
            "The texts have {} different characters, the vocabulary {size} entries",
            pieces.len()
        )));
    }
    while pieces.len() + SPECIAL.len() < size {
        let Some((left, right)) = most_frequent_pair(&split) else { break };
        let merged = format!("{left}{}", right.strip_prefix("##").unwrap_or(&right));
        for (word, _) in &mut split {
            merge(word, &left, &right, &merged);
        }
        pieces.insert(merged);
    }
    build(pieces)
}

/// How often each word stands in the texts, as BERT's normaliser and pre-tokeniser cut them.
fn count_words<'a>(texts: impl Iterator<Item = &'a str>) -> Result<BTreeMap<String, u64>> {
    let failed = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
    let normalizer = BertNormalizer::new(true, true, None, true);
    let mut words = BTreeMap::new();
    for text in texts {
        let mut normalized = NormalizedString::from(text);
        normalizer.normalize(&mut normalized).map_err(failed)?;
        let mut cut = PreTokenizedString::from(normalized);
        BertPreTokenizer.pre_tokenize(&mut cut).map_err(failed)?;
        for (word, _, _) in cut.get_splits(OffsetReferential::Normalized, OffsetType::Byte) {
            *words.entry(word.to_owned()).or_insert(0) += 1;
        }
    }
    Ok(words)
}

/// The pair of neighbouring pieces that stands most often, at least twice.
fn most_frequent_pair(words: &[(Vec<String>, u64)]) -> Option<(String, String)> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (pieces, count) in words {
        for pair in pieces.windows(2) {
            *counts.entry((&pair[0], &pair[1])).or_insert(0) += count;
        }
    }
    let (pair, count) = counts.into_iter().reduce(|best, next| if next.1 > best.1 { next } else { best })?;
    (count >= 2).then(|| (pair.0.to_owned(), pair.1.to_owned()))
}

fn merge(pieces: &mut Vec<String>, left: &str, right: &str, merged: &str) {
    let mut i = 0;
    while i + 1 < pieces.len() {
        if pieces[i] == left && pieces[i + 1] == right {
            merged.clone_into(&mut pieces[i]);
            pieces.remove(i + 1);
        }
        i += 1;
    }
}

/// A BERT tokenizer over the pieces; special tokens have the ids 0 to 4, the others follow by name.
fn build(pieces: BTreeSet<String>) -> Result<TextTokenizer> {
    let failed = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        SPECIAL.iter().map(|t| (*t).to_owned()).chain(pieces).enumerate().map(|(id, t)| (t, id.into())).collect();
    let model = serde_json::json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocabulary,
    });
    let model: WordPiece = serde_json::from_str(&model.to_string()).map_err(|e| Error::Tokenizer(e.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(Some(BertNormalizer::new(true, true, None, true))).map_err(failed)?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    let template = TemplateProcessing::builder()
        .try_single("[CLS] $A [SEP]")
        .map_err(Error::Tokenizer)?
        .special_tokens(vec![("[CLS]", 2), ("[SEP]", 3)])
        .build()
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    tokenizer.with_post_processor(Some(template));
    tokenizer.add_special_tokens(SPECIAL.iter().map(|t| AddedToken::from(*t, true))).map_err(failed)?;
    TextTokenizer::new(tokenizer)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    const TEXTS: [&str; 4] = [
        "the index holds documents and the index answers queries",
        "documents are indexed, queries are answered",
        "an answer is a document; a query is a question",
        "indexing documents, answering queries",
    ];

    #[test]
    fn the_same_texts_give_the_same_vocabulary() {
        let first = super::train(TEXTS.into_iter(), 150).unwrap();
        for _ in 0..3 {
            let again = super::train(TEXTS.into_iter(), 150).unwrap();
            assert_eq!(first.to_json(64).unwrap(), again.to_json(64).unwrap());
        }
    }

    #[test]
    fn a_text_comes_back_as_bert_would_cut_it() {
        let tokenizer = super::train(TEXTS.into_iter(), 150).unwrap();
        assert_eq!(tokenizer.special().all, [0, 1, 2, 3, 4]);
        let (ids, pieces) = tokenizer.window("Queries ☃ documents", 16).unwrap();
        assert_eq!((ids[0], ids[ids.len() - 1]), (2, 3));
        assert_eq!(pieces, ids.len() - 2);
        // A character that no text showed is unknown.
        assert!(ids.contains(&1));
        let words: String = ids.iter().map(|&id| tokenizer.vocabulary()[id as usize].replace("##", "")).collect();
        assert_eq!(words, "[CLS]queries[UNK]documents[SEP]");
    }
}

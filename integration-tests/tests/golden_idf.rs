//! The idf table against golden values: both formulas, and a table counted from texts.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use nsparse_core::{Cancel, IdfFormula, IdfTable, NoProgress, TextTokenizer};
use serde_json::{Value, json};

fn golden() -> Value {
    nsparse_core::files::read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/idf/idf.json")).unwrap()
}

const FORMULAS: [(IdfFormula, &str); 2] = [(IdfFormula::Bm25, "bm25"), (IdfFormula::Smooth, "smooth")];

/// One token a word, as the golden documents are tokenized.
fn word_tokenizer(words: impl Iterator<Item = String>) -> TextTokenizer {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_owned);
    let vocabulary: serde_json::Map<_, _> =
        special.into_iter().chain(words).enumerate().map(|(id, word)| (word, json!(id))).collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
}

#[test]
fn formulas() {
    let golden = golden();
    let n = golden["N"].as_u64().unwrap();
    let tokens = golden["tokens"].as_object().unwrap();
    assert_eq!(tokens[golden["unseen_token"].as_str().unwrap()]["df"], 0);
    for (token, expected) in tokens {
        for (formula, name) in FORMULAS {
            let weight = formula.weight(n, expected["df"].as_u64().unwrap());
            assert!((weight - expected[name].as_f64().unwrap()).abs() < 1e-12, "{name} of {token}: {weight}");
        }
    }
}

#[test]
fn counted_from_texts() {
    let golden = golden();
    let tokens = golden["tokens"].as_object().unwrap();
    let texts: Vec<String> = golden["docs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| d["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect::<Vec<_>>().join(" "))
        .collect();
    let tokenizer = word_tokenizer(tokens.keys().cloned());
    for (formula, name) in FORMULAS {
        let (table, metadata) = IdfTable::build(
            texts.iter().map(String::as_str),
            &tokenizer,
            formula,
            "{text}",
            &Cancel::default(),
            &NoProgress,
        )
        .unwrap();
        assert_eq!(metadata.documents, golden["N"].as_u64().unwrap());
        assert_eq!(metadata.tokens_seen, tokens.len() as u64 - 1, "all but the unseen one");
        let map = table.to_map(&tokenizer);
        assert_eq!(map.len(), tokens.len(), "no special token");
        for (token, expected) in tokens {
            let expected = expected[name].as_f64().unwrap();
            assert!((f64::from(map[token]) - expected).abs() < 1e-6, "{name} of {token}: {}", map[token]);
        }
    }
}

//! Documents of several windows: the vector is the maximum over them, and a text that fits is not touched.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::LazyLock;

use nsparse_core::model_dir::Activation;
use nsparse_core::{Cancel, NoProgress, Segments, SparseVector, TextTokenizer};
use nsparse_encoder::document::encode_segments_with;
use nsparse_encoder::{BertConfig, BertMlm, Device, EncodeSettings, SparseEncoder, create, encode_with};
use proptest::prelude::*;

/// Word pieces that a window has room for.
const ROOM: usize = 7;

static TOKENIZER: LazyLock<TextTokenizer> = LazyLock::new(|| {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let words = (special.len()..40).map(|i| format!("t{i}"));
    let vocab: serde_json::Map<String, serde_json::Value> =
        special.iter().map(|s| (*s).to_owned()).chain(words).enumerate().map(|(i, t)| (t, i.into())).collect();
    let added: Vec<serde_json::Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            serde_json::json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
        })
        .collect();
    let file = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    TextTokenizer::from_bytes(file.to_string().as_bytes()).unwrap()
});

static MODEL: LazyLock<BertMlm> = LazyLock::new(|| {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "hidden_act": "gelu",
        "max_position_embeddings": ROOM + 2, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.3
    }))
    .unwrap();
    BertMlm::random(config, 3)
});

fn settings(activation: Activation, segments: Option<Segments>, batch_tokens: usize) -> EncodeSettings {
    let new = EncodeSettings::new(activation, ROOM + 2, TOKENIZER.weightless());
    EncodeSettings { segments, batch_tokens, ..new }
}

fn text(pieces: &[u32]) -> String {
    pieces.iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ")
}

fn encode(settings: &EncodeSettings, texts: &[String], device: Device) -> Vec<SparseVector> {
    let backend = create(&MODEL.config, device).unwrap();
    let cancel = Cancel::default();
    encode_with(&MODEL.parameters, &*backend, &TOKENIZER, settings, texts, &NoProgress, &cancel).unwrap()
}

fn segments_of(settings: &EncodeSettings, texts: &[String], device: Device) -> Vec<Vec<SparseVector>> {
    let backend = create(&MODEL.config, device).unwrap();
    let cancel = Cancel::default();
    encode_segments_with(&MODEL.parameters, &*backend, &TOKENIZER, settings, texts, &NoProgress, &cancel).unwrap()
}

/// The larger weight of each entry, by a plain loop.
fn larger(vectors: &[SparseVector]) -> SparseVector {
    let weight = |id: u32| vectors.iter().map(|v| v.weight(id)).fold(0.0f32, f32::max);
    SparseVector::from_pairs((0..40).map(|id| (id, weight(id))).collect())
}

/// Equal within the golden values' tolerance for weights: a text in a batch is computed in another order than alone.
fn same(a: &SparseVector, b: &SparseVector) -> Result<(), TestCaseError> {
    prop_assert_eq!(&a.ids, &b.ids);
    for (x, y) in a.weights.iter().zip(&b.weights) {
        prop_assert!((x - y).abs() <= 1e-5, "{x} and {y}");
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Texts of any length, any segments: the vector is the maximum over the windows, encoded each as a text of its own.
    #[test]
    fn the_maximum_over_its_windows(
        texts in proptest::collection::vec(proptest::collection::vec(4u32..40, 0..40), 1..5),
        max in 1usize..6, overlap in 0usize..ROOM, least in 0usize..ROOM, batch_tokens in 1usize..80,
        plain in any::<bool>(), l0 in any::<bool>(),
    ) {
        let overlap = if max == 1 { 0 } else { overlap };
        let rule = Segments { max, overlap, min_last: Some(least.min(ROOM - overlap)) };
        let device = if plain { Device::CpuReference } else { Device::Cpu };
        let activation = if l0 { Activation::L0 } else { Activation::Splade };
        let with = settings(activation, Some(rule), batch_tokens);
        let written: Vec<String> = texts.iter().map(|t| text(t)).collect();
        let found = encode(&with, &written, device);
        let of_segments = segments_of(&with, &written, device);
        for ((pieces, vector), segments) in texts.iter().zip(&found).zip(&of_segments) {
            let ranges = rule.ranges(pieces.len(), ROOM);
            prop_assert_eq!(segments.len(), ranges.len());
            let windows: Vec<String> = ranges.into_iter().map(|r| text(&pieces[r])).collect();
            // Each window fits, so these are plain encodings.
            let alone = encode(&settings(activation, None, 4096), &windows, device);
            same(vector, &larger(&alone))?;
            segments.iter().zip(&alone).try_for_each(|(a, b)| same(a, b))?;
            // And to the bit the maximum of what its own segments gave.
            prop_assert_eq!(vector, &larger(segments));
        }
    }

    /// Bit for bit what one pass gives where every text fits, and with one segment whatever the length.
    #[test]
    fn what_fits_is_not_touched(
        texts in proptest::collection::vec(proptest::collection::vec(4u32..40, 0..30), 1..6), batch_tokens in 1usize..60,
    ) {
        let one = Segments { max: 1, overlap: 0, min_last: None };
        let long: Vec<String> = texts.iter().map(|t| text(t)).collect();
        let plain = settings(Activation::Splade, None, batch_tokens);
        let cut = settings(Activation::Splade, Some(one), batch_tokens);
        prop_assert_eq!(encode(&plain, &long, Device::Cpu), encode(&cut, &long, Device::Cpu));
        let short: Vec<String> = texts.iter().map(|t| text(&t[..t.len().min(ROOM)])).collect();
        let several = Segments { max: 4, overlap: 2, min_last: Some(0) };
        let with = settings(Activation::Splade, Some(several), batch_tokens);
        prop_assert_eq!(encode(&plain, &short, Device::Cpu), encode(&with, &short, Device::Cpu));
    }
}

#[test]
fn a_model_refuses_segments_that_do_not_fit_its_window() {
    let bad = Segments { max: 3, overlap: ROOM, min_last: None };
    let refused =
        SparseEncoder::new(MODEL.clone(), Device::Cpu, TOKENIZER.clone(), settings(Activation::Splade, Some(bad), 9));
    assert!(refused.err().unwrap().to_string().contains("`segments.overlap`"));
    let good = Segments { max: 3, overlap: 1, min_last: None };
    let encoder =
        SparseEncoder::new(MODEL.clone(), Device::Cpu, TOKENIZER.clone(), settings(Activation::Splade, Some(good), 9))
            .unwrap();
    let seven: Vec<u32> = (4..11).collect();
    assert_eq!(encoder.segments_of(&text(&seven)).unwrap(), 1);
    assert_eq!(encoder.segments_of(&text(&seven.repeat(9))).unwrap(), 3);
    let found = encoder.encode_counted(&[text(&seven.repeat(9))], &NoProgress, &Cancel::default()).unwrap();
    assert_eq!(found.tokens, 3 * (ROOM as u64 + 2));
}

//! The document encoder: batching, order, zeroing, windows, and what it refuses.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use nsparse_core::model_dir::{Activation, ModelFacts};
use nsparse_core::{Cancel, DocumentEncoder, DocumentTemplate, NoProgress, SparseVector, TextTokenizer};
use nsparse_encoder::{
    Backend, BertConfig, BertMlm, CandleBackend, Device, EncodeSettings, Error, SparseEncoder, TokenBatch, create,
    encode_with,
};

const WORDS: [&str; 16] = [
    "[PAD]",
    "[unused0]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    ".",
    "...",
    "search",
    "engine",
    "ranks",
    "document",
    "##s",
    "weight",
    "term",
    "idle",
];
/// Rows of the embedding table; the last ones have no token.
const ROWS: usize = 20;
/// An entry that a model may name as dead: `idle`.
const DEAD: u32 = 15;

const TEXTS: [&str; 6] = [
    "search engine ranks documents",
    "",
    "term weight . search ... engine nowhere",
    "documents",
    "search search search search search search search search search search search search",
    "ranks terms",
];

fn tokenizer_json() -> String {
    let vocab: serde_json::Map<String, serde_json::Value> =
        WORDS.iter().enumerate().map(|(id, word)| ((*word).to_owned(), id.into())).collect();
    let added = [0, 2, 3, 4, 5].map(|id| {
        serde_json::json!({
            "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        })
    });
    serde_json::json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab
        }
    })
    .to_string()
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::from_bytes(tokenizer_json().as_bytes()).unwrap()
}

fn model() -> BertMlm {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": ROWS, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 12, "hidden_act": "gelu",
        "max_position_embeddings": 12, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.5
    }))
    .unwrap();
    let mut model = BertMlm::random(config, 11);
    // High enough that every entry is active unless it is zeroed.
    model.parameters.get_mut("cls.predictions.bias").unwrap().fill(6.0);
    model
}

fn settings(batch_tokens: usize) -> EncodeSettings {
    let mut zeroed = tokenizer().weightless();
    zeroed.push(DEAD);
    EncodeSettings { batch_tokens, ..EncodeSettings::new(Activation::Splade, 10, zeroed) }
}

/// The vectors by the plain backend; the crate's own kernels have to give the same, or fail alike.
fn encode(model: &BertMlm, settings: &EncodeSettings, texts: &[&str]) -> Result<Vec<SparseVector>, Error> {
    let on = |device| {
        let backend = create(&model.config, device)?;
        encode_with(&model.parameters, &*backend, &tokenizer(), settings, texts, &NoProgress, &Cancel::default())
    };
    let (plain, kernels) = (on(Device::CpuReference), on(Device::Cpu));
    match (&plain, &kernels) {
        (Ok(plain), Ok(kernels)) => plain.iter().zip(kernels).for_each(|(a, b)| assert_close(a, b)),
        (Err(plain), Err(kernels)) => assert_eq!(plain.to_string(), kernels.to_string()),
        _ => panic!("one backend fails, the other does not: {plain:?}, {kernels:?}"),
    }
    plain
}

/// Equal ids, weights within float32's rounding.
fn assert_close(a: &SparseVector, b: &SparseVector) {
    assert_eq!(a.ids, b.ids);
    for (x, y) in a.weights.iter().zip(&b.weights) {
        assert!((x - y).abs() <= 1e-6, "{x} and {y}");
    }
}

#[test]
fn a_batch_equals_its_single_texts_in_the_order_given() {
    let model = model();
    let singles: Vec<SparseVector> =
        TEXTS.iter().map(|text| encode(&model, &settings(100), &[text]).unwrap().remove(0)).collect();
    for batch_tokens in [1, 9, 16, 1000] {
        let together = encode(&model, &settings(batch_tokens), &TEXTS).unwrap();
        assert_eq!(together.len(), TEXTS.len());
        together.iter().zip(&singles).for_each(|(a, b)| assert_close(a, b));
    }
    assert_ne!(singles[0], singles[3], "texts are told apart");
    assert!(encode(&model, &settings(100), &[]).unwrap().is_empty());
}

#[test]
fn a_vector_is_the_activation_of_the_pooled_logits_without_the_zeroed_ids() {
    let model = model();
    let (ids, pieces) = tokenizer().window(TEXTS[2], 10).unwrap();
    assert_eq!(ids, [3, 14, 13, 6, 8, 7, 9, 2, 4]);
    assert_eq!(pieces, 7);
    let backend = CandleBackend::cpu(&model.config);
    let pooled = backend.forward(&model.parameters, &TokenBatch::new(&[ids]), None, false).unwrap().pooled;
    let got = encode(&model, &settings(100), &TEXTS[2..3]).unwrap().remove(0);
    // Not special, not unused, no dot, not dead, not beyond the tokenizer: 8 to 14.
    assert_eq!(got.ids, [8, 9, 10, 11, 12, 13, 14]);
    for (id, weight) in got.iter() {
        assert!(f64::from(weight - (1.0 + pooled[id as usize]).ln()).abs() < 1e-6);
    }
    let l0 = EncodeSettings { activation: Activation::L0, ..settings(100) };
    let twice = encode(&model, &l0, &TEXTS[2..3]).unwrap().remove(0);
    assert!(twice.iter().zip(got.iter()).all(|((_, l0), (_, splade))| (l0 - (1.0 + splade).ln()).abs() < 1e-6));
}

#[test]
fn a_text_is_cut_at_the_window() {
    let model = model();
    let eight = ["search"; 8].join(" ");
    let cut = encode(&model, &settings(100), &[TEXTS[4], &eight, &["search"; 7].join(" ")]).unwrap();
    assert_close(&cut[0], &cut[1]);
    assert_ne!(cut[0].weights, cut[2].weights);
}

#[test]
fn a_model_directory_gives_the_vectors_of_its_parts() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).unwrap();
    let mut facts = ModelFacts::new(Activation::L0, 10, DocumentTemplate::default());
    facts.dead_ids = vec![DEAD];
    nsparse_core::files::write_json(&folder.path().join("nsparse.json"), &facts).unwrap();
    let encoder = SparseEncoder::load(folder.path(), Device::CpuReference).unwrap();
    assert_eq!(encoder.max_tokens(), 10);
    assert_eq!(encoder.vocabulary()[8], "search");
    let expected = encode(&model, &EncodeSettings { activation: Activation::L0, ..settings(4096) }, &TEXTS).unwrap();
    assert_eq!(encoder.encode(&TEXTS).unwrap(), expected);
}

#[test]
fn a_bare_encoder_is_no_document_encoder() {
    let model = model();
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    let mut tensors = nsparse_encoder::Parameters::read_tensors(&path).unwrap();
    tensors.retain(|name, _| !name.starts_with("cls."));
    nsparse_encoder::Parameters::from_tensors(tensors).unwrap().save(&path).unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer_json()).unwrap();
    let facts = ModelFacts::new(Activation::Splade, 10, DocumentTemplate::default());
    nsparse_core::files::write_json(&folder.path().join("nsparse.json"), &facts).unwrap();
    let error = SparseEncoder::load(folder.path(), Device::CpuReference).err().unwrap().to_string();
    assert!(error.contains("no masked-language-model head"), "{error}");
}

#[test]
fn broken_weights_are_an_error_not_an_empty_vector() {
    let mut broken = model();
    broken.parameters.get_mut("cls.predictions.bias").unwrap()[9] = f32::NAN;
    let error = encode(&broken, &settings(100), &TEXTS).unwrap_err().to_string();
    assert!(error.contains("vocabulary entry 9") && error.contains("search search"), "{error}");
}

#[test]
fn what_does_not_belong_together_is_refused() {
    let refused = |model: BertMlm, settings: EncodeSettings| {
        SparseEncoder::new(model, Device::CpuReference, tokenizer(), settings).err().unwrap().to_string()
    };
    let small = BertMlm::random(BertConfig { vocab_size: 10, ..model().config }, 1);
    let error = refused(small, settings(100));
    assert!(error.contains("16 tokens") && error.contains("10"), "{error}");
    let error = refused(model(), EncodeSettings { max_tokens: 13, ..settings(100) });
    assert!(error.contains("13 tokens") && error.contains("12"), "{error}");
}

#[test]
fn encoding_stops_when_asked() {
    let model = model();
    let cancel = Cancel::default();
    cancel.cancel();
    let backend = CandleBackend::cpu(&model.config);
    let stopped = encode_with(&model.parameters, &backend, &tokenizer(), &settings(9), &TEXTS, &NoProgress, &cancel);
    assert!(matches!(stopped, Err(Error::Core(nsparse_core::Error::Cancelled))));
}

#[test]
fn a_batch_that_does_not_fit_the_network_is_refused() {
    let model = model();
    let backend = CandleBackend::cpu(&model.config);
    let refused = |ids: &[u32]| {
        backend.forward(&model.parameters, &TokenBatch::new(&[ids]), None, false).err().unwrap().to_string()
    };
    assert!(refused(&[1; 13]).contains("13 tokens"));
    assert!(refused(&[3, ROWS as u32, 4]).contains("token id 20"));
    let batch = TokenBatch::new(&[[3u32, 4]]);
    let inference = backend.forward(&model.parameters, &batch, None, false).unwrap();
    let mut gradient = vec![0.0; model.parameters.len()];
    let error = backend.backward(&model.parameters, &batch, inference, &[0.0; ROWS], &mut gradient).unwrap_err();
    assert!(error.to_string().contains("keep nothing"), "{error}");
}

#[test]
fn devices_have_names() {
    for (name, device) in [
        ("cpu", Device::Cpu),
        ("cpu-reference", Device::CpuReference),
        ("cuda", Device::Cuda(0)),
        ("cuda:1", Device::Cuda(1)),
    ] {
        assert_eq!(name.parse::<Device>().unwrap(), device);
        assert_eq!(device.to_string(), name);
    }
    for name in ["gpu", "cuda:", "cuda:x", ""] {
        let error = name.parse::<Device>().unwrap_err();
        assert!(error.hint().unwrap().contains("cuda"), "{error}");
    }
    assert!(create(&model().config, Device::CpuReference).is_ok());
    #[cfg(not(feature = "cuda"))]
    assert!(create(&model().config, Device::Cuda(0)).err().unwrap().to_string().contains("without CUDA"));
}

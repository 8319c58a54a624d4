//! The plain backend against the golden forward values and gradients of PyTorch.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use nsparse_encoder::{BertConfig, BertMlm, CandleBackend, Parameters, TokenBatch};
use nsparse_integration_tests::golden::{self, GoldenFile, documents, tiny_bert};

/// Exact lengths, documents of like lengths padded into one block as on a GPU, and all of them, with several
/// documents at once in the head.
fn backends() -> [CandleBackend; 3] {
    let config = tiny_bert().config;
    let new = || CandleBackend::cpu(&config);
    [new(), new().with_blocks(20, 0), new().with_blocks(10_000, 3 * 64 * golden::VOCABULARY)]
}

#[test]
fn golden_files_are_read_as_the_model_loader_reads_them() {
    let file = GoldenFile::read("tiny-bert/model.safetensors");
    let parameters = tiny_bert().parameters;
    assert_eq!(file.shapes().count(), parameters.specs().len());
    for spec in parameters.specs() {
        assert_eq!(file.f32(&spec.name), parameters.get(&spec.name).unwrap(), "{}", spec.name);
    }
    assert_eq!(documents().iter().map(Vec::len).collect::<Vec<_>>(), [12, 33, 64, 1, 7, 20]);
}

#[test]
fn hidden_states_match() {
    let model = tiny_bert();
    let expected = GoldenFile::read("tiny-bert/outputs.safetensors");
    let backend = &backends()[0];
    for (document, ids) in documents().iter().enumerate() {
        let states = backend.hidden_states(&model.parameters, ids).unwrap();
        let names = ["embeddings", "hidden.1", "last_hidden_state", "mlm_transform"];
        assert_eq!(states.len(), names.len());
        for (name, got) in names.iter().zip(&states) {
            let start = document * 64 * 32;
            let want = &expected.f32(name)[start..start + ids.len() * 32];
            let deviation = golden::max_difference(got, want);
            assert!(deviation <= 2e-5, "{name} of document {document}: {deviation}");
        }
    }
}

#[test]
fn forward_matches() {
    for backend in &backends() {
        golden::check_forward(backend);
    }
}

#[test]
fn gradients_match() {
    for backend in &backends() {
        golden::check_gradients(backend);
    }
}

#[test]
fn every_parameter_gets_its_gradient() {
    for backend in &backends() {
        golden::check_every_parameter_gets_its_gradient(backend);
    }
}

#[test]
fn dropout_follows_its_key() {
    for backend in &backends() {
        golden::check_dropout(backend);
        golden::check_slope_with_dropout(backend);
    }
}

#[test]
fn padding_into_blocks_changes_nothing() {
    let [exact, some, all] = backends();
    let model = tiny_bert();
    let batch = TokenBatch::new(&documents());
    golden::check_agreement(&exact, &some, &model, &batch);
    golden::check_agreement(&exact, &all, &model, &batch);
}

#[test]
fn changed_parameters_are_seen() {
    let backend = &backends()[0];
    let mut model = tiny_bert();
    let batch = TokenBatch::new(&documents());
    let pooled = |parameters: &Parameters| {
        nsparse_encoder::Backend::forward(backend, parameters, &batch, None, false).unwrap().pooled
    };
    let before = pooled(&model.parameters);
    for bias in model.parameters.get_mut("cls.predictions.bias").unwrap() {
        *bias += 1.0;
    }
    let after = pooled(&model.parameters);
    assert!(before.iter().zip(&after).all(|(x, y)| (y - x - 1.0).abs() < 1e-5));
}

#[test]
fn a_random_model_saved_as_hugging_face_folder_reloads() {
    let config: BertConfig = BertConfig { vocab_size: 40, ..tiny_bert().config };
    let model = BertMlm::random(config, 3);
    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path()).unwrap();
    assert_eq!(BertMlm::load(folder.path(), 0).unwrap(), model);
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder.path().join("config.json")).unwrap()).unwrap();
    assert_eq!(json["architectures"], serde_json::json!(["BertForMaskedLM"]));
    assert_eq!(json["tie_word_embeddings"], true);
}

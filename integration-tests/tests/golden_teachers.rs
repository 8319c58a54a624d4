//! Teachers against PyTorch's golden values: the ensemble, pooled sentence vectors, a cross-encoder.

use nsparse_core::{Cancel, Scorer};
use nsparse_encoder::{
    Backend, BertMlm, CandleBackend, CpuBackend, CrossEncoder, DenseEncoder, DenseSettings, Device, Parameters,
    Pooling, TokenBatch,
};
use nsparse_integration_tests::golden::{self, GoldenFile, documents, max_difference, tiny_bert};
use nsparse_trainer::synthetic::tokenizer;
use nsparse_trainer::teachers::{TeacherScores, ensemble::ensemble};

/// Devices that are everywhere.
const DEVICES: [Device; 2] = [Device::Cpu, Device::CpuReference];

#[test]
fn the_ensemble_matches() {
    let inputs = GoldenFile::read("losses/inputs.safetensors");
    let expected = GoldenFile::read("losses/ensemble.safetensors");
    let (a, b) = (inputs.f32("ensemble.teacher0"), inputs.f32("ensemble.teacher1"));
    let whole =
        TeacherScores { queries: 4, documents: 6, teachers: vec![(1.0, a.to_vec()), (1.0, b.to_vec())], scale: 30.0 };
    for (query, expected) in expected.f32("expected").chunks_exact(6).enumerate() {
        let doubles = |s: &[f32]| s[query * 6..query * 6 + 6].iter().map(|&s| f64::from(s)).collect::<Vec<_>>();
        let (a, b) = (doubles(a), doubles(b));
        let got = ensemble(&[(1.0, &a), (1.0, &b)], 30.0);
        let row = whole.row(query, &[0, 1, 2, 3, 4, 5]).expect("six candidates have scores");
        assert_eq!(row.scores, got);
        for (got, want) in got.iter().zip(expected) {
            assert!((got - f64::from(*want)).abs() <= 1e-5, "query {query}: {got}, expected {want}");
        }
    }
}

/// A folder with a golden model and a tokenizer whose word `tN` has id N.
fn folder_of(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden::path(&format!("{name}/{file}")), folder.path().join(file)).expect("a golden file");
    }
    let json = tokenizer(golden::VOCABULARY).and_then(|t| Ok(t.to_json(512)?)).expect("a tokenizer");
    std::fs::write(folder.path().join("tokenizer.json"), json).expect("it is written");
    folder
}

#[test]
fn pooled_vectors_match() {
    let folder = folder_of("tiny-bert");
    let expected = GoldenFile::read("tiny-bert/dense.safetensors");
    // As text, without [CLS] and [SEP], which the encoder puts there; document 3 has neither.
    let documents = documents();
    let texts: Vec<(usize, String)> = documents
        .iter()
        .enumerate()
        .filter(|(_, ids)| ids.len() > 1)
        .map(|(n, ids)| (n, ids[1..ids.len() - 1].iter().map(|id| format!("t{id}")).collect::<Vec<_>>().join(" ")))
        .collect();
    for device in DEVICES {
        for (pooling, normalize, name) in [
            (Pooling::Mean, false, "mean"),
            (Pooling::Cls, false, "cls"),
            (Pooling::Mean, true, "mean.unit"),
            (Pooling::Cls, true, "cls.unit"),
        ] {
            let settings = DenseSettings { pooling, normalize, max_tokens: 64 };
            let encoder = DenseEncoder::load(folder.path(), device, settings).expect("the encoder loads");
            let only: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
            let got = encoder.encode(&only, &Cancel::default(), |_| ()).expect("it encodes");
            for ((document, _), got) in texts.iter().zip(&got) {
                let deviation = max_difference(got, &expected.f32(name)[document * 32..(document + 1) * 32]);
                assert!(deviation <= 2e-5, "{device}, {name} of document {document}: {deviation}");
            }
            // A scorer's score is the vectors' dot product.
            let score = encoder.score(&[(only[0], only[1])]).expect("it scores")[0];
            let dot: f64 = got[0].iter().zip(&got[1]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(score) - dot).abs() <= 1e-4 * dot.abs().max(1.0), "{score}, expected {dot}");
        }
    }
}

fn pairs() -> Vec<(String, String)> {
    let file: serde_json::Value =
        nsparse_core::files::read_json(&golden::path("tiny-cross/pairs.json")).expect("pairs");
    serde_json::from_value(file["pairs"].clone()).expect("pairs of texts")
}

#[test]
fn pairs_are_cut_and_typed_as_transformers_does_it() {
    let tokenizer = tokenizer(golden::VOCABULARY).expect("a tokenizer");
    let outputs = GoldenFile::read("tiny-cross/outputs.safetensors");
    let row = |name: &str, n: usize, length: usize| outputs.i64(name)[n * 64..n * 64 + length].to_vec();
    for (n, (query, document)) in pairs().iter().enumerate() {
        let (ids, types) = tokenizer.pair_window(query, document, 64).expect("a window");
        let length = row("attention_mask", n, 64).iter().sum::<i64>() as usize;
        assert_eq!(ids.len(), length, "pair {n}");
        assert_eq!(ids.iter().map(|&id| i64::from(id)).collect::<Vec<_>>(), row("input_ids", n, length), "pair {n}");
        let types: Vec<i64> = types.iter().map(|&t| i64::from(t)).collect();
        assert_eq!(types, row("token_type_ids", n, length), "pair {n}");
    }
}

#[test]
fn cross_encoders_match() {
    let pairs = pairs();
    let pairs: Vec<(&str, &str)> = pairs.iter().map(|(q, d)| (q.as_str(), d.as_str())).collect();
    let outputs = GoldenFile::read("tiny-cross/outputs.safetensors");
    let one = folder_of("tiny-cross");
    let two = folder_of("tiny-cross");
    let path = two.path().join("model.safetensors");
    let mut tensors = Parameters::read_tensors(&path).expect("tensors");
    tensors.extend(Parameters::read_tensors(&golden::path("tiny-cross/two_labels.safetensors")).expect("tensors"));
    Parameters::from_tensors(tensors).and_then(|p| p.save(&path)).expect("it is written");
    let difference: Vec<f32> = outputs.f32("logits.two_labels").chunks_exact(2).map(|l| l[1] - l[0]).collect();
    for (folder, expected) in [(&one, outputs.f32("logits")), (&two, &difference[..])] {
        for device in DEVICES {
            let encoder = CrossEncoder::load(folder.path(), device, None).expect("the cross-encoder loads");
            let got = encoder.score(&pairs).expect("it scores");
            let deviation = max_difference(&got, expected);
            assert!(deviation <= 2e-5, "{device}: {deviation}");
            // Alone as in a batch.
            for (pair, expected) in pairs.iter().zip(expected) {
                let alone = encoder.score(std::slice::from_ref(pair)).expect("it scores")[0];
                assert!((alone - expected).abs() <= 2e-5, "{device}: {alone}, expected {expected}");
            }
        }
    }
}

/// With every token of type 0 a pair's batch is a document's, bit for bit; with type 1 it is another, and both backends
/// give the types' table its gradient.
#[test]
fn token_types_reach_their_rows() {
    let model: BertMlm = tiny_bert();
    let documents = documents();
    let plain = TokenBatch::new(&documents);
    let backends: [Box<dyn Backend>; 2] =
        [Box::new(CpuBackend::new(&model.config)), Box::new(CandleBackend::cpu(&model.config))];
    let mut slopes = Vec::new();
    for backend in &backends {
        let states = |batch: &TokenBatch| backend.last_hidden_states(&model.parameters, batch).expect("it succeeds");
        let gradient = |batch: &TokenBatch| {
            let forward = backend.forward(&model.parameters, batch, None, true).expect("the forward succeeds");
            let pooled: Vec<f32> = (0..forward.pooled.len()).map(|i| (i % 7) as f32 / 7.0 - 0.4).collect();
            let mut gradient = vec![0.0; model.parameters.len()];
            backend.backward(&model.parameters, batch, forward, &pooled, &mut gradient).expect("the backward succeeds");
            gradient
        };
        let mut typed = plain.clone();
        typed.token_types = vec![0; plain.tokens()];
        assert!(states(&typed) == states(&plain), "the same bits");
        let spec = model.parameters.spec("bert.embeddings.token_type_embeddings.weight").expect("the table");
        let of_types = |gradient: &[f32]| gradient[spec.offset..spec.offset + spec.len()].to_vec();
        let zero = of_types(&gradient(&typed));
        assert!(max_difference(&zero, &of_types(&gradient(&plain))) < 1e-4);
        assert!(zero[32..].iter().all(|&g| g == 0.0));
        for (place, kind) in typed.token_types.iter_mut().enumerate() {
            *kind = u8::from(place % 3 == 0);
        }
        assert!(max_difference(&states(&typed), &states(&plain)) > 0.1);
        let mixed = of_types(&gradient(&typed));
        assert!(golden::max_abs(&mixed[..32]) > 0.0 && golden::max_abs(&mixed[32..]) > 0.0);
        slopes.push(mixed);
        typed.token_types[5] = 2;
        let refused = backend.last_hidden_states(&model.parameters, &typed).expect_err("there is no third type");
        assert!(refused.to_string().contains("token type 2"), "{refused}");
    }
    let most = golden::max_abs(&slopes[0]);
    assert!(max_difference(&slopes[0], &slopes[1]) <= 3e-5 * most, "{slopes:?}");
}

//! The exported archive in DJL, fed as ML Commons feeds it: against golden numbers, and against our encoder.
#![cfg(feature = "djl")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and the figures they found")]

use std::io::Read as _;
use std::path::Path;
#[cfg(feature = "data")]
use std::path::PathBuf;

use nsparse_core::model_dir::Activation;
use nsparse_core::{DocumentEncoder as _, SparseVector, TextTokenizer, TokenId};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_exporter::{TorchScript, export};
use nsparse_integration_tests::djl::{Djl, djl_outputs, djl_tokens};
use nsparse_integration_tests::golden::{GoldenFile, VOCABULARY, documents, special_ids, tiny_bert};
#[cfg(feature = "data")]
use nsparse_integration_tests::random_model::write_with;
use nsparse_integration_tests::random_model::{Shape, fifty_texts, write};

const ENGINES: [Djl; 2] = [Djl::V0_28, Djl::V0_21];

/// Asserts that two vectors differ by at most `tolerance` in every entry, a missing one counting as 0, and
/// returns the largest difference.
fn assert_close(found: &SparseVector, expected: &SparseVector, tolerance: f32, what: &str) -> f32 {
    let ids = found.ids.iter().chain(&expected.ids);
    let (worst, id) = ids
        .map(|&id| ((found.weight(id) - expected.weight(id)).abs(), id))
        .fold((0.0f32, 0), |worst, here| if here.0 > worst.0 || here.0.is_nan() { here } else { worst });
    assert!(
        worst <= tolerance,
        "{what}: token {id} has weight {} instead of {} ({worst} apart)",
        found.weight(id),
        expected.weight(id)
    );
    worst
}

#[test]
fn golden_bert_answers_in_both_engines() {
    let model = tiny_bert();
    let outputs = GoldenFile::read("tiny-bert/outputs.safetensors");
    let (texts, zeroed) = (documents(), special_ids());
    let folder = tempfile::tempdir().unwrap();
    for (activation, name) in [(Activation::Splade, "sparse.splade"), (Activation::L0, "sparse.l0")] {
        let archive = folder.path().join(format!("{name}.pt"));
        let (config, parameters) = (&model.config, &model.parameters);
        TorchScript { config, parameters, zeroed: &zeroed, activation }.save(&archive).unwrap();
        for engine in ENGINES {
            // One text at a time as ML Commons does, then all at once with padding.
            for batch in [1, texts.len()] {
                let found = djl_outputs(engine, &archive, &texts, batch).unwrap();
                for (i, (found, expected)) in found.iter().zip(outputs.f32(name).chunks(VOCABULARY)).enumerate() {
                    let what = format!("{name}, {engine:?}, batch {batch}, document {i}");
                    let expected = SparseVector::from_dense(expected);
                    assert!(!expected.is_empty());
                    assert_close(found, &expected, 1e-5, &what);
                    assert_eq!(found.ids, expected.ids, "{what}");
                }
            }
        }
    }
}

/// A text longer than the network has positions: the graph cuts it, and never reads past its table.
#[test]
fn ids_beyond_the_last_position_are_cut_inside_the_graph() {
    let model = tiny_bert();
    let (config, parameters) = (&model.config, &model.parameters);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("long.pt");
    TorchScript { config, parameters, zeroed: &[], activation: Activation::Splade }.save(&archive).unwrap();
    let positions = config.max_position_embeddings;
    let long: Vec<TokenId> = (0..positions as TokenId * 3).map(|i| 5 + i * 7 % 200).collect();
    let texts = [long.clone(), long[..positions].to_vec()];
    for engine in ENGINES {
        let found = djl_outputs(engine, &archive, &texts, 1).unwrap();
        assert!(!found[0].is_empty());
        // Not bit for bit: libtorch 1.13 may round otherwise from one run to the next.
        assert_close(&found[0], &found[1], 1e-6, &format!("{engine:?}"));
    }
}

/// A whole package, from model directory to DJL: a model of MiniLM's shape with random weights, or the trained
/// one that `NSPARSE_MODEL` names.
#[test]
fn a_package_gives_our_encoders_vectors_for_fifty_texts() {
    if let Some(model) = std::env::var_os("NSPARSE_MODEL") {
        return check_package(Path::new(&model));
    }
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &Shape::minilm(), 11).unwrap();
    check_package(folder.path());
}

/// The same with bert-base-uncased's own vocabulary, which has what a made one has not: Chinese characters,
/// symbols, a thousand `[unusedN]`.
#[cfg(feature = "data")]
#[test]
fn a_package_with_berts_own_vocabulary_does_too() {
    let data = match std::env::var_os("NSPARSE_TEST_DATA") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let tokenizer = TextTokenizer::load(&data.join("tokenizers/bert-base-uncased/tokenizer.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_with(folder.path(), &Shape::minilm(), 12, &tokenizer).unwrap();
    check_package(folder.path());
}

/// Exports a model directory and holds what DJL makes of the package to what our encoder makes of the model:
/// the same ids, the same strings, weights within 1e-4.
fn check_package(model: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let report = export(model, &folder.path().join("package"), "check", "1.0.0").unwrap();
    let archive = folder.path().join("check.pt");
    std::fs::write(&archive, entry(&report.document_zip, "check.pt")).unwrap();
    let tokenizer = folder.path().join("tokenizer.json");
    std::fs::write(&tokenizer, entry(&report.document_zip, "tokenizer.json")).unwrap();

    let texts = fifty_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(texts.len(), 50);
    let encoder = SparseEncoder::load(model, Device::Cpu).unwrap();
    let window = encoder.settings().max_tokens;
    let ids: Vec<_> = texts.iter().map(|text| encoder.tokenizer().window(text, window).unwrap().0).collect();
    assert_eq!(ids.iter().map(Vec::len).max(), Some(report.manifest.max_tokens), "no text fills the window");
    let expected = encoder.encode(&texts).unwrap();
    let zeroed = &report.manifest.zeroed_ids;
    assert!(expected.iter().flat_map(|v| &v.ids).all(|id| zeroed.binary_search(id).is_err()));
    let active = expected.iter().map(SparseVector::len).sum::<usize>() as f64 / 50.0;
    assert!((5.0..5000.0).contains(&active), "{active} active dimensions: the comparison would say little");
    let largest = expected.iter().flat_map(|v| &v.weights).fold(0.0f32, |a, b| a.max(*b));

    for engine in ENGINES {
        let tokens = djl_tokens(engine, &tokenizer, &texts, report.manifest.vocabulary).unwrap();
        check_strings(&tokens.strings, encoder.tokenizer(), engine);
        assert_eq!(tokens.ids, ids, "{engine:?} cuts texts otherwise");
        let found = djl_outputs(engine, &archive, &tokens.ids, 1).unwrap();
        let mut worst = 0.0f32;
        for ((found, expected), text) in found.iter().zip(&expected).zip(&texts) {
            let start: String = text.chars().take(40).collect();
            worst = worst.max(assert_close(found, expected, 1e-4, &format!("{engine:?}, `{start}`")));
        }
        println!("{engine:?}: {active:.1} active dimensions, weights to {largest:.2}, largest difference {worst:.2e}");
    }
}

/// In a cluster a token is its decoded string: it has to be the vocabulary's, and special tokens none.
fn check_strings(strings: &[String], tokenizer: &TextTokenizer, engine: Djl) {
    for (id, (found, token)) in strings.iter().zip(tokenizer.vocabulary()).enumerate() {
        let special = tokenizer.special().all.contains(&(id as TokenId));
        let expected = if special { "" } else { token.as_str() };
        assert_eq!(found, expected, "{engine:?}, token id {id}");
    }
}

/// The bytes of an entry of a zip.
fn entry(path: &Path, name: &str) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    let mut bytes = Vec::new();
    zip.by_name(name).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

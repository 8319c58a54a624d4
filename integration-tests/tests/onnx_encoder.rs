//! onnxruntime as an engine against our own, on fifty texts: from a model directory, a package, a bare file.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests, and the figures they found")]

use std::path::{Path, PathBuf};

#[cfg(feature = "data")]
use nsparse_core::TextTokenizer;
use nsparse_core::model_dir::Activation;
use nsparse_core::{Cancel, DocumentEncoder as _, Fault, NoProgress, SparseVector};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_exporter::{ModelFormat, OrtEncoder, export_as};
use nsparse_integration_tests::onnx_file::onnxruntime;
#[cfg(feature = "data")]
use nsparse_integration_tests::random_model::write_with;
use nsparse_integration_tests::random_model::{Shape, fifty_texts, write};

/// The largest difference in any entry, a missing one counting as 0.
fn difference(a: &SparseVector, b: &SparseVector) -> f32 {
    a.ids.iter().chain(&b.ids).map(|&id| (a.weight(id) - b.weight(id)).abs()).fold(0.0, f32::max)
}

fn open(model: &Path) -> OrtEncoder {
    OrtEncoder::open(model, Some(&onnxruntime()), Some(2)).unwrap()
}

/// Holds what onnxruntime makes of a model to what our engine makes of it: weights within 1e-4.
fn check(model: &Path) {
    let texts = fifty_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(texts.len(), 50);
    let ours = SparseEncoder::load(model, Device::Cpu).unwrap();
    let expected = ours.encode_counted(&texts, &NoProgress, &Cancel::default()).unwrap();
    let active = expected.vectors.iter().map(SparseVector::len).sum::<usize>() as f64 / 50.0;
    assert!((5.0..5000.0).contains(&active), "{active} active dimensions: the comparison would say little");
    let largest = expected.vectors.iter().flat_map(|v| &v.weights).fold(0.0f32, |a, b| a.max(*b));

    let encoder = open(model);
    assert_eq!(encoder.vocabulary(), ours.vocabulary());
    assert_eq!(encoder.max_tokens(), ours.max_tokens());
    let found = encoder.encode_counted(&texts, &NoProgress, &Cancel::default()).unwrap();
    assert_eq!(found.tokens, expected.tokens, "texts are cut otherwise");
    let mut worst = 0.0f32;
    for ((found, expected), text) in found.vectors.iter().zip(&expected.vectors).zip(&texts) {
        let start: String = text.chars().take(40).collect();
        let here = difference(found, expected);
        assert!(here <= 1e-4, "`{start}`: {here} apart");
        worst = worst.max(here);
    }
    println!("{active:.1} active dimensions, weights to {largest:.2}, largest difference {worst:.2e}");
}

/// A model of MiniLM's shape with random weights in both activations, or the trained one that `NSPARSE_MODEL` names.
#[test]
fn onnxruntime_gives_our_encoders_vectors_for_fifty_texts() {
    if let Some(model) = std::env::var_os("NSPARSE_MODEL") {
        return check(Path::new(&model));
    }
    for (activation, seed) in [(Activation::Splade, 11), (Activation::L0, 12)] {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), &Shape { activation, ..Shape::minilm() }, seed).unwrap();
        check(folder.path());
    }
}

/// The same with bert-base-uncased's own vocabulary.
#[cfg(feature = "data")]
#[test]
fn so_it_does_with_berts_own_vocabulary() {
    let data = match std::env::var_os("NSPARSE_TEST_DATA") {
        Some(path) => PathBuf::from(path),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
    };
    let tokenizer = TextTokenizer::load(&data.join("tokenizers/bert-base-uncased/tokenizer.json")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    write_with(folder.path(), &Shape::minilm(), 12, &tokenizer).unwrap();
    check(folder.path());
}

/// A small model, and its package as ONNX.
struct Made(tempfile::TempDir);

impl Made {
    fn new() -> Self {
        let made = Self(tempfile::tempdir().unwrap());
        write(&made.model(), &Shape::small(), 5).unwrap();
        export_as(&made.model(), &made.package(), "tiny", "1.0.0", ModelFormat::Onnx).unwrap();
        made
    }

    fn model(&self) -> PathBuf {
        self.0.path().join("model")
    }

    fn package(&self) -> PathBuf {
        self.0.path().join("package")
    }
}

#[test]
fn a_model_its_package_and_its_bare_file_are_one() {
    let made = Made::new();
    let texts = fifty_texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let first = open(&made.model());
    let expected = first.encode(&texts).unwrap();
    for path in ["package", "package/package.json", "package/tiny.onnx"] {
        let encoder = open(&made.0.path().join(path));
        assert_eq!(encoder.encode(&texts).unwrap(), expected, "{path}");
        assert_eq!(encoder.template(), first.template());
        assert_eq!((encoder.max_tokens(), encoder.activation()), (first.max_tokens(), first.activation()));
    }
    // A batch gives what its single texts give, whatever else is in it.
    for (text, expected) in texts.iter().zip(&expected) {
        assert!(difference(&first.encode(&[text]).unwrap()[0], expected) <= 1e-5, "{text}");
    }
    let small = open(&made.model()).with_batch_tokens(40).encode(&texts).unwrap();
    assert!(small.iter().zip(&expected).all(|(a, b)| difference(a, b) <= 1e-5));
    assert!(first.encode(&[]).unwrap().is_empty());
}

#[test]
fn a_stop_is_heard_between_batches() {
    let made = Made::new();
    let cancel = Cancel::default();
    cancel.cancel();
    let error = open(&made.model()).encode_counted(&["text"], &NoProgress, &cancel).unwrap_err();
    assert!(matches!(error, nsparse_exporter::Error::Core(nsparse_core::Error::Cancelled)), "{error}");
}

#[test]
fn what_onnxruntime_cannot_take_gets_one_clear_message() {
    let made = Made::new();
    let refusal = |path: &Path| {
        let error = OrtEncoder::open(path, Some(&onnxruntime()), None).unwrap_err();
        assert_eq!(error.fault(), Fault::Usage, "{error}");
        assert!(error.hint().is_some_and(|h| !h.is_empty()), "{error} has no hint");
        error.to_string()
    };
    let script = made.0.path().join("script");
    nsparse_exporter::export(&made.model(), &script, "tiny", "1.0.0").unwrap();
    let message = refusal(&script);
    assert!(message.contains("TorchScript"), "{message}");

    let bare = made.package().join("tiny.onnx");
    let mut bytes = std::fs::read(&bare).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&bare, bytes).unwrap();
    let message = refusal(&bare);
    assert!(message.contains("tiny.onnx") && message.contains("package.json"), "{message}");
    // The package itself holds its own, whole.
    open(&made.package());

    std::fs::copy(&bare, made.0.path().join("alone.onnx")).unwrap();
    let message = refusal(&made.0.path().join("alone.onnx"));
    assert!(message.contains("package.json"), "{message}");
}

//! The exported archive in DJL, fed as ML Commons feeds it: against golden numbers, and against our encoder.
#![cfg(feature = "djl")]
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use nsparse_core::model_dir::Activation;
use nsparse_core::{SparseVector, TokenId};
use nsparse_encoder::{BertConfig, Parameters};
use nsparse_exporter::TorchScript;
use nsparse_integration_tests::djl::{Djl, djl_outputs};
use safetensors::SafeTensors;

const ENGINES: [Djl; 2] = [Djl::V0_28, Djl::V0_21];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The golden documents' ids, without padding.
fn golden_documents() -> Vec<Vec<TokenId>> {
    let bytes = std::fs::read(golden("inputs.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let integers = |name: &str| -> Vec<i64> {
        let view = file.tensor(name).unwrap();
        view.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let (ids, mask) = (integers("input_ids"), integers("attention_mask"));
    ids.chunks(64)
        .zip(mask.chunks(64))
        .map(|(ids, mask)| ids.iter().zip(mask).filter(|(_, m)| **m == 1).map(|(id, _)| *id as TokenId).collect())
        .collect()
}

/// Asserts that two vectors differ by at most `tolerance` in every entry, a missing one counting as 0, and
/// returns the largest difference.
fn assert_close(found: &SparseVector, expected: &SparseVector, tolerance: f32, what: &str) -> f32 {
    let ids = found.ids.iter().chain(&expected.ids);
    let (worst, id) = ids
        .map(|&id| ((found.weight(id) - expected.weight(id)).abs(), id))
        .fold((0.0f32, 0), |worst, here| if here.0 > worst.0 { here } else { worst });
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
    let config = BertConfig::load(&golden("tiny-bert/config.json")).unwrap();
    let tensors = Parameters::read_tensors(&golden("tiny-bert/model.safetensors")).unwrap();
    let parameters = Parameters::from_tensors(tensors).unwrap();
    let outputs = Parameters::read_tensors(&golden("tiny-bert/outputs.safetensors")).unwrap();
    let texts = golden_documents();
    let folder = tempfile::tempdir().unwrap();
    for (activation, name) in [(Activation::Splade, "sparse.splade"), (Activation::L0, "sparse.l0")] {
        let archive = folder.path().join(format!("{name}.pt"));
        TorchScript { config: &config, parameters: &parameters, zeroed: &[0, 1, 2, 3, 4], activation }
            .save(&archive)
            .unwrap();
        for engine in ENGINES {
            // One text at a time as ML Commons does, then all at once with padding.
            for batch in [1, texts.len()] {
                let found = djl_outputs(engine, &archive, &texts, batch).unwrap();
                for (i, (found, expected)) in found.iter().zip(outputs[name].1.chunks(config.vocab_size)).enumerate() {
                    let expected = SparseVector::from_dense(expected);
                    assert!(!expected.is_empty());
                    assert_close(found, &expected, 1e-5, &format!("{name}, {engine:?}, batch {batch}, document {i}"));
                    assert_eq!(found.ids, expected.ids, "{name}, {engine:?}, batch {batch}, document {i}");
                }
            }
        }
    }
}

//! The exported graph in onnxruntime, fed with tensors: against golden numbers, padded and cut.
#![cfg(feature = "onnx")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::OnceLock;

use nsparse_core::model_dir::Activation;
use nsparse_core::{SparseVector, TokenId};
use nsparse_exporter::Onnx;
use nsparse_exporter::onnx::{ATTENTION_MASK, INPUT_IDS, OUTPUT};
use nsparse_integration_tests::golden::{GoldenFile, VOCABULARY, documents, special_ids, tiny_bert};
use nsparse_integration_tests::onnx_file::onnxruntime;
use ort::environment::Environment;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::Tensor;

/// onnxruntime as others run it, or without any of its optimisations.
const LEVELS: [GraphOptimizationLevel; 2] = [GraphOptimizationLevel::All, GraphOptimizationLevel::Disable];

fn session(graph: &Path, level: GraphOptimizationLevel) -> Session {
    static LOADED: OnceLock<Environment> = OnceLock::new();
    let environment =
        LOADED.get_or_init(|| ort::init_from(onnxruntime()).unwrap().with_telemetry(false).build().unwrap());
    let builder = Session::builder(environment).unwrap().with_optimization_level(level).unwrap();
    builder.with_intra_threads(2).unwrap().commit_from_file(graph).unwrap()
}

/// The output for rows of ids and masks of one length.
fn run(session: &mut Session, ids: &[Vec<i64>], mask: &[Vec<i64>]) -> Vec<Vec<f32>> {
    let shape = [ids.len(), ids[0].len()];
    let ids = Tensor::from_array((shape, ids.concat())).unwrap();
    let mask = Tensor::from_array((shape, mask.concat())).unwrap();
    let outputs = session.run(ort::inputs![INPUT_IDS => ids, ATTENTION_MASK => mask]).unwrap();
    assert_eq!(outputs.len(), 1);
    let (found, values) = outputs[OUTPUT].try_extract_tensor::<f32>().unwrap();
    assert_eq!(found[0] as usize, shape[0]);
    values.chunks(found[1] as usize).map(<[f32]>::to_vec).collect()
}

/// Texts of any lengths, `batch` at a time, padded with id 0.
fn vectors(session: &mut Session, texts: &[Vec<TokenId>], batch: usize) -> Vec<Vec<f32>> {
    let mut out = Vec::new();
    for texts in texts.chunks(batch) {
        let longest = texts.iter().map(Vec::len).max().unwrap();
        let pad = |mut row: Vec<i64>| {
            row.resize(longest, 0);
            row
        };
        let ids: Vec<Vec<i64>> = texts.iter().map(|t| pad(t.iter().map(|&id| i64::from(id)).collect())).collect();
        let mask: Vec<Vec<i64>> = texts.iter().map(|t| pad(vec![1; t.len()])).collect();
        out.extend(run(session, &ids, &mask));
    }
    out
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // NaN would vanish in a maximum.
    assert!(a.iter().chain(b).all(|v| v.is_finite()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn golden_bert_answers_in_onnxruntime() {
    let model = tiny_bert();
    let outputs = GoldenFile::read("tiny-bert/outputs.safetensors");
    let (texts, zeroed) = (documents(), special_ids());
    let folder = tempfile::tempdir().unwrap();
    for (activation, name) in [(Activation::Splade, "sparse.splade"), (Activation::L0, "sparse.l0")] {
        let graph = folder.path().join(format!("{name}.onnx"));
        let (config, parameters) = (&model.config, &model.parameters);
        Onnx { config, parameters, zeroed: &zeroed, activation }.save(&graph).unwrap();
        for level in LEVELS {
            let mut session = session(&graph, level);
            // One text at a time as ML Commons does, then all at once with padding.
            for batch in [1, texts.len()] {
                let found = vectors(&mut session, &texts, batch);
                for (i, (found, expected)) in found.iter().zip(outputs.f32(name).chunks(VOCABULARY)).enumerate() {
                    let what = format!("{name}, {level:?}, batch {batch}, document {i}");
                    assert!(largest_difference(found, expected) <= 1e-5, "{what}");
                    let (found, expected) = (SparseVector::from_dense(found), SparseVector::from_dense(expected));
                    assert!(!expected.is_empty());
                    assert_eq!(found.ids, expected.ids, "{what}");
                }
            }
        }
    }
}

/// Whatever stands at hidden positions, before, between or behind the text, changes nothing; a text of which
/// nothing is shown has no weight.
#[test]
fn hidden_positions_never_win() {
    let model = tiny_bert();
    let folder = tempfile::tempdir().unwrap();
    let graph = folder.path().join("masked.onnx");
    let (config, parameters) = (&model.config, &model.parameters);
    Onnx { config, parameters, zeroed: &[], activation: Activation::Splade }.save(&graph).unwrap();
    let masks = [[1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 0, 9], [0; 8]];
    let row = |seed: i64, mask: &[i64; 8]| -> Vec<i64> {
        // The same where the mask shows, something else where it hides.
        mask.iter()
            .enumerate()
            .map(|(i, &m)| if m == 0 { 5 + (seed + 31 * i as i64) % 200 } else { 7 + 11 * i as i64 })
            .collect()
    };
    for level in LEVELS {
        let mut session = session(&graph, level);
        let rows = |seed: i64| masks.iter().map(|mask| row(seed, mask)).collect::<Vec<_>>();
        let mask: Vec<Vec<i64>> = masks.iter().map(|m| m.to_vec()).collect();
        assert_ne!(rows(1), rows(77));
        let first = run(&mut session, &rows(1), &mask);
        let second = run(&mut session, &rows(77), &mask);
        for (i, (a, b)) in first.iter().zip(&second).enumerate() {
            assert!(largest_difference(a, b) <= 1e-6, "{level:?}, row {i}");
            assert_eq!(a.iter().any(|&w| w > 0.0), i < 3, "{level:?}, row {i}");
        }
        // Hidden at the end is as good as cut off.
        let cut = run(&mut session, &[row(1, &masks[0])[..5].to_vec()], &[vec![1; 5]]);
        assert!(largest_difference(&first[0], &cut[0]) <= 1e-6, "{level:?}");
    }
}

/// A text longer than the network has positions: the graph cuts it, and never reads past its table.
#[test]
fn ids_beyond_the_last_position_are_cut_inside_the_graph() {
    let model = tiny_bert();
    let (config, parameters) = (&model.config, &model.parameters);
    let folder = tempfile::tempdir().unwrap();
    let graph = folder.path().join("long.onnx");
    Onnx { config, parameters, zeroed: &[], activation: Activation::Splade }.save(&graph).unwrap();
    let positions = config.max_position_embeddings;
    let long: Vec<TokenId> = (0..positions as TokenId * 3).map(|i| 5 + i * 7 % 200).collect();
    let texts = [long.clone(), long[..positions].to_vec()];
    for level in LEVELS {
        let found = vectors(&mut session(&graph, level), &texts, 1);
        assert!(found[0].iter().any(|&w| w > 0.0));
        assert!(largest_difference(&found[0], &found[1]) <= 1e-6);
    }
}

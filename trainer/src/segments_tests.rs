#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "a test may panic; maxima are copies")]
use nsparse_core::model_dir::Activation;
use nsparse_encoder::{BertConfig, BertMlm, Device, Dropout, Parameters};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::network::Network;

/// Documents with so many windows of two pieces each.
fn store(windows: &[usize]) -> Documents {
    let mut documents = Documents::default();
    for (n, &count) in windows.iter().enumerate() {
        let windows: Vec<Vec<TokenId>> = (0..count as u32).map(|w| vec![0, 2 + (w + n as u32) % 5, 1]).collect();
        documents.push_windows(format!("d{n}"), &windows, count);
    }
    documents
}

#[test]
fn parts_keep_both_bounds() {
    let documents = store(&[1, 3, 2, 1, 6, 1]);
    let all = [0, 1, 2, 3, 4, 5];
    assert_eq!(parts(&documents, &all, 0, 0), [&all[..]]);
    assert_eq!(parts(&documents, &all, 4, 0), [&all[..4], &all[4..]]);
    assert_eq!(parts(&documents, &all, 0, 4), [&all[..2], &all[2..4], &all[4..5], &all[5..]]);
    assert_eq!(parts(&documents, &all, 1, 4).len(), 6);
    assert!(parts(&documents, &[], 0, 4).is_empty());
}

#[test]
fn keys_tell_documents_and_windows_apart() {
    let batch = WindowBatch::new(&store(&[1, 3, 2]), &[2, 0, 1]);
    assert_eq!(batch.first, [0, 2, 3, 6]);
    assert!(!batch.is_plain());
    assert_eq!(batch.tokens.document_keys[2..4], [0, 1]);
    let mut keys = batch.tokens.document_keys.clone();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 6);
    assert!(WindowBatch::new(&store(&[1, 3, 2]), &[0]).is_plain());
}

#[test]
fn own_tokens_below_zero_take_their_holders_maximum() {
    let mut documents = Documents::default();
    documents.push_windows("d".to_owned(), &[[0, 2, 1], [0, 3, 1]], 2);
    let batch = WindowBatch::new(&documents, &[0]);
    // Token 2 stands in the first window alone, where it is exact; the second's number is a bound and may be larger.
    let merged = batch.merge(&[9.0, 9.0, -4.0, -1.0, 0.5, 9.0, 9.0, -1.0, -3.0, 2.0], 5, false);
    assert_eq!(merged.pooled, [9.0, 9.0, -4.0, -3.0, 2.0]);
    assert_eq!(merged.windows, [0, 0, 0, 1, 1]);
    let exact = batch.merge(&[9.0, 9.0, -4.0, -1.0, 0.5, 9.0, 9.0, -1.0, -3.0, 2.0], 5, true);
    assert_eq!(exact.pooled, [9.0, 9.0, -1.0, -1.0, 2.0]);
    let nan = batch.merge(&[9.0, 9.0, -4.0, -1.0, f32::NAN, 9.0, 9.0, -1.0, f32::NAN, 2.0], 5, false);
    assert!(nan.pooled[4].is_nan() && nan.pooled[3].is_nan());
}

proptest! {
    /// Against a plain loop, with random windows.
    #[test]
    fn merges_and_scatters_as_a_plain_loop_would(
        windows in proptest::collection::vec(1usize..5, 1..6), seed in any::<u64>(), is_exact in any::<bool>(),
    ) {
        let documents = store(&windows);
        let numbers: Vec<usize> = (0..windows.len()).collect();
        let batch = WindowBatch::new(&documents, &numbers);
        let (vocab, mut state) = (8, seed);
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 60) as f32 - 6.0) / 2.0
        };
        let pooled: Vec<f32> = (0..batch.tokens.documents() * vocab).map(|_| next()).collect();
        let merged = batch.merge(&pooled, vocab, is_exact);
        let slopes: Vec<f32> = merged.pooled.iter().map(|_| next()).collect();
        let back = batch.scatter(&slopes, &merged.windows, vocab);
        prop_assert_eq!(back.len(), pooled.len());
        let mut kept = 0.0;
        for (n, pair) in batch.first.windows(2).enumerate() {
            for j in 0..vocab {
                let column: Vec<f32> = (pair[0]..pair[1]).map(|w| pooled[w * vocab + j]).collect();
                let slow = column.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let (found, winner) = (merged.pooled[n * vocab + j], merged.windows[n * vocab + j] as usize);
                prop_assert_eq!(found, pooled[winner * vocab + j]);
                let first = column.iter().position(|&v| v == slow).unwrap() + pair[0];
                if slow > 0.0 || is_exact {
                    prop_assert_eq!((found, winner), (slow, first));
                } else {
                    prop_assert!(found <= 0.0 && (pair[0]..pair[1]).contains(&winner));
                }
                kept += back[winner * vocab + j];
            }
        }
        // Nothing went anywhere else.
        prop_assert_eq!(kept, slopes.iter().sum::<f32>());
        prop_assert_eq!(back.iter().filter(|g| **g != 0.0).count(), slopes.iter().filter(|g| **g != 0.0).count());
    }
}

const VOCAB: usize = 30;

fn model() -> BertMlm {
    let config: BertConfig = serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 24, "hidden_act": "gelu",
        "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.3
    }))
    .unwrap();
    BertMlm::random(config, 5)
}

fn network(model: &BertMlm, device: Device, checkpointing: bool) -> Network {
    let mut backend = nsparse_encoder::create(&model.config, device).unwrap();
    backend.checkpoint_activations(checkpointing).unwrap();
    Network::with_backend(backend, VOCAB, Activation::Splade, &[0, 1], VOCAB)
}

/// Documents of one to four random windows; and each window as a document of its own.
fn long_and_alone(seed: u64) -> (Documents, Documents) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut long, mut alone) = (Documents::default(), Documents::default());
    for count in [1, 3, 2, 4] {
        let windows: Vec<Vec<TokenId>> = (0..count)
            .map(|_| {
                let inner: Vec<TokenId> =
                    (0..rng.random_range(1..6)).map(|_| rng.random_range(2..VOCAB as u32)).collect();
                [&[0], inner.as_slice(), &[1]].concat()
            })
            .collect();
        long.push_windows(String::new(), &windows, 20);
        for window in &windows {
            alone.push(String::new(), window, 20);
        }
    }
    (long, alone)
}

/// Slopes of every weight, some of them 0.
fn slopes(len: usize) -> Vec<f32> {
    (0..len).map(|i| if i % 3 == 0 { 0.0 } else { (i as f32 * 0.7).sin() }).collect()
}

/// The maximum and its gradient against each window run alone: the plain single-window path, which golden values hold.
#[test]
fn maxima_and_gradients_are_those_of_the_windows_alone() {
    let model = model();
    for (device, seed) in [(Device::Cpu, 1), (Device::CpuReference, 2), (Device::Cpu, 3)] {
        let network = network(&model, device, false);
        let (long, alone) = long_and_alone(seed);
        let (numbers, windows) = ([0, 1, 2, 3], (0..10).collect::<Vec<usize>>());
        let merged = network.encode(&model.parameters, &long, &numbers, None, true).unwrap();
        let single = network.encode(&model.parameters, &alone, &windows, None, true).unwrap();

        let first = [0, 1, 4, 6, 10];
        let wanted = slopes(4 * VOCAB);
        let mut of_windows = vec![0.0; 10 * VOCAB];
        let mut contested = 0;
        for (n, pair) in first.windows(2).enumerate() {
            for j in 0..VOCAB {
                let weight = |w: usize| single.weights[w * VOCAB + j];
                let best = (pair[0]..pair[1]).rev().max_by(|&a, &b| weight(a).total_cmp(&weight(b))).unwrap();
                assert!((merged.weights[n * VOCAB + j] - weight(best)).abs() < 1e-5);
                of_windows[best * VOCAB + j] = wanted[n * VOCAB + j];
                contested += usize::from(best > pair[0] && weight(best) > 0.0);
            }
        }
        assert!(contested > 20, "later windows win too: {contested}");
        let mut gradient = vec![0.0; model.parameters.len()];
        network.backward(&model.parameters, merged, wanted, None, &mut gradient).unwrap();
        let mut expected = vec![0.0; model.parameters.len()];
        network.backward(&model.parameters, single, of_windows, None, &mut expected).unwrap();
        assert_close(&gradient, &expected);
    }
}

fn assert_close(found: &[f32], expected: &[f32]) {
    let largest = expected.iter().fold(0.0f32, |m, g| m.max(g.abs()));
    assert!(largest > 0.0);
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-5 * largest, "{a} and {b}, largest {largest}");
    }
}

/// The gradient against finite differences of the loss, along random directions, where no maximum changes hands.
#[test]
fn the_gradient_is_the_slope_of_the_loss() {
    let model = model();
    let network = network(&model, Device::CpuReference, false);
    let (long, _) = long_and_alone(4);
    let numbers = [3, 1];
    let wanted = slopes(2 * VOCAB);
    let loss = |parameters: &Parameters| -> f64 {
        let weights = network.encode(parameters, &long, &numbers, None, false).unwrap().weights;
        weights.iter().zip(&wanted).map(|(w, s)| f64::from(*w) * f64::from(*s)).sum()
    };
    let encoded = network.encode(&model.parameters, &long, &numbers, None, true).unwrap();
    let mut gradient = vec![0.0; model.parameters.len()];
    network.backward(&model.parameters, encoded, wanted.clone(), None, &mut gradient).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    for _ in 0..5 {
        let direction: Vec<f32> = gradient.iter().map(|_| rng.random_range(-1.0f32..1.0)).collect();
        let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum();
        let moved = |by: f32| {
            let mut parameters = model.parameters.clone();
            for (p, d) in parameters.data_mut().iter_mut().zip(&direction) {
                *p += by * d;
            }
            loss(&parameters)
        };
        let difference = (moved(1e-4) - moved(-1e-4)) / 2e-4;
        assert!((difference - slope).abs() < 0.03 * slope.abs().max(1.0), "{difference} and {slope}");
    }
}

/// Dropout masks follow document and window: in parts, or with activations made again, the same numbers come out.
#[test]
fn parts_and_recomputation_see_the_same_masks() {
    let model = model();
    let (long, _) = long_and_alone(5);
    let dropout = Some(Dropout { hidden: 0.2, attention: 0.2, seed: 7, step: 3 });
    let wanted = slopes(4 * VOCAB);
    let whole = |checkpointing: bool, dropout: Option<Dropout>| {
        let network = network(&model, Device::Cpu, checkpointing);
        let encoded = network.encode(&model.parameters, &long, &[0, 1, 2, 3], dropout, true).unwrap();
        let weights = encoded.weights.clone();
        let mut gradient = vec![0.0; model.parameters.len()];
        network.backward(&model.parameters, encoded, wanted.clone(), None, &mut gradient).unwrap();
        (weights, gradient)
    };
    let (weights, gradient) = whole(false, dropout);
    assert_ne!(weights, whole(false, None).0);
    let (again, gradient_again) = whole(true, dropout);
    assert_eq!(weights, again);
    assert_eq!(gradient, gradient_again);
    let network = network(&model, Device::Cpu, false);
    let mut in_parts = vec![0.0; model.parameters.len()];
    let (mut found, mut start) = (Vec::new(), 0);
    for part in parts(&long, &[0, 1, 2, 3], 0, 4) {
        let encoded = network.encode(&model.parameters, &long, part, dropout, true).unwrap();
        found.extend_from_slice(&encoded.weights);
        let own = wanted[start * VOCAB..(start + part.len()) * VOCAB].to_vec();
        start += part.len();
        network.backward(&model.parameters, encoded, own, None, &mut in_parts).unwrap();
    }
    assert_eq!(start, 4);
    for (a, b) in found.iter().zip(&weights) {
        assert!((a - b).abs() < 1e-5);
    }
    assert_close(&in_parts, &gradient);
}

/// A text of two equal windows has equal logits in both but for dropout: the windows' masks differ.
#[test]
fn windows_of_one_document_have_masks_of_their_own() {
    let model = model();
    let network = network(&model, Device::Cpu, false);
    let mut documents = Documents::default();
    documents.push_windows(String::new(), &[[0, 5, 6, 1], [0, 5, 6, 1]], 4);
    documents.push(String::new(), &[0, 5, 6, 1], 2);
    let dropout = Some(Dropout { hidden: 0.3, attention: 0.3, seed: 1, step: 1 });
    let weights = |number: usize, dropout| {
        network.encode(&model.parameters, &documents, &[number], dropout, false).unwrap().weights
    };
    for (a, b) in weights(0, None).iter().zip(weights(1, None)) {
        assert!((a - b).abs() < 1e-6);
    }
    // With masks of its own the second window wins here and there; document 0's first window has document 0's key.
    let twice = weights(0, dropout);
    let mut one = Documents::default();
    one.push(String::new(), &[0, 5, 6, 1], 2);
    let first = network.encode(&model.parameters, &one, &[0], dropout, false).unwrap().weights;
    assert!(twice.iter().zip(&first).all(|(both, first)| *both >= first - 1e-6));
    assert!(twice.iter().zip(&first).any(|(both, first)| *both > first + 1e-3));
}

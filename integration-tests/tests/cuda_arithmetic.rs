//! The arithmetic of the GPU's path without a GPU: bf16 products, padded blocks, several documents at once in the
//! head, recomputation. candle's CPU multiplies bf16 as a GPU does: operands and result rounded, sums in f32.
//! What only a GPU can show, `cuda.rs` asks.
#![allow(clippy::print_stdout, reason = "the figures that the tests found")]

use nsparse_encoder::{
    Backend, BertConfig, BertMlm, CandleBackend, CpuBackend, Device, Precision, TokenBatch, create_with,
};
use nsparse_integration_tests::agreement::{compare, compare_at_fixed_gradient, golden_losses, loss_and_gradient};
use nsparse_integration_tests::golden::{DROPOUT, documents, tiny_bert};
use nsparse_integration_tests::random_model::Shape;

/// A backend as on a GPU: padding where that is cheaper than 40 tokens, up to three documents at once in the head.
fn backend(config: &BertConfig, precision: Precision) -> CandleBackend {
    let logits = 3 * config.vocab_size * config.max_position_embeddings;
    CandleBackend::cpu(config).with_blocks(40, logits).with_precision(precision)
}

#[test]
fn golden_losses_in_bf16() {
    let config = tiny_bert().config;
    let (single, which) = golden_losses(&backend(&config, Precision::F32));
    assert!(single <= 1e-4, "{which} in f32: {single:.2e}");
    let (half, which) = golden_losses(&backend(&config, Precision::Bf16));
    println!("golden losses in bf16: off by up to {half:.2e} ({which})");
    assert!(half <= 2e-2, "{which}: {half:.2e}");
    assert!(half > 1e-4, "{half:.2e} is f32's deviation: nothing was rounded to bf16");
}

#[test]
fn golden_gradients_in_bf16_point_the_same_way() {
    let model = tiny_bert();
    let batch = TokenBatch::new(&documents());
    let plain = CandleBackend::cpu(&model.config);
    for dropout in [None, Some(DROPOUT)] {
        let apart = compare(&plain, &backend(&model.config, Precision::Bf16), &model, &batch, dropout);
        println!("golden model in bf16, dropout {}: {apart:?}", dropout.is_some());
        assert!(apart.loss <= 2e-2 && apart.cosine.0 >= 0.99, "{apart:?}");
        assert!(apart.gradient.0 > 1e-3, "{apart:?} is f32's deviation: nothing was rounded to bf16");
    }
}

/// MiniLM's shape with random weights, on documents of mixed lengths: against the crate's own kernels in f32.
#[test]
fn a_model_of_six_layers_in_bf16() {
    let config = Shape::minilm().config;
    let model = BertMlm::random(config.clone(), 11);
    let lengths = [64, 3, 40, 17, 61, 9, 30, 2];
    let id = |document: usize, i: usize| ((document * 3001 + i * i * 71 + i * 13) % config.vocab_size) as u32;
    let documents: Vec<Vec<u32>> =
        lengths.iter().enumerate().map(|(d, &len)| (0..len).map(|i| id(d, i)).collect()).collect();
    let batch = TokenBatch::new(&documents);
    let kernels = CpuBackend::new(&config);
    let single = compare_at_fixed_gradient(&kernels, &backend(&config, Precision::F32), &model, &batch, None);
    println!("6 x 384 in f32 blocks: {single:?}");
    assert!(single.loss <= 1e-4 && single.gradient.0 <= 1e-3 && single.other_winners <= 1e-3, "{single:?}");
    let half = compare_at_fixed_gradient(&kernels, &backend(&config, Precision::Bf16), &model, &batch, None);
    println!("6 x 384 in bf16: {half:?}");
    assert!(half.loss <= 2e-2 && half.cosine.0 >= 0.99 && half.other_winners <= 0.1, "{half:?}");
}

/// The backward that computes each stage again gives the same bits as the one that kept everything.
#[test]
fn recomputed_stages_give_the_same_bits() {
    let model = tiny_bert();
    let batch = TokenBatch::new(&documents());
    for precision in [Precision::F32, Precision::Bf16] {
        for dropout in [None, Some(DROPOUT)] {
            let mut backend = backend(&model.config, precision);
            let (kept, expected) = loss_and_gradient(&backend, &model, &batch, dropout);
            backend.checkpoint_activations(true).expect("it can");
            let (computed, got) = loss_and_gradient(&backend, &model, &batch, dropout);
            assert_eq!(kept.to_bits(), computed.to_bits());
            assert!(expected.iter().zip(&got).all(|(x, y)| x.to_bits() == y.to_bits()), "{precision}, {dropout:?}");
        }
    }
}

#[test]
fn the_device_says_which_precision() {
    let config = tiny_bert().config;
    assert_eq!(Device::Cpu.default_precision(), Precision::F32);
    assert_eq!(Device::CpuReference.default_precision(), Precision::F32);
    assert_eq!(Device::Cuda(0).default_precision(), Precision::Bf16);
    let error = create_with(&config, Device::Cpu, Precision::Bf16).err().expect("the CPU's kernels are f32");
    assert!(error.to_string().contains("bf16") && error.hint().is_some(), "{error}");
    let reference = create_with(&config, Device::CpuReference, Precision::Bf16).expect("the reference imitates bf16");
    assert!(golden_losses(reference.as_ref()).0 > 1e-4, "bf16 was asked for");
}

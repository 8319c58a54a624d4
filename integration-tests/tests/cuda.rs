//! On an NVIDIA GPU: it agrees with the CPU, in f32 with TF32 off and in bf16. `make test-cuda` runs it; without a GPU
//! every test fails. Its arithmetic alone is tested without one in `cuda_arithmetic.rs`.
#![cfg(feature = "cuda")]
#![allow(clippy::print_stdout, reason = "the figures that the tests found")]

use nsparse_encoder::{Backend, BertConfig, BertMlm, CpuBackend, Device, Dropout, Precision, TokenBatch, create_with};
use nsparse_integration_tests::agreement::{compare, compare_at_fixed_gradient, golden_losses, loss_and_gradient};
use nsparse_integration_tests::golden::{self, DROPOUT, documents, tiny_bert};
use nsparse_integration_tests::random_model::Shape;

fn gpu(config: &BertConfig, precision: Precision) -> Box<dyn Backend> {
    create_with(config, Device::Cuda(0), precision).expect("GPU 0 can be used")
}

#[test]
fn golden_values_in_f32() {
    let config = tiny_bert().config;
    let gpu = gpu(&config, Precision::F32);
    println!("golden forward: {:.2} of its tolerance", golden::check_forward(gpu.as_ref()));
    println!("golden gradients: {:.2} of their tolerance", golden::check_gradients(gpu.as_ref()));
    let (loss, which) = golden_losses(gpu.as_ref());
    println!("golden losses in f32: off by up to {loss:.2e} ({which})");
    assert!(loss <= 1e-4, "{which}: {loss:.2e}");
}

#[test]
fn every_parameter_gets_its_gradient_and_dropout_follows_its_key() {
    let gpu = gpu(&tiny_bert().config, Precision::F32);
    golden::check_every_parameter_gets_its_gradient(gpu.as_ref());
    golden::check_dropout(gpu.as_ref());
    golden::check_slope_with_dropout(gpu.as_ref());
}

#[test]
fn golden_losses_in_bf16() {
    let model = tiny_bert();
    let gpu = gpu(&model.config, Precision::Bf16);
    let (loss, which) = golden_losses(gpu.as_ref());
    println!("golden losses in bf16: off by up to {loss:.2e} ({which})");
    assert!(loss <= 2e-2, "{which}: {loss:.2e}");
    assert!(loss > 1e-4, "{loss:.2e} is f32's deviation: nothing was rounded to bf16");
    let batch = TokenBatch::new(&documents());
    let apart = compare(&CpuBackend::new(&model.config), gpu.as_ref(), &model, &batch, None);
    println!("golden model in bf16: {apart:?}");
    assert!(apart.loss <= 2e-2 && apart.cosine.0 >= 0.99, "{apart:?}");
}

/// `MiniLM`'s shape, and 16 documents of mixed lengths up to 128.
fn minilm() -> (BertMlm, TokenBatch) {
    let config = Shape::minilm().config;
    let documents: Vec<Vec<u32>> = (0..16usize)
        .map(|d| {
            let length = if d % 4 == 0 { 128 } else { 1 + (d * 37) % 128 };
            (0..length).map(|i| ((d * 3001 + i * i * 71 + i * 13) % config.vocab_size) as u32).collect()
        })
        .collect();
    (BertMlm::random(config, 11), TokenBatch::new(&documents))
}

fn six_layers(dropout: Option<Dropout>) {
    let (model, batch) = minilm();
    let cpu = CpuBackend::new(&model.config);
    let single = compare_at_fixed_gradient(&cpu, gpu(&model.config, Precision::F32).as_ref(), &model, &batch, dropout);
    println!("6 x 384 in f32, dropout {}: {single:?}", dropout.is_some());
    assert!(single.loss <= 1e-4 && single.gradient.0 <= 1e-3 && single.other_winners <= 1e-3, "{single:?}");
    let half = compare_at_fixed_gradient(&cpu, gpu(&model.config, Precision::Bf16).as_ref(), &model, &batch, dropout);
    println!("6 x 384 in bf16, dropout {}: {half:?}", dropout.is_some());
    assert!(half.loss <= 2e-2 && half.cosine.0 >= 0.99 && half.other_winners <= 0.1, "{half:?}");
}

#[test]
fn six_layers_agree() {
    six_layers(None);
}

#[test]
fn six_layers_agree_with_dropout() {
    six_layers(Some(DROPOUT));
}

#[test]
fn steps_follow_the_parameters() {
    let (mut model, batch) = minilm();
    let gpu = gpu(&model.config, Precision::Bf16);
    let cpu = CpuBackend::new(&model.config);
    for step in 0..3 {
        let (on_gpu, gradient) = loss_and_gradient(gpu.as_ref(), &model, &batch, None);
        let (on_cpu, _) = loss_and_gradient(&cpu, &model, &batch, None);
        println!("step {step}: {on_gpu} on the GPU, {on_cpu} on the CPU");
        assert!((on_gpu - on_cpu).abs() <= 2e-2 * on_cpu.abs().max(1.0), "step {step}: {on_gpu} and {on_cpu}");
        model.parameters.data_mut().iter_mut().zip(&gradient).for_each(|(p, g)| *p -= 1e-2 * g);
    }
}

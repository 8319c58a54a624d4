//! The network piece by piece through its public interface: products, attention, head. `cargo bench --bench network`.

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use nsparse_encoder::work::{self, Work};
use nsparse_encoder::{Backend, BertConfig, BertMlm, CpuBackend, TokenBatch};

/// A network with the parts that are asked for; the others are as small as they can be.
fn config(layers: usize, wide: usize, vocabulary: usize) -> BertConfig {
    serde_json::from_value(serde_json::json!({
        "model_type": "bert", "vocab_size": vocabulary, "hidden_size": 384, "num_hidden_layers": layers,
        "num_attention_heads": 12, "intermediate_size": wide, "hidden_act": "gelu", "max_position_embeddings": 512,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12
    }))
    .expect("every key of a config is there")
}

fn batch(documents: usize, tokens: usize, vocabulary: usize) -> TokenBatch {
    let ids: Vec<Vec<u32>> =
        (0..documents).map(|d| (0..tokens).map(|i| ((d * 7919 + i * 104_729) % vocabulary) as u32).collect()).collect();
    TokenBatch::new(&ids)
}

/// One product of each kind that a training step of 6 layers × 384 has.
fn products(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("product");
    let lengths = [128; 16];
    let shape = config(6, 1536, 30_522);
    for Work { part, pass, product, .. } in
        work::forward(&shape, &lengths).into_iter().chain(work::backward(&shape, &lengths))
    {
        let name = format!("{part}, {pass}, {}x{}x{}", product.m, product.k, product.n);
        group.throughput(Throughput::Elements(product.flops() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|times| {
                let budget = Duration::from_millis(20);
                Duration::from_secs_f64(work::measure_product(&product, budget) * times as f64)
            });
        });
    }
    group.finish();
}

/// Forward, and forward with backward, over a batch; every `every`-th entry gets a gradient.
fn network(criterion: &mut Criterion, name: &str, shape: &BertConfig, sizes: &[(usize, usize)], every: &[usize]) {
    let mut group = criterion.benchmark_group(name);
    let model = BertMlm::random(shape.clone(), 1);
    let backend = CpuBackend::new(shape);
    let mut gradient = vec![0.0f32; model.parameters.len()];
    for &(documents, tokens) in sizes {
        let batch = batch(documents, tokens, shape.vocab_size);
        let size = format!("{documents}x{tokens}");
        group.throughput(Throughput::Elements((documents * tokens) as u64));
        group.bench_function(BenchmarkId::new("forward", &size), |bencher| {
            bencher.iter(|| backend.forward(&model.parameters, &batch, None, false).expect("the forward succeeds"));
        });
        for every in every {
            let upstream: Vec<f32> =
                (0..documents * shape.vocab_size).map(|i| if i % every == 0 { 1e-3 } else { 0.0 }).collect();
            let id = BenchmarkId::new(format!("forward and backward, 1 of {every} entries"), &size);
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    let forward = backend.forward(&model.parameters, &batch, None, true).expect("the forward succeeds");
                    backend
                        .backward(&model.parameters, &batch, forward, &upstream, &mut gradient)
                        .expect("the backward succeeds");
                });
            });
        }
    }
    group.finish();
}

/// One layer with a narrow feed-forward part and a small vocabulary: attention and its four linear layers.
fn attention(criterion: &mut Criterion) {
    network(criterion, "attention", &config(1, 8, 64), &[(16, 128), (4, 512)], &[1]);
}

/// No layer: embeddings, the head's transform, and the vocabulary; sparse and dense gradients.
fn head(criterion: &mut Criterion) {
    network(criterion, "head", &config(0, 8, 30_522), &[(16, 128)], &[200, 1]);
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = products, attention, head
}
criterion_main!(benches);

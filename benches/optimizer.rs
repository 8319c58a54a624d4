//! One pass of `AdamW` with clipping over the parameters of 6 layers × 384. `cargo bench --bench optimizer`.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nsparse_encoder::ParamSpec;
use nsparse_trainer::optimizer::AdamW;
use nsparse_trainer::sections::OptimizerSection;

fn adamw(criterion: &mut Criterion) {
    let len = 22_700_000;
    let specs = [ParamSpec { name: "weight".to_owned(), shape: vec![len], offset: 0 }];
    let mut optimizer = AdamW::new(&specs, &OptimizerSection::default(), |_| 2e-5);
    let mut parameters = vec![0.02f32; len];
    let gradient: Vec<f32> = (0..len).map(|i| (i % 97) as f32 * 1e-5 - 5e-4).collect();
    let mut group = criterion.benchmark_group("AdamW");
    group.throughput(Throughput::Elements(len as u64));
    group.bench_function("22.7 M parameters", |bencher| {
        bencher.iter(|| optimizer.step(&mut parameters, &gradient, 1.0));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = adamw
}
criterion_main!(benches);

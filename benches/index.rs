//! The embedded index over random vectors: building it, and searching in it. `cargo bench --bench index`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use nsparse_core::{SearchQuery, Searcher as _, SparseVector};
use nsparse_retrieval::InvertedIndex;
use nsparse_trainer::synthetic::vectors;

const DOCUMENTS: usize = 20_000;

fn index(criterion: &mut Criterion) {
    let documents: Vec<(String, SparseVector)> =
        vectors(DOCUMENTS, 150, 30_522, 1).enumerate().map(|(n, vector)| (n.to_string(), vector)).collect();
    let queries: Vec<SearchQuery> = vectors(64, 8, 30_522, 2)
        .enumerate()
        .map(|(n, vector)| SearchQuery { id: n.to_string(), text: String::new(), vector })
        .collect();
    let built = InvertedIndex::build(documents.clone());

    let mut group = criterion.benchmark_group("index of 20,000 documents");
    group.throughput(Throughput::Elements(DOCUMENTS as u64));
    group.bench_function("build", |bencher| {
        bencher.iter_batched(|| documents.clone(), InvertedIndex::build, BatchSize::PerIteration);
    });
    group.throughput(Throughput::Elements(queries.len() as u64));
    for depth in [10, 1000] {
        group.bench_function(format!("search 64 queries, depth {depth}"), |bencher| {
            bencher.iter(|| built.search(&queries, depth).expect("the index answers"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = index
}
criterion_main!(benches);

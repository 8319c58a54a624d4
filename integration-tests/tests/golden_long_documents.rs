//! Documents of several windows, with a late cache, against PyTorch: vectors, the loss, every parameter's gradient.

use nsparse_core::SparseVector;
use nsparse_core::model_dir::Activation;
use nsparse_encoder::{Device, create};
use nsparse_integration_tests::golden::{
    GoldenFile, VOCABULARY, documents, max_abs, max_difference, path, special_ids, tiny_bert,
};
use nsparse_trainer::batches::{Batch, BatchQuery};
use nsparse_trainer::data::{Documents, TrainingQuery};
use nsparse_trainer::late_cache::LateCache;
use nsparse_trainer::network::Network;
use nsparse_trainer::objective::{Objective, Pressure};
use nsparse_trainer::regularisers::LexicalTerm;
use nsparse_trainer::sections::{FlopsSection, InfoNceSection, LossSection, WarmStartSection};
use nsparse_trainer::warm_start::LexicalTargets;

fn queries() -> Vec<TrainingQuery> {
    let inputs = GoldenFile::read("inputs.safetensors");
    let idf = inputs.f32("idf");
    let rows = inputs.f32("q_multihot").chunks_exact(VOCABULARY);
    // Documents 3 and 4 are the cached ones.
    rows.zip([vec![0, 4], vec![1], vec![3]])
        .map(|(row, positives)| TrainingQuery {
            id: String::new(),
            text: String::new(),
            vector: SparseVector::from_dense(&row.iter().zip(idf).map(|(m, w)| m * w.max(0.0)).collect::<Vec<_>>()),
            positives,
            grades: [].into(),
        })
        .collect()
}

fn row(query: usize, positive: usize) -> BatchQuery {
    BatchQuery { query, positive: Some(positive), others: Vec::new(), scores: Vec::new(), known: vec![positive] }
}

#[test]
fn windows_and_late_cache_match_in_value_and_gradient() {
    let model = tiny_bert();
    let windows = documents();
    let mut store = Documents::default();
    for rows in [&windows[..2], &windows[2..3], &windows[3..]] {
        store.push_windows(String::new(), rows, 100);
    }
    let golden = GoldenFile::read("long/grad.safetensors");
    let file = std::fs::read_to_string(path("long/late_cache.json")).expect("the golden file is there");
    let expected: serde_json::Value = serde_json::from_str(&file).expect("it is JSON");
    let cached: Vec<f32> = (0..2 * VOCABULARY)
        .map(|i| expected["cached"][i / VOCABULARY][(i % VOCABULARY).to_string()].as_f64().unwrap_or(0.0) as f32)
        .collect();
    let queries = queries();
    for device in [Device::Cpu, Device::CpuReference] {
        let backend = create(&model.config, device).expect("a backend");
        let network = Network::with_backend(backend, VOCABULARY, Activation::Splade, &special_ids(), VOCABULARY);
        let encoded = network.encode(&model.parameters, &store, &[0, 1, 2], None, true).expect("a forward");
        let difference = max_difference(&encoded.weights, golden.f32("rep.docs"));
        assert!(difference <= 1e-5, "vectors deviate by {difference:e}");

        let mut late = LateCache::new(5);
        late.push(&Batch { queries: vec![row(2, 0)], documents: vec![3, 4] }, &cached, VOCABULARY);
        let temperature = expected["temperature"].as_f64().expect("a number");
        let losses = LossSection {
            infonce: InfoNceSection { temperature, ..InfoNceSection::default() },
            flops: FlopsSection { weight: Some(0.0), ..FlopsSection::default() },
            ..LossSection::default()
        };
        let objective = Objective {
            losses: &losses,
            queries: &queries,
            targets: LexicalTargets::new(&store, &WarmStartSection::default(), &network.zeroed),
            lexical: LexicalTerm { other_weight: 0.0, slope_below_zero: 0.0 },
            late: Some(late),
        };
        let batch = Batch { queries: vec![row(0, 0), row(1, 1)], documents: vec![0, 1, 2] };
        let slopes = objective.evaluate(&batch, &encoded.weights, VOCABULARY, Pressure::default(), 1.0);
        let value = expected["value"].as_f64().expect("a number");
        assert!((slopes.outcome.loss - value).abs() <= 1e-5 * value, "{} for {value}", slopes.outcome.loss);

        let mut gradient = vec![0.0; model.parameters.len()];
        network.backward(&model.parameters, encoded, slopes.weights, None, &mut gradient).expect("a backward");
        let specs = model.parameters.specs();
        let largest = specs.iter().map(|s| max_abs(golden.f32(&s.name))).fold(0.0, f64::max);
        assert!(largest > 0.0);
        for spec in specs {
            let want = golden.f32(&spec.name);
            let difference = max_difference(&gradient[spec.offset..spec.offset + spec.len()], want);
            let tolerance = 3e-5 * max_abs(want) + 1e-6 * largest;
            assert!(difference <= tolerance, "{}: {difference:e}, tolerance {tolerance:e}", spec.name);
        }
    }
}

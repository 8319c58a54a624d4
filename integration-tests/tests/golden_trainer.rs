//! Losses, penalties and the optimizer against PyTorch's golden values, gradients and six steps.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use nsparse_core::model_dir::Activation;
use nsparse_encoder::{Backend, CandleBackend, TokenBatch};
use nsparse_integration_tests::golden::{self, GoldenFile, VOCABULARY, documents, special_ids, tiny_bert};
use nsparse_integration_tests::golden_losses::{QUERIES, SLOTS, Term, candidates, queries, query_sum, sum, value};
use nsparse_trainer::batches::{Batch, BatchQuery};
use nsparse_trainer::losses::Scores;
use nsparse_trainer::optimizer::{AdamW, quadratic_ramp, rate_factor};
use nsparse_trainer::query_side::Table;
use nsparse_trainer::regularisers::anti_zero;
use nsparse_trainer::sections::{Candidates, Decay, OptimizerSection, TableStart};

fn check(name: &str, term: &Term, docs: &[f32]) {
    let (got, at_docs, at_queries) = term;
    let expected = value(name);
    assert!((got - expected).abs() <= 1e-5 * expected.abs(), "{name}: {got}, expected {expected}");
    let file = GoldenFile::read(&format!("losses/grad_{name}.safetensors"));
    let share = if name == "infonce_inbatch_t0.05" { 1e-4 } else { 3e-5 };
    let compare = |what: &str, got: &[f32], want: &[f32], counts: &dyn Fn(usize) -> bool| {
        let most = golden::max_abs(want);
        let mut compared = 0;
        for (i, (g, w)) in got.iter().zip(want).enumerate().filter(|(i, _)| counts(*i)) {
            let difference = (f64::from(*g) - f64::from(*w)).abs();
            assert!(difference <= share * most, "{name}, {what} {i}: {g}, expected {w}");
            compared += 1;
        }
        assert!(compared > 50, "{name}, {what}: only {compared} entries are compared");
    };
    compare("rep.docs", at_docs, file.f32("rep.docs"), &|i| docs[i] > 0.0);
    if let Some(at_queries) = at_queries {
        compare("rep.queries", at_queries, file.f32("rep.queries"), &|_| true);
    }
}

const RANKING: [&str; 8] = [
    "infonce_hardneg",
    "infonce_inbatch_t1",
    "infonce_inbatch_t0.05",
    "kl_t1",
    "kl_t2",
    "kl_t2_scaled",
    "kl_inbatch_t1",
    "marginmse",
];

#[test]
fn ranking_losses_match_in_value_and_gradient() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let docs = file.f32("rep.docs");
    for name in RANKING {
        check(name, &sum(&[(name, 1.0)], &[], docs), docs);
    }
}

/// The slopes in a free query table's weights, through its relu, equal PyTorch's in `idf`; those of the other network too.
#[test]
fn query_tables_get_their_gradient() {
    let inputs = GoldenFile::read("inputs.safetensors");
    let held = |row: &[f32]| (0..row.len() as u32).filter(|&id| row[id as usize] > 0.0).collect::<Vec<u32>>();
    let tokens: Vec<Vec<u32>> = inputs.f32("q_multihot").chunks_exact(VOCABULARY).map(held).collect();
    let tokens: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
    let mut parameters = Table::Free.extend(&tiny_bert().parameters).unwrap();
    Table::Free.begin(&mut parameters, inputs.f32("idf"), TableStart::Idf, 0).unwrap();
    for (ids, want) in tokens.iter().zip(&queries()) {
        assert_eq!(&Table::Free.vector(&parameters, ids).unwrap(), want);
    }
    let at_idf = |slopes: &[f32]| {
        let mut gradient = vec![0.0; parameters.len()];
        Table::Free.backward(&parameters, &tokens, slopes, &mut gradient).unwrap();
        let spec = parameters.spec("query.idf.weight").unwrap();
        gradient.drain(spec.offset..spec.offset + spec.len()).collect::<Vec<f32>>()
    };
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let distilbert = GoldenFile::read("tiny-distilbert/outputs.safetensors");
    let (docs, raw, other) = (file.f32("rep.docs"), file.f32("rep.docs.l0_raw"), distilbert.f32("sparse.splade"));
    let both = [("infonce_hardneg", 1.0), ("kl_t1", 0.5)];
    check("distilbert_combined", &sum(&both, &[("flops", 0.02)], other), other);
    let mut terms = vec![
        ("combined", sum(&both, &[("flops", 0.02)], docs)),
        ("combined_l0_raw", sum(&both, &[("flops_grouped_l0mask", 0.02)], raw)),
        ("distilbert_combined", sum(&both, &[("flops", 0.02)], other)),
    ];
    for name in RANKING {
        terms.push((name, sum(&[(name, 1.0)], &[], docs)));
    }
    let slope = anti_zero(query_sum(), docs, 0.0, &mut vec![0.0; docs.len()]).query_slope;
    terms.push(("anti_zero", (0.0, Vec::new(), Some(vec![slope as f32; 3 * VOCABULARY]))));
    for (name, (_, _, at_queries)) in terms {
        let got = at_idf(&at_queries.unwrap());
        let golden = GoldenFile::read(&format!("losses/grad_{name}.safetensors"));
        let want = golden.f32("idf");
        let share = if name == "infonce_inbatch_t0.05" { 1e-4 } else { 3e-5 };
        assert!(want.iter().filter(|w| **w != 0.0).count() > 5, "{name}: the golden gradient has no entries");
        let difference = golden::max_difference(&got, want);
        assert!(difference <= share * golden::max_abs(want), "{name}: {difference}");
    }
}

#[test]
fn penalties_match_in_value_and_gradient() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let docs = file.f32("rep.docs");
    for name in ["flops", "flops_grouped", "flops_l0mask", "flops_grouped_l0mask", "l1", "anti_zero"] {
        check(name, &sum(&[], &[(name, 1.0)], docs), docs);
    }
}

/// Anti-zero's slope is the same for every query weight above 0.
#[test]
fn anti_zero_matches_at_the_queries() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let term = anti_zero(query_sum(), file.f32("rep.docs"), 0.0, &mut vec![0.0; file.f32("rep.docs").len()]);
    let golden = GoldenFile::read("losses/grad_anti_zero.safetensors");
    let mut compared = 0;
    for (slope, weight) in golden.f32("rep.queries").iter().zip(file.f32("rep.queries")) {
        if *weight > 0.0 {
            assert!((f64::from(*slope) - term.query_slope).abs() <= 3e-5 * term.query_slope.abs(), "{slope}, {term:?}");
            compared += 1;
        }
    }
    assert!(compared > 5, "only {compared} query weights are compared");
}

#[test]
fn sums_of_terms_match() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let losses = [("infonce_hardneg", 1.0), ("kl_t1", 0.5)];
    let docs = file.f32("rep.docs");
    check("combined", &sum(&losses, &[("flops", 0.02)], docs), docs);
    let raw = file.f32("rep.docs.l0_raw");
    check("combined_l0_raw", &sum(&losses, &[("flops_grouped_l0mask", 0.02)], raw), raw);
}

#[test]
fn scores_match() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let queries = queries();
    let scores = Scores::of(&queries.iter().collect::<Vec<_>>(), file.f32("rep.docs"), VOCABULARY);
    let got: Vec<f32> = scores.values.iter().map(|&s| s as f32).collect();
    let want = file.f32("scores_all");
    assert!(golden::max_difference(&got, want) <= 1e-5 * golden::max_abs(want));
}

/// The candidates that a batch makes are those of the golden losses.
#[test]
fn a_batch_makes_the_golden_candidates() {
    let queries = (0..QUERIES)
        .map(|b| BatchQuery {
            query: b,
            positive: Some(b * SLOTS),
            others: vec![b * SLOTS + 1],
            scores: Vec::new(),
            known: vec![b * SLOTS],
        })
        .collect();
    let batch = Batch { queries, documents: (0..QUERIES * SLOTS).collect() };
    for (rule, hard_only) in [(Candidates::HardNegatives, true), (Candidates::Batch, false)] {
        let sets: Vec<_> = (0..QUERIES).map(|b| batch.candidates(b, rule)).collect();
        assert_eq!(sets, candidates(hard_only));
    }
}

/// Six steps of `AdamW` on the tiny BERT with a warmup whose first step has rate 0, a quadratic ramp, clipping and
/// both rules of weight decay.
#[test]
fn six_steps_match() {
    let curves: serde_json::Value = nsparse_core::files::read_json(&golden::path("optimiser/curves.json")).unwrap();
    for (variant, decay_all) in [("all_decay", true), ("no_decay_bias_layernorm", false)] {
        let mut model = tiny_bert();
        let backend = CandleBackend::cpu(&model.config);
        let batch = TokenBatch::new(&documents());
        let special = special_ids();
        let silent = |i: usize| special.contains(&((i % VOCABULARY) as u32));
        let settings = OptimizerSection { decay_all, ..OptimizerSection::default() };
        let mut optimizer = AdamW::new(model.parameters.specs(), &settings, |_| 1e-2);
        for expected in curves["curves"][variant]["steps"].as_array().unwrap() {
            let step = expected["step"].as_u64().unwrap() as usize;
            let number = |key: &str| expected[key].as_f64().unwrap();
            let factor = rate_factor(step, 2, 6, Decay::Linear);
            assert!((1e-2 * factor - number("lr")).abs() < 1e-12);
            let lambda = quadratic_ramp(0.05, step, 4);
            assert!((lambda - number("flops_lambda")).abs() < 1e-12);

            let forward = backend.forward(&model.parameters, &batch, None, true).unwrap();
            let splade = Activation::Splade;
            let docs: Vec<f32> = forward
                .pooled
                .iter()
                .enumerate()
                .map(|(i, &v)| if silent(i) { 0.0 } else { splade.apply(v) })
                .collect();
            let (loss, at_docs, _) = sum(&[("infonce_hardneg", 1.0), ("kl_t1", 0.5)], &[("flops", lambda)], &docs);
            let close = |what: &str, got: f64, want: f64| {
                assert!(
                    (got - want).abs() <= 2e-5 * want.abs().max(1.0),
                    "{variant}, step {step}, {what}: {got}, {want}"
                );
            };
            close("loss", loss, number("loss"));
            let at_pooled: Vec<f32> = at_docs
                .iter()
                .zip(&forward.pooled)
                .enumerate()
                .map(|(i, (g, &v))| if silent(i) { 0.0 } else { g * splade.derivative(v) })
                .collect();
            let mut gradient = vec![0.0; model.parameters.len()];
            backend.backward(&model.parameters, &batch, forward, &at_pooled, &mut gradient).unwrap();
            let norm = optimizer.step(model.parameters.data_mut(), &gradient, factor);
            close("gradient norm", norm, number("grad_norm_before_clip"));
        }
        let last = GoldenFile::read(&format!("optimiser/final_{variant}.safetensors"));
        for spec in model.parameters.specs() {
            let difference = golden::max_difference(model.parameters.get(&spec.name).unwrap(), last.f32(&spec.name));
            // Adam divides the key bias's gradient, which is noise around 0, by its own size.
            let most = if spec.name.ends_with("attention.self.key.bias") { 0.03 } else { 3e-5 };
            assert!(difference <= most, "{variant}, {}: {difference}", spec.name);
        }
    }
}

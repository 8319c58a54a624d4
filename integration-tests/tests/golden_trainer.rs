//! Losses, penalties and the optimizer against PyTorch's golden values, gradients and six steps.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use nsparse_core::SparseVector;
use nsparse_core::model_dir::Activation;
use nsparse_encoder::{Backend, CandleBackend, TokenBatch};
use nsparse_integration_tests::golden::{self, GoldenFile, documents, special_ids, tiny_bert};
use nsparse_trainer::batches::{Batch, BatchQuery};
use nsparse_trainer::losses::{CandidateSet, Loss, Scores, TeacherRow, infonce, kl, margin_mse};
use nsparse_trainer::optimizer::{AdamW, quadratic_ramp, rate_factor};
use nsparse_trainer::regularisers::{flops, flops_grouped, l1};
use nsparse_trainer::sections::{Candidates, Decay, OptimizerSection};

const V: usize = 211;
const QUERIES: usize = 3;
const SLOTS: usize = 2;
/// Documents with at most so many active dimensions are spared by the masked penalties.
const THRESHOLD: usize = 60;

fn values() -> serde_json::Value {
    nsparse_core::files::read_json(&golden::path("losses/values.json")).unwrap()
}

fn queries() -> Vec<SparseVector> {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    file.f32("rep.queries").chunks_exact(V).map(SparseVector::from_dense).collect()
}

/// Query b's positive is document 2b, its hard negative 2b + 1; the teacher's scores are `[3, columns]`.
fn teacher(name: &str, columns: usize) -> Vec<Option<TeacherRow>> {
    let file = GoldenFile::read("losses/inputs.safetensors");
    let rows = file.f32(name).chunks_exact(columns).enumerate();
    rows.map(|(b, row)| {
        let first = if columns == SLOTS { b * SLOTS } else { 0 };
        Some(TeacherRow {
            columns: (first..first + columns).collect(),
            scores: row.iter().map(|&s| f64::from(s)).collect(),
        })
    })
    .collect()
}

fn candidates(hard_only: bool) -> Vec<Option<CandidateSet>> {
    (0..QUERIES)
        .map(|b| {
            let target = b * SLOTS;
            let columns = (0..QUERIES * SLOTS).filter(|&d| !hard_only || d == target || d % SLOTS == 1).collect();
            Some(CandidateSet { target, columns })
        })
        .collect()
}

/// Value, gradient at the documents, gradient at the queries (`None`: the term ignores them).
type Term = (f64, Vec<f32>, Option<Vec<f32>>);

fn ranking(name: &str, scores: &Scores) -> Loss {
    match name {
        "infonce_hardneg" => infonce(scores, &candidates(true), 1.0),
        "infonce_inbatch_t1" => infonce(scores, &candidates(false), 1.0),
        "infonce_inbatch_t0.05" => infonce(scores, &candidates(false), 0.05),
        "kl_t1" => kl(scores, &teacher("teacher_own", SLOTS), 1.0, true),
        "kl_t2" => kl(scores, &teacher("teacher_own", SLOTS), 2.0, false),
        "kl_t2_scaled" => kl(scores, &teacher("teacher_own", SLOTS), 2.0, true),
        "kl_inbatch_t1" => kl(scores, &teacher("teacher_all", 6), 1.0, false),
        "marginmse" => margin_mse(scores, &teacher("teacher_own", SLOTS)),
        other => panic!("no ranking loss {other}"),
    }
}

fn penalty(name: &str, docs: &[f32], weight: f64, gradient: &mut [f32]) -> f64 {
    match name {
        "flops" => flops(docs, V, 0, weight, gradient),
        "flops_l0mask" => flops(docs, V, THRESHOLD, weight, gradient),
        "flops_grouped" => flops_grouped(docs, V, SLOTS, 0, weight, gradient),
        "flops_grouped_l0mask" => flops_grouped(docs, V, SLOTS, THRESHOLD, weight, gradient),
        "l1" => l1(docs, V, weight, gradient),
        other => panic!("no penalty {other}"),
    }
}

/// A weighted sum of ranking losses and penalties on document vectors.
fn sum(losses: &[(&str, f64)], penalties: &[(&str, f64)], docs: &[f32]) -> Term {
    let queries = queries();
    let queries: Vec<&SparseVector> = queries.iter().collect();
    let scores = Scores::of(&queries, docs, V);
    let mut value = 0.0;
    let mut by_score = Scores::zeros(scores.queries, scores.documents);
    let mut gradient = vec![0.0; docs.len()];
    for &(name, weight) in losses {
        let loss = ranking(name, &scores);
        value += weight * loss.value;
        by_score.add_scaled(&loss.gradient, weight);
    }
    by_score.backward_documents(&queries, &mut gradient, V);
    for &(name, weight) in penalties {
        value += weight * penalty(name, docs, weight, &mut gradient);
    }
    let by_query = (!losses.is_empty()).then(|| by_score.backward_queries(docs, V));
    (value, gradient, by_query)
}

fn check(name: &str, term: &Term, docs: &[f32]) {
    let (value, at_docs, at_queries) = term;
    let expected = values()["losses"][name]["value"].as_f64().unwrap();
    assert!((value - expected).abs() <= 1e-5 * expected.abs(), "{name}: {value}, expected {expected}");
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

#[test]
fn ranking_losses_match_in_value_and_gradient() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let docs = file.f32("rep.docs");
    for name in [
        "infonce_hardneg",
        "infonce_inbatch_t1",
        "infonce_inbatch_t0.05",
        "kl_t1",
        "kl_t2",
        "kl_t2_scaled",
        "kl_inbatch_t1",
        "marginmse",
    ] {
        check(name, &sum(&[(name, 1.0)], &[], docs), docs);
    }
}

#[test]
fn penalties_match_in_value_and_gradient() {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    let docs = file.f32("rep.docs");
    for name in ["flops", "flops_grouped", "flops_l0mask", "flops_grouped_l0mask", "l1"] {
        check(name, &sum(&[], &[(name, 1.0)], docs), docs);
    }
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
    let scores = Scores::of(&queries.iter().collect::<Vec<_>>(), file.f32("rep.docs"), V);
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
        let silent = |i: usize| special.contains(&((i % V) as u32));
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

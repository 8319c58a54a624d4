//! The golden losses: the trainer's own terms on the golden queries, candidates and teachers.

use nsparse_core::SparseVector;
use nsparse_trainer::losses::{CandidateSet, Loss, Scores, TeacherRow, infonce, kl, margin_mse};
use nsparse_trainer::regularisers::{anti_zero, flops, flops_grouped, l1};

use crate::golden::{self, GoldenFile, VOCABULARY};

/// Queries of the golden batch.
pub const QUERIES: usize = 3;
/// Documents of a query: its positive and its hard negative.
pub const SLOTS: usize = 2;
/// Documents with at most so many active dimensions are spared by the masked penalties.
const THRESHOLD: usize = 60;

/// The value of a golden loss.
pub fn value(name: &str) -> f64 {
    let values: serde_json::Value =
        nsparse_core::files::read_json(&golden::path("losses/values.json")).expect("the golden values are JSON");
    values["losses"][name]["value"].as_f64().unwrap_or_else(|| panic!("no golden value of {name}"))
}

/// The golden query vectors.
pub fn queries() -> Vec<SparseVector> {
    let file = GoldenFile::read("losses/intermediates.safetensors");
    file.f32("rep.queries").chunks_exact(VOCABULARY).map(SparseVector::from_dense).collect()
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

/// Each query's positive and its candidates: the whole batch, or the positive and all hard negatives.
pub fn candidates(hard_only: bool) -> Vec<Option<CandidateSet>> {
    (0..QUERIES)
        .map(|b| {
            let target = b * SLOTS;
            let columns = (0..QUERIES * SLOTS).filter(|&d| !hard_only || d == target || d % SLOTS == 1).collect();
            Some(CandidateSet { target, columns })
        })
        .collect()
}

/// Value, gradient at the documents, gradient at the queries (`None`: the term ignores them).
pub type Term = (f64, Vec<f32>, Option<Vec<f32>>);

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

/// The sum of all query weights.
pub fn query_sum() -> f64 {
    GoldenFile::read("losses/intermediates.safetensors").f32("rep.queries").iter().map(|&w| f64::from(w)).sum()
}

fn penalty(name: &str, docs: &[f32], weight: f64, gradient: &mut [f32]) -> f64 {
    match name {
        "flops" => flops(docs, VOCABULARY, 0, weight, gradient),
        "flops_l0mask" => flops(docs, VOCABULARY, THRESHOLD, weight, gradient),
        "flops_grouped" => flops_grouped(docs, VOCABULARY, SLOTS, 0, weight, gradient),
        "flops_grouped_l0mask" => flops_grouped(docs, VOCABULARY, SLOTS, THRESHOLD, weight, gradient),
        "l1" => l1(docs, VOCABULARY, weight, gradient),
        "anti_zero" => anti_zero(query_sum(), docs, weight, gradient).value,
        other => panic!("no penalty {other}"),
    }
}

/// A weighted sum of ranking losses and penalties on document vectors.
pub fn sum(losses: &[(&str, f64)], penalties: &[(&str, f64)], docs: &[f32]) -> Term {
    let queries = queries();
    let queries: Vec<&SparseVector> = queries.iter().collect();
    let scores = Scores::of(&queries, docs, VOCABULARY);
    let mut value = 0.0;
    let mut by_score = Scores::zeros(scores.queries, scores.documents);
    let mut gradient = vec![0.0; docs.len()];
    for &(name, weight) in losses {
        let loss = ranking(name, &scores);
        value += weight * loss.value;
        by_score.add_scaled(&loss.gradient, weight);
    }
    by_score.backward_documents(&queries, &mut gradient, VOCABULARY);
    for &(name, weight) in penalties {
        value += weight * penalty(name, docs, weight, &mut gradient);
    }
    let by_query = (!losses.is_empty()).then(|| by_score.backward_queries(docs, VOCABULARY));
    (value, gradient, by_query)
}

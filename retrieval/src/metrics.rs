//! Retrieval metrics as NIST's `trec_eval` computes them: nDCG, MAP, recall, precision, success and reciprocal
//! rank, checked against `trec_eval`'s own outputs.
//!
//! With `r(i)` the grade of the document at rank i (from 1), R the number of judged documents with a grade of at
//! least the relevance level, and `rel(i)` = 1 where the grade reaches that level, else 0:
//!
//! | key | value | `trec_eval` |
//! |---|---|---|
//! | `ndcg@k` | `Σ_{i≤k} max(r(i), 0) / log2(i + 1)`, over the same sum for the ideal order of all judged | `ndcg_cut_k` |
//! | `map`, `map@k` | `(1/R) Σ rel(i) · P@i`, over all ranks or to rank k | `map`, `map_cut_k` |
//! | `recall@k` | `Σ_{i≤k} rel(i) / R` | `recall_k` |
//! | `p@k` | `Σ_{i≤k} rel(i) / k` | `P_k` |
//! | `success@k` | 1 if any `rel(i)` with i ≤ k is | `success_k` |
//! | `mrr`, `mrr@k` | 1 / rank of the first relevant document, 0 if none (within k) | `recip_rank` |
//!
//! Documents are ranked by score (`f32`) descending, then by id descending byte-wise; the order of the run is
//! not used. The relevance level does not change nDCG.

use std::collections::BTreeMap;

use nsparse_core::{Hit, Qrels, Run};
use serde::{Deserialize, Serialize};

/// What is computed, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalOptions {
    /// Ranks at which the metrics with `@k` are cut.
    pub ks: Vec<usize>,
    /// A document is relevant from this grade on (`trec_eval`'s `-l`).
    pub relevance: i64,
    /// Whether judged queries that the run does not have count as 0 in the means (`trec_eval`'s `-c`).
    pub count_missing: bool,
    /// Only so many documents of a query are looked at, the best ones (`trec_eval`'s `-M`).
    pub max_depth: Option<usize>,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { ks: vec![1, 3, 5, 10, 100, 1000], relevance: 1, count_missing: true, max_depth: None }
    }
}

/// Metrics of one run against one set of judgments.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean of each metric over the counted queries.
    pub mean: BTreeMap<String, f64>,
    /// Query id → metric → value; missing queries are there with zeros if they count.
    pub per_query: BTreeMap<String, BTreeMap<String, f64>>,
    /// Queries that the means are taken over.
    pub queries: usize,
    /// Judged queries that the run does not have.
    pub missing: Vec<String>,
    /// Queries of the run that have no judgments; they are ignored.
    pub unjudged: usize,
    /// Documents looked at, over all counted queries.
    pub retrieved: usize,
    /// Relevant documents, over all counted queries.
    pub relevant: usize,
    /// Relevant documents among those looked at.
    pub relevant_retrieved: usize,
}

impl Evaluation {
    /// One metric's values in ascending order of query ids: what a significance test takes.
    /// `None` if no query has the metric.
    pub fn values(&self, metric: &str) -> Option<Vec<f64>> {
        let values: Vec<f64> = self.per_query.values().filter_map(|m| m.get(metric).copied()).collect();
        (!values.is_empty()).then_some(values)
    }

    /// Several runs of the same queries as one: each query's value is the mean over the runs, so that trainings from
    /// several seeds are compared by query. Counts are sums over the runs; `queries` stays that of one.
    ///
    /// `None` of no run, or where the runs do not count the same queries.
    pub fn average(runs: &[Self]) -> Option<Self> {
        let (first, others) = runs.split_first()?;
        let mut out = first.clone();
        for run in others {
            if run.queries != out.queries || !run.per_query.keys().eq(out.per_query.keys()) {
                return None;
            }
            let add = |sums: &mut BTreeMap<String, f64>, more: &BTreeMap<String, f64>| {
                for (metric, sum) in sums {
                    *sum += more.get(metric).copied().unwrap_or_default();
                }
            };
            add(&mut out.mean, &run.mean);
            for (sums, more) in out.per_query.values_mut().zip(run.per_query.values()) {
                add(sums, more);
            }
            out.missing.extend(run.missing.iter().cloned());
            out.unjudged += run.unjudged;
            out.retrieved += run.retrieved;
            out.relevant += run.relevant;
            out.relevant_retrieved += run.relevant_retrieved;
        }
        let count = runs.len() as f64;
        out.mean.values_mut().chain(out.per_query.values_mut().flat_map(|m| m.values_mut())).for_each(|v| *v /= count);
        out.missing.sort();
        out.missing.dedup();
        Some(out)
    }
}

/// Evaluates a run. The order of hits in it does not matter.
pub fn evaluate(qrels: &Qrels, run: &Run, options: &EvalOptions) -> Evaluation {
    let mut out =
        Evaluation { unjudged: run.keys().filter(|id| !qrels.contains_key(*id)).count(), ..Evaluation::default() };
    let mut ks = options.ks.clone();
    ks.retain(|&k| k > 0);
    ks.sort_unstable();
    ks.dedup();
    let none = Vec::new();
    for (id, judgments) in qrels {
        let hits = run.get(id).unwrap_or(&none);
        if hits.is_empty() {
            out.missing.push(id.clone());
            if !options.count_missing {
                continue;
            }
        }
        let grades = ranked_grades(hits, judgments, options.max_depth);
        let relevant = judgments.values().filter(|&&g| g >= options.relevance).count();
        out.queries += 1;
        out.retrieved += grades.len();
        out.relevant += relevant;
        out.relevant_retrieved += grades.iter().filter(|&&g| g.is_some_and(|g| g >= options.relevance)).count();
        let mut ideal: Vec<i64> = judgments.values().copied().filter(|&g| g > 0).collect();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let values = one_query(&grades, &ideal, relevant, options.relevance, &ks);
        for (metric, value) in &values {
            *out.mean.entry(metric.clone()).or_insert(0.0) += value;
        }
        out.per_query.insert(id.clone(), values);
    }
    for value in out.mean.values_mut() {
        *value /= out.queries as f64;
    }
    out
}

/// The order in which `trec_eval` reads a run: score descending, then id descending byte-wise.
pub fn trec_order(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    // `+ 0.0` makes one zero of the two.
    (b.score + 0.0).total_cmp(&(a.score + 0.0)).then_with(|| b.id.as_bytes().cmp(a.id.as_bytes()))
}

/// The grade of each ranked document, `None` where it is not judged.
fn ranked_grades(hits: &[Hit], judgments: &BTreeMap<String, i64>, max_depth: Option<usize>) -> Vec<Option<i64>> {
    let mut order: Vec<&Hit> = hits.iter().collect();
    order.sort_by(|a, b| trec_order(a, b));
    order.truncate(max_depth.unwrap_or(usize::MAX));
    order.into_iter().map(|hit| judgments.get(&hit.id).copied()).collect()
}

/// All metrics of one query. `ideal`: grades above 0 of all judged documents, descending; `ks` ascending.
fn one_query(
    grades: &[Option<i64>],
    ideal: &[i64],
    relevant: usize,
    level: i64,
    ks: &[usize],
) -> BTreeMap<String, f64> {
    let mut values = BTreeMap::new();
    let is_relevant = |g: &Option<i64>| g.is_some_and(|g| g >= level);
    // Sums after each rank; entry i holds the first i ranks.
    let mut found = vec![0usize; grades.len() + 1];
    let mut precision = vec![0.0f64; grades.len() + 1];
    for (i, grade) in grades.iter().enumerate() {
        found[i + 1] = found[i] + usize::from(is_relevant(grade));
        precision[i + 1] = precision[i];
        if is_relevant(grade) {
            precision[i + 1] += found[i + 1] as f64 / (i + 1) as f64;
        }
    }
    let gains: Vec<i64> = grades.iter().map(|g| g.unwrap_or(0).max(0)).collect();
    let share = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
    let first = grades.iter().position(is_relevant).map(|i| i + 1);
    for &k in ks {
        let cut = k.min(grades.len());
        values.insert(format!("ndcg@{k}"), share(dcg(&gains, k), dcg(ideal, k)));
        values.insert(format!("map@{k}"), share(precision[cut], relevant as f64));
        values.insert(format!("recall@{k}"), share(found[cut] as f64, relevant as f64));
        values.insert(format!("p@{k}"), found[cut] as f64 / k as f64);
        values.insert(format!("success@{k}"), if found[cut] > 0 { 1.0 } else { 0.0 });
        values.insert(format!("mrr@{k}"), first.filter(|&r| r <= k).map_or(0.0, |r| 1.0 / r as f64));
    }
    values.insert("map".to_owned(), share(precision[grades.len()], relevant as f64));
    values.insert("mrr".to_owned(), first.map_or(0.0, |r| 1.0 / r as f64));
    values
}

/// Σ gain / log2(rank + 1) over the first `k` ranks.
fn dcg(gains: &[i64], k: usize) -> f64 {
    // Folded from +0: the sum of no numbers is -0, which a table would show as "-0.0000".
    gains.iter().take(k).enumerate().fold(0.0, |sum, (i, &g)| sum + g as f64 / ((i + 2) as f64).log2())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use proptest::prelude::*;

    use super::*;

    fn qrels(rows: &[(&str, &str, i64)]) -> Qrels {
        let mut out = Qrels::new();
        for &(q, d, g) in rows {
            out.entry(q.to_owned()).or_default().insert(d.to_owned(), g);
        }
        out
    }

    fn run(rows: &[(&str, &str, f32)]) -> Run {
        let mut out = Run::new();
        for &(q, d, score) in rows {
            out.entry(q.to_owned()).or_default().push(Hit { id: d.to_owned(), score });
        }
        out
    }

    #[track_caller]
    fn close(evaluation: &Evaluation, metric: &str, expected: f64) {
        let value = evaluation.mean[metric];
        assert!((value - expected).abs() < 1e-12, "{metric}: {value}, expected {expected}");
    }

    #[test]
    fn by_hand() {
        // Ranking a b c d with grades 0, 2, unjudged, 1; e (grade 3) is not found.
        let judged = qrels(&[("q", "a", 0), ("q", "b", 2), ("q", "d", 1), ("q", "e", 3), ("q", "f", -1)]);
        let ranked = run(&[("q", "d", 1.0), ("q", "a", 4.0), ("q", "c", 2.0), ("q", "b", 3.0)]);
        let e = evaluate(&judged, &ranked, &EvalOptions::default());
        close(&e, "p@3", 1.0 / 3.0);
        close(&e, "p@10", 0.2);
        close(&e, "recall@10", 2.0 / 3.0);
        close(&e, "mrr", 0.5);
        close(&e, "mrr@1", 0.0);
        close(&e, "success@1", 0.0);
        close(&e, "success@3", 1.0);
        close(&e, "map", (0.5 + 0.5) / 3.0);
        close(&e, "map@3", 0.5 / 3.0);
        let log3 = 3f64.log2();
        let dcg = 2.0 / log3 + 1.0 / 5f64.log2();
        close(&e, "ndcg@10", dcg / (3.0 + 2.0 / log3 + 1.0 / 2.0));
        close(&e, "ndcg@1", 0.0);
        assert_eq!((e.retrieved, e.relevant, e.relevant_retrieved, e.queries), (4, 3, 2, 1));
    }

    #[test]
    fn ties_go_to_the_greater_id_by_bytes() {
        let judged = qrels(&[("q", "d9", 1)]);
        // As bytes "d9" > "d41" > "d12".
        let ranked = run(&[("q", "d12", 1.0), ("q", "d41", 1.0), ("q", "d9", 1.0)]);
        close(&evaluate(&judged, &ranked, &EvalOptions::default()), "mrr", 1.0);
        // The two zeros are a tie as well.
        let zeros = run(&[("q", "d12", 0.0), ("q", "d9", -0.0)]);
        close(&evaluate(&judged, &zeros, &EvalOptions::default()), "mrr", 1.0);
    }

    #[test]
    fn missing_queries_count_as_zero_and_strange_ones_not_at_all() {
        let judged = qrels(&[("1", "a", 1), ("2", "a", 1), ("3", "a", 1)]);
        let mut ranked = run(&[("1", "a", 1.0), ("9", "a", 1.0)]);
        ranked.insert("3".to_owned(), Vec::new());
        let e = evaluate(&judged, &ranked, &EvalOptions::default());
        close(&e, "ndcg@10", 1.0 / 3.0);
        assert!(e.per_query["2"].values().all(|v| v.to_bits() == 0), "no negative zeros");
        assert_eq!((e.missing.as_slice(), e.unjudged, e.queries), (["2".to_owned(), "3".to_owned()].as_slice(), 1, 3));
        assert_eq!(e.values("mrr").unwrap(), [1.0, 0.0, 0.0]);
        let present = evaluate(&judged, &ranked, &EvalOptions { count_missing: false, ..EvalOptions::default() });
        close(&present, "ndcg@10", 1.0);
        assert_eq!((present.missing.len(), present.queries), (2, 1));
    }

    #[test]
    fn the_level_changes_all_but_ndcg_and_the_depth_cuts() {
        let judged = qrels(&[("q", "a", 1), ("q", "b", 2)]);
        let ranked = run(&[("q", "a", 2.0), ("q", "b", 1.0)]);
        let plain = evaluate(&judged, &ranked, &EvalOptions::default());
        let level = evaluate(&judged, &ranked, &EvalOptions { relevance: 2, ..EvalOptions::default() });
        close(&level, "map", 0.5);
        close(&level, "recall@1", 0.0);
        close(&level, "ndcg@10", plain.mean["ndcg@10"]);
        let cut = evaluate(&judged, &ranked, &EvalOptions { max_depth: Some(1), ..EvalOptions::default() });
        close(&cut, "recall@100", 0.5);
    }

    #[test]
    fn a_query_without_relevant_documents_is_zero_not_nan() {
        let e = evaluate(&qrels(&[("q", "a", 0)]), &run(&[("q", "a", 1.0)]), &EvalOptions::default());
        assert!(e.mean.values().all(|&v| v == 0.0));
        assert_eq!(evaluate(&Qrels::new(), &Run::new(), &EvalOptions::default()), Evaluation::default());
    }

    #[test]
    fn survives_json() {
        let judged = qrels(&[("1", "a", 1), ("2", "b", 1)]);
        let e = evaluate(&judged, &run(&[("1", "a", 1.0)]), &EvalOptions::default());
        let text = serde_json::to_string(&e).unwrap();
        assert_eq!(serde_json::from_str::<Evaluation>(&text).unwrap(), e);
    }

    proptest! {
        /// All metrics lie in [0, 1]; the ideal ranking has nDCG 1; the run's order has no effect.
        #[test]
        fn bounds(grades in proptest::collection::vec(-1i64..4, 1..30), scores in proptest::collection::vec(0u8..6, 30)) {
            let judged: Qrels = [(
                "q".to_owned(),
                grades.iter().enumerate().map(|(i, &g)| (format!("d{i}"), g)).collect(),
            )].into();
            let hits: Vec<Hit> = grades.iter().enumerate()
                .map(|(i, _)| Hit { id: format!("d{i}"), score: f32::from(scores[i]) }).collect();
            let mut reversed = hits.clone();
            reversed.reverse();
            let e = evaluate(&judged, &[("q".to_owned(), hits)].into(), &EvalOptions::default());
            prop_assert!(e.mean.values().all(|v| (0.0..=1.0 + 1e-12).contains(v)));
            prop_assert_eq!(&e, &evaluate(&judged, &[("q".to_owned(), reversed)].into(), &EvalOptions::default()));
            let best: Vec<Hit> = grades.iter().enumerate()
                .map(|(i, &g)| Hit { id: format!("d{i}"), score: g as f32 }).collect();
            let e = evaluate(&judged, &[("q".to_owned(), best)].into(), &EvalOptions::default());
            let expected = if grades.iter().any(|&g| g > 0) { 1.0 } else { 0.0 };
            prop_assert!((e.mean["ndcg@10"] - expected).abs() < 1e-12);
        }
    }
}

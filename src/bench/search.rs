//! Searching in the embedded index: throughput of all queries at once, latencies of single ones.

use std::time::Instant;

use nsparse_core::{SearchQuery, Searcher, SparseVector};
use nsparse_retrieval::InvertedIndex;
use nsparse_trainer::check::peak_memory;
use nsparse_trainer::synthetic;
use serde::Serialize;

use crate::bench::args::SearchBench;
use crate::bench::{Machine, Timing, memory, rounds, spread, time};
use crate::cli::Method;
use crate::failure::usage;
use crate::printer::Printer;
use crate::ranking::{self, ANALYZER, Plan};
use crate::settings;

/// What searching costs.
#[derive(Debug, Serialize)]
pub(crate) struct SearchReport {
    #[serde(flatten)]
    machine: Machine,
    config: serde_json::Value,
    documents: usize,
    /// Stored weights; only of random vectors.
    #[serde(skip_serializing_if = "Option::is_none")]
    postings: Option<usize>,
    queries: usize,
    /// Mean tokens of a query.
    query_tokens: f64,
    queries_per_second: f64,
    #[serde(flatten)]
    timing: Timing,
    /// Each query alone on one thread.
    latency_seconds: Latency,
    peak_memory_bytes: Option<u64>,
}

/// Times of single queries.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    max: f64,
}

impl Latency {
    pub(crate) fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_unstable_by(f64::total_cmp);
        // The smallest value that the share of queries does not exceed.
        let percentile = |p: usize| seconds[(seconds.len() * p).div_ceil(100).max(1) - 1];
        Self { p50: percentile(50), p90: percentile(90), p99: percentile(99), max: percentile(100) }
    }
}

/// A searcher with the queries it is asked.
struct Task {
    searcher: Box<dyn Searcher>,
    documents: usize,
    postings: Option<usize>,
    queries: Vec<SearchQuery>,
    config: serde_json::Value,
}

pub(crate) fn run(args: &SearchBench, printer: &Printer) -> anyhow::Result<SearchReport> {
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    let Task { searcher, documents, postings, queries, config } = match args.model {
        Some(_) => trained(args, printer, &cancel)?,
        None => random(args)?,
    };
    let timing = rounds(&args.rounds, &progress, &cancel, |_| {
        searcher.search(&queries, args.depth)?;
        Ok(())
    })?;
    let mut seconds = Vec::with_capacity(queries.len());
    for query in &queries {
        cancel.check()?;
        let started = Instant::now();
        searcher.search(std::slice::from_ref(query), args.depth)?;
        seconds.push(started.elapsed().as_secs_f64());
    }
    Ok(SearchReport {
        machine: Machine::new("cpu"),
        config,
        documents,
        postings,
        queries: queries.len(),
        query_tokens: queries.iter().map(|q| q.vector.len()).sum::<usize>() as f64 / queries.len() as f64,
        queries_per_second: queries.len() as f64 / timing.median_seconds,
        timing,
        latency_seconds: Latency::of(seconds),
        peak_memory_bytes: peak_memory(),
    })
}

fn trained(args: &SearchBench, printer: &Printer, cancel: &nsparse_core::Cancel) -> anyhow::Result<Task> {
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let device = settings::device(&args.device)?;
    let model = args.model.as_deref();
    let plan = Plan { set: &set, documents: &documents, method: Method::Sparse, model, device };
    let (searcher, vectors) = plan.searcher(None, ANALYZER, printer, cancel)?;
    let queries = ranking::search_queries(&set.queries()?, vectors.as_ref().map(|v| &v.queries))?;
    if queries.is_empty() {
        return Err(usage(format!("The data set `{}` has no query", set.name), "put queries into its queries.jsonl"));
    }
    Ok(Task {
        searcher,
        documents: documents.len(),
        postings: None,
        queries,
        config: serde_json::json!({ "data": set.name, "depth": args.depth }),
    })
}

fn random(args: &SearchBench) -> anyhow::Result<Task> {
    let given = &args.data;
    if given.data.is_some() || given.beir.is_some() {
        return Err(usage("A data set is named, but no model to encode it", "give --model DIR"));
    }
    let most = args.vocab / 2;
    if args.docs == 0 || args.queries == 0 || args.active > most || args.query_tokens > most {
        return Err(usage(
            "Random vectors of these sizes cannot be drawn",
            "give at least one document and one query, and a vocabulary of twice the active entries",
        ));
    }
    let documents = synthetic::vectors(args.docs, args.active, args.vocab, args.seed);
    let index = InvertedIndex::build(documents.enumerate().map(|(n, vector)| (n.to_string(), vector)));
    let query = |(n, vector): (usize, SparseVector)| SearchQuery { id: n.to_string(), text: String::new(), vector };
    Ok(Task {
        documents: index.len(),
        postings: Some(index.stats().postings),
        searcher: Box::new(index),
        queries: synthetic::vectors(args.queries, args.query_tokens, args.vocab, !args.seed)
            .enumerate()
            .map(query)
            .collect(),
        config: serde_json::json!({
            "docs": args.docs, "active": args.active, "vocab": args.vocab, "queries": args.queries,
            "query_tokens": args.query_tokens, "depth": args.depth, "seed": args.seed,
        }),
    })
}

pub(crate) fn show(report: &SearchReport, printer: &Printer) {
    let postings = report.postings.map_or_else(String::new, |n| format!(" with {n} postings"));
    printer.text(format!(
        "searching {} documents{postings}: {} queries of {:.1} tokens in the mean; {} threads",
        report.documents, report.queries, report.query_tokens, report.machine.threads
    ));
    printer.text(format!("all at once: {}: {:.0} queries/s", spread(&report.timing), report.queries_per_second));
    let l = &report.latency_seconds;
    printer.text(format!(
        "one by one: half within {}, 90 % within {}, 99 % within {}, all within {}",
        time(l.p50),
        time(l.p90),
        time(l.p99),
        time(l.max)
    ));
    printer.text(memory(report.peak_memory_bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let latency = Latency::of((1..=200).rev().map(f64::from).collect());
        assert_eq!(latency, Latency { p50: 100.0, p90: 180.0, p99: 198.0, max: 200.0 });
        assert_eq!(Latency::of(vec![2.0]), Latency { p50: 2.0, p90: 2.0, p99: 2.0, max: 2.0 });
    }
}

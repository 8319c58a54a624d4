//! Latencies of single queries against a cluster: BM25 and the ways of a sparse query, with one client and with several.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, Progress as _, SearchQuery};
use nsparse_encoder::Device;
use nsparse_opensearch::ml::{Deployment, Fields};
use nsparse_opensearch::{Body, Cluster, Method, SparseSearcher, TwoPhase, bm25_query, segments};
use serde::Serialize;
use serde_json::{Value, json};

use crate::bench::args::QueriesBench;
use crate::bench::search::Latency;
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::queries::Queries;
use crate::{ranking, settings};

/// What queries cost.
#[derive(Debug, Serialize)]
pub(crate) struct QueriesReport {
    version: &'static str,
    /// The cluster's release.
    cluster: String,
    index: String,
    documents: u64,
    queries: usize,
    /// Mean tokens of a query before pruning.
    query_tokens: f64,
    k: usize,
    rounds: usize,
    measured: Vec<Measured>,
}

/// One way of asking with some clients.
#[derive(Debug, Serialize)]
struct Measured {
    way: String,
    clients: usize,
    queries_per_second: f64,
    /// Milliseconds from the request to the whole answer.
    milliseconds: Latency,
    /// Milliseconds that the cluster says it took.
    took_milliseconds: Latency,
}

/// A way of asking: its name, and the body of each query's search.
struct Way {
    name: String,
    bodies: Vec<Vec<u8>>,
}

pub(crate) fn run(args: &QueriesBench, printer: &Printer) -> anyhow::Result<QueriesReport> {
    let cancel = settings::cancel_on_signal();
    let deployment = args.deployment.as_deref().map(Deployment::load).transpose()?;
    let cluster = match &deployment {
        Some(d) => settings::cluster_of(&args.cluster, &d.cluster_url)?,
        None => settings::cluster(&args.cluster)?,
    };
    let (index, fields) = match (&deployment, &args.index) {
        (Some(d), _) => (d.index.clone(), d.fields.clone()),
        (None, Some(index)) => (index.clone(), segments::fields_of(&cluster, index, Fields::default())?),
        (None, None) => return Err(usage("No index is named", "give --deployment FILE or --index NAME")),
    };
    let set = settings::dataset(&args.data, printer)?;
    let encoder = Queries::open(&ModelDir::open(&args.model)?, Device::Cpu)?;
    let queries = ranking::search_queries(&set.queries()?, Some(&encoder))?;
    if queries.is_empty() {
        return Err(usage(format!("The data set `{}` has no query", set.name), "put queries into its queries.jsonl"));
    }
    let searcher =
        SparseSearcher::new(cluster.clone(), index.as_str(), &fields.vector, encoder.tokenizer().vocabulary())?
            .over(&fields);
    let ways = ways(args, &queries, &searcher, &fields)?;
    let clients: Vec<usize> = args.clients.clone();
    let path = format!("/{index}/_search?request_cache=false");
    let total = ways.len() * clients.len() * (args.rounds + 1);
    let task = printer.progress().start("Measuring", total as u64);
    let mut measured = Vec::new();
    for &clients in &clients {
        let mut times = vec![(Vec::new(), Vec::new(), 0.0); ways.len()];
        // Each round asks every way once, so that a slow minute of the machine meets them all; the first one warms up.
        for round in 0..=args.rounds {
            for (way, (seconds, took, wall)) in ways.iter().zip(&mut times) {
                task.message(&format!("{}, {clients} clients", way.name));
                let started = Instant::now();
                let answers = ask(&cluster, &path, &way.bodies, clients, &cancel)?;
                if round > 0 {
                    *wall += started.elapsed().as_secs_f64();
                    for (client, server) in answers {
                        seconds.push(client);
                        took.push(server);
                    }
                }
                task.advance(1);
            }
        }
        for (way, (milliseconds, took, wall)) in ways.iter().zip(times) {
            measured.push(Measured {
                way: way.name.clone(),
                clients,
                queries_per_second: milliseconds.len() as f64 / wall,
                milliseconds: Latency::of(milliseconds),
                took_milliseconds: Latency::of(took),
            });
        }
    }
    Ok(QueriesReport {
        version: env!("CARGO_PKG_VERSION"),
        cluster: cluster.capabilities()?.version.to_string(),
        documents: nsparse_opensearch::index::count(&cluster, &index)?,
        index,
        queries: queries.len(),
        query_tokens: queries.iter().map(|q| q.vector.len()).sum::<usize>() as f64 / queries.len() as f64,
        k: args.k,
        rounds: args.rounds,
        measured,
    })
}

/// The ways that are asked for; queries with nothing to search are left out of all.
fn ways(
    args: &QueriesBench,
    queries: &[SearchQuery],
    searcher: &SparseSearcher,
    fields: &Fields,
) -> anyhow::Result<Vec<Way>> {
    let body = |mut request: Value| {
        request["size"] = args.k.into();
        request["_source"] = false.into();
        request["track_total_hits"] = false.into();
        request.to_string().into_bytes()
    };
    let sparse = |name: String, phases: Option<TwoPhase>, change: &dyn Fn(&SearchQuery) -> SearchQuery| {
        let searcher = searcher.clone().in_two_phases(phases);
        let bodies = queries.iter().filter_map(|query| searcher.request(&change(query), args.k).transpose());
        Ok::<_, anyhow::Error>(Way { name, bodies: bodies.map(|b| Ok(body(b?))).collect::<anyhow::Result<_>>()? })
    };
    let bm25 = queries.iter().map(|q| body(json!({ "query": bm25_query(&q.text, fields) }))).collect();
    let mut ways = vec![Way { name: "bm25".to_owned(), bodies: bm25 }];
    ways.push(sparse("sparse".to_owned(), None, &Clone::clone)?);
    for &pruning in &args.prune {
        let pruned = |q: &SearchQuery| SearchQuery { vector: pruning.prune(&q.vector), ..q.clone() };
        ways.push(sparse(format!("pruned, {pruning}"), None, &pruned)?);
    }
    for &pruning in &args.two_phase {
        let phases = TwoPhase { pruning, ..TwoPhase::default() };
        ways.push(sparse(format!("two phases, {pruning}"), Some(phases), &Clone::clone)?);
    }
    Ok(ways)
}

/// Sends each body once, by so many clients at a time; milliseconds here and as the cluster says.
fn ask(
    cluster: &Cluster,
    path: &str,
    bodies: &[Vec<u8>],
    clients: usize,
    cancel: &Cancel,
) -> anyhow::Result<Vec<(f64, f64)>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(Vec::with_capacity(bodies.len()));
    let client = || -> anyhow::Result<()> {
        let mut times = Vec::new();
        while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
            cancel.check()?;
            let started = Instant::now();
            let answer = cluster.request(Method::Post, path, Body::Raw(body.clone(), "application/json"))?;
            let milliseconds = started.elapsed().as_secs_f64() * 1e3;
            times.push((milliseconds, answer.body.get("took").and_then(Value::as_f64).unwrap_or(0.0)));
        }
        found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(times);
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        threads.into_iter().try_for_each(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

pub(crate) fn show(report: &QueriesReport, printer: &Printer) {
    printer.text(format!(
        "{} queries of {:.1} tokens in the mean, {} rounds, best {} of {} documents in `{}`, OpenSearch {}",
        report.queries, report.query_tokens, report.rounds, report.k, report.documents, report.index, report.cluster
    ));
    let rows: Vec<Vec<String>> = report
        .measured
        .iter()
        .map(|m| {
            let l = m.milliseconds;
            let number = |x: f64| format!("{x:.1}");
            vec![
                m.way.clone(),
                m.clients.to_string(),
                number(l.p50),
                number(l.p90),
                number(l.p99),
                number(m.took_milliseconds.p50),
                format!("{:.0}", m.queries_per_second),
            ]
        })
        .collect();
    printer.text(table(&["way", "clients", "p50 ms", "p90 ms", "p99 ms", "took p50", "queries/s"], &rows));
}

//! `nsparse eval`: ranks a set's queries, or reads a ranking, and measures it as NIST's `trec_eval` does.

use std::path::{Path, PathBuf};

use nsparse_core::{Error, Qrels, Run, files, trec};
use nsparse_retrieval::significance::{bootstrap_mean, compare_evaluations};
use nsparse_retrieval::{Comparison, EvalOptions, Evaluation, Interval, Resampling, evaluate};
use serde::Serialize;

use crate::ExitStatus;
use crate::cli::{Engine, EvalArgs};
use crate::commands::eval_checkpoints;
use crate::data_args::RunForm;
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::ranking::{self, Dimensions, Plan};
use crate::{cluster_index, settings};

/// What `--json` prints and `summary.json` holds.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    /// Means: `ndcg@10`, `map`, `mrr`, `recall@100`, `p@10`, …
    pub(crate) metrics: std::collections::BTreeMap<String, f64>,
    /// nDCG@10 with its bootstrap interval.
    #[serde(rename = "ndcg@10_interval")]
    pub(crate) ndcg10: Interval,
    /// Queries in the means.
    pub(crate) queries: usize,
    /// Judged queries that the ranking does not have; they count as 0.
    pub(crate) missing: Vec<String>,
    /// Queries of the ranking without judgments; not counted.
    pub(crate) unjudged: usize,
    /// nDCG@10 less the baseline's, paired.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) against_baseline: Option<Comparison>,
    /// Active dimensions of documents and queries, where vectors were ranked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dimensions: Option<Dimensions>,
    /// Seconds for preparing (encoding, indexing) and for searching.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds: Option<Seconds>,
    /// Where the ranking was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run_file: Option<PathBuf>,
}

/// Wall-clock times.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Seconds {
    /// Encoding and indexing.
    pub(crate) prepare: f64,
    /// All queries.
    pub(crate) search: f64,
}

pub(crate) fn run(args: &EvalArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if let Some(run) = &args.all_checkpoints {
        return eval_checkpoints::run(args, run, printer);
    }
    if args.clean {
        let set = settings::dataset(&args.data, printer)?;
        let removed = cluster_index::clean(&settings::cluster(&args.cluster)?, &set)?;
        printer.text(format!("{} indexes removed {}", removed.len(), removed.join(" ")));
        printer.json(&serde_json::json!({ "removed": removed }))?;
        return Ok(ExitStatus::Success);
    }
    let (qrels, runs, timing) = if let Some(qrels) = &args.qrels {
        (trec::read_qrels(qrels)?, read_runs(&args.run)?, None)
    } else {
        let (qrels, run, timing) = ranked(args, printer)?;
        (qrels, vec![run], timing)
    };
    let options = options(args);
    let evaluation = over_runs(&qrels, &runs, &options, "--run")?;
    let mut summary = summarise(&evaluation);
    if let Some((seconds, dimensions)) = timing {
        summary.seconds = Some(seconds);
        summary.dimensions = dimensions;
    }
    if !args.baseline.is_empty() {
        let baseline = over_runs(&qrels, &read_runs(&args.baseline)?, &options, "--baseline")?;
        summary.against_baseline =
            Some(compare_evaluations(&baseline, &evaluation, "ndcg@10", &Resampling::default())?);
    }
    if let Some(folder) = &args.out {
        let [run] = runs.as_slice() else {
            return Err(usage(
                "`--out` holds one ranking, and `--run` names several",
                "leave `--out` away: each file is a ranking already; `--json` prints the summary",
            ));
        };
        write(folder, args.run_format, run, &evaluation, &mut summary)?;
    }
    show(&summary, &options, printer);
    printer.json(&summary)?;
    Ok(ExitStatus::Success)
}

fn read_runs(paths: &[PathBuf]) -> anyhow::Result<Vec<Run>> {
    Ok(paths.iter().map(|path| trec::read_run(path)).collect::<nsparse_core::Result<_>>()?)
}

/// One evaluation of all runs: each query's mean over them.
fn over_runs(qrels: &Qrels, runs: &[Run], options: &EvalOptions, option: &str) -> anyhow::Result<Evaluation> {
    let each: Vec<Evaluation> = runs.iter().map(|run| evaluate(qrels, run, options)).collect();
    Evaluation::average(&each).ok_or_else(|| {
        usage(
            format!("the rankings of `{option}` do not count the same queries"),
            "rankings that are averaged must be of the same queries, such as one a seed",
        )
    })
}

/// Cut-offs and relevance that were asked for.
pub(crate) fn options(args: &EvalArgs) -> EvalOptions {
    let mut options = EvalOptions { relevance: args.level, ..EvalOptions::default() };
    options.ks.extend(&args.k);
    options.ks.sort_unstable();
    options.ks.dedup();
    options
}

/// Means, intervals and counts of one evaluation.
pub(crate) fn summarise(evaluation: &Evaluation) -> Summary {
    let values = evaluation.values("ndcg@10").unwrap_or_default();
    Summary {
        metrics: evaluation.mean.clone(),
        ndcg10: bootstrap_mean(&values, &Resampling::default()),
        queries: evaluation.queries,
        missing: evaluation.missing.clone(),
        unjudged: evaluation.unjudged,
        against_baseline: None,
        dimensions: None,
        seconds: None,
        run_file: None,
    }
}

type Timing = Option<(Seconds, Option<Dimensions>)>;

/// Ranks a set's judged queries by the method and the engine asked for.
fn ranked(args: &EvalArgs, printer: &Printer) -> anyhow::Result<(Qrels, Run, Timing)> {
    let set = settings::dataset(&args.data, printer)?;
    let qrels = set.qrels(&args.split)?;
    let queries = set.judged_queries(&qrels)?;
    let documents = set.corpus()?;
    let cancel = settings::cancel_on_signal();
    let device = settings::device(&args.device)?;
    let plan = Plan { set: &set, documents: &documents, method: args.method, model: args.model.as_deref(), device };
    let started = std::time::Instant::now();
    let cluster = match args.engine.unwrap_or(Engine::Opensearch) {
        Engine::Local => None,
        Engine::Opensearch => Some(settings::cluster(&args.cluster)?),
    };
    let (searcher, vectors) = plan.searcher_by(&args.query, cluster.as_ref(), &args.analyzer, printer, &cancel)?;
    let prepare = started.elapsed().as_secs_f64();
    let mut search_queries = ranking::search_queries(&queries, vectors.as_ref().map(|v| &v.queries))?;
    args.query.prune(&mut search_queries);
    let started = std::time::Instant::now();
    let run = ranking::run(searcher.as_ref(), &search_queries, args.depth, &printer.progress(), &cancel)?;
    let seconds = Seconds { prepare, search: started.elapsed().as_secs_f64() };
    let dimensions = vectors.as_ref().map(|v| v.dimensions(&documents, &search_queries)).transpose()?;
    Ok((qrels, run, Some((seconds, dimensions))))
}

fn write(
    folder: &Path,
    form: RunForm,
    run: &Run,
    evaluation: &Evaluation,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let run_file = match form {
        RunForm::Trec => folder.join("run.trec"),
        RunForm::Msmarco => folder.join("run.tsv"),
    };
    match form {
        RunForm::Trec => trec::write_run(&run_file, run, "nsparse")?,
        RunForm::Msmarco => trec::write_msmarco_run(&run_file, run)?,
    }
    let per_query = folder.join("per-query.jsonl");
    files::write_atomic(&per_query, |out| {
        for (query, metrics) in &evaluation.per_query {
            let line = serde_json::json!({ "query": query, "metrics": metrics });
            std::io::Write::write_fmt(out, format_args!("{line}\n")).map_err(|e| Error::io("write", &per_query, e))?;
        }
        Ok(())
    })?;
    summary.run_file = Some(run_file);
    files::write_json(&folder.join("summary.json"), summary)?;
    Ok(())
}

fn show(summary: &Summary, options: &EvalOptions, printer: &Printer) {
    let value = |key: String| summary.metrics.get(&key).map_or_else(String::new, |v| format!("{v:.4}"));
    let rows: Vec<Vec<String>> =
        [("nDCG", "ndcg"), ("recall", "recall"), ("precision", "p"), ("MAP", "map"), ("MRR", "mrr")]
            .iter()
            .map(|(name, key)| {
                std::iter::once((*name).to_owned())
                    .chain(options.ks.iter().map(|k| value(format!("{key}@{k}"))))
                    .chain(std::iter::once(value((*key).to_owned())))
                    .collect()
            })
            .collect();
    let head: Vec<String> = options.ks.iter().map(|k| format!("@{k}")).collect();
    let head: Vec<&str> = std::iter::once("").chain(head.iter().map(String::as_str)).chain(["all"]).collect();
    printer.text(table(&head, &rows));
    let i = &summary.ndcg10;
    printer.text(format!(
        "\nnDCG@10 {:.4}, 95 % interval {:.4} to {:.4} (bootstrap over {} queries)",
        i.mean, i.low, i.high, summary.queries
    ));
    if let Some(c) = &summary.against_baseline {
        printer.text(format!(
            "against the baseline {:+.4}, paired 95 % interval {:+.4} to {:+.4}, p {:.4}; better for {}, worse for {}, equal for {}",
            c.difference.mean, c.difference.low, c.difference.high, c.p_value, c.wins, c.losses, c.ties
        ));
    }
    if let Some(d) = &summary.dimensions {
        printer.text(format!(
            "{:.0} active dimensions a document, {:.0} % of them not in its text; {:.1} a query",
            d.document_mean,
            d.expansion_share * 100.0,
            d.query_mean
        ));
    }
    if let Some(s) = &summary.seconds {
        printer.text(format!("prepared in {:.1} s, searched in {:.1} s", s.prepare, s.search));
    }
    if !summary.missing.is_empty() {
        let some: Vec<&str> = summary.missing.iter().take(10).map(String::as_str).collect();
        printer.text(format!(
            "{} judged queries have no ranking and count as 0: {}{}",
            summary.missing.len(),
            some.join(", "),
            if summary.missing.len() > some.len() { ", …" } else { "" }
        ));
    }
    if summary.unjudged > 0 {
        printer.text(format!("{} ranked queries have no judgments and are not counted", summary.unjudged));
    }
    if let Some(path) = &summary.run_file {
        printer.text(path.display().to_string());
    }
}

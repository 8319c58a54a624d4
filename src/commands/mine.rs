//! `nsparse mine`: BM25 hard negatives for all training queries.

use nsparse_core::rows;
use nsparse_encoder::Device;
use nsparse_retrieval::mine::text_queries;
use nsparse_retrieval::{MineOptions, mine};

use crate::ExitStatus;
use crate::cli::{Engine, Method, MineArgs};
use crate::printer::Printer;
use crate::ranking::{ANALYZER, Plan};
use crate::settings;

pub(crate) fn run(args: &MineArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let qrels = set.qrels(&args.split)?;
    let queries = set.judged_queries(&qrels)?;
    let template = settings::template(&args.template, args.max_chars)?;
    template.require_fields(&documents)?;
    let cancel = settings::cancel_on_signal();
    let started = std::time::Instant::now();
    let (cluster, engine) = match args.engine {
        Engine::Local => (None, "bm25-local"),
        Engine::Opensearch => (Some(settings::cluster(&args.cluster)?), "bm25-opensearch"),
    };
    let plan = Plan { set: &set, documents: &documents, method: Method::Bm25, model: None, device: Device::Cpu };
    let (searcher, _) = plan.searcher(cluster.as_ref(), ANALYZER, printer, &cancel)?;
    let options = MineOptions {
        depth: args.depth,
        first_rank: args.skip + 1,
        samples: args.sample,
        seed: args.seed,
        template,
        engine: engine.to_owned(),
        ..MineOptions::default()
    };
    let (found, report) =
        mine(searcher.as_ref(), &text_queries(&queries), &qrels, &documents, &options, &cancel, &printer.progress())?;
    rows::write(&args.out, &found)?;
    let seconds = started.elapsed().as_secs_f64();
    printer.text(format!(
        "{} rows with {} negatives for {} queries in {seconds:.1} s ({engine}, depth {}, sample {}, seed {})",
        report.rows, report.negatives, report.queries, args.depth, args.sample, args.seed
    ));
    printer.text(format!(
        "{} queries have fewer hits than negatives asked for, {} of them none; {} queries have no positive",
        report.too_few, report.without_negatives, report.without_positives
    ));
    printer.text(args.out.display().to_string());
    printer.json(&serde_json::json!({ "rows_file": args.out, "seconds": seconds, "report": report }))?;
    Ok(ExitStatus::Success)
}

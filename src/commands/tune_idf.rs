//! `nsparse tune-idf`: trains the query table further, with documents frozen.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::Args;
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{IdfTable, QueryEncoder, Searcher, SparseVector, files};
use nsparse_opensearch::SparseSearcher;
use nsparse_retrieval::InvertedIndex;
use nsparse_trainer::query_side::tune::{TokenChange, TuneInput, TuneOptions, TuneQuery, TuneReport, tune};
use nsparse_trainer::query_side::tuned_model::{require_free, write_tuned};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::{ClusterArgs, DataArgs, Engine, Method};
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::queries::Queries;
use crate::ranking::{Plan, Vectors};
use crate::{cluster_index, settings, stored_vectors};

#[derive(Debug, Args)]
pub(crate) struct TuneIdfArgs {
    #[command(flatten)]
    data: DataArgs,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// The model directory whose query table is trained
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// The new model directory: the same model with the new idf.json
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Which split's queries; never the one that is reported on elsewhere
    #[arg(long, default_value = "train")]
    split: String,
    /// The documents' vectors, written by `nsparse encode --format binary` [default: encoded here, or an earlier
    /// run's]
    #[arg(long, value_name = "FILE")]
    vectors: Option<PathBuf>,
    /// Where each step searches
    #[arg(long, value_enum, default_value_t = Engine::Local)]
    engine: Engine,
    /// With --engine opensearch: an index that holds these vectors [default: one is made]
    #[arg(long, value_name = "NAME")]
    index: Option<String>,
    /// Field of the vector in --index
    #[arg(long, default_value = "embedding")]
    vector_field: String,
    /// Most passes over the training queries
    #[arg(long, default_value_t = TuneOptions::default().epochs)]
    epochs: usize,
    /// Queries a step
    #[arg(long, default_value_t = TuneOptions::default().batch)]
    batch: usize,
    /// A step moves a weight by about so much
    #[arg(long, default_value_t = TuneOptions::default().learning_rate)]
    learning_rate: f64,
    /// Hits that the relevant document is compared with
    #[arg(long, default_value_t = TuneOptions::default().depth)]
    depth: usize,
    /// Scores are divided by it
    #[arg(long, default_value_t = TuneOptions::default().temperature)]
    temperature: f64,
    /// How hard the table is pulled back to its start: weight of ½ Σ (w − start)²
    #[arg(long, default_value_t = TuneOptions::default().pull)]
    pull: f64,
    /// Share of the queries that is not trained on: half of it chooses the epoch, half is measured once
    #[arg(long, value_name = "SHARE", default_value_t = TuneOptions::default().held_out)]
    held_out: f64,
    /// Epochs without a better one after which it ends; 0: never
    #[arg(long, default_value_t = TuneOptions::default().patience)]
    patience: usize,
    /// What chooses the epoch
    #[arg(long, default_value_t = TuneOptions::default().metric)]
    metric: String,
    /// Everything random comes from it
    #[arg(long, default_value_t = TuneOptions::default().seed)]
    seed: u64,
    /// What encodes the documents: cpu, cpu-reference, cuda or cuda:N
    #[arg(long, default_value = "cpu")]
    device: String,
}

impl TuneIdfArgs {
    fn options(&self) -> TuneOptions {
        TuneOptions {
            epochs: self.epochs,
            batch: self.batch,
            learning_rate: self.learning_rate,
            depth: self.depth,
            temperature: self.temperature,
            pull: self.pull,
            held_out: self.held_out,
            patience: self.patience,
            metric: self.metric.clone(),
            seed: self.seed,
        }
    }
}

pub(crate) fn run(args: &TuneIdfArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let options = args.options();
    options.validate()?;
    require_free(&args.out)?;
    if args.index.is_some() && args.engine == Engine::Local {
        return Err(usage("--index names an index of a cluster, but the engine is local", "add --engine opensearch"));
    }
    let model = ModelDir::open(&args.model)?;
    let facts = model.facts()?;
    let encoder = model.query_encoder()?;
    let set = settings::dataset(&args.data, printer)?;
    let qrels = set.qrels(&args.split)?;
    let judged = set.judged_queries(&qrels)?;
    let documents = set.corpus()?;
    let cancel = settings::cancel_on_signal();
    let device = settings::device(&args.device)?;

    let vectors = match &args.vectors {
        None => Plan { set: &set, documents: &documents, method: Method::Sparse, model: Some(&args.model), device }
            .vectors(printer, &cancel)?,
        Some(file) => {
            let (vocabulary, stored) = stored_vectors::read(file, &documents)?;
            if vocabulary != encoder.tokenizer().vocabulary() {
                return Err(usage(
                    format!("`{}` has another vocabulary than `{}`", file.display(), args.model.display()),
                    "give the vectors that this model made",
                ));
            }
            let mut key = files::sha256_file(file)?.0;
            key.truncate(12);
            Vectors {
                documents: stored,
                segments: None,
                queries: Queries::Table(Box::new(encoder.clone())),
                template: facts.template,
                key,
            }
        }
    };
    let searcher: Box<dyn Searcher> = match (args.engine, &args.index) {
        (Engine::Local, _) => {
            let pairs = documents.iter().map(|d| d.id.clone()).zip(vectors.documents.iter().cloned());
            Box::new(InvertedIndex::build(pairs))
        }
        (Engine::Opensearch, Some(index)) => {
            let cluster = settings::cluster(&args.cluster)?;
            let vocabulary = encoder.tokenizer().vocabulary();
            Box::new(SparseSearcher::new(cluster, index, &args.vector_field, vocabulary)?)
        }
        (Engine::Opensearch, None) => {
            let cluster = settings::cluster(&args.cluster)?;
            Box::new(cluster_index::sparse(&cluster, &set, &documents, &vectors, printer, &cancel)?)
        }
    };

    // As the engine stores them: what is learned is what is ranked by.
    let stored: Vec<SparseVector> = vectors.documents.iter().map(SparseVector::as_stored).collect();
    let by_id: HashMap<&str, &SparseVector> = documents.iter().map(|d| d.id.as_str()).zip(&stored).collect();
    let tokens = all_tokens(&encoder)?;
    let queries = judged
        .into_iter()
        .map(|q| {
            let tokens = tokens.encode(&q.text)?.ids;
            let grades = qrels.get(&q.id).cloned().unwrap_or_default().into_iter().collect();
            Ok(TuneQuery { id: q.id, text: q.text, tokens, grades })
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let input = TuneInput {
        queries: &queries,
        documents: &by_id,
        searcher: searcher.as_ref(),
        start: encoder.idf().weights(),
        vocabulary: encoder.tokenizer().vocabulary(),
    };
    let (weights, report) = tune(&input, &options, &cancel, &printer.progress())?;

    let engine = match args.engine {
        Engine::Local => "local",
        Engine::Opensearch => "opensearch",
    };
    let about = json!({
        "method": "cross entropy over the hits of each query, documents frozen",
        "data": set.name,
        "split": args.split,
        "engine": engine,
        "started_from_sha256": files::sha256_file(&model.file("idf.json"))?.0,
        "nsparse_version": env!("CARGO_PKG_VERSION"),
        "report": report,
    });
    write_tuned(&model, &args.out, &weights, &about)?;
    show(&report, printer);
    printer.text(format!("\nmodel: {}", args.out.display()));
    printer.json(&json!({ "model": args.out, "engine": engine, "report": report }))?;
    Ok(ExitStatus::Success)
}

/// An encoder that keeps the tokens whose weight is 0 now: what a step says can bring them back.
fn all_tokens(encoder: &QueryEncoder) -> anyhow::Result<QueryEncoder> {
    let ones = IdfTable::from_weights(vec![1.0; encoder.idf().weights().len()]);
    Ok(QueryEncoder::new(encoder.tokenizer().clone(), ones)?)
}

fn show(report: &TuneReport, printer: &Printer) {
    let metric = &report.options.metric;
    printer.text(format!(
        "{} queries trained on, {} choose the epoch, {} are measured; {} left out (no relevant document or no token)",
        report.trained_queries, report.choosing_queries, report.measured_queries, report.left_out_queries
    ));
    let percent = |share: Option<f64>| share.map_or_else(|| "–".to_owned(), |s| format!("{:.1} %", s * 100.0));
    let rows: Vec<Vec<String>> = report
        .epochs
        .iter()
        .map(|e| {
            vec![
                format!("{}{}", e.epoch, if e.epoch == report.best_epoch { " ← kept" } else { "" }),
                e.loss.map_or_else(|| "–".to_owned(), |l| format!("{l:.4}")),
                percent(e.not_retrieved),
                format!("{:.4}", e.value),
                format!("{:.1} s", e.seconds),
            ]
        })
        .collect();
    printer.text(table(&["epoch", "loss", "not retrieved", metric, "time"], &rows));
    if report.stopped_early {
        printer.text(format!("ended early: no better epoch for {}", report.options.patience));
    }
    let c = &report.comparison;
    printer.text(format!(
        "measured queries: {metric} {:.4} before, {:.4} after; {:+.4}, paired 95 % interval {:+.4} to {:+.4}, p {:.4}; better for {}, worse for {}, equal for {}",
        report.before, report.after, c.difference.mean, c.difference.low, c.difference.high, c.p_value, c.wins, c.losses, c.ties
    ));
    printer.text(format!(
        "{} tokens have another weight, {} are left out of queries now",
        report.tokens_moved, report.tokens_zeroed
    ));
    let list = |changes: &[TokenChange]| {
        let one = |c: &TokenChange| format!("{} {:.2} → {:.2}", c.token, c.before, c.after);
        changes.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    for (what, changes) in [("raised most", &report.raised), ("lowered most", &report.lowered)] {
        if !changes.is_empty() {
            printer.text(format!("{what}: {}", list(changes)));
        }
    }
    if report.best_epoch == 0 {
        printer.text("No epoch was better than the start on the queries that choose: the table is the same");
    }
}

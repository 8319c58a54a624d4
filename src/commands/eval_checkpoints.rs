//! `nsparse eval --all-checkpoints RUN`: every model that a run has kept, measured alike. The run is only read;
//! what was measured is kept beside it, so that a stopped evaluation goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, files};
use nsparse_retrieval::significance::{bootstrap_mean, compare};
use nsparse_retrieval::{Comparison, Interval, Resampling, evaluate};
use nsparse_trainer::run_models::{RunModel, learned_table, reading_side, run_models};
use serde::{Deserialize, Serialize};

use crate::ExitStatus;
use crate::cli::{Against, Engine, EvalArgs, Method};
use crate::commands::eval::options;
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::ranking::{self, Dimensions, Plan};
use crate::searching::QueryArgs;
use crate::settings;

/// Where the results are kept, in the run's folder.
const FILE: &str = "checkpoint-evals.json";

/// What an evaluation is of, besides the weights. Only results of the same measure are set side by side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Measure {
    set: String,
    corpus: String,
    split: String,
    qrels: String,
    /// Tokenizer, idf table, window, template.
    reading: String,
    metric: String,
    depth: usize,
    relevance: i64,
}

/// One model's result, as it is kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Kept {
    weights_sha256: String,
    measure: Measure,
    metrics: BTreeMap<String, f64>,
    /// The metric by query.
    values: BTreeMap<String, f64>,
    dimensions: Dimensions,
    seconds: f64,
}

/// `checkpoint-evals.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    evaluations: Vec<Kept>,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Line {
    names: Vec<String>,
    step: Option<usize>,
    value: f64,
    interval: Interval,
    /// Less the one that is compared with, paired; `None` for that one itself.
    difference: Option<Comparison>,
    is_best: bool,
    #[serde(flatten)]
    kept: Kept,
}

pub(crate) fn run(args: &EvalArgs, run: &Path, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if args.method != Method::Sparse || args.engine == Some(Engine::Opensearch) {
        return Err(usage(
            "Checkpoints are ranked by their vectors, in this process",
            "leave out --method and --engine opensearch; `nsparse eval --model RUN/model` measures in a cluster",
        ));
    }
    if args.query != QueryArgs::default() {
        return Err(usage(
            "Checkpoints are ranked by all tokens of the queries",
            "leave out --prune, --two-phase, --weights and --fusion; `nsparse eval --model RUN/model` takes them",
        ));
    }
    let models = distinct(run_models(run)?);
    let side = reading_side(run)?;
    let cancel = settings::cancel_on_signal();
    let job = Job::new(args, run, &side, printer)?;
    let path = run.join(FILE);
    let mut file: File = if path.is_file() { files::read_json(&path)? } else { File::default() };
    let mut lines = Vec::new();
    for (number, model) in models.into_iter().enumerate() {
        let folder = temporary_folder()?;
        let Some(measure) = job.assemble(&model, folder.path())? else {
            printer.note(format!("{} is gone: the run goes on", model.names.join(", ")));
            continue;
        };
        let found = file.evaluations.iter().find(|k| k.weights_sha256 == model.sha256 && k.measure == measure);
        let kept = if let Some(kept) = found {
            kept.clone()
        } else {
            printer.note(format!("{} (model {})", model.names.join(", "), number + 1));
            let kept = job.evaluate(folder.path(), model.sha256.clone(), measure, printer, &cancel)?;
            file.evaluations.push(kept.clone());
            files::write_json(&path, &file)?;
            kept
        };
        lines.push((model, kept));
    }
    let lines = compared(lines, args.against)?;
    show(&lines, args, &path, printer);
    printer.json(&serde_json::json!({
        "run": run, "split": args.split, "metric": args.metric, "file": path, "evaluations": lines,
    }))?;
    Ok(ExitStatus::Success)
}

/// Models with the same weights, as one.
struct Weights {
    names: Vec<String>,
    step: Option<usize>,
    sha256: String,
    file: PathBuf,
}

fn distinct(models: Vec<RunModel>) -> Vec<Weights> {
    let mut out: Vec<Weights> = Vec::new();
    for model in models {
        let Ok((sha256, _)) = files::sha256_file(&model.weights) else { continue };
        if let Some(same) = out.iter_mut().find(|w| w.sha256 == sha256) {
            same.names.push(model.name);
            same.step = same.step.or(model.step);
            // A run that goes on removes its checkpoints; its model directories stay.
            if model.weights.ends_with("model.safetensors") {
                same.file = model.weights;
            }
        } else {
            out.push(Weights { names: vec![model.name], step: model.step, sha256, file: model.weights });
        }
    }
    out.sort_by_key(|w| (w.step.is_none(), w.step));
    out
}

/// What is the same for all models.
struct Job<'a> {
    args: &'a EvalArgs,
    run: &'a Path,
    side: &'a Path,
    measure: Measure,
    set: nsparse_core::beir::Dataset,
    documents: Vec<nsparse_core::beir::Document>,
    queries: Vec<nsparse_core::beir::Query>,
    qrels: nsparse_core::Qrels,
}

impl<'a> Job<'a> {
    fn new(args: &'a EvalArgs, run: &'a Path, side: &'a Path, printer: &Printer) -> anyhow::Result<Self> {
        let set = settings::dataset(&args.data, printer)?;
        let qrels = set.qrels(&args.split)?;
        let queries = set.judged_queries(&qrels)?;
        let known = evaluate(&qrels, &nsparse_core::Run::new(), &options(args)).mean;
        if !known.contains_key(&args.metric) {
            let names: Vec<&str> = known.keys().map(String::as_str).collect();
            return Err(usage(
                format!("The metric `{}` is not known", args.metric),
                format!("there are {}; --k adds cut-offs", names.join(", ")),
            ));
        }
        let measure = Measure {
            set: set.name.clone(),
            corpus: set.corpus_hash()?,
            split: args.split.clone(),
            qrels: files::sha256_bytes(serde_json::to_string(&(&qrels, texts(&queries)))?.as_bytes()),
            reading: String::new(),
            metric: args.metric.clone(),
            depth: args.depth,
            relevance: args.level,
        };
        Ok(Self { args, run, side, measure, documents: set.corpus()?, queries, qrels, set })
    }

    /// Measures a model directory.
    fn evaluate(
        &self,
        folder: &Path,
        weights_sha256: String,
        measure: Measure,
        printer: &Printer,
        cancel: &Cancel,
    ) -> anyhow::Result<Kept> {
        let started = std::time::Instant::now();
        let device = settings::device(&self.args.device)?;
        let (set, documents) = (&self.set, self.documents.as_slice());
        let plan = Plan { set, documents, method: Method::Sparse, model: Some(folder), device };
        let vectors_file = plan.vectors_file()?;
        let were_there = vectors_file.is_file();
        let (searcher, vectors) = plan.searcher(None, ranking::ANALYZER, printer, cancel)?;
        let vectors = vectors.ok_or_else(|| anyhow::anyhow!("a sparse ranking has vectors"))?;
        let queries = ranking::search_queries(&self.queries, Some(&vectors.queries))?;
        let run = ranking::run(searcher.as_ref(), &queries, self.args.depth, &printer.progress(), cancel)?;
        let evaluation = evaluate(&self.qrels, &run, &options(self.args));
        let values = evaluation
            .per_query
            .iter()
            .filter_map(|(query, metrics)| Some((query.clone(), *metrics.get(&self.measure.metric)?)))
            .collect();
        let kept = Kept {
            weights_sha256,
            measure,
            metrics: evaluation.mean,
            values,
            dimensions: vectors.dimensions(documents, &queries)?,
            seconds: started.elapsed().as_secs_f64(),
        };
        if !were_there {
            // The result is what is kept; many checkpoints' vectors would fill the disk.
            for file in [nsparse_core::vector_files::job::beside(&vectors_file, "meta"), vectors_file] {
                let _ = std::fs::remove_file(file);
            }
        }
        Ok(kept)
    }

    /// A model directory of these weights, and what is measured on it; `None` if they are no longer what they were.
    fn assemble(&self, model: &Weights, folder: &Path) -> anyhow::Result<Option<Measure>> {
        // A model directory is read by its own files, a checkpoint by those that the run has.
        let own = model.file.parent().filter(|f| f.join("nsparse.json").is_file());
        let side = own.unwrap_or(self.side);
        for name in ["config.json", "tokenizer.json", "idf.json", "nsparse.json"] {
            let from = side.join(name);
            if from.is_file() {
                std::fs::copy(&from, folder.join(name)).map_err(|e| nsparse_core::Error::io("read", &from, e))?;
            }
        }
        let weights = folder.join("model.safetensors");
        let is_there = link_or_copy(&model.file, &weights).is_ok()
            && files::sha256_file(&weights).is_ok_and(|(sha256, _)| sha256 == model.sha256);
        if !is_there {
            return Ok(None);
        }
        let directory = ModelDir::open(folder)?;
        if own.is_none() {
            let tokenizer = directory.tokenizer()?;
            if let Some(table) = learned_table(self.run, &weights, tokenizer.vocabulary().len())? {
                table.save(&folder.join("idf.json"), &tokenizer)?;
            }
        }
        let facts = directory.facts()?;
        let mut reading = serde_json::to_string(&(
            facts.activation,
            facts.max_tokens,
            facts.segments,
            &facts.dead_ids,
            &facts.template,
        ))?;
        for name in ["config.json", "tokenizer.json", "idf.json"] {
            if directory.file(name).is_file() {
                reading.push_str(&files::sha256_file(&directory.file(name))?.0);
            }
        }
        Ok(Some(Measure { reading: files::sha256_bytes(reading.as_bytes()), ..self.measure.clone() }))
    }
}

/// A folder on the cache's disk, gone in the end.
fn temporary_folder() -> anyhow::Result<tempfile::TempDir> {
    let cache = settings::cache_dir();
    std::fs::create_dir_all(&cache).map_err(|e| nsparse_core::Error::io("create", &cache, e))?;
    Ok(tempfile::Builder::new().prefix(".checkpoint-").tempdir_in(&cache)?)
}

/// A second name for the same bytes where the disk has such, so that they stay even if the run removes its own.
fn link_or_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(|_| ()))
}

fn texts(queries: &[nsparse_core::beir::Query]) -> Vec<&str> {
    queries.iter().map(|q| q.text.as_str()).collect()
}

/// The lines with the best marked and differences to the first or the best.
fn compared(models: Vec<(Weights, Kept)>, against: Against) -> anyhow::Result<Vec<Line>> {
    let resampling = Resampling::default();
    let values: Vec<Vec<f64>> = models.iter().map(|(_, kept)| kept.values.values().copied().collect()).collect();
    let intervals: Vec<Interval> = values.iter().map(|v| bootstrap_mean(v, &resampling)).collect();
    let mut best = 0;
    for (i, interval) in intervals.iter().enumerate() {
        if interval.mean > intervals[best].mean {
            best = i;
        }
    }
    let base = match against {
        Against::First => 0,
        Against::Best => best,
    };
    let lines = models.into_iter().enumerate().map(|(i, (model, kept))| {
        let difference = (i != base).then(|| compare(&values[base], &values[i], &resampling)).transpose()?;
        Ok(Line {
            names: model.names,
            step: model.step,
            value: intervals[i].mean,
            interval: intervals[i],
            difference,
            is_best: i == best,
            kept,
        })
    });
    lines.collect()
}

fn show(lines: &[Line], args: &EvalArgs, path: &Path, printer: &Printer) {
    let against = match args.against {
        Against::First => "less the first",
        Against::Best => "less the best",
    };
    let rows: Vec<Vec<String>> = lines
        .iter()
        .map(|line| {
            vec![
                format!("{}{}", line.names.join(", "), if line.is_best { " *" } else { "" }),
                line.step.map_or_else(String::new, |step| step.to_string()),
                format!("{:.4}", line.value),
                line.difference.map_or_else(String::new, |c| {
                    format!("{:+.4} [{:+.4}, {:+.4}]", c.difference.mean, c.difference.low, c.difference.high)
                }),
                format!("{:.0}", line.kept.dimensions.document_mean),
                format!("{:.1}", line.kept.dimensions.query_mean),
            ]
        })
        .collect();
    let head = ["model", "step", args.metric.as_str(), against, "dims a document", "a query"];
    printer.text(table(&head, &rows));
    printer.text(format!(
        "\n* is the best by {} on the split `{}`; intervals are paired, 95 %, bootstrap over {} queries",
        args.metric,
        args.split,
        lines.first().map_or(0, |l| l.kept.values.len())
    ));
    printer.text(path.display().to_string());
}

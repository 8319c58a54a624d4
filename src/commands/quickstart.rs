//! `nsparse quickstart`: the whole main job on the embedded sample collection.

use std::path::{Path, PathBuf};
use std::time::Instant;

use nsparse_core::beir::Dataset;
use nsparse_core::{DocumentTemplate, Searcher, files, rows, trec, wordpiece};
use nsparse_encoder::{BertConfig, BertMlm, Device};
use nsparse_opensearch::Cluster;
use nsparse_opensearch::ml::{DeployOptions, deploy};
use nsparse_retrieval::mine::text_queries;
use nsparse_retrieval::significance::compare_evaluations;
use nsparse_retrieval::{EvalOptions, Evaluation, MineOptions, Resampling, evaluate, mine};
use nsparse_trainer::{Hooks, Start, TrainConfig, train};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::{Engine, Method, QuickstartArgs};
use crate::commands::eval::summarise;
use crate::commands::report;
use crate::commands::train::show;
use crate::printer::{Printer, table};
use crate::ranking::{self, ANALYZER, Plan};
use crate::settings;

const CORPUS: &str = include_str!("../../samples/retrieval/corpus.jsonl");
const QUERIES: &str = include_str!("../../samples/retrieval/queries.jsonl");
const TRAIN: &str = include_str!("../../samples/retrieval/qrels/train.tsv");
const TEST: &str = include_str!("../../samples/retrieval/qrels/test.tsv");
/// The recipe; also a file for people to start from.
const RECIPE: &str = include_str!("../../configs/sample.yaml");

/// Entries of the vocabulary that is trained on the sample.
const VOCABULARY: usize = 2000;
const SEED: u64 = 42;

/// Where everything lies.
struct Places {
    data: PathBuf,
    base: PathBuf,
    rows: PathBuf,
    run: PathBuf,
    package: PathBuf,
    runs: PathBuf,
    deployment: PathBuf,
}

impl Places {
    fn below(out: &Path) -> Self {
        Self {
            data: out.join("data"),
            base: out.join("base"),
            rows: out.join("rows.jsonl"),
            run: out.join("run"),
            package: out.join("package"),
            runs: out.join("runs"),
            deployment: out.join("deployment.json"),
        }
    }
}

pub(crate) fn run(args: &QuickstartArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let started = Instant::now();
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    // Ask the cluster first: nobody wants to learn after the training that it does not answer.
    let cluster = match args.engine {
        Engine::Opensearch => Some(settings::cluster(&args.cluster)?),
        Engine::Local => None,
    };
    let places = Places::below(&args.out);
    let set = write_sample(&places.data)?;
    let documents = set.corpus()?;
    printer.text(format!(
        "sample: {} documents about retrieval, queries {}",
        documents.len(),
        set.splits().join(" and ")
    ));

    let template = DocumentTemplate::default();
    let texts: Vec<String> = documents.iter().map(|d| template.apply(d)).collect();
    let vocabulary = make_base(&places.base, &texts)?;
    printer.text(format!("vocabulary of {vocabulary} word pieces, a BERT of 2 layers with random weights"));

    let train_qrels = set.qrels("train")?;
    let queries = set.judged_queries(&train_qrels)?;
    let plan = Plan { set: &set, documents: &documents, method: Method::Bm25, model: None, device: Device::Cpu };
    let (bm25, _) = plan.searcher(cluster.as_ref(), ANALYZER, printer, &cancel)?;
    let engine = if cluster.is_some() { "bm25-opensearch" } else { "bm25-local" };
    let options =
        MineOptions { depth: 30, samples: 4, seed: SEED, engine: engine.to_owned(), ..MineOptions::default() };
    let (found, report) =
        mine(bm25.as_ref(), &text_queries(&queries), &train_qrels, &documents, &options, &cancel, &progress)?;
    rows::write(&places.rows, &found)?;
    printer.text(format!("{} training rows with {} BM25 negatives", report.rows, report.negatives));

    let text = |path: &Path| path.display().to_string();
    let recipe = TrainConfig::parse(
        RECIPE,
        &[
            format!("run.dir={}", json!(text(&places.run))),
            format!("model.path={}", json!(text(&places.base))),
            format!("data.dir={}", json!(text(&places.data))),
            format!("data.rows={}", json!(text(&places.rows))),
        ],
    )?;
    let summary = train(&recipe, Start::Replace, &Hooks { cancel: &cancel, progress: &progress })?;
    if !summary.finished {
        return Err(nsparse_core::Error::Cancelled.into());
    }
    show(&summary, printer);
    report::after_training(&places.run, printer);
    let model = places.run.join("model");
    nsparse_exporter::export(&model, &places.package, "nsparse-quickstart", "1.0.0")?;

    if let Some(cluster) = &cluster {
        let mut options = DeployOptions::new("nsparse-quickstart");
        options.file = Some(places.deployment.clone());
        let deployment = deploy(cluster, &places.package, &options, &cancel, &progress)?;
        for note in &deployment.notes {
            printer.note(note);
        }
    }
    let results = rank(&set, &model, bm25.as_ref(), cluster.as_ref(), &places, printer, &cancel)?;
    report_table(&results, printer)?;
    report_places(args, &places, cluster.is_some(), printer);
    let took = started.elapsed().as_secs_f64();
    printer.text(format!("\ndone in {took:.0} s"));
    let methods: serde_json::Map<String, serde_json::Value> = results
        .iter()
        .map(|(name, e)| Ok(((*name).to_owned(), serde_json::to_value(summarise(e))?)))
        .collect::<anyhow::Result<_>>()?;
    printer.json(&json!({
        "seconds": took, "methods": methods, "training": summary, "mining": report,
        "folder": args.out, "model": model, "package": places.package,
    }))?;
    Ok(ExitStatus::Success)
}

/// Writes the sample in the three-file form.
fn write_sample(folder: &Path) -> anyhow::Result<Dataset> {
    for (name, text) in
        [("corpus.jsonl", CORPUS), ("queries.jsonl", QUERIES), ("qrels/train.tsv", TRAIN), ("qrels/test.tsv", TEST)]
    {
        files::write_bytes(&folder.join(name), text.as_bytes())?;
    }
    Ok(Dataset::open(folder)?)
}

/// A vocabulary trained on the texts and a tiny BERT with random weights: what a user's own base model would be.
fn make_base(folder: &Path, texts: &[String]) -> anyhow::Result<usize> {
    let tokenizer = wordpiece::train(texts.iter().map(String::as_str), VOCABULARY)?;
    let size = tokenizer.vocabulary().len();
    files::write_bytes(&folder.join("tokenizer.json"), tokenizer.to_json(128)?.as_bytes())?;
    let config = BertConfig {
        model_type: "bert".to_owned(),
        vocab_size: size,
        hidden_size: 128,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        intermediate_size: 256,
        hidden_act: "gelu".to_owned(),
        max_position_embeddings: 128,
        type_vocab_size: 2,
        layer_norm_eps: 1e-12,
        hidden_dropout_prob: 0.1,
        attention_probs_dropout_prob: 0.1,
        initializer_range: 0.02,
        pad_token_id: tokenizer.special().pad,
        architectures: vec!["BertForMaskedLM".to_owned()],
    };
    BertMlm::random(config, SEED).save(folder)?;
    Ok(size)
}

/// BM25, the idf table alone, and the trained encoder over the held-out queries.
fn rank(
    set: &Dataset,
    model: &Path,
    bm25: &dyn Searcher,
    cluster: Option<&Cluster>,
    places: &Places,
    printer: &Printer,
    cancel: &nsparse_core::Cancel,
) -> anyhow::Result<Vec<(&'static str, Evaluation)>> {
    let qrels = set.qrels("test")?;
    let queries = set.judged_queries(&qrels)?;
    let documents = set.corpus()?;
    let mut results = Vec::new();
    for (name, method) in [("bm25", Method::Bm25), ("idf", Method::Idf), ("trained", Method::Sparse)] {
        let plan = Plan { set, documents: &documents, method, model: Some(model), device: Device::Cpu };
        let run = if method == Method::Bm25 {
            ranking::run(bm25, &ranking::search_queries(&queries, None)?, 100, &printer.progress(), cancel)?
        } else {
            let (searcher, vectors) = plan.searcher(cluster, ANALYZER, printer, cancel)?;
            let queries = ranking::search_queries(&queries, vectors.as_ref().map(|v| &v.queries))?;
            ranking::run(searcher.as_ref(), &queries, 100, &printer.progress(), cancel)?
        };
        trec::write_run(&places.runs.join(format!("{name}.trec")), &run, name)?;
        results.push((name, evaluate(&qrels, &run, &EvalOptions::default())));
    }
    Ok(results)
}

fn report_table(results: &[(&'static str, Evaluation)], printer: &Printer) -> anyhow::Result<()> {
    let baseline = &results[0].1;
    let mut table_rows = Vec::new();
    for (name, evaluation) in results {
        let title = match *name {
            "bm25" => "BM25",
            "idf" => "idf alone (word pieces, no network)",
            _ => "trained encoder",
        };
        let interval = summarise(evaluation).ndcg10;
        let difference = if *name == "bm25" {
            String::new()
        } else {
            let c = compare_evaluations(baseline, evaluation, "ndcg@10", &Resampling::default())?.difference;
            format!("{:+.3} ({:+.3} to {:+.3})", c.mean, c.low, c.high)
        };
        let recall = evaluation.mean.get("recall@100").copied().unwrap_or(0.0);
        table_rows.push(vec![
            title.to_owned(),
            format!("{:.4}", interval.mean),
            format!("{:.3} to {:.3}", interval.low, interval.high),
            format!("{recall:.3}"),
            difference,
        ]);
    }
    printer.text(format!("\n{} held-out queries:\n", baseline.queries));
    printer.text(table(&["", "nDCG@10", "95 % interval", "recall@100", "against BM25 (paired)"], &table_rows));
    Ok(())
}

fn report_places(args: &QuickstartArgs, places: &Places, in_cluster: bool, printer: &Printer) {
    printer.text("\nWhat lies where:");
    let model = places.run.join("model");
    let mut lines = vec![
        ("data", places.data.display().to_string()),
        ("training rows", places.rows.display().to_string()),
        ("run (recipe, metrics)", places.run.display().to_string()),
        ("model", model.display().to_string()),
        ("package for ML Commons", places.package.display().to_string()),
        ("rankings", places.runs.display().to_string()),
    ];
    if in_cluster {
        lines.push(("deployment", places.deployment.display().to_string()));
    }
    for (what, place) in lines {
        printer.text(format!("  {what:<24}{place}"));
    }
    printer.text("\nLook at a document's vector:");
    printer.text(format!("  nsparse inspect \"how large should a shard be\" --model {}", model.display()));
    if in_cluster {
        printer.text("Take back what the cluster got:");
        printer.text(format!("  nsparse undeploy {} --delete-index", places.deployment.display()));
    } else {
        printer.text("The same against a cluster:");
        printer.text(format!(
            "  nsparse quickstart --out {} --engine opensearch --url http://localhost:9200",
            args.out.display()
        ));
    }
}

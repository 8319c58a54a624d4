//! `nsparse encode`: documents into a file of vectors, in blocks, so that it can be stopped, continued and split.

use std::path::Path;

use nsparse_core::files;
use nsparse_core::vector_files::{Format, Job, Precision};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::{EncodeArgs, Runtime, VectorFormat, WeightBits};
use crate::document_encoder::DocumentModel;
use crate::encode_job::{Plan, Report, Source};
use crate::failure::usage;
use crate::printer::Printer;
use crate::{document_encoder, settings};

/// What impacts are in units of, unless said otherwise: hundredths, as SPLADE's authors have them.
const QUANTIZE: u32 = 100;

pub(crate) fn run(args: &EncodeArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    settings::limit_threads(args.threads)?;
    let source = source(args, printer)?;
    let model = document_encoder::open(&args.model, &args.runtime, &args.device)?.pruned(args.prune);
    let job = Job {
        model: model_hash(&args.model, &model)?,
        engine: match args.runtime.runtime {
            Runtime::Nsparse => args.device.clone(),
            Runtime::Onnxruntime => "onnxruntime".to_owned(),
        },
        format: match args.format {
            VectorFormat::Jsonl => Format::Jsonl,
            VectorFormat::Anserini => Format::Anserini,
            VectorFormat::Binary => Format::Binary,
        },
        weights: match args.weights {
            WeightBits::Full => Precision::Full,
            WeightBits::Stored => Precision::Stored,
        },
        quantize: args.quantize.or((args.format == VectorFormat::Anserini).then_some(QUANTIZE)),
        block: args.block,
        batch_tokens: args.batch_tokens,
        id_field: args.data.id_field.clone(),
        title_field: args.data.title_field.clone(),
        text_field: args.data.text_field.clone(),
        shard: args.shard.as_deref().map(str::parse).transpose()?,
    };
    let plan = Plan { job, source, model, out: args.out.clone(), force: args.force };
    let report = plan.run(printer, &settings::cancel_on_signal())?;
    show(&args.out, &report, printer)?;
    Ok(if report.is_finished { ExitStatus::Success } else { ExitStatus::No })
}

/// Where the documents come from: one of `--beir`, `--data`, a file and standard input.
fn source(args: &EncodeArgs, printer: &Printer) -> anyhow::Result<Source> {
    let is_set = args.data.beir.is_some() || args.data.data.is_some();
    match &args.input {
        Some(_) if is_set => {
            Err(usage("Documents are named twice", "give a file, or `-`, or --data DIR, or --beir NAME"))
        }
        Some(path) if path == Path::new("-") => Ok(Source::Stdin),
        Some(path) if path.is_dir() => Err(usage(
            format!("`{}` is a folder", path.display()),
            "give a file of jsonl, or --data DIR for a folder with corpus.jsonl",
        )),
        Some(path) => Ok(Source::File(path.clone())),
        None if is_set => Ok(Source::File(settings::dataset(&args.data, printer)?.folder.join("corpus.jsonl"))),
        None => Err(usage(
            "No documents are named",
            "give a file of jsonl, `-` for standard input, --data DIR for a set of your own, or --beir NAME",
        )),
    }
}

/// sha256 over everything of a model directory or package that its vectors depend on.
fn model_hash(folder: &Path, model: &DocumentModel) -> anyhow::Result<String> {
    let mut parts = model.weights_sha256.clone();
    for name in ["config.json", "tokenizer.json", "nsparse.json", "package.json"] {
        let path = folder.join(name);
        if path.is_file() {
            let hash = files::sha256_file(&path)?.0;
            parts = format!("{parts}\n{name} {hash}");
        }
    }
    if let Some(pruning) = model.pruning() {
        parts = format!("{parts}\npruned {pruning}");
    }
    Ok(files::sha256_bytes(parts.as_bytes()))
}

fn show(out: &Path, report: &Report, printer: &Printer) -> anyhow::Result<()> {
    let (counts, work) = (&report.counts, &report.work);
    let (documents, tokens) = (work.rate(work.encoded.documents), work.rate(work.encoded.tokens));
    if work.encoded.documents > 0 {
        printer.text(format!(
            "{} documents encoded in {:.1} s: {documents:.1} documents/s, {tokens:.0} tokens/s",
            work.encoded.documents, work.seconds
        ));
    }
    if report.is_finished {
        if work.encoded.documents == 0 {
            printer.text("Nothing to encode: the file has all documents already");
        }
        printer.text(format!(
            "{} has {} documents, {:.0} active dimensions a document, {} without any",
            out.display(),
            counts.documents,
            counts.mean_active(),
            counts.zero_vectors
        ));
    } else {
        printer.text(format!("Stopped with {} documents done; the same command goes on from there", counts.documents));
    }
    printer.json(&json!({
        "out": out,
        "finished": report.is_finished,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "mean_active_dimensions": counts.mean_active(),
        "zero_vectors": counts.zero_vectors,
        "encoded": work.encoded.documents,
        "encoded_tokens": work.encoded.tokens,
        "seconds": work.seconds,
        "documents_per_second": documents,
        "tokens_per_second": tokens,
        "sha256": report.sha256,
    }))
}

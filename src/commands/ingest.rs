//! `nsparse ingest`: encodes documents here, or takes vectors that are there, and indexes them.

use std::fmt::Write as _;

use nsparse_core::{DocumentEncoder as _, files, journal};
use nsparse_opensearch::ml::{Deployment, Fields};
use nsparse_opensearch::{Cluster, IngestOptions, ingest_encoded, ingest_vectors, segments};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::{IngestArgs, SegmentLayout};
use crate::failure::usage;
use crate::printer::Printer;
use crate::{document_encoder, settings, stored_vectors};

/// Rejected documents that are listed on the terminal; `--json` lists all.
const SHOWN: usize = 20;

pub(crate) fn run(args: &IngestArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global()?;
    }
    let (cluster, index, fields) = target(args)?;
    let documents = settings::dataset(&args.data, printer)?.corpus()?;
    let name = journal::content_hash(format!("{} {index}", cluster.url()).as_bytes());
    let path = args.journal.clone().unwrap_or_else(|| settings::cache_dir().join("journals").join(name));
    let mut options = IngestOptions { journal: Some(path.clone()), fields, ..IngestOptions::default() };
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    let started = std::time::Instant::now();
    let report = match (&args.vectors, &args.model) {
        (Some(file), _) => {
            let (vocabulary, vectors) = stored_vectors::read(file, &documents)?;
            options.job = format!("{index} {}", files::sha256_file(file)?.0);
            if options.fields.segments.is_some() {
                return Err(usage(
                    format!(
                        "The index `{index}` takes one vector a segment, and `{}` has one a document",
                        file.display()
                    ),
                    "give --model DIR, which encodes each segment; or an index made without --segments nested",
                ));
            }
            ingest_encoded(&cluster, &index, &documents, &vectors, &vocabulary, &options, &progress, &cancel)?
        }
        (None, Some(folder)) => {
            let model = document_encoder::open(folder, &args.runtime, &args.device)?;
            // What tells this job from another: the same documents with another model have other vectors.
            options.job = format!("{index} {} {} {:?}", model.weights_sha256, model.max_tokens(), model.activation);
            if let Some(segments) = &model.segments {
                let _ = write!(options.job, " {segments:?}");
            }
            if options.fields.segments.is_some() {
                options.job.push_str(" nested");
                if model.segments.is_none_or(|s| s.max == 1) {
                    printer.note("This model reads one window of a document: each document has one segment");
                }
            }
            ingest_vectors(&cluster, &index, &documents, &model, &model.template, &options, &progress, &cancel)?
        }
        (None, None) => return Err(usage("No model is named", "give --model DIR, or --vectors FILE")),
    };
    let seconds = started.elapsed().as_secs_f64();
    printer.text(format!(
        "{} documents indexed into `{index}` in {seconds:.1} s ({} requests, {} sent again), {} were in already; the index has {}",
        report.indexed, report.requests, report.retries, report.skipped, report.documents
    ));
    for rejected in report.rejected.iter().take(SHOWN) {
        printer.text(format!("rejected: {}: {}", rejected.id, rejected.reason));
    }
    if report.rejected.len() > SHOWN {
        printer.text(format!("… and {} more (--json lists all)", report.rejected.len() - SHOWN));
    }
    printer.json(&json!({ "index": index, "seconds": seconds, "journal": path, "report": report }))?;
    Ok(if report.rejected.is_empty() { ExitStatus::Success } else { ExitStatus::No })
}

/// The cluster, index and fields that the deployment or the flags name.
fn target(args: &IngestArgs) -> anyhow::Result<(Cluster, String, Fields)> {
    if let Some(path) = &args.deployment {
        let deployment = Deployment::load(path)?;
        let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
        let is_nested = deployment.fields.segments.is_some();
        if args.segments.is_some_and(|asked| is_nested != (asked == SegmentLayout::Nested)) {
            let made = if is_nested { "with nested segments" } else { "for one vector a document" };
            return Err(usage(
                format!("`{}` names an index that was made {made}", path.display()),
                "leave out --segments, or make another index with `nsparse deploy --segments`",
            ));
        }
        return Ok((cluster, deployment.index, deployment.fields));
    }
    let Some(index) = &args.index else {
        return Err(usage("No index is named", "give --deployment FILE or --index NAME"));
    };
    let fields = Fields { vector: args.vector_field.clone(), ..Fields::default() };
    let cluster = settings::cluster(&args.cluster)?;
    let fields = match args.segments {
        Some(SegmentLayout::Nested) => segments::ensure_nested(&cluster, index, fields)?,
        asked => {
            let fields = segments::fields_of(&cluster, index, fields)?;
            if asked.is_some() && fields.segments.is_some() {
                return Err(usage(
                    format!(
                        "The field `{}` of the index `{index}` is nested: it takes one vector a segment",
                        fields.vector
                    ),
                    "leave out --segments, or name another field with --vector-field",
                ));
            }
            fields
        }
    };
    Ok((cluster, index.clone(), fields))
}

//! `nsparse ingest`: encodes documents here and indexes them.

use nsparse_core::{DocumentEncoder as _, journal};
use nsparse_opensearch::ml::{Deployment, Fields};
use nsparse_opensearch::{Cluster, IngestOptions, ingest_vectors};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::IngestArgs;
use crate::failure::usage;
use crate::printer::Printer;
use crate::{document_encoder, settings};

/// Rejected documents that are listed on the terminal; `--json` lists all.
const SHOWN: usize = 20;

pub(crate) fn run(args: &IngestArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new().num_threads(threads as usize).build_global()?;
    }
    let (cluster, index, fields) = target(args)?;
    let model = document_encoder::open(&args.model, &args.runtime, &args.device)?;
    let documents = settings::dataset(&args.data, printer)?.corpus()?;
    // What tells this job from another: the same documents with another model have other vectors.
    let job = format!("{index} {} {} {:?}", model.weights_sha256, model.max_tokens(), model.activation);
    let name = journal::content_hash(format!("{} {index}", cluster.url()).as_bytes());
    let path = args.journal.clone().unwrap_or_else(|| settings::cache_dir().join("journals").join(name));
    let options = IngestOptions { journal: Some(path.clone()), job, fields, ..IngestOptions::default() };
    let cancel = settings::cancel_on_signal();
    let started = std::time::Instant::now();
    let report =
        ingest_vectors(&cluster, &index, &documents, &model, &model.template, &options, &printer.progress(), &cancel)?;
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
        return Ok((cluster, deployment.index, deployment.fields));
    }
    let Some(index) = &args.index else {
        return Err(usage("No index is named", "give --deployment FILE or --index NAME"));
    };
    let fields = Fields { vector: args.vector_field.clone(), ..Fields::default() };
    Ok((settings::cluster(&args.cluster)?, index.clone(), fields))
}

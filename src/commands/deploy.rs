//! `nsparse deploy`: a package becomes models, pipeline and index in a cluster.

use std::time::Duration;

use nsparse_opensearch::ml::{DeployOptions, Side, deploy};

use crate::ExitStatus;
use crate::cli::{DeployArgs, EncodeSide, SegmentLayout};
use crate::printer::Printer;
use crate::settings;

pub(crate) fn run(args: &DeployArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cluster = settings::cluster(&args.cluster)?;
    let mut options = DeployOptions::new(&args.index);
    if let Some(pipeline) = &args.pipeline {
        options.pipeline.clone_from(pipeline);
    }
    options.fields.vector.clone_from(&args.vector_field);
    if args.segments == SegmentLayout::Nested {
        options.fields = options.fields.nested();
    }
    options.shards = args.shards;
    options.replicas = args.replicas;
    options.side = match args.side {
        EncodeSide::Auto => Side::Auto,
        EncodeSide::Cluster => Side::Cluster,
        EncodeSide::Query => Side::Query,
        EncodeSide::Client => Side::Client,
    };
    options.file = Some(args.deployment.clone());
    options.poll.deadline = Duration::from_secs(args.deadline);
    let cancel = settings::cancel_on_signal();
    let deployment = deploy(&cluster, &args.package, &options, &cancel, &printer.progress())?;
    for note in &deployment.notes {
        printer.note(note);
    }
    printer.text(format!("Deployed to {} ({}):", deployment.cluster_url, deployment.version));
    printer.text(format!("  index              {}", deployment.index));
    if let Some(pipeline) = &deployment.pipeline {
        printer.text(format!("  ingest pipeline    {pipeline}"));
    }
    if let Some(model) = &deployment.document_model {
        printer.text(format!("  document encoder   {} ({})", model.name, model.id));
    }
    if let Some(model) = &deployment.query_model {
        printer.text(format!("  query tokenizer    {} ({})", model.name, model.id));
    }
    printer.text(format!("  documents, queries encoded: {}", side_in_words(deployment.side)));
    printer.text(format!("\n{}", args.deployment.display()));
    printer.text(format!("Take it back with: nsparse undeploy {}", args.deployment.display()));
    printer.json(&serde_json::json!({ "file": args.deployment, "deployment": deployment }))?;
    Ok(ExitStatus::Success)
}

fn side_in_words(side: Side) -> &'static str {
    match side {
        Side::Cluster => "both in the cluster",
        Side::Query => "documents here by `nsparse ingest`, queries in the cluster",
        Side::Client | Side::Auto => "both here, by `nsparse ingest` and `nsparse search`",
    }
}

//! `nsparse prune-models`: models of ours that nothing uses any more.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use nsparse_opensearch::ml::{Deployment, Poll, PruneReport, our_models, prune};
use serde_json::json;

use crate::ExitStatus;
use crate::cli::ClusterArgs;
use crate::failure::world;
use crate::printer::Printer;
use crate::settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse prune-models
  nsparse prune-models --deployment articles.json --deployment news.json --yes

Listed are the models that `nsparse deploy` registered: those in a model group with its mark, named as packages name them.
A model stays where a pipeline, an index or one of the deployment files names it, where a node runs it, and while it may
still be uploaded. Without --yes nothing is deleted.";

#[derive(Debug, Args)]
pub(crate) struct PruneModelsArgs {
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// A deployment file whose models stay; can be given several times [default: deployment.json, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) deployment: Vec<PathBuf>,
    /// Delete also what nothing names although a node runs it: no application may ask it by its id
    #[arg(long)]
    pub(crate) running: bool,
    /// Delete what is listed as unused
    #[arg(long)]
    pub(crate) yes: bool,
}

pub(crate) fn run(args: &PruneModelsArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let default = Path::new("deployment.json");
    let mut files = args.deployment.iter().map(|path| Deployment::load(path)).collect::<Result<Vec<_>, _>>()?;
    if args.deployment.is_empty() && default.is_file() {
        files.push(Deployment::load(default)?);
    }
    let cluster = match files.first() {
        Some(file) => settings::cluster_of(&args.cluster, &file.cluster_url)?,
        None => settings::cluster(&args.cluster)?,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let models = our_models(&cluster, &files, args.running, now)?;
    for model in &models {
        let hash = &model.sha256[..model.sha256.len().min(12)];
        let why =
            if model.used_by.is_empty() { "unused".to_owned() } else { format!("stays: {}", model.used_by.join(", ")) };
        printer.text(format!(
            "{}  {}  {}  {} bytes, sha256 {hash}…, deployment {}: {why}",
            model.id, model.name, model.state, model.bytes, model.deployment
        ));
    }
    let unused = models.iter().filter(|m| m.used_by.is_empty()).count();
    let report = if args.yes { prune(&cluster, &models, &Poll::default()) } else { PruneReport::default() };
    for removed in &report.removed {
        printer.text(format!("deleted: {removed}"));
    }
    match (models.len(), unused, args.yes) {
        (0, ..) => printer.text("No models of nsparse are in this cluster"),
        (_, 0, _) => printer.text("Every model is in use"),
        (_, _, false) => printer.text(format!("{unused} of {} are unused; delete them with --yes", models.len())),
        _ => {}
    }
    printer.json(&json!({ "models": models, "unused": unused, "removed": report.removed, "failed": report.failed }))?;
    if !report.failed.is_empty() {
        return Err(world(
            format!("{} models could not be deleted: {}", report.failed.len(), report.failed.join("; ")),
            "mend what that says and run the same command again",
        ));
    }
    Ok(ExitStatus::Success)
}

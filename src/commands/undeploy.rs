//! `nsparse undeploy`: takes back what a deploy made.

use std::path::PathBuf;

use clap::Args;
use nsparse_opensearch::ml::{Deployment, UndeployOptions, undeploy_file};

use crate::ExitStatus;
use crate::cli::ClusterArgs;
use crate::failure::world;
use crate::printer::Printer;
use crate::settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse undeploy deployment.json
  nsparse undeploy deployment.json --version 1 --delete-index";

#[derive(Debug, Args)]
pub(crate) struct UndeployArgs {
    /// The file that `nsparse deploy` wrote
    #[arg(default_value = "deployment.json")]
    pub(crate) deployment: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Leave the index and its documents
    #[arg(long, conflicts_with = "delete_index")]
    pub(crate) keep_index: bool,
    /// Delete the index even if it has documents
    #[arg(long)]
    pub(crate) delete_index: bool,
    /// Only this version behind the alias, which must not be served; what other versions use stays
    #[arg(long, value_name = "N")]
    pub(crate) version: Option<u32>,
}

pub(crate) fn run(args: &UndeployArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let deployment = Deployment::load(&args.deployment)?;
    let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
    let options = UndeployOptions {
        keep_index: args.keep_index,
        delete_index: args.delete_index,
        version: args.version,
        ..UndeployOptions::default()
    };
    let report = undeploy_file(&cluster, &args.deployment, &options)?;
    for (what, things) in [
        ("removed", &report.removed),
        ("gone already", &report.gone),
        ("kept", &report.kept),
        ("could not be removed", &report.failed),
    ] {
        for thing in things {
            printer.text(format!("{what}: {thing}"));
        }
    }
    printer.json(&serde_json::json!({
        "removed": report.removed, "gone": report.gone, "kept": report.kept, "failed": report.failed, "left": report.left,
    }))?;
    if !report.failed.is_empty() {
        return Err(world(
            format!(
                "{} things could not be taken back; `{}` keeps what is left",
                report.failed.len(),
                args.deployment.display()
            ),
            "mend what the lines above say and run the same command again",
        ));
    }
    Ok(ExitStatus::Success)
}

//! `nsparse rollback`: an alias goes back to what it stood for before.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nsparse_opensearch::ml::{Deployment, SwitchOptions, rollback_file};

use crate::ExitStatus;
use crate::cli::ClusterArgs;
use crate::commands::switch;
use crate::printer::Printer;
use crate::settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse rollback
  nsparse rollback deployment.json --force

What was served before stands in the file's `history`. Its models are deployed again where they are not, it is asked some
queries, and the alias is moved by one request, so no query is lost. The newer version stays: `nsparse switch --to N`.";

#[derive(Debug, Args)]
pub(crate) struct RollbackArgs {
    /// The file that `nsparse deploy --alias` wrote
    #[arg(default_value = "deployment.json")]
    pub(crate) deployment: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Go back even if the old index fails its queries
    #[arg(long)]
    pub(crate) force: bool,
    /// Seconds until a model that has to be deployed again is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) deadline: u64,
}

pub(crate) fn run(args: &RollbackArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let deployment = Deployment::load(&args.deployment)?;
    let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
    let mut options = SwitchOptions { force: args.force, ..SwitchOptions::default() };
    options.poll.deadline = Duration::from_secs(args.deadline);
    let report = rollback_file(&cluster, &args.deployment, &options, &settings::cancel_on_signal())?;
    switch::show(&report, printer)?;
    Ok(ExitStatus::Success)
}

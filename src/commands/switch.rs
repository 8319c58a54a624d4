//! `nsparse switch`: an alias goes to another version in one step.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nsparse_opensearch::ml::{Deployment, SwitchOptions, SwitchReport, switch_file};

use crate::ExitStatus;
use crate::cli::ClusterArgs;
use crate::printer::Printer;
use crate::settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse switch
  nsparse switch deployment.json --documents 50000 --query \"vitamin D and bone density\"
  nsparse switch --to 1

The new index must have as many documents as the one served, or as many as --documents says; its models must run; and
queries made of its own documents, and each --query, must find something; where its documents have no text to ask by, give a
--query. Then the alias is moved by one request, so no query is lost, and asked once more. `nsparse rollback` goes back.";

#[derive(Debug, Args)]
pub(crate) struct SwitchArgs {
    /// The file that `nsparse deploy --alias` wrote
    #[arg(default_value = "deployment.json")]
    pub(crate) deployment: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// The version to serve [default: the one that was deployed last]
    #[arg(long, value_name = "N")]
    pub(crate) to: Option<u32>,
    /// How many documents the new index must have [default: as many as the one served]
    #[arg(long, value_name = "N")]
    pub(crate) documents: Option<u64>,
    /// A query that must find something; can be given several times
    #[arg(long, value_name = "TEXT")]
    pub(crate) query: Vec<String>,
    /// Seconds until a model that has to be deployed again is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) deadline: u64,
}

pub(crate) fn run(args: &SwitchArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let deployment = Deployment::load(&args.deployment)?;
    let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
    let mut options = SwitchOptions {
        to: args.to,
        documents: args.documents,
        queries: args.query.clone(),
        ..SwitchOptions::default()
    };
    options.poll.deadline = Duration::from_secs(args.deadline);
    let report = switch_file(&cluster, &args.deployment, &options, &settings::cancel_on_signal())?;
    show(&report, printer)?;
    if report.changed {
        printer.text(format!("Go back with: nsparse rollback {}", args.deployment.display()));
    }
    Ok(ExitStatus::Success)
}

/// What a switch or a rollback did.
pub(crate) fn show(report: &SwitchReport, printer: &Printer) -> anyhow::Result<()> {
    for note in &report.notes {
        printer.note(note);
    }
    let (alias, to) = (&report.alias, report.to.join(", "));
    if report.changed {
        let from = if report.from.is_empty() { "nothing".to_owned() } else { report.from.join(", ") };
        printer.text(format!("{alias}: {from} → {to} ({} documents)", report.to_documents));
        for asked in &report.asked {
            printer.text(format!("  asked: {} ({} found)", asked.what, asked.hits));
        }
    } else {
        printer.text(format!("{alias} stands for {to} already ({} documents); nothing changed", report.to_documents));
    }
    printer.json(report)
}

//! `nsparse doctor`: what would fail on this machine and in a cluster, and its mend.

use std::io::{BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use nsparse_opensearch::Cluster;
use nsparse_opensearch::doctor::{self, Change, Finding, Level, fix};
use serde_json::json;

use crate::ExitStatus;
use crate::connect;
use crate::connect::args::ClusterArgs;
use crate::failure::{Failure, usage};
use crate::printer::{Printer, prompt};
use crate::settings;

pub(crate) const EXAMPLES: &str = "Examples:\n  nsparse doctor\n  nsparse doctor --url https://search.example.com:9200 \
--user admin\n  nsparse doctor --url http://localhost:9200 --fix\n  nsparse doctor --undo nsparse-doctor-1795224239.json\n\n\
Exit code 1: something would fail.";

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Show the settings that mend what would fail, ask, and apply them
    #[arg(long)]
    fix: bool,
    /// With --fix: do not ask
    #[arg(long, requires = "fix")]
    yes: bool,
    /// Take back what --fix has changed, as this file says
    #[arg(long, value_name = "FILE", conflicts_with = "fix")]
    undo: Option<PathBuf>,
    /// With --fix: where the way back is written [default: nsparse-doctor-TIME.json]
    #[arg(long, value_name = "FILE", requires = "fix")]
    undo_file: Option<PathBuf>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub(crate) fn run(args: &DoctorArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if let Some(path) = &args.undo {
        return undo(args, path, printer);
    }
    let machine = doctor::machine(&settings::cache_dir());
    printer.text(section("This machine", &machine));
    let cluster = match target(args)? {
        Some(cluster) => cluster,
        None if args.fix => return Err(usage("No cluster is named, so there is nothing to fix", "give --url")),
        None => {
            printer.text(
                "\nNo cluster is named and no local node runs: only this machine was looked at. Name one with --url.",
            );
            return finish(&machine, json!({ "machine": machine, "cluster": null }), printer);
        }
    };
    let found = match doctor::examine(&cluster) {
        Ok(found) => found,
        Err(error) => {
            // What the doctor is for: the machine's part stands, and this is the cluster's.
            let failure = Failure::from(&anyhow::Error::from(error));
            let out = Finding {
                subject: cluster.url().to_owned(),
                value: "cannot be used".to_owned(),
                level: Level::Problem,
                meaning: Some(failure.message),
                mend: failure.hint,
                change: None,
            };
            vec![out]
        }
    };
    printer.text(format!("\n{}", section(&format!("Cluster {}", cluster.url()), &found)));
    let changes = fix::changes(&found);
    if !args.fix || changes.is_empty() {
        if args.fix {
            printer.text("\nThere is no setting to change.");
        }
        let report = json!({ "machine": machine, "cluster": { "url": cluster.url(), "findings": found } });
        return finish(&[machine, found].concat(), report, printer);
    }
    let (after, applied) = apply(args, &cluster, changes, printer)?;
    let report = json!({
        "machine": machine, "cluster": { "url": cluster.url(), "findings": after.as_ref().unwrap_or(&found) },
        "before": found, "applied": applied,
    });
    let last = after.unwrap_or(found);
    finish(&[machine, last].concat(), report, printer)
}

/// The cluster that is named, or this machine's node; `None` where there is neither.
fn target(args: &DoctorArgs) -> anyhow::Result<Option<Cluster>> {
    let local = nsparse_opensearch::node::default_url(settings::node_dir().as_deref())?;
    let config = connect::config(&args.cluster, || Ok(local.unwrap_or_default()))?;
    if config.urls.is_empty() {
        return Ok(None);
    }
    Ok(Some(Cluster::connect(&config)?))
}

fn finish(findings: &[Finding], mut report: serde_json::Value, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let fails = doctor::fails(findings);
    let count = |level| findings.iter().filter(|f| f.level == level).count();
    printer.text(match (count(Level::Problem), count(Level::Warning)) {
        (0, 0) => "\nNothing would fail.".to_owned(),
        (0, warnings) => format!("\nNothing would fail; warnings: {warnings}."),
        (problems, warnings) => format!("\nWould fail: {problems}; warnings: {warnings}."),
    });
    report["would_fail"] = fails.into();
    printer.json(&report)?;
    Ok(if fails { ExitStatus::No } else { ExitStatus::Success })
}

/// Shows, asks, writes the way back, applies, and looks again; `None` where the answer was no.
fn apply(
    args: &DoctorArgs,
    cluster: &Cluster,
    changes: Vec<Change>,
    printer: &Printer,
) -> anyhow::Result<(Option<Vec<Finding>>, Option<serde_json::Value>)> {
    printer.text("\nSettings to change:");
    for change in &changes {
        printer.text(format!(
            "  {} ({}): {} → {}",
            change.setting,
            change.scope,
            shown(&change.effective),
            shown(&change.new)
        ));
    }
    if !args.yes && !agreed(printer)? {
        printer.text("Nothing was changed.");
        return Ok((None, None));
    }
    let record = fix::Record::new(cluster, changes)?;
    let path = args.undo_file.clone().unwrap_or_else(|| {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        PathBuf::from(format!("nsparse-doctor-{seconds}.json"))
    });
    if path.exists() {
        return Err(usage(
            format!("`{}` is there already, and may be the way back of an earlier fix", path.display()),
            "give another --undo-file",
        ));
    }
    // Written first: whatever happens afterwards, the way back is known.
    record.save(&path)?;
    fix::apply(cluster, &record)?;
    printer.text(format!("\nChanged. Take it back with: nsparse doctor --undo {}", path.display()));
    let after = doctor::examine(cluster)?;
    printer.text(format!("\n{}", section("Afterwards", &after)));
    Ok((Some(after), Some(json!({ "changes": record.changes, "undo_file": path }))))
}

/// Whether the user says yes.
fn agreed(printer: &Printer) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() || printer.is_json() {
        return Err(usage("--fix asks before it changes anything, and nobody is there to answer", "give --yes"));
    }
    prompt("Apply them? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_lowercase().as_str(), "y" | "yes"))
}

fn undo(args: &DoctorArgs, path: &std::path::Path, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let record = fix::Record::load(path)?;
    let cluster = settings::cluster_of(&args.cluster, &record.cluster_url)?;
    fix::undo(&cluster, &record)?;
    for change in &record.changes {
        let old = if change.old.is_null() { "the default".to_owned() } else { shown(&change.old) };
        printer.text(format!("{} ({}): {} → {old}", change.setting, change.scope, shown(&change.new)));
    }
    printer.json(&json!({ "undone": record.changes }))?;
    Ok(ExitStatus::Success)
}

fn shown(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Null => "not set".to_owned(),
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn section(title: &str, findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.subject.chars().count()).filter(|w| *w <= 56).max().unwrap_or(0);
    let mut lines = vec![title.to_owned()];
    for finding in findings {
        let mark = match finding.level {
            Level::Ok => "ok  ",
            Level::Note => "note",
            Level::Warning => "WARN",
            Level::Problem => "FAIL",
        };
        lines.push(format!("  {mark}  {:width$}  {}", finding.subject, finding.value));
        lines.extend(finding.meaning.iter().map(|m| format!("        {m}")));
        lines.extend(finding.mend.iter().map(|m| format!("        mend: {m}")));
    }
    lines.join("\n")
}

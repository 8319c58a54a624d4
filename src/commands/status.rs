//! `nsparse status`: how a deployment or an index is doing, once or until it is ended.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use nsparse_opensearch::ml::{Counter, Deployment, IndexStatus, Status, status_of, status_of_index};
use nsparse_opensearch::{Cluster, Error};

use serde_json::json;

use crate::ExitStatus;
use crate::cli::ClusterArgs;
use crate::failure::usage;
use crate::printer::Printer;
use crate::{monitor, settings};

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse status
  nsparse status articles.json --watch
  nsparse status --index articles --json

Exit code 1 where something is wrong: a model that does not run, a pipeline or an index that is gone. With --watch, q or
Ctrl-C ends it; where there is no terminal, it prints a line every few seconds, with --json each look as an object on a
line. What fails after the first look, such as a node that restarts, is shown, and it goes on looking.";

/// How long a signal may wait until it is heard.
const PATIENCE: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The file that `nsparse deploy` wrote
    #[arg(default_value = "deployment.json")]
    pub(crate) deployment: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// An index or an alias, where there is no deployment file
    #[arg(long, value_name = "NAME", conflicts_with = "deployment")]
    pub(crate) index: Option<String>,
    /// Look again and again, with rates
    #[arg(long)]
    pub(crate) watch: bool,
    /// Seconds between two looks of --watch
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    pub(crate) every: f64,
}

/// What is looked at.
enum Target {
    Deployment(Box<Deployment>),
    Index(String),
}

impl Target {
    fn look(&self, cluster: &Cluster) -> Result<Status, Error> {
        match self {
            Self::Deployment(deployment) => status_of(cluster, deployment),
            Self::Index(name) => status_of_index(cluster, name),
        }
    }
}

pub(crate) fn run(args: &StatusArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let Some(every) = Duration::try_from_secs_f64(args.every).ok().filter(|e| *e >= Duration::from_millis(100)) else {
        return Err(usage(
            format!("`--every {}` is no time between two looks", args.every),
            "give seconds, at least 0.1",
        ));
    };
    let target = match &args.index {
        Some(index) => Target::Index(index.clone()),
        None => Target::Deployment(Box::new(Deployment::load(&args.deployment)?)),
    };
    let url = match &target {
        Target::Deployment(deployment) => Some(deployment.cluster_url.as_str()),
        Target::Index(_) => None,
    };
    if args.watch {
        return watch(settings::cluster_without_retries(&args.cluster, url)?, target, every, printer);
    }
    let cluster = match url {
        Some(url) => settings::cluster_of(&args.cluster, url)?,
        None => settings::cluster(&args.cluster)?,
    };
    let status = target.look(&cluster)?;
    printer.text(text(&status, None));
    printer.json(&status)?;
    Ok(if status.problems.is_empty() { ExitStatus::Success } else { ExitStatus::No })
}

/// Shows looks until it is ended. The first one has to succeed: what is wrong there is a name or a password.
fn watch(cluster: Cluster, target: Target, every: Duration, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cancel = settings::cancel_on_signal();
    let looks = looks(cluster, target, every);
    let mut before: Option<Status> = None;
    if !printer.is_json() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        let mut shown = String::new();
        monitor::live_text(&cancel, || match looks.try_recv() {
            Err(_) => Ok(None),
            Ok(Ok(status)) => {
                shown = text(&status, before.as_ref());
                before = Some(status);
                Ok(Some(shown.clone()))
            }
            Ok(Err(error)) if before.is_none() => Err(error.into()),
            Ok(Err(error)) => Ok(Some(format!("Problem: {error}\nBefore that:\n{shown}"))),
        })?;
        return Ok(ExitStatus::Success);
    }
    while !cancel.is_cancelled() {
        match looks.recv_timeout(PATIENCE) {
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
            Ok(Ok(status)) => {
                printer.text(line(&status, before.as_ref()));
                printer.json_line(&status)?;
                before = Some(status);
            }
            Ok(Err(error)) if before.is_none() => return Err(error.into()),
            Ok(Err(error)) => {
                printer.text(format!("problem: {error}"));
                printer.json_line(&json!({ "error": error.to_string(), "hint": error.hint() }))?;
            }
        }
    }
    Ok(ExitStatus::Success)
}

/// Looks again and again, on a thread of its own: a request that hangs keeps nobody from ending the watch.
fn looks(cluster: Cluster, target: Target, every: Duration) -> Receiver<Result<Status, Error>> {
    let (sender, looks) = sync_channel(0);
    std::thread::spawn(move || {
        loop {
            let begun = Instant::now();
            if sender.send(target.look(&cluster)).is_err() {
                return;
            }
            std::thread::sleep(every.saturating_sub(begun.elapsed()));
        }
    });
    looks
}

/// All of a look; with an earlier one also rates.
fn text(status: &Status, before: Option<&Status>) -> String {
    let mut out = format!("Cluster {}", status.cluster_url);
    if !status.version.is_empty() {
        let _ = write!(out, " ({})", status.version);
    }
    if !status.health.is_empty() {
        let _ = write!(out, ", {}", status.health);
    }
    if let Some((alias, behind)) = &status.alias {
        let behind = if behind.is_empty() { "nothing".to_owned() } else { behind.join(", ") };
        let _ = write!(out, "\nAlias {alias} stands for {behind}");
    }
    out.push_str("\nIndexes");
    for index in &status.indexes {
        let version = index.number.map(|n| format!(", version {n}")).unwrap_or_default();
        let served = if index.served { ", served" } else { "" };
        let _ = write!(out, "\n  {}{version}{served}: {}, {}", index.name, documents(index), HumanBytes(index.bytes));
        let _ = write!(out, "\n    {}", counters(index, earlier(status, before, index)));
        if index.index_failed > 0 {
            let _ = write!(out, ", {} refused", HumanCount(index.index_failed));
        }
    }
    if !status.models.is_empty() {
        out.push_str("\nModels");
    }
    for model in &status.models {
        let _ = write!(out, "\n  {} ({}): {}", model.name, model.id, model.state);
        if model.planned > 0 {
            let _ = write!(out, " on {} of {} nodes", model.nodes, model.planned);
        }
        if let Some(memory) = model.memory {
            let _ = write!(out, ", about {} of memory", HumanBytes(memory));
        }
        if let Some([mean, p50, p90, p99]) = model.latency {
            let _ = write!(
                out,
                "\n    {} requests: {mean:.1} ms, p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}",
                HumanCount(model.requests)
            );
        }
    }
    if !status.pipelines.is_empty() {
        out.push_str("\nPipelines");
    }
    for pipeline in &status.pipelines {
        let _ = write!(out, "\n  {} ({})", pipeline.name, pipeline.kind);
        if !pipeline.there {
            out.push_str(": not there");
        } else if let Some(each) = pipeline.processed.each() {
            let count = HumanCount(pipeline.processed.count);
            let _ = write!(out, ": {count} documents, {each:.1} ms each, {} failed", HumanCount(pipeline.failed));
        }
    }
    if !status.nodes.is_empty() {
        out.push_str("\nNodes");
    }
    for node in &status.nodes {
        let _ = write!(
            out,
            "\n  {}: heap {} % of {}, memory {} %, processors {} %, disk {} free of {}",
            node.name,
            node.heap_percent,
            HumanBytes(node.heap_bytes),
            node.memory_percent,
            node.cpu_percent,
            HumanBytes(node.disk_free),
            HumanBytes(node.disk_bytes)
        );
    }
    for problem in &status.problems {
        let _ = write!(out, "\nProblem: {problem}");
    }
    out
}

/// The index as an earlier look saw it, and the seconds since then.
fn earlier<'a>(status: &Status, before: Option<&'a Status>, index: &IndexStatus) -> Option<(&'a IndexStatus, f64)> {
    let before = before?;
    let seconds = status.at.saturating_sub(before.at) as f64 / 1000.0;
    before.indexes.iter().find(|i| i.name == index.name).filter(|_| seconds > 0.0).map(|i| (i, seconds))
}

fn documents(index: &IndexStatus) -> String {
    index.documents.map_or_else(|| "documents not counted".to_owned(), |n| format!("{} documents", HumanCount(n)))
}

/// Rates since an earlier look; without one the means since the shards were opened.
fn counters(index: &IndexStatus, before: Option<(&IndexStatus, f64)>) -> String {
    let one = |name: &str, now: Counter, then: Option<Counter>| {
        let each = |c: Counter| c.each().map(|ms| format!(" at {ms:.1} ms")).unwrap_or_default();
        match (then, before) {
            (Some(then), Some((_, seconds))) => {
                let since = now.since(then);
                format!("{:.1} {name}/s{}", since.count as f64 / seconds, each(since))
            }
            _ => format!("{} {name}{}", HumanCount(now.count), each(now)),
        }
    };
    format!(
        "{}, {}",
        one("indexed", index.indexed, before.map(|(b, _)| b.indexed)),
        one("shard queries", index.searched, before.map(|(b, _)| b.searched))
    )
}

/// A look in one line, for a log.
fn line(status: &Status, before: Option<&Status>) -> String {
    let mut parts: Vec<String> = status
        .indexes
        .iter()
        .map(|i| format!("{}: {}, {}", i.name, documents(i), counters(i, earlier(status, before, i))))
        .collect();
    parts.extend(status.problems.iter().map(|p| format!("problem: {p}")));
    parts.join("; ")
}

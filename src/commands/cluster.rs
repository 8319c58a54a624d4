//! `nsparse cluster`: a local OpenSearch development node.

use nsparse_opensearch::node::{self, Engine, NodeOptions};

use crate::ExitStatus;
use crate::cli::{ClusterCommand, ClusterCommandArgs, ClusterDownArgs, ClusterUpArgs, NodeEngine};
use crate::printer::{Printer, table};
use crate::settings;

pub(crate) fn run(args: &ClusterCommandArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    match &args.command {
        ClusterCommand::Up(args) => up(args, printer),
        ClusterCommand::Status => status(printer),
        ClusterCommand::Down(args) => down(args, printer),
    }
}

fn up(args: &ClusterUpArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let options = NodeOptions {
        version: args.version.clone(),
        port: args.port,
        heap: args.heap.clone(),
        engine: match args.engine {
            NodeEngine::Auto => Engine::Auto,
            NodeEngine::Docker => Engine::Docker,
            NodeEngine::Assembled => Engine::Assembled,
        },
        state_dir: settings::node_dir(),
        image: args.image.clone(),
        ..NodeOptions::default()
    };
    let up = node::up(&options, &printer.progress(), &settings::cancel_on_signal())?;
    for note in &up.notes {
        printer.note(note);
    }
    let state = if up.already { "runs already" } else { "is up" };
    printer.text(format!("OpenSearch {} {state}\n  URL  {}\n  log  {}", up.node.version, up.node.url, up.node.log));
    printer.text("\nStop it with: nsparse cluster down");
    printer.json(&serde_json::json!({ "node": up.node, "already": up.already, "notes": up.notes }))?;
    Ok(ExitStatus::Success)
}

fn status(printer: &Printer) -> anyhow::Result<ExitStatus> {
    let found = node::status(settings::node_dir().as_deref())?;
    if found.is_empty() {
        printer.text("No node was started with `nsparse cluster up`");
    } else {
        let rows: Vec<Vec<String>> = found
            .iter()
            .map(|s| {
                let state = match (s.running, s.answers) {
                    (true, true) => "answers",
                    (true, false) => "runs, does not answer",
                    (false, _) => "has ended",
                };
                vec![
                    s.node.url.clone(),
                    s.node.version.clone(),
                    s.node.heap.clone(),
                    state.to_owned(),
                    s.node.log.clone(),
                ]
            })
            .collect();
        printer.text(table(&["URL", "version", "heap", "state", "log"], &rows));
    }
    printer.json(&serde_json::json!({ "nodes": found }))?;
    Ok(ExitStatus::Success)
}

fn down(args: &ClusterDownArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let stopped = node::down(settings::node_dir().as_deref(), args.port)?;
    if stopped.is_empty() {
        printer.text("Nothing to stop: no node of `nsparse cluster up` runs");
    }
    for node in &stopped {
        printer.text(format!("Stopped OpenSearch {} at {}", node.version, node.url));
    }
    printer.json(&serde_json::json!({ "stopped": stopped }))?;
    Ok(ExitStatus::Success)
}

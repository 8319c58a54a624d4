//! What an ingest did, for people and programs.

use nsparse_opensearch::ingest::{IngestOptions, IngestReport};
use serde_json::json;

use crate::ExitStatus;
use crate::printer::Printer;

/// Rejected documents that are listed on the terminal; `--json` lists all.
const SHOWN: usize = 20;

/// Prints a report; the answer is "no" where documents were rejected.
pub(crate) fn report(
    index: &str,
    report: &IngestReport,
    seconds: f64,
    options: &IngestOptions,
    printer: &Printer,
) -> anyhow::Result<ExitStatus> {
    let mut parts = Vec::new();
    if report.deleted + report.not_there > 0 {
        parts.push(format!("{} documents deleted from `{index}` in {seconds:.1} s", report.deleted));
        parts.push(format!("{} were not there", report.not_there));
    } else {
        parts.push(format!(
            "{} documents indexed into `{index}` in {seconds:.1} s ({} requests, {} sent again)",
            report.indexed, report.requests, report.retries
        ));
        parts.push(format!("{} were in already", report.skipped));
    }
    printer.text(format!("{}; the index has {}", parts.join(", "), report.documents));
    for rejected in report.rejected.iter().take(SHOWN) {
        printer.text(format!("rejected: {}: {}", rejected.id, rejected.reason));
    }
    if report.rejected.len() > SHOWN {
        printer.text(format!("… and {} more (--json lists all)", report.rejected.len() - SHOWN));
    }
    let letters = options.dead_letters.as_ref().filter(|_| !report.rejected.is_empty());
    if let Some(path) = letters {
        printer.text(format!("Rejected documents with their reasons: {}", path.display()));
    }
    printer.json(&json!({
        "index": index,
        "seconds": seconds,
        "journal": options.journal,
        "dead_letters": letters,
        "report": report,
    }))?;
    Ok(if report.rejected.is_empty() { ExitStatus::Success } else { ExitStatus::No })
}

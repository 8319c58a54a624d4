//! `docs/troubleshooting.md`, from the table that the messages come from.

use std::fmt::Write as _;

use super::messages::Cause;
use super::rows::{ROWS, STATUSES, UNKNOWN};

const HEAD: &str = "\
# Troubleshooting

What a cluster answers, what it means, and what to do. `nsparse` says the same when it meets the answer, with the model,
index or chunk in question and the cluster's own words in quotes.

This page is made from the table in `opensearch-setup/src/ml/rows.rs`: change that, then run
`NSPARSE_UPDATE_DOCS=1 cargo test --release -p nsparse-opensearch troubleshooting`. The words were recorded on a real
OpenSearch 2.16.0 (`integration-tests/traces`), or stand in the source of ML Commons or OpenSearch.

Other places to look: `nsparse status` shows models that do not run and pipelines that are gone, `nsparse deploy … --plan`
shows what another deploy would put right, `-v` logs every request.
";

/// The page.
pub fn page() -> String {
    let mut out = HEAD.to_owned();
    for cause in Cause::ALL {
        let rows: Vec<_> = ROWS.iter().filter(|row| row.cause == cause).collect();
        let statuses: Vec<_> =
            STATUSES.iter().chain(std::iter::once(&UNKNOWN)).filter(|status| status.cause == cause).collect();
        if rows.is_empty() && statuses.is_empty() {
            continue;
        }
        let _ =
            write!(out, "\n## {}\n\n| the cluster says | it means | what to do |\n|---|---|---|\n", cause.heading());
        for row in rows {
            let (text, hint) = (row.text.replace('|', "\\|"), cell(row.hint));
            let _ = writeln!(out, "| `{text}` | {} | {hint} |", cell(row.says));
        }
        for status in statuses {
            let says = if status.http == 0 { "anything else".to_owned() } else { format!("HTTP {}", status.http) };
            let _ = writeln!(out, "| {says}, in words not listed here | | {} |", cell(status.hint));
        }
    }
    out
}

/// A sentence of the table as a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn the_troubleshooting_page_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshooting.md");
        if std::env::var_os("NSPARSE_UPDATE_DOCS").is_some() {
            std::fs::write(path, page()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page(),
            "docs/troubleshooting.md is not what the table says: NSPARSE_UPDATE_DOCS=1 writes it"
        );
        for row in ROWS {
            assert!(written.contains(row.text), "{}", row.text);
        }
    }
}

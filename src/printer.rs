//! All printing: results on standard output, notes and progress on standard error.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "the one place that prints")]

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nsparse_core::{Progress, Task};

use crate::failure::Failure;

/// Decides what is shown where; commands print through it alone.
#[derive(Debug, Clone)]
pub(crate) struct Printer {
    json: bool,
    quiet: bool,
}

impl Printer {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// A result for people; not shown with `--json`.
    pub(crate) fn text(&self, text: impl AsRef<str>) {
        if !self.json {
            println!("{}", text.as_ref());
        }
    }

    /// The result for programs: one object on standard output; only with `--json`.
    pub(crate) fn json<T: serde::Serialize>(&self, value: &T) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string_pretty(value)?);
        }
        Ok(())
    }

    /// A remark on standard error.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            eprintln!("{}", text.as_ref());
        }
    }

    /// What went wrong, on standard error; with `--json` also as an object on standard output.
    pub(crate) fn failure(&self, failure: &Failure) {
        eprintln!("error: {}", failure.message);
        if let Some(hint) = &failure.hint {
            eprintln!("\nhint: {hint}");
        }
        if self.json {
            let object =
                serde_json::json!({ "error": failure.message, "hint": failure.hint, "exit_code": failure.code });
            println!("{object:#}");
        }
    }

    /// Bars on a terminal, a line a minute elsewhere, nothing with `--quiet`.
    pub(crate) fn progress(&self) -> Bars {
        Bars { shown: !self.quiet }
    }
}

/// Progress bars on standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bars {
    shown: bool,
}

impl Progress for Bars {
    fn start(&self, name: &str, total: u64) -> Box<dyn Task> {
        if !self.shown || !std::io::stderr().is_terminal() {
            if self.shown {
                eprintln!("{name} …");
            }
            return Box::new(nsparse_core::NoProgress);
        }
        let bar = if total == 0 { ProgressBar::no_length() } else { ProgressBar::new(total) };
        let template = if total == 0 {
            "{prefix} {spinner} {human_pos} {msg} [{elapsed}]"
        } else {
            "{prefix} {wide_bar} {human_pos}/{human_len} {msg} [{elapsed}, {eta} left]"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Box::new(Bar(bar))
    }
}

struct Bar(ProgressBar);

impl Task for Bar {
    fn advance(&self, units: u64) {
        self.0.inc(units);
    }

    fn message(&self, text: &str) {
        self.0.set_message(text.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if self.0.length().is_some_and(|n| n == self.0.position()) {
            self.0.finish();
        } else {
            self.0.abandon();
        }
    }
}

/// A table with aligned columns: the first to the left, the others to the right.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let cells: Vec<String> = cells
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(i, (cell, &width))| {
                let gap = " ".repeat(width - cell.chars().count());
                if i == 0 { format!("{cell}{gap}") } else { format!("{gap}{cell}") }
            })
            .collect();
        cells.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.push(widths.iter().map(|&w| "─".repeat(w)).collect::<Vec<_>>().join("  "));
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

/// Logs on standard error; the filter comes from `NSPARSE_LOG` or from how often `-v` was typed.
pub(crate) fn init_logging(verbose: u8) {
    let default = match verbose {
        0 => "warn",
        1 => "info,nsparse=debug",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("NSPARSE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // A second call (in tests) keeps the first subscriber.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .try_init();
}

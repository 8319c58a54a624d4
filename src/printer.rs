//! All printing: results on standard output, notes and progress on standard error.

use std::io::{ErrorKind, IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use nsparse_core::{Progress, Task};

use crate::failure::Failure;

/// A line on standard output. Where nobody reads any more (`nsparse … | head`) the work goes on and ends as it would;
/// a result that cannot be written for another reason ends the program.
#[allow(clippy::exit, reason = "where nothing can be printed, no command can report it")]
fn out(text: &str) {
    if let Err(e) = writeln!(std::io::stdout().lock(), "{text}")
        && e.kind() != ErrorKind::BrokenPipe
    {
        err(&format!("error: Could not write to standard output: {e}"));
        std::process::exit(3);
    }
}

/// A line on standard error, if anybody reads it.
pub(crate) fn err(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A question on standard error; the answer is typed on the same line.
pub(crate) fn prompt(question: &str) {
    let mut stderr = std::io::stderr().lock();
    let _ = write!(stderr, "{question}").and_then(|()| stderr.flush());
}

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

    /// Whether programs read what is printed.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// A result for people; not shown with `--json`.
    pub(crate) fn text(&self, text: impl AsRef<str>) {
        if !self.json {
            out(text.as_ref());
        }
    }

    /// The result for programs: one object on standard output; only with `--json`.
    pub(crate) fn json<T: serde::Serialize>(&self, value: &T) -> anyhow::Result<()> {
        if self.json {
            out(&serde_json::to_string_pretty(value)?);
        }
        Ok(())
    }

    /// One of several results for programs: an object on a line; only with `--json`.
    pub(crate) fn json_line<T: serde::Serialize>(&self, value: &T) -> anyhow::Result<()> {
        if self.json {
            out(&serde_json::to_string(value)?);
        }
        Ok(())
    }

    /// A remark on standard error.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        if !self.quiet {
            err(text.as_ref());
        }
    }

    /// What went wrong, on standard error; with `--json` also as an object on standard output.
    pub(crate) fn failure(&self, failure: &Failure) {
        err(&format!("error: {}", failure.message));
        if let Some(hint) = &failure.hint {
            err(&format!("\nhint: {hint}"));
        }
        if self.json {
            let object =
                serde_json::json!({ "error": failure.message, "hint": failure.hint, "exit_code": failure.code });
            out(&format!("{object:#}"));
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
            if !self.shown {
                return Box::new(nsparse_core::NoProgress);
            }
            err(&format!("{name} …"));
            return Box::new(Lines::new(name, total));
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

    fn warn(&self, text: &str) {
        if self.shown {
            // On a terminal a bar may stand on this line.
            let clear = if std::io::stderr().is_terminal() { "\r\x1b[2K" } else { "" };
            err(&format!("{clear}warning: {text}"));
        }
    }
}

/// Where there is no terminal, such as in a log: a line now and then.
struct Lines {
    name: String,
    total: u64,
    started: Instant,
    state: Mutex<LinesState>,
}

struct LinesState {
    done: u64,
    message: String,
    next: Instant,
}

impl Lines {
    const PAUSE: Duration = Duration::from_mins(1);

    fn new(name: &str, total: u64) -> Self {
        let started = Instant::now();
        let state = Mutex::new(LinesState { done: 0, message: String::new(), next: started + Self::PAUSE });
        Self { name: name.to_owned(), total, started, state }
    }

    /// How far it is: units done, the task's message, and the time left at this pace.
    fn line(&self, state: &LinesState, elapsed: Duration) -> String {
        let mut parts = vec![format!("{}: {}", self.name, state.done)];
        if self.total > 0 {
            parts[0] = format!("{} of {}", parts[0], self.total);
        }
        if !state.message.is_empty() {
            parts.push(state.message.clone());
        }
        if (1..self.total).contains(&state.done) {
            let left = elapsed.as_secs_f64() * (self.total - state.done) as f64 / state.done as f64;
            parts.push(format!("{} left", HumanDuration(Duration::from_secs_f64(left))));
        }
        parts.join(", ")
    }
}

impl Task for Lines {
    fn advance(&self, units: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        state.done += units;
        let now = Instant::now();
        if now >= state.next {
            state.next = now + Self::PAUSE;
            err(&self.line(&state, now - self.started));
        }
    }

    fn message(&self, text: &str) {
        if let Ok(mut state) = self.state.lock() {
            text.clone_into(&mut state.message);
        }
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
        // Its complaint about a certificate is said by our own message.
        0 => "warn,rustls_platform_verifier=off",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is_and_how_long_it_takes() {
        let lines = Lines::new("Encoding", 400);
        lines.advance(100);
        lines.message("5.0 documents/s");
        let state = lines.state.lock().expect("nothing panicked");
        assert_eq!(lines.line(&state, Duration::from_mins(1)), "Encoding: 100 of 400, 5.0 documents/s, 3 minutes left");
        let unknown = Lines::new("Reading", 0);
        unknown.advance(7);
        let state = unknown.state.lock().expect("nothing panicked");
        assert_eq!(unknown.line(&state, Duration::from_secs(1)), "Reading: 7");
    }
}

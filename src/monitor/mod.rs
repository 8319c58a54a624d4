//! The view of `nsparse monitor`: looks at a run again and again.

mod canvas;
mod draw;
mod terminal;
mod view;

use std::time::{Duration, Instant};

use nsparse_core::Cancel;
use nsparse_trainer::run_folder::RunFolder;
use nsparse_trainer::standing::{RunState, Standing};
use serde::Serialize;

use self::canvas::{Canvas, Look};
use self::terminal::Terminal;
use self::view::View;
use crate::printer::Printer;

/// How long a signal may wait until it is heard.
const PATIENCE: Duration = Duration::from_millis(200);

/// One look as text.
pub(crate) fn text(run: &RunFolder) -> String {
    View::of(run, run.seconds_since_written()).text()
}

/// One look for programs.
#[derive(Serialize)]
pub(crate) struct Snapshot<'a> {
    #[serde(flatten)]
    standing: Standing,
    seconds_since_last_line: Option<f64>,
    last_step: Option<&'a nsparse_trainer::metrics_log::StepRecord>,
    evaluations: Vec<&'a nsparse_trainer::evaluate::EvaluationRecord>,
    best: Option<&'a nsparse_trainer::evaluate::EvaluationRecord>,
    warnings: &'a [nsparse_trainer::guard::Warning],
}

impl<'a> Snapshot<'a> {
    pub(crate) fn of(run: &'a RunFolder) -> Self {
        let history = &run.history;
        Self {
            standing: Standing::of(run),
            seconds_since_last_line: run.seconds_since_written(),
            last_step: history.steps.last(),
            evaluations: history.evaluations.iter().map(|(_, e)| e).collect(),
            best: history.best().map(|(_, e)| e),
            warnings: &history.warnings,
        }
    }
}

/// Draws on the terminal until a key or a signal ends it.
///
/// # Errors
/// If the terminal or the run's files fail.
pub(crate) fn live(run: &mut RunFolder, every: Duration, cancel: &Cancel) -> anyhow::Result<()> {
    let mut terminal = Terminal::open()?;
    let mut looked: Option<Instant> = None;
    let mut drawn = (0, 0);
    while !cancel.is_cancelled() {
        let is_due = looked.is_none_or(|at| at.elapsed() >= every);
        if is_due {
            run.refresh()?;
            looked = Some(Instant::now());
        }
        let size = terminal.size();
        if is_due || size != drawn {
            drawn = size;
            let view = View::of(run, run.seconds_since_written());
            terminal.write(&draw::draw(&view, size.0, size.1).to_terminal())?;
        }
        if terminal.keys()?.iter().any(|key| matches!(key, b'q' | b'Q')) {
            break;
        }
    }
    Ok(())
}

/// Shows a text on the terminal, and whatever `news` puts in its place, until a key or a signal ends it.
///
/// # Errors
/// If the terminal fails, or `news` does.
pub(crate) fn live_text(
    cancel: &Cancel,
    mut news: impl FnMut() -> anyhow::Result<Option<String>>,
) -> anyhow::Result<()> {
    let mut terminal = Terminal::open()?;
    let mut text = String::new();
    let mut drawn = (0, 0);
    while !cancel.is_cancelled() {
        let new = news()?;
        let size = terminal.size();
        if new.is_some() || size != drawn {
            text = new.unwrap_or(text);
            drawn = size;
            terminal.write(&draw_text(&text, size.0, size.1).to_terminal())?;
        }
        if terminal.keys()?.iter().any(|key| matches!(key, b'q' | b'Q')) {
            break;
        }
    }
    Ok(())
}

/// Lines of text, those without an indent in bold; what does not fit is cut.
fn draw_text(text: &str, width: usize, height: usize) -> Canvas {
    let mut canvas = Canvas::new(width, height);
    for (row, line) in text.lines().enumerate() {
        let look = if line.starts_with(' ') { Look::Plain } else { Look::Bold };
        canvas.text(0, row, line, look);
    }
    canvas
}

/// Prints a line whenever the run has a new step, at most one in `every`, until it ends.
///
/// # Errors
/// If the run's files fail.
pub(crate) fn lines(run: &mut RunFolder, every: Duration, printer: &Printer, cancel: &Cancel) -> anyhow::Result<()> {
    printer.text(text(run));
    let (mut step, mut warnings) = (Standing::of(run).total_step, run.history.warnings.len());
    while matches!(Standing::of(run).state, RunState::Running | RunState::Waiting) {
        let looked = Instant::now();
        while looked.elapsed() < every {
            if cancel.is_cancelled() {
                return Ok(());
            }
            std::thread::sleep(PATIENCE.min(every));
        }
        run.refresh()?;
        let view = View::of(run, run.seconds_since_written());
        for warning in run.history.warnings.iter().skip(warnings) {
            printer.text(format!("warning, {warning}"));
        }
        warnings = run.history.warnings.len();
        if view.standing.total_step != step {
            step = view.standing.total_step;
            printer.text(view.line());
        }
    }
    printer.text(View::of(run, None).state());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_at_the_terminals_edges() {
        assert_eq!(draw_text("Models\n  one\n  two three\n  four", 7, 3).to_text(), "Models\n  one\n  two t");
    }
}

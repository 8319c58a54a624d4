//! `nsparse monitor`: looks at a run, once or until it is ended.

use std::io::IsTerminal as _;
use std::time::Duration;

use nsparse_trainer::run_folder::RunFolder;

use crate::ExitStatus;
use crate::cli::MonitorArgs;
use crate::failure::usage;
use crate::printer::Printer;
use crate::{monitor, settings};

/// Seconds between two lines where there is no terminal.
const LINES_EVERY: f64 = 30.0;

pub(crate) fn run(args: &MonitorArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let in_terminal = std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    let every = args.every.unwrap_or(if in_terminal { 1.0 } else { LINES_EVERY });
    let Some(every) = Duration::try_from_secs_f64(every).ok().filter(|e| *e >= Duration::from_millis(10)) else {
        return Err(usage(format!("`--every {every}` is no time between two looks"), "give seconds, at least 0.01"));
    };
    if args.once || printer.is_json() {
        let run = RunFolder::open_begun(&args.run)?;
        printer.text(monitor::text(&run));
        printer.json(&monitor::Snapshot::of(&run))?;
        return Ok(ExitStatus::Success);
    }
    let cancel = settings::cancel_on_signal();
    let mut run = RunFolder::open(&args.run)?;
    if in_terminal {
        monitor::live(&mut run, every, &cancel)?;
    } else {
        monitor::lines(&mut run, every, printer, &cancel)?;
    }
    Ok(ExitStatus::Success)
}

//! `nsparse train`: runs a recipe, or with `--check` reads everything first.

use nsparse_core::{Cancel, NoProgress};
use nsparse_trainer::check::LengthReport;
use nsparse_trainer::density::Measure;
use nsparse_trainer::mixing::SetReport;
use nsparse_trainer::{CheckReport, Hooks, Start, Summary, TrainConfig, check, train, train_together};

use crate::ExitStatus;
use crate::cli::TrainArgs;
use crate::commands::report;
use crate::printer::{Printer, table};
use crate::processes::{self, Ranks};
use crate::settings;

pub(crate) fn run(args: &TrainArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let mut overrides = args.set.clone();
    if let Some(device) = &args.device {
        overrides.push(format!("run.device={device}"));
    }
    let config = TrainConfig::load(&args.config, &overrides)?;
    let cancel = settings::cancel_on_signal();
    if args.check {
        let report = check(&config, &cancel, &printer.progress())?;
        show_check(&report, printer);
        printer.json(&report)?;
        return Ok(ExitStatus::Success);
    }
    let start = match (args.resume, args.replace) {
        (true, _) => Start::Continue,
        (false, true) => Start::Replace,
        (false, false) => Start::New,
    };
    let progress = printer.progress();
    let hooks = Hooks { cancel: &cancel, progress: &progress };
    let summary = match args.processes {
        1 => train(&config, start, &hooks)?,
        size => together(&config, start, &hooks, usize::from(size), printer)?,
    };
    show(&summary, printer);
    report::after_training(&config.run.dir, printer);
    printer.json(&summary)?;
    if summary.stopped_by_guard {
        printer.note("The guard ended the run (`guard.action: stop`); mend the recipe and begin anew with --replace");
    } else if !summary.finished {
        printer.note(format!("Stopped; go on with: nsparse train {} --resume", args.config.display()));
    }
    Ok(if summary.finished { ExitStatus::Success } else { ExitStatus::No })
}

/// The run in several processes; this one is rank 0.
fn together(
    config: &TrainConfig,
    start: Start,
    hooks: &Hooks<'_>,
    size: usize,
    printer: &Printer,
) -> anyhow::Result<Summary> {
    let (ranks, team) = Ranks::start(size, hooks.cancel)?;
    let ids: Vec<String> = ranks.process_ids().iter().map(ToString::to_string).collect();
    printer.note(format!("{size} processes: this one and {}", ids.join(", ")));
    match train_together(config, start, hooks, team) {
        Ok(summary) => {
            ranks.finish();
            Ok(summary)
        }
        Err(error) => Err(ranks.explain(error.into())),
    }
}

/// One of the further processes.
pub(crate) fn follow() -> anyhow::Result<ExitStatus> {
    let team = processes::team_of_this_process()?;
    nsparse_trainer::follow(team, &Hooks { cancel: &Cancel::default(), progress: &NoProgress })?;
    Ok(ExitStatus::Success)
}

/// What came out, for people.
pub(crate) fn show(summary: &Summary, printer: &Printer) {
    if let Some(c) = &summary.calibration {
        printer.text(format!(
            "calibration: {:.0} active dimensions before, {:.0} after, on {} documents",
            c.active_before, c.active_after, c.documents
        ));
    }
    let rows: Vec<Vec<String>> = summary
        .stages
        .iter()
        .map(|s| {
            vec![
                s.name.clone(),
                s.steps.to_string(),
                s.documents.to_string(),
                clock(s.seconds),
                format!("{:.0}", s.tokens_per_second),
            ]
        })
        .collect();
    printer.text(table(&["stage", "steps", "documents", "time", "tokens/s"], &rows));
    if summary.sets.len() > 1 {
        show_sets(&summary.sets, printer);
    }
    printer.text(format!(
        "preparing {}, evaluating {}",
        clock(summary.preparing_seconds),
        clock(summary.evaluation_seconds)
    ));
    for e in &summary.evaluations {
        let kept = if summary.best.as_ref() == Some(e) { "  ← kept" } else { "" };
        printer.text(format!(
            "held out, {} step {}: {} {:.4} over {} queries, {:.0} active dimensions{kept}",
            e.stage, e.step, e.metric, e.value, e.queries, e.active_dimensions
        ));
    }
    if summary.stopped_early {
        printer.text(format!("stopped early after {} steps: the evaluations did not get better", summary.steps));
    }
    if let Some(d) = &summary.density {
        let target = d.target.map_or_else(String::new, |t| match d.measure {
            Measure::DocDims => format!(", the target is {t}"),
            Measure::Flops => format!("; {:.2} expected matches with a query, the target is {t}", d.mean),
        });
        printer.text(format!(
            "density: {:.0} active dimensions, mean of {} documents ({} of them in no example){target}",
            d.active_dimensions, d.documents, d.held_out
        ));
    }
    for warning in &summary.warnings {
        printer.text(format!("warning, {warning}"));
    }
    if let Some(model) = &summary.model_dir {
        printer.text(format!("\nmodel: {}", model.display()));
    }
}

/// The sets with what is taken of each.
fn show_sets(sets: &[SetReport], printer: &Printer) {
    let rows: Vec<Vec<String>> = sets
        .iter()
        .map(|s| {
            vec![
                s.name.clone(),
                s.form.clone(),
                s.examples.to_string(),
                s.held_out.to_string(),
                s.counts.short_of_negatives.to_string(),
                format!("{:.1} %", s.share * 100.0),
                s.batches.to_string(),
                format!("{:.2}", s.epochs),
            ]
        })
        .collect();
    let head = ["set", "form", "examples", "held out", "short", "share", "batches", "epochs"];
    printer.text(format!("\n{}", table(&head, &rows)));
    for s in sets {
        let c = &s.counts;
        for (count, what) in [
            (c.dropped, "examples are left out for too few negatives"),
            (c.unknown_queries, "lists are left out: the data set does not have their query"),
            (c.unjudged, "lists are left out: nothing known answers their query"),
            (c.unknown_documents, "ids are left out: the corpus does not have them"),
            (c.other_texts, "texts differ from those of the corpus's documents with their ids, which are read instead"),
        ] {
            if count > 0 {
                printer.text(format!("{}: {count} {what}", s.name));
            }
        }
    }
}

fn show_check(report: &CheckReport, printer: &Printer) {
    printer.text(format!(
        "{} documents, {} queries ({} without a positive, {} with an empty vector), {} rows ({} without a positive, {} short of negatives)",
        report.documents,
        report.queries,
        report.queries_without_positive,
        report.empty_queries,
        report.rows,
        report.rows_without_positive,
        report.rows_short_of_negatives
    ));
    printer
        .text(format!("{} examples are trained on, {} queries are held out", report.examples, report.held_out_queries));
    show_sets(&report.sets, printer);
    let l = &report.lengths;
    printer.text(format!(
        "\nword pieces a document: mean {:.0}, median {}, 95 % within {}, most {}; the window cuts {:.1} % of documents, {:.1} % of pieces",
        l.mean,
        l.median,
        l.p95,
        l.max,
        report.truncated_documents * 100.0,
        report.truncated_pieces * 100.0
    ));
    show_lengths(l, printer);
    let rows: Vec<Vec<String>> = report
        .stages
        .iter()
        .map(|s| {
            vec![
                s.name.clone(),
                s.steps.to_string(),
                format!("{:.2} s", s.step_seconds),
                clock(s.seconds),
                format!("{:.0}", s.active_dimensions),
            ]
        })
        .collect();
    printer.text(format!("\n{}", table(&["stage", "steps", "one step", "estimate", "active at the start"], &rows)));
    if !report.teachers.is_empty() {
        let rows: Vec<Vec<String>> = report
            .teachers
            .iter()
            .map(|t| {
                let of = |n: usize| if t.unit.is_empty() { String::new() } else { format!("{n} {}", t.unit) };
                vec![t.name.clone(), of(t.needed), of(t.missing), clock(t.seconds)]
            })
            .collect();
        printer.text(table(&["teacher", "asked for", "to compute", "estimate"], &rows));
    }
    printer.text(format!(
        "evaluations: {} of {} documents, {} in all; {} parameters{}",
        report.evaluations,
        report.evaluation_documents,
        clock(report.evaluation_seconds),
        report.parameters,
        if report.calibration { ", the head is new and will be calibrated" } else { "" }
    ));
    let memory =
        report.memory_bytes.map_or_else(String::new, |b| format!(", about {:.1} GB of memory", b as f64 / 1e9));
    printer.text(format!("estimated {}{memory}", clock(report.seconds)));
}

/// The histogram of lengths.
pub(crate) fn show_lengths(lengths: &LengthReport, printer: &Printer) {
    let most = lengths.histogram.iter().map(|(_, n)| *n).max().unwrap_or(1).max(1);
    for (edge, count) in &lengths.histogram {
        let label = if *edge == usize::MAX { "longer".to_owned() } else { format!("≤ {edge}") };
        printer.text(format!("  {label:>8} {count:>8} {}", "█".repeat((count * 40).div_ceil(most))));
    }
}

/// Seconds as people read them.
pub(crate) fn clock(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{:.0} min {:02.0} s", (seconds / 60.0).floor(), seconds % 60.0)
    }
}

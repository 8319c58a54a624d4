//! `nsparse pretrain`: masked-language and pair pre-training, or with `--check` a look at everything first.

use nsparse_trainer::pretrain::{PretrainCheck, PretrainConfig, PretrainSummary, check, pretrain};
use nsparse_trainer::{Hooks, Start};

use crate::ExitStatus;
use crate::cli::PretrainArgs;
use crate::commands::train::{clock, show_lengths};
use crate::printer::{Printer, table};
use crate::settings;

pub(crate) fn run(args: &PretrainArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let mut overrides = args.set.clone();
    if let Some(device) = &args.device {
        overrides.push(format!("run.device={device}"));
    }
    let config = PretrainConfig::load(&args.config, &overrides)?;
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    if args.check {
        let report = check(&config, &cancel, &progress)?;
        show_check(&report, printer);
        printer.json(&report)?;
        return Ok(ExitStatus::Success);
    }
    let start = match (args.resume, args.replace) {
        (true, _) => Start::Continue,
        (false, true) => Start::Replace,
        (false, false) => Start::New,
    };
    let summary = pretrain(&config, start, &Hooks { cancel: &cancel, progress: &progress })?;
    show(&summary, printer);
    printer.json(&summary)?;
    if summary.pairs.as_ref().is_some_and(|p| p.run.stopped_by_guard) {
        printer.note("The guard ended the pair stage (`pairs.guard.action: stop`); mend the recipe and begin anew with --replace");
    } else if !summary.finished {
        printer.note(format!("Stopped; go on with: nsparse pretrain {} --resume", args.config.display()));
    }
    Ok(if summary.finished { ExitStatus::Success } else { ExitStatus::No })
}

/// What came out, for people.
fn show(summary: &PretrainSummary, printer: &Printer) {
    printer.text(format!(
        "{} documents, {} windows trained on, {} held out",
        summary.documents, summary.windows, summary.held_out_windows
    ));
    let stages = summary.mlm.iter().map(|m| &m.stage).chain(summary.pairs.iter().flat_map(|p| &p.run.stages));
    let rows: Vec<Vec<String>> = stages
        .map(|s| {
            let name = if s.name == "contrastive" { "pairs" } else { &s.name };
            let documents = s.documents.to_string();
            vec![
                name.to_owned(),
                s.steps.to_string(),
                documents,
                clock(s.seconds),
                format!("{:.0}", s.tokens_per_second),
            ]
        })
        .collect();
    printer.text(table(&["stage", "steps", "documents", "time", "tokens/s"], &rows));
    if let Some(mlm) = &summary.mlm {
        for e in &mlm.evaluations {
            printer.text(format!(
                "held out, mlm step {}: {:.1} % of {} hidden tokens told, perplexity {:.1}",
                e.step,
                e.value * 100.0,
                e.positions,
                e.perplexity
            ));
        }
        if let Some(u) = &mlm.unigram {
            printer.text(format!(
                "from frequency alone: {:.1} %, perplexity {:.1}",
                u.masked_accuracy * 100.0,
                u.cross_entropy.exp()
            ));
        }
        if let Some(l) = &mlm.level {
            printer.text(format!(
                "level: {:.0} active dimensions before, {:.0} after, on {} documents",
                l.active_before, l.active_after, l.documents
            ));
        }
    }
    if let Some(pairs) = &summary.pairs {
        for e in &pairs.evaluations {
            printer.text(format!(
                "held-out pairs, step {}: {} {:.4} over {} queries, {:.0} active dimensions",
                e.step, e.metric, e.value, e.queries, e.active_dimensions
            ));
        }
        if let Some(reference) = pairs.lexical_reference {
            printer.text(format!("BM25's weights on the same pairs: {reference:.4}"));
        }
        for warning in &pairs.run.warnings {
            printer.text(format!("warning, {warning}"));
        }
    }
    if let Some(model) = &summary.model_dir {
        printer.text(format!("\nmodel: {}", model.display()));
    }
}

fn show_check(report: &PretrainCheck, printer: &Printer) {
    printer.text(format!(
        "{} documents, {} of them held out; {} windows are trained on, {} are held out; {:.1} % of the word pieces are unknown",
        report.documents,
        report.held_out_documents,
        report.windows,
        report.held_out_windows,
        report.unknown * 100.0
    ));
    let l = &report.lengths;
    printer.text(format!(
        "\nword pieces a document: mean {:.0}, median {}, 95 % within {}, most {}",
        l.mean, l.median, l.p95, l.max
    ));
    show_lengths(l, printer);
    let head = if report.head_is_new { ", the head is new" } else { "" };
    printer.text(format!("\n{} parameters{head}", report.parameters));
    if let Some(m) = &report.mlm {
        printer.text(format!(
            "mlm: {} steps ({:.1} epochs) of {:.2} s, {} hidden tokens each: {}; cross entropy at the start {:.2}",
            m.steps,
            m.epochs,
            m.step_seconds,
            m.step_positions,
            clock(m.seconds),
            m.cross_entropy
        ));
    }
    if let Some(p) = &report.pairs {
        let kinds: Vec<String> = p.counts.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        printer.text(format!(
            "pairs: {}; {} are trained on, {} are judged; {} steps: {}",
            kinds.join(", "),
            p.training,
            p.held_out,
            p.steps,
            clock(p.seconds)
        ));
        if let Some((query, document)) = &p.example {
            let short: String = document.chars().take(100).collect();
            printer.text(format!("  first: {query} → {short}"));
        }
    }
    let memory =
        report.memory_bytes.map_or_else(String::new, |b| format!(", about {:.1} GB of memory", b as f64 / 1e9));
    printer.text(format!("estimated {}{memory}, without evaluations", clock(report.seconds)));
}

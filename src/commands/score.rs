//! `nsparse score`: training rows in, rows with teacher scores out.

use anyhow::Context as _;
use nsparse_core::beir::Document;
use nsparse_core::{files, rows};
use nsparse_trainer::sections::TeachersSection;
use nsparse_trainer::teachers::rows::{all_documents, query_ids, score_rows};
use nsparse_trainer::teachers::{Surroundings, Teachers};

use crate::ExitStatus;
use crate::cli::ScoreArgs;
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::settings;

pub(crate) fn run(args: &ScoreArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let section = TeachersSection::load(&args.teachers)?;
    let found = rows::read(&args.rows)?;
    let template = settings::template(&args.template, args.max_chars)?;
    let corpus = match (&args.data.beir, &args.data.data) {
        (None, None) => Vec::new(),
        _ => settings::dataset(&args.data, printer)?.corpus()?,
    };
    let corpus = corpus
        .into_iter()
        .map(|d| {
            let text = template.apply(&d);
            Document { id: d.id, text, ..Document::default() }
        })
        .collect();
    let cancel = settings::cancel_on_signal();
    let progress = printer.progress();
    let all = std::cell::OnceCell::new();
    let corpus = std::cell::RefCell::new(Some(corpus));
    let documents = || {
        let build = || all_documents(corpus.take().unwrap_or_default(), &found);
        Ok(all.get_or_init(build).clone())
    };
    let asked = query_ids(&found);
    let around = Surroundings {
        device: settings::device(&args.device)?,
        cache: args.out.parent().unwrap_or(std::path::Path::new("")).join("teachers"),
        is_cache_written: true,
        documents: &documents,
        is_asked: &|id| asked.contains(id),
        cancel: &cancel,
        progress: &progress,
    };
    let mut teachers = Teachers::open(&section, &around)?;
    let started = std::time::Instant::now();
    let (scored, report) = score_rows(&mut teachers, &found, args.raw, &cancel, &progress)?;
    if scored.is_empty() {
        return Err(usage(
            format!("No row of `{}` got scores", args.rows.display()),
            "a row needs two documents that every teacher knows; score files know them by query_id, pos_id and neg_ids",
        ));
    }
    rows::write(&args.out, &scored).with_context(|| format!("Failed to write `{}`", args.out.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    let work = teachers.work();
    let lines: Vec<Vec<String>> = work
        .iter()
        .map(|t| {
            vec![t.name.clone(), if t.unit.is_empty() { String::new() } else { format!("{} {}", t.computed, t.unit) }]
        })
        .collect();
    printer.text(table(&["teacher", "computed"], &lines));
    printer.text(format!(
        "{} rows with scores of {} documents in {seconds:.1} s; {} rows and {} documents are left out without a score",
        report.rows, report.documents, report.left_out, report.without_score
    ));
    printer.text(args.out.display().to_string());
    let hash = files::sha256_file(&args.out)?.0;
    printer.json(&serde_json::json!({
        "rows_file": args.out, "sha256": hash, "seconds": seconds, "report": report, "teachers": work,
    }))?;
    Ok(ExitStatus::Success)
}

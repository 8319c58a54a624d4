//! `nsparse mine`: hard negatives for all queries of a split, by BM25 or by a trained model.

use std::io::Write;
use std::path::Path;

use nsparse_core::{Cancel, Error, SearchQuery, files, rows};
use nsparse_retrieval::mine::{Found, Miner, MiningReport, Union, UnionReport};

use crate::ExitStatus;
use crate::mining::args::MineArgs;
use crate::mining::{self, Source};
use crate::printer::Printer;
use crate::{ranking, settings};

pub(crate) fn run(args: &MineArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    // What cannot work is said before anything is encoded.
    mining::check(args)?;
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let qrels = set.qrels(&args.split)?;
    let queries = set.judged_queries(&qrels)?;
    let merged = args.merge.iter().map(|path| Ok((path, rows::read(path)?))).collect::<anyhow::Result<Vec<_>>>()?;
    let cancel = settings::cancel_on_signal();
    let started = std::time::Instant::now();
    let teacher = mining::teacher(args, &set, &documents, &qrels, printer, &cancel)?;
    let source = mining::source(args, &set, &documents, printer, &cancel)?;
    let options = mining::options(args, &source, &documents, teacher.as_ref().map(|(_, name)| name.clone()))?;
    let mut union = Union::default();
    for (path, rows) in merged {
        union.add(rows, &path.display().to_string(), &qrels, &documents, &options.template)?;
    }
    let judge = teacher.as_ref().map(|(teacher, _)| teacher.judge());
    let miner = Miner::new(source.searcher.as_ref(), judge.as_deref(), &qrels, &documents, &options)?;
    let queries = ranking::search_queries(&queries, source.queries.as_ref())?;
    let (report, union) = write(args, &miner, &queries, union, printer, &cancel)?;
    let seconds = started.elapsed().as_secs_f64();
    show(args, &source, &report, &union, seconds, printer);
    printer.json(&serde_json::json!({
        "rows_file": args.out,
        "run_file": args.run_out,
        "seconds": seconds,
        "report": report,
        "merged": (!args.merge.is_empty()).then_some(union),
    }))?;
    Ok(ExitStatus::Success)
}

/// Mines and writes query by query; the files appear when all is done.
fn write(
    args: &MineArgs,
    miner: &Miner<'_>,
    queries: &[SearchQuery],
    union: Union,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<(MiningReport, UnionReport)> {
    let mut done = None;
    files::write_atomic(&args.out, |rows_out| {
        let into = |run_out: &mut dyn Write| {
            let mut union = union;
            let mut take = |mut found: Found<'_>| {
                if let Some(path) = &args.run_out {
                    ranking_lines(run_out, &found).map_err(|e| Error::io("write", path, e))?;
                }
                for row in &mut found.rows {
                    union.join(row);
                    line(rows_out, row, &args.out)?;
                }
                Ok(())
            };
            let report = miner.run(queries, &mut take, cancel, &printer.progress())?;
            let (left, counts) = union.finish();
            left.iter().try_for_each(|row| line(rows_out, row, &args.out))?;
            done = Some((report, counts));
            Ok(())
        };
        match &args.run_out {
            None => into(&mut std::io::sink()),
            Some(path) => files::write_atomic(path, |run_out| into(run_out)),
        }
    })?;
    done.ok_or_else(|| anyhow::anyhow!("the rows were written without a report"))
}

fn line(out: &mut impl Write, row: &rows::TrainingRow, path: &Path) -> nsparse_core::Result<()> {
    serde_json::to_writer(&mut *out, row).map_err(|e| Error::json(path, e))?;
    out.write_all(b"\n").map_err(|e| Error::io("write", path, e))
}

/// One query's hits in TREC's form.
fn ranking_lines(out: &mut dyn Write, found: &Found<'_>) -> std::io::Result<()> {
    for (rank, hit) in found.hits.iter().enumerate() {
        writeln!(out, "{} Q0 {} {} {} nsparse", found.query.id, hit.id, rank + 1, hit.score)?;
    }
    Ok(())
}

fn show(args: &MineArgs, source: &Source, report: &MiningReport, union: &UnionReport, seconds: f64, printer: &Printer) {
    printer.text(format!(
        "{} rows with {} negatives for {} queries in {seconds:.1} s ({}, depth {}, sample {}, seed {})",
        report.rows, report.negatives, report.queries, source.engine, args.depth, args.sample, args.seed
    ));
    printer.text(format!(
        "{} queries have fewer hits than negatives asked for, {} of them none; {} queries have no positive",
        report.too_few, report.without_negatives, report.without_positives
    ));
    printer.text(format!(
        "{} hits are judged positives, {} copies of one; {} positives are not among the hits",
        report.positives_excluded, report.copies_excluded, report.positives_not_found
    ));
    let f = &report.filtered;
    if !mining::filters(&args.limits).is_empty() {
        printer.text(format!(
            "{} candidates left out by their scores: absolute margin {}, relative margin {}, highest score {}, lowest score {}, without a teacher's score {}",
            f.total(), f.absolute_margin, f.relative_margin, f.max_score, f.min_score, f.unscored
        ));
    }
    if report.positives_out_of_reach > 0 {
        printer.text(format!(
            "{} positives share nothing with their query: no candidate passes a margin to them",
            report.positives_out_of_reach
        ));
    }
    if !report.missing_positives.is_empty() {
        printer.text(format!("{} judged positives are not in the corpus", report.missing_positives.len()));
    }
    if !args.merge.is_empty() {
        printer.text(format!(
            "{} rows merged: {} joined, {} kept as they are; {} negatives added, {} were there already, {} are positives",
            union.rows, union.joined, union.kept, union.negatives_added, union.duplicates, union.positives_excluded
        ));
    }
    printer.text(args.out.display().to_string());
    if let Some(path) = &args.run_out {
        printer.text(path.display().to_string());
    }
}

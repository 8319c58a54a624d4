//! `nsparse data sentences`: training rows out of documents alone.

use std::io::Write as _;

use nsparse_core::{DocumentTemplate, Error, files};
use nsparse_retrieval::Bm25Index;
use nsparse_retrieval::mine::{SentenceOptions, SentenceReport, sentence_rows};

use crate::ExitStatus;
use crate::data_args::SentencesArgs;
use crate::printer::Printer;
use crate::settings;

pub(crate) fn run(args: &SentencesArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let options = SentenceOptions {
        per_document: args.per_document,
        share: args.share,
        titles: args.titles,
        characters: (args.min_chars, args.max_chars),
        variants: args.variants,
        negatives: args.negatives,
        depth: args.depth,
        seed: args.seed,
        template: DocumentTemplate { pattern: args.template.clone(), ..DocumentTemplate::default() },
    };
    options.template.validate()?;
    options.template.require_fields(&documents)?;
    let cancel = settings::cancel_on_signal();
    let index = Bm25Index::build(&documents, &printer.progress())?;
    let mut report = SentenceReport::default();
    files::write_atomic(&args.out, |out| {
        let mut take = |row: &nsparse_core::rows::TrainingRow| {
            serde_json::to_writer(&mut *out, row).map_err(|e| Error::json(&args.out, e))?;
            out.write_all(b"\n").map_err(|e| Error::io("write", &args.out, e))
        };
        report = sentence_rows(&documents, &index, &options, &mut take, &cancel, &printer.progress())?;
        Ok(())
    })?;
    printer.text(format!(
        "{} rows of {} documents ({} queries are titles); {} times nothing could be taken out, {} rows have fewer than {} negatives",
        report.rows, documents.len(), report.titles, report.passed_over, report.too_few, args.negatives
    ));
    printer.text(args.out.display().to_string());
    printer.json(&serde_json::json!({ "rows_file": args.out, "documents": documents.len(), "report": report }))?;
    Ok(ExitStatus::Success)
}

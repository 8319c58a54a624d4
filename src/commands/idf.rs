//! `nsparse idf`: the idf table of a corpus.

use nsparse_core::{IdfTable, TextTokenizer, files};

use crate::ExitStatus;
use crate::cli::IdfArgs;
use crate::printer::Printer;
use crate::settings;

pub(crate) fn run(args: &IdfArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let tokenizer = TextTokenizer::load(&settings::tokenizer_file(&args.tokenizer))?;
    let template = settings::template(&args.template, args.max_chars)?;
    let corpus = settings::dataset(&args.data, printer)?.corpus()?;
    template.require_fields(&corpus)?;
    let texts: Vec<String> = corpus.iter().map(|d| template.apply(d)).collect();
    let cancel = settings::cancel_on_signal();
    let (table, metadata) = IdfTable::build(
        texts.iter().map(String::as_str),
        &tokenizer,
        settings::formula(args.formula),
        &template.pattern,
        &cancel,
        &printer.progress(),
    )?;
    table.save(&args.out, &tokenizer)?;
    let metadata_path = args.out.with_extension("meta.json");
    files::write_json(&metadata_path, &metadata)?;
    printer.text(format!(
        "{} documents, {} of {} tokens seen; idf = {}\n{}\n{}",
        metadata.documents,
        metadata.tokens_seen,
        tokenizer.vocabulary().len(),
        metadata.formula_text,
        args.out.display(),
        metadata_path.display()
    ));
    printer.json(&serde_json::json!({ "idf": args.out, "metadata_file": metadata_path, "metadata": metadata }))?;
    Ok(ExitStatus::Success)
}

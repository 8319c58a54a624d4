//! `nsparse data convert`: judgments and rankings in another form.

use nsparse_core::trec::{self, Form};

use crate::ExitStatus;
use crate::data_args::{ConvertArgs, FileForm};
use crate::failure::usage;
use crate::printer::Printer;

pub(crate) fn run(args: &ConvertArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let form = Form::from(args.to);
    let (kind, queries, lines) = match (&args.qrels, &args.run) {
        (Some(path), _) => {
            let qrels = trec::read_qrels(path)?;
            trec::write_qrels_as(&args.out, &qrels, form)?;
            ("judgments", qrels.len(), qrels.values().map(std::collections::BTreeMap::len).sum::<usize>())
        }
        (None, Some(path)) => {
            if args.to == FileForm::Beir {
                return Err(usage("BEIR has no form for rankings", "write them with --to trec or --to msmarco"));
            }
            let mut run = trec::read_run(path)?;
            // Ranks are written in this order, and trec_eval reads scores alone.
            for hits in run.values_mut() {
                hits.sort_by(|a, b| b.score.total_cmp(&a.score));
            }
            trec::write_run_as(&args.out, &run, form, &args.tag)?;
            ("hits", run.len(), run.values().map(Vec::len).sum())
        }
        (None, None) => return Err(usage("No file is named", "give --qrels FILE or --run FILE")),
    };
    printer.text(format!("{lines} {kind} of {queries} queries: {}", args.out.display()));
    printer.json(&serde_json::json!({ "file": args.out, "queries": queries, "lines": lines }))?;
    Ok(ExitStatus::Success)
}

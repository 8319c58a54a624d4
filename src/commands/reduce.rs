//! `nsparse reduce`: the files of all shards of an encoding become one.

use nsparse_core::vector_files::merge;
use serde_json::json;

use crate::ExitStatus;
use crate::cli::ReduceArgs;
use crate::printer::Printer;
use crate::settings;

pub(crate) fn run(args: &ReduceArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cancel = settings::cancel_on_signal();
    let started = std::time::Instant::now();
    let (meta, is_new) = merge(&args.shards, &args.out, args.force, &printer.progress(), &cancel)?;
    let seconds = started.elapsed().as_secs_f64();
    let counts = &meta.counts;
    if is_new {
        printer.text(format!(
            "{} shards merged in {seconds:.1} s: {} has {} documents, {:.0} active dimensions a document",
            args.shards.len(),
            args.out.display(),
            counts.documents,
            counts.mean_active()
        ));
    } else {
        printer.text(format!(
            "Nothing to merge: {} has all {} documents already",
            args.out.display(),
            counts.documents
        ));
    }
    printer.json(&json!({
        "out": args.out,
        "shards": args.shards.len(),
        "written": is_new,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "mean_active_dimensions": counts.mean_active(),
        "zero_vectors": counts.zero_vectors,
        "seconds": seconds,
        "sha256": meta.sha256,
    }))?;
    Ok(ExitStatus::Success)
}

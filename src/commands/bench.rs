//! `nsparse bench`: times training, encoding, searching and products on this machine.

use serde::Serialize;

use crate::ExitStatus;
use crate::bench::args::{Bench, BenchArgs};
use crate::bench::{encode, product, queries, search, train, use_threads};
use crate::printer::Printer;

pub(crate) fn run(args: &BenchArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let threads = match &args.what {
        Bench::Train(args) => args.rounds.threads,
        Bench::Encode(args) => args.rounds.threads,
        Bench::Search(args) => args.rounds.threads,
        Bench::Queries(_) => None,
        Bench::Product(args) => args.threads,
    };
    use_threads(threads)?;
    match &args.what {
        Bench::Train(args) => report(train::run(args, printer)?, train::show, printer),
        Bench::Encode(args) => report(encode::run(args, printer)?, encode::show, printer),
        Bench::Search(args) => report(search::run(args, printer)?, search::show, printer),
        Bench::Queries(args) => report(queries::run(args, printer)?, queries::show, printer),
        Bench::Product(args) => report(product::run(args, printer)?, product::show, printer),
    }
}

fn report<T: Serialize>(report: T, show: impl Fn(&T, &Printer), printer: &Printer) -> anyhow::Result<ExitStatus> {
    show(&report, printer);
    printer.json(&report)?;
    Ok(ExitStatus::Success)
}

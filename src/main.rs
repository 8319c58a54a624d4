//! nsparse: make, ship and measure doc-only learned sparse retrieval models for OpenSearch.
//!
//! `main` only maps a result to an exit code; each command is a file in `commands/`.

mod bench;
mod cli;
mod cluster_index;
mod commands;
mod connect;
mod data_args;
mod document_encoder;
mod download;
mod encode_job;
mod failure;
mod ingest;
mod mining;
mod monitor;
mod panics;
mod printer;
mod processes;
mod queries;
mod ranking;
mod recipes;
mod report;
mod searching;
mod settings;
mod shown;
mod stored_vectors;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::printer::Printer;

/// What a command that ran to its end has to say through its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Done (0).
    Success,
    /// The answer is "no": a gate failed (1).
    No,
}

fn main() -> ExitCode {
    panics::report_ours();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows which of its messages go to standard output (help) and which to standard error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let printer = Printer::new(cli.json, cli.quiet);
    printer::init_logging(cli.verbose);
    match run(cli.command, &printer) {
        Ok(ExitStatus::Success) => ExitCode::SUCCESS,
        Ok(ExitStatus::No) => ExitCode::from(1),
        Err(error) => {
            let failure = failure::Failure::from(&error);
            printer.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}

fn run(command: Command, printer: &Printer) -> anyhow::Result<ExitStatus> {
    match command {
        Command::Quickstart(args) => commands::quickstart::run(&args, printer),
        Command::Cluster(args) => commands::cluster::run(&args, printer),
        Command::Doctor(args) => commands::doctor::run(&args, printer),
        Command::Data(args) => commands::data::run(&args, printer),
        Command::Idf(args) => commands::idf::run(&args, printer),
        Command::Mine(args) => commands::mine::run(&args, printer),
        Command::Score(args) => commands::score::run(&args, printer),
        Command::Pretrain(args) => commands::pretrain::run(&args, printer),
        Command::Config(args) => commands::config::run(&args, printer),
        Command::Train(args) => commands::train::run(&args, printer),
        Command::TrainRank => commands::train::follow(),
        Command::TuneIdf(args) => commands::tune_idf::run(&args, printer),
        Command::Export(args) => commands::export::run(&args, printer),
        Command::Deploy(args) => commands::deploy::run(&args, printer),
        Command::Switch(args) => commands::switch::run(&args, printer),
        Command::Rollback(args) => commands::rollback::run(&args, printer),
        Command::Status(args) => commands::status::run(&args, printer),
        Command::Undeploy(args) => commands::undeploy::run(&args, printer),
        Command::PruneModels(args) => commands::prune_models::run(&args, printer),
        Command::Ingest(args) => commands::ingest::run(&args, printer),
        Command::Reencode(args) => commands::reencode::run(&args, printer),
        Command::Encode(args) => commands::encode::run(&args, printer),
        Command::Reduce(args) => commands::reduce::run(&args, printer),
        Command::Search(args) => commands::search::run(&args, printer),
        Command::Eval(args) => commands::eval::run(&args, printer),
        Command::Inspect(args) => commands::inspect::run(&args, printer),
        Command::Monitor(args) => commands::monitor::run(&args, printer),
        Command::Report(args) => commands::report::run(&args, printer),
        Command::Bench(args) => commands::bench::run(&args, printer),
        Command::Completions(args) => commands::shell::completions(&args, printer),
        Command::Man(args) => commands::shell::man(&args, printer),
    }
}

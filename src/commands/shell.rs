//! `nsparse completions` and `nsparse man`: what shells and `man` know of the program, made from the command line itself.

use clap::CommandFactory as _;
use nsparse_core::files;
use serde_json::json;

use crate::ExitStatus;
use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::printer::Printer;

/// Examples in the help text of `completions`.
pub(crate) const COMPLETIONS_EXAMPLES: &str = "Examples:
  nsparse completions bash > ~/.local/share/bash-completion/completions/nsparse
  nsparse completions zsh > ~/.zfunc/_nsparse
  nsparse completions fish > ~/.config/fish/completions/nsparse.fish";

/// Examples in the help text of `man`.
pub(crate) const MAN_EXAMPLES: &str = "Examples:
  nsparse man --out ~/.local/share/man/man1
  man nsparse-deploy";

/// The program's name in shells.
const NAME: &str = "nsparse";

pub(crate) fn completions(args: &CompletionsArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut script);
    let script = String::from_utf8_lossy(&script);
    printer.text(script.trim_end());
    printer.json(&json!({ "shell": args.shell.to_string(), "script": script }))?;
    Ok(ExitStatus::Success)
}

pub(crate) fn man(args: &ManArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    files::create_folder(&args.out)?;
    let mut pages = Vec::new();
    let mut root = Cli::command().name(NAME);
    root.build();
    page(&root, &args.out, &mut pages)?;
    printer.text(format!("{} pages in {}", pages.len(), args.out.display()));
    printer.json(&json!({ "pages": pages }))?;
    Ok(ExitStatus::Success)
}

/// Writes a command's page and those of its own commands.
fn page(command: &clap::Command, folder: &std::path::Path, pages: &mut Vec<std::path::PathBuf>) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).to_owned();
    let mut roff = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut roff)?;
    let path = folder.join(format!("{name}.1"));
    files::write_bytes(&path, &roff)?;
    pages.push(path);
    for inner in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        page(inner, folder, pages)?;
    }
    Ok(())
}

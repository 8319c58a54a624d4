//! `nsparse config`: the recipes that come with the program, and the schema of their keys.

use std::path::Path;

use nsparse_core::files;
use nsparse_trainer::TrainConfig;
use nsparse_trainer::pretrain::PretrainConfig;

use crate::ExitStatus;
use crate::cli::{ConfigCommand, ConfigCommandArgs, ConfigSchemaArgs};
use crate::failure::usage;
use crate::printer::{Printer, table};
use crate::recipes::{RECIPES, Recipe};

pub(crate) fn run(args: &ConfigCommandArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    match &args.command {
        ConfigCommand::List => list(printer)?,
        ConfigCommand::Show(args) => show(&args.name, args.out.as_deref(), printer)?,
        ConfigCommand::Schema(args) => schema(args, printer)?,
    }
    Ok(ExitStatus::Success)
}

fn list(printer: &Printer) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let mut objects = Vec::new();
    for recipe in RECIPES {
        let budget = recipe.budget().unwrap_or_default();
        rows.push(vec![recipe.name.to_owned(), recipe.command().to_owned(), budget.to_owned(), recipe.summary()]);
        objects.push(serde_json::json!({
            "name": recipe.name, "command": recipe.command(), "token_budget": budget, "summary": recipe.summary(),
        }));
    }
    printer.text(table(&["recipe", "command", "tokens at most", "what it is for"], &rows));
    printer.text("\nTake one as a start: nsparse config show scifact --out my.yaml");
    printer.json(&serde_json::json!({ "recipes": objects }))
}

fn show(name: &str, out: Option<&Path>, printer: &Printer) -> anyhow::Result<()> {
    let Some(recipe) = Recipe::find(name) else {
        let names: Vec<&str> = RECIPES.iter().map(|r| r.name).collect();
        return Err(usage(format!("there is no recipe `{name}`"), format!("there are {}", names.join(", "))));
    };
    if let Some(out) = out {
        if out.exists() {
            return Err(usage(format!("`{}` is there already", out.display()), "choose another name, or remove it"));
        }
        files::write_bytes(out, recipe.text.as_bytes())?;
        printer.text(out.display().to_string());
    } else {
        printer.text(recipe.text.trim_end());
    }
    printer.json(&serde_json::json!({
        "name": name, "command": recipe.command(), "yaml": recipe.text, "resolved": recipe.resolved()?, "file": out,
    }))
}

fn schema(args: &ConfigSchemaArgs, printer: &Printer) -> anyhow::Result<()> {
    let schema = if args.pretrain { PretrainConfig::schema() } else { TrainConfig::schema() };
    if let Some(out) = &args.out {
        files::write_json(out, &schema)?;
        printer.text(format!(
            "{0}\nName it in a recipe's first line, and editors with a YAML language server check and complete keys:\n\
             # yaml-language-server: $schema={0}",
            out.display()
        ));
        return printer.json(&serde_json::json!({ "file": out }));
    }
    printer.text(serde_json::to_string_pretty(&schema)?);
    printer.json(&schema)
}

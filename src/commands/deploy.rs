//! `nsparse deploy`: a package becomes models, pipelines and index in a cluster; `--plan` only says what would be done.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nsparse_core::Pruning;
use nsparse_opensearch::client::has_user_info;
use nsparse_opensearch::ml::{Action, DeployOptions, Deployment, Fields, Indexing, Plan, Side, deploy, plan_of};

use crate::ExitStatus;
use crate::cli::{ClusterArgs, EncodeSide, SegmentLayout};
use crate::failure::usage;
use crate::printer::Printer;
use crate::settings;

pub(crate) const EXAMPLES: &str = "\
Examples:
  nsparse deploy package --plan --index articles
  nsparse deploy package --url https://search.example.com:9200 --user admin --index articles
  nsparse deploy package --alias articles
  nsparse deploy package --alias articles --title-field headline --text-field body
  nsparse deploy package --alias articles --package-url https://models.example.com/articles

With --alias NAME applications search NAME. The first package is served at once; every later one gets an index NAME-vN
of its own, and the alias stays where it is until `nsparse switch`. A deploy that was stopped, or run twice, is run again
with the same command.";

#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// The package folder that `nsparse export` wrote
    pub(crate) package: PathBuf,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
    /// Show what would be created, changed or left alone, and change nothing
    #[arg(long)]
    pub(crate) plan: bool,
    /// Name of the index [default: nsparse]
    #[arg(long, conflicts_with = "alias")]
    pub(crate) index: Option<String>,
    /// Name that applications search; each package is a version NAME-vN behind it [default: that of the deployment file]
    #[arg(long, value_name = "NAME", conflicts_with = "pipeline")]
    pub(crate) alias: Option<String>,
    /// Name of the ingest pipeline [default: INDEX-ingest]
    #[arg(long)]
    pub(crate) pipeline: Option<String>,
    /// Field of documents' titles, the template's {title} [default: the one in --deployment, or title]
    #[arg(long, value_name = "FIELD")]
    pub(crate) title_field: Option<String>,
    /// Field of documents' texts, the template's {text} [default: the one in --deployment, or text]
    #[arg(long, value_name = "FIELD")]
    pub(crate) text_field: Option<String>,
    /// Field of the vector [default: the one in --deployment, or embedding]
    #[arg(long, value_name = "FIELD")]
    pub(crate) vector_field: Option<String>,
    /// Primary shards
    #[arg(long, default_value_t = 1)]
    pub(crate) shards: u32,
    /// Replicas of each shard
    #[arg(long, default_value_t = 1)]
    pub(crate) replicas: u32,
    /// Where documents are encoded
    #[arg(long, value_enum, default_value_t = EncodeSide::Auto)]
    pub(crate) side: EncodeSide,
    /// What becomes of a long document's segments
    #[arg(long, value_enum, default_value_t = SegmentLayout::Max)]
    pub(crate) segments: SegmentLayout,
    /// Index a part of each document's entries alone: `max_ratio:R`, `top_k:N`, `alpha_mass:R` or `abs_value:W`
    #[arg(long, value_name = "RULE")]
    pub(crate) prune: Option<Pruning>,
    /// Documents that the cluster's pipeline encodes together
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_size: Option<u32>,
    /// Leave vectors out of the index's `_source`: less to store and to fetch, but updates in place and the cluster's own
    /// reindex need them there
    #[arg(long)]
    pub(crate) exclude_vector: bool,
    /// Let the cluster fetch the package's zips from below this URL, instead of uploading them
    #[arg(long, value_name = "URL")]
    pub(crate) package_url: Option<String>,
    /// Seconds until registering or deploying is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    pub(crate) deadline: u64,
    /// Where the deployment is written
    #[arg(long, value_name = "FILE", default_value = "deployment.json")]
    pub(crate) deployment: PathBuf,
}

pub(crate) fn run(args: &DeployArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let options = options(args)?;
    let cluster = settings::cluster(&args.cluster)?;
    if args.plan {
        let plan = plan_of(&cluster, &args.package, &options)?;
        show_plan(&plan, printer);
        printer.json(&serde_json::json!({ "changes_nothing": plan.changes_nothing(), "plan": plan }))?;
        return Ok(ExitStatus::Success);
    }
    let cancel = settings::cancel_on_signal();
    let deployment = deploy(&cluster, &args.package, &options, &cancel, &printer.progress())?;
    for note in &deployment.notes {
        printer.note(note);
    }
    show(&deployment, args, printer);
    printer.json(&serde_json::json!({ "file": args.deployment, "deployment": deployment }))?;
    Ok(ExitStatus::Success)
}

fn options(args: &DeployArgs) -> anyhow::Result<DeployOptions> {
    // What is not named is as in the file: a new package for an alias needs no flag.
    let previous = if args.deployment.is_file() { Some(Deployment::load(&args.deployment)?) } else { None };
    let alias = match (&args.alias, &args.index, &previous) {
        (None, None, Some(previous)) => previous.alias.clone(),
        (alias, ..) => alias.clone(),
    };
    if args.package_url.as_deref().is_some_and(has_user_info) {
        return Err(usage(
            "--package-url holds a user or password, which the process list, the plan and the cluster's logs would show",
            "name an address that the nodes can read without one, or leave it out: the package is then uploaded",
        ));
    }
    let mut options = match &alias {
        Some(alias) => DeployOptions::behind(alias),
        None => DeployOptions::new(args.index.as_deref().unwrap_or("nsparse")),
    };
    if let Some(pipeline) = &args.pipeline {
        options.pipeline.clone_from(pipeline);
    }
    let Fields { title, text, vector, .. } = previous.map(|previous| previous.fields).unwrap_or_default();
    options.fields.title = args.title_field.clone().unwrap_or(title);
    options.fields.text = args.text_field.clone().unwrap_or(text);
    options.fields.vector = args.vector_field.clone().unwrap_or(vector);
    let Fields { title, text, vector, .. } = &options.fields;
    if title == text || [title, text].contains(&vector) {
        return Err(usage(
            format!("Title, text and vector need a field each, and are `{title}`, `{text}` and `{vector}`"),
            "give different names to --title-field, --text-field and --vector-field",
        ));
    }
    if args.segments == SegmentLayout::Nested {
        options.fields = options.fields.nested();
    }
    options.indexing =
        Indexing { batch_size: args.batch_size, pruning: args.prune, exclude_vector: args.exclude_vector };
    options.shards = args.shards;
    options.replicas = args.replicas;
    options.side = match args.side {
        EncodeSide::Auto => Side::Auto,
        EncodeSide::Cluster => Side::Cluster,
        EncodeSide::Query => Side::Query,
        EncodeSide::Client => Side::Client,
    };
    options.file = Some(args.deployment.clone());
    options.url.clone_from(&args.package_url);
    options.poll.deadline = Duration::from_secs(args.deadline);
    Ok(options)
}

fn show_plan(plan: &Plan, printer: &Printer) {
    for note in &plan.notes {
        printer.note(note);
    }
    printer.text(format!("Plan for {} ({}):", plan.cluster_url, plan.version));
    let width = plan.items.iter().map(|item| item.name.chars().count()).max().unwrap_or(0);
    for item in &plan.items {
        let sign = match item.action {
            Action::Create => '+',
            Action::Change => '~',
            Action::Keep => '=',
        };
        let line = format!("  {sign} {:<6}  {:<15}  {:<width$}  {}", item.action, item.kind, item.name, item.detail);
        printer.text(line.trim_end());
    }
    printer.text(format!("  documents, queries encoded: {}", side_in_words(plan.side)));
    if plan.changes_nothing() {
        printer.text("\nNothing would change.");
    } else {
        let count = |action| plan.items.iter().filter(|item| item.action == action).count();
        printer.text(format!(
            "\n{} to create, {} to change, {} left alone. Do it with the same command without --plan.",
            count(Action::Create),
            count(Action::Change),
            count(Action::Keep)
        ));
    }
}

fn show(deployment: &Deployment, args: &DeployArgs, printer: &Printer) {
    printer.text(format!("Deployed to {} ({}):", deployment.cluster_url, deployment.version));
    printer.text(format!("  index              {}", deployment.index));
    if let Some(alias) = &deployment.alias {
        let serving = deployment.history.last().map(|s| s.indexes.join(", ")).unwrap_or_default();
        printer.text(format!("  alias              {alias}, stands for {serving}"));
    }
    if let Some(pipeline) = &deployment.pipeline {
        printer.text(format!("  ingest pipeline    {pipeline}"));
    }
    if let Some(pipeline) = &deployment.search_pipeline {
        printer.text(format!("  search pipeline    {pipeline}"));
    }
    if let Some(model) = &deployment.document_model {
        printer.text(format!("  document encoder   {} ({})", model.name, model.id));
    }
    if let Some(model) = &deployment.query_model {
        printer.text(format!("  query tokenizer    {} ({})", model.name, model.id));
    }
    printer.text(format!("  documents, queries encoded: {}", side_in_words(deployment.side)));
    printer.text(format!("\n{}", args.deployment.display()));
    let file = args.deployment.display();
    if deployment.alias.is_some() && deployment.history.last().is_some_and(|s| !s.indexes.contains(&deployment.index)) {
        printer
            .text(format!("Fill it with `nsparse ingest --deployment {file} …`, then serve it: nsparse switch {file}"));
    }
    match deployment.number.filter(|_| !deployment.others.is_empty()) {
        Some(number) => {
            printer.text(format!("Take this version back with: nsparse undeploy {file} --version {number}"));
        }
        None => printer.text(format!("Take it back with: nsparse undeploy {file}")),
    }
}

fn side_in_words(side: Side) -> &'static str {
    match side {
        Side::Cluster => "both in the cluster",
        Side::Query => "documents here by `nsparse ingest`, queries in the cluster",
        Side::Client | Side::Auto => "both here, by `nsparse ingest` and `nsparse search`",
    }
}

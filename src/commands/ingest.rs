//! `nsparse ingest`: documents into an index, encoded here, by the cluster, or before; changed, or deleted.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use nsparse_core::template::Piece;
use nsparse_core::{DocumentEncoder as _, DocumentTemplate, Pruning, files};
use nsparse_opensearch::ingest::ready::Members;
use nsparse_opensearch::ingest::{Action, Encoding, IngestReport, Pipeline, Way, delete_documents, ingest_documents};
use nsparse_opensearch::ml::{Deployment, Fields, Side};
use nsparse_opensearch::{Cluster, IngestOptions, ingest_encoded, ingest_texts, ingest_vectors, segments, source};

use crate::ExitStatus;
use crate::cli::SegmentLayout;
use crate::document_encoder::DocumentModel;
use crate::failure::usage;
use crate::ingest::args::IngestArgs;
use crate::ingest::{input, show};
use crate::printer::Printer;
use crate::{document_encoder, settings, stored_vectors};

/// Bytes that a document's vector takes in a request, about.
const VECTOR_BYTES: u64 = 4096;
/// How much larger an index with vectors is than the text it is made of, about: SciFact's has 4.9 KB a document, of 1.6 KB of
/// text. Shorter texts have more of their vectors, longer ones less.
const WITH_VECTORS: u64 = 3;

pub(crate) fn run(args: &IngestArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    settings::limit_threads(args.threads)?;
    let target = target(args)?;
    let is_set = args.data.beir.is_some() || args.data.data.is_some();
    if args.input.is_some() && is_set {
        return Err(usage("Documents are named twice", "give a file, or `-`, or --data DIR, or --beir NAME"));
    }
    let mut options = args.pace.options(settings::journal(&target.cluster, &target.index));
    options.fields = target.fields.clone();
    let started = Instant::now();
    let report = match (&args.delete, &args.input) {
        (Some(ids), _) => delete(args, ids, &target, &options, printer)?,
        (None, Some(file)) => of_file(args, file, &target, &mut options, printer)?,
        (None, None) => of_set(args, &target, &mut options, printer)?,
    };
    show::report(&target.index, &report, started.elapsed().as_secs_f64(), &options, printer)
}

/// Where documents go.
struct Target {
    cluster: Cluster,
    index: String,
    fields: Fields,
    /// Whether the cluster encodes what comes without a vector.
    encodes: bool,
    /// Which entries of the vectors made here stay.
    pruning: Option<Pruning>,
    /// Fields that vectors are made of, as far as is known.
    bound: Vec<String>,
}

fn delete(
    args: &IngestArgs,
    ids: &Path,
    target: &Target,
    options: &IngestOptions,
    printer: &Printer,
) -> anyhow::Result<IngestReport> {
    let ids = input::ids(ids, &args.data.id_field)?;
    let cancel = settings::cancel_on_signal();
    Ok(delete_documents(&target.cluster, &target.index, ids, options, &printer.progress(), &cancel)?)
}

/// Who makes the vectors, as typed or as the deployment has it.
enum Choice<'a> {
    Model(&'a Path),
    Pipeline(Pipeline),
    Ready,
    Update,
}

fn choice<'a>(args: &'a IngestArgs, target: &Target) -> anyhow::Result<Choice<'a>> {
    if let Some(folder) = &args.model {
        return Ok(Choice::Model(folder));
    }
    if args.ready {
        return Ok(Choice::Ready);
    }
    if args.update {
        return Ok(Choice::Update);
    }
    match &args.pipeline {
        Some(name) if !name.is_empty() => Ok(Choice::Pipeline(Pipeline::Named(name.clone()))),
        Some(_) => Ok(Choice::Pipeline(Pipeline::Default)),
        None if target.encodes => Ok(Choice::Pipeline(Pipeline::Default)),
        None => Err(usage(
            "No model is named",
            "give --model DIR, or --vectors FILE, or --ready where documents hold their vectors, or --pipeline where the \
             cluster encodes",
        )),
    }
}

/// Documents from a file or standard input, with all their fields.
fn of_file(
    args: &IngestArgs,
    file: &Path,
    target: &Target,
    options: &mut IngestOptions,
    printer: &Printer,
) -> anyhow::Result<IngestReport> {
    if file.is_dir() {
        return Err(usage(
            format!("`{}` is a folder", file.display()),
            "give a file of jsonl, or --data DIR for a folder with corpus.jsonl",
        ));
    }
    let (cluster, index, fields) = (&target.cluster, target.index.as_str(), &target.fields);
    let (cancel, progress) = (settings::cancel_on_signal(), printer.progress());
    let vector = Some(fields.vector.clone());
    let mut members = Members { id: args.data.id_field.clone(), checked: None, replaced: None, bound: Vec::new() };
    options.expected_bytes = input::bytes(file);
    let send = |members: &Members, way: &Way, options: &IngestOptions| -> anyhow::Result<IngestReport> {
        let mut documents = input::documents(file, members, args.pace.workers as usize)?;
        Ok(ingest_documents(cluster, index, &mut *documents, way, 0, options, &progress, &cancel)?)
    };
    let choice = choice(args, target)?;
    if matches!(choice, Choice::Model(_) | Choice::Pipeline(_)) {
        options.expected_bytes = options.expected_bytes.map(|bytes| bytes * WITH_VECTORS);
    }
    match choice {
        Choice::Model(folder) => {
            let model = document_encoder::open(folder, &args.runtime, &args.device)?.pruned(target.pruning);
            options.job = job(index, &model, fields, printer);
            members.replaced = vector;
            // A file's documents keep their fields, so those that nobody typed are the index's.
            let named =
                |typed: &str, usual: &str, own: &str| if typed == usual { own.to_owned() } else { typed.to_owned() };
            let title = named(&args.data.title_field, "title", &fields.title);
            let text = named(&args.data.text_field, "text", &fields.text);
            let way = Way::Encode(Encoding { encoder: &model, template: &model.template, title: &title, text: &text });
            send(&members, &way, options)
        }
        Choice::Pipeline(pipeline) => {
            options.job = format!("{index} by the cluster, {pipeline:?}");
            options.pipeline = pipeline;
            send(&members, &Way::AsIs(Action::Index), options)
        }
        Choice::Ready => {
            options.job = format!("{index} ready");
            members.checked = vector;
            send(&members, &Way::AsIs(Action::Index), options)
        }
        Choice::Update => {
            source::check_updates(cluster, index, fields)?;
            options.journal_of_any_job = true;
            members.checked = vector;
            members.bound.clone_from(&target.bound);
            send(&members, &Way::AsIs(Action::Update { upsert: args.upsert }), options)
        }
    }
}

/// What tells this job from another: the same documents with another model have other vectors.
fn job(index: &str, model: &DocumentModel, fields: &Fields, printer: &Printer) -> String {
    let mut job = format!("{index} {} {} {:?}", model.weights_sha256, model.max_tokens(), model.activation);
    if let Some(segments) = &model.segments {
        let _ = write!(job, " {segments:?}");
    }
    if let Some(pruning) = model.pruning() {
        let _ = write!(job, " {pruning}");
    }
    if fields.segments.is_some() {
        job.push_str(" nested");
        if model.segments.is_none_or(|s| s.max == 1) {
            printer.note("This model reads one window of a document: each document has one segment");
        }
    }
    job
}

/// Titles and texts of a data set.
fn of_set(
    args: &IngestArgs,
    target: &Target,
    options: &mut IngestOptions,
    printer: &Printer,
) -> anyhow::Result<IngestReport> {
    let (cluster, index, fields) = (&target.cluster, target.index.as_str(), &target.fields);
    // Wrong use shows before a data set is fetched.
    let choice = if args.vectors.is_some() { None } else { Some(choice(args, target)?) };
    if args.data.beir.is_none() && args.data.data.is_none() {
        return Err(usage(
            "No documents are named",
            "give a file of jsonl, `-` for standard input, --data DIR for a set of your own, or --beir NAME",
        ));
    }
    let documents = settings::dataset(&args.data, printer)?.corpus()?;
    let texts: u64 = documents.iter().map(|d| (d.title.len() + d.text.len()) as u64).sum();
    options.expected_bytes = Some(texts + VECTOR_BYTES * documents.len() as u64);
    let (cancel, progress) = (settings::cancel_on_signal(), printer.progress());
    match choice {
        None => {
            let Some(file) = &args.vectors else { return Err(usage("No vectors are named", "give --vectors FILE")) };
            let (vocabulary, vectors) = stored_vectors::read(file, &documents)?;
            options.job = format!("{index} {}", files::sha256_file(file)?.0);
            if fields.segments.is_some() {
                return Err(usage(
                    format!(
                        "The index `{index}` takes one vector a segment, and `{}` has one a document",
                        file.display()
                    ),
                    "give --model DIR, which encodes each segment; or an index made without --segments nested",
                ));
            }
            Ok(ingest_encoded(cluster, index, &documents, &vectors, &vocabulary, options, &progress, &cancel)?)
        }
        Some(Choice::Model(folder)) => {
            let model = document_encoder::open(folder, &args.runtime, &args.device)?.pruned(target.pruning);
            options.job = job(index, &model, fields, printer);
            Ok(ingest_vectors(cluster, index, &documents, &model, &model.template, options, &progress, &cancel)?)
        }
        Some(Choice::Pipeline(pipeline)) => {
            options.job = format!("{index} by the cluster, {pipeline:?}");
            options.pipeline = pipeline;
            Ok(ingest_texts(cluster, index, &documents, options, &progress, &cancel)?)
        }
        Some(Choice::Ready | Choice::Update) => Err(usage(
            "The documents of a data set are titles and texts: they hold no vectors, and replace what is there",
            "name the file itself: nsparse ingest FILE --ready",
        )),
    }
}

/// The cluster, index and fields that the deployment or the flags name.
fn target(args: &IngestArgs) -> anyhow::Result<Target> {
    if let Some(path) = &args.deployment {
        let deployment = Deployment::load(path)?;
        let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
        let is_nested = deployment.fields.segments.is_some();
        if args.segments.is_some_and(|asked| is_nested != (asked == SegmentLayout::Nested)) {
            let made = if is_nested { "with nested segments" } else { "for one vector a document" };
            return Err(usage(
                format!("`{}` names an index that was made {made}", path.display()),
                "leave out --segments, or make another index with `nsparse deploy --segments`",
            ));
        }
        let encodes = deployment.side == Side::Cluster;
        let pruning = args.prune.or(deployment.indexing.pruning);
        let bound = bound(&deployment.template, args, Some(&deployment.fields));
        return Ok(Target { cluster, index: deployment.index, fields: deployment.fields, encodes, pruning, bound });
    }
    let Some(index) = &args.index else {
        return Err(usage("No index is named", "give --deployment FILE or --index NAME"));
    };
    let fields = Fields { vector: args.vector_field.clone(), ..Fields::default() };
    let cluster = settings::cluster(&args.cluster)?;
    let fields = match args.segments {
        Some(SegmentLayout::Nested) => segments::ensure_nested(&cluster, index, fields)?,
        asked => {
            let fields = segments::fields_of(&cluster, index, fields)?;
            if asked.is_some() && fields.segments.is_some() {
                return Err(usage(
                    format!(
                        "The field `{}` of the index `{index}` is nested: it takes one vector a segment",
                        fields.vector
                    ),
                    "leave out --segments, or name another field with --vector-field",
                ));
            }
            fields
        }
    };
    // Which template made the vectors that are there is not known.
    let bound = bound(&DocumentTemplate::default(), args, None);
    Ok(Target { cluster, index: index.clone(), fields, encodes: false, pruning: args.prune, bound })
}

/// The fields that a template reads, under the deployment's names and those typed: either may have made the vectors.
fn bound(template: &DocumentTemplate, args: &IngestArgs, deployed: Option<&Fields>) -> Vec<String> {
    let usual = Fields::default();
    let named = |typed: &String, usual: &String, own: Option<&String>| {
        let typed = (own.is_none() || typed != usual).then_some(typed);
        own.into_iter().chain(typed).cloned().collect::<Vec<_>>()
    };
    let titles = named(&args.data.title_field, &usual.title, deployed.map(|f| &f.title));
    let texts = named(&args.data.text_field, &usual.text, deployed.map(|f| &f.text));
    let mut names = Vec::new();
    for piece in template.pieces() {
        match piece {
            Piece::Literal(_) => {}
            Piece::Title => names.extend(titles.iter().cloned()),
            Piece::Text => names.extend(texts.iter().cloned()),
            Piece::Field(name) => names.push(name.to_owned()),
        }
    }
    names
}

//! `nsparse reencode`: the documents of an index into a new one, with a new model's vectors.

use nsparse_core::DocumentTemplate;
use nsparse_opensearch::index;
use nsparse_opensearch::ingest::{Encoding, Way, ingest_documents};
use nsparse_opensearch::ml::Fields;
use nsparse_opensearch::reencode::{IndexDocuments, NewIndex, make_like, stored_bytes};

use crate::ExitStatus;
use crate::cli::SegmentLayout;
use crate::failure::usage;
use crate::ingest::args::ReencodeArgs;
use crate::ingest::show;
use crate::printer::Printer;
use crate::{document_encoder, settings};

pub(crate) fn run(args: &ReencodeArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if args.index == args.to {
        return Err(usage("An index cannot be encoded anew into itself", "name a new index with --to"));
    }
    settings::limit_threads(args.threads)?;
    let cluster = settings::cluster(&args.cluster)?;
    let model = document_encoder::open(&args.model, &args.runtime, &args.device)?.pruned(args.prune);
    let template = match &args.template {
        None => model.template.clone(),
        Some(pattern) => {
            let template = DocumentTemplate { pattern: pattern.clone(), ..model.template.clone() };
            template.validate()?;
            template
        }
    };
    let fields = Fields {
        title: args.title_field.clone(),
        text: args.text_field.clone(),
        vector: args.vector_field.clone(),
        segments: None,
    };
    let differs = NewIndex { exclude_vector: args.exclude_vector, nested: args.segments == SegmentLayout::Nested };
    // What cannot be read is refused before anything is made.
    let without = [args.vector_field.clone()];
    let mut documents = IndexDocuments::open(&cluster, &args.index, args.page as usize, &without)?;
    let fields = make_like(&cluster, &args.index, &args.to, &fields, &differs)?;
    let total = index::count(&cluster, &args.index)?;
    let mut options = args.pace.options(settings::journal(&cluster, &args.to));
    options.job = format!(
        "{} of {} {} {} {:?} {template:?} {:?}",
        args.to,
        args.index,
        model.weights_sha256,
        nsparse_core::DocumentEncoder::max_tokens(&model),
        model.activation,
        model.segments
    );
    if let Some(pruning) = args.prune {
        options.job = format!("{} {pruning}", options.job);
    }
    options.fields = fields;
    options.expected_bytes = stored_bytes(&cluster, &args.index);
    let cancel = settings::cancel_on_signal();
    let started = std::time::Instant::now();
    let way = Way::Encode(Encoding {
        encoder: &model,
        template: &template,
        title: &args.title_field,
        text: &args.text_field,
    });
    let report =
        ingest_documents(&cluster, &args.to, &mut documents, &way, total, &options, &printer.progress(), &cancel)?;
    show::report(&args.to, &report, started.elapsed().as_secs_f64(), &options, printer)
}

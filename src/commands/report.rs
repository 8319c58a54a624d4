//! `nsparse report`: one HTML page about a run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use nsparse_core::beir::{Dataset, Document, FieldNames};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Cancel, DocumentTemplate, files, rows};
use nsparse_encoder::SparseEncoder;
use nsparse_trainer::held_out::{self, HeldOutQuery};
use nsparse_trainer::run_folder::RunFolder;
use nsparse_trainer::survey::{Survey, draw_documents};

use crate::ExitStatus;
use crate::cli::ReportArgs;
use crate::printer::Printer;
use crate::report::words::ShownDocument;
use crate::report::{Content, Page, Words, page};
use crate::settings;

/// Documents that are shown with their terms.
const SHOWN: usize = 10;
/// Entries of each list of tokens.
const LISTED: usize = 20;
/// Seed of the sample where the recipe cannot be read.
const SEED: u64 = 42;

pub(crate) fn run(args: &ReportArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let cancel = settings::cancel_on_signal();
    let run = RunFolder::open_begun(&args.run)?;
    let held_out = held_out::read(&args.run.join("held-out.jsonl"))?;
    let mut content =
        Content { run: &run, held_out: &held_out, titles: BTreeMap::new(), words: None, without_words: String::new() };
    if let Some(sources) = sources(&run, &args.data)? {
        let model = args.run.join("model");
        let sample = sample(&sources, args.documents, &run, &held_out)?;
        content.titles = sample.titles;
        if args.documents == 0 {
            "Left out: --documents 0.".clone_into(&mut content.without_words);
        } else if model.is_dir() {
            let source = sources.iter().map(Source::name).collect::<Vec<_>>().join(", ");
            content.words = Some(words(&model, sample.documents, source, &args.device, printer, &cancel)?);
        } else {
            "The run has no model yet.".clone_into(&mut content.without_words);
        }
    } else {
        content.without_words =
            format!("The data that the recipe names is not here: nsparse report {} --data DIR", args.run.display());
        printer.note(&content.without_words);
    }
    let out = args.out.clone().unwrap_or_else(|| args.run.join("report.html"));
    let Page { html, charts } = page(&content);
    files::write_bytes(&out, html.as_bytes())?;
    printer.text(out.display().to_string());
    printer.json(&serde_json::json!({
        "report": out,
        "charts": charts,
        "bytes": html.len(),
        "survey": content.words.as_ref().map(|w| &w.survey),
    }))?;
    Ok(ExitStatus::Success)
}

/// The page without what needs the model, at the end of a training: a run that worked is not spoiled by it.
pub(crate) fn after_training(dir: &Path, printer: &Printer) {
    let written = (|| -> anyhow::Result<PathBuf> {
        let run = RunFolder::open_begun(dir)?;
        let held_out = held_out::read(&dir.join("held-out.jsonl"))?;
        let content = Content {
            run: &run,
            held_out: &held_out,
            titles: BTreeMap::new(),
            words: None,
            without_words: format!("Not asked for at the end of a training: nsparse report {}", dir.display()),
        };
        let out = dir.join("report.html");
        files::write_bytes(&out, page(&content).html.as_bytes())?;
        Ok(out)
    })();
    match written {
        Ok(path) => printer.text(format!("report: {}", path.display())),
        Err(error) => printer.note(format!("No report was written: {error:#}")),
    }
}

/// Where documents are drawn from.
enum Source {
    /// A data set.
    Corpus(Dataset),
    /// Training rows.
    Rows(PathBuf),
}

impl Source {
    fn name(&self) -> String {
        match self {
            Self::Corpus(set) => set.name.clone(),
            Self::Rows(path) => path.display().to_string(),
        }
    }
}

/// The folders named, else what the recipe trains on; `None` where that is not on this machine.
fn sources(run: &RunFolder, named: &[PathBuf]) -> anyhow::Result<Option<Vec<Source>>> {
    if !named.is_empty() {
        let sets = named.iter().map(|folder| Ok(Source::Corpus(Dataset::open(folder)?)));
        return sets.collect::<anyhow::Result<Vec<_>>>().map(Some);
    }
    let Some(config) = &run.config else { return Ok(None) };
    if let Some(folder) = &config.data.dir {
        return Ok(Dataset::open(folder).ok().map(|set| vec![Source::Corpus(set)]));
    }
    let rows = config.data.rows.as_ref().filter(|path| path.is_file());
    Ok(rows.map(|path| vec![Source::Rows(path.clone())]))
}

/// Documents drawn from the sources, and titles of documents that are hits.
struct Sample {
    documents: Vec<Document>,
    titles: BTreeMap<String, String>,
}

fn sample(sources: &[Source], count: usize, run: &RunFolder, held_out: &[HeldOutQuery]) -> anyhow::Result<Sample> {
    let seed = run.config.as_ref().map_or(SEED, |c| c.run.seed);
    let hits: BTreeSet<&str> = held_out.iter().flat_map(|q| q.hits.iter().map(|h| h.id.as_str())).collect();
    let mut out = Sample { documents: Vec::new(), titles: BTreeMap::new() };
    for (i, source) in sources.iter().enumerate() {
        // Each source gives its share.
        let count = count * (i + 1) / sources.len() - count * i / sources.len();
        match source {
            Source::Corpus(set) => {
                let corpus = set.folder.join("corpus.jsonl");
                let (drawn, named) =
                    draw_documents(&corpus, &FieldNames::default(), count, seed, &|id| hits.contains(id))?;
                out.documents.extend(drawn);
                out.titles.extend(named.into_iter().map(|d| (d.id.clone(), title(&d))));
            }
            Source::Rows(path) => {
                let mut texts = BTreeMap::new();
                for row in rows::read(path)? {
                    let negatives =
                        row.negs.into_iter().zip(row.neg_ids.into_iter().map(Some).chain(std::iter::repeat(None)));
                    let positive = row.pos.map(|text| (text, row.pos_id));
                    for (text, id) in
                        positive.into_iter().chain(negatives).chain(row.docs.into_iter().map(|t| (t, None)))
                    {
                        let number = texts.len();
                        texts.entry(text).or_insert_with(|| id.unwrap_or_else(|| format!("text {}", number + 1)));
                    }
                }
                // Sorted texts are in no order that means something: every so many one is taken.
                let all = texts.len();
                let taken = count.min(all);
                let documents: Vec<(String, String)> = texts.into_iter().collect();
                out.documents.extend((0..taken).map(|i| {
                    let (text, id) = documents[i * all / taken].clone();
                    Document { id, text, ..Document::default() }
                }));
            }
        }
    }
    Ok(out)
}

/// What a document is called in a list: its title, else how it begins.
fn title(document: &Document) -> String {
    if document.title.trim().is_empty() {
        let begin: String = document.text.chars().take(90).collect();
        if begin.len() < document.text.len() { format!("{begin}…") } else { begin }
    } else {
        document.title.clone()
    }
}

/// Encodes the sample and looks at it.
fn words(
    model: &Path,
    documents: Vec<Document>,
    source: String,
    device: &str,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<Words> {
    let directory = ModelDir::open(model)?;
    let facts = directory.facts()?;
    let tokenizer = directory.tokenizer()?;
    let zeroed = directory.zeroed_ids()?;
    let encoder = SparseEncoder::load(model, settings::device(device)?)?;
    let template: &DocumentTemplate = &facts.template;
    let texts: Vec<String> = documents.iter().map(|d| template.apply(d)).collect();
    let vectors = encoder.encode_reporting(&texts, &printer.progress(), cancel)?;
    let mut windows = Vec::with_capacity(texts.len());
    let mut shown = Vec::new();
    let every = documents.len().div_ceil(SHOWN).max(1);
    for (i, ((document, text), vector)) in documents.into_iter().zip(texts).zip(&vectors).enumerate() {
        let pieces = tokenizer.placed_pieces(&text)?;
        // Segments begin at the text's begin and leave nothing out between them.
        let room = facts.max_tokens.saturating_sub(2);
        let read = match &facts.segments {
            Some(segments) => segments.ranges(pieces.len(), room).last().map_or(0, |last| last.end),
            None => pieces.len().min(room),
        };
        let mut window: Vec<u32> = pieces[..read].iter().map(|(id, _)| *id).collect();
        window.sort_unstable();
        window.dedup();
        windows.push(window);
        if i % every == 0 {
            shown.push(ShownDocument { id: document.id, text, vector: vector.clone(), pieces, read });
        }
    }
    let survey = Survey::new(&vectors, &windows, tokenizer.vocabulary(), &zeroed, LISTED);
    Ok(Words { source, survey, documents: shown, vocabulary: tokenizer.vocabulary().to_vec() })
}

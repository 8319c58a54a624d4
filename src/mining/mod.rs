//! Wiring of `nsparse mine`: what ranks, and which teacher judges what was ranked.

use std::path::Path;

use nsparse_core::beir::{Dataset, Document};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::vector_files::VectorFile;
use nsparse_core::{Cancel, DocumentTemplate, Error, Qrels, SearchQuery, Searcher, files, trec};
use nsparse_opensearch::ml::{Deployment, Fields};
use nsparse_opensearch::{SparseMode, SparseSearcher, segments};
use nsparse_retrieval::mine::{Filters, Judge, MarginFrom, StoredScores};
use nsparse_retrieval::{InvertedIndex, MineOptions};

use crate::cli::{Engine, Method};
use crate::failure::usage;
use crate::mining::args::{LimitArgs, MineArgs, Positive};
use crate::mining::members::MemberTeacher;
use crate::printer::Printer;
use crate::queries::Queries;
use crate::ranking::{ANALYZER, Plan, Vectors};
use crate::{cluster_index, settings, stored_vectors};

pub(crate) mod args;
mod members;

/// Characters of a hash that name a model in the rows.
const SHORT: usize = 12;

/// Most characters of a templated text, unless said otherwise.
const MAX_CHARS: usize = 20_000;

/// What ranks documents.
pub(crate) struct Source {
    /// The ranking itself.
    pub(crate) searcher: Box<dyn Searcher>,
    /// What makes its queries; `None` where it reads texts.
    pub(crate) queries: Option<Queries>,
    /// What the rows call it.
    pub(crate) engine: String,
    /// What tells its model from others.
    pub(crate) model: Option<String>,
    /// The model's template of documents.
    pub(crate) template: Option<DocumentTemplate>,
}

/// The searcher that the arguments ask for, over all documents.
pub(crate) fn source(
    args: &MineArgs,
    set: &Dataset,
    documents: &[Document],
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<Source> {
    let in_cluster = args.engine == Engine::Opensearch;
    if !in_cluster && (args.model.index.is_some() || args.model.deployment.is_some()) {
        return Err(usage("An index is named, but documents are ranked here", "give --engine opensearch"));
    }
    let cluster = in_cluster.then(|| settings::cluster(&args.cluster));
    let place = if in_cluster { "opensearch" } else { "local" };
    if let Some(deployment) = &args.model.deployment {
        return deployed(args, &Deployment::load(deployment)?);
    }
    let cluster = cluster.transpose()?;
    let Some(folder) = &args.model.model else {
        let device = nsparse_encoder::Device::Cpu;
        let plan = Plan { set, documents, method: Method::Bm25, model: None, device };
        let (searcher, _) = plan.searcher(cluster.as_ref(), ANALYZER, printer, cancel)?;
        return Ok(Source { searcher, queries: None, engine: format!("bm25-{place}"), model: None, template: None });
    };
    let directory = ModelDir::open(folder)?;
    let (facts, model) = (directory.facts()?, Some(model_hash(&directory)?));
    let device = settings::device(&args.model.device)?;
    let queries = Queries::open(&directory, device)?;
    let vocabulary = queries.tokenizer().vocabulary();
    let mut engine = format!("sparse-{place}");
    let searcher: Box<dyn Searcher> = match (&cluster, &args.model.index, &args.model.vectors) {
        (Some(cluster), Some(index), _) => {
            engine = format!("{engine}/{index}");
            let fields = Fields { vector: args.model.vector_field.clone(), ..Fields::default() };
            let fields = segments::fields_of(cluster, index, fields)?;
            let searcher = SparseSearcher::new(cluster.clone(), index.as_str(), &fields.vector, vocabulary)?;
            Box::new(searcher.over(&fields))
        }
        (Some(cluster), None, Some(file)) => {
            let (found, vectors) = stored_vectors::read(file, documents)?;
            check_vocabulary(file, &found, vocabulary)?;
            let key = files::sha256_file(file)?.0.chars().take(SHORT).collect();
            let (queries, template) = (Queries::open(&directory, device)?, facts.template.clone());
            let vectors = Vectors { documents: vectors, segments: None, queries, template, key };
            Box::new(cluster_index::sparse(cluster, set, documents, &vectors, printer, cancel)?)
        }
        (None, _, Some(file)) => {
            check_vocabulary(file, &VectorFile::open(file)?.header().vocabulary, vocabulary)?;
            Box::new(stored_vectors::index(file, documents)?)
        }
        (Some(_), None, None) => {
            let plan = Plan { set, documents, method: Method::Sparse, model: Some(folder), device };
            plan.searcher(cluster.as_ref(), ANALYZER, printer, cancel)?.0
        }
        (None, _, None) => Box::new(index(folder, set, documents, &args.model.device, printer, cancel)?.0),
    };
    Ok(Source { searcher, queries: Some(queries), engine, model, template: Some(facts.template) })
}

/// What a deployment searches with: its query model in the cluster, else queries made here.
fn deployed(args: &MineArgs, deployment: &Deployment) -> anyhow::Result<Source> {
    let cluster = settings::cluster_of(&args.cluster, &deployment.cluster_url)?;
    let vector = &deployment.fields.vector;
    let directory = args.model.model.as_deref().map(ModelDir::open).transpose()?;
    let (queries, searcher) = match (&directory, &deployment.query_model) {
        (Some(directory), _) => {
            let queries = Queries::open(directory, settings::device(&args.model.device)?)?;
            let vocabulary = queries.tokenizer().vocabulary();
            let searcher = SparseSearcher::new(cluster, deployment.index.as_str(), vector, vocabulary)?;
            (Some(queries), searcher)
        }
        (None, Some(model)) => {
            let mode = SparseMode::Text { model_id: model.id.clone() };
            (None, SparseSearcher::with_mode(cluster, deployment.index.as_str(), vector, &[], mode))
        }
        (None, None) => {
            return Err(usage(
                "This cluster has no query tokenizer, so queries have to be encoded here, and no model is named",
                "give --model DIR: its tokenizer and idf table make the queries",
            ));
        }
    };
    Ok(Source {
        searcher: Box::new(searcher.over(&deployment.fields)),
        queries,
        engine: format!("sparse-opensearch/{}", deployment.index),
        model: directory.as_ref().map(model_hash).transpose()?,
        template: directory.as_ref().and_then(|d| d.facts().ok()).map(|facts| facts.template),
    })
}

/// The embedded index over a model's vectors, with its query side.
fn index(
    folder: &Path,
    set: &Dataset,
    documents: &[Document],
    device: &str,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<(InvertedIndex, Queries)> {
    let device = settings::device(device)?;
    let plan = Plan { set, documents, method: Method::Sparse, model: Some(folder), device };
    plan.index(printer, cancel)
}

fn check_vocabulary(file: &Path, found: &[String], expected: &[String]) -> anyhow::Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(usage(
        format!("The vectors in `{}` are over another vocabulary than the model's tokenizer", file.display()),
        "name the model that made them, or encode the documents anew",
    ))
}

fn model_hash(directory: &ModelDir) -> anyhow::Result<String> {
    Ok(files::sha256_file(&directory.file("model.safetensors"))?.0.chars().take(SHORT).collect())
}

/// A sparse model that judges: its vectors in an index, and its own queries.
pub(crate) struct SparseTeacher {
    index: InvertedIndex,
    queries: Queries,
}

impl Judge for &SparseTeacher {
    fn scores(&self, query: &SearchQuery, documents: &[(&str, &str)]) -> nsparse_retrieval::Result<Vec<Option<f32>>> {
        let of = |e: anyhow::Error| Error::invalid(format!("The teacher cannot read the query `{}`: {e}", query.id));
        let vector = self.queries.encode(&[query.text.as_str()]).map_err(of)?.pop().unwrap_or_default();
        let query = SearchQuery { vector, ..query.clone() };
        let ids: Vec<&str> = documents.iter().map(|(id, _)| *id).collect();
        let scores = self.index.score(&query, &ids)?;
        Ok(scores.map_or_else(|| vec![None; ids.len()], |scores| scores.into_iter().map(Some).collect()))
    }
}

/// A teacher that judges candidates.
pub(crate) enum Teacher {
    /// Scores in a file.
    Stored(StoredScores),
    /// A sparse model's vectors.
    Sparse(Box<SparseTeacher>),
    /// A member of a section `teachers`.
    Member(Box<MemberTeacher>),
}

impl Teacher {
    /// What the filters ask.
    pub(crate) fn judge(&self) -> Box<dyn Judge + '_> {
        match self {
            Self::Stored(scores) => Box::new(scores.clone()),
            Self::Sparse(teacher) => Box::new(teacher.as_ref()),
            Self::Member(teacher) => Box::new(teacher.as_ref()),
        }
    }
}

/// The teacher that the arguments name, and what rows call it.
pub(crate) fn teacher(
    args: &MineArgs,
    set: &Dataset,
    documents: &[Document],
    qrels: &Qrels,
    printer: &Printer,
    cancel: &Cancel,
) -> anyhow::Result<Option<(Teacher, String)>> {
    if let Some(file) = &args.limits.denoise {
        let scores = StoredScores::new(trec::read_run(file)?);
        if scores.queries(qrels) == 0 {
            return Err(usage(
                format!("`{}` has no score for any query of the split `{}`", file.display(), args.split),
                "its lines are `query Q0 document rank score tag`, with the set's ids",
            ));
        }
        let hash: String = files::sha256_file(file)?.0.chars().take(SHORT).collect();
        return Ok(Some((Teacher::Stored(scores), format!("file:{hash}"))));
    }
    if let Some(file) = &args.limits.teachers {
        let device = &args.model.device;
        let (teacher, name) = MemberTeacher::open(file, device, documents, qrels, printer, cancel)?;
        return Ok(Some((Teacher::Member(Box::new(teacher)), name)));
    }
    let Some(folder) = &args.limits.teacher else { return Ok(None) };
    let hash = model_hash(&ModelDir::open(folder)?)?;
    let (index, queries) = index(folder, set, documents, &args.model.device, printer, cancel)?;
    Ok(Some((Teacher::Sparse(Box::new(SparseTeacher { index, queries })), format!("sparse:{hash}"))))
}

/// The limits on scores that were typed.
pub(crate) fn filters(limits: &LimitArgs) -> Filters {
    Filters {
        absolute_margin: limits.absolute_margin,
        relative_margin: limits.relative_margin,
        max_score: limits.max_score,
        min_score: limits.min_score,
        margin_from: match limits.margin_from {
            Positive::Own => MarginFrom::Own,
            Positive::Lowest => MarginFrom::Lowest,
        },
    }
}

/// Checks what can be checked before anything is read or encoded.
pub(crate) fn check(args: &MineArgs) -> anyhow::Result<()> {
    let filters = filters(&args.limits);
    let limits = &args.limits;
    if limits.teacher.is_some() || limits.teachers.is_some() || limits.denoise.is_some() {
        filters.require_any()?;
    }
    let (depth, first_rank, samples) = (args.depth, args.skip + 1, args.sample);
    Ok(MineOptions { depth, first_rank, samples, filters, ..MineOptions::default() }.validate()?)
}

/// What is mined, as typed.
pub(crate) fn options(
    args: &MineArgs,
    source: &Source,
    documents: &[Document],
    teacher: Option<String>,
) -> anyhow::Result<MineOptions> {
    let template = match (&args.template, &source.template) {
        (Some(pattern), _) => settings::template(pattern, args.max_chars.unwrap_or(MAX_CHARS))?,
        (None, Some(template)) => template.clone(),
        (None, None) => DocumentTemplate::default(),
    };
    let template = DocumentTemplate { max_chars: args.max_chars.unwrap_or(template.max_chars), ..template };
    template.require_fields(documents)?;
    Ok(MineOptions {
        depth: args.depth,
        first_rank: args.skip + 1,
        samples: args.sample,
        seed: args.seed,
        template,
        filters: filters(&args.limits),
        engine: source.engine.clone(),
        model: source.model.clone(),
        teacher,
        ..MineOptions::default()
    })
}

//! `nsparse search`: one query, with the documents' titles and the beginnings of their texts.

use nsparse_core::beir::Query;
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{SearchQuery, SparseVector};
use nsparse_encoder::Device;
use nsparse_opensearch::ml::{Deployment, Fields};
use nsparse_opensearch::{Cluster, SparseMode, SparseSearcher, bm25_query, search_sources, segments};
use serde::Serialize;
use serde_json::{Value, json};

use crate::ExitStatus;
use crate::cli::{Engine, Method, SearchArgs};
use crate::failure::usage;
use crate::printer::Printer;
use crate::queries::Queries;
use crate::ranking::{self, ANALYZER, Plan};
use crate::settings;

/// Characters of a text that are shown.
const SNIPPET: usize = 160;

/// One document found.
#[derive(Debug, Serialize)]
struct Result {
    rank: usize,
    id: String,
    score: f32,
    title: String,
    text: String,
}

pub(crate) fn run(args: &SearchArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    let (results, how) = match args.engine {
        Engine::Local => (local(args, printer)?, "ranked here".to_owned()),
        Engine::Opensearch => in_cluster(args)?,
    };
    if results.is_empty() {
        printer.text("Nothing found");
    }
    for r in &results {
        printer.text(format!("{:>3}  {:<10.4} {}  {}", r.rank, r.score, r.id, r.title));
        let snippet: String = r.text.chars().take(SNIPPET).collect();
        let more = if r.text.chars().count() > SNIPPET { "…" } else { "" };
        printer.text(format!("                {snippet}{more}"));
    }
    printer.json(&json!({ "query": args.query, "how": how, "results": results }))?;
    Ok(ExitStatus::Success)
}

fn local(args: &SearchArgs, printer: &Printer) -> anyhow::Result<Vec<Result>> {
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let cancel = settings::cancel_on_signal();
    let model = args.model.as_deref();
    let plan = Plan { set: &set, documents: &documents, method: args.method, model, device: Device::Cpu };
    let (searcher, vectors) = plan.searcher(None, ANALYZER, printer, &cancel)?;
    let query = Query { id: "query".to_owned(), text: args.query.clone() };
    let queries = ranking::search_queries(&[query], vectors.as_ref().map(|v| &v.queries))?;
    let hits = searcher.search(&queries, args.k)?.pop().unwrap_or_default();
    let find = |id: &str| documents.iter().find(|d| d.id == id);
    Ok(hits
        .into_iter()
        .enumerate()
        .map(|(i, hit)| {
            let document = find(&hit.id).cloned().unwrap_or_default();
            Result { rank: i + 1, id: hit.id, score: hit.score, title: document.title, text: document.text }
        })
        .collect())
}

fn in_cluster(args: &SearchArgs) -> anyhow::Result<(Vec<Result>, String)> {
    let deployment = args.deployment.as_deref().map(Deployment::load).transpose()?;
    let cluster = match &deployment {
        Some(d) => settings::cluster_of(&args.cluster, &d.cluster_url)?,
        None => settings::cluster(&args.cluster)?,
    };
    let (index, fields) = match (&deployment, &args.index) {
        (Some(d), _) => (d.index.clone(), d.fields.clone()),
        (None, Some(index)) if args.method == Method::Bm25 => (index.clone(), Fields::default()),
        (None, Some(index)) => (index.clone(), segments::fields_of(&cluster, index, Fields::default())?),
        (None, None) => return Err(usage("No index is named", "give --deployment FILE or --index NAME")),
    };
    let (query, how) = match args.method {
        Method::Bm25 => (bm25_query(&args.query, &fields), "bm25".to_owned()),
        Method::Idf => return Err(usage("`idf` vectors are in no deployment", "use --engine local with --method idf")),
        Method::Nested if fields.segments.is_none() => {
            return Err(usage(
                format!("The index `{index}` has one vector a document"),
                "use --method sparse; nested segments are made by `nsparse deploy --segments nested`",
            ));
        }
        Method::Sparse | Method::Nested => sparse_query(args, deployment.as_ref(), &cluster, &index, &fields)?,
    };
    let found = search_sources(&cluster, &index, &query, args.k, &fields)?;
    let text = |source: &Value, field: &str| source.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let results = found
        .into_iter()
        .enumerate()
        .map(|(i, hit)| Result {
            rank: i + 1,
            score: hit.score,
            title: text(&hit.source, &fields.title),
            text: text(&hit.source, &fields.text),
            id: hit.id,
        })
        .collect();
    Ok((results, how))
}

/// The query clause, by the best way there is: the deployment's query tokenizer in the cluster, else a vector
/// made here.
fn sparse_query(
    args: &SearchArgs,
    deployment: Option<&Deployment>,
    cluster: &Cluster,
    index: &str,
    fields: &Fields,
) -> anyhow::Result<(Value, String)> {
    let mut query = SearchQuery { id: "query".to_owned(), text: args.query.clone(), vector: SparseVector::default() };
    let searcher = if let Some(model) = deployment.and_then(|d| d.query_model.as_ref()) {
        let mode = SparseMode::Text { model_id: model.id.clone() };
        SparseSearcher::with_mode(cluster.clone(), index, &fields.vector, &[], mode).over(fields)
    } else {
        let Some(model) = &args.model else {
            return Err(usage(
                "This cluster has no query tokenizer, so the query has to be encoded here, and no model is named",
                "give --model DIR: its tokenizer and idf table make the query",
            ));
        };
        let encoder = Queries::open(&ModelDir::open(model)?, Device::Cpu)?;
        query.vector = encoder.encode(&[&args.query])?.pop().unwrap_or_default();
        SparseSearcher::new(cluster.clone(), index, &fields.vector, encoder.tokenizer().vocabulary())?.over(fields)
    };
    let mut how = match searcher.mode() {
        SparseMode::Text { .. } => "neural_sparse, encoded by the cluster",
        SparseMode::Tokens => "neural_sparse with tokens encoded here",
        SparseMode::RankFeature => "rank_feature clauses encoded here",
    }
    .to_owned();
    if fields.segments.is_some() {
        how.push_str(", over the best segment");
    }
    let clause = searcher
        .query(&query)?
        .ok_or_else(|| usage("The query has no token that can be searched", "use other words"))?;
    Ok((clause, how))
}

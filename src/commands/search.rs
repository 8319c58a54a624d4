//! `nsparse search`: one query, with the documents' titles and the beginnings of their texts, or which terms made the
//! score.

use std::io::IsTerminal as _;

use nsparse_core::beir::{Document, Query};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{DocumentTemplate, Hit, SearchQuery, SparseVector};
use nsparse_encoder::Device;
use nsparse_opensearch::ml::{Deployment, Fields, lifecycle};
use nsparse_opensearch::{
    Cluster, Highlight, Page, Results, SparseMode, SparseSearcher, TermScore, bm25_query, hybrid_request, search_page,
    segments, stored,
};
use nsparse_retrieval::Fusion;
use serde_json::{Value, json};

use crate::ExitStatus;
use crate::cli::{Engine, Method, SearchArgs};
use crate::failure::usage;
use crate::printer::Printer;
use crate::queries::Queries;
use crate::ranking::{self, ANALYZER, Plan, Vectors};
use crate::settings;
use crate::shown::{Shown, Term, terms};

/// How deep the rankings go that a hybrid one is made of. A document's place depends on it, by the least score of each
/// ranking or by how many stand in both, so it is the same for all pages.
const HYBRID_DEPTH: usize = 1000;

/// A page, and how it was found.
struct Answer {
    shown: Vec<Shown>,
    /// Documents that match, where they are counted, and whether there may be more.
    total: Option<(u64, bool)>,
    how: String,
}

pub(crate) fn run(args: &SearchArgs, printer: &Printer) -> anyhow::Result<ExitStatus> {
    if args.explain.is_some() && args.method == Method::Bm25 {
        return Err(usage(
            "BM25's scores are not told apart by terms here",
            "use --method sparse or hybrid with --explain",
        ));
    }
    let last = args.from + args.k;
    if args.method == Method::Hybrid && last > HYBRID_DEPTH {
        return Err(usage(
            format!("A hybrid ranking has {HYBRID_DEPTH} documents, and {} to {last} are asked for", args.from + 1),
            "narrow the search with --filter, or page through --method sparse",
        ));
    }
    let answer = match args.engine {
        Engine::Local => local(args, printer)?,
        Engine::Opensearch => in_cluster(args, printer)?,
    };
    if answer.shown.is_empty() {
        printer.text("Nothing found");
    }
    for shown in &answer.shown {
        printer.text(shown.draw(args.explain));
    }
    if let Some((total, is_exact)) = answer.total.filter(|_| !answer.shown.is_empty()) {
        let last = args.from + answer.shown.len();
        let more = if is_exact { "" } else { " or more" };
        printer.text(format!("{} to {last} of {total}{more} documents", args.from + 1));
    }
    printer.json(&json!({
        "query": args.query, "how": answer.how, "from": args.from, "total": answer.total.map(|(total, _)| total),
        "results": answer.shown,
    }))?;
    Ok(ExitStatus::Success)
}

fn local(args: &SearchArgs, printer: &Printer) -> anyhow::Result<Answer> {
    for (given, option) in [(!args.filter.is_empty(), "--filter"), (args.highlight, "--highlight")] {
        if given {
            return Err(usage(
                format!("{option} needs a cluster: the embedded index holds vectors alone"),
                "use --engine opensearch",
            ));
        }
    }
    let set = settings::dataset(&args.data, printer)?;
    let documents = set.corpus()?;
    let cancel = settings::cancel_on_signal();
    let model = args.model.as_deref();
    let plan = Plan { set: &set, documents: &documents, method: args.method, model, device: Device::Cpu };
    let (searcher, vectors) = plan.searcher_by(&args.how, None, ANALYZER, printer, &cancel)?;
    let query = Query { id: "query".to_owned(), text: args.query.clone() };
    let mut queries = ranking::search_queries(&[query], vectors.as_ref().map(|v| &v.queries))?;
    args.how.prune(&mut queries);
    let depth = if args.method == Method::Hybrid { HYBRID_DEPTH } else { args.from + args.k };
    let hits = searcher.search(&queries, depth)?.pop().unwrap_or_default();
    let mut shown = Vec::new();
    for (i, hit) in hits.into_iter().enumerate().skip(args.from).take(args.k) {
        let place = documents.iter().position(|d| d.id == hit.id);
        let document = place.map(|p| documents[p].clone()).unwrap_or_default();
        let terms = match (&args.explain, &vectors, place) {
            (Some(_), Some(vectors), Some(place)) => Some(explain_here(vectors, &queries[0].vector, place, &document)?),
            _ => None,
        };
        let Document { title, text, .. } = document;
        shown.push(Shown { rank: i + 1, id: hit.id, score: hit.score, title, text, highlight: Value::Null, terms });
    }
    Ok(Answer { shown, total: None, how: "ranked here".to_owned() })
}

/// The parts of a score in the embedded index.
fn explain_here(
    vectors: &Vectors,
    query: &SparseVector,
    place: usize,
    document: &Document,
) -> anyhow::Result<Vec<Term>> {
    if vectors.segments.is_some() {
        return Err(usage(
            "The score of a nested segment cannot be told apart by terms",
            "use --method sparse with --explain",
        ));
    }
    let tokenizer = vectors.queries.tokenizer();
    let of_document = vectors.documents[place].as_stored();
    let mut scores: Vec<TermScore> = query
        .iter()
        .map(|(id, weight)| TermScore {
            token: tokenizer.vocabulary()[id as usize].clone(),
            query_weight: weight,
            score: weight * of_document.weight(id),
        })
        .filter(|t| t.score > 0.0)
        .collect();
    scores.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| a.token.cmp(&b.token)));
    terms(scores, &vectors.template.apply(document), Some(tokenizer))
}

/// The sparse side of a search in a cluster.
struct Sparse {
    searcher: SparseSearcher,
    query: SearchQuery,
    how: String,
    /// What encoded the query here.
    encoder: Option<(Queries, DocumentTemplate)>,
}

fn in_cluster(args: &SearchArgs, printer: &Printer) -> anyhow::Result<Answer> {
    if args.how.prune_documents.is_some() {
        return Err(usage(
            "The documents of an index are pruned when they are ingested, not when they are searched",
            "leave out --prune-documents; `nsparse ingest --prune` and `nsparse deploy --prune` prune them",
        ));
    }
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
    let sparse = match args.method {
        Method::Bm25 => None,
        Method::Idf => return Err(usage("`idf` vectors are in no deployment", "use --engine local with --method idf")),
        Method::Nested if fields.segments.is_none() => {
            return Err(usage(
                format!("The index `{index}` has one vector a document"),
                "use --method sparse; nested segments are made by `nsparse deploy --segments nested`",
            ));
        }
        Method::Sparse | Method::Nested | Method::Hybrid => {
            Some(sparse(args, deployment.as_ref(), &cluster, &index, &fields)?)
        }
    };
    let highlight = args.highlight.then(|| {
        let (before, after) = if !printer.is_json() && std::io::stdout().is_terminal() {
            ("\u{1b}[1m", "\u{1b}[0m")
        } else {
            ("<em>", "</em>")
        };
        Highlight { text: args.query.clone(), before: before.to_owned(), after: after.to_owned() }
    });
    let page = Page { from: args.from, size: args.k, filters: args.filter.clone(), highlight, bare: false };
    let bm25 = bm25_query(&args.query, &fields);
    let (found, how) = match &sparse {
        None => (search_page(&cluster, &index, json!({ "query": bm25 }), &page, &fields)?, "bm25".to_owned()),
        Some(sparse) if args.method == Method::Hybrid => hybrid(args, &cluster, &index, bm25, sparse, &page, &fields)?,
        Some(sparse) => {
            let request = sparse.request(args.from + args.k)?;
            (search_page(&cluster, &index, request, &page, &fields)?, sparse.how.clone())
        }
    };
    let mut explained = match (&sparse, args.explain) {
        (Some(sparse), Some(_)) => {
            let ids: Vec<&str> = found.hits.iter().map(|hit| hit.id.as_str()).collect();
            sparse.searcher.explain(&sparse.query, &ids)?.into_iter().map(Some).collect()
        }
        _ => vec![None; found.hits.len()],
    };
    let text = |source: &Value, field: &str| source.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut shown = Vec::new();
    for (i, hit) in found.hits.into_iter().enumerate() {
        let (title, body) = (text(&hit.source, &fields.title), text(&hit.source, &fields.text));
        let terms = match explained[i].take() {
            None => None,
            Some(scores) => {
                let encoder = sparse.as_ref().and_then(|s| s.encoder.as_ref());
                let document =
                    Document { id: hit.id.clone(), title: title.clone(), text: body.clone(), ..Document::default() };
                let of_document = encoder.map(|(_, template)| template.apply(&document)).unwrap_or_default();
                Some(terms(scores, &of_document, encoder.map(|(queries, _)| queries.tokenizer()))?)
            }
        };
        let highlight = renamed(hit.highlight, &fields);
        shown.push(Shown {
            rank: args.from + i + 1,
            id: hit.id,
            score: hit.score,
            title,
            text: body,
            highlight,
            terms,
        });
    }
    Ok(Answer { shown, total: Some((found.total, found.is_exact)), how })
}

/// Marked parts under the names that title and text have by default.
fn renamed(highlight: Value, fields: &Fields) -> Value {
    let plain = Fields::default();
    let Value::Object(parts) = highlight else { return Value::Null };
    let name = |name: String| match name {
        name if name == fields.title => plain.title.clone(),
        name if name == fields.text => plain.text.clone(),
        name => name,
    };
    Value::Object(parts.into_iter().map(|(field, parts)| (name(field), parts)).collect())
}

/// BM25 and sparse together: by the cluster where it can, else two searches fused here. All pages are parts of one ranking.
fn hybrid(
    args: &SearchArgs,
    cluster: &Cluster,
    index: &str,
    bm25: Value,
    sparse: &Sparse,
    page: &Page,
    fields: &Fields,
) -> anyhow::Result<(Results, String)> {
    let weights = args.how.weights;
    let whole = Page { size: HYBRID_DEPTH, filters: page.filters.clone(), bare: true, ..Page::default() };
    let ranking = |request: Value| -> anyhow::Result<(Vec<Hit>, u64, bool)> {
        let found = search_page(cluster, index, request, &whole, fields)?;
        let hits = found.hits.into_iter().map(|f| Hit { id: f.id, score: f.score }).collect();
        Ok((hits, found.total, found.is_exact))
    };
    // A second phase would stand in the place of the pipeline that normalises.
    let by_cluster = args.how.fusion.is_none() && args.how.two_phase.is_none() && cluster.capabilities()?.neural_search;
    let (ranked, total, is_exact, how) = if by_cluster {
        let (hits, total, is_exact) = ranking(hybrid_request(&[(bm25, weights[0]), (sparse.clause()?, weights[1])]))?;
        (hits, total, is_exact, format!("hybrid query of the cluster: bm25 and {}", sparse.how))
    } else {
        let lists = [ranking(json!({ "query": bm25 }))?, ranking(sparse.request(HYBRID_DEPTH)?)?];
        let is_exact = lists.iter().all(|(hits, total, is_exact)| *is_exact && *total <= hits.len() as u64);
        let fusion = args.how.fusion.map_or(Fusion::ReciprocalRank, Fusion::from);
        let hits = fusion.fuse(&lists.map(|(hits, ..)| hits), &weights);
        let total = hits.len() as u64;
        (hits, total, is_exact, format!("bm25 and {}, fused here", sparse.how))
    };
    let hits: Vec<Hit> = ranked.into_iter().skip(page.from).take(page.size).collect();
    let hits = stored(cluster, index, &hits, page.highlight.clone(), fields)?;
    Ok((Results { total, is_exact, hits }, how))
}

impl Sparse {
    fn request(&self, depth: usize) -> anyhow::Result<Value> {
        self.searcher.request(&self.query, depth)?.ok_or_else(nothing_to_search)
    }

    fn clause(&self) -> anyhow::Result<Value> {
        self.searcher.query(&self.query)?.ok_or_else(nothing_to_search)
    }
}

fn nothing_to_search() -> anyhow::Error {
    usage("The query has no token that can be searched", "use other words")
}

/// The query by the best way there is: the deployment's query tokenizer in the cluster, else a vector made here.
fn sparse(
    args: &SearchArgs,
    deployment: Option<&Deployment>,
    cluster: &Cluster,
    index: &str,
    fields: &Fields,
) -> anyhow::Result<Sparse> {
    let mut query = SearchQuery { id: "query".to_owned(), text: args.query.clone(), vector: SparseVector::default() };
    // What is pruned or explained has to be known token by token.
    let needs_tokens = args.how.prune.is_some() || args.explain.is_some();
    let in_cluster = deployment.and_then(|d| d.query_model.as_ref());
    let mut encoder = None;
    let searcher = match (in_cluster, &args.model) {
        (Some(model), _) if !needs_tokens => {
            let mode = SparseMode::Text { model_id: model.id.clone() };
            SparseSearcher::with_mode(cluster.clone(), index, &fields.vector, &[], mode)
        }
        (_, Some(model)) => {
            let directory = ModelDir::open(model)?;
            let queries = Queries::open(&directory, Device::Cpu)?;
            query.vector = queries.encode(&[&args.query])?.pop().unwrap_or_default();
            let vocabulary = queries.tokenizer().vocabulary();
            let searcher = SparseSearcher::new(cluster.clone(), index, &fields.vector, vocabulary)?;
            encoder = Some((queries, directory.facts()?.template));
            searcher
        }
        (Some(model), None) => {
            let tokens = lifecycle::predict(cluster, &model.model(), &[&args.query])?.pop().unwrap_or_default();
            let (vocabulary, weights): (Vec<String>, Vec<f32>) = tokens.into_iter().unzip();
            query.vector = SparseVector::from_dense(&weights);
            SparseSearcher::new(cluster.clone(), index, &fields.vector, &vocabulary)?
        }
        (None, None) => {
            return Err(usage(
                "This cluster has no query tokenizer, so the query has to be encoded here, and no model is named",
                "give --model DIR: its tokenizer and idf table make the query",
            ));
        }
    };
    args.how.prune(std::slice::from_mut(&mut query));
    let searcher = searcher.over(fields).in_two_phases(args.how.phases());
    let mut how = match searcher.mode() {
        SparseMode::Text { .. } => "neural_sparse, encoded by the cluster",
        SparseMode::Tokens => "neural_sparse with tokens encoded here",
        SparseMode::RankFeature => "rank_feature clauses encoded here",
    }
    .to_owned();
    if fields.segments.is_some() {
        how.push_str(", over the best segment");
    }
    if args.how.two_phase.is_some() {
        how.push_str(", in two phases");
    }
    Ok(Sparse { searcher, query, how, encoder })
}

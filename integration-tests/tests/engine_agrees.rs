//! SciFact in the offline index and in a real OpenSearch 2.16.0: the same figures, the same documents.
//!
//! `NSPARSE_MODEL` names a trained model directory; without it a small model with random weights, made about as
//! sparse as a trained one, ranks a slice of the corpus.

#![cfg(all(feature = "node", feature = "data"))]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "measured figures are shown with --nocapture")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nsparse_core::beir::{Dataset, Document};
use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{
    Cancel, DocumentTemplate, IdfFormula, IdfTable, NoProgress, Qrels, QueryEncoder, Run, SearchQuery, Searcher,
    SparseVector, TextTokenizer,
};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::node::shared;
use nsparse_integration_tests::random_model::{Shape, write_with};
use nsparse_opensearch::{IngestOptions, sparse_searcher};
use nsparse_retrieval::{EvalOptions, InvertedIndex, LexicalEncoder, LexicalWeight, evaluate};

/// Documents of the slice that random weights rank.
const SLICE: usize = 300;

fn data(below: &str) -> PathBuf {
    let folder = std::env::var_os("NSPARSE_TEST_DATA")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")), PathBuf::from);
    let folder =
        if folder.is_absolute() { folder } else { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder) };
    folder.join(below)
}

struct SciFact {
    documents: Vec<Document>,
    qrels: Qrels,
    queries: Vec<nsparse_core::beir::Query>,
}

fn scifact() -> SciFact {
    let set = Dataset::open(&data("beir/scifact")).unwrap();
    let qrels = set.qrels("test").unwrap();
    SciFact { documents: set.corpus().unwrap(), queries: set.judged_queries(&qrels).unwrap(), qrels }
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::load(&data("tokenizers/bert-base-uncased/tokenizer.json")).unwrap()
}

/// Ranks the same vectors here and there: nDCG@10 equal to four digits, the same ten documents for 99.5 % of the
/// queries. Returns nDCG@10.
fn compare(name: &str, set: &SciFact, vectors: &[SparseVector], side: &QueryEncoder) -> f64 {
    let queries: Vec<SearchQuery> = set
        .queries
        .iter()
        .map(|q| SearchQuery { id: q.id.clone(), text: q.text.clone(), vector: side.encode(&q.text).unwrap() })
        .collect();
    let ids = set.documents.iter().map(|d| d.id.clone());
    let here = InvertedIndex::build(ids.zip(vectors.iter().cloned()));
    let there = sparse_searcher(
        &shared().cluster,
        name,
        &["engine_agrees"],
        &set.documents,
        vectors,
        side.tokenizer().vocabulary(),
        &IngestOptions::default(),
        &NoProgress,
        &Cancel::default(),
    )
    .unwrap();
    let rank = |searcher: &dyn Searcher| searcher.search(&queries, 100).unwrap();
    let (here, there) = (rank(&here), rank(&there));
    let ndcg = |hits: &[Vec<nsparse_core::Hit>]| {
        let run: Run = queries.iter().map(|q| q.id.clone()).zip(hits.iter().cloned()).collect();
        evaluate(&set.qrels, &run, &EvalOptions::default()).mean["ndcg@10"]
    };
    let top = |hits: &[nsparse_core::Hit]| hits.iter().take(10).map(|h| h.id.clone()).collect::<BTreeSet<_>>();
    let equal = here.iter().zip(&there).filter(|(a, b)| top(a) == top(b)).count();
    let mut furthest = 0f32;
    for (a, b) in here.iter().zip(&there) {
        assert_eq!(a.len(), b.len());
        for (a, b) in a.iter().zip(b) {
            furthest = furthest.max((a.score - b.score).abs() / b.score);
        }
    }
    let active = vectors.iter().map(SparseVector::len).sum::<usize>() as f64 / vectors.len() as f64;
    println!(
        "{name}: {} documents of {active:.0} dimensions, {} queries; nDCG@10 here {:.6}, engine {:.6}; top-10 sets \
         equal for {equal} of {}; scores differ by at most {furthest:.1e}",
        vectors.len(),
        queries.len(),
        ndcg(&here),
        ndcg(&there),
        queries.len(),
    );
    assert!((ndcg(&here) - ndcg(&there)).abs() < 5e-5);
    assert!(equal as f64 >= 0.995 * queries.len() as f64, "{equal} of {}", queries.len());
    assert!(furthest < 1e-5, "{furthest}");
    ndcg(&here)
}

/// Word pieces by BM25's tf part and the corpus's own idf: 0.6768 was measured with other code.
#[test]
fn lexical_vectors() {
    let set = scifact();
    let template = DocumentTemplate::default();
    let texts: Vec<String> = set.documents.iter().map(|d| template.apply(d)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (tokenizer, cancel) = (tokenizer(), Cancel::default());
    let (idf, _) =
        IdfTable::build(texts.iter().copied(), &tokenizer, IdfFormula::Bm25, &template.pattern, &cancel, &NoProgress)
            .unwrap();
    let (_, vectors) =
        LexicalEncoder::fit(tokenizer.clone(), LexicalWeight::BM25, &texts, &cancel, &NoProgress).unwrap();
    let side = QueryEncoder::new(tokenizer, idf).unwrap();
    let ndcg = compare("lexical", &set, &vectors, &side);
    assert!((ndcg - 0.6768).abs() < 0.002, "{ndcg}");
}

/// Encodes the documents with a model directory.
fn encoded(set: &SciFact, folder: &Path) -> (Vec<SparseVector>, QueryEncoder) {
    let directory = ModelDir::open(folder).unwrap();
    let template = directory.facts().unwrap().template;
    let texts: Vec<String> = set.documents.iter().map(|d| template.apply(d)).collect();
    let encoder = SparseEncoder::load(folder, Device::Cpu).unwrap();
    let vectors = encoder.encode_reporting(&texts, &NoProgress, &Cancel::default()).unwrap();
    (vectors, directory.query_encoder().unwrap())
}

#[test]
fn a_model() {
    let mut set = scifact();
    if let Some(folder) = std::env::var_os("NSPARSE_MODEL") {
        let (vectors, side) = encoded(&set, Path::new(&folder));
        compare("trained", &set, &vectors, &side);
        return;
    }
    println!("NSPARSE_MODEL is not set: random weights over {SLICE} documents");
    // The judged documents, filled up in the corpus's order.
    let judged: BTreeSet<String> = set.qrels.values().flat_map(|d| d.keys().cloned()).collect();
    let (mut slice, others): (Vec<Document>, Vec<Document>) =
        set.documents.into_iter().partition(|d| judged.contains(&d.id));
    let missing = SLICE.saturating_sub(slice.len());
    slice.extend(others.into_iter().take(missing));
    set.documents = slice;

    let tokenizer = tokenizer();
    let folder = tempfile::tempdir().unwrap();
    let mut shape = shape(tokenizer.vocabulary().len());
    // The bias that leaves 50 to 400 weights above zero, by bisection.
    let (mut low, mut high) = (-20f32, 5f32);
    let (vectors, side) = loop {
        shape.bias = f32::midpoint(low, high);
        write_with(folder.path(), &shape, 17, &tokenizer).unwrap();
        let probe = SciFact { documents: set.documents[..8].to_vec(), qrels: Qrels::default(), queries: Vec::new() };
        let (vectors, _) = encoded(&probe, folder.path());
        let active = vectors.iter().map(SparseVector::len).sum::<usize>() / vectors.len();
        match active {
            0..50 => low = shape.bias,
            50..=400 => break encoded(&set, folder.path()),
            _ => high = shape.bias,
        }
        assert!(high - low > 1e-4, "no bias gives a sparse vector: {low} to {high}");
    };
    compare("random", &set, &vectors, &side);
}

fn shape(vocabulary: usize) -> Shape {
    let config = serde_json::json!({
        "model_type": "bert", "vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "gelu", "max_position_embeddings": 128,
        "type_vocab_size": 2, "layer_norm_eps": 1e-12, "initializer_range": 0.05,
    });
    Shape {
        config: serde_json::from_value(config).unwrap(),
        max_tokens: 128,
        activation: Activation::Splade,
        bias: 0.0,
    }
}

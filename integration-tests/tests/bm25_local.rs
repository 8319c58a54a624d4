//! The embedded engines on real data, against what a real OpenSearch 2.16.0 and an independent Python program
//! measured there.
#![cfg(feature = "data")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashSet;
use std::path::PathBuf;

use nsparse_core::beir::Dataset;
use nsparse_core::{
    Cancel, DocumentTemplate, IdfFormula, IdfTable, NoProgress, QueryEncoder, Run, SearchQuery, Searcher, TextTokenizer,
};
use nsparse_retrieval::mine::{MineOptions, mine, text_queries};
use nsparse_retrieval::{
    Analyzer, Bm25Index, EvalOptions, Evaluation, InvertedIndex, LexicalEncoder, LexicalWeight, evaluate,
};

fn data() -> PathBuf {
    let folder = std::env::var_os("NSPARSE_TEST_DATA")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"), PathBuf::from);
    assert!(folder.is_dir(), "no folder {}: set NSPARSE_TEST_DATA to the data sets' folder", folder.display());
    folder
}

fn dataset(name: &str) -> Dataset {
    Dataset::open(&data().join("beir").join(name)).unwrap()
}

fn rank(set: &Dataset, searcher: &dyn Searcher, queries: &[SearchQuery]) -> Evaluation {
    let hits = searcher.search(queries, 1000).unwrap();
    let run: Run = queries.iter().map(|q| q.id.clone()).zip(hits).collect();
    evaluate(&set.qrels("test").unwrap(), &run, &EvalOptions::default())
}

fn bm25(name: &str, analyzer: Analyzer) -> Evaluation {
    let set = dataset(name);
    let queries = text_queries(&set.judged_queries(&set.qrels("test").unwrap()).unwrap());
    let index = Bm25Index::build_with(&set.corpus().unwrap(), analyzer, &NoProgress, &Cancel::default()).unwrap();
    rank(&set, &index, &queries)
}

#[track_caller]
fn near(evaluation: &Evaluation, metric: &str, expected: f64, tolerance: f64) {
    let value = evaluation.mean[metric];
    assert!((value - expected).abs() <= tolerance, "{metric}: {value:.4}, expected {expected} ± {tolerance}");
}

/// OpenSearch 2.16.0, `multi_match` over title and text, tie breaker 0.5, one shard, measured 0.6906 and 0.9192.
#[test]
fn scifact_english_as_opensearch() {
    let evaluation = bm25("scifact", Analyzer::English);
    assert_eq!(evaluation.queries, 300);
    near(&evaluation, "ndcg@10", 0.6906, 0.0005);
    near(&evaluation, "recall@100", 0.9192, 0.0005);
}

#[test]
fn scifact_standard_as_opensearch() {
    near(&bm25("scifact", Analyzer::Standard), "ndcg@10", 0.6563, 0.0005);
}

/// Two of its documents are empty, so the fields' statistics count.
#[test]
fn cranfield_english_as_opensearch() {
    near(&bm25("cranfield", Analyzer::English), "ndcg@10", 0.3942, 0.0005);
}

#[test]
fn nfcorpus_english_near_opensearch() {
    let evaluation = bm25("nfcorpus-preprocessed", Analyzer::English);
    near(&evaluation, "ndcg@10", 0.3331, 0.001);
    assert_eq!(evaluation.missing.len(), 15, "queries without a hit");
}

/// Word pieces of bert-base-uncased over title and text, the corpus's own idf on the query side.
#[test]
fn lexical_baselines_on_scifact() {
    let set = dataset("scifact");
    let template = DocumentTemplate::default();
    let documents = set.corpus().unwrap();
    let texts: Vec<String> = documents.iter().map(|d| template.apply(d)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let tokenizer = TextTokenizer::load(&data().join("tokenizers/bert-base-uncased/tokenizer.json")).unwrap();
    let (idf, _) = IdfTable::build(
        texts.iter().copied(),
        &tokenizer,
        IdfFormula::Bm25,
        &template.pattern,
        &Cancel::default(),
        &NoProgress,
    )
    .unwrap();
    let encoder = QueryEncoder::new(tokenizer.clone(), idf).unwrap();
    let queries: Vec<SearchQuery> = set
        .judged_queries(&set.qrels("test").unwrap())
        .unwrap()
        .into_iter()
        .map(|q| SearchQuery { vector: encoder.encode(&q.text).unwrap(), id: q.id, text: q.text })
        .collect();
    let expected = [
        (LexicalWeight::Binary, 0.6182, 0.8917),
        (LexicalWeight::LogTf, 0.6359, 0.9297),
        (LexicalWeight::BM25, 0.6768, 0.9287),
    ];
    for (weight, ndcg, recall) in expected {
        let (fitted, vectors) =
            LexicalEncoder::fit(tokenizer.clone(), weight, &texts, &Cancel::default(), &NoProgress).unwrap();
        assert!((fitted.mean_length() - 335.0).abs() < 2.0, "{} word pieces on average", fitted.mean_length());
        let index = InvertedIndex::build(documents.iter().map(|d| d.id.clone()).zip(vectors));
        let evaluation = rank(&set, &index, &queries);
        near(&evaluation, "ndcg@10", ndcg, 0.002);
        near(&evaluation, "recall@100", recall, 0.004);
    }
}

/// All training queries of SciFact: as many rows as judged pairs, no positive among the negatives, the same
/// rows for the same seed.
#[test]
fn negatives_for_scifact() {
    let set = dataset("scifact");
    let documents = set.corpus().unwrap();
    let qrels = set.qrels("train").unwrap();
    let queries = text_queries(&set.judged_queries(&qrels).unwrap());
    let index = Bm25Index::build(&documents, &NoProgress).unwrap();
    let options = MineOptions { depth: 50, samples: 5, ..MineOptions::default() };
    let mined = || mine(&index, &queries, &qrels, &documents, &options, &Cancel::default(), &NoProgress).unwrap();
    let (rows, report) = mined();
    assert_eq!((report.queries, report.rows, report.without_positives), (809, 919, 0));
    assert_eq!((report.too_few, report.negatives), (0, 919 * 5));
    assert!(report.missing_positives.is_empty());
    for row in &rows {
        assert_eq!(row.problem(), None);
        let judged = &qrels[row.query_id.as_ref().unwrap()];
        assert!(judged[row.pos_id.as_ref().unwrap()] > 0);
        assert!(row.neg_ids.iter().all(|id| judged.get(id).is_none_or(|&grade| grade <= 0)));
        assert_eq!(row.neg_ids.iter().collect::<HashSet<_>>().len(), 5);
    }
    assert_eq!(rows, mined().0);
}

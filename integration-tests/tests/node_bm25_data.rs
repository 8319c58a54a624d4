//! BM25 through a real OpenSearch on public sets: the figures that OpenSearch itself is known to give.

#![cfg(all(feature = "node", feature = "data"))]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::PathBuf;

use nsparse_core::beir::Dataset;
use nsparse_core::{Cancel, NoProgress, Run, Searcher};
use nsparse_integration_tests::node::shared;
use nsparse_opensearch::{IngestOptions, bm25_searcher};
use nsparse_retrieval::mine::text_queries;
use nsparse_retrieval::{EvalOptions, Evaluation, evaluate};

fn set(name: &str) -> Dataset {
    let folder = std::env::var_os("NSPARSE_TEST_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data")),
        |folder| {
            let given = PathBuf::from(folder);
            if given.is_absolute() {
                given
            } else {
                PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).join(given)
            }
        },
    );
    Dataset::open(&folder.join("beir").join(name)).unwrap()
}

fn bm25(name: &str, analyzer: &str) -> Evaluation {
    let set = set(name);
    let documents = set.corpus().unwrap();
    let qrels = set.qrels("test").unwrap();
    let queries = text_queries(&set.judged_queries(&qrels).unwrap());
    let hash = set.corpus_hash().unwrap();
    let make = || {
        let options = IngestOptions::default();
        let cancel = Cancel::default();
        bm25_searcher(&shared().cluster, name, &hash, &documents, analyzer, &options, &NoProgress, &cancel).unwrap()
    };
    let searcher = make();
    let hits = searcher.search(&queries, 1000).unwrap();
    // The index is found again, and it ranks as before.
    assert_eq!(make().search(&queries[..20], 1000).unwrap(), hits[..20]);
    let run: Run = queries.iter().map(|q| q.id.clone()).zip(hits).collect();
    evaluate(&qrels, &run, &EvalOptions::default())
}

/// Published for OpenSearch: 0.690; measured on this server with other code: 0.6906, R@100 0.9192.
#[test]
fn scifact() {
    let mean = bm25("scifact", "english").mean;
    assert!((mean["ndcg@10"] - 0.6906).abs() <= 0.002, "{}", mean["ndcg@10"]);
    assert!((mean["recall@100"] - 0.9192).abs() <= 0.005, "{}", mean["recall@100"]);
    let standard = bm25("scifact", "standard").mean;
    assert!((standard["ndcg@10"] - 0.6563).abs() <= 0.002, "{}", standard["ndcg@10"]);
}

/// Measured on this server with other code: 0.3942.
#[test]
fn cranfield() {
    let mean = bm25("cranfield", "english").mean;
    assert!((mean["ndcg@10"] - 0.3942).abs() <= 0.002, "{}", mean["ndcg@10"]);
}

//! The main job on a real OpenSearch in a container: it ranks as the embedded indexes do, and as a node without a
//! container does.

#![cfg(feature = "containers")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::path::Path;

use nsparse_core::beir::{Dataset, Document};
use nsparse_core::{
    Cancel, DocumentTemplate, IdfFormula, IdfTable, NoProgress, Qrels, QueryEncoder, Run, SearchQuery, Searcher,
    SparseVector, TextTokenizer, wordpiece,
};
use nsparse_integration_tests::containers;
use nsparse_opensearch::{Cluster, IngestOptions, bm25_searcher, sparse_searcher};
use nsparse_retrieval::{Bm25Index, EvalOptions, InvertedIndex, LexicalEncoder, LexicalWeight, evaluate};

/// A set with lexical vectors on both sides: what a trained model would give, less the model.
struct Job {
    set: Dataset,
    documents: Vec<Document>,
    vectors: Vec<SparseVector>,
    vocabulary: Vec<String>,
    qrels: Qrels,
    queries: Vec<SearchQuery>,
}

/// How well the two methods rank.
#[derive(Debug, PartialEq)]
struct Quality {
    bm25: f64,
    lexical: f64,
}

impl Job {
    fn new(folder: &Path, tokenizer: impl Fn(&[&str]) -> TextTokenizer) -> Self {
        let set = Dataset::open(folder).unwrap();
        let documents = set.corpus().unwrap();
        let template = DocumentTemplate::default();
        let texts: Vec<String> = documents.iter().map(|d| template.apply(d)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let tokenizer = tokenizer(&texts);
        let cancel = Cancel::default();
        let (_, vectors) =
            LexicalEncoder::fit(tokenizer.clone(), LexicalWeight::BM25, &texts, &cancel, &NoProgress).unwrap();
        let formula = IdfFormula::Bm25;
        let all = texts.iter().copied();
        let idf = IdfTable::build(all, &tokenizer, formula, &template.pattern, &cancel, &NoProgress).unwrap().0;
        let vocabulary = tokenizer.vocabulary().to_vec();
        let encoder = QueryEncoder::new(tokenizer, idf).unwrap();
        let qrels = set.qrels("test").unwrap();
        let queries = set.judged_queries(&qrels).unwrap().into_iter();
        let queries = queries.map(|q| SearchQuery { vector: encoder.encode(&q.text).unwrap(), id: q.id, text: q.text });
        Self { documents, vectors, vocabulary, queries: queries.collect(), qrels, set }
    }

    /// Indexed on a cluster and searched there.
    fn on(&self, cluster: &Cluster) -> Quality {
        let (name, hash) = (&self.set.name, self.set.corpus_hash().unwrap());
        let (options, cancel) = (IngestOptions::default(), Cancel::default());
        let bm25 =
            bm25_searcher(cluster, name, &hash, &self.documents, "english", &options, &NoProgress, &cancel).unwrap();
        let content = [hash.as_str(), "lexical"];
        let lexical = sparse_searcher(
            cluster,
            name,
            &content,
            &self.documents,
            &self.vectors,
            &self.vocabulary,
            &options,
            &NoProgress,
            &cancel,
        );
        Quality { bm25: self.rank(&bm25), lexical: self.rank(&lexical.unwrap()) }
    }

    /// In the embedded indexes.
    fn embedded(&self) -> Quality {
        let ids = self.documents.iter().map(|d| d.id.clone());
        let lexical = InvertedIndex::build(ids.zip(self.vectors.iter().cloned()));
        let bm25 = Bm25Index::build(&self.documents, &NoProgress).unwrap();
        Quality { bm25: self.rank(&bm25), lexical: self.rank(&lexical) }
    }

    /// nDCG@10, to four digits.
    fn rank(&self, searcher: &dyn Searcher) -> f64 {
        let hits = searcher.search(&self.queries, 100).unwrap();
        let run: Run = self.queries.iter().map(|q| q.id.clone()).zip(hits).collect();
        let evaluation = evaluate(&self.qrels, &run, &EvalOptions::default());
        assert_eq!(evaluation.queries, self.qrels.len());
        (evaluation.mean["ndcg@10"] * 1e4).round() / 1e4
    }
}

#[test]
fn the_sample_ranks_as_in_the_embedded_indexes() {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/retrieval"));
    let job = Job::new(folder, |texts| wordpiece::train(texts.iter().copied(), 1000).unwrap());
    let found = job.on(&containers::shared().cluster);
    assert_eq!(found, job.embedded());
    // Two empty rankings would be equal too.
    assert!(found.bm25 > 0.5 && found.lexical > 0.5, "{found:?}");
}

/// BM25 there, measured on such a node with other code: 0.3942.
#[cfg(all(feature = "data", feature = "node"))]
#[test]
fn cranfield_ranks_as_on_a_node_without_a_container() {
    let cluster = &containers::shared().cluster;
    let data = std::env::var_os("NSPARSE_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data"),
        |folder| Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder),
    );
    let tokenizer = data.join("tokenizers/bert-base-uncased/tokenizer.json");
    let job = Job::new(&data.join("beir/cranfield"), |_| TextTokenizer::load(&tokenizer).unwrap());
    let found = job.on(cluster);
    assert_eq!(found, job.on(&nsparse_integration_tests::node::shared().cluster));
    assert!((found.bm25 - 0.3942).abs() <= 0.0005 && found.lexical > 0.3, "{found:?}");
}

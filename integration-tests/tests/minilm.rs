//! all-MiniLM-L6-v2 as a dense teacher: sentence-transformers' vectors and ranking on the sample collection. The model
//! lies where `NSPARSE_MINILM` says; `scripts/fetch-minilm.sh` brings it.
#![cfg(feature = "minilm")]

use std::path::PathBuf;

use nsparse_core::beir::Dataset;
use nsparse_core::{Cancel, DocumentTemplate, Scorer};
use nsparse_encoder::{DenseEncoder, DenseSettings, Device, Pooling};
use nsparse_integration_tests::golden::{self, GoldenFile};

#[test]
fn sentence_vectors_match() {
    let folder = std::env::var_os("NSPARSE_MINILM").map(PathBuf::from);
    let folder = folder.expect("NSPARSE_MINILM names the folder of all-MiniLM-L6-v2 (scripts/fetch-minilm.sh)");
    let settings = DenseSettings { pooling: Pooling::Mean, normalize: true, max_tokens: 256 };
    let encoder = DenseEncoder::load(&folder, Device::Cpu, settings).expect("the model loads");
    let set = Dataset::open(&PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../samples/retrieval")))
        .expect("the sample collection");
    let expected: serde_json::Value =
        nsparse_core::files::read_json(&golden::path("minilm-sample/ranking.json")).expect("golden ids");
    let ids = |name: &str| serde_json::from_value::<Vec<String>>(expected[name].clone()).expect("ids");
    let (corpus, queries) = (set.corpus().expect("documents"), set.queries().expect("queries"));
    let template = DocumentTemplate::default();
    let documents: Vec<String> = ids("documents")
        .iter()
        .map(|id| template.apply(corpus.iter().find(|d| &d.id == id).expect("the document is there")))
        .collect();
    let queries: Vec<(String, String)> = ids("queries")
        .iter()
        .map(|id| queries.iter().find(|q| &q.id == id).expect("the query is there"))
        .map(|q| (q.id.clone(), q.text.clone()))
        .collect();
    let texts: Vec<&str> = documents.iter().map(String::as_str).chain(queries.iter().map(|q| q.1.as_str())).collect();
    let vectors = encoder.encode(&texts, &Cancel::default(), |_| ()).expect("it encodes");
    let file = GoldenFile::read("minilm-sample/embeddings.safetensors");
    let golden: Vec<f32> = file.f32("documents").iter().chain(file.f32("queries")).copied().collect();
    for (text, (vector, golden)) in vectors.iter().zip(golden.chunks_exact(384)).enumerate() {
        let deviation = golden::max_difference(vector, golden);
        assert!(deviation <= 5e-6, "text {text}: {deviation}");
    }
    for (id, query) in &queries {
        let pairs: Vec<(&str, &str)> = documents.iter().map(|d| (query.as_str(), d.as_str())).collect();
        let scores = encoder.score(&pairs).expect("it scores");
        let mut order: Vec<usize> = (0..documents.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let ranked: Vec<String> = order.iter().map(|&place| ids("documents")[place].clone()).collect();
        let wanted: Vec<String> = serde_json::from_value(expected["ranking_by_query"][id].clone()).expect("a ranking");
        assert_eq!(ranked, wanted, "query {id}");
    }
}

//! Vectors in a real OpenSearch: what is stored, how it scores, what is refused; and the life of our own indexes.

#![cfg(feature = "node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use nsparse_core::beir::Document;
use nsparse_core::vector::engine_weight;
use nsparse_core::{Cancel, NoProgress, SearchQuery, Searcher, SparseVector};
use nsparse_integration_tests::node::shared;
use nsparse_opensearch::ml::Fields;
use nsparse_opensearch::{
    Cluster, IndexSpec, IngestOptions, IngestReport, Kind, Page, SparseMode, SparseSearcher, State, bm25_query, index,
    ingest, ingest_encoded, ingest_segments, ingest_texts, search_page, segment_searcher, segments, sparse_searcher,
};
use nsparse_retrieval::SegmentIndex;
use serde_json::json;

/// Strings of a BERT-like vocabulary that could trouble a query language.
const VOCABULARY: [&str; 12] = ["apple", "##s", "*", "?", "\"", "\\", "a b", "[unused1]", "한", "😀", "~", "a.b"];

fn vocabulary() -> Vec<String> {
    VOCABULARY.map(str::to_owned).to_vec()
}

fn document(id: &str, title: &str, text: &str) -> Document {
    Document { id: id.to_owned(), title: title.to_owned(), text: text.to_owned(), ..Document::default() }
}

fn vector(pairs: &[(u32, f32)]) -> SparseVector {
    SparseVector::from_pairs(pairs.to_vec())
}

fn fresh(cluster: &Cluster, kind: Kind, name: &str) -> IndexSpec {
    let spec = IndexSpec::keyed(kind, name, "english", &[name]);
    assert_eq!(index::ensure(cluster, &spec).unwrap(), State::Partial);
    spec
}

fn send(cluster: &Cluster, spec: &IndexSpec, documents: &[Document], vectors: &[SparseVector]) -> IngestReport {
    let options = IngestOptions::default();
    let vocabulary = vocabulary();
    ingest_encoded(cluster, &spec.name, documents, vectors, &vocabulary, &options, &NoProgress, &Cancel::default())
        .unwrap()
}

fn query(id: &str, pairs: &[(u32, f32)]) -> SearchQuery {
    SearchQuery { id: id.to_owned(), text: String::new(), vector: vector(pairs) }
}

#[test]
fn scores_are_the_dot_product_of_what_the_engine_stores() {
    let cluster = &shared().cluster;
    let spec = fresh(cluster, Kind::Sparse, "scores");
    // Weights that nine significant bits cannot hold, one a token, and a token with a dot, which never goes in.
    let weights = [0.1f32, 0.337_21, 1.999_9, 4.141_592_7, 7.77, 1e-30, 63.999, 2.0, 0.003, 5.5, 1.0, 9.0];
    let documents: Vec<Document> = (0..12).map(|i| document(&format!("d{i:02}"), "", "x")).collect();
    let vectors: Vec<SparseVector> = (0..12u32)
        .map(|i| vector(&[(i, weights[i as usize]), ((i + 1) % 12, weights[(i as usize + 1) % 12])]))
        .collect();
    let report = send(cluster, &spec, &documents, &vectors);
    assert_eq!((report.indexed, report.documents, report.rejected.len()), (12, 12, 0));

    let field = &spec.fields.vector;
    let searcher = SparseSearcher::new(cluster.clone(), &spec.name, field, &vocabulary()).unwrap();
    assert_eq!(searcher.mode(), &SparseMode::RankFeature);
    let queries: Vec<SearchQuery> = (0..12u32).map(|t| query(&format!("q{t}"), &[(t, 1.25)])).collect();
    for (t, hits) in searcher.search(&queries, 10).unwrap().iter().enumerate() {
        let mut ids: Vec<&str> = hits.iter().map(|h| h.id.as_str()).collect();
        ids.sort_unstable();
        if VOCABULARY[t].contains('.') {
            assert!(ids.is_empty(), "{ids:?}");
            continue;
        }
        // Each token stands in its own document and in the one before, and nowhere else.
        let mut expected = vec![format!("d{t:02}"), format!("d{:02}", (t + 11) % 12)];
        expected.sort();
        assert_eq!(ids, expected, "token `{}`", VOCABULARY[t]);
        let score = 1.25 * engine_weight(weights[t]);
        for hit in hits {
            assert!((hit.score - score).abs() <= score * 1e-6, "`{}`: {} for {score}", VOCABULARY[t], hit.score);
        }
    }
    let all: Vec<(u32, f32)> = (0..11).map(|t| (t, 0.5 + t as f32)).collect();
    let hits = &searcher.search(&[query("all", &all)], 20).unwrap()[0];
    assert_eq!(hits.len(), 12);
    for hit in hits {
        let i: usize = hit.id[1..].parse().unwrap();
        let without_dots = SparseVector::from_pairs(vectors[i].iter().filter(|p| p.0 != 11).collect());
        let expected = without_dots.as_stored().dot(&vector(&all)) as f32;
        assert!((hit.score - expected).abs() <= expected * 1e-6, "{}: {} for {expected}", hit.id, hit.score);
    }
    assert!(hits.windows(2).all(|w| w[0].score >= w[1].score));
}

#[test]
fn deep_searches_many_queries_and_empty_ones() {
    let cluster = &shared().cluster;
    let spec = fresh(cluster, Kind::Sparse, "deep");
    let documents: Vec<Document> = (0..120).map(|i| document(&format!("d{i:03}"), "", "x")).collect();
    let vectors: Vec<SparseVector> = (1..=120).map(|i| vector(&[(0, i as f32 / 8.0)])).collect();
    send(cluster, &spec, &documents, &vectors);
    let searcher = SparseSearcher::new(cluster.clone(), &spec.name, &spec.fields.vector, &vocabulary()).unwrap();
    let mut queries: Vec<SearchQuery> =
        (0..130).map(|i| query(&format!("q{i}"), &[(0, 1.0 + i as f32 / 64.0)])).collect();
    queries[7].vector = SparseVector::default();
    let found = searcher.search(&queries, 100).unwrap();
    assert_eq!(found.len(), 130);
    for (i, hits) in found.iter().enumerate() {
        assert_eq!(hits.len(), if i == 7 { 0 } else { 100 });
        if let Some(best) = hits.first() {
            assert_eq!(best.id, "d119");
        }
    }
    let error = searcher.search(&queries, 10_001).unwrap_err().to_string();
    assert_eq!(error, "A search of depth 10001 is not possible; an index gives 1 to 10000");
    let nowhere = SparseSearcher::new(cluster.clone(), "nowhere", "v", &vocabulary()).unwrap();
    let error = nowhere.search(&queries[..1], 10).unwrap_err().to_string();
    assert!(error.ends_with("(index_not_found_exception): no such index [nowhere]"), "{error}");
}

#[test]
fn what_the_engine_refuses_is_listed_and_the_rest_is_in() {
    let cluster = &shared().cluster;
    let spec = fresh(cluster, Kind::Sparse, "refused");
    let long = "i".repeat(513);
    let documents = [
        document("good", "A title", "t"),
        document(&long, "", "x"),
        document("heavy", "", "x"),
        document("too", "", "x"),
    ];
    let vectors = [vector(&[(0, 1.0)]), vector(&[(0, 1.0)]), vector(&[(0, 65.0)]), vector(&[(1, 1.0)])];
    // For an id beyond 512 bytes the engine refuses the whole request, the good documents with it.
    let report = send(cluster, &spec, &documents, &vectors);
    let ids: Vec<&str> = report.rejected.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids, ["heavy", long.as_str()]);
    assert_eq!(report.rejected[0].reason, "the weight 65 of token `apple` is not in (0, 64]");
    assert!(report.rejected[1].reason.contains("is too long"), "{}", report.rejected[1].reason);
    assert_eq!((report.indexed, report.documents), (2, 2));

    // What only the engine knows to refuse comes back with its reason.
    let source =
        |id: &str, vector: serde_json::Value| (id.to_owned(), json!({ "title": "", "text": "", "embedding": vector }));
    let sources =
        [source("zero", json!({ "apple": 0 })), source("fine", json!({ "apple": 1 })), source("word", json!("apple"))];
    let report =
        ingest(cluster, &spec.name, sources, &IngestOptions::default(), &NoProgress, &Cancel::default()).unwrap();
    assert_eq!(report.indexed, 1);
    let reasons: Vec<(&str, &str)> = report.rejected.iter().map(|r| (r.id.as_str(), r.reason.as_str())).collect();
    assert_eq!(reasons[0].0, "word");
    assert!(reasons[0].1.starts_with("failed to parse: [rank_features] fields must be json objects"), "{reasons:?}");
    assert_eq!(reasons[1].0, "zero");
    assert!(reasons[1].1.contains("must be a positive normal float, got: 0.0 for feature apple"), "{reasons:?}");
}

#[test]
fn a_missing_index_is_not_made_by_accident() {
    let cluster = &shared().cluster;
    let error = ingest_texts(
        cluster,
        "nsparse-typo",
        &[document("a", "", "b")],
        &IngestOptions::default(),
        &NoProgress,
        &Cancel::default(),
    )
    .unwrap_err();
    assert_eq!(error.to_string(), format!("There is no index `nsparse-typo` on {}", cluster.url()));
    assert_eq!(cluster.find("/nsparse-typo").unwrap(), None);
}

#[test]
fn a_journal_of_a_deleted_index_counts_for_nothing() {
    let cluster = &shared().cluster;
    let folder = tempfile::tempdir().unwrap();
    let options = IngestOptions { journal: Some(folder.path().join("j")), ..IngestOptions::default() };
    let documents = [document("a", "", "b"), document("c", "", "d")];
    let send = |spec: &IndexSpec| {
        ingest_texts(cluster, &spec.name, &documents, &options, &NoProgress, &Cancel::default()).unwrap()
    };
    let spec = fresh(cluster, Kind::Bm25, "journal");
    assert_eq!(send(&spec).indexed, 2);
    let second = send(&spec);
    assert_eq!((second.indexed, second.skipped, second.requests), (0, 2, 0));
    assert!(index::delete(cluster, &spec.name).unwrap());
    fresh(cluster, Kind::Bm25, "journal");
    assert_eq!(send(&spec).indexed, 2);
}

#[test]
fn our_indexes_are_marked_found_and_deleted_and_others_are_not() {
    let cluster = &shared().cluster;
    let spec = fresh(cluster, Kind::Bm25, "life");
    let documents = [document("a", "Apples", "about fruit"), document("b", "", "apple trees, apples and apple pie")];
    ingest_texts(cluster, &spec.name, &documents, &IngestOptions::default(), &NoProgress, &Cancel::default()).unwrap();
    let error = index::complete(cluster, &spec, 3).unwrap_err().to_string();
    assert!(error.contains("has 2 documents; 3 were expected"), "{error}");
    assert_eq!(index::state(cluster, &spec.name).unwrap(), State::Partial);
    index::complete(cluster, &spec, 2).unwrap();
    assert_eq!(index::ensure(cluster, &spec).unwrap(), State::Complete { documents: 2 });
    let own = index::list(cluster).unwrap().into_iter().find(|i| i.name == spec.name).unwrap();
    assert!(own.is_complete());
    assert_eq!(own.mark["set"], "life");

    let asked = json!({ "query": bm25_query("an apple", &spec.fields) });
    let page = Page { size: 5, ..Page::default() };
    let found = search_page(cluster, &spec.name, asked, &page, &spec.fields).unwrap().hits;
    assert_eq!(found.len(), 2);
    let titled = found.iter().find(|f| f.id == "a").unwrap();
    assert_eq!(titled.source, json!({ "title": "Apples", "text": "about fruit" }));

    // Changed behind our back: no longer complete.
    cluster.delete(&format!("/{}/_doc/a?refresh=true", spec.name)).unwrap();
    assert_eq!(index::state(cluster, &spec.name).unwrap(), State::Partial);

    cluster.put("/nsparse-bm25-foreign", json!({})).unwrap();
    assert_eq!(index::state(cluster, "nsparse-bm25-foreign").unwrap(), State::Foreign);
    let error = index::delete(cluster, "nsparse-bm25-foreign").unwrap_err().to_string();
    assert_eq!(error, "The index `nsparse-bm25-foreign` was not made by nsparse; it stays");
    assert!(index::list(cluster).unwrap().iter().all(|i| i.name != "nsparse-bm25-foreign"));

    assert!(index::delete(cluster, &spec.name).unwrap());
    assert!(!index::delete(cluster, &spec.name).unwrap());
    assert_eq!(index::state(cluster, &spec.name).unwrap(), State::Absent);
}

#[test]
fn a_corpus_is_indexed_once_and_cleaned_by_its_name() {
    let cluster = &shared().cluster;
    let documents = [document("a", "", "x"), document("b", "", "y")];
    let vectors = [vector(&[(0, 1.0)]), vector(&[(0, 2.0), (1, 1.0)])];
    let (vocabulary, options, cancel) = (vocabulary(), IngestOptions::default(), Cancel::default());
    let make = |vectors: &[SparseVector], content: &str| {
        sparse_searcher(cluster, "once", &[content], &documents, vectors, &vocabulary, &options, &NoProgress, &cancel)
    };
    let first = make(&vectors, "one").unwrap().search(&[query("q", &[(0, 1.0)])], 10).unwrap();
    assert_eq!(first[0].iter().map(|h| h.id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
    // Complete: what is given a second time is not looked at.
    let second = make(&[vector(&[]), vector(&[])], "one").unwrap().search(&[query("q", &[(0, 1.0)])], 10).unwrap();
    assert_eq!(first, second);
    let error = make(&[vector(&[(0, 99.0)]), vector(&[])], "two").unwrap_err().to_string();
    assert!(error.starts_with("1 documents were rejected by the index `nsparse-sparse-once-"), "{error}");
    assert_eq!(index::clean(cluster, "once").unwrap().len(), 2);
    assert_eq!(index::clean(cluster, "once").unwrap(), Vec::<String>::new());
}

/// Numbers that look random and are the same each time.
fn noise(state: &mut u64) -> u32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 40) as u32
}

#[test]
fn nested_segments_rank_by_the_best_one_as_the_local_twin_does() {
    let cluster = &shared().cluster;
    let state = &mut 7;
    let random = |state: &mut u64, most: u32| -> SparseVector {
        let count = noise(state) % most;
        // No token with a dot: those never go in.
        vector(
            &(0..count).map(|_| (noise(state) % 11, 0.01 + (noise(state) % 6000) as f32 / 1000.0)).collect::<Vec<_>>(),
        )
    };
    let documents: Vec<Document> = (0..60).map(|i| document(&format!("d{i:02}"), "a title", "a text")).collect();
    // None to four segments each; some are empty.
    let of_documents: Vec<Vec<SparseVector>> =
        documents.iter().map(|_| (0..noise(state) % 5).map(|_| random(state, 7)).collect()).collect();
    let queries: Vec<SearchQuery> =
        (0..40).map(|i| SearchQuery { id: format!("q{i}"), text: String::new(), vector: random(state, 6) }).collect();
    let options = IngestOptions::default();
    let (vocabulary, cancel) = (vocabulary(), Cancel::default());
    let (set, content) = ("segments", ["one"]);
    let there = segment_searcher(
        cluster,
        set,
        &content,
        &documents,
        &of_documents,
        &vocabulary,
        &options,
        &NoProgress,
        &cancel,
    )
    .unwrap();
    let clause = there.query(&queries.iter().find(|q| !q.vector.is_empty()).unwrap().clone()).unwrap().unwrap();
    assert_eq!(clause["nested"]["score_mode"], "max");
    let here = SegmentIndex::build(documents.iter().map(|d| d.id.clone()).zip(of_documents.iter().cloned()));
    // All that is found: at a cut, equal scores may go either way.
    let (ours, theirs) = (here.search(&queries, 100).unwrap(), there.search(&queries, 100).unwrap());
    let mut hits = 0;
    for ((query, ours), theirs) in queries.iter().zip(&ours).zip(&theirs) {
        assert_eq!(ours.len(), theirs.len(), "{}", query.id);
        assert!(theirs.is_sorted_by(|a, b| a.score >= b.score), "{}", query.id);
        let found: std::collections::BTreeMap<&str, f32> = theirs.iter().map(|h| (h.id.as_str(), h.score)).collect();
        for hit in ours {
            let score = found.get(hit.id.as_str()).copied().unwrap_or(f32::NAN);
            assert!((hit.score - score).abs() <= 1e-6 * score, "{}, {}: {} and {score}", query.id, hit.id, hit.score);
            hits += 1;
        }
    }
    assert!(hits > 300, "{hits}");

    // The best segment is not the vector of maxima.
    let maxima: Vec<SparseVector> = of_documents.iter().map(|s| nsparse_core::segments::maximum(s)).collect();
    let joined =
        sparse_searcher(cluster, set, &["maxima"], &documents, &maxima, &vocabulary, &options, &NoProgress, &cancel)
            .unwrap();
    let joined = joined.search(&queries, 100).unwrap();
    let first = |found: &[Vec<nsparse_core::Hit>]| -> Vec<Option<String>> {
        found.iter().map(|hits| hits.first().map(|h| h.id.clone())).collect()
    };
    assert_ne!(first(&joined), first(&theirs));
    assert_eq!(index::clean(cluster, set).unwrap().len(), 2);
}

#[test]
fn an_index_at_hand_tells_how_it_holds_vectors() {
    let cluster = &shared().cluster;
    let make = |name: &str, properties: serde_json::Value| {
        cluster
            .put(&format!("/{name}"), json!({ "mappings": { "dynamic": false, "properties": properties } }))
            .unwrap();
    };
    make("layout-one", json!({ "embedding": { "type": "rank_features" } }));
    make("layout-none", json!({ "title": { "type": "text" } }));
    make("layout-text", json!({ "embedding": { "type": "text" } }));
    let of = |name: &str| segments::fields_of(cluster, name, Fields::default());
    assert_eq!(of("layout-one").unwrap(), Fields::default());
    assert_eq!(of("layout-none").unwrap(), Fields::default());
    assert!(of("layout-text").unwrap_err().to_string().contains("is text, which holds no vectors"));
    assert!(of("layout-typo").unwrap_err().to_string().contains("There is no index `layout-typo`"));
    let error = segments::ensure_nested(cluster, "layout-one", Fields::default()).unwrap_err().to_string();
    assert!(error.contains("is not nested"), "{error}");

    // Where there is no such field it is added; then the index says so itself.
    let nested = segments::ensure_nested(cluster, "layout-none", Fields::default()).unwrap();
    assert_eq!(nested, Fields::default().nested());
    assert_eq!(of("layout-none").unwrap(), nested);
    assert_eq!(segments::ensure_nested(cluster, "layout-none", Fields::default()).unwrap(), nested);
    let options = IngestOptions { fields: nested.clone(), ..IngestOptions::default() };
    let documents = [document("a", "", "x"), document("b", "", "y"), document("c", "", "z")];
    // 3 + 2 in one segment beat 4 and 4 in two, which as one vector would be 8.
    let vectors =
        [vec![vector(&[(0, 4.0)]), vector(&[(1, 4.0)])], vec![vector(&[(0, 3.0), (1, 2.0)])], vec![vector(&[])]];
    let report = ingest_segments(
        cluster,
        "layout-none",
        &documents,
        &vectors,
        &vocabulary(),
        &options,
        &NoProgress,
        &Cancel::default(),
    )
    .unwrap();
    assert_eq!((report.indexed, report.documents, report.rejected.len()), (3, 3, 0));
    let searcher =
        SparseSearcher::new(cluster.clone(), "layout-none", "embedding", &vocabulary()).unwrap().over(&nested);
    let hits = &searcher.search(&[query("q", &[(0, 1.0), (1, 1.0)])], 10).unwrap()[0];
    let found: Vec<(&str, f32)> = hits.iter().map(|h| (h.id.as_str(), h.score)).collect();
    assert_eq!(found, [("b", 5.0), ("a", 4.0)]);
    for name in ["layout-one", "layout-none", "layout-text"] {
        cluster.delete(&format!("/{name}")).unwrap();
    }
}

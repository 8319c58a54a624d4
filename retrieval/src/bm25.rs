//! Embedded BM25 over title and text: tantivy in memory, queried the way OpenSearch's `multi_match` (type
//! `best_fields`, `tie_breaker` 0.5) queries two fields.
//!
//! Per field, the score is the sum over the query's terms of `idf · tf · (k1 + 1) / (tf + k1 · (1 − b + b · dl /
//! avgdl))`, k1 = 1.2, b = 0.75, `idf = ln(1 + (N − df + 0.5) / (df + 0.5))`, lengths kept in one byte as Lucene
//! keeps them; a term that the query has twice counts twice. The document's score is the better field's plus
//! half of the other's. A query's text is only ever analysed: no character in it is an operator.
//!
//! As in Lucene, N and avgdl of a field count the documents that have a term in it. What is left of differences
//! is in [`crate::analyzer`].

use std::collections::BTreeMap;

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Hit, Progress, SearchQuery, Searcher};
use rayon::prelude::*;
use tantivy::collector::TopDocs;
use tantivy::directory::RamDirectory;
use tantivy::indexer::SingleSegmentIndexWriter;
use tantivy::query::{
    Bm25StatisticsProvider, BooleanQuery, BoostQuery, DisjunctionMaxQuery, EnableScoring, Occur, Query, TermQuery,
    Weight,
};
use tantivy::schema::{Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::{Index, TantivyDocument, Term};

use crate::analyzer::Analyzer;
use crate::{Error, Result};

/// What of the weaker field's score is added to the better one's.
pub const TIE_BREAKER: f32 = 0.5;

/// Initial size of the writer's tables, in bytes; they grow as they must, and it all stays one segment.
const WRITER_BYTES: usize = 64 << 20;

/// An in-memory BM25 index.
pub struct Bm25Index {
    /// Document ids; tantivy's document number is the place here, as there is one segment, filled in order.
    ids: Vec<String>,
    searcher: tantivy::Searcher,
    analyzer: Analyzer,
    /// Title and text, each with the number of documents that have a term in it.
    fields: Vec<(Field, u64)>,
}

impl std::fmt::Debug for Bm25Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bm25Index")
            .field("documents", &self.ids.len())
            .field("analyzer", &self.analyzer)
            .finish_non_exhaustive()
    }
}

impl Bm25Index {
    /// Indexes documents with [`Analyzer::English`].
    ///
    /// # Errors
    /// If the index cannot be built.
    pub fn build(documents: &[Document], progress: &dyn Progress) -> Result<Self> {
        Self::build_with(documents, Analyzer::English, progress, &Cancel::default())
    }

    /// Indexes documents with an analyzer of choice.
    ///
    /// # Errors
    /// If the index cannot be built or the user stops it.
    pub fn build_with(
        documents: &[Document],
        analyzer: Analyzer,
        progress: &dyn Progress,
        cancel: &Cancel,
    ) -> Result<Self> {
        let failed = |action| move |source| Error::TextIndex { action, source };
        let mut schema = Schema::builder();
        let indexing = TextFieldIndexing::default()
            .set_tokenizer(TOKENIZER)
            .set_index_option(IndexRecordOption::WithFreqs)
            .set_fieldnorms(true);
        let options = TextOptions::default().set_indexing_options(indexing);
        let fields = [schema.add_text_field("title", options.clone()), schema.add_text_field("text", options)];
        let tokenizers = tantivy::tokenizer::TokenizerManager::new();
        tokenizers.register(TOKENIZER, analyzer.build());
        // One segment in the order given: ties then stand in index order, and equal input gives equal output.
        let mut writer: SingleSegmentIndexWriter = Index::builder()
            .schema(schema.build())
            .tokenizers(tokenizers)
            .single_segment_index_writer(RamDirectory::create(), WRITER_BYTES)
            .map_err(failed("open its writer"))?;
        let task = progress.start("Indexing for BM25", documents.len() as u64);
        for document in documents {
            cancel.check()?;
            let mut row = TantivyDocument::new();
            row.add_text(fields[0], &document.title);
            row.add_text(fields[1], &document.text);
            writer.add_document(row).map_err(failed("add a document"))?;
            task.advance(1);
        }
        let index = writer.finalize().map_err(failed("finish"))?;
        let searcher = index.reader().map_err(failed("open its reader"))?.searcher();
        let fields = fields
            .into_iter()
            .map(|field| {
                let mut having = 0;
                for segment in searcher.segment_readers() {
                    let lengths = segment.get_fieldnorms_reader(field).map_err(failed("read lengths"))?;
                    having += (0..segment.max_doc()).filter(|&doc| lengths.fieldnorm(doc) > 0).count() as u64;
                }
                Ok((field, having))
            })
            .collect::<Result<_>>()?;
        Ok(Self { ids: documents.iter().map(|d| d.id.clone()).collect(), searcher, analyzer, fields })
    }

    /// How many documents there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A text as a query; `None` if no term is left of it.
    fn query(&self, text: &str) -> Option<Box<dyn Query>> {
        let mut terms: BTreeMap<String, usize> = BTreeMap::new();
        for term in self.analyzer.terms(text) {
            *terms.entry(term).or_default() += 1;
        }
        if terms.is_empty() {
            return None;
        }
        let per_field = self
            .fields
            .iter()
            .map(|&(field, documents)| {
                let clauses = terms
                    .iter()
                    .map(|(term, &count)| {
                        let term = Term::from_field_text(field, term);
                        let query: Box<dyn Query> = Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
                        let counted = match count {
                            1 => query,
                            n => Box::new(BoostQuery::new(query, n as f32)),
                        };
                        (Occur::Should, counted)
                    })
                    .collect();
                Box::new(FieldQuery { terms: BooleanQuery::new(clauses), documents }) as Box<dyn Query>
            })
            .collect();
        Some(Box::new(DisjunctionMaxQuery::with_tie_breaker(per_field, TIE_BREAKER)))
    }

    /// A query's scores of the documents at some places (numbers in the order they were given when the index was
    /// built), as a search gives them; 0 for one that shares no term with the query.
    ///
    /// # Errors
    /// If the index fails.
    pub fn scores(&self, text: &str, places: &[usize]) -> Result<Vec<f32>> {
        let failed = |source| Error::TextIndex { action: "score documents", source };
        let mut out = vec![0.0; places.len()];
        let Some(query) = self.query(text) else { return Ok(out) };
        let weight = query.weight(EnableScoring::enabled_from_searcher(&self.searcher)).map_err(failed)?;
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_unstable_by_key(|&i| places[i]);
        // There is one segment, or none where there is no document.
        for reader in self.searcher.segment_readers() {
            let mut scorer = weight.scorer(reader, 1.0).map_err(failed)?;
            for &i in &order {
                let wanted = places[i] as tantivy::DocId;
                if scorer.doc() < wanted {
                    scorer.seek(wanted);
                }
                if scorer.doc() == wanted {
                    out[i] = scorer.score();
                }
            }
        }
        Ok(out)
    }

    fn top(&self, text: &str, depth: usize) -> Result<Vec<Hit>> {
        let Some(query) = self.query(text) else { return Ok(Vec::new()) };
        // tantivy refuses a depth of 0, and reserves room for the depth asked for.
        let depth = depth.min(self.len());
        if depth == 0 {
            return Ok(Vec::new());
        }
        let found = self
            .searcher
            .search(&*query, &TopDocs::with_limit(depth).order_by_score())
            .map_err(|source| Error::TextIndex { action: "search", source })?;
        Ok(found
            .into_iter()
            .map(|(score, address)| Hit { id: self.ids[address.doc_id as usize].clone(), score })
            .collect())
    }
}

const TOKENIZER: &str = "words";

/// One field's clauses, weighed by the statistics of the documents that have the field.
#[derive(Debug, Clone)]
struct FieldQuery {
    terms: BooleanQuery,
    documents: u64,
}

impl Query for FieldQuery {
    fn weight(&self, scoring: EnableScoring<'_>) -> tantivy::Result<Box<dyn Weight>> {
        match scoring {
            EnableScoring::Enabled { searcher, statistics_provider } => {
                let statistics = FieldStatistics { inner: statistics_provider, documents: self.documents };
                self.terms.weight(EnableScoring::enabled_from_statistics_provider(&statistics, searcher))
            }
            disabled @ EnableScoring::Disabled { .. } => self.terms.weight(disabled),
        }
    }
}

struct FieldStatistics<'a> {
    inner: &'a dyn Bm25StatisticsProvider,
    documents: u64,
}

impl Bm25StatisticsProvider for FieldStatistics<'_> {
    fn total_num_tokens(&self, field: Field) -> tantivy::Result<u64> {
        self.inner.total_num_tokens(field)
    }

    fn total_num_docs(&self) -> tantivy::Result<u64> {
        Ok(self.documents)
    }

    fn doc_freq(&self, term: &Term) -> tantivy::Result<u64> {
        self.inner.doc_freq(term)
    }
}

impl Searcher for Bm25Index {
    /// Reads the queries' texts; queries run in parallel. Ties stand in index order.
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        queries.par_iter().map(|query| Ok(self.top(&query.text, depth)?)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use nsparse_core::NoProgress;
    use proptest::prelude::*;

    use super::*;
    use crate::mine::text_queries;

    fn document(id: &str, title: &str, text: &str) -> Document {
        Document { id: id.to_owned(), title: title.to_owned(), text: text.to_owned(), ..Document::default() }
    }

    fn search(index: &Bm25Index, text: &str, depth: usize) -> Vec<(String, f32)> {
        let query = nsparse_core::beir::Query { id: "q".to_owned(), text: text.to_owned() };
        let hits = index.search(&text_queries(&[query]), depth).unwrap().remove(0);
        hits.into_iter().map(|h| (h.id, h.score)).collect()
    }

    /// BM25 from the formula of the module's documentation, in f64. Lengths stay below 40, where Lucene's
    /// one-byte lengths are exact.
    fn plain(documents: &[Document], analyzer: Analyzer, query: &str) -> BTreeMap<String, f64> {
        let fields: [Vec<Vec<String>>; 2] = [
            documents.iter().map(|d| analyzer.terms(&d.title)).collect(),
            documents.iter().map(|d| analyzer.terms(&d.text)).collect(),
        ];
        let per_field = fields.map(|texts| {
            let n = texts.iter().filter(|t| !t.is_empty()).count() as f64;
            let mean_length = texts.iter().map(Vec::len).sum::<usize>() as f64 / n;
            let mut scores = vec![None; texts.len()];
            for term in analyzer.terms(query) {
                let df = texts.iter().filter(|t| t.contains(&term)).count() as f64;
                let idf = (1.0 + (n - df + 0.5) / (df + 0.5)).ln();
                for (score, text) in scores.iter_mut().zip(&texts) {
                    let tf = text.iter().filter(|t| **t == term).count() as f64;
                    if tf > 0.0 {
                        let norm = 1.2 * (1.0 - 0.75 + 0.75 * text.len() as f64 / mean_length);
                        *score = Some(score.unwrap_or(0.0) + idf * tf * 2.2 / (tf + norm));
                    }
                }
            }
            scores
        });
        let [titles, texts] = per_field;
        let mut out = BTreeMap::new();
        for ((document, title), text) in documents.iter().zip(titles).zip(texts) {
            let both: (f64, f64) = (title.unwrap_or(0.0), text.unwrap_or(0.0));
            if title.is_some() || text.is_some() {
                out.insert(document.id.clone(), both.0.max(both.1) + 0.5 * both.0.min(both.1));
            }
        }
        out
    }

    #[test]
    fn query_characters_are_no_operators() {
        let index = Bm25Index::build(
            &[document("a", "", "sparse retrieval"), document("b", "", "dense retrieval"), document("c", "", "cat")],
            &NoProgress,
        )
        .unwrap();
        let plain = search(&index, "sparse retrieval", 10);
        assert_eq!(plain.iter().map(|h| h.0.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        for text in [
            "+sparse -retrieval",
            "text:sparse AND (retrieval",
            "\"sparse\"~2 [retrieval TO *]^9 {",
            "sparse\\ retrieval/",
        ] {
            let ids: Vec<String> = search(&index, text, 10).into_iter().map(|h| h.0).collect();
            assert_eq!(ids, ["a", "b"], "{text}");
        }
        for nothing in ["", "the of and", "?!", "zebra"] {
            assert!(search(&index, nothing, 10).is_empty(), "{nothing}");
        }
        assert!(search(&index, "cat", 0).is_empty());
    }

    #[test]
    fn ties_stand_in_index_order_and_depth_may_exceed_the_corpus() {
        let documents: Vec<Document> = (0..30).map(|i| document(&format!("d{}", 29 - i), "x", "same words")).collect();
        let index = Bm25Index::build(&documents, &NoProgress).unwrap();
        let ids: Vec<String> = search(&index, "words", 7).into_iter().map(|h| h.0).collect();
        assert_eq!(ids, ["d29", "d28", "d27", "d26", "d25", "d24", "d23"]);
        assert_eq!(search(&index, "words", usize::MAX).len(), 30);
    }

    #[test]
    fn an_empty_corpus_and_a_stop() {
        let index = Bm25Index::build(&[], &NoProgress).unwrap();
        assert!(index.is_empty() && search(&index, "words", 5).is_empty());
        let cancel = Cancel::default();
        cancel.cancel();
        let stopped = Bm25Index::build_with(&[document("a", "b", "c")], Analyzer::English, &NoProgress, &cancel);
        assert!(matches!(stopped, Err(Error::Core(nsparse_core::Error::Cancelled))));
    }

    fn any_text(most: usize) -> impl Strategy<Value = String> {
        let words = ["sparse", "dense", "index", "the", "query", "token's", "v2.16", "running", "run", "x"];
        proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..most).prop_map(|w| w.join(" "))
    }

    proptest! {
        /// All scores equal the formula's, empty titles and repeated query terms included.
        #[test]
        fn equals_the_formula(
            texts in proptest::collection::vec((any_text(5), any_text(30)), 1..25),
            query in any_text(6),
            english in any::<bool>(),
        ) {
            let analyzer = if english { Analyzer::English } else { Analyzer::Standard };
            let documents: Vec<Document> =
                texts.iter().enumerate().map(|(i, (title, text))| document(&format!("d{i}"), title, text)).collect();
            let index = Bm25Index::build_with(&documents, analyzer, &NoProgress, &Cancel::default()).unwrap();
            let found = search(&index, &query, 100);
            let expected = plain(&documents, analyzer, &query);
            prop_assert_eq!(found.len(), expected.len());
            prop_assert!(found.is_sorted_by(|a, b| a.1 >= b.1));
            for (id, score) in &found {
                prop_assert!((f64::from(*score) - expected[id]).abs() < 1e-5 * expected[id].max(1.0), "{id} {score} {}", expected[id]);
            }
            // Asked one by one, in any order and some twice, they get the same scores.
            let places: Vec<usize> = (0..documents.len()).rev().chain(0..documents.len().min(2)).collect();
            let searched: BTreeMap<&str, f32> = found.iter().map(|(id, score)| (id.as_str(), *score)).collect();
            for (place, score) in places.iter().zip(index.scores(&query, &places).unwrap()) {
                let wanted = searched.get(documents[*place].id.as_str()).copied().unwrap_or(0.0);
                prop_assert!((score - wanted).abs() <= 1e-6 * wanted.max(1.0), "{place} {score} {wanted}");
            }
        }
    }
}

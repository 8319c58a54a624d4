//! Embedded BM25 over title and text: tantivy in memory, queried the way OpenSearch's `multi_match` (type
//! `best_fields`, `tie_breaker` 0.5) queries two fields.
//!
//! Per field, the score is the sum over the query's terms of `idf · tf · (k1 + 1) / (tf + k1 · (1 − b + b · dl /
//! avgdl))`, k1 = 1.2, b = 0.75, `idf = ln(1 + (N − df + 0.5) / (df + 0.5))`, lengths kept in one byte as Lucene
//! keeps them; a term that the query has twice counts twice. The document's score is the better field's plus
//! half of the other's. A query's text is only ever analysed: no character in it is an operator.
//!
//! Where the figures differ from Lucene's: the stemmer ([`crate::analyzer`]); N and avgdl count all documents,
//! Lucene's only those that have the field, so the title's weights differ where some documents have no title.

use std::collections::BTreeMap;

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Hit, Progress, SearchQuery, Searcher};
use rayon::prelude::*;
use tantivy::collector::TopDocs;
use tantivy::directory::RamDirectory;
use tantivy::indexer::SingleSegmentIndexWriter;
use tantivy::query::{BooleanQuery, BoostQuery, DisjunctionMaxQuery, Occur, Query, TermQuery};
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
    fields: [Field; 2],
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
            .map(|&field| {
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
                Box::new(BooleanQuery::new(clauses)) as Box<dyn Query>
            })
            .collect();
        Some(Box::new(DisjunctionMaxQuery::with_tie_breaker(per_field, TIE_BREAKER)))
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

impl Searcher for Bm25Index {
    /// Reads the queries' texts; queries run in parallel. Ties stand in index order.
    fn search(&self, queries: &[SearchQuery], depth: usize) -> nsparse_core::Result<Vec<Vec<Hit>>> {
        queries.par_iter().map(|query| Ok(self.top(&query.text, depth)?)).collect()
    }
}

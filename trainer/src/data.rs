//! What a run learns from: documents and queries tokenised once, the training examples, and the queries that are
//! held out for choosing the best step.

use std::collections::{BTreeMap, HashMap};

use nsparse_core::beir::{Dataset, Document};
use nsparse_core::idf::IdfMetadata;
use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::{Cancel, IdfTable, Progress, QueryEncoder, SparseVector, TextTokenizer, TokenId, files};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rayon::prelude::*;
use sha2::Digest as _;

use crate::config::TrainConfig;
use crate::{Error, Result};

/// Tokenised documents, packed: windows as the encoder reads them.
#[derive(Debug, Clone, Default)]
pub struct Documents {
    ids: Vec<String>,
    tokens: Vec<TokenId>,
    offsets: Vec<usize>,
    lengths: Vec<u32>,
}

impl Documents {
    /// Adds a document; `length` is that of the whole text. Its number.
    pub(crate) fn push(&mut self, id: String, window: &[TokenId], length: usize) -> usize {
        if self.offsets.is_empty() {
            self.offsets.push(0);
        }
        self.ids.push(id);
        self.tokens.extend_from_slice(window);
        self.offsets.push(self.tokens.len());
        self.lengths.push(length as u32);
        self.ids.len() - 1
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// A document's id: the corpus's, or `row:` with a number for a text that only a training row has.
    pub fn id(&self, number: usize) -> &str {
        &self.ids[number]
    }

    /// `[CLS] pieces [SEP]`, cut at the recipe's `max_tokens`.
    pub fn window(&self, number: usize) -> &[TokenId] {
        &self.tokens[self.offsets[number]..self.offsets[number + 1]]
    }

    /// Word pieces of the whole text, untruncated, without special tokens.
    pub fn length(&self, number: usize) -> usize {
        self.lengths[number] as usize
    }

    /// Mean of [`Documents::length`] over all documents.
    pub fn average_length(&self) -> f64 {
        self.lengths.iter().map(|&l| f64::from(l)).sum::<f64>() / self.len().max(1) as f64
    }
}

/// A query with its vector and its known positives.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingQuery {
    /// Its id; its text where it has none.
    pub id: String,
    /// Its text.
    pub text: String,
    /// Distinct tokens with their idf.
    pub vector: SparseVector,
    /// Numbers of documents known to be relevant, ascending.
    pub positives: Vec<usize>,
    /// Grades of judged documents by number.
    pub grades: BTreeMap<usize, i64>,
}

/// One training example: a row.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// Number of its query.
    pub query: usize,
    /// The positive's number, where the row has one.
    pub positive: Option<usize>,
    /// Numbers of hard negatives, or of the row's scored documents.
    pub others: Vec<usize>,
    /// Teacher scores of `others`; empty where the row has none.
    pub scores: Vec<f32>,
}

/// Everything a run reads.
pub struct TrainingData {
    /// Tokenizer and idf: the query side.
    pub query_encoder: QueryEncoder,
    /// Where the idf comes from; `None` if it was read from a file.
    pub idf_metadata: Option<IdfMetadata>,
    /// All documents: the corpus's, then those that only rows have.
    pub documents: Documents,
    /// All queries of rows and judgments.
    pub queries: Vec<TrainingQuery>,
    /// Examples of the queries that are trained on.
    pub examples: Vec<Example>,
    /// Numbers of the queries held out, ascending.
    pub held_out: Vec<usize>,
    /// Documents that rows of held-out queries name: hard ones for the evaluation. Ascending, distinct.
    pub held_out_documents: Vec<usize>,
    /// Rows read, or pairs made from judgments.
    pub rows: usize,
    /// Rows without any positive document.
    pub rows_without_positive: usize,
    /// Rows with fewer hard negatives than the recipe asks for.
    pub rows_short_of_negatives: usize,
    /// sha256 over everything tokenised: a resumed run must see the same.
    pub fingerprint: String,
}

impl TrainingData {
    /// Reads and tokenises everything the recipe names.
    ///
    /// # Errors
    /// If a file is missing or broken, rows and judgments do not fit each other, or the user asked to stop.
    pub fn load(
        config: &TrainConfig,
        tokenizer: &TextTokenizer,
        cancel: &Cancel,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let dataset = config.data.dir.as_deref().map(Dataset::open).transpose()?;
        let mut texts: Vec<(String, String)> = Vec::new();
        if let Some(set) = &dataset {
            let corpus: Vec<Document> = set.corpus()?;
            texts.extend(corpus.into_iter().map(|d| {
                let text = config.data.template.apply(&d);
                (d.id, text)
            }));
        }
        let corpus_size = texts.len();
        let rows = config.data.rows.as_deref().map(rows::read).transpose()?;
        let mut places = DocumentPlaces::new(&texts);
        let mut collected = Collected::default();
        if let (Some(set), true) = (&dataset, config.has_contrastive()) {
            collected.judgments(set, &config.data.split, &mut places, rows.is_none())?;
        }
        for row in rows.iter().flatten() {
            collected.row(row, &mut places, &mut texts);
        }
        if texts.is_empty() {
            return Err(Error::config("`data`: neither the corpus nor the rows hold a document"));
        }
        let (query_encoder, idf_metadata) = query_side(config, tokenizer, &texts, corpus_size, cancel, progress)?;
        let documents = tokenise(&texts, tokenizer, config.data.max_tokens, cancel, progress)?;
        drop(texts);
        let queries = collected.encode(&query_encoder)?;
        let mut data = Self {
            query_encoder,
            idf_metadata,
            documents,
            queries,
            rows: collected.examples.len(),
            rows_without_positive: collected.examples.iter().filter(|e| e.positive.is_none()).count(),
            rows_short_of_negatives: collected
                .examples
                .iter()
                .filter(|e| e.others.len() < config.train.negatives)
                .count(),
            examples: collected.examples,
            held_out: Vec::new(),
            held_out_documents: Vec::new(),
            fingerprint: String::new(),
        };
        data.hold_out(config.eval.fraction, config.run.seed);
        data.fingerprint = data.hash();
        Ok(data)
    }

    /// Takes a seeded share of the queries that have a positive, and all their examples, out of the training.
    fn hold_out(&mut self, fraction: f64, seed: u64) {
        let mut candidates: Vec<usize> =
            (0..self.queries.len()).filter(|&q| !self.queries[q].positives.is_empty()).collect();
        let count = (candidates.len() as f64 * fraction).round() as usize;
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ 0x6865_6c64_5f6f_7574);
        candidates.shuffle(&mut rng);
        candidates.truncate(count);
        candidates.sort_unstable();
        self.held_out = candidates;
        let is_held_out = |e: &Example| self.held_out.binary_search(&e.query).is_ok();
        let mut named: Vec<usize> = self
            .examples
            .iter()
            .filter(|e| is_held_out(e))
            .flat_map(|e| e.others.iter().copied().chain(e.positive))
            .chain(self.held_out.iter().flat_map(|&q| self.queries[q].grades.keys().copied()))
            .collect();
        named.sort_unstable();
        named.dedup();
        self.examples = std::mem::take(&mut self.examples).into_iter().filter(|e| !is_held_out(e)).collect();
        self.held_out_documents = named;
    }

    fn hash(&self) -> String {
        let mut hasher = sha2::Sha256::new();
        let mut add = |numbers: &mut dyn Iterator<Item = u64>| {
            for n in numbers {
                hasher.update(n.to_le_bytes());
            }
            hasher.update([0xff]);
        };
        add(&mut self.documents.tokens.iter().map(|&t| u64::from(t)));
        add(&mut self.documents.offsets.iter().map(|&o| o as u64));
        add(&mut self.documents.lengths.iter().map(|&l| u64::from(l)));
        for query in &self.queries {
            add(&mut query.vector.iter().flat_map(|(id, w)| [u64::from(id), u64::from(w.to_bits())]));
            add(&mut query.positives.iter().map(|&p| p as u64));
        }
        for e in &self.examples {
            add(&mut [e.query as u64, e.positive.map_or(u64::MAX, |p| p as u64)].into_iter());
            add(&mut e.others.iter().map(|&o| o as u64));
            add(&mut e.scores.iter().map(|s| u64::from(s.to_bits())));
        }
        add(&mut self.held_out.iter().map(|&q| q as u64));
        add(&mut self.held_out_documents.iter().map(|&d| d as u64));
        files::hex(&hasher.finalize())
    }
}

/// Finds documents by corpus id, and texts that only rows have.
struct DocumentPlaces {
    by_id: HashMap<String, usize>,
    by_text: HashMap<String, usize>,
}

impl DocumentPlaces {
    fn new(corpus: &[(String, String)]) -> Self {
        Self { by_id: corpus.iter().enumerate().map(|(n, (id, _))| (id.clone(), n)).collect(), by_text: HashMap::new() }
    }

    /// The number of a row's document: the corpus's by its id, else by its text, else a new one.
    fn number(&mut self, id: Option<&str>, text: &str, texts: &mut Vec<(String, String)>) -> usize {
        if let Some(&number) = id.and_then(|id| self.by_id.get(id)) {
            return number;
        }
        if let Some(&number) = self.by_text.get(text) {
            return number;
        }
        let number = texts.len();
        if let Some(id) = id {
            self.by_id.insert(id.to_owned(), number);
            texts.push((id.to_owned(), text.to_owned()));
        } else {
            self.by_text.insert(text.to_owned(), number);
            texts.push((format!("row:{number}"), text.to_owned()));
        }
        number
    }
}

#[derive(Default)]
struct Collected {
    /// (id, text, grades): one entry a distinct text, so that a held-out query is never trained on under
    /// another id.
    queries: Vec<(String, String, BTreeMap<usize, i64>)>,
    by_text: HashMap<String, usize>,
    examples: Vec<Example>,
}

impl Collected {
    fn query(&mut self, id: Option<&str>, text: &str) -> usize {
        let text = text.trim();
        if let Some(&number) = self.by_text.get(text) {
            return number;
        }
        let number = self.queries.len();
        self.by_text.insert(text.to_owned(), number);
        self.queries.push((id.unwrap_or(text).to_owned(), text.to_owned(), BTreeMap::new()));
        number
    }

    /// Judgments of a split: grades for masking and evaluation; pairs as well if there are no rows.
    fn judgments(&mut self, set: &Dataset, split: &str, places: &mut DocumentPlaces, pairs: bool) -> Result<()> {
        if !pairs && !set.splits().iter().any(|s| s == split) {
            return Ok(());
        }
        let qrels = set.qrels(split)?;
        for query in set.judged_queries(&qrels)? {
            let number = self.query(Some(&query.id), &query.text);
            for (document, &grade) in &qrels[&query.id] {
                let Some(&place) = places.by_id.get(document) else {
                    return Err(nsparse_core::Error::invalid_with_hint(
                        format!(
                            "The split `{split}` of `{}` judges the document `{document}`, which its corpus does not have",
                            set.name
                        ),
                        "corpus.jsonl and qrels must come from the same release of the data set",
                    )
                    .into());
                };
                self.queries[number].2.insert(place, grade);
                if pairs && grade > 0 {
                    self.examples.push(Example {
                        query: number,
                        positive: Some(place),
                        others: Vec::new(),
                        scores: Vec::new(),
                    });
                }
            }
        }
        Ok(())
    }

    fn row(&mut self, row: &TrainingRow, places: &mut DocumentPlaces, texts: &mut Vec<(String, String)>) {
        let query = self.query(row.query_id.as_deref(), &row.query);
        let positive = row.pos.as_deref().map(|text| places.number(row.pos_id.as_deref(), text, texts));
        let mut others = Vec::with_capacity(row.negs.len() + row.docs.len());
        for (i, text) in row.negs.iter().chain(&row.docs).enumerate() {
            others.push(places.number(row.neg_ids.get(i).map(String::as_str), text, texts));
        }
        if let Some(positive) = positive {
            self.queries[query].2.entry(positive).and_modify(|g| *g = (*g).max(1)).or_insert(1);
        }
        self.examples.push(Example { query, positive, others, scores: row.scores.clone() });
    }

    /// Query vectors; hard negatives that are known positives are taken out.
    fn encode(&mut self, encoder: &QueryEncoder) -> Result<Vec<TrainingQuery>> {
        let queries = std::mem::take(&mut self.queries)
            .into_iter()
            .map(|(id, text, grades)| {
                let vector = encoder.encode(&text)?;
                let positives = grades.iter().filter(|&(_, &g)| g > 0).map(|(&d, _)| d).collect();
                Ok(TrainingQuery { id, text, vector, positives, grades })
            })
            .collect::<Result<Vec<_>>>()?;
        for example in &mut self.examples {
            if example.scores.is_empty() {
                let positives = &queries[example.query].positives;
                example.others.retain(|d| positives.binary_search(d).is_err());
            }
        }
        Ok(queries)
    }
}

fn query_side(
    config: &TrainConfig,
    tokenizer: &TextTokenizer,
    texts: &[(String, String)],
    corpus_size: usize,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(QueryEncoder, Option<IdfMetadata>)> {
    if let Some(file) = &config.data.idf.file {
        let table = IdfTable::load(file, tokenizer)?;
        return Ok((QueryEncoder::new(tokenizer.clone(), table)?, None));
    }
    // The corpus alone where there is one: rows may repeat or come from elsewhere.
    let counted = if corpus_size > 0 { &texts[..corpus_size] } else { texts };
    let (table, metadata) = IdfTable::build(
        counted.iter().map(|(_, text)| text.as_str()),
        tokenizer,
        config.data.idf.formula,
        &config.data.template.pattern,
        cancel,
        progress,
    )?;
    Ok((QueryEncoder::new(tokenizer.clone(), table)?, Some(metadata)))
}

fn tokenise(
    texts: &[(String, String)],
    tokenizer: &TextTokenizer,
    max_tokens: usize,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Documents> {
    let task = progress.start("Tokenizing", texts.len() as u64);
    let mut documents = Documents::default();
    for chunk in texts.chunks(1024) {
        cancel.check()?;
        let windows = chunk
            .par_iter()
            .map(|(_, text)| tokenizer.window(text, max_tokens))
            .collect::<nsparse_core::Result<Vec<_>>>()?;
        for ((id, _), (window, length)) in chunk.iter().zip(windows) {
            documents.push(id.clone(), &window, length);
        }
        task.advance(chunk.len() as u64);
    }
    Ok(documents)
}

//! What a run learns from: documents and queries tokenised once, the training examples, and the queries that are
//! held out for choosing the best step.

mod collect;
mod documents;

use std::collections::BTreeMap;
use std::ops::Range;

use nsparse_core::beir::Dataset;
use nsparse_core::idf::IdfMetadata;
use nsparse_core::lineage::Lineage;
use nsparse_core::{Cancel, IdfTable, Progress, QueryEncoder, SparseVector, TextTokenizer, files};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

pub use documents::Documents;

use crate::config::TrainConfig;
use crate::sections::{EvalSection, SetSource, ShortRows};
use crate::{Error, Result};
use collect::{Collected, Sources};
use documents::Texts;

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

impl Example {
    /// How many documents beside the positive a batch wants of it: a row without one gives one document more.
    pub fn wanted(&self, negatives: usize) -> usize {
        negatives + usize::from(self.positive.is_none())
    }
}

/// What was found while a set was read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetCounts {
    /// Rows, lists, or pairs of judgments.
    pub rows: usize,
    /// Examples without a positive document.
    pub without_positive: usize,
    /// Examples without any negative.
    pub without_negatives: usize,
    /// Examples with fewer negatives than the recipe asks for, those without any among them.
    pub short_of_negatives: usize,
    /// Of these, those left out (`train.short_rows: drop`).
    pub dropped: usize,
    /// Lists left out because the data set does not have their query.
    pub unknown_queries: usize,
    /// Ids left out because the corpus does not have them.
    pub unknown_documents: usize,
    /// Lists left out because nothing known answers their query.
    pub unjudged: usize,
    /// Documents whose text is another than that of the corpus's document with their id; the corpus's is read.
    pub other_texts: usize,
}

/// One of the sets that are trained on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingSet {
    /// Its name in reports.
    pub name: String,
    /// The key of `data.sets` that named it.
    pub form: &'static str,
    /// Its weight, where the recipe gives one.
    pub weight: Option<f64>,
    /// Its examples among all that are trained on.
    pub examples: Range<usize>,
    /// Examples of held-out queries.
    pub held_out: usize,
    /// What was found.
    pub counts: SetCounts,
}

/// Everything a run reads.
pub struct TrainingData {
    /// Tokenizer and idf: the query side.
    pub query_encoder: QueryEncoder,
    /// Where the idf comes from; `None` if it was read from a file.
    pub idf_metadata: Option<IdfMetadata>,
    /// All documents: the corpus's, then those that only rows have.
    pub documents: Documents,
    /// Their templated texts, by number, where the recipe has teachers that read them; else empty.
    pub texts: Vec<String>,
    /// All queries of rows and judgments.
    pub queries: Vec<TrainingQuery>,
    /// Examples of the queries that are trained on, set by set.
    pub examples: Vec<Example>,
    /// The sets; their examples follow each other.
    pub sets: Vec<TrainingSet>,
    /// A positive and an example that has it, ascending: which queries a document answers.
    pub by_positive: Vec<(usize, usize)>,
    /// Numbers of the queries held out, ascending.
    pub held_out: Vec<usize>,
    /// Documents that rows of held-out queries name: hard ones for the evaluation. Ascending, distinct.
    pub held_out_documents: Vec<usize>,
    /// Examples of all sets, those of held-out queries among them.
    pub rows: usize,
    /// Rows without any positive document.
    pub rows_without_positive: usize,
    /// Rows with fewer hard negatives than the recipe asks for.
    pub rows_short_of_negatives: usize,
    /// What the run starts from and reads, by hashes; made by the run, not by the reading.
    pub lineage: Lineage,
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
        let mut texts = Texts::default();
        if let Some(set) = &dataset {
            texts.read_corpus(set, &config.data.template, cancel, progress)?;
        }
        let sets = config.data.training_sets();
        let mut collected = Collected::default();
        if let Some(set) = dataset.as_ref().filter(|set| {
            // A set of the split's pairs reads them itself, and says so where there are none.
            let is_a_set = sets.iter().any(|s| s.judgments.as_ref() == Some(&config.data.split));
            config.has_contrastive() && !is_a_set && set.splits().contains(&config.data.split)
        }) {
            collected.judgments(set, &config.data.split, &texts, false)?;
        }
        let mut sources = Sources { dataset: dataset.as_ref(), template: &config.data.template, query_texts: None };
        // Lists of ids ask the judgments what answers a query: these come first.
        let is_pairs = |set: &&crate::sections::SetSection| matches!(set.source(), Ok(SetSource::Judgments(_)));
        let (pairs, others): (Vec<_>, Vec<_>) = sets.iter().partition(is_pairs);
        if config.has_contrastive() {
            for set in &pairs {
                collected.set(set, &mut texts, &mut sources)?;
            }
        }
        for set in &others {
            cancel.check()?;
            collected.set(set, &mut texts, &mut sources)?;
        }
        drop(sources);
        if texts.all().is_empty() {
            return Err(Error::config("`data`: neither the corpus nor the rows hold a document"));
        }
        let (query_encoder, idf_metadata) = query_side(config, tokenizer, &texts, cancel, progress)?;
        let kept = if config.teachers.members.is_empty() { Vec::new() } else { texts.all().to_vec() };
        let documents = texts.tokenise(tokenizer, &config.data, cancel, progress)?;
        let queries = collected.encode(&query_encoder)?;
        let mut data = Self {
            query_encoder,
            idf_metadata,
            documents,
            texts: kept,
            queries,
            rows: collected.examples.len(),
            rows_without_positive: 0,
            rows_short_of_negatives: 0,
            examples: collected.examples,
            sets: collected.sets,
            by_positive: Vec::new(),
            held_out: Vec::new(),
            held_out_documents: Vec::new(),
            lineage: Lineage::default(),
            fingerprint: String::new(),
        };
        data.hold_out(&config.eval, config.run.seed);
        data.choose(config.train.negatives, config.train.short_rows);
        data.fingerprint = data.hash();
        Ok(data)
    }

    /// Numbers of documents that no training example holds, as positive or as another; ascending.
    pub fn outside_of_examples(&self) -> Vec<usize> {
        let mut is_outside = vec![true; self.documents.len()];
        for example in &self.examples {
            for &number in example.positive.iter().chain(&example.others) {
                is_outside[number] = false;
            }
        }
        (0..is_outside.len()).filter(|&n| is_outside[n]).collect()
    }

    /// Takes a seeded share of the queries (of one set, if it is named) that have a positive, and all their examples, out
    /// of the training.
    fn hold_out(&mut self, eval: &EvalSection, seed: u64) {
        let named = eval.set.as_ref().map(|name| {
            let mut is_of_set = vec![false; self.queries.len()];
            for set in self.sets.iter().filter(|set| set.name == *name) {
                self.examples[set.examples.clone()].iter().for_each(|e| is_of_set[e.query] = true);
            }
            is_of_set
        });
        let mut candidates: Vec<usize> = (0..self.queries.len())
            .filter(|&q| !self.queries[q].positives.is_empty() && named.as_ref().is_none_or(|named| named[q]))
            .collect();
        let count = (candidates.len() as f64 * eval.fraction).round() as usize;
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
        self.held_out_documents = named;
    }

    /// Counts set by set, and keeps the examples that are trained on: not of held-out queries, and not short of
    /// negatives where those are to be dropped.
    fn choose(&mut self, negatives: usize, short_rows: ShortRows) {
        let all = std::mem::take(&mut self.examples);
        let mut all = all.into_iter();
        for set in &mut self.sets {
            let first = self.examples.len();
            for example in all.by_ref().take(set.examples.len()) {
                let counts = &mut set.counts;
                let is_short = example.others.len() < example.wanted(negatives);
                counts.without_positive += usize::from(example.positive.is_none());
                counts.without_negatives += usize::from(example.others.is_empty());
                counts.short_of_negatives += usize::from(is_short);
                if self.held_out.binary_search(&example.query).is_ok() {
                    set.held_out += 1;
                } else if is_short && short_rows == ShortRows::Drop {
                    counts.dropped += 1;
                } else {
                    self.examples.push(example);
                }
            }
            set.examples = first..self.examples.len();
        }
        let positives = self.examples.iter().enumerate().filter_map(|(number, e)| e.positive.map(|p| (p, number)));
        self.by_positive = positives.collect();
        self.by_positive.sort_unstable();
        self.rows_without_positive = self.sets.iter().map(|s| s.counts.without_positive).sum();
        self.rows_short_of_negatives = self.sets.iter().map(|s| s.counts.short_of_negatives).sum();
    }

    fn hash(&self) -> String {
        let mut hasher = sha2::Sha256::new();
        let mut add = |numbers: &mut dyn Iterator<Item = u64>| {
            for n in numbers {
                hasher.update(n.to_le_bytes());
            }
            hasher.update([0xff]);
        };
        for mut numbers in self.documents.numbers() {
            add(&mut numbers);
        }
        add(&mut self.sets.iter().map(|s| s.examples.len() as u64));
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

fn query_side(
    config: &TrainConfig,
    tokenizer: &TextTokenizer,
    texts: &Texts,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<(QueryEncoder, Option<IdfMetadata>)> {
    if let Some(file) = &config.data.idf.file {
        let table = IdfTable::load(file, tokenizer)?;
        return Ok((QueryEncoder::new(tokenizer.clone(), table)?, None));
    }
    // The corpus alone where there is one: rows may repeat or come from elsewhere.
    let all = texts.all();
    let counted = if texts.corpus() > 0 { &all[..texts.corpus()] } else { all };
    let (table, metadata) = IdfTable::build(
        counted.iter().map(String::as_str),
        tokenizer,
        config.data.idf.formula,
        &config.data.template.pattern,
        cancel,
        progress,
    )?;
    Ok((QueryEncoder::new(tokenizer.clone(), table)?, Some(metadata)))
}

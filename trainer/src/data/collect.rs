//! Sets become examples: each form read row by row and joined with the documents at hand.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use nsparse_core::beir::Dataset;
use nsparse_core::hard_negatives::{self, HardNegatives};
use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::{DocumentTemplate, QueryEncoder, tevatron};

use super::documents::Texts;
use super::{Example, SetCounts, TrainingQuery, TrainingSet};
use crate::sections::{IdSpace, Missing, SetSection, SetSource};
use crate::{Error, Result};

/// Queries and examples as they come in.
#[derive(Default)]
pub(super) struct Collected {
    /// (id, text, grades): one entry a distinct text, so that a held-out query is never trained on under
    /// another id.
    queries: Vec<(String, String, BTreeMap<usize, i64>)>,
    by_text: HashMap<String, usize>,
    pub(super) examples: Vec<Example>,
    pub(super) sets: Vec<TrainingSet>,
}

/// What a set is joined with.
pub(super) struct Sources<'a> {
    pub(super) dataset: Option<&'a Dataset>,
    pub(super) template: &'a DocumentTemplate,
    /// Texts of the data set's queries by id, read when the first is asked for.
    pub(super) query_texts: Option<HashMap<String, String>>,
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

    fn is_positive(&mut self, query: usize, document: usize) {
        self.queries[query].2.entry(document).and_modify(|g| *g = (*g).max(1)).or_insert(1);
    }

    fn example(&mut self, query: usize, positive: Option<usize>, others: Vec<usize>, scores: Vec<f32>) {
        self.examples.push(Example { query, positive, others, scores });
    }

    /// Judgments of a split: grades for masking and evaluation; pairs as well if asked for. How many judgments.
    pub(super) fn judgments(&mut self, set: &Dataset, split: &str, texts: &Texts, pairs: bool) -> Result<()> {
        let qrels = set.qrels(split)?;
        for query in set.judged_queries(&qrels)? {
            let number = self.query(Some(&query.id), &query.text);
            for (document, &grade) in &qrels[&query.id] {
                let Some(place) = texts.of_corpus(document) else {
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
                    self.example(number, Some(place), Vec::new(), Vec::new());
                }
            }
        }
        Ok(())
    }

    /// Reads one set.
    pub(super) fn set(&mut self, section: &SetSection, texts: &mut Texts, sources: &mut Sources<'_>) -> Result<()> {
        let name = section.title()?;
        let source = section.source()?;
        let space = section.ids.unwrap_or_default();
        let first = self.examples.len();
        let mut counts = SetCounts::default();
        match source {
            SetSource::Judgments(split) => {
                let set = sources.dataset.ok_or_else(|| no_data_set(source))?;
                self.judgments(set, split, texts, true)?;
                counts.rows = self.examples.len() - first;
            }
            SetSource::Rows(path) => {
                rows::each(path, |_, row| {
                    self.row(&row, &name, space, texts, &mut counts);
                    Ok(())
                })?;
            }
            SetSource::Tevatron(path) => {
                tevatron::each(path, |_, row| {
                    self.tevatron(&row, &name, space, texts, sources.template, &mut counts);
                    Ok(())
                })?;
            }
            SetSource::HardNegatives(path) => {
                let set = sources.dataset.ok_or_else(|| no_data_set(source))?;
                if sources.query_texts.is_none() {
                    sources.query_texts = Some(set.queries()?.into_iter().map(|q| (q.id, q.text)).collect());
                }
                let known = sources.query_texts.as_ref().expect("read above");
                let reading = Reading { path, set, section, known, texts };
                hard_negatives::each(path, |line, lists| self.lists(line, &lists, &reading, &mut counts))?;
            }
        }
        let examples = first..self.examples.len();
        self.sets.push(TrainingSet {
            name,
            form: source.form(),
            weight: section.weight,
            examples,
            held_out: 0,
            counts,
        });
        Ok(())
    }

    fn row(&mut self, row: &TrainingRow, set: &str, space: IdSpace, texts: &mut Texts, counts: &mut SetCounts) {
        counts.rows += 1;
        let query = self.query(row.query_id.as_deref(), &row.query);
        let positive = row.pos.as_deref().map(|text| texts.place(set, space, row.pos_id.as_deref(), text, counts));
        let mut others = Vec::with_capacity(row.negs.len() + row.docs.len());
        for (i, text) in row.negs.iter().chain(&row.docs).enumerate() {
            others.push(texts.place(set, space, row.neg_ids.get(i).map(String::as_str), text, counts));
        }
        if let Some(positive) = positive {
            self.is_positive(query, positive);
        }
        self.example(query, positive, others, row.scores.clone());
    }

    fn tevatron(
        &mut self,
        row: &tevatron::TevatronRow,
        set: &str,
        space: IdSpace,
        texts: &mut Texts,
        template: &DocumentTemplate,
        counts: &mut SetCounts,
    ) {
        counts.rows += 1;
        let query = self.query(row.query_id.as_deref(), &row.query);
        let mut places = |passages: &[nsparse_core::beir::Document]| -> Vec<usize> {
            passages
                .iter()
                .map(|p| {
                    texts.place(
                        set,
                        space,
                        Some(&p.id).filter(|id| !id.is_empty()).map(String::as_str),
                        &template.apply(p),
                        counts,
                    )
                })
                .collect()
        };
        let (mut positives, negatives) = (places(&row.positives), places(&row.negatives));
        positives.sort_unstable();
        positives.dedup();
        for positive in positives {
            self.is_positive(query, positive);
            self.example(query, Some(positive), negatives.clone(), Vec::new());
        }
    }

    /// One query's lists of ids: an example for each positive.
    fn lists(
        &mut self,
        line: usize,
        lists: &HardNegatives,
        reading: &Reading<'_>,
        counts: &mut SetCounts,
    ) -> nsparse_core::Result<()> {
        counts.rows += 1;
        let known = lists.query_id.as_ref().and_then(|id| reading.known.get(id)).map(String::as_str);
        let Some(text) = lists.query.as_deref().or(known) else {
            let id = lists.query_id.as_deref().unwrap_or_default();
            reading.missing(line, &format!("query `{id}`"), "queries.jsonl")?;
            counts.unknown_queries += 1;
            return Ok(());
        };
        let query = self.query(lists.query_id.as_deref(), text);
        let mut positives = reading.documents(line, &lists.pos_ids, counts)?;
        if lists.pos_ids.is_empty() {
            positives = self.queries[query].2.iter().filter(|&(_, &grade)| grade > 0).map(|(&d, _)| d).collect();
            if positives.is_empty() && reading.section.missing != Some(Missing::Skip) {
                return Err(reading.refuse(
                    line,
                    &format!(
                        "nothing answers {}",
                        lists
                            .query_id
                            .as_deref()
                            .map_or_else(|| format!("the query \"{text}\""), |id| format!("the query `{id}`"))
                    ),
                    "neither `pos_ids` nor the judgments of `data.split`; give one of them, or `missing: skip`",
                ));
            }
        }
        if positives.is_empty() {
            counts.unjudged += 1;
            return Ok(());
        }
        let top = reading.section.top.unwrap_or(usize::MAX).min(lists.neg_ids.len());
        let negatives = reading.documents(line, &lists.neg_ids[..top], counts)?;
        for positive in positives {
            self.is_positive(query, positive);
            self.example(query, Some(positive), negatives.clone(), Vec::new());
        }
        Ok(())
    }

    /// Query vectors; of each example the negatives that are known positives, or come twice, are taken out.
    pub(super) fn encode(&mut self, encoder: &QueryEncoder) -> Result<Vec<TrainingQuery>> {
        let queries = std::mem::take(&mut self.queries)
            .into_iter()
            .map(|(id, text, grades)| {
                let vector = encoder.encode(&text)?;
                let positives = grades.iter().filter(|&(_, &g)| g > 0).map(|(&d, _)| d).collect();
                Ok(TrainingQuery { id, text, vector, positives, grades })
            })
            .collect::<Result<Vec<_>>>()?;
        let mut seen = HashSet::new();
        for example in &mut self.examples {
            seen.clear();
            if example.scores.is_empty() {
                let positives = &queries[example.query].positives;
                example.others.retain(|d| positives.binary_search(d).is_err() && seen.insert(*d));
            } else {
                // A scored document stands where it came first.
                let is_first: Vec<bool> = example.others.iter().map(|d| seen.insert(*d)).collect();
                let mut keep = is_first.iter();
                example.scores.retain(|_| keep.next().is_some_and(|&k| k));
                let mut keep = is_first.iter();
                example.others.retain(|_| keep.next().is_some_and(|&k| k));
            }
        }
        Ok(queries)
    }
}

fn no_data_set(source: SetSource<'_>) -> Error {
    Error::config(format!("`data.sets`: `{}` needs `data.dir`", source.form()))
}

/// A file of lists while it is read.
struct Reading<'a> {
    path: &'a Path,
    set: &'a Dataset,
    section: &'a SetSection,
    known: &'a HashMap<String, String>,
    texts: &'a Texts,
}

impl Reading<'_> {
    /// Numbers of documents by id; unknown ones are refused or counted.
    fn documents(&self, line: usize, ids: &[String], counts: &mut SetCounts) -> nsparse_core::Result<Vec<usize>> {
        let mut numbers = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(number) = self.texts.of_corpus(id) {
                numbers.push(number);
            } else {
                self.missing(line, &format!("document `{id}`"), "corpus.jsonl")?;
                counts.unknown_documents += 1;
            }
        }
        Ok(numbers)
    }

    fn missing(&self, line: usize, what: &str, file: &str) -> nsparse_core::Result<()> {
        if self.section.missing == Some(Missing::Skip) {
            return Ok(());
        }
        let path = self.set.folder.join(file);
        Err(self.refuse(
            line,
            &format!("`{}` has no {what}", path.display()),
            "ids must be those of `data.dir`; `missing: skip` leaves unknown ones out and counts them",
        ))
    }

    fn refuse(&self, line: usize, what: &str, why: &str) -> nsparse_core::Error {
        nsparse_core::Error::line(self.path, line, format!("{what}: {why}"))
    }
}

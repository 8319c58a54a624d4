//! The ensemble of a recipe over its training data, and what a batch asks of it.

use nsparse_core::beir::Document;
use nsparse_core::{Cancel, Progress};

use super::{Request, Surroundings, Teachers, Text};
use crate::Result;
use crate::batches::Batch;
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::objective::teacher_columns;
use crate::sections::{Candidates, LossSection, ShortRows, Teacher};

/// The recipe's teachers, if its losses ask them. Texts of documents that no batch will hold are let go.
///
/// # Errors
/// As [`Teachers::open`].
pub(crate) fn open(
    config: &TrainConfig,
    data: &mut TrainingData,
    is_cache_written: bool,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> Result<Option<Teachers>> {
    if !config.has_contrastive() || config.train.losses.asks_ensemble().is_none() {
        data.texts = Vec::new();
        return Ok(None);
    }
    let mut asked: Vec<&str> = data.examples.iter().map(|e| data.queries[e.query].id.as_str()).collect();
    asked.sort_unstable();
    asked.dedup();
    let documents = || -> Result<Vec<Document>> {
        let all = data.texts.iter().enumerate();
        Ok(all
            .map(|(n, text)| Document {
                id: data.documents.id(n).to_owned(),
                text: text.clone(),
                ..Document::default()
            })
            .collect())
    };
    let teachers = Teachers::open(
        &config.teachers,
        &Surroundings {
            device: config.run.device.parse()?,
            cache: config.run.dir.join("teachers"),
            is_cache_written,
            documents: &documents,
            is_asked: &|id| asked.binary_search(&id).is_ok(),
            cancel,
            progress,
        },
    )?;
    // A short row may be filled up with any document.
    if config.train.short_rows != ShortRows::Fill {
        let mut named = vec![false; data.texts.len()];
        for document in data.examples.iter().flat_map(|e| e.others.iter().copied().chain(e.positive)) {
            named[document] = true;
        }
        for (text, named) in data.texts.iter_mut().zip(named) {
            if !named {
                *text = String::new();
            }
        }
    }
    Ok(Some(teachers))
}

/// What the losses want to know of a batch.
pub(crate) fn request<'a>(data: &'a TrainingData, losses: &LossSection, batch: &Batch) -> Request<'a> {
    let documents =
        batch.documents.iter().map(|&d| Text { id: data.documents.id(d), text: data.texts[d].as_str() }).collect();
    let of = |query: usize| &data.queries[query];
    let queries =
        batch.queries.iter().map(|q| Text { id: of(q.query).id.as_str(), text: of(q.query).text.as_str() }).collect();
    let rules = asked_rules(losses);
    let wanted = (0..batch.queries.len())
        .map(|b| {
            let mut columns: Vec<usize> = rules.iter().flat_map(|&rule| teacher_columns(batch, b, rule)).collect();
            columns.sort_unstable();
            columns.dedup();
            columns
        })
        .collect();
    Request { queries, documents, wanted }
}

/// Over which candidates the losses ask the ensemble.
fn asked_rules(l: &LossSection) -> Vec<Candidates> {
    let masks = l.infonce.false_negatives.is_some_and(|f| f.teacher == Teacher::Ensemble);
    [
        (l.kl.weight > 0.0 && l.kl.teacher == Teacher::Ensemble, l.kl.candidates),
        (l.margin_mse.weight > 0.0 && l.margin_mse.teacher == Teacher::Ensemble, Candidates::Own),
        (l.infonce.weight > 0.0 && masks, l.infonce.candidates),
    ]
    .into_iter()
    .filter_map(|(asks, rule)| asks.then_some(rule))
    .collect()
}

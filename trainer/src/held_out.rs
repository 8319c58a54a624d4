//! How the kept model ranks the held-out queries, one by one: `held-out.jsonl`, written with each new best.

use std::io::Write;
use std::path::Path;

use nsparse_core::{Error, Hit, Qrels, Result, SearchQuery, files};
use nsparse_retrieval::Evaluation;
use nsparse_retrieval::metrics::trec_order;
use serde::{Deserialize, Serialize};

/// Hits that are written down for a query.
const SHOWN: usize = 10;

/// A held-out query with its best hits; a line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutQuery {
    /// Its id.
    pub id: String,
    /// Its text.
    pub query: String,
    /// Its value in the metric that chooses the model.
    pub value: f64,
    /// Rank of the first relevant document, from 1; `None` where none was found.
    pub first_relevant: Option<usize>,
    /// The best hits, best first.
    pub hits: Vec<HeldOutHit>,
}

/// A document found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HeldOutHit {
    /// Its id.
    pub id: String,
    /// Its score.
    pub score: f32,
    /// Its grade, where it is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grade: Option<i64>,
}

impl HeldOutQuery {
    /// One for each query, in their order; `hits` are theirs in any order.
    pub fn all(
        queries: &[SearchQuery],
        hits: Vec<Vec<Hit>>,
        qrels: &Qrels,
        evaluation: &Evaluation,
        metric: &str,
    ) -> Vec<Self> {
        let of = |(query, mut hits): (&SearchQuery, Vec<Hit>)| {
            hits.sort_by(trec_order);
            let grade = |hit: &Hit| qrels.get(&query.id).and_then(|grades| grades.get(&hit.id)).copied();
            let first = hits.iter().position(|hit| grade(hit).is_some_and(|g| g > 0));
            let value = evaluation.per_query.get(&query.id).and_then(|m| m.get(metric)).copied();
            hits.truncate(SHOWN);
            Self {
                id: query.id.clone(),
                query: query.text.clone(),
                value: value.unwrap_or(0.0),
                first_relevant: first.map(|rank| rank + 1),
                hits: hits.iter().map(|h| HeldOutHit { id: h.id.clone(), score: h.score, grade: grade(h) }).collect(),
            }
        };
        queries.iter().zip(hits).map(of).collect()
    }
}

/// Writes the file, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write(path: &Path, queries: &[HeldOutQuery]) -> Result<()> {
    files::write_atomic(path, |out| {
        for query in queries {
            serde_json::to_writer(&mut *out, query).map_err(|e| Error::json(path, e))?;
            out.write_all(b"\n").map_err(|e| Error::io("write", path, e))?;
        }
        Ok(())
    })
}

/// Reads the file; nothing where there is none.
///
/// # Errors
/// If it cannot be read, or a line is broken.
pub fn read(path: &Path) -> Result<Vec<HeldOutQuery>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = files::read_text(path)?;
    let numbered = text.lines().enumerate();
    numbered.map(|(n, line)| serde_json::from_str(line).map_err(|e| Error::line(path, n + 1, e.to_string()))).collect()
}

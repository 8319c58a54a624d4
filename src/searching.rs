//! How queries are searched with: what `search`, `eval` and `bench queries` take alike.

use clap::{Args, ValueEnum};
use nsparse_core::{Pruning, SearchQuery};
use nsparse_opensearch::TwoPhase;
use nsparse_retrieval::Fusion;
use serde_json::{Value, json};

use crate::failure::usage;

/// Options of queries.
#[derive(Debug, Clone, PartialEq, Args)]
pub(crate) struct QueryArgs {
    /// Search with a part of each query's tokens alone: `max_ratio:R` of the heaviest one's weight, `top_k:N`,
    /// `alpha_mass:R` of all weights, or `abs_value:W`
    #[arg(long, value_name = "RULE")]
    pub(crate) prune: Option<Pruning>,
    /// Rank a part of each document's entries alone, by the same rules: what `nsparse ingest --prune` would send
    #[arg(long, value_name = "RULE")]
    pub(crate) prune_documents: Option<Pruning>,
    /// Find documents by the tokens that RULE keeps, then add the others' scores for the best of them
    #[arg(long, value_name = "RULE", num_args = 0..=1, require_equals = true, default_missing_value = "max_ratio:0.4")]
    pub(crate) two_phase: Option<Pruning>,
    /// With --two-phase: the second phase looks at so many times as many documents as are asked for
    #[arg(long, value_name = "TIMES", default_value = "5", requires = "two_phase", value_parser = expansion)]
    pub(crate) expansion: f32,
    /// With --method hybrid: the weights of BM25 and of the sparse ranking
    #[arg(long, value_name = "BM25,SPARSE", value_parser = weights, default_value = "1,1")]
    pub(crate) weights: [f32; 2],
    /// With --method hybrid: how two rankings become one [default: the cluster's own hybrid query, else rrf]
    #[arg(long, value_enum)]
    pub(crate) fusion: Option<FusionKind>,
}

/// How two rankings become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FusionKind {
    /// Reciprocal ranks: 1 / (60 + rank)
    Rrf,
    /// Scores from 0 to 1 within each ranking
    Minmax,
}

impl From<FusionKind> for Fusion {
    fn from(kind: FusionKind) -> Self {
        match kind {
            FusionKind::Rrf => Self::ReciprocalRank,
            FusionKind::Minmax => Self::MinMax,
        }
    }
}

impl Default for QueryArgs {
    /// All tokens, in one phase.
    fn default() -> Self {
        Self { prune: None, prune_documents: None, two_phase: None, expansion: 5.0, weights: [1.0, 1.0], fusion: None }
    }
}

impl QueryArgs {
    /// The two phases, where they are asked for.
    pub(crate) fn phases(&self) -> Option<TwoPhase> {
        let pruning = self.two_phase?;
        Some(TwoPhase { pruning, expansion: self.expansion, ..TwoPhase::default() })
    }

    /// Leaves out the tokens that are not searched with.
    pub(crate) fn prune(&self, queries: &mut [SearchQuery]) {
        if let Some(pruning) = self.prune {
            for query in queries {
                query.vector = pruning.prune(&query.vector);
            }
        }
    }

    /// Refuses what only a cluster does.
    pub(crate) fn check_local(&self) -> anyhow::Result<()> {
        if self.two_phase.is_some() {
            return Err(usage(
                "The embedded index has no two phases: it adds up all tokens at once",
                "use --engine opensearch, or leave --two-phase out",
            ));
        }
        Ok(())
    }
}

fn expansion(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|x: &f32| *x >= 1.0 && x.is_finite())
        .ok_or_else(|| format!("`{text}` is no number from 1"))
}

fn weights(text: &str) -> Result<[f32; 2], String> {
    let parts: Vec<f32> = text.split(',').filter_map(|w| w.trim().parse().ok()).collect();
    match parts[..] {
        [bm25, sparse] if bm25 >= 0.0 && sparse >= 0.0 && (bm25 + sparse).is_finite() && bm25 + sparse > 0.0 => {
            Ok([bm25, sparse])
        }
        _ => Err("two weights from 0 are needed, such as 0.3,0.7".to_owned()),
    }
}

/// A filter as it is typed: `field=value` (all words of it), `field!=value`, `field>=value`, `>`, `<=`, `<`, or a clause
/// in JSON.
pub(crate) fn filter(text: &str) -> Result<Value, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|e| format!("`{text}` is no JSON: {e}"));
    }
    let place = text.find(['=', '<', '>', '!']).filter(|&at| at > 0);
    let form = || format!("`{text}` is no filter: write field=value, field!=value, field>=value or a clause in JSON");
    let (field, rest) = text.split_at(place.ok_or_else(form)?);
    let (operator, value) = ["!=", ">=", "<=", ">", "<", "="]
        .into_iter()
        .find_map(|operator| Some((operator, rest.strip_prefix(operator)?)))
        .ok_or_else(form)?;
    if value.is_empty() {
        return Err(form());
    }
    let (field, value) = (field.trim(), value.trim());
    let range = |name: &str| json!({ "range": { field: { name: value } } });
    let is = json!({ "match": { field: { "query": value, "operator": "and" } } });
    Ok(match operator {
        "!=" => json!({ "bool": { "must_not": [is] } }),
        ">=" => range("gte"),
        "<=" => range("lte"),
        ">" => range("gt"),
        "<" => range("lt"),
        _ => is,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_read() {
        assert_eq!(filter("year>=2020"), Ok(json!({ "range": { "year": { "gte": "2020" } } })));
        assert_eq!(filter("year<2020"), Ok(json!({ "range": { "year": { "lt": "2020" } } })));
        let is = json!({ "match": { "journal": { "query": "Nature Medicine", "operator": "and" } } });
        assert_eq!(filter("journal=Nature Medicine"), Ok(is.clone()));
        assert_eq!(filter("journal!=Nature Medicine"), Ok(json!({ "bool": { "must_not": [is] } })));
        assert_eq!(filter(r#"{"exists":{"field":"year"}}"#), Ok(json!({ "exists": { "field": "year" } })));
        assert_eq!(filter("url=a=b"), Ok(json!({ "match": { "url": { "query": "a=b", "operator": "and" } } })));
        for wrong in ["year", "=2020", "year=", "year!2020", "{year"] {
            assert!(filter(wrong).is_err_and(|e| e.contains(wrong)), "{wrong}");
        }
    }

    #[test]
    fn weights_are_two() {
        assert_eq!(weights("0.3, 0.7"), Ok([0.3, 0.7]));
        for wrong in ["1", "1,2,3", "-1,2", "0,0", "a,b"] {
            assert!(weights(wrong).is_err(), "{wrong}");
        }
    }
}

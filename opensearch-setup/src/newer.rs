//! Bodies for what came with 3.x: sparse vectors searched approximately (SEISMIC, from 3.3), analyzers of `neural_sparse`
//! (from 3.1), texts that did not change left alone (`skip_existing`, from 3.1).
//!
//! Pure functions after neural-search's source at 3.1.0.0 and 3.3.0.0. **Not run**: no 3.x is at hand, so their tests are
//! snapshots alone, and no command sends them. [`require`] says which release each wants.

use nsparse_core::SparseVector;
use serde_json::{Map, Value, json};

use crate::capabilities::Capabilities;
use crate::error::{Error, Result};

/// What a body needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// `sparse_vector` fields: 3.3.
    SparseVector,
    /// `analyzer` in `neural_sparse`: 3.1.
    Analyzer,
    /// `skip_existing` in `sparse_encoding`: 3.1.
    SkipExisting,
}

/// Refuses what this cluster does not have.
///
/// # Errors
/// With the release that has it, and what serves in its place.
pub fn require(capabilities: &Capabilities, what: Newer) -> Result<()> {
    let (there, name, from, otherwise) = match what {
        Newer::SparseVector => (
            capabilities.sparse_ann,
            "sparse_vector fields",
            "3.3",
            "use a rank_features field, which is searched exactly",
        ),
        Newer::Analyzer => (
            capabilities.analyzers,
            "analyzers of neural_sparse",
            "3.1",
            "use the query tokenizer's model, or query_tokens",
        ),
        Newer::SkipExisting => {
            (capabilities.skip_existing, "skip_existing", "3.1", "leave it out: the cluster encodes each update again")
        }
    };
    if there {
        return Ok(());
    }
    let message = if capabilities.neural_search {
        format!("OpenSearch {} has no {name}: they came with {from}", capabilities.version)
    } else {
        format!("This cluster has no {name}: the plugin opensearch-neural-search is not installed")
    };
    Err(Error::world(message, otherwise))
}

/// How SEISMIC builds its clusters; the defaults are neural-search's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Seismic {
    /// Postings kept for a token; `None` leaves it to the engine.
    pub n_postings: Option<u32>,
    /// Clusters of a posting list, as a share of its length, in (0, 1).
    pub cluster_ratio: f64,
    /// Mass of a cluster's summary that is kept, in (0, 1].
    pub summary_prune_ratio: f64,
    /// Documents in a segment below which the search is exact.
    pub approximate_threshold: u32,
}

impl Default for Seismic {
    fn default() -> Self {
        Self { n_postings: None, cluster_ratio: 0.1, summary_prune_ratio: 0.4, approximate_threshold: 1_000_000 }
    }
}

/// The index for [`document`]s. 3.3 and later.
pub fn index(field: &str, seismic: &Seismic) -> Value {
    let mut parameters = json!({
        "cluster_ratio": seismic.cluster_ratio,
        "summary_prune_ratio": seismic.summary_prune_ratio,
        "approximate_threshold": seismic.approximate_threshold
    });
    if let Some(postings) = seismic.n_postings {
        parameters["n_postings"] = postings.into();
    }
    json!({
        "settings": { "index": { "sparse": true } },
        "mappings": { "properties": {
            field: { "type": "sparse_vector", "method": { "name": "seismic", "parameters": parameters } }
        } }
    })
}

/// A document's vector: `sparse_vector` takes token ids as keys, not tokens. 3.3 and later.
pub fn document(vector: &SparseVector) -> Value {
    Value::Object(by_id(vector))
}

/// A query over a `sparse_vector` field: `k` hits, of which clusters are skipped whose summary promises less than
/// `heap_factor` times the last hit's score; `top_n` tokens of the query choose the posting lists. 3.3 and later.
pub fn query(field: &str, vector: &SparseVector, k: u32, top_n: u32, heap_factor: f64) -> Value {
    json!({ "neural_sparse": { field: {
        "query_tokens": by_id(vector),
        "method_parameters": { "k": k, "top_n": top_n, "heap_factor": heap_factor }
    } } })
}

fn by_id(vector: &SparseVector) -> Map<String, Value> {
    vector.iter().map(|(id, weight)| (id.to_string(), number(weight))).collect()
}

/// The shortest decimal that is this f32.
fn number(weight: f32) -> Value {
    weight.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// A query by a bundled analyzer (`bert-uncased`, `mbert-uncased`): their idf tables are OpenSearch's own, so a model of
/// one's own ranks otherwise than it was trained. 3.1 and later.
pub fn analyzer_query(field: &str, text: &str, analyzer: &str) -> Value {
    json!({ "neural_sparse": { field: { "query_text": text, "analyzer": analyzer } } })
}

/// A `sparse_encoding` processor that leaves texts alone which did not change. 3.1 and later.
pub fn processor(model_id: &str, from: &str, to: &str) -> Value {
    json!({ "sparse_encoding": { "model_id": model_id, "field_map": { from: to }, "skip_existing": true } })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    fn vector() -> SparseVector {
        SparseVector::from_pairs(vec![(1012, 0.5), (7592, 1.25)])
    }

    #[test]
    fn bodies_of_3_x_which_were_not_run() {
        let seismic = Seismic { n_postings: Some(4000), ..Seismic::default() };
        let all = json!({
            "index": index("embedding", &seismic),
            "document": { "embedding": document(&vector()) },
            "query": query("embedding", &vector(), 10, 4, 1.0),
            "analyzer": analyzer_query("embedding", "a text", "bert-uncased"),
            "processor": processor("m", "text", "embedding"),
        });
        insta::assert_json_snapshot!("bodies_3_x_not_run", all);
    }

    #[test]
    fn older_clusters_are_told() {
        let plugins = json!([{"component": "opensearch-ml"}, {"component": "opensearch-neural-search"}]);
        let of = |number: &str, plugins: &Value| {
            let root = json!({"version": {"distribution": "opensearch", "number": number}});
            Capabilities::from_answers("u", &root, plugins, None).unwrap()
        };
        let all = [Newer::SparseVector, Newer::Analyzer, Newer::SkipExisting];
        let fits = |number: &str| all.map(|what| require(&of(number, &plugins), what).is_ok());
        assert_eq!(fits("2.19.4"), [false; 3]);
        assert_eq!(fits("3.1.0"), [false, true, true]);
        assert_eq!(fits("3.3.0"), [true; 3]);
        let error = require(&of("3.2.0", &plugins), Newer::SparseVector).unwrap_err();
        assert_eq!(error.to_string(), "OpenSearch 3.2.0 has no sparse_vector fields: they came with 3.3");
        let error = require(&of("3.3.0", &json!([])), Newer::SparseVector).unwrap_err();
        assert!(error.to_string().contains("is not installed"), "{error}");
    }
}

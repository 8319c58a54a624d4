//! Searching in two phases: documents are found and ranked by the heaviest tokens of a query alone; then the best of
//! them get the light tokens' scores too. As neural-search's `neural_sparse_two_phase_processor` does it.

use nsparse_core::Pruning;
use serde_json::{Value, json};

use crate::search::number;

/// Which tokens stand in the first phase, and how many documents come into the second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TwoPhase {
    /// The tokens of the first phase are those that this rule keeps. Where it keeps none, there is one phase.
    pub pruning: Pruning,
    /// The second phase looks at so many times as many documents as are asked for; from 1.
    pub expansion: f32,
    /// Most documents of the second phase, on each shard.
    pub max_window: usize,
}

impl Default for TwoPhase {
    /// The processor's own: 0.4 of the heaviest token's weight, five times the documents, at most 10,000.
    fn default() -> Self {
        Self { pruning: Pruning::MaxRatio(0.4), expansion: 5.0, max_window: 10_000 }
    }
}

impl TwoPhase {
    /// Documents of the second phase where `depth` are asked for.
    pub fn window(&self, depth: usize) -> usize {
        ((depth as f32 * self.expansion) as usize).clamp(depth, self.max_window.max(depth))
    }

    /// The `rescore` of a search's body: the light tokens' scores are added.
    pub(crate) fn rescore(&self, light: &Value, depth: usize) -> Value {
        json!({
            "window_size": self.window(depth),
            "query": { "rescore_query": light, "query_weight": 1.0, "rescore_query_weight": 1.0 }
        })
    }

    /// A search pipeline for queries that the cluster encodes; from 2.15. Rules beside `max_ratio` exist there from 2.19.
    pub fn pipeline(&self) -> Value {
        let (kind, ratio) = self.pruning.parts();
        let mut parameter = json!({
            "prune_ratio": number(ratio), "expansion_rate": number(self.expansion), "max_window_size": self.max_window
        });
        if kind != "max_ratio" {
            parameter["prune_type"] = kind.into();
        }
        json!({ "request_processors": [
            { "neural_sparse_two_phase_processor": { "enabled": true, "two_phase_parameter": parameter } }
        ] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_grows_with_the_documents_asked_for_up_to_its_limit() {
        let phases = TwoPhase::default();
        assert_eq!([1, 10, 2000].map(|depth| phases.window(depth)), [5, 50, 10_000]);
        assert_eq!(phases.window(20_000), 20_000);
        assert_eq!(TwoPhase { expansion: 1.0, max_window: 50, ..phases }.window(10), 10);
    }

    #[test]
    fn the_pipeline_is_the_recorded_one_where_the_rule_is_its_own() {
        let expected = json!({ "prune_ratio": 0.4, "expansion_rate": 5.0, "max_window_size": 10000 });
        let at = "/request_processors/0/neural_sparse_two_phase_processor/two_phase_parameter";
        assert_eq!(TwoPhase::default().pipeline().pointer(at), Some(&expected));
        let other = TwoPhase { pruning: Pruning::TopK(5), ..TwoPhase::default() };
        assert_eq!(other.pipeline().pointer(at).and_then(|p| p.get("prune_type")), Some(&json!("top_k")));
    }
}

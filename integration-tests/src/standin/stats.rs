//! Statistics of the node in memory: the shape of a real 2.16's answers with counts of its own.

use serde_json::{Value, json};

use super::Reply;
use super::state::{NODE, State};

impl State {
    /// `_cluster/health/{index}`, `_nodes/stats/…`, `{index}/_stats/…`.
    pub(super) fn fake_stats(&self, parts: &[&str]) -> Reply {
        match parts {
            ["_cluster", "health", ..] => Reply::ok(json!({
                "cluster_name": "stand-in", "status": "green", "timed_out": false, "number_of_nodes": 1,
                "active_primary_shards": self.node.indexes.len(), "active_shards": self.node.indexes.len(),
                "unassigned_shards": 0
            })),
            ["_nodes", ..] => {
                let count = |name: &String| {
                    let used = |i: &&super::node::Index| {
                        i.settings.get("default_pipeline").and_then(Value::as_str) == Some(name)
                    };
                    let documents: usize = self.node.indexes.values().filter(used).map(|i| i.documents.len()).sum();
                    json!({ "count": documents, "time_in_millis": documents * 3, "current": 0, "failed": 0 })
                };
                let pipelines: serde_json::Map<String, Value> =
                    self.node.pipelines.keys().map(|name| (name.clone(), count(name))).collect();
                Reply::ok(json!({ "nodes": { NODE: {
                    "name": "stand-in", "roles": ["cluster_manager", "data", "ingest"],
                    "jvm": { "mem": { "heap_used_percent": 40, "heap_used_in_bytes": 429_496_729,
                                      "heap_max_in_bytes": 1_073_741_824 } },
                    "os": { "mem": { "used_percent": 70 }, "cpu": { "percent": 12 } },
                    "fs": { "total": { "total_in_bytes": 100_000_000_000_u64, "available_in_bytes": 40_000_000_000_u64 } },
                    "ingest": { "pipelines": pipelines }
                } } }))
            }
            [name, ..] => {
                let targets = self.node.targets(name);
                if targets.is_empty() {
                    return Reply::error(404, "index_not_found_exception", &format!("no such index [{name}]"));
                }
                let stats = |index: &String| {
                    let documents = self.node.indexes[index].documents.len();
                    let total = json!({
                        "docs": { "count": documents, "deleted": 0 }, "store": { "size_in_bytes": documents * 1000 },
                        "indexing": { "index_total": documents, "index_time_in_millis": documents * 2, "index_failed": 0 },
                        "search": { "query_total": 10, "query_time_in_millis": 25, "query_current": 0 },
                        "segments": { "count": 1 }
                    });
                    json!({ "primaries": total, "total": total })
                };
                let indices: serde_json::Map<String, Value> = targets.iter().map(|t| (t.clone(), stats(t))).collect();
                Reply::ok(json!({ "indices": indices }))
            }
            [] => Reply::error(400, "exception", "no path"),
        }
    }
}

//! `_nodes/stats`, for whatever looks at a cluster's nodes: the doctor, `status`, and an ingest that needs disks.

use serde_json::Value;

/// A node's statistics; `None` where the answer has none, since a part was not asked for or is not told.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct NodeStats {
    pub(crate) id: String,
    /// Its id where it has no name.
    pub(crate) name: String,
    /// `None` where roles are not told.
    pub(crate) roles: Option<Vec<String>>,
    /// Of the machine's memory, in percent; page cache included.
    pub(crate) memory_used: Option<f64>,
    /// Of the machine's processors, in percent.
    pub(crate) cpu_used: Option<f64>,
    /// Of the heap, in percent.
    pub(crate) heap_used: Option<f64>,
    /// Bytes of the heap.
    pub(crate) heap: Option<f64>,
    /// Bytes of the data path: all, and free for the node.
    pub(crate) disk: Option<(f64, f64)>,
    /// Breakers that tripped, with how often.
    pub(crate) tripped: Vec<(String, u64)>,
}

impl NodeStats {
    pub(crate) fn has(&self, role: &str) -> bool {
        self.roles.iter().flatten().any(|r| r == role)
    }

    /// Whether it holds shards; assumed where roles are not told.
    pub(crate) fn holds_data(&self) -> bool {
        self.roles.as_ref().is_none_or(|roles| roles.iter().any(|r| r.starts_with("data")))
    }
}

/// All nodes of an answer, by name.
pub(crate) fn read(stats: &Value) -> Vec<NodeStats> {
    let list = stats.get("nodes").and_then(Value::as_object).into_iter().flatten();
    let mut found: Vec<NodeStats> = list.map(|(id, node)| node_of(id, node)).collect();
    found.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    found
}

fn node_of(id: &str, node: &Value) -> NodeStats {
    let number = |at: &str| node.pointer(at).and_then(Value::as_f64);
    let roles = node.get("roles").and_then(Value::as_array);
    let breakers = node.get("breakers").and_then(Value::as_object).into_iter().flatten();
    NodeStats {
        id: id.to_owned(),
        name: node.get("name").and_then(Value::as_str).unwrap_or(id).to_owned(),
        roles: roles.map(|roles| roles.iter().filter_map(|r| r.as_str().map(str::to_owned)).collect()),
        memory_used: number("/os/mem/used_percent"),
        cpu_used: number("/os/cpu/percent"),
        heap_used: number("/jvm/mem/heap_used_percent"),
        heap: number("/jvm/mem/heap_max_in_bytes"),
        disk: number("/fs/total/total_in_bytes").zip(number("/fs/total/available_in_bytes")),
        tripped: breakers
            .map(|(name, b)| (name.clone(), b.get("tripped").and_then(Value::as_u64).unwrap_or(0)))
            .filter(|(_, times)| *times > 0)
            .collect(),
    }
}

//! Pruning against neural-search's own: which entries stay, and which ratios are refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::Path;

use nsparse_core::{Pruning, SparseVector};
use serde_json::Value;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/pruning/pruning.json");
    nsparse_core::files::read_json(&path).unwrap()
}

/// A stored vector, with the names of its tokens by id.
fn vector(stored: &Value) -> (SparseVector, Vec<&str>) {
    let entries = stored.as_object().unwrap();
    let weights = entries.values().enumerate().map(|(id, w)| (id as u32, w.as_f64().unwrap() as f32));
    (SparseVector::from_pairs(weights.collect()), entries.keys().map(String::as_str).collect())
}

#[test]
fn the_entries_that_the_cluster_keeps_are_kept() {
    let golden = golden();
    let mut counts = std::collections::BTreeMap::<&str, usize>::new();
    for case in golden["cases"].as_array().unwrap() {
        let (kind, ratio) = (case["type"].as_str().unwrap(), case["ratio"].as_f64().unwrap());
        if kind == "none" {
            continue;
        }
        *counts.entry(kind).or_default() += 1;
        let (vector, names) = vector(&golden["vectors"][case["vector"].as_str().unwrap()]);
        let pruning: Pruning = format!("{kind}:{}", ratio as f32).parse().unwrap();
        let (kept, gone) = pruning.split(&vector);
        assert_eq!(kept.len() + gone.len(), vector.len());
        assert_eq!(kept, pruning.prune(&vector));
        if let Some(count) = case.get("kept_count") {
            assert_eq!(kept.len() as u64, count.as_u64().unwrap(), "{case}");
        }
        if let Some(expected) = case.get("kept").and_then(Value::as_array) {
            let expected: BTreeSet<&str> = expected.iter().map(|t| t.as_str().unwrap()).collect();
            let found: BTreeSet<&str> = kept.ids.iter().map(|&id| names[id as usize]).collect();
            assert_eq!(found, expected, "{case}");
        }
        assert!(kept.iter().all(|(id, weight)| vector.weight(id).to_bits() == weight.to_bits()));
    }
    assert_eq!(counts.into_keys().collect::<Vec<_>>(), ["abs_value", "alpha_mass", "max_ratio", "top_k"]);
}

#[test]
fn the_ratios_that_the_cluster_refuses_are_refused() {
    for (kind, cases) in golden()["valid_ratio"].as_object().unwrap() {
        for case in cases.as_array().unwrap() {
            let parsed = format!("{kind}:{}", case["ratio"]).parse::<Pruning>();
            assert_eq!(parsed.is_ok(), case["valid"].as_bool().unwrap(), "{kind}: {case} gives {parsed:?}");
        }
    }
}

//! Whether there is room: on the cluster's disks, by its own watermarks, and on ours for the journal. Looked at before
//! anything is sent.

use std::path::Path;

use serde_json::Value;

use crate::client::Cluster;
use crate::error::{Error, Result};
use crate::node_stats::{self, NodeStats};

/// A node that holds data, with its disk.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Disk {
    node: String,
    total: f64,
    available: f64,
}

/// How much of a disk must stay free, as the cluster's settings say.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Watermark {
    /// A share of the disk that may be used, in 0..=1.
    Used(f64),
    /// Bytes that must stay free.
    Free(f64),
}

impl Watermark {
    /// Reads `85%`, `0.85`, `10gb`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.trim().to_ascii_lowercase();
        if let Some(percent) = text.strip_suffix('%') {
            return Some(Self::Used(percent.trim().parse::<f64>().ok()? / 100.0));
        }
        if let Ok(share) = text.parse::<f64>() {
            return Some(Self::Used(share));
        }
        let units = [("pb", 50), ("tb", 40), ("gb", 30), ("mb", 20), ("kb", 10), ("b", 0)];
        let (number, power) = units.iter().find_map(|(unit, power)| Some((text.strip_suffix(unit)?, *power)))?;
        Some(Self::Free(number.trim().parse::<f64>().ok()? * 2f64.powi(power)))
    }

    /// Bytes that may still be written before it is reached.
    fn room(self, disk: &Disk) -> f64 {
        match self {
            Self::Used(share) => disk.available - disk.total * (1.0 - share),
            Self::Free(bytes) => disk.available - bytes,
        }
    }
}

/// What there is to say before an ingest.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    /// There is room, as far as can be told.
    Fits,
    /// It may become tight.
    Tight(String),
    /// No disk takes anything more.
    Full(String),
}

/// Looks at the cluster's disks. What may not be looked at (managed services, roles) is no reason to stop.
///
/// # Errors
/// If every disk is beyond the mark from which the cluster blocks indexes.
pub(crate) fn check_cluster(cluster: &Cluster, expected: Option<u64>, warn: &dyn Fn(&str)) -> Result<()> {
    let marks = "/_cluster/settings?include_defaults=true&filter_path=*.cluster.routing.allocation.disk";
    let stats = "/_nodes/stats/fs?filter_path=nodes.*.name,nodes.*.roles,nodes.*.fs.total";
    let (Ok(settings), Ok(stats)) = (cluster.get(marks), cluster.get(stats)) else {
        tracing::info!("the cluster does not show its disks: not checked");
        return Ok(());
    };
    match judge(&disks(&stats), &settings, expected) {
        Verdict::Fits => Ok(()),
        Verdict::Tight(text) => {
            warn(&text);
            Ok(())
        }
        Verdict::Full(text) => {
            Err(Error::world(text, "free space or add a node; beyond that mark the cluster makes indexes read-only"))
        }
    }
}

fn disks(stats: &Value) -> Vec<Disk> {
    let nodes = node_stats::read(stats).into_iter().filter(NodeStats::holds_data);
    let disk = |node: NodeStats| node.disk.map(|(total, available)| Disk { node: node.name, total, available });
    nodes.filter_map(disk).collect()
}

fn judge(disks: &[Disk], settings: &Value, expected: Option<u64>) -> Verdict {
    // The more specific stands first: transient over persistent over defaults.
    let setting = |name: &str| {
        let at = |scope: &&str| settings.pointer(&format!("/{scope}/cluster/routing/allocation/disk/{name}"));
        ["transient", "persistent", "defaults"].iter().find_map(at).and_then(Value::as_str)
    };
    if disks.is_empty() || setting("threshold_enabled") == Some("false") {
        return Verdict::Fits;
    }
    let mark = |name: &str, default: f64| setting(name).and_then(Watermark::parse).unwrap_or(Watermark::Used(default));
    let (low, flood) = (mark("watermark/low", 0.85), mark("watermark/flood_stage", 0.95));
    let gigabytes = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
    if disks.iter().all(|d| flood.room(d) <= 0.0) {
        let fullest = disks.iter().map(|d| format!("{} ({} free)", d.node, gigabytes(d.available)));
        return Verdict::Full(format!("The cluster's disks are full: {}", fullest.collect::<Vec<_>>().join(", ")));
    }
    let room: f64 = disks.iter().map(|d| low.room(d).max(0.0)).sum();
    let expected = expected.unwrap_or(0) as f64;
    if room <= expected {
        return Verdict::Tight(format!(
            "The cluster's disks have {} until their low watermark, and {} are to be indexed: beyond it shards are \
             moved, and from the flood stage on indexes become read-only",
            gigabytes(room),
            gigabytes(expected)
        ));
    }
    Verdict::Fits
}

/// Whether the folder of the journal has room for it: some 64 bytes a document, of which there may be one for each 4 KB
/// of what is expected, and some to spare.
///
/// # Errors
/// If it has not.
pub(crate) fn check_own(journal: &Path, expected: Option<u64>) -> Result<()> {
    let folder = journal.ancestors().skip(1).find(|f| f.is_dir()).unwrap_or_else(|| Path::new("."));
    let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(()) };
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let needed = (16 << 20) + expected.unwrap_or(0) / 64;
    if free >= needed {
        return Ok(());
    }
    Err(Error::world(
        format!(
            "`{}` has {:.1} MB free; the journal may need {:.1} MB",
            folder.display(),
            free as f64 / 1e6,
            needed as f64 / 1e6
        ),
        "free space, or put the journal elsewhere with --journal FILE",
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;
    use serde_json::json;

    fn disk(total: f64, available: f64) -> Disk {
        Disk { node: "n".to_owned(), total, available }
    }

    #[test]
    fn watermarks_in_all_forms() {
        let parse = Watermark::parse;
        assert_eq!(parse("85%"), Some(Watermark::Used(0.85)));
        assert_eq!(parse("0.9"), Some(Watermark::Used(0.9)));
        assert_eq!(parse("10gb"), Some(Watermark::Free(10.0 * 1024f64.powi(3))));
        assert_eq!(parse("500MB"), Some(Watermark::Free(500.0 * 1024f64.powi(2))));
        assert_eq!(parse("much"), None);
        let hundred = disk(100.0, 20.0);
        assert!((Watermark::Used(0.85).room(&hundred) - 5.0).abs() < 1e-9);
        assert!((Watermark::Free(30.0).room(&hundred) + 10.0).abs() < 1e-9);
    }

    #[test]
    fn full_tight_and_wide() {
        let disk_settings = |disk: Value| json!({ "cluster": { "routing": { "allocation": { "disk": disk } } } });
        let defaults =
            json!({ "defaults": disk_settings(json!({ "watermark": { "low": "85%", "flood_stage": "95%" } })) });
        let of = |disks: &[Disk], expected| judge(disks, &defaults, expected);
        assert_eq!(of(&[disk(100e9, 50e9)], Some(30e9 as u64)), Verdict::Fits);
        assert!(matches!(of(&[disk(100e9, 50e9)], Some(40e9 as u64)), Verdict::Tight(_)));
        assert!(matches!(of(&[disk(100e9, 4e9), disk(100e9, 50e9)], Some(1)), Verdict::Fits));
        let Verdict::Full(text) = of(&[disk(100e9, 4e9)], None) else { unreachable!("4 of 100 GB are free") };
        assert_eq!(text, "The cluster's disks are full: n (4.0 GB free)");
        // What the operator set goes before the defaults.
        let mut settings = defaults.clone();
        settings["persistent"] = disk_settings(json!({ "watermark": { "flood_stage": "1gb" } }));
        assert!(matches!(judge(&[disk(100e9, 4e9)], &settings, None), Verdict::Tight(_)));
        settings["transient"] = disk_settings(json!({ "threshold_enabled": "false" }));
        assert_eq!(judge(&[disk(100e9, 1.0)], &settings, None), Verdict::Fits);
    }

    #[test]
    fn only_nodes_with_data_count() {
        let fs = |available: u64| json!({ "total": { "total_in_bytes": 100, "available_in_bytes": available } });
        let stats = json!({ "nodes": {
            "a": { "name": "manager", "roles": ["cluster_manager"], "fs": fs(1) },
            "b": { "name": "hot", "roles": ["data_hot", "ingest"], "fs": fs(7) },
            "c": { "name": "data", "roles": ["data"], "fs": fs(8) }
        } });
        let names: Vec<String> = disks(&stats).into_iter().map(|d| d.node).collect();
        assert_eq!(names, ["data", "hot"]);
    }

    #[test]
    fn our_own_disk() {
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("deep/journal");
        check_own(&journal, None).unwrap();
        let error = check_own(&journal, Some(u64::MAX)).unwrap_err().to_string();
        assert!(error.contains("the journal may need"), "{error}");
    }
}

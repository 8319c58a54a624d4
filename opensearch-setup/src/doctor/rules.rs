//! The cluster settings that matter, each with what it should be and why. ML Commons' names and defaults are those of
//! 2.16 to 3.3.

use serde_json::{Value, json};

use super::{Change, Finding, Level};
use crate::capabilities::Capabilities;
use crate::node_stats::NodeStats;

/// All settings, flat.
#[derive(Debug, Default)]
pub(super) struct Settings {
    transient: Value,
    persistent: Value,
    defaults: Value,
}

/// A setting's value and where it stands.
#[derive(Debug, Clone, PartialEq)]
struct Setting {
    value: String,
    /// `transient`, `persistent` or `default`.
    scope: &'static str,
}

impl Settings {
    /// Reads the body of `GET /_cluster/settings?include_defaults=true&flat_settings=true`.
    pub(super) fn read(body: &Value) -> Self {
        let part = |name: &str| body.get(name).cloned().unwrap_or(Value::Null);
        Self { transient: part("transient"), persistent: part("persistent"), defaults: part("defaults") }
    }

    fn get(&self, name: &str) -> Option<Setting> {
        [("transient", &self.transient), ("persistent", &self.persistent), ("default", &self.defaults)]
            .into_iter()
            .find_map(|(scope, part)| Some(Setting { value: text(part.get(name)?), scope }))
    }

    /// The value that counts, or what holds where the cluster does not show the setting.
    fn or(&self, name: &str, otherwise: &str) -> Setting {
        self.get(name).unwrap_or(Setting { value: otherwise.to_owned(), scope: "default" })
    }

    fn change(&self, name: &str, new: Value) -> Change {
        let of = |part: &Value| part.get(name).cloned();
        let (scope, old) = match (of(&self.transient), of(&self.persistent)) {
            (Some(value), _) => ("transient", value),
            (None, Some(value)) => ("persistent", value),
            (None, None) => ("persistent", Value::Null),
        };
        let effective = self.get(name).map_or(Value::Null, |s| s.value.into());
        Change { setting: name.to_owned(), scope: scope.to_owned(), old, effective, new }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A finding about a setting, as it should be so far.
fn about(name: &str, setting: &Setting) -> Finding {
    let place = if setting.scope == "persistent" { String::new() } else { format!(" ({})", setting.scope) };
    Finding::ok(name, format!("{}{place}", setting.value))
}

const BY_FIX: &str = "nsparse doctor --fix sets it";

/// A switch that has to be on, what holds where the cluster does not show it, and what its being off means.
fn must_be_true(settings: &Settings, name: &str, otherwise: &str, level: Level, meaning: &str) -> Finding {
    let setting = settings.or(name, otherwise);
    let finding = about(name, &setting);
    if setting.value == "true" {
        return finding;
    }
    finding.bad(level, meaning, BY_FIX).with(Some(settings.change(name, json!(true))))
}

/// All rules. What ML Commons has is looked at only where models can run.
pub(super) fn judge(
    capabilities: &Capabilities,
    settings: &Settings,
    nodes: &[NodeStats],
    health: Option<&Value>,
) -> Vec<Finding> {
    let mut found = Vec::new();
    if capabilities.ml_commons && capabilities.managed.is_none() {
        found.extend(ml_commons(settings, nodes));
    }
    found.extend(blocks(settings));
    found.extend(disk(settings, nodes));
    found.extend(shards(settings, nodes, health));
    found.extend(nodes.iter().filter(|n| !n.tripped.is_empty()).map(|node| {
        let which: Vec<String> = node.tripped.iter().map(|(name, times)| format!("{name} {times} times")).collect();
        Finding::ok(format!("breakers of {}", node.name), which.join(", ")).bad(
            Level::Warning,
            "the node was short of heap since it started, and refused requests",
            "give it more heap, or send less at once",
        )
    }));
    if capabilities.ml_commons && !nodes.is_empty() && !nodes.iter().any(|n| n.has("ingest")) {
        found.push(Finding::ok("ingest nodes", "none").bad(
            Level::Problem,
            "no node runs ingest pipelines, so documents cannot be encoded in the cluster",
            "give a node the role `ingest`, or deploy with --side query",
        ));
    }
    found
}

fn ml_commons(settings: &Settings, nodes: &[NodeStats]) -> Vec<Finding> {
    let mut found = Vec::new();
    let key = |name: &str| format!("plugins.ml_commons.{name}");

    let name = key("only_run_on_ml_node");
    let setting = settings.or(&name, "true");
    let finding = about(&name, &setting);
    let may_run: Vec<&NodeStats> = if setting.value == "true" {
        nodes.iter().filter(|n| n.has("ml")).collect()
    } else {
        nodes.iter().filter(|n| n.has("ml") || n.has("data")).collect()
    };
    found.push(if setting.value == "true" && may_run.is_empty() && !nodes.is_empty() {
        finding
            .bad(Level::Problem, "no node has the role `ml`, so no model can be deployed", BY_FIX)
            .with(Some(settings.change(&name, json!(false))))
    } else {
        finding
    });

    found.push(must_be_true(
        settings,
        &key("allow_registering_model_via_local_file"),
        "false",
        Level::Problem,
        "`nsparse deploy` uploads the package, which is refused",
    ));

    found.push(must_be_true(
        settings,
        &key("local_model.enabled"),
        "true",
        Level::Problem,
        "models in the cluster itself are switched off",
    ));

    found.push(threshold(
        settings,
        &key("native_memory_threshold"),
        90.0,
        worst(&may_run, |n| n.memory_used),
        "of the machine's memory is used, page cache included, as ML Commons counts it: uploads, deploys and predictions \
         are refused (\"Native Memory Circuit Breaker is open\")",
        true,
    ));
    found.push(threshold(
        settings,
        &key("jvm_heap_memory_threshold"),
        85.0,
        worst(&may_run, |n| n.heap_used),
        "of the heap is used: uploads, deploys and predictions are refused until it is collected",
        false,
    ));

    let name = key("disk_free_space_threshold");
    let setting = settings.or(&name, "5gb");
    let finding = about(&name, &setting);
    let free = may_run.iter().filter_map(|n| n.disk).map(|(_, free)| free).fold(f64::INFINITY, f64::min);
    found.push(match bytes(&setting.value) {
        Some(needed) if free < needed => finding.bad(
            Level::Problem,
            format!("a node has {:.1} GiB free: models are refused (\"Disk Circuit Breaker is open\")", gib(free)),
            "free space on the node's disk, or lower the setting",
        ),
        _ => finding,
    });

    let name = key("max_model_on_node");
    let setting = settings.or(&name, "10");
    let finding = about(&name, &setting);
    found.push(if setting.value.parse::<u64>().is_ok_and(|n| n < 2) {
        finding
            .bad(Level::Problem, "a deployment has two models: the document encoder and the query tokenizer", BY_FIX)
            .with(Some(settings.change(&name, json!(10))))
    } else {
        finding
    });

    found.push(must_be_true(
        settings,
        &key("model_auto_redeploy.enable"),
        "true",
        Level::Warning,
        "after a restart of its node a model stays undeployed, and searches fail",
    ));

    for (name, otherwise, when, meaning) in [
        (
            "allow_registering_model_via_url",
            "false",
            "false",
            "a package cannot be registered by its URL; uploads are not concerned",
        ),
        (
            "model_access_control_enabled",
            "false",
            "true",
            "model groups have owners: a deployment's user has to own its group, or be an administrator",
        ),
    ] {
        let name = key(name);
        let setting = settings.or(&name, otherwise);
        let finding = about(&name, &setting);
        found.push(if setting.value == when { finding.bad(Level::Note, meaning, "") } else { finding });
    }
    let name = key("trusted_url_regex");
    found.extend(settings.get(&name).map(|s| about(&name, &s)));
    found
}

/// The highest of the nodes' numbers.
fn worst(nodes: &[&NodeStats], of: impl Fn(&NodeStats) -> Option<f64>) -> Option<f64> {
    nodes.iter().filter_map(|n| of(n)).max_by(f64::total_cmp)
}

/// A limit in percent, and how near the nodes are to it; ML Commons refuses above it, and 100 switches it off.
fn threshold(
    settings: &Settings,
    name: &str,
    otherwise: f64,
    used: Option<f64>,
    meaning: &str,
    can_fix: bool,
) -> Finding {
    let setting = settings.or(name, &otherwise.to_string());
    let finding = about(name, &setting);
    let limit = setting.value.parse::<f64>().unwrap_or(otherwise);
    let Some(used) = used.filter(|_| limit < 100.0) else { return finding };
    let (level, meaning) = if used > limit {
        (Level::Problem, format!("{used:.0} % {meaning}"))
    } else if used > limit - 5.0 {
        (Level::Warning, format!("{used:.0} % is used; above {limit:.0} % models are refused"))
    } else {
        return finding;
    };
    if can_fix {
        let mend = "give the node more memory; or nsparse doctor --fix sets it to 100, which switches the limit off";
        finding.bad(level, meaning, mend).with(Some(settings.change(name, json!(100))))
    } else {
        finding.bad(level, meaning, "wait for a collection, give the node more heap, or undeploy models")
    }
}

fn blocks(settings: &Settings) -> Vec<Finding> {
    let read_only = "the whole cluster is read-only: nothing can be made or indexed";
    [
        ("cluster.blocks.read_only", read_only, BY_FIX),
        ("cluster.blocks.read_only_allow_delete", read_only, BY_FIX),
        (
            "cluster.blocks.create_index",
            "no index can be made: `nsparse deploy` and `nsparse reencode` would fail",
            "the cluster sets it once every node's disk is beyond the high watermark, and lifts it when one is not: free \
             space or add a node; where disks have room, nsparse doctor --fix lifts it",
        ),
    ]
    .into_iter()
    .filter_map(|(name, meaning, mend)| {
        let setting = settings.get(name).filter(|s| s.value == "true")?;
        Some(about(name, &setting).bad(Level::Problem, meaning, mend).with(Some(settings.change(name, Value::Null))))
    })
    .collect()
}

fn disk(settings: &Settings, nodes: &[NodeStats]) -> Vec<Finding> {
    const PREFIX: &str = "cluster.routing.allocation.disk";
    let mut found = Vec::new();
    let enabled = settings.or(&format!("{PREFIX}.threshold_enabled"), "true");
    if enabled.value != "true" {
        let name = format!("{PREFIX}.threshold_enabled");
        return vec![about(&name, &enabled).bad(Level::Note, "nodes take data until their disks are full", "")];
    }
    for (mark, otherwise, level, meaning) in [
        ("low", "85%", Level::Warning, "no new shard is put there"),
        ("high", "90%", Level::Warning, "shards are moved away from there"),
        ("flood_stage", "95%", Level::Problem, "every index with a shard there is read-only"),
    ] {
        let name = format!("{PREFIX}.watermark.{mark}");
        let setting = settings.or(&name, otherwise);
        let over: Vec<String> = nodes
            .iter()
            .filter_map(|node| {
                let (total, free) = node.disk?;
                let over = free < free_at(&setting.value, total)?;
                over.then(|| format!("{} ({:.1} of {:.1} GiB free)", node.name, gib(free), gib(total)))
            })
            .collect();
        let finding = about(&name, &setting);
        found.push(if over.is_empty() {
            finding
        } else {
            let meaning = format!("over it: {}; {meaning}", over.join(", "));
            finding.bad(level, meaning, "free space on those disks, or add a node; the block is lifted by itself then")
        });
    }
    found
}

/// How many bytes have to be free: `85%` and `0.85` name what may be used, `10gb` what has to be free.
fn free_at(mark: &str, total: f64) -> Option<f64> {
    if let Some(percent) = mark.strip_suffix('%') {
        return Some(total * (1.0 - percent.trim().parse::<f64>().ok()? / 100.0));
    }
    match mark.parse::<f64>() {
        Ok(share) if share <= 1.0 => Some(total * (1.0 - share)),
        _ => bytes(mark),
    }
}

/// `10gb`, `512mb`, `0b`.
fn bytes(text: &str) -> Option<f64> {
    let text = text.trim().to_lowercase();
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "b" => 0,
        "k" | "kb" => 1,
        "m" | "mb" => 2,
        "g" | "gb" => 3,
        "t" | "tb" => 4,
        _ => return None,
    };
    Some(text[..unit].trim().parse::<f64>().ok()? * 1024f64.powi(factor))
}

fn gib(bytes: f64) -> f64 {
    bytes / 1024f64.powi(3)
}

fn shards(settings: &Settings, nodes: &[NodeStats], health: Option<&Value>) -> Option<Finding> {
    let name = "cluster.max_shards_per_node";
    let setting = settings.or(name, "1000");
    let data = nodes.iter().filter(|n| n.has("data")).count() as u64;
    let used = health?.get("active_shards")?.as_u64()?;
    let room = setting.value.parse::<u64>().ok()?.checked_mul(data)?.checked_sub(used);
    let finding = about(name, &setting);
    Some(match room {
        _ if data == 0 => finding,
        None | Some(0..2) => finding.bad(
            Level::Problem,
            format!("{used} shards are all that {data} data nodes may have: no index can be made"),
            "delete indexes that nobody needs, or add a node",
        ),
        Some(room) if room < 20 => finding.bad(
            Level::Warning,
            format!("there is room for {room} more shards"),
            "delete indexes, or add a node",
        ),
        Some(_) => finding,
    })
}

//! The few routes of a node that a deploy needs, in memory: pipelines, indexes, documents; aliases and searches are in
//! files of their own.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Reply;
use super::state::State;

/// Pipelines, aliases and indexes by name.
#[derive(Default)]
pub(super) struct Node {
    pub(super) pipelines: BTreeMap<String, Value>,
    pub(super) search_pipelines: BTreeMap<String, Value>,
    /// The indexes behind an alias, each with the alias's properties.
    pub(super) aliases: BTreeMap<String, BTreeMap<String, Value>>,
    pub(super) indexes: BTreeMap<String, Index>,
    made: usize,
}

/// An index: how it was made, and its documents.
pub(super) struct Index {
    pub(super) uuid: String,
    /// Without `index.` before their names.
    pub(super) settings: Map<String, Value>,
    pub(super) mappings: Value,
    pub(super) documents: BTreeMap<String, Value>,
}

impl Node {
    pub(super) fn document(&self, index: &str, id: &str) -> Option<Value> {
        self.indexes.get(index)?.documents.get(id).cloned()
    }

    /// `_ingest/pipeline/{name}`.
    pub(super) fn pipeline(&mut self, method: &str, name: &str, body: Value) -> Reply {
        pipeline(&mut self.pipelines, method, name, body)
    }

    /// `_search/pipeline/{name}`.
    pub(super) fn search_pipeline(&mut self, method: &str, name: &str, body: Value) -> Reply {
        pipeline(&mut self.search_pipelines, method, name, body)
    }

    fn make(&mut self, name: &str, body: &Value) -> Reply {
        if let Some(there) = self.indexes.get(name) {
            let reason = format!("index [{name}/{}] already exists", there.uuid);
            return Reply::error(400, "resource_already_exists_exception", &reason);
        }
        self.made += 1;
        if self.aliases.contains_key(name) {
            let reason = format!("Invalid index name [{name}], already exists as alias");
            return Reply::error(400, "invalid_index_name_exception", &reason);
        }
        let settings = body.pointer("/settings/index").and_then(Value::as_object).cloned().unwrap_or_default();
        let settings = settings.into_iter().map(|(k, v)| (k, json!(text(&v)))).collect();
        let index = Index {
            uuid: format!("standInIndexUuid{:06}", self.made),
            settings,
            mappings: body.get("mappings").cloned().unwrap_or_else(|| json!({})),
            documents: BTreeMap::new(),
        };
        self.indexes.insert(name.to_owned(), index);
        Reply::ok(json!({ "acknowledged": true, "shards_acknowledged": true, "index": name }))
    }
}

impl State {
    /// Everything that is not ML Commons', without a real node behind.
    pub(super) fn fake_index(&mut self, method: &str, path: &str, body: &Value) -> Reply {
        let parts: Vec<&str> = path.split('/').collect();
        match (method, parts.as_slice()) {
            (_, ["_ingest", "pipeline", name]) => return self.node.pipeline(method, name, body.clone()),
            ("GET", ["_ingest", "pipeline"]) => return all(&self.node.pipelines),
            ("POST", ["_aliases"]) => return self.node.change_aliases(body),
            ("GET", ["_alias", alias]) => return self.node.alias(alias),
            ("GET", ["_cluster", "health", ..] | ["_nodes", "stats", ..] | [_, "_stats", ..]) => {
                return self.fake_stats(&parts);
            }
            ("GET", ["_all", "_mapping"]) => {
                let all = self.node.indexes.iter().map(|(n, i)| (n.clone(), json!({ "mappings": i.mappings })));
                return Reply::ok(Value::Object(all.collect()));
            }
            ("PUT", [name]) => return self.node.make(name, body),
            _ => {}
        }
        let targets = self.node.targets(parts[0]);
        if let ("GET" | "HEAD", 1) = (method, parts.len())
            && (!targets.is_empty() || parts[0].contains('*'))
        {
            let bodies = targets.iter().map(|name| (name.clone(), self.node.describe(name)));
            return Reply::ok(Value::Object(bodies.collect()));
        }
        let Some(name) = targets.first() else {
            return Reply::error(404, "index_not_found_exception", &format!("no such index [{}]", parts[0]));
        };
        match (method, &parts[1..]) {
            ("DELETE", []) => {
                self.node.indexes.remove(name);
                self.node.forget(name);
                Reply::ok(json!({ "acknowledged": true }))
            }
            ("GET", ["_count"]) => {
                let count: usize = targets.iter().map(|t| self.node.indexes[t].documents.len()).sum();
                Reply::ok(json!({ "count": count }))
            }
            ("POST", ["_refresh"]) => Reply::ok(json!({ "_shards": { "total": 1, "successful": 1, "failed": 0 } })),
            ("GET", ["_settings", _]) => {
                let bodies = targets.iter().map(|t| {
                    let index = &self.node.indexes[t];
                    let mut flat: Map<String, Value> =
                        index.settings.iter().map(|(k, v)| (format!("index.{k}"), v.clone())).collect();
                    flat.insert("index.uuid".to_owned(), json!(index.uuid));
                    (t.clone(), json!({ "settings": flat }))
                });
                Reply::ok(Value::Object(bodies.collect()))
            }
            ("PUT", ["_settings"]) => {
                let index = self.node.indexes.get_mut(name).expect("the index is there");
                for (key, value) in body.as_object().into_iter().flatten() {
                    let key = key.trim_start_matches("index.").to_owned();
                    match value {
                        Value::Null => drop(index.settings.remove(&key)),
                        value => drop(index.settings.insert(key, json!(text(value)))),
                    }
                }
                Reply::ok(json!({ "acknowledged": true }))
            }
            ("PUT", ["_mapping"]) => {
                let index = self.node.indexes.get_mut(name).expect("the index is there");
                // `_meta` is replaced as a whole.
                if let Some(meta) = body.get("_meta") {
                    index.mappings["_meta"] = meta.clone();
                }
                Reply::ok(json!({ "acknowledged": true }))
            }
            ("POST" | "GET", ["_search"]) => {
                let by_alias = self.node.aliases.contains_key(parts[0]);
                self.fake_search(&targets, body, !by_alias || self.options.version >= "2.14")
            }
            ("PUT", ["_doc", id]) => self.put_document(name, id, body),
            _ => Reply {
                status: 400,
                body: json!({ "error": format!("no handler found for uri [/{path}] and method [{method}]") }),
            },
        }
    }

    pub(super) fn put_document(&mut self, name: &str, id: &str, body: &Value) -> Reply {
        let pipeline = self.node.indexes[name].settings.get("default_pipeline").and_then(Value::as_str);
        let mut document = body.clone();
        if let Some(pipeline) = pipeline.filter(|p| *p != "_none") {
            let Some(pipeline) = self.node.pipelines.get(pipeline).cloned() else {
                let reason = format!("pipeline with id [{pipeline}] does not exist");
                return Reply::error(400, "illegal_argument_exception", &reason);
            };
            if let Err(reply) = self.run(&pipeline, &mut document) {
                return reply;
            }
        }
        self.store(name, id, document)
    }

    /// Runs a pipeline over one document: the processors that our pipelines have.
    pub(super) fn run(&self, pipeline: &Value, document: &mut Value) -> Result<(), Reply> {
        for processor in pipeline["processors"].as_array().into_iter().flatten() {
            let (kind, config) = processor.as_object().and_then(|p| p.iter().next()).expect("one processor an entry");
            let field = config["field"].as_str().unwrap_or_default();
            match kind.as_str() {
                "set" => document[field] = json!(mustache(config["value"].as_str().unwrap_or_default(), document)),
                "trim" => document[field] = json!(document[field].as_str().unwrap_or_default().trim()),
                "gsub" => {
                    let most = cap(config["pattern"].as_str().unwrap_or_default());
                    let cut: String = document[field].as_str().unwrap_or_default().chars().take(most).collect();
                    document[field] = json!(cut);
                }
                "remove" => {
                    document.as_object_mut().expect("a document is an object").remove(field);
                }
                _ => {
                    let model = config["model_id"].as_str().unwrap_or_default();
                    for (from, to) in config["field_map"].as_object().into_iter().flatten() {
                        let text = document[from].as_str().unwrap_or_default().to_owned();
                        if text.trim().is_empty() {
                            let reason = format!("map type field [{from}] has empty string value, cannot process it");
                            return Err(Reply::error(400, "illegal_argument_exception", &reason));
                        }
                        let vector = self.infer(model, &text)?;
                        document[to.as_str().unwrap_or_default()] = json!(vector);
                    }
                }
            }
        }
        Ok(())
    }
}

/// PUT, GET and DELETE of a pipeline.
fn pipeline(pipelines: &mut BTreeMap<String, Value>, method: &str, name: &str, body: Value) -> Reply {
    match method {
        "PUT" => {
            pipelines.insert(name.to_owned(), body);
            Reply::ok(json!({ "acknowledged": true }))
        }
        "GET" => match pipelines.get(name) {
            Some(pipeline) => Reply::ok(json!({ name: pipeline })),
            None => Reply { status: 404, body: json!({}) },
        },
        _ => match pipelines.remove(name) {
            Some(_) => Reply::ok(json!({ "acknowledged": true })),
            None => Reply::error(404, "resource_not_found_exception", &format!("pipeline [{name}] is missing")),
        },
    }
}

/// All pipelines.
pub(super) fn all(pipelines: &BTreeMap<String, Value>) -> Reply {
    Reply::ok(json!(pipelines))
}

/// Refuses processors and options that 2.16 does not have.
pub(super) fn check_pipeline(body: &Value, neural_search: bool) -> Result<(), Reply> {
    let refuse = |kind: &str, reason: &str| {
        let cause = json!({ "type": "parse_exception", "reason": reason, "processor_type": kind });
        let error =
            json!({ "root_cause": [cause], "type": "parse_exception", "reason": reason, "processor_type": kind });
        Err(Reply { status: 400, body: json!({ "error": error, "status": 400 }) })
    };
    for processor in body["processors"].as_array().into_iter().flatten() {
        for (kind, config) in processor.as_object().into_iter().flatten() {
            let known: &[&str] = match kind.as_str() {
                "set" => &["field", "value", "override", "ignore_empty_value"],
                "trim" => &["field", "target_field", "ignore_missing"],
                "gsub" => &["field", "pattern", "replacement", "target_field", "ignore_missing"],
                "remove" => &["field", "ignore_missing"],
                "sparse_encoding" if neural_search => &["model_id", "field_map", "batch_size"],
                _ => return refuse(kind, &format!("No processor type exists with name [{kind}]")),
            };
            let common = ["tag", "description", "if", "ignore_failure", "on_failure"];
            let unknown: Vec<&str> = config
                .as_object()
                .into_iter()
                .flatten()
                .map(|(key, _)| key.as_str())
                .filter(|key| !known.contains(key) && !common.contains(key))
                .collect();
            if !unknown.is_empty() {
                let reason = format!(
                    "processor [{kind}] doesn't support one or more provided configuration parameters [{}]",
                    unknown.join(", ")
                );
                return refuse(kind, &reason);
            }
        }
    }
    Ok(())
}

/// `{{{field}}}`, where a missing field is empty.
fn mustache(template: &str, document: &Value) -> String {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{{") {
        let (field, after) = after.split_once("}}}").expect("a template closes its braces");
        out.push_str(before);
        out.push_str(document.get(field).and_then(Value::as_str).unwrap_or_default());
        rest = after;
    }
    out + rest
}

/// How many characters the pattern `(?s)^(.{N}).+$` keeps.
fn cap(pattern: &str) -> usize {
    let number = pattern.strip_prefix("(?s)^(.{").and_then(|p| p.strip_suffix("}).+$"));
    number.and_then(|n| n.parse().ok()).expect("the stand-in knows this one pattern")
}

/// A setting as the cluster shows it: always a string.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

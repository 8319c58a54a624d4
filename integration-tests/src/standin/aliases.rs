//! Aliases of the node in memory: one request changes them all or nothing.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Reply;
use super::node::Node;

impl Node {
    /// The indexes that a name stands for: itself, those behind an alias, those that a pattern fits.
    pub(super) fn targets(&self, name: &str) -> Vec<String> {
        if self.indexes.contains_key(name) {
            return vec![name.to_owned()];
        }
        if let Some(behind) = self.aliases.get(name) {
            return behind.keys().cloned().collect();
        }
        match name.strip_suffix('*') {
            Some(start) => self.indexes.keys().filter(|n| n.starts_with(start)).cloned().collect(),
            None => Vec::new(),
        }
    }

    /// `GET /{index}`, of one index.
    pub(super) fn describe(&self, name: &str) -> Value {
        let index = &self.indexes[name];
        let mut settings = Map::new();
        for (key, value) in &index.settings {
            // As the cluster tells settings: dots are levels.
            let mut at = &mut settings;
            let mut parts: Vec<&str> = key.split('.').collect();
            let last = parts.pop().unwrap_or_default();
            for part in parts {
                at = at.entry(part).or_insert_with(|| json!({})).as_object_mut().expect("a level of settings");
            }
            at.insert(last.to_owned(), value.clone());
        }
        settings.insert("uuid".to_owned(), json!(index.uuid));
        settings.insert("provided_name".to_owned(), json!(name));
        let aliases: BTreeMap<&String, &Value> =
            self.aliases.iter().filter_map(|(alias, behind)| Some((alias, behind.get(name)?))).collect();
        json!({ "aliases": aliases, "mappings": index.mappings, "settings": { "index": settings } })
    }

    /// Takes a deleted index from behind all aliases.
    pub(super) fn forget(&mut self, index: &str) {
        for behind in self.aliases.values_mut() {
            behind.remove(index);
        }
        self.aliases.retain(|_, behind| !behind.is_empty());
    }

    /// `GET _alias/{alias}`.
    pub(super) fn alias(&self, alias: &str) -> Reply {
        let Some(behind) = self.aliases.get(alias) else {
            return Reply { status: 404, body: json!({ "error": format!("alias [{alias}] missing"), "status": 404 }) };
        };
        let bodies = behind.iter().map(|(index, body)| (index.clone(), json!({ "aliases": { alias: body } })));
        Reply::ok(Value::Object(bodies.collect()))
    }

    /// `POST _aliases`.
    pub(super) fn change_aliases(&mut self, body: &Value) -> Reply {
        let mut aliases = self.aliases.clone();
        for action in body.get("actions").and_then(Value::as_array).into_iter().flatten() {
            let (kind, config) = action.as_object().and_then(|a| a.iter().next()).expect("one action an entry");
            let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let (index, alias) = (text("index"), text("alias"));
            if !self.indexes.contains_key(&index) {
                return Reply::error(404, "index_not_found_exception", &format!("no such index [{index}]"));
            }
            if self.indexes.contains_key(&alias) {
                let reason = format!("Invalid alias name [{alias}]: an index exists with the same name as the alias");
                return Reply::error(400, "invalid_alias_name_exception", &reason);
            }
            let behind = aliases.entry(alias.clone()).or_default();
            if kind == "add" {
                let mut properties = config.as_object().cloned().unwrap_or_default();
                properties.retain(|key, _| key != "index" && key != "alias");
                behind.insert(index, Value::Object(properties));
            } else if behind.remove(&index).is_none() {
                return Reply::error(404, "aliases_not_found_exception", &format!("aliases [{alias}] missing"));
            }
        }
        aliases.retain(|_, behind| !behind.is_empty());
        self.aliases = aliases;
        Reply::ok(json!({ "acknowledged": true }))
    }
}

//! Bulk requests and searches of the node in memory: the few clauses that a smoke test asks with.

use serde_json::{Value, json};

use super::Reply;
use super::http::Incoming;
use super::rewrite;
use super::state::State;

impl State {
    /// `{index}/_bulk` with `index` actions alone.
    pub(super) fn fake_bulk(&mut self, path: &str, incoming: &Incoming) -> Reply {
        let index = path.trim_end_matches("/_bulk").to_owned();
        let Some(index) = self.node.targets(&index).into_iter().next() else {
            return Reply::error(404, "index_not_found_exception", &format!("no such index [{index}]"));
        };
        let text = String::from_utf8_lossy(&incoming.body).into_owned();
        let mut lines =
            text.lines().filter(|l| !l.is_empty()).map(|l| serde_json::from_str::<Value>(l).expect("ndjson"));
        let mut items = Vec::new();
        while let (Some(action), Some(source)) = (lines.next(), lines.next()) {
            let id = action.pointer("/index/_id").and_then(Value::as_str).expect("an action with an id").to_owned();
            let reply = if incoming.query.contains("pipeline=_none") {
                self.store(&index, &id, source)
            } else {
                self.put_document(&index, &id, &source)
            };
            items.push(json!({ "index": { "_id": id, "status": reply.status, "error": reply.body.get("error") } }));
        }
        for item in &mut items {
            if item["index"]["error"].is_null() {
                item["index"].as_object_mut().expect("an item is an object").remove("error");
            }
        }
        Reply::ok(json!({ "items": items }))
    }

    /// Stores a document as it is.
    pub(super) fn store(&mut self, index: &str, id: &str, document: Value) -> Reply {
        let there = self.node.indexes.get_mut(index).expect("the index is there");
        there.documents.insert(id.to_owned(), document);
        Reply { status: 201, body: json!({ "_index": index, "_id": id, "_version": 1, "result": "created" }) }
    }

    /// `{targets}/_search`, with the one index's default pipeline or without.
    pub(super) fn fake_search(&self, targets: &[String], body: &Value, with_pipeline: bool) -> Reply {
        let mut query = body.get("query").cloned().unwrap_or_else(|| json!({ "match_all": {} }));
        let pipeline = match targets {
            [one] if with_pipeline => {
                self.node.indexes[one].settings.get("search.default_pipeline").and_then(Value::as_str)
            }
            _ => None,
        };
        let pipeline = match pipeline.map(|name| (name, self.node.search_pipelines.get(name))) {
            Some((name, None)) => {
                let reason = format!("Pipeline {name} is not defined");
                return Reply::error(400, "illegal_argument_exception", &reason);
            }
            Some((_, Some(pipeline))) => Some(pipeline),
            None => None,
        };
        if let Err(reply) = rewrite::rewrite(self, &mut query, pipeline.and_then(rewrite::default_model)) {
            return reply;
        }
        let mut found: Vec<(f64, &String, &String, &Value)> = Vec::new();
        for index in targets {
            for (id, document) in &self.node.indexes[index].documents {
                match score(&query, id, document) {
                    Ok(Some(score)) => found.push((score, index, id, document)),
                    Ok(None) => {}
                    Err(reply) => return reply,
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(b.2)));
        let size = body.get("size").and_then(Value::as_u64).unwrap_or(10) as usize;
        let total = found.len();
        let hits: Vec<Value> = found
            .into_iter()
            .take(size)
            .map(|(score, index, id, document)| {
                let mut hit = json!({ "_index": index, "_id": id, "_score": score });
                if body.get("_source") != Some(&json!(false)) {
                    hit["_source"] = document.clone();
                }
                hit
            })
            .collect();
        Reply::ok(json!({
            "took": 1, "timed_out": false, "_shards": { "total": 1, "successful": 1, "skipped": 0, "failed": 0 },
            "hits": { "total": { "value": total, "relation": "eq" }, "max_score": null, "hits": hits }
        }))
    }
}

/// A document's score; `None` where it does not match.
fn score(query: &Value, id: &str, document: &Value) -> Result<Option<f64>, Reply> {
    let unknown = || Reply::error(400, "parsing_exception", &format!("the stand-in does not know this query: {query}"));
    let Some((kind, config)) = query.as_object().and_then(|q| q.iter().next()) else { return Err(unknown()) };
    let boost = config.get("boost").and_then(Value::as_f64).unwrap_or(1.0);
    Ok(match kind.as_str() {
        "match_all" => Some(boost),
        "match_none" => None,
        "rank_feature" => {
            let path = config.get("field").and_then(Value::as_str).unwrap_or_default();
            let (field, token) = path.split_once('.').ok_or_else(unknown)?;
            document.get(field).and_then(|v| v.get(token)).and_then(Value::as_f64).map(|weight| boost * weight)
        }
        "multi_match" => {
            let words = config.get("query").and_then(Value::as_str).unwrap_or_default().to_lowercase();
            let fields: Vec<&str> = config
                .get("fields")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let text = |f: &&str| document.get(*f).and_then(Value::as_str).unwrap_or_default().to_lowercase();
            let all: String = fields.iter().map(text).collect::<Vec<_>>().join(" ");
            let count = words.split_whitespace().filter(|w| all.contains(*w)).count();
            (count > 0).then_some(count as f64)
        }
        "ids" => {
            let values = config.get("values").and_then(Value::as_array).cloned().unwrap_or_default();
            values.contains(&json!(id)).then_some(boost)
        }
        "bool" => {
            let mut sum = None;
            for clause in config.get("should").and_then(Value::as_array).into_iter().flatten() {
                if let Some(score) = score(clause, id, document)? {
                    sum = Some(sum.unwrap_or(0.0) + score);
                }
            }
            sum.map(|s: f64| s * boost)
        }
        _ => return Err(unknown()),
    })
}

//! `/_plugins/_ml/**`: groups, models, chunks, tasks, predictions, with the recorded statuses and texts.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Reply;
use super::http::Incoming;
use super::package;
use super::state::{Group, Model, NODE, State, TIME, Task};

const ARGUMENT: &str = "illegal_argument_exception";
const STATUS: &str = "status_exception";
const HELD: [&str; 3] = ["DEPLOYED", "DEPLOYING", "PARTIALLY_DEPLOYED"];
/// What the Java heap of the stand-in is filled to, in percent.
const HEAP_USED: u64 = 40;

impl State {
    pub(super) fn ml(&mut self, method: &str, path: &str, incoming: &Incoming) -> Reply {
        let parts: Vec<&str> = path.split('/').collect();
        match (method, parts.as_slice()) {
            ("POST", ["model_groups", "_register"]) => self.register_group(&incoming.json()),
            ("POST", ["model_groups", "_search"]) => self.search_groups(&incoming.json()),
            ("DELETE", ["model_groups", id]) => self.delete_group(id),
            ("POST", ["models", "_register_meta"]) => self.register_meta(&incoming.json()),
            ("POST", ["models", "_register"]) => self.register_by_url(&incoming.json()),
            ("GET", ["profile", "models", id]) => self.profile(id),
            ("POST", ["models", "_search"]) => self.search_models(&incoming.json()),
            ("POST", ["models", id, "upload_chunk", number]) => self.upload_chunk(id, number, &incoming.body),
            ("POST", ["models", id, "_deploy"]) => self.deploy(id),
            ("POST", ["models", id, "_undeploy"]) => self.undeploy(id),
            ("POST", ["models", id, "_predict"] | ["_predict", _, id]) => self.predict(id, &incoming.json()),
            ("GET", ["models", id]) => self.get_model(id),
            ("DELETE", ["models", id]) => self.delete_model(id),
            ("GET", ["tasks", id]) => self.get_task(id),
            _ => Reply {
                status: 400,
                body: json!({ "error": format!("no handler found for uri [{}] and method [{method}]", incoming.target()) }),
            },
        }
    }

    fn register_group(&mut self, body: &Value) -> Reply {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let name = text("name");
        if let Some((id, _)) = self.groups.iter().find(|(_, g)| g.name == name) {
            let reason = format!("The name you provided is already being used by a model group with ID: {id}.");
            return Reply::error(400, ARGUMENT, &reason);
        }
        let id = self.new_id("group");
        self.had_groups = true;
        self.groups.insert(id.clone(), Group { name, description: text("description"), versions: 0 });
        Reply::ok(json!({ "model_group_id": id, "status": "CREATED" }))
    }

    fn search_groups(&mut self, body: &Value) -> Reply {
        if !self.had_groups {
            return Reply::error(404, "index_not_found_exception", "no such index [.plugins-ml-model-group]");
        }
        let documents = self
            .groups
            .iter()
            .map(|(id, g)| (id.clone(), json!({ "name": g.name, "description": g.description, "access": "public" })));
        hits(".plugins-ml-model-group", documents.collect(), body)
    }

    fn delete_group(&mut self, id: &str) -> Reply {
        if self.models.values().any(|m| m.group == id) {
            return Reply::error(409, STATUS, "Cannot delete the model group when it has associated model versions");
        }
        match self.groups.remove(id) {
            Some(_) => deleted(".plugins-ml-model-group", id),
            None => Reply::error(404, STATUS, "Failed to find model group"),
        }
    }

    fn register_meta(&mut self, body: &Value) -> Reply {
        let refuse = |reason: &str| Reply::error(400, ARGUMENT, reason);
        let text = |key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        let function = text("function_name").unwrap_or_else(|| "TEXT_EMBEDDING".to_owned());
        if !["SPARSE_ENCODING", "SPARSE_TOKENIZE", "TEXT_EMBEDDING"].contains(&function.as_str()) {
            return refuse("Wrong function name");
        }
        let Some(format) = text("model_format") else { return refuse("model format is null") };
        if !["TORCH_SCRIPT", "ONNX"].contains(&format.as_str()) {
            return refuse("Wrong model format");
        }
        if body.get("model_config").is_some_and(|c| c.get("embedding_dimension").is_none()) {
            return refuse("embedding dimension is null");
        }
        let Some(sha256) = text("model_content_hash_value") else {
            return refuse("model content hash value is null");
        };
        let Some(total_chunks) = body.get("total_chunks").and_then(Value::as_u64) else {
            return refuse("total chunks field is null");
        };
        if !self.is_on("allow_registering_model_via_local_file") {
            return refuse(
                "To upload custom model from local file, user needs to enable \
                 allow_registering_model_via_local_file settings. Otherwise please use opensearch pre-trained models",
            );
        }
        let name = text("name").unwrap_or_default();
        let group = match text("model_group_id") {
            Some(id) if self.groups.contains_key(&id) => id,
            Some(_) => return Reply::error(404, STATUS, "Failed to find model group"),
            None => self.group_of(&name),
        };
        let versions = &mut self.groups.get_mut(&group).expect("the group was just found or made").versions;
        *versions += 1;
        let version = *versions;
        let id = self.new_id("model");
        self.had_models = true;
        let size = body.get("model_content_size_in_bytes").and_then(Value::as_u64).unwrap_or(0);
        let model = Model {
            name,
            function,
            format,
            sha256,
            size,
            total_chunks,
            version,
            group,
            description: text("description"),
            chunks: BTreeMap::new(),
            state: "REGISTERING",
            next: None,
            loaded: None,
        };
        if self.to_spoil.as_ref() == Some(&model.name) {
            self.to_spoil = None;
            self.spoiled.insert(id.clone());
        }
        self.models.insert(id.clone(), model);
        Reply::ok(json!({ "model_id": id, "status": "CREATED" }))
    }

    /// The group named after a model that is registered without one.
    fn group_of(&mut self, name: &str) -> String {
        if let Some((id, _)) = self.groups.iter().find(|(_, g)| g.name == name) {
            return id.clone();
        }
        let id = self.new_id("group");
        self.had_groups = true;
        self.groups.insert(id.clone(), Group { name: name.to_owned(), description: String::new(), versions: 0 });
        id
    }

    fn search_models(&mut self, body: &Value) -> Reply {
        if !self.had_models {
            return Reply::error(404, "index_not_found_exception", "no such index [.plugins-ml-model]");
        }
        let documents = self.models.iter().map(|(id, m)| (id.clone(), describe(m))).collect();
        hits(".plugins-ml-model", documents, body)
    }

    fn upload_chunk(&mut self, id: &str, number: &str, bytes: &[u8]) -> Reply {
        let lag = self.options.lag;
        let Ok(n) = number.parse::<u64>() else {
            return Reply::error(400, "number_format_exception", &format!("For input string: \"{number}\""));
        };
        let Some(model) = self.models.get_mut(id) else {
            return Reply::error(500, "m_l_resource_not_found_exception", "Failed to find model");
        };
        if n >= model.total_chunks {
            return Reply::error(500, "exception", "Chunk number exceeds total chunks");
        }
        if bytes.is_empty() {
            return Reply::error(500, "exception", "Chunk size either 0 or null");
        }
        if bytes.len() > 10_000_000 {
            return Reply::error(500, "exception", "Chunk size exceeds 10MB");
        }
        model.chunks.insert(n, bytes.to_vec());
        if n + 1 == model.total_chunks {
            model.next = Some(("REGISTERED", lag));
        }
        Reply::ok(json!({ "status": "Uploaded" }))
    }

    /// The zip behind the URL is read from the folder that the options name.
    fn register_by_url(&mut self, body: &Value) -> Reply {
        if !self.is_on("allow_registering_model_via_url") {
            let reason = "To upload custom model user needs to enable allow_registering_model_via_url settings. Otherwise please \
                          use OpenSearch pre-trained models.";
            return Reply::error(400, ARGUMENT, reason);
        }
        let url = body.get("url").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some(name) = url.strip_prefix("http://").and_then(|u| u.rsplit('/').next()) else {
            return Reply::error(400, ARGUMENT, "URL can't match trusted url regex");
        };
        let bytes = self.options.behind_urls.as_ref().and_then(|folder| std::fs::read(folder.join(name)).ok());
        let mut meta = body.clone();
        meta["total_chunks"] = json!(1);
        let function = body.get("function_name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let sha256 = body.get("model_content_hash_value").and_then(Value::as_str).unwrap_or_default();
        let (model, error) = match bytes {
            None => (String::new(), Some(url)),
            Some(bytes) if nsparse_core::files::sha256_bytes(&bytes) != sha256 => {
                (String::new(), Some("model content changed".to_owned()))
            }
            Some(bytes) => {
                let local = "plugins.ml_commons.allow_registering_model_via_local_file";
                let before = self.settings.insert(local.to_owned(), "true".to_owned()).unwrap_or_default();
                let registered = self.register_meta(&meta);
                self.settings.insert(local.to_owned(), before);
                let Some(id) = registered.body.get("model_id").and_then(Value::as_str).map(str::to_owned) else {
                    return registered;
                };
                let model = self.models.get_mut(&id).expect("it was just registered");
                model.chunks.insert(0, bytes);
                model.next = Some(("REGISTERED", self.options.lag));
                (id, None)
            }
        };
        let task_id = self.new_id("task");
        let task = Task { kind: "REGISTER_MODEL", model, function, error, running: self.options.lag };
        self.tasks.insert(task_id.clone(), task);
        Reply::ok(json!({ "task_id": task_id, "status": "CREATED" }))
    }

    /// As recorded; a model that no node runs is in no node's profile.
    fn profile(&self, id: &str) -> Reply {
        let Some(model) = self.models.get(id).filter(|m| m.loaded.is_some()) else { return Reply::ok(json!({})) };
        let times =
            json!({ "count": 4, "max": 24.5, "min": 9.0, "average": 13.0, "p50": 10.0, "p90": 20.0, "p99": 24.0 });
        let profile = json!({
            "model_state": model.state, "predictor": "standIn@1", "target_worker_nodes": [NODE], "worker_nodes": [NODE],
            "model_inference_stats": times, "predict_request_stats": times,
            "memory_size_estimation_cpu": 1_327_702, "memory_size_estimation_gpu": 1_327_702
        });
        Reply::ok(json!({ "nodes": { NODE: { "models": { id: profile } } } }))
    }

    fn get_model(&mut self, id: &str) -> Reply {
        let Some(model) = self.models.get_mut(id) else {
            let reason = format!("Failed to find model with the provided model id: {id}");
            return Reply::error(404, STATUS, &reason);
        };
        model.seen();
        Reply::ok(describe(model))
    }

    fn deploy(&mut self, id: &str) -> Reply {
        let running = self.models.values().filter(|m| m.loaded.is_some()).count() as u64;
        let limit = self.setting("max_model_on_node").and_then(|v| v.parse().ok()).unwrap_or(10);
        let heap: u64 = self.setting("jvm_heap_memory_threshold").and_then(|v| v.parse().ok()).unwrap_or(85);
        let (only_ml, offline, lag) =
            (self.is_on("only_run_on_ml_node"), self.options.offline_natives, self.options.lag);
        let task_id = self.new_id("task");
        let is_spoiled = self.spoiled.contains(id);
        let Some(model) = self.models.get_mut(id) else {
            return Reply::error(404, STATUS, "Failed to find model");
        };
        if only_ml {
            return Reply::error(400, ARGUMENT, "no eligible node found");
        }
        let loaded = if HEAP_USED > heap {
            Err("Memory Circuit Breaker is open, please check your resources!".to_owned())
        } else if model.loaded.is_none() && running >= limit {
            Err("Exceed max local model per node limit".to_owned())
        } else if is_spoiled {
            Err("model content changed".to_owned())
        } else {
            package::load(id, model, offline)
        };
        model.state = "DEPLOYING";
        let error = match loaded {
            Ok(loaded) => {
                model.loaded = Some(loaded);
                // The task ends before the model's own entry says so.
                model.next = Some(("DEPLOYED", lag));
                None
            }
            Err(message) => {
                model.loaded = None;
                model.next = Some(("DEPLOY_FAILED", 0));
                Some(json!({ NODE: message }).to_string())
            }
        };
        let task =
            Task { kind: "DEPLOY_MODEL", model: id.to_owned(), function: model.function.clone(), error, running: lag };
        self.tasks.insert(task_id.clone(), task);
        Reply::ok(json!({ "task_id": task_id, "task_type": "DEPLOY_MODEL", "status": "CREATED" }))
    }

    fn get_task(&mut self, id: &str) -> Reply {
        let Some(task) = self.tasks.get_mut(id) else { return Reply::error(404, STATUS, "Fail to find task") };
        let mut body = json!({
            "model_id": task.model, "task_type": task.kind, "function_name": task.function,
            "state": "RUNNING", "worker_node": [NODE], "create_time": TIME, "last_update_time": TIME, "is_async": true
        });
        if task.running > 0 {
            task.running -= 1;
        } else if let Some(error) = &task.error {
            body["state"] = json!("FAILED");
            body["error"] = json!(error);
        } else {
            body["state"] = json!("COMPLETED");
        }
        Reply::ok(body)
    }

    fn predict(&mut self, id: &str, body: &Value) -> Reply {
        let encode = std::sync::Arc::clone(&self.options.encode);
        let Some(model) = self.models.get(id) else { return Reply::error(404, STATUS, "Failed to find model") };
        let texts: Vec<&str> =
            body.get("text_docs").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        if texts.is_empty() {
            return Reply::error(400, ARGUMENT, "Empty text docs");
        }
        let Some(loaded) = &model.loaded else {
            return Reply::error(400, ARGUMENT, "Model not ready yet. Please deploy the model first.");
        };
        let tokenizes = model.function == "SPARSE_TOKENIZE";
        let results: Vec<Value> = texts
            .iter()
            .map(|text| {
                let vector = if tokenizes { loaded.tokenize(text) } else { encode(text) };
                let mut output = json!({ "dataAsMap": { "response": [numbers(&vector)] } });
                if !tokenizes {
                    output["name"] = json!("output");
                }
                json!({ "output": [output] })
            })
            .collect();
        Reply::ok(json!({ "inference_results": results }))
    }

    fn undeploy(&mut self, id: &str) -> Reply {
        let Some(model) = self.models.get_mut(id) else { return Reply::error(404, STATUS, "Failed to find model") };
        if model.loaded.take().is_none() {
            return Reply::ok(json!({}));
        }
        model.state = "UNDEPLOYED";
        model.next = None;
        Reply::ok(json!({ NODE: { "stats": { id: "undeployed" } } }))
    }

    fn delete_model(&mut self, id: &str) -> Reply {
        let Some(model) = self.models.get_mut(id) else { return Reply::error(404, STATUS, "Failed to find model") };
        model.seen();
        if HELD.contains(&model.state) {
            return Reply::error(
                400,
                STATUS,
                "Model cannot be deleted in deploying or deployed state. Try undeploy model first then delete",
            );
        }
        self.models.remove(id);
        deleted(".plugins-ml-model", id)
    }

    /// The vector of a text, as a deployed model computes it; for pipelines and rewritten queries.
    pub(super) fn infer(&self, id: &str, text: &str) -> Result<BTreeMap<String, f32>, Reply> {
        let Some(model) = self.models.get(id) else {
            return Err(Reply::error(404, STATUS, "Failed to find model"));
        };
        match &model.loaded {
            None => Err(Reply::error(400, ARGUMENT, "Model not ready yet. Please deploy the model first.")),
            Some(loaded) if model.function == "SPARSE_TOKENIZE" => Ok(loaded.tokenize(text)),
            Some(_) => Ok((self.options.encode)(text)),
        }
    }
}

impl Model {
    /// One question: after enough of them the state to come is there.
    fn seen(&mut self) {
        match self.next {
            Some((state, 0)) => {
                self.state = state;
                self.next = None;
                if state == "REGISTERED" {
                    // The rewrite of the entry loses it, as recorded.
                    self.description = None;
                }
            }
            Some((state, left)) => self.next = Some((state, left - 1)),
            None => {}
        }
    }
}

/// A model's entry.
fn describe(model: &Model) -> Value {
    let mut body = json!({
        "name": model.name, "model_group_id": model.group, "algorithm": model.function,
        "model_version": model.version.to_string(), "model_format": model.format, "model_state": model.state,
        "model_content_size_in_bytes": model.size, "model_content_hash_value": model.sha256,
        "created_time": TIME, "total_chunks": model.total_chunks, "is_hidden": false
    });
    if let Some(description) = &model.description {
        body["description"] = json!(description);
        body["last_updated_time"] = json!(TIME);
    }
    if model.state == "DEPLOYED" {
        for (key, value) in [
            ("last_updated_time", json!(TIME)),
            ("last_deployed_time", json!(TIME)),
            ("auto_redeploy_retry_times", json!(0)),
            ("planning_worker_node_count", json!(1)),
            ("current_worker_node_count", json!(1)),
            ("planning_worker_nodes", json!([NODE])),
            ("deploy_to_all_nodes", json!(true)),
        ] {
            body[key] = value;
        }
    }
    body
}

/// Weights with the digits that Java prints for a float.
fn numbers(vector: &BTreeMap<String, f32>) -> Map<String, Value> {
    let number = |w: f32| json!(w.to_string().parse::<f64>().unwrap_or_else(|_| f64::from(w)));
    vector.iter().map(|(token, &w)| (token.clone(), number(w))).collect()
}

fn deleted(index: &str, id: &str) -> Reply {
    Reply::ok(json!({
        "_index": index, "_id": id, "_version": 5, "result": "deleted", "forced_refresh": true,
        "_shards": { "total": 1, "successful": 1, "failed": 0 }, "_seq_no": 121, "_primary_term": 3
    }))
}

/// Documents for which all `term` clauses of the query hold; chunks are no documents here.
fn hits(index: &str, documents: Vec<(String, Value)>, body: &Value) -> Reply {
    let query = body.get("query").cloned().unwrap_or_default();
    let clauses = match query.pointer("/bool/filter") {
        Some(Value::Array(clauses)) => clauses.clone(),
        _ => vec![query],
    };
    let holds = |document: &Value| {
        clauses.iter().all(|clause| {
            clause.get("match_all").is_some()
                || clause.get("term").and_then(Value::as_object).is_some_and(|term| {
                    term.iter().all(|(field, value)| document.get(field.trim_end_matches(".keyword")) == Some(value))
                })
        })
    };
    let size = body.get("size").and_then(Value::as_u64).unwrap_or(10) as usize;
    let found: Vec<Value> = documents
        .into_iter()
        .filter(|(_, document)| holds(document))
        .map(|(id, document)| json!({ "_index": index, "_id": id, "_score": 0.0, "_source": document }))
        .collect();
    Reply::ok(json!({
        "took": 1, "timed_out": false, "hits": {
            "total": { "value": found.len(), "relation": "eq" }, "max_score": 0.0,
            "hits": found.into_iter().take(size).collect::<Vec<_>>()
        }
    }))
}

//! Our client against the recorded answers of a real OpenSearch 2.16.0 with ML Commons and neural-search: what we
//! send has the recorded method, path and body keys, and each error answer becomes a message with a hint.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use nsparse_core::{Cancel, NoProgress};
use nsparse_integration_tests::standin::replay::{Record, Replay, scenarios, trace};
use nsparse_opensearch::ml::lifecycle::{self, Model};
use nsparse_opensearch::ml::messages::Problem;
use nsparse_opensearch::ml::{Cause, ModelFile, Poll, Step, explain, register};
use nsparse_opensearch::{Body, Cluster, ClusterConfig, Error, Method, NDJSON};
use serde_json::{Map, Value};

fn poll() -> Poll {
    Poll { interval: Duration::from_millis(1), deadline: Duration::from_secs(10) }
}

fn connect(replay: &Replay) -> Cluster {
    Cluster::connect(&ClusterConfig::new(replay.url())).unwrap()
}

fn object(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

/// What a user reads.
struct Said {
    message: String,
    hint: String,
}

impl From<Error> for Said {
    fn from(error: Error) -> Self {
        Self { message: error.to_string(), hint: error.hint().unwrap_or_default() }
    }
}

impl From<Problem> for Said {
    fn from(problem: Problem) -> Self {
        assert_ne!(problem.cause, Cause::Unknown, "{problem}");
        Error::from(problem).into()
    }
}

/// Drives our client through a scenario, one record after the other.
struct Driver<'a> {
    cluster: &'a Cluster,
    /// Names of models by id.
    names: BTreeMap<String, String>,
    registered_name: String,
}

impl Driver<'_> {
    fn model(&self, id: &str) -> Model {
        Model { id: id.to_owned(), name: self.names.get(id).cloned().unwrap_or_else(|| "unknown".to_owned()) }
    }

    /// Sends what the record holds, through the function that sends such requests; what was said about it.
    fn step(&mut self, record: &Record) -> Vec<Said> {
        let (path, _) = record.path.split_once('?').unwrap_or((&record.path, ""));
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let cancel = Cancel::default();
        let result = match (record.method.as_str(), parts.as_slice()) {
            ("POST", ["_plugins", "_ml", "models", "_register_meta"]) => self.register(record),
            ("POST", ["_plugins", "_ml", "models", id, "upload_chunk", number]) if number.parse::<u64>().is_ok() => {
                let bytes = vec![0; record.body_bytes.unwrap() as usize];
                register::upload_chunk(self.cluster, &self.model(id), number.parse().unwrap(), bytes)
            }
            ("POST", ["_plugins", "_ml", "models", id, "_deploy"]) => {
                let started = lifecycle::start_deploy(self.cluster, &self.model(id));
                started.map(|task| assert_eq!(Some(task.as_str()), record.answer["task_id"].as_str()))
            }
            ("GET", ["_plugins", "_ml", "tasks", task]) => {
                let by_url = record.answer["task_type"] == "REGISTER_MODEL";
                let step = if by_url { Step::RegisterUrl } else { Step::Deploy };
                let subject = match record.answer["model_id"].as_str() {
                    Some(id) => self.model(id).to_string(),
                    None => format!("model `{}`", self.registered_name),
                };
                lifecycle::wait_task(self.cluster, task, step, &subject, &poll(), &cancel).map(drop)
            }
            ("GET", ["_plugins", "_ml", "models", id]) => self.look_up(record, &self.model(id)),
            ("POST", ["_plugins", "_ml", "models", id, "_predict"]) => {
                let texts: Vec<&str> =
                    record.body["text_docs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                lifecycle::predict(self.cluster, &self.model(id), &texts).map(|answers| {
                    let recorded = record.answer.pointer("/inference_results/0/output/0/dataAsMap/response/0").unwrap();
                    assert_eq!(answers[0].len(), recorded.as_object().unwrap().len());
                })
            }
            ("POST", ["_plugins", "_ml", "models", id, "_undeploy"]) => {
                lifecycle::undeploy(self.cluster, &self.model(id))
            }
            ("DELETE", ["_plugins", "_ml", "models", id]) => {
                lifecycle::delete(self.cluster, &self.model(id)).map(|gone| assert!(gone))
            }
            _ => return self.other(record, &parts),
        };
        result.err().map(Said::from).into_iter().collect()
    }

    fn register(&mut self, record: &Record) -> Result<(), Error> {
        let mut body = object(&record.body);
        if record.status == 200 {
            // As our packages have it: without the number of chunks.
            let chunks = body.remove("total_chunks").unwrap().as_u64().unwrap();
            body = register::register_body(&body, chunks, None);
        }
        let model = register::register_meta(self.cluster, &body)?;
        assert_eq!(Some(model.id.as_str()), record.answer["model_id"].as_str());
        self.names.insert(model.id, model.name);
        Ok(())
    }

    fn look_up(&self, record: &Record, model: &Model) -> Result<(), Error> {
        let (sha256, cancel) = (record.answer["model_content_hash_value"].as_str(), Cancel::default());
        match record.answer["model_state"].as_str() {
            Some("REGISTERED") => register::wait_registered(self.cluster, model, sha256.unwrap(), &poll(), &cancel),
            Some("DEPLOYED") => {
                let deployed = lifecycle::wait_deployed(self.cluster, model, None, &poll(), &cancel)?;
                assert_eq!((deployed.nodes, deployed.planned, deployed.partial), (1, 1, None));
                Ok(())
            }
            state => {
                let info = lifecycle::info(self.cluster, model)?;
                assert_eq!(Some(info.state.as_str()), state);
                Ok(())
            }
        }
    }

    /// Requests that only a test sends, or another room: as they are, with their answers explained.
    fn other(&mut self, record: &Record, parts: &[&str]) -> Vec<Said> {
        let method = match record.method.as_str() {
            "GET" => Method::Get,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            other => {
                assert_eq!(other, "DELETE");
                Method::Delete
            }
        };
        let body = match (&record.body, record.body_bytes) {
            (_, Some(bytes)) => Body::Raw(vec![0; bytes as usize], "application/json"),
            (Value::Null, None) => Body::None,
            (Value::String(lines), None) => Body::Raw(lines.clone().into_bytes(), NDJSON),
            (value, None) => Body::Json(value.clone()),
        };
        let (step, subject) = match parts {
            ["_plugins", "_ml", "models", "_register"] => {
                record.body["name"].as_str().unwrap().clone_into(&mut self.registered_name);
                (Step::RegisterUrl, format!("model `{}`", self.registered_name))
            }
            ["_plugins", "_ml", "models", id, "upload_chunk", number] => {
                (Step::Upload, format!("chunk {number} of {}", self.model(id)))
            }
            ["_ingest" | "_search", "pipeline", name] => (Step::Pipeline, format!("pipeline `{name}`")),
            [index, "_search"] => (Step::Search, format!("index `{index}`")),
            [index, ..] => (Step::Ingest, format!("index `{index}`")),
            [] => (Step::Status, "the cluster".to_owned()),
        };
        match self.cluster.request(method, &record.path, body) {
            Err(error) => {
                let api = error.api().unwrap();
                vec![explain(step, &subject, api.status, &api.body).into()]
            }
            Ok(answer) => {
                let items = answer.body.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
                let failed = items.iter().map(|item| &item["index"]).filter(|item| item.get("error").is_some());
                failed
                    .map(|item| {
                        let subject = format!("document {} of {subject}", item["_id"]);
                        explain(step, &subject, item["status"].as_u64().unwrap() as u16, item).into()
                    })
                    .collect()
            }
        }
    }
}

/// How many errors an answer holds.
fn errors(record: &Record) -> usize {
    let failed_task = record.answer.get("error").is_some_and(Value::is_string);
    let items = record.answer.get("items").and_then(Value::as_array);
    let failed_items = items.map_or(0, |i| i.iter().filter(|i| i["index"].get("error").is_some()).count());
    usize::from(record.status >= 400 || failed_task) + failed_items
}

/// Ids of models, tasks and nodes are the recording's, not ours.
fn without_ids(text: &str, records: &[Record]) -> String {
    let mut ids: Vec<(String, &str)> = Vec::new();
    for record in records {
        for (key, name) in [("/model_id", "[model]"), ("/task_id", "[task]"), ("/worker_node/0", "[node]")] {
            if let Some(id) = record.answer.pointer(key).and_then(Value::as_str) {
                ids.push((id.to_owned(), name));
            }
        }
    }
    ids.iter().fold(text.to_owned(), |text, (id, name)| text.replace(id.as_str(), name))
}

#[test]
fn every_request_is_sent_as_recorded_and_every_error_is_explained() {
    let records = trace();
    assert_eq!(records.len(), 239);
    let mut said = String::new();
    let mut names = BTreeMap::new();
    let (mut expected, mut explained) = (0, 0);
    for (scenario, records) in scenarios(&records) {
        let replay = Replay::start(records.clone());
        let cluster = connect(&replay);
        let mut driver = Driver { cluster: &cluster, names, registered_name: String::new() };
        let mut lines = String::new();
        for record in &records {
            let messages = driver.step(record);
            assert_eq!(messages.len(), errors(record), "line {} of the trace", record.line);
            expected += errors(record);
            explained += messages.len();
            for Said { message, hint } in messages {
                assert!(message.starts_with("Failed to "), "line {}: {message}", record.line);
                assert!(!hint.is_empty(), "line {}: {message}", record.line);
                writeln!(lines, "{message}\n  hint: {hint}").unwrap();
            }
        }
        names = driver.names;
        assert_eq!(replay.differences(), Vec::<String>::new(), "scenario `{scenario}`");
        if !lines.is_empty() {
            writeln!(said, "# {scenario}\n{lines}").unwrap();
        }
    }
    assert_eq!((expected, explained), (53, 53));
    insta::assert_snapshot!("messages", without_ids(&said, &records));
}

/// A model file as the recording registered it; its bytes are zeros of the same number.
fn recorded_file(folder: &std::path::Path, record: &Record) -> ModelFile {
    let mut body = object(&record.body);
    body.remove("total_chunks");
    let bytes = body["model_content_size_in_bytes"].as_u64().unwrap();
    let zip = folder.join("model.zip");
    std::fs::write(&zip, vec![0; bytes as usize]).unwrap();
    let sha256 = body["model_content_hash_value"].as_str().unwrap().to_owned();
    ModelFile { zip, body, sha256, bytes }
}

#[test]
fn registering_deploying_and_asking_in_one_go_sends_the_recorded_sequence() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Record> = trace().into_iter().filter(|r| r.scenario.contains("one chunk")).take(7).collect();
    let replay = Replay::start(records.clone());
    let cluster = connect(&replay);
    let file = recorded_file(folder.path(), &records[0]);
    let cancel = Cancel::default();
    let model = register::register(&cluster, &file, None, 10_000_000, &poll(), &cancel, &NoProgress).unwrap();
    let deployed = lifecycle::deploy(&cluster, &model, &poll(), &cancel).unwrap();
    assert_eq!(deployed.nodes, 1);
    let texts: Vec<&str> = records[6].body["text_docs"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let vectors = lifecycle::predict(&cluster, &model, &texts).unwrap();
    assert_eq!(vectors[0]["neural"].to_bits(), 7.436_764_7_f32.to_bits());
    assert_eq!(vectors[1].len(), 11);
    assert_eq!(replay.differences(), Vec::<String>::new());
}

#[test]
fn a_wrong_hash_shows_at_deploy() {
    let folder = tempfile::tempdir().unwrap();
    let records: Vec<Record> = trace().into_iter().filter(|r| r.scenario == "wrong hash").collect();
    let replay = Replay::start(records[..5].to_vec());
    let cluster = connect(&replay);
    let file = recorded_file(folder.path(), &records[0]);
    let cancel = Cancel::default();
    let model = register::register(&cluster, &file, None, 10_000_000, &poll(), &cancel, &NoProgress).unwrap();
    let error = lifecycle::deploy(&cluster, &model, &poll(), &cancel).unwrap_err();
    assert!(error.to_string().contains("another sha256"), "{error}");
    assert_eq!(replay.differences(), Vec::<String>::new());
}

#[test]
fn a_state_that_does_not_come_ends_at_the_deadline() {
    let registering = trace().into_iter().find(|r| r.answer["model_state"] == "REGISTERING").unwrap();
    let id = registering.path.rsplit('/').next().unwrap().to_owned();
    let replay = Replay::start(vec![registering; 4]);
    let cluster = connect(&replay);
    let short = Poll { interval: Duration::from_millis(50), deadline: Duration::from_millis(1) };
    let model = Model { id, name: "m".to_owned() };
    let error = register::wait_registered(&cluster, &model, "", &short, &Cancel::default()).unwrap_err();
    assert!(matches!(&error, Error::Deadline { last, .. } if last == "REGISTERING"), "{error}");
}

#[test]
fn a_model_on_some_nodes_only_is_reported_as_such() {
    let records = trace();
    let recorded = |test: &dyn Fn(&Record) -> bool| records.iter().find(|r| test(r)).unwrap().clone();
    // The recording had one node; these are its answers with a second one that failed.
    let mut task = recorded(&|r| r.answer["state"] == "COMPLETED");
    task.answer["state"] = "COMPLETED_WITH_ERROR".into();
    task.answer["error"] = r#"{"second":"Memory Circuit Breaker is open, please check your resources!"}"#.into();
    let mut model = recorded(&|r| r.answer["model_state"] == "DEPLOYED");
    model.answer["model_state"] = "PARTIALLY_DEPLOYED".into();
    model.answer["planning_worker_node_count"] = 2.into();
    let id = |path: &str| path.rsplit('/').next().unwrap().to_owned();
    let (task_id, model_id) = (id(&task.path), id(&model.path));
    let replay = Replay::start([task, model.clone(), model]);
    let cluster = connect(&replay);
    let (model, cancel) = (Model { id: model_id, name: "m".to_owned() }, Cancel::default());
    let partial = lifecycle::wait_task(&cluster, &task_id, Step::Deploy, &model.to_string(), &poll(), &cancel).unwrap();
    let deployed = lifecycle::wait_deployed(&cluster, &model, partial.as_deref(), &poll(), &cancel).unwrap();
    assert_eq!((deployed.nodes, deployed.planned), (1, 2));
    let reason = deployed.partial.unwrap();
    assert!(reason.contains("heap of the node is too full") && reason.contains("on node second"), "{reason}");
    // Without the task's word, the counts are told.
    let deployed = lifecycle::wait_deployed(&cluster, &model, None, &poll(), &cancel).unwrap();
    assert!(deployed.partial.unwrap().contains("runs on 1 of 2 nodes"));
    assert_eq!(replay.differences(), Vec::<String>::new());
}

//! The stand-in's memory, and which part of it answers a request.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::http::Incoming;
use super::node::Node;
use super::package::Loaded;
use super::{Contents, Meanwhile, Options, Outage, Reply, Strike, When, phases};

/// The only node of the cluster.
pub(super) const NODE: &str = "standInNode";
/// A fixed point in time: the stand-in has no clock.
pub(super) const TIME: u64 = 1_795_224_239_031;

/// A model as the stand-in keeps it.
pub(super) struct Model {
    pub(super) name: String,
    pub(super) function: String,
    pub(super) format: String,
    pub(super) sha256: String,
    pub(super) size: u64,
    pub(super) total_chunks: u64,
    pub(super) version: usize,
    pub(super) group: String,
    pub(super) description: Option<String>,
    pub(super) chunks: BTreeMap<u64, Vec<u8>>,
    pub(super) state: &'static str,
    /// The state to come, and how many questions still see the old one.
    pub(super) next: Option<(&'static str, usize)>,
    pub(super) loaded: Option<Loaded>,
}

/// A task as the stand-in keeps it.
pub(super) struct Task {
    pub(super) kind: &'static str,
    pub(super) model: String,
    pub(super) function: String,
    pub(super) error: Option<String>,
    /// How many questions still see it running.
    pub(super) running: usize,
}

/// A model group.
pub(super) struct Group {
    pub(super) name: String,
    pub(super) description: String,
    /// Models ever registered in it.
    pub(super) versions: usize,
}

/// Everything.
pub(super) struct State {
    pub(super) options: Options,
    pub(super) requests: Vec<String>,
    pub(super) fail: Option<(usize, Strike)>,
    /// What is done before which request is answered.
    pub(super) meanwhile: Option<(When, Meanwhile)>,
    /// From which request on nothing is answered, and how.
    pub(super) outage: Option<(usize, Outage)>,
    pub(super) models: BTreeMap<String, Model>,
    pub(super) tasks: BTreeMap<String, Task>,
    pub(super) groups: BTreeMap<String, Group>,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) node: Node,
    /// Models whose file on the node is not what was uploaded.
    pub(super) spoiled: BTreeSet<String>,
    /// The name of the next model that is spoiled.
    pub(super) to_spoil: Option<String>,
    /// Whether ML Commons' indexes were ever made.
    pub(super) had_models: bool,
    pub(super) had_groups: bool,
    ids: usize,
}

/// Who answers.
pub(super) enum Routed {
    /// This.
    Answer(Reply),
    /// The node behind, or the one in memory.
    Upstream,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        let settings = [
            ("plugins.ml_commons.allow_registering_model_via_local_file", "true"),
            ("plugins.ml_commons.allow_registering_model_via_url", "true"),
            ("plugins.ml_commons.jvm_heap_memory_threshold", "100"),
            ("plugins.ml_commons.native_memory_threshold", "100"),
            ("plugins.ml_commons.only_run_on_ml_node", "false"),
        ];
        Self {
            options,
            requests: Vec::new(),
            fail: None,
            meanwhile: None,
            outage: None,
            models: BTreeMap::new(),
            tasks: BTreeMap::new(),
            groups: BTreeMap::new(),
            settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            node: Node::default(),
            spoiled: BTreeSet::new(),
            to_spoil: None,
            had_models: false,
            had_groups: false,
            ids: 0,
        }
    }

    /// A new id of the length that OpenSearch's have.
    pub(super) fn new_id(&mut self, kind: &str) -> String {
        self.ids += 1;
        format!("{kind:-<12}{:08}", self.ids)
    }

    /// Notes a request; says whether a failure is due.
    pub(super) fn log(&mut self, incoming: &Incoming) -> Option<Strike> {
        let number = self.requests.len();
        self.requests.push(format!("{} {}", incoming.method, incoming.target()));
        self.fail.filter(|(at, _)| *at == number).map(|(_, strike)| strike)
    }

    /// What is to be done before the request that was logged last is answered.
    pub(super) fn take_meanwhile(&mut self) -> Option<Meanwhile> {
        let (number, request) = (self.requests.len().checked_sub(1)?, self.requests.last()?);
        let is_due = match &mut self.meanwhile.as_mut()?.0 {
            When::Number(at) => number == *at,
            When::Containing(part, _) if !request.contains(&**part) => false,
            When::Containing(_, 0) => true,
            When::Containing(_, more) => {
                *more -= 1;
                false
            }
        };
        self.meanwhile.take_if(|_| is_due).map(|(_, what)| what)
    }

    /// Whether the cluster is out of reach at the request that was logged last.
    pub(super) fn is_out(&self) -> Option<Outage> {
        self.outage.filter(|(from, _)| self.requests.len() > *from).map(|(_, outage)| outage)
    }

    pub(super) fn contents(&self) -> Contents {
        Contents {
            groups: self.groups.values().map(|g| g.name.clone()).collect(),
            models: self.models.values().map(|m| format!("{} {}", m.name, m.state)).collect(),
            pipelines: self.node.pipelines.keys().cloned().collect(),
            search_pipelines: self.node.search_pipelines.keys().cloned().collect(),
            aliases: self.node.aliases.iter().map(|(a, b)| format!("{a} {}", join(b.keys()))).collect(),
            indexes: self.node.indexes.keys().cloned().collect(),
        }
    }

    /// Whether a boolean setting is on.
    pub(super) fn is_on(&self, setting: &str) -> bool {
        self.setting(setting) == Some("true")
    }

    /// A setting of ML Commons.
    pub(super) fn setting(&self, name: &str) -> Option<&str> {
        self.settings.get(&format!("plugins.ml_commons.{name}")).map(String::as_str)
    }

    pub(super) fn route(&mut self, incoming: &Incoming) -> Routed {
        let path = incoming.path.trim_matches('/').to_owned();
        if let Some(rest) = path.strip_prefix("_plugins/_ml/") {
            if !self.options.ml_commons {
                let reason =
                    format!("no handler found for uri [{}] and method [{}]", incoming.target(), incoming.method);
                return Routed::Answer(Reply { status: 400, body: json!({ "error": reason }) });
            }
            return Routed::Answer(self.ml(&incoming.method, rest, incoming));
        }
        if path.starts_with("_search/pipeline") {
            return self.search_pipeline(&path, incoming);
        }
        if path == "_cluster/settings" {
            return self.cluster_settings(incoming);
        }
        if let Some(name) = path.strip_prefix("_ingest/pipeline/") {
            let (there, neural) = (self.node.pipelines.contains_key(name), self.options.neural_search);
            if incoming.method == "PUT"
                && let Err(reply) = super::node::check_pipeline(&incoming.json(), neural)
            {
                return Routed::Answer(reply);
            }
            if self.options.upstream.is_none() || incoming.method != "PUT" && !there {
                return Routed::Upstream;
            }
            // A real node does not know `sparse_encoding`: such pipelines stay here, whole, and it never runs them.
            if there || incoming.json().to_string().contains("\"sparse_encoding\"") {
                return Routed::Answer(self.node.pipeline(&incoming.method, name, incoming.json()));
            }
        }
        Routed::Upstream
    }

    /// Search pipelines: a real node knows none of neural-search's processors, so it gets them without (see `phases`), and
    /// they are told from here.
    fn search_pipeline(&mut self, path: &str, incoming: &Incoming) -> Routed {
        let name = path.trim_start_matches("_search/pipeline").trim_matches('/').to_owned();
        let before_a_node = self.options.upstream.is_some();
        match (incoming.method.as_str(), name.as_str()) {
            ("GET", "") if self.node.search_pipelines.is_empty() && before_a_node => Routed::Upstream,
            ("GET", "") => Routed::Answer(super::node::all(&self.node.search_pipelines)),
            ("PUT", _) => {
                let body = incoming.json();
                let unknown = phases::PROCESSORS.iter().find(|name| phases::processor(&body, name).is_some());
                if let (Some(name), false) = (unknown, self.options.neural_search) {
                    let reason = format!("Invalid processor type {name}");
                    return Routed::Answer(Reply::error(400, "illegal_argument_exception", &reason));
                }
                if let Err(reply) = phases::check(&body) {
                    return Routed::Answer(reply);
                }
                let reply = self.node.search_pipeline("PUT", &name, body);
                if before_a_node { Routed::Upstream } else { Routed::Answer(reply) }
            }
            ("DELETE", _) if before_a_node => {
                self.node.search_pipelines.remove(&name);
                Routed::Upstream
            }
            (method, _) if !before_a_node || self.node.search_pipelines.contains_key(&name) => {
                Routed::Answer(self.node.search_pipeline(method, &name, Value::Null))
            }
            _ => Routed::Upstream,
        }
    }

    /// What the node in memory answers.
    pub(super) fn fake_node(&mut self, incoming: &Incoming) -> Reply {
        let path = incoming.path.trim_matches('/').to_owned();
        match (incoming.method.as_str(), path.as_str()) {
            ("GET", "" | "_cat/plugins") if self.options.serverless => {
                Reply { status: 404, body: json!({ "status": 404, "error": { "reason": "No handler for this path" } }) }
            }
            ("GET", "_cat/indices") => {
                Reply::ok(self.node.indexes.keys().map(|name| json!({ "index": name })).collect())
            }
            ("GET", "") => Reply::ok(json!({
                "name": "stand-in", "cluster_name": "stand-in", "cluster_uuid": "standInClusterUuid000",
                "version": { "distribution": "opensearch", "number": self.options.version, "lucene_version": "9.11.1" },
                "tagline": "The OpenSearch Project: https://opensearch.org/"
            })),
            (_, path) if path.ends_with("/_bulk") => self.fake_bulk(path, incoming),
            ("GET", "_cat/plugins") => self.after_upstream(incoming, Reply::ok(json!([]))),
            _ => self.fake_index(&incoming.method, &path, &incoming.json()),
        }
    }

    /// Adds to the node's answer what the stand-in has besides: its plugins.
    pub(super) fn after_upstream(&self, incoming: &Incoming, mut reply: Reply) -> Reply {
        if incoming.path == "/_cat/plugins"
            && let Value::Array(plugins) = &mut reply.body
        {
            let ours =
                [("opensearch-ml", self.options.ml_commons), ("opensearch-neural-search", self.options.neural_search)];
            for (component, _) in ours.iter().filter(|(_, there)| *there) {
                plugins.push(json!({ "name": "stand-in", "component": component, "version": "2.16.0.0" }));
            }
        }
        reply
    }

    /// ML Commons' own settings are kept here; all others are the node's.
    fn cluster_settings(&mut self, incoming: &Incoming) -> Routed {
        let body = incoming.json();
        let persistent = body.get("persistent").and_then(Value::as_object);
        let ours = persistent.is_some_and(|p| p.keys().all(|k| k.starts_with("plugins.ml_commons.")));
        if incoming.method == "GET" && self.options.upstream.is_none() {
            return Routed::Answer(Reply::ok(json!({ "persistent": self.settings, "transient": {} })));
        }
        let (true, Some(persistent)) = (ours && incoming.method == "PUT", persistent) else { return Routed::Upstream };
        let mut nested = json!({});
        for (key, value) in persistent {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let mut at = &mut nested;
            for part in key.split('.') {
                at = &mut at[part];
            }
            *at = json!(text);
            self.settings.insert(key.clone(), text);
        }
        Routed::Answer(Reply::ok(json!({ "acknowledged": true, "persistent": nested, "transient": {} })))
    }
}

fn join<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.cloned().collect::<Vec<_>>().join(",")
}

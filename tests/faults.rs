//! Everything that goes wrong beside a cluster, to the program as a user runs it: before a real node, with ML Commons'
//! stand-in between and a proxy that cuts, refuses and delays. Ids and vectors end as in an undisturbed run; and a
//! password that was planted shows in no log, error, file or process list.
//!
//! The cluster encodes: each document's vector went through the pipeline that `deploy` made.
#![cfg(feature = "test-node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "seeds and counts are shown with --nocapture")]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::{Duration, Instant};

use nsparse_core::{Cancel, NoProgress};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::faults::{Fault, Proxy};
use nsparse_integration_tests::node::{everything, free_port, shared};
use nsparse_integration_tests::random_model::{Noise, Shape, write};
use nsparse_integration_tests::secrets::{Planted, Watched};
use nsparse_integration_tests::standin::{EncodeText, Options, Outage, StandIn, encode_with};
use nsparse_opensearch::node::{self, Engine, Handle, NodeOptions};
use nsparse_opensearch::{Cluster, ClusterConfig};
use serde_json::{Value, json};
use tempfile::TempDir;

const PASSWORD: &str = "Planted-Pa55 word/0815";
const DOCUMENTS: usize = 240;

type Documents = BTreeMap<String, Value>;
/// What becomes of a bulk request by its number.
type Decide = fn(usize) -> Fault;

/// What all tests share: a model with its package, the stand-in's encoder, and the index of an undisturbed run.
struct Common {
    folder: TempDir,
    encode: EncodeText,
    undisturbed: Documents,
}

fn common() -> &'static Common {
    static COMMON: OnceLock<Common> = OnceLock::new();
    COMMON.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("model");
        write(&model, &Shape::small(), 3).unwrap();
        nsparse_exporter::export(&model, &folder.path().join("package"), "tiny", "1.0.0").unwrap();
        let encode = encode_with(move || SparseEncoder::load(&model, Device::Cpu).unwrap());
        let mut common = Common { folder, encode, undisturbed: Documents::new() };
        let standin = standin(&common, &shared().url);
        let operator = Operator::new(&common, "undisturbed", standin.url());
        operator.ok(&operator.deploy());
        operator.ok(&operator.ingest());
        common.undisturbed = everything(&shared().cluster, "undisturbed");
        assert_eq!(common.undisturbed.len(), DOCUMENTS);
        assert!(common.undisturbed.values().all(|d| d["embedding"].as_object().is_some_and(|v| !v.is_empty())));
        common
    })
}

fn standin(common: &Common, node: &str) -> StandIn {
    let encode = Arc::clone(&common.encode);
    StandIn::start(Options { encode, upstream: Some(node.to_owned()), ..Options::default() })
}

/// The program with a password in its profile, and the index that it is to fill.
struct Operator {
    nsparse: Nsparse,
    index: &'static str,
    planted: Planted,
}

impl Operator {
    fn new(common: &Common, index: &'static str, url: &str) -> Self {
        let mut nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
        nsparse.write("profiles.yaml", &format!("p:\n  url: {url}\n  user: operator\n  password: \"{PASSWORD}\"\n"));
        std::fs::set_permissions(nsparse.path("profiles.yaml"), std::fs::Permissions::from_mode(0o600)).unwrap();
        nsparse.set("NSPARSE_PROFILES", nsparse.path("profiles.yaml").to_str().unwrap());
        nsparse.set("NSPARSE_PROFILE", "p");
        nsparse.copy(&common.folder.path().join("package"), "package");
        let lines: Vec<String> = (0..DOCUMENTS)
            .map(|i| json!({ "_id": format!("d{i:04}"), "title": format!("search w{}", i % 50), "text": format!("engine {i} index w{}", i % 31) }).to_string())
            .collect();
        nsparse.write("docs.jsonl", &(lines.join("\n") + "\n"));
        Planted::make_loud(&mut nsparse);
        // `operator:Planted` in base64.
        let planted = Planted::new([PASSWORD]).also("b3BlcmF0b3I6UGxhbnRlZ");
        Self { nsparse, index, planted }
    }

    fn deploy(&self) -> String {
        format!("deploy package --index {} --replicas 0 --deployment d.json", self.index)
    }

    fn ingest(&self) -> String {
        // By its name: the node behind the stand-in does not know the index's own pipeline.
        let pipeline = format!("{}-ingest", self.index);
        format!("ingest docs.jsonl --deployment d.json --pipeline {pipeline} --journal j --request-documents 10 --json")
    }

    fn run(&self, arguments: &str) -> Watched {
        self.planted.run(&self.nsparse, arguments)
    }

    fn ok(&self, arguments: &str) -> Watched {
        let watched = self.run(arguments);
        assert_eq!(watched.outcome.code, Some(0), "{}: {arguments}\n{}", self.index, said(&watched));
        watched
    }

    /// The index is that of an undisturbed run, a second run sends nothing, and no file holds the password.
    fn ended_well(&self, cluster: &Cluster) {
        assert!(everything(cluster, self.index) == common().undisturbed, "{}: other documents", self.index);
        let report = self.ok(&self.ingest()).outcome.json()["report"].clone();
        assert_eq!((&report["indexed"], &report["documents"]), (&json!(0), &json!(DOCUMENTS)), "{}", self.index);
        let logged = self.run("status d.json").loud;
        assert!(logged > 5, "{}: the log is not loud", self.index);
        self.planted.check_files(&self.nsparse.path(""), &[&self.nsparse.path("profiles.yaml")]);
    }
}

/// What was said beside the log, for messages.
fn said(watched: &Watched) -> String {
    let is_log = |l: &&str| ["TRACE", "DEBUG", " INFO", " WARN"].iter().any(|level| l.starts_with(level));
    let lines: Vec<&str> = watched.outcome.stderr.lines().filter(|l| !is_log(l)).collect();
    lines.join("\n") + &watched.outcome.stdout
}

/// A node that the test kills and starts again with what it had; stopped at the end.
struct OwnNode {
    options: NodeOptions,
    pid: Mutex<u32>,
    cluster: Cluster,
}

impl OwnNode {
    fn start() -> Self {
        let options = NodeOptions {
            port: free_port().unwrap(),
            heap: "512m".to_owned(),
            engine: Engine::Assembled,
            ..NodeOptions::default()
        };
        let node = node::up(&options, &NoProgress, &Cancel::default()).unwrap().node;
        let Handle::Process { pid, .. } = node.handle else { panic!("an assembled node is a process") };
        let cluster = Cluster::connect(&ClusterConfig::new(&node.url)).unwrap();
        Self { options, pid: Mutex::new(pid), cluster }
    }

    /// Until the system has taken back its port and its memory: before that it counts as running.
    fn kill(&self) {
        let pid = *self.pid.lock().unwrap();
        assert!(Command::new("kill").args(["-KILL", &pid.to_string()]).status().unwrap().success());
        let deadline = Instant::now() + Duration::from_mins(1);
        let is_alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit_once(')')
                .is_some_and(|(_, rest)| !matches!(rest.trim_start().as_bytes().first(), Some(b'Z' | b'X')))
        };
        while is_alive() || TcpListener::bind(("127.0.0.1", self.options.port)).is_err() {
            assert!(Instant::now() < deadline, "the node lives on, or its port is not free again");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    fn up_again(&self) {
        let node = node::up(&self.options, &NoProgress, &Cancel::default()).unwrap().node;
        let Handle::Process { pid, .. } = node.handle else { panic!("an assembled node is a process") };
        *self.pid.lock().unwrap() = pid;
    }
}

impl Drop for OwnNode {
    fn drop(&mut self) {
        // Where it cannot be stopped, the test has failed already.
        let _ = node::down(self.options.state_dir.as_deref(), Some(self.options.port));
    }
}

/// The node dies while a chunk goes up, while the document encoder is deployed, and while documents go in.
#[test]
fn the_node_is_killed_in_every_stage() {
    let common = common();
    let node = Arc::new(OwnNode::start());
    let standin = Arc::new(standin(common, node.cluster.url()));
    let operator = Operator::new(common, "node-killed", standin.url());
    // Before the document encoder's only chunk, and before its deploy.
    for part in ["/upload_chunk/", "/_deploy"] {
        let (theirs, dying, (up, is_up)) = (Arc::clone(&standin), Arc::clone(&node), mpsc::channel());
        standin.meanwhile_at(part, 1, move || {
            dying.kill();
            // Half of what it was writing then lies on its disk.
            theirs.spoil("tiny-document");
            theirs.out_of_reach(0, Outage::Cut);
            std::thread::spawn(move || {
                dying.up_again();
                theirs.mend();
                let _ = up.send(());
            });
        });
        let watched = operator.run(&operator.deploy());
        is_up.recv_timeout(Duration::from_mins(3)).unwrap();
        let error = watched.outcome.stderr.lines().find(|l| l.starts_with("error"));
        println!("{part}: {:?} {}", watched.outcome.code, error.unwrap_or_default());
        // It waits for the node, for three quarters of a minute; where that was too short, the same command again ends it.
        assert!(matches!(watched.outcome.code, Some(0 | 3)), "{part}: {}", said(&watched));
        operator.ok(&operator.deploy());
        if part == "/upload_chunk/" {
            operator.ok("undeploy d.json");
        }
    }

    let mut killed = false;
    let bulks = || standin.requests().iter().filter(|r| r.contains("/_bulk")).count();
    let watched = operator.planted.run_while(&operator.nsparse, &operator.ingest(), |_| {
        if !killed && bulks() >= 5 {
            killed = true;
            node.kill();
            let before = bulks();
            let deadline = Instant::now() + Duration::from_mins(1);
            while bulks() == before {
                assert!(Instant::now() < deadline, "no request found the node dead");
                std::thread::park_timeout(Duration::from_millis(5));
            }
            node.up_again();
        }
    });
    assert!(killed);
    assert_eq!(watched.outcome.code, Some(0), "{}", said(&watched));
    let report = watched.outcome.json()["report"].clone();
    println!("documents: {} requests answered, {} sent again", report["requests"], report["retries"]);
    assert!(report["retries"].as_u64().unwrap() > 0, "{report}");
    operator.ended_well(&node.cluster);
}

#[test]
fn refused_cut_late_and_blocked() {
    let common = common();
    let cluster = &shared().cluster;
    let faults: [(&'static str, Decide); 4] = [
        ("fault-busy", |n| if (3..6).contains(&n) { Fault::Status(429) } else { Fault::None }),
        ("fault-unavailable", |n| if (4..7).contains(&n) { Fault::Status(503) } else { Fault::None }),
        ("fault-cut", |n| match n {
            2 | 9 => Fault::CutAnswer,
            5 => Fault::CutBefore,
            _ => Fault::None,
        }),
        ("fault-slow", |n| if n == 4 { Fault::Late } else { Fault::None }),
    ];
    for (index, fault) in faults {
        let standin = standin(common, &shared().url);
        let proxy = Proxy::start(standin.url(), fault);
        let operator = Operator::new(common, index, &proxy.url);
        operator.ok(&operator.deploy());
        let report = operator.ok(&format!("{} --timeout 2", operator.ingest())).outcome.json()["report"].clone();
        println!("{index}: {} requests answered, {} sent again", report["requests"], report["retries"]);
        assert!(report["retries"].as_u64().unwrap() > 0, "{index}: nothing happened");
        operator.ended_well(cluster);
    }

    // What the cluster does by itself when a disk passes its flood stage, and when there is room again.
    let standin = standin(common, &shared().url);
    let operator = Operator::new(common, "fault-disk", standin.url());
    operator.ok(&operator.deploy());
    let block = |value: Value| {
        cluster.put("/fault-disk/_settings", json!({ "index.blocks.read_only_allow_delete": value })).unwrap();
    };
    let bulks = || standin.requests().iter().filter(|r| r.contains("/_bulk")).count();
    let mut blocked_at = None;
    let mut is_lifted = false;
    let watched = operator.planted.run_while(&operator.nsparse, &operator.ingest(), |_| match blocked_at {
        None if bulks() >= 3 => {
            block(json!(true));
            blocked_at = Some(bulks());
        }
        Some(at) if !is_lifted && bulks() >= at + 4 => {
            block(Value::Null);
            is_lifted = true;
        }
        _ => {}
    });
    assert_eq!(watched.outcome.code, Some(0), "{}", said(&watched));
    assert!(is_lifted && watched.outcome.json()["report"]["retries"].as_u64().unwrap() > 0, "{}", said(&watched));
    operator.ended_well(cluster);
}

#[test]
fn the_index_is_deleted_and_the_program_killed() {
    let common = common();
    let cluster = &shared().cluster;
    let standin = standin(common, &shared().url);
    let bulks = || standin.requests().iter().filter(|r| r.contains("/_bulk")).count();

    let operator = Operator::new(common, "fault-deleted", standin.url());
    operator.ok(&operator.deploy());
    let mut is_deleted = false;
    let watched = operator.planted.run_while(&operator.nsparse, &operator.ingest(), |_| {
        if !is_deleted && bulks() >= 3 {
            is_deleted = true;
            cluster.delete("/fault-deleted").unwrap();
        }
    });
    assert_eq!(watched.outcome.code, Some(3), "{}", said(&watched));
    assert!(
        watched.outcome.stderr.contains("The index `fault-deleted` was deleted while documents went in"),
        "{}",
        said(&watched)
    );
    // As the message says: what the last batches made is deleted, the index is made again, and everything goes in.
    let _ = cluster.delete("/fault-deleted");
    operator.ok(&operator.deploy());
    let report = operator.ok(&operator.ingest()).outcome.json()["report"].clone();
    assert_eq!((&report["indexed"], &report["skipped"]), (&json!(DOCUMENTS), &json!(0)));
    operator.ended_well(cluster);

    // Killed now and then, in `deploy` and in `ingest`. `ingest_on_a_node.rs` and `deploying.rs` do so far more often.
    let operator = Operator::new(common, "fault-killed", standin.url());
    let seed = 20_261_121u64;
    println!("seed {seed}");
    let mut noise = Noise(seed);
    for (arguments, most, times) in [(operator.deploy(), 12, 3), (operator.ingest(), 6, 5)] {
        let mut killed = 0;
        for _ in 0..times {
            let until = standin.requests().len() + 2 + noise.below(most);
            let watched = operator.planted.run_while(&operator.nsparse, &arguments, |child| {
                if standin.requests().len() >= until {
                    child.kill().unwrap();
                }
            });
            println!("{} until request {until}: {:?}", arguments.split(' ').next().unwrap(), watched.outcome.code);
            killed += usize::from(watched.outcome.code.is_none());
        }
        assert!(killed > 0, "{arguments}: it always ended before");
        operator.ok(&arguments);
    }
    operator.ended_well(cluster);
}

/// What stands between two versions, too: from `doctor` to `undeploy`, and what is refused on the way.
#[test]
fn no_command_of_the_life_cycle_shows_the_password() {
    let common = common();
    let standin = standin(common, &shared().url);
    let operator = Operator::new(common, "fault-versions", standin.url());
    operator.nsparse.copy(&common.folder.path().join("model"), "model");
    let deploy = "deploy package --alias planted --replicas 0 --side query --deployment d.json";
    let ingest = "ingest docs.jsonl --deployment d.json --model model --journal j --json";
    operator.run("doctor");
    operator.ok(&format!("{deploy} --plan"));
    operator.ok(deploy);
    operator.ok(ingest);
    operator.ok(&format!("{deploy} --prune max_ratio:0.1"));
    let refused = operator.run("switch d.json").outcome;
    assert_eq!(refused.code, Some(2), "an index without documents: {}", refused.stderr);
    operator.ok(&format!("{ingest} --prune max_ratio:0.1"));
    for command in ["switch d.json", "rollback d.json", "status d.json"] {
        operator.ok(command);
    }
    operator.ok("search engine --deployment d.json --explain");
    let missing = operator.run("search engine --index fault-missing --method bm25");
    assert_eq!(missing.outcome.code, Some(3), "{}", said(&missing));
    operator.ok("prune-models --yes");
    let logged = operator.run("status d.json").loud;
    assert!(logged > 5, "the log is not loud");
    for version in ["--version 2", ""] {
        operator.ok(&format!("undeploy d.json {version} --delete-index"));
    }
    // A cluster that is not there is asked with the same password.
    drop(standin);
    assert_eq!(operator.run("status d.json").outcome.code, Some(2), "undeploy has removed the file");
    assert_eq!(operator.run("doctor").outcome.code, Some(1));
    operator.planted.check_files(&operator.nsparse.path(""), &[&operator.nsparse.path("profiles.yaml")]);
}

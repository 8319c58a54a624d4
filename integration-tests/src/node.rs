//! One real OpenSearch for all tests of a binary: started by the first that asks, ended when the process ends,
//! however it ends.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nsparse_core::{Cancel, NoProgress};
use nsparse_opensearch::ingest::documents::{Documents as _, Next};
use nsparse_opensearch::node::{self, Engine, Handle, NodeOptions};
use nsparse_opensearch::reencode::IndexDocuments;
use nsparse_opensearch::{Cluster, ClusterConfig};
use serde_json::Value;

/// A running node and the leash that ends it.
#[derive(Debug)]
pub struct TestNode {
    /// Its address.
    pub url: String,
    /// A client for it.
    pub cluster: Cluster,
    _leash: Child,
}

/// The node of this test binary.
///
/// # Panics
/// If it cannot be started: a test that cannot run fails.
#[expect(clippy::panic, reason = "test support: the message is the point")]
pub fn shared() -> &'static TestNode {
    static NODE: OnceLock<TestNode> = OnceLock::new();
    NODE.get_or_init(|| {
        start().unwrap_or_else(|e| panic!("no node for the tests: {e}; {}", e.hint().unwrap_or_default()))
    })
}

/// All documents of an index, as they stand in `_source`, by id.
///
/// # Panics
/// If the cluster fails, or gives a document twice.
pub fn everything(cluster: &Cluster, index: &str) -> BTreeMap<String, Value> {
    let mut documents = IndexDocuments::open(cluster, index, 500, &[]).expect("the index can be read");
    let mut found = BTreeMap::new();
    loop {
        match documents.next(Duration::from_mins(1)).expect("the index is read to its end") {
            Next::Block(block) => {
                for entry in block.entries() {
                    let source = serde_json::from_slice(block.json(entry)).expect("a source is JSON");
                    assert_eq!(found.insert(entry.id.clone(), source), None, "{} came twice", entry.id);
                }
            }
            Next::Idle => unreachable!("no documents of `{index}` within a minute"),
            Next::End => return found,
        }
    }
}

/// A loopback port that is free now.
///
/// # Errors
/// If the system has none.
pub fn free_port() -> std::io::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn start() -> nsparse_opensearch::Result<TestNode> {
    let world = |e: std::io::Error| nsparse_opensearch::Error::world(e.to_string(), "check this machine");
    let options = NodeOptions {
        port: free_port().map_err(world)?,
        heap: "512m".to_owned(),
        engine: Engine::Assembled,
        ..NodeOptions::default()
    };
    let node = node::up(&options, &NoProgress, &Cancel::default())?.node;
    let Handle::Process { pid, .. } = node.handle else {
        return Err(nsparse_opensearch::Error::world("an assembled node is no process", "see node::up"));
    };
    let leash = leash(pid, &PathBuf::from(&node.log)).map_err(world)?;
    let cluster = Cluster::connect(&ClusterConfig::new(&node.url))?;
    Ok(TestNode { url: node.url, cluster, _leash: leash })
}

/// A shell that waits for the end of its input, which the system closes when this process is gone, killed or not;
/// then it ends the node by its number and removes its folder and state file. In a group of its own, so that Ctrl-C
/// at the tests does not end the leash before the node.
pub(crate) fn leash(pid: u32, log: &std::path::Path) -> std::io::Result<Child> {
    use std::os::unix::process::CommandExt;
    let folder = log.parent().ok_or_else(|| std::io::Error::other("the log lies in no folder"))?;
    let script =
        "read -r _; kill \"$1\"; while kill -0 \"$1\" 2>/dev/null; do sleep 0.1; done; rm -rf -- \"$2\" \"$2.json\"";
    let mut child = Command::new("sh")
        .args(["-c", script, "leash", &pid.to_string()])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()?;
    // A shell that could not start would leave the node running: an empty write tells, and sends nothing.
    if let Some(input) = child.stdin.as_mut() {
        input.flush()?;
    }
    Ok(child)
}

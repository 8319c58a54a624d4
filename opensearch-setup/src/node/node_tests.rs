//! Tests of the node's state that start no OpenSearch.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use super::*;
use std::process::{Child, Command, Stdio};

fn places(folder: &Path) -> Places {
    Places { root: folder.to_path_buf(), note: None }
}

/// A process in a node's place; it ends with the test, whatever the test's end.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        let mut command = Command::new("sleep");
        Self(command.arg("600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn is_alive(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process written down as if `up` had started it.
fn stand_in(folder: &Path, port: u16) -> (Sleeper, Node) {
    let child = Sleeper::start();
    let handle = Handle::Process { pid: child.0.id(), identity: process::identity(child.0.id()).unwrap() };
    let node = node(&NodeOptions { port, ..NodeOptions::default() }, handle, "log".to_owned());
    write(&places(folder), &node).unwrap();
    (child, node)
}

#[test]
fn state_files_keep_what_down_needs() {
    let folder = tempfile::tempdir().unwrap();
    let handle = Handle::Container { id: "abc".into(), image: "i".into() };
    let written = node(&NodeOptions::default(), handle, "docker logs abc".to_owned());
    write(&places(folder.path()), &written).unwrap();
    assert_eq!(read(&places(folder.path()), 9200).unwrap().unwrap(), written);
    let text = std::fs::read_to_string(state_path(&places(folder.path()), 9200)).unwrap();
    assert!(text.contains("\"engine\": \"container\""), "{text}");
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_made() {
    let folder = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    let root = folder.path().join("state");
    open(folder.path());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = NodeOptions { port, state_dir: Some(root.clone()), engine: Engine::Assembled, ..Default::default() };
    let error = up(&options, &NoProgress, &Cancel::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("Port {port} is in use by something that `nsparse cluster up` did not start")
    );
    assert_eq!(error.fault(), nsparse_core::Fault::Usage);
    assert!(!root.join("nodes").exists());
}

#[test]
fn down_stops_what_was_started_and_only_that() {
    let folder = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    open(folder.path());
    assert_eq!(down(Some(folder.path()), None).unwrap(), []);
    let (mut ours, node) = stand_in(folder.path(), 9301);
    let (mut other, _) = stand_in(folder.path(), 9302);

    // The state file of a third node names a process that is somebody else's by now.
    let mut stranger = Sleeper::start();
    let recycled = Handle::Process { pid: stranger.0.id(), identity: "another-boot:1".into() };
    write(&places(folder.path()), &Node { port: 9303, handle: recycled, ..node.clone() }).unwrap();

    let running: Vec<bool> = status(Some(folder.path())).unwrap().iter().map(|s| s.running).collect();
    assert_eq!(running, [true, true, false]);
    assert_eq!(down(Some(folder.path()), Some(9301)).unwrap(), [node]);
    assert!(!ours.is_alive());
    assert!(other.is_alive());
    assert_eq!(down(Some(folder.path()), None).unwrap().len(), 1);
    assert!(!other.is_alive());
    assert!(stranger.is_alive());
    assert_eq!(down(Some(folder.path()), None).unwrap(), []);
}

#[test]
fn another_version_on_the_same_port_is_refused() {
    let folder = tempfile::Builder::new().tempdir_in("/var/tmp").unwrap();
    open(folder.path());
    let (mut child, _) = stand_in(folder.path(), 9304);
    let options = NodeOptions {
        port: 9304,
        version: "2.19.4".into(),
        state_dir: Some(folder.path().to_path_buf()),
        ..Default::default()
    };
    let error = up(&options, &NoProgress, &Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "OpenSearch 2.16.0 runs on port 9304 already");
    assert!(child.is_alive());
}

/// Temporary folders are closed to others; a node's must be open.
fn open(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}

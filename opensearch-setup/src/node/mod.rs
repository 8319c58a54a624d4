//! A local development node: `up` starts one (in Docker, or assembled through Maven), waits until it answers and
//! writes down what it started; `status` reads that; `down` stops that and nothing else. Nodes are known by port.

mod assemble;
pub(crate) mod docker;
pub(crate) mod java;
mod places;
mod process;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nsparse_core::{Cancel, Error as CoreError, NoProgress, Progress, files};
use serde::{Deserialize, Serialize};

use crate::client::{Body, Cluster, ClusterConfig, Method, RetryPolicy};
use crate::error::{Error, Result};
use places::Places;

/// The version that is started where none is named.
pub const DEFAULT_VERSION: &str = "2.16.0";
/// The port where none is named.
pub const DEFAULT_PORT: u16 = 9200;

/// What makes the node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Engine {
    /// Docker where an engine answers and the image can be had, else assembled.
    #[default]
    Auto,
    /// Docker only.
    Docker,
    /// Assembled through `mvn` only.
    Assembled,
}

/// What to start.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// An OpenSearch release.
    pub version: String,
    /// Its HTTP port on the loopback address.
    pub port: u16,
    /// JVM heap: `1g`, `512m`.
    pub heap: String,
    /// Where servers and nodes are kept; `None` is `$XDG_CACHE_HOME/nsparse` or `~/.cache/nsparse`.
    pub state_dir: Option<PathBuf>,
    /// What makes it.
    pub engine: Engine,
    /// Another image than the official one.
    pub image: Option<String>,
    /// How long it may take to answer once started.
    pub patience: Duration,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            version: DEFAULT_VERSION.to_owned(),
            port: DEFAULT_PORT,
            heap: "1g".to_owned(),
            state_dir: None,
            engine: Engine::Auto,
            image: None,
            patience: Duration::from_mins(4),
        }
    }
}

/// How a started node is found again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "engine", rename_all = "snake_case")]
pub enum Handle {
    /// A process of ours.
    Process {
        /// Its number.
        pid: u32,
        /// What tells it from a later process with the same number.
        identity: String,
    },
    /// A container of ours.
    Container {
        /// Its id.
        id: String,
        /// The image that it was made from.
        image: String,
    },
}

impl Handle {
    fn is_alive(&self) -> bool {
        match self {
            Self::Process { pid, identity } => process::identity(*pid).is_some_and(|now| now == *identity),
            Self::Container { id, .. } => docker::is_running(id),
        }
    }

    fn stop(&self) -> Result<()> {
        match self {
            Self::Process { pid, identity } => process::stop(*pid, identity, Duration::from_secs(30)),
            Self::Container { id, .. } => docker::remove(id),
        }
    }

    fn last_lines(&self, log: &str) -> String {
        match self {
            Self::Process { .. } => process::last_lines(Path::new(log), 12),
            Self::Container { id, .. } => docker::last_lines(id, 12),
        }
    }

    /// Where the rest of a log is once a start has failed: the container is removed then, and its log with it.
    fn whole_log(&self, log: &str) -> String {
        match self {
            Self::Process { .. } => format!("the whole log is `{log}`"),
            Self::Container { image, .. } => format!("`docker run --rm {image}` shows more"),
        }
    }
}

/// A node that `up` started, as written to its state file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `http://127.0.0.1:9200`.
    pub url: String,
    /// Its port.
    pub port: u16,
    /// Its release.
    pub version: String,
    /// Its JVM heap.
    pub heap: String,
    /// Process or container.
    #[serde(flatten)]
    pub handle: Handle,
    /// Its log file, or the command that shows the log.
    pub log: String,
    /// When it was started, seconds since 1970.
    pub started: u64,
}

/// What [`up`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// The node.
    pub node: Node,
    /// Whether it was running before.
    pub already: bool,
    /// Things that the user should know: another folder than usual, Docker left out.
    pub notes: Vec<String>,
}

/// A node written down, and whether it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The node.
    pub node: Node,
    /// Whether its process or container is there.
    pub running: bool,
    /// Whether it answers.
    pub answers: bool,
}

/// An assembled server that was not started: for those who start it in their own way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assembled {
    /// Its home folder, shared by all nodes of its version: not to be written to.
    pub home: PathBuf,
    /// The Java that runs it.
    pub java_home: PathBuf,
    /// The user that it has to run as, where root starts it.
    pub uid: Option<u32>,
}

/// Assembles a server, or finds the one that was assembled before.
///
/// # Errors
/// If Java or Maven is missing, or Maven fails.
pub fn assembled(version: &str, state_dir: Option<&Path>, progress: &dyn Progress) -> Result<Assembled> {
    let places = Places::find(state_dir)?;
    places.create()?;
    let _guard = lock(&places, progress)?;
    let java = java::find_java()?;
    let home = assemble::assembled(&places, version, &java, progress)?;
    Ok(Assembled { home, java_home: java.home, uid: places::node_uid() })
}

/// Starts a node and waits until it answers; one that runs already on that port is given back.
///
/// # Errors
/// If Java, Maven or the image is missing, the port is taken, the node ends or does not answer in time; nothing
/// of a failed start is left running.
pub fn up(options: &NodeOptions, progress: &dyn Progress, cancel: &Cancel) -> Result<Up> {
    process::check_heap(&options.heap)?;
    let places = Places::find(options.state_dir.as_deref())?;
    places.create()?;
    let mut notes: Vec<String> = places.note.iter().cloned().collect();
    let guard = lock(&places, progress)?;
    if let Some(node) = read(&places, options.port)?
        && node.handle.is_alive()
    {
        if node.version != options.version {
            return Err(Error::usage(
                format!("OpenSearch {} runs on port {} already", node.version, node.port),
                format!("stop it with `nsparse cluster down --port {}`, or give another --port", node.port),
            ));
        }
        drop(guard);
        wait_until_ready(&node, options.patience, progress, cancel)?;
        return Ok(Up { node, already: true, notes });
    }
    check_port(options.port)?;
    let node = match choose(options, progress, &mut notes)? {
        Some(image) => start_container(options, &image)?,
        None => start_process(options, &places, progress)?,
    };
    let written = write(&places, &node);
    // Starting takes a while; nodes on other ports need not wait for it.
    drop(guard);
    if let Err(error) = written.and_then(|()| wait_until_ready(&node, options.patience, progress, cancel)) {
        let _guard = lock(&places, progress)?;
        node.handle.stop()?;
        forget(&places, options.port)?;
        return Err(error);
    }
    Ok(Up { node, already: false, notes })
}

/// All nodes written down, by port.
///
/// # Errors
/// If the folder cannot be read.
pub fn status(state_dir: Option<&Path>) -> Result<Vec<Status>> {
    let places = Places::find(state_dir)?;
    let mut found = Vec::new();
    for port in ports(&places)? {
        let Some(node) = read(&places, port)? else { continue };
        let running = node.handle.is_alive();
        let answers = running && probe(&node.url).is_ok_and(|c| is_ready(&c).is_ok());
        found.push(Status { node, running, answers });
    }
    Ok(found)
}

/// The running node that commands use without `--url`: the one on the default port, else the only one.
///
/// # Errors
/// If the folder cannot be read.
pub fn default_url(state_dir: Option<&Path>) -> Result<Option<String>> {
    let running: Vec<Node> = status(state_dir)?.into_iter().filter(|s| s.running).map(|s| s.node).collect();
    let chosen = match running.iter().find(|n| n.port == DEFAULT_PORT) {
        Some(node) => Some(node),
        None if running.len() == 1 => running.first(),
        None => None,
    };
    Ok(chosen.map(|n| n.url.clone()))
}

/// Stops the node on a port, or all nodes, that `up` started; gives those that were running. Nothing to stop is
/// no error. Their data stays.
///
/// # Errors
/// If one cannot be stopped.
pub fn down(state_dir: Option<&Path>, port: Option<u16>) -> Result<Vec<Node>> {
    let places = Places::find(state_dir)?;
    if !places.root.is_dir() {
        return Ok(Vec::new());
    }
    let _guard = lock(&places, &NoProgress)?;
    let mut stopped = Vec::new();
    for port in ports(&places)?.into_iter().filter(|p| port.is_none_or(|only| only == *p)) {
        let Some(node) = read(&places, port)? else { continue };
        let alive = node.handle.is_alive();
        node.handle.stop()?;
        forget(&places, port)?;
        if alive {
            stopped.push(node);
        }
    }
    Ok(stopped)
}

/// The image to run, or `None` to assemble.
fn choose(options: &NodeOptions, progress: &dyn Progress, notes: &mut Vec<String>) -> Result<Option<String>> {
    let image = options.image.clone().unwrap_or_else(|| docker::official_image(&options.version));
    match options.engine {
        Engine::Docker if !docker::answers() => Err(Error::world(
            "No Docker engine answers",
            "install and start Docker (Debian: docker.io), or leave --engine out to assemble the node with mvn",
        )),
        Engine::Docker => docker::have_image(&image, progress).map(|()| Some(image)),
        Engine::Auto if docker::answers() => match docker::have_image(&image, progress) {
            Ok(()) => Ok(Some(image)),
            Err(error) => {
                notes.push(format!("{error}; assembling the node with mvn instead"));
                Ok(None)
            }
        },
        Engine::Auto | Engine::Assembled => Ok(None),
    }
}

fn start_process(options: &NodeOptions, places: &Places, progress: &dyn Progress) -> Result<Node> {
    let java = java::find_java()?;
    let home = assemble::assembled(places, &options.version, &java, progress)?;
    let folder = places.node(options.port);
    places::make_folder(&places.nodes(), None)?;
    let child = process::start(&process::Launch {
        home: &home,
        folder: &folder,
        java: &java,
        version: &options.version,
        port: options.port,
        heap: &options.heap,
    })?;
    let pid = child.id();
    let log = process::log_path(&folder);
    let identity = process::identity(pid).ok_or_else(|| {
        Error::world(
            format!("OpenSearch ended at once; its log ends with:\n{}", process::last_lines(&log, 12)),
            format!("the whole log is `{}`", log.display()),
        )
    })?;
    reap(child);
    Ok(node(options, Handle::Process { pid, identity }, log.display().to_string()))
}

/// Takes the child's exit status when it ends, so that a caller that lives on keeps no remains of it.
fn reap(mut child: std::process::Child) {
    // A thread that cannot be had costs nothing but those remains.
    let _ = std::thread::Builder::new().name("nsparse-node".to_owned()).spawn(move || child.wait());
}

fn start_container(options: &NodeOptions, image: &str) -> Result<Node> {
    let id = docker::run(image, options.port, &options.heap)?;
    let log = format!("docker logs {}", id.get(..12).unwrap_or(&id));
    Ok(node(options, Handle::Container { id, image: image.to_owned() }, log))
}

fn node(options: &NodeOptions, handle: Handle, log: String) -> Node {
    Node {
        url: format!("http://127.0.0.1:{}", options.port),
        port: options.port,
        version: options.version.clone(),
        heap: options.heap.clone(),
        handle,
        log,
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
    }
}

/// Refuses a port on which something listens already.
fn check_port(port: u16) -> Result<()> {
    TcpListener::bind(("127.0.0.1", port)).map(drop).map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => Error::usage(
            format!("Port {port} is in use by something that `nsparse cluster up` did not start"),
            format!("give another --port; or, if it is a cluster of yours, use it with --url http://127.0.0.1:{port}"),
        ),
        _ => Error::usage(format!("Port {port} cannot be used: {e}"), "give another --port, above 1023"),
    })
}

/// A client that gives up soon, for asking whether somebody is there.
fn probe(url: &str) -> Result<Cluster> {
    let config = ClusterConfig { timeout: Duration::from_secs(5), ..ClusterConfig::new(url) };
    Cluster::connect_with(&config, RetryPolicy { retries: 0, ..RetryPolicy::default() })
}

/// Whether the node answers and can take indexes.
fn is_ready(cluster: &Cluster) -> Result<()> {
    let path = "/_cluster/health?wait_for_status=yellow&timeout=2s";
    cluster.request(Method::Get, path, Body::None).map(drop)
}

/// Polls until the node answers, while watching that it lives.
fn wait_until_ready(node: &Node, patience: Duration, progress: &dyn Progress, cancel: &Cancel) -> Result<()> {
    let task = progress.start(&format!("Waiting for OpenSearch {} on {}", node.version, node.url), 0);
    let cluster = probe(&node.url)?;
    let begun = Instant::now();
    loop {
        cancel.check()?;
        let last = match is_ready(&cluster) {
            Ok(()) => return Ok(()),
            Err(error) => error.to_string(),
        };
        if !node.handle.is_alive() {
            return Err(Error::world(
                format!("OpenSearch ended while it started; its log ends with:\n{}", node.handle.last_lines(&node.log)),
                node.handle.whole_log(&node.log),
            ));
        }
        if begun.elapsed() > patience {
            return Err(Error::Deadline { what: format!("the node on {}", node.url), last, after: patience });
        }
        task.message(&format!("{} s", begun.elapsed().as_secs()));
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One `up` or `down` at a time over a folder; released when it is dropped.
fn lock(places: &Places, progress: &dyn Progress) -> Result<std::fs::File> {
    let path = places.root.join("lock");
    let failed = |e| CoreError::io("write", &path, e);
    let file = std::fs::File::create(&path).map_err(failed)?;
    if let Err(std::fs::TryLockError::WouldBlock) = file.try_lock() {
        let _task = progress.start("Waiting for another nsparse that starts or stops a node", 0);
        file.lock().map_err(failed)?;
    }
    Ok(file)
}

fn ports(places: &Places) -> Result<Vec<u16>> {
    let folder = places.nodes();
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CoreError::io("read", &folder, e).into()),
    };
    let port = |name: &str| name.strip_suffix(".json")?.parse().ok();
    let mut ports: Vec<u16> = entries.filter_map(|e| port(e.ok()?.file_name().to_str()?)).collect();
    ports.sort_unstable();
    Ok(ports)
}

/// The state files lie beside the nodes' folders, which belong to the nodes' user: what we kill by must not be
/// written by somebody else.
fn state_path(places: &Places, port: u16) -> PathBuf {
    places.nodes().join(format!("{port}.json"))
}

fn read(places: &Places, port: u16) -> Result<Option<Node>> {
    let path = state_path(places, port);
    if path.is_file() { Ok(Some(files::read_json(&path)?)) } else { Ok(None) }
}

fn write(places: &Places, node: &Node) -> Result<()> {
    places::make_folder(&places.nodes(), None)?;
    Ok(files::write_json(&state_path(places, node.port), node)?)
}

fn forget(places: &Places, port: u16) -> Result<()> {
    let path = state_path(places, port);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(CoreError::io("write", &path, e).into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;

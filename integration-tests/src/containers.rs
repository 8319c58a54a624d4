//! One OpenSearch in a container for all tests of a binary: started through testcontainers by the first that asks,
//! removed when the process ends, however it ends.

mod bridge;

use std::ffi::OsString;
use std::io::{Error, Result};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nsparse_opensearch::{Body, Cluster, ClusterConfig, Method, RetryPolicy};
use testcontainers::bollard::models::PortBinding;
use testcontainers::core::IntoContainerPort;
use testcontainers::runners::AsyncRunner;
use testcontainers::{ContainerAsync, GenericImage, ImageExt};

/// The image that is run, `name:tag`.
pub const IMAGE_VARIABLE: &str = "NSPARSE_OPENSEARCH_IMAGE";
/// The image where none is named.
pub const OFFICIAL_IMAGE: &str = "opensearchproject/opensearch:2.16.0";

/// The port that OpenSearch listens on in its container.
const PORT: u16 = 9200;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_mins(4);

/// A node in a container and the leash that removes it.
#[derive(Debug)]
pub struct TestContainer {
    /// A client for it.
    pub cluster: Cluster,
    _container: ContainerAsync<GenericImage>,
    _runtime: tokio::runtime::Runtime,
    _leash: Child,
}

/// The container of this test binary.
///
/// # Panics
/// If it cannot be started: a test that cannot run fails.
#[expect(clippy::panic, reason = "test support: the message is the point")]
pub fn shared() -> &'static TestContainer {
    static NODE: OnceLock<TestContainer> = OnceLock::new();
    NODE.get_or_init(|| start(&image()).unwrap_or_else(|e| panic!("no container of `{}`: {e}", image())))
}

/// The image in the environment, else the official one.
pub fn image() -> String {
    std::env::var(IMAGE_VARIABLE).unwrap_or_else(|_| OFFICIAL_IMAGE.to_owned())
}

fn start(image: &str) -> Result<TestContainer> {
    let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
    let host = std::env::var_os("DOCKER_HOST");
    let bridge = bridge::open()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    // An image of our own reads only the heap; the official one reads the others too.
    let request = GenericImage::new(name, tag)
        .with_exposed_port(PORT.tcp())
        .with_env_var("discovery.type", "single-node")
        .with_env_var("DISABLE_SECURITY_PLUGIN", "true")
        .with_env_var("DISABLE_INSTALL_DEMO_CONFIG", "true")
        .with_env_var("DISABLE_PERFORMANCE_ANALYZER_AGENT_CLI", "true")
        .with_env_var("OPENSEARCH_JAVA_OPTS", "-Xms512m -Xmx512m")
        .with_startup_timeout(PATIENCE)
        .with_host_config_modifier(|host| {
            // A free port, on the loopback address alone.
            let loopback = PortBinding { host_ip: Some("127.0.0.1".to_owned()), host_port: None };
            host.publish_all_ports = None;
            host.port_bindings = Some([(format!("{PORT}/tcp"), Some(vec![loopback]))].into());
        });
    let container = runtime.block_on(request.start()).map_err(Error::other)?;
    let leash = leash(container.id(), host, bridge)?;
    let port = runtime.block_on(container.get_host_port_ipv4(PORT.tcp())).map_err(Error::other)?;
    let url = format!("http://127.0.0.1:{port}");
    if let Err(error) = wait_until_ready(&url, || runtime.block_on(container.is_running()).is_ok_and(|runs| runs)) {
        let log = runtime.block_on(container.stdout_to_vec()).unwrap_or_default();
        return Err(Error::other(format!("{error}; its log:\n{}", String::from_utf8_lossy(&log))));
    }
    let cluster = Cluster::connect(&ClusterConfig::new(&url)).map_err(Error::other)?;
    Ok(TestContainer { cluster, _container: container, _runtime: runtime, _leash: leash })
}

/// Polls until the node answers with 200 and can take indexes, while its container runs.
fn wait_until_ready(url: &str, is_running: impl Fn() -> bool) -> Result<()> {
    let config = ClusterConfig { timeout: Duration::from_secs(5), ..ClusterConfig::new(url) };
    let probe = Cluster::connect_with(&config, RetryPolicy { retries: 0, ..RetryPolicy::default() });
    let probe = probe.map_err(Error::other)?;
    let path = "/_cluster/health?wait_for_status=yellow&timeout=2s";
    let begun = Instant::now();
    loop {
        let last = match probe.request(Method::Get, path, Body::None) {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => format!("status {}", answer.status),
            Err(error) => error.to_string(),
        };
        if !is_running() {
            return Err(Error::other("the container ended"));
        }
        if begun.elapsed() > PATIENCE {
            return Err(Error::other(format!("it did not answer within {} s: {last}", PATIENCE.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// A shell that waits for the end of its input, which the system closes when this process is gone, killed or not; then
/// it removes the container and the bridge's folder: what is held in a static is never dropped.
fn leash(id: &str, host: Option<OsString>, bridge: Option<tempfile::TempDir>) -> Result<Child> {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "read -r _; docker rm --force --volumes \"$1\"; [ -z \"$2\" ] || rm -rf -- \"$2\"",
        "leash",
        id,
    ]);
    command.arg(bridge.map(tempfile::TempDir::keep).unwrap_or_default());
    // The bridge is gone by then: the engine is asked itself.
    match host {
        Some(host) => command.env("DOCKER_HOST", host),
        None => command.env_remove("DOCKER_HOST"),
    };
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn()
}

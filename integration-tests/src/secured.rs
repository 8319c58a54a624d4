//! A real OpenSearch 2.19.4 with the real security plugin: TLS with an authority of the test's own, users, a read-only
//! role, client certificates and bearer tokens. One for all tests of a binary, ended when the process ends.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nsparse_core::NoProgress;
use nsparse_opensearch::node::{self, Assembled};
use nsparse_opensearch::{Auth, Body, ClientCertificate, Cluster, ClusterConfig, Method, RetryPolicy};
use serde_json::{Value, json};

use crate::node::{free_port, leash};

const VERSION: &str = "2.19.4";
const PLUGIN: &str = "org.opensearch.plugin:opensearch-security:2.19.4.0:zip";
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy";
/// How long the node may take.
const PATIENCE: Duration = Duration::from_mins(4);
/// With what bearer tokens are signed (HS256).
const TOKEN_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Who may do everything.
pub const INDEXER: &str = "indexer";
/// Its password.
pub const INDEXER_PASSWORD: &str = "Planted-Pa55 word/4711";
/// Who may read documents and nothing else: as a user, as the subject of a certificate and of a token.
pub const READER: &str = "reader";
/// Its password.
pub const READER_PASSWORD: &str = "Planted-Qb66 word/4712";

/// Who may do what docs/operations.md lists for deploying and ingesting without models, on indexes `listed*`.
pub const DEPLOYER: &str = "deployer";
/// Its password.
pub const DEPLOYER_PASSWORD: &str = "Planted-Rc77 word/4713";

/// The node, and what belongs to its users.
#[derive(Debug)]
pub struct SecuredNode {
    /// `https://localhost:…`.
    pub url: String,
    /// The authority that signed the node's certificate.
    pub ca: PathBuf,
    /// The reader's certificate.
    pub certificate: ClientCertificate,
    /// A bearer token of the reader.
    pub token: String,
    /// A client of the indexer.
    pub cluster: Cluster,
    _leash: Child,
}

/// The node of this test binary.
///
/// # Panics
/// If it cannot be started: a test that cannot run fails.
#[expect(clippy::panic, reason = "test support: the message is the point")]
pub fn shared() -> &'static SecuredNode {
    static NODE: OnceLock<SecuredNode> = OnceLock::new();
    NODE.get_or_init(|| start().unwrap_or_else(|e| panic!("no secured node for the tests: {e}")))
}

type Outcome<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn start() -> Outcome<SecuredNode> {
    let assembled = node::assembled(VERSION, None, &NoProgress)?;
    let home = with_plugin(&assembled)?;
    let port = free_port()?;
    let root = home.parent().ok_or("the server lies in no folder")?;
    let folder = root.join("secured").join(port.to_string());
    for name in ["config", "data", "logs", "tmp"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let config = folder.join("config");
    certificates(&config)?;
    configure(&home, &folder, port)?;
    if let Some(uid) = assembled.uid {
        run(Command::new("chown").arg("-R").arg(format!("{uid}:{uid}")).arg(&folder))?;
    }
    let log = folder.join("console.log");
    let out = std::fs::File::create(&log)?;
    let mut command = Command::new("bash");
    command
        .arg(home.join("bin/opensearch"))
        .current_dir(&folder)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .env("OPENSEARCH_JAVA_HOME", &assembled.java_home)
        .env("OPENSEARCH_PATH_CONF", &config)
        .env("OPENSEARCH_TMPDIR", folder.join("tmp"))
        .env("HOME", &folder)
        .process_group(0);
    for name in ["JAVA_HOME", "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "OPENSEARCH_HOME", "OPENSEARCH_JAVA_OPTS"] {
        command.env_remove(name);
    }
    if let Some(uid) = assembled.uid {
        command.uid(uid).gid(uid);
    }
    let mut child = command.spawn()?;
    let leash = leash(child.id(), &log)?;
    let url = format!("https://localhost:{port}");
    let own = |name: &str| ClientCertificate {
        certificate: config.join(format!("{name}.pem")),
        key: config.join(format!("{name}.key")),
    };
    let base = ClusterConfig { ca: Some(config.join("ca.pem")), ..ClusterConfig::new(&url) };
    let admin =
        ClusterConfig { client_certificate: Some(own("admin")), timeout: Duration::from_secs(30), ..base.clone() };
    let once = RetryPolicy { retries: 0, ..RetryPolicy::default() };
    users(&Cluster::connect_with(&admin, once)?, &mut child, &log)?;
    let auth = Auth::Basic { user: INDEXER.to_owned(), password: INDEXER_PASSWORD.into() };
    let cluster = Cluster::connect_with(&ClusterConfig { auth, ..base.clone() }, once)?;
    wait(&mut child, &log, || cluster.get("/_cluster/health?wait_for_status=yellow&timeout=2s").map(drop))?;
    let ca = config.join("ca.pem");
    Ok(SecuredNode { url, ca, certificate: own(READER), token: token(&config, READER)?, cluster, _leash: leash })
}

/// A copy of the server, its files shared by links, with the security plugin in it; kept for the next time.
fn with_plugin(assembled: &Assembled) -> Outcome<PathBuf> {
    let root = assembled.home.parent().ok_or("the server lies in no folder")?;
    let home = root.join(format!("opensearch-{VERSION}-secured"));
    // Two test binaries at once: one makes it, the other waits.
    let lock = std::fs::File::create(root.join("secured.lock"))?;
    lock.lock()?;
    if home.is_dir() {
        return Ok(home);
    }
    let work = tempfile::Builder::new().prefix(".secured-").tempdir_in(root)?;
    let server = work.path().join("server");
    run(Command::new("cp").arg("-al").arg(&assembled.home).arg(&server))?;
    let jars = work.path().join("jars");
    run(Command::new("mvn")
        .current_dir(work.path())
        .env("JAVA_HOME", &assembled.java_home)
        .args(["-B", "-q", COPY])
        .arg(format!("-Dartifact={PLUGIN}"))
        .arg(format!("-DoutputDirectory={}", jars.display())))?;
    let zip = std::fs::read_dir(&jars)?.next().ok_or("mvn copied nothing")??.path();
    zip::ZipArchive::new(std::fs::File::open(zip)?)?.extract(server.join("plugins/opensearch-security"))?;
    run(Command::new("chmod").args(["-R", "a+rX"]).arg(&server))?;
    std::fs::rename(&server, &home)?;
    Ok(home)
}

/// An authority of our own, and with it the certificates of the node, the administrator and the reader.
fn certificates(folder: &Path) -> Outcome<()> {
    let script = r#"set -e
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj "/O=nsparse tests/CN=own authority" \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign
printf '%s\n' basicConstraints=CA:FALSE keyUsage=digitalSignature,keyEncipherment extendedKeyUsage=serverAuth,clientAuth \
  subjectAltName=DNS:localhost > extensions
for name in node admin reader; do
  openssl req -newkey rsa:2048 -nodes -keyout $name.key -out $name.csr -subj "/O=nsparse tests/CN=$name"
  openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out $name.pem
done"#;
    run(Command::new("sh").args(["-c", script]).current_dir(folder))
}

fn configure(home: &Path, folder: &Path, port: u16) -> Outcome<()> {
    let (config, shown) = (folder.join("config"), folder.display().to_string());
    let mut settings = format!(
        "cluster.name: nsparse-secured\nnode.name: secured\ndiscovery.type: single-node\nnetwork.host: 127.0.0.1\n\
         http.port: {port}\npath.data: {shown}/data\npath.logs: {shown}/logs\n\
         cluster.routing.allocation.disk.threshold_enabled: false\n\
         plugins.security.allow_default_init_securityindex: true\nplugins.security.ssl.http.enabled: true\n\
         plugins.security.ssl.transport.enforce_hostname_verification: false\n\
         plugins.security.authcz.admin_dn: [\"CN=admin,O=nsparse tests\"]\n\
         plugins.security.nodes_dn: [\"CN=node,O=nsparse tests\"]\n"
    );
    for layer in ["transport", "http"] {
        let _ = write!(
            settings,
            "plugins.security.ssl.{layer}.pemcert_filepath: node.pem\n\
             plugins.security.ssl.{layer}.pemkey_filepath: node.key\n\
             plugins.security.ssl.{layer}.pemtrustedcas_filepath: ca.pem\n"
        );
    }
    std::fs::write(config.join("opensearch.yml"), settings)?;
    let options = std::fs::read_to_string(home.join("config/jvm.options"))?
        .replace("-Xms1g", "-Xms512m")
        .replace("-Xmx1g", "-Xmx512m")
        .replace("HeapDumpPath=data", &format!("HeapDumpPath={shown}/tmp"))
        .replace("=logs/", &format!("={shown}/logs/"));
    std::fs::write(config.join("jvm.options"), options)?;
    std::fs::copy(home.join("config/log4j2.properties"), config.join("log4j2.properties"))?;
    let security = config.join("opensearch-security");
    std::fs::create_dir_all(&security)?;
    for entry in std::fs::read_dir(home.join("plugins/opensearch-security/config"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), security.join(entry.file_name()))?;
    }
    // None of the plugin's demonstration users.
    for (name, kind) in [("internal_users", "internalusers"), ("roles_mapping", "rolesmapping")] {
        let text = json!({"_meta": {"type": kind, "config_version": 2}}).to_string();
        std::fs::write(security.join(format!("{name}.yml")), text)?;
    }
    let domain = |order: u32, http: Value, backend: &str| {
        json!({"http_enabled": true, "transport_enabled": false, "order": order, "http_authenticator": http,
               "authentication_backend": {"type": backend}})
    };
    let key = openssl(&config, &["base64", "-A"], TOKEN_KEY.as_bytes())?;
    let ways = json!({"_meta": {"type": "config", "config_version": 2}, "config": {"dynamic": {
        "http": {"anonymous_auth_enabled": false},
        "authc": {
            "jwt": domain(0, json!({"type": "jwt", "challenge": false,
                                    "config": {"signing_key": key, "subject_key": "sub"}}), "noop"),
            "clientcert": domain(2, json!({"type": "clientcert", "challenge": false,
                                           "config": {"username_attribute": "cn"}}), "noop"),
            "basic": domain(4, json!({"type": "basic", "challenge": true}), "intern")
        }
    }}});
    // JSON is YAML.
    std::fs::write(security.join("config.yml"), ways.to_string())?;
    Ok(())
}

/// Users, their roles, and who has which; each request is repeated until the plugin has read its configuration.
fn users(admin: &Cluster, child: &mut Child, log: &Path) -> Outcome<()> {
    let reads = json!({"cluster_permissions": ["cluster:monitor/main"],
                       "index_permissions": [{"index_patterns": ["*"], "allowed_actions": ["read"]}]});
    let deploys = json!({
        "cluster_permissions": ["cluster:monitor/*", "cluster:admin/ingest/pipeline/*", "cluster:admin/search/pipeline/*",
                                "indices:data/write/bulk", "indices:data/read/*"],
        "index_permissions": [{"index_patterns": ["listed*"],
                               "allowed_actions": ["indices:admin/*", "indices:monitor/*", "indices:data/*"]},
                              {"index_patterns": ["*"], "allowed_actions": ["indices:admin/aliases/get"]}]
    });
    for (path, body) in [
        ("internalusers/deployer", json!({"password": DEPLOYER_PASSWORD})),
        ("roles/deployer", deploys),
        ("rolesmapping/deployer", json!({"users": [DEPLOYER]})),
        ("internalusers/indexer", json!({"password": INDEXER_PASSWORD, "backend_roles": ["admin"]})),
        ("internalusers/reader", json!({"password": READER_PASSWORD})),
        ("roles/reader", reads),
        ("rolesmapping/all_access", json!({"backend_roles": ["admin"]})),
        ("rolesmapping/reader", json!({"users": [READER]})),
    ] {
        let path = format!("/_plugins/_security/api/{path}");
        wait(child, log, || admin.request(Method::Put, &path, Body::Json(body.clone())).map(drop))?;
    }
    Ok(())
}

/// Repeats until it is so.
fn wait(child: &mut Child, log: &Path, mut so: impl FnMut() -> nsparse_opensearch::Result<()>) -> Outcome<()> {
    let begun = Instant::now();
    loop {
        let Err(error) = so() else { return Ok(()) };
        let ended = child.try_wait()?;
        if ended.is_some() || begun.elapsed() > PATIENCE {
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(12).collect();
            let tail = tail.into_iter().rev().collect::<Vec<_>>().join("\n");
            return Err(format!("the node ({ended:?}) does not answer: {error}; its log ends with:\n{tail}").into());
        }
        std::thread::park_timeout(Duration::from_millis(200));
    }
}

/// A bearer token (RFC 7519) signed with [`TOKEN_KEY`].
fn token(folder: &Path, subject: &str) -> Outcome<String> {
    let encode = |bytes: &[u8]| -> Outcome<String> {
        let text = openssl(folder, &["base64", "-A"], bytes)?;
        Ok(text.replace('+', "-").replace('/', "_").trim_end_matches('=').to_owned())
    };
    let head = encode(br#"{"alg":"HS256","typ":"JWT"}"#)?;
    let claims = encode(json!({"sub": subject, "exp": 4_102_444_800_u64}).to_string().as_bytes())?;
    let signed = format!("{head}.{claims}");
    let key = format!("key:{TOKEN_KEY}");
    let dgst = ["dgst", "-sha256", "-mac", "HMAC", "-macopt", &key, "-binary"];
    let signature = encode(&openssl_bytes(folder, &dgst, signed.as_bytes())?)?;
    Ok(format!("{signed}.{signature}"))
}

fn openssl(folder: &Path, arguments: &[&str], input: &[u8]) -> Outcome<String> {
    Ok(String::from_utf8(openssl_bytes(folder, arguments, input)?)?)
}

fn openssl_bytes(folder: &Path, arguments: &[&str], input: &[u8]) -> Outcome<Vec<u8>> {
    let file = folder.join("input");
    std::fs::write(&file, input)?;
    let mut command = Command::new("openssl");
    let output = command.args(arguments).stdin(std::fs::File::open(&file)?).output()?;
    std::fs::remove_file(&file)?;
    if output.status.success() { Ok(output.stdout) } else { Err(format!("openssl {arguments:?} failed").into()) }
}

fn run(command: &mut Command) -> Outcome<()> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Err(format!("{command:?} failed: {text}").into())
}

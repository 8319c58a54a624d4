//! How the program reaches a cluster: flags, environment, profiles, secrets, proxies, several nodes; against small
//! servers that write down what they were sent.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use nsparse_integration_tests::cli::{Nsparse, wait_until};

/// A server that answers as a bare OpenSearch 2.16.0, and keeps the heads of all requests, in lower case but for what
/// follows a name.
struct Capture {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Capture {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heads);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut reader = BufReader::new(stream.unwrap());
                let (mut head, mut length) = (String::new(), 0);
                loop {
                    let mut line = String::new();
                    // A connection that was opened and not used.
                    if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    head += &line;
                }
                let mut body = vec![0; length];
                if head.is_empty() || reader.read_exact(&mut body).is_err() {
                    continue;
                }
                let first = head.lines().next().unwrap().to_owned();
                kept.lock().unwrap().push(head);
                let body = if first.contains("_cat/plugins") {
                    "[]".to_owned()
                } else {
                    r#"{"status":"green","cluster_name":"c","cluster_uuid":"u","version":{"distribution":"opensearch","number":"2.16.0"}}"#
                        .to_owned()
                };
                let status = if first.starts_with("CONNECT") { "403 Forbidden" } else { "200 OK" };
                let answer = format!(
                    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = reader.get_mut().write_all(answer.as_bytes());
            }
        });
        Self { url, heads }
    }

    /// The value of a header in the first request.
    fn header(&self, name: &str) -> Option<String> {
        let heads = self.heads.lock().unwrap();
        let find = |line: &str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        };
        heads.first()?.lines().skip(1).find_map(find)
    }

    fn first_line(&self) -> String {
        self.heads.lock().unwrap().first().and_then(|h| h.lines().next()).unwrap_or_default().to_owned()
    }

    fn count(&self) -> usize {
        self.heads.lock().unwrap().len()
    }
}

fn program() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

/// Runs the doctor, loudly; nothing that it prints holds `planted`.
fn doctor(nsparse: &Nsparse, arguments: &str, code: i32) -> String {
    let outcome = nsparse.run(&format!("doctor {arguments}"));
    let all = format!("{}\n{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.code, Some(code), "{arguments}: {all}");
    assert!(!all.contains("planted"), "{all}");
    all
}

fn secret(nsparse: &Nsparse, name: &str, text: &str) -> String {
    nsparse.write(name, text);
    nsparse.path(name).display().to_string()
}

#[test]
fn each_way_to_prove_who_one_is_arrives() {
    let mut nsparse = program();
    nsparse.set("NSPARSE_LOG", "trace");
    let sent = |nsparse: &Nsparse, arguments: &str| {
        let server = Capture::start();
        doctor(nsparse, &format!("--url {} {arguments}", server.url), 0);
        server.header("authorization").unwrap_or_default()
    };
    assert_eq!(sent(&nsparse, ""), "");
    let file = secret(&nsparse, "key", "planted-key\n");
    assert_eq!(sent(&nsparse, &format!("--api-key-file {file}")), "ApiKey planted-key");
    assert_eq!(sent(&nsparse, &format!("--bearer-token-file {file}")), "Bearer planted-key");
    // base64 of `me:planted-key`.
    assert_eq!(sent(&nsparse, &format!("--user me --password-file {file}")), "Basic bWU6cGxhbnRlZC1rZXk=");
    nsparse.set("NSPARSE_API_KEY", "planted-env");
    assert_eq!(sent(&nsparse, ""), "ApiKey planted-env");
    nsparse.set("NSPARSE_API_KEY", "");
    nsparse.set("NSPARSE_PROFILES", &secret(&nsparse, "p.yaml", "p: {bearer_token: planted-profile, timeout: 7}\n"));
    std::fs::set_permissions(nsparse.path("p.yaml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(sent(&nsparse, "--profile p"), "Bearer planted-profile");
}

#[cfg(feature = "aws")]
#[test]
fn requests_to_aws_are_signed() {
    let mut nsparse = program();
    nsparse.set("NSPARSE_LOG", "trace");
    nsparse.set("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE");
    nsparse.set("AWS_SECRET_ACCESS_KEY", "planted-secret");
    nsparse.set("AWS_SESSION_TOKEN", "planted-token");
    let server = Capture::start();
    let shown = doctor(&nsparse, &format!("--url {} --aws es --aws-region eu-west-1", server.url), 0);
    let line = server.header("authorization").unwrap();
    assert!(line.starts_with("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/"), "{line}");
    assert!(line.contains("/eu-west-1/es/aws4_request, SignedHeaders=host;x-amz-content-sha256;x-amz-date;"), "{line}");
    assert_eq!(server.header("x-amz-security-token").unwrap(), "planted-token");
    // Of the empty body.
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(server.header("x-amz-content-sha256").unwrap(), empty);
    assert!(shown.contains("managed by Amazon OpenSearch Service"), "{shown}");
}

#[test]
fn proxies_are_gone_through_and_their_passwords_kept() {
    let mut nsparse = program();
    nsparse.set("NSPARSE_LOG", "trace");
    nsparse.set("NO_PROXY", "");
    let key = secret(&nsparse, "key", "planted-key");
    // A proxy that was typed, for plain HTTP: it gets the whole address, and the cluster the key.
    let proxy = Capture::start();
    let to = format!("--url http://search.invalid:9200 --insecure-http --api-key-file {key}");
    doctor(&nsparse, &format!("{to} --proxy {}", proxy.url), 0);
    assert!(proxy.first_line().starts_with("GET http://search.invalid:9200/ "), "{}", proxy.first_line());
    assert_eq!(proxy.header("authorization").unwrap(), "ApiKey planted-key");

    // The environment's, with a password, for TLS: a tunnel is asked for, and the cluster's key stays out of it.
    for variable in ["HTTPS_PROXY", "NSPARSE_PROXY"] {
        let proxy = Capture::start();
        nsparse.set(variable, &proxy.url.replace("http://", "http://me:planted@"));
        let shown = doctor(&nsparse, &format!("--url https://search.invalid:9200 --api-key-file {key}"), 1);
        assert!(shown.contains("No answer from https://search.invalid:9200"), "{shown}");
        assert!(proxy.first_line().starts_with("CONNECT search.invalid:9200 "), "{}", proxy.first_line());
        // base64 of `me:planted`.
        assert_eq!(proxy.header("proxy-authorization").unwrap(), "Basic bWU6cGxhbnRlZA==");
        assert_eq!(proxy.header("authorization"), None);
        nsparse.set(variable, "");
    }

    // The environment's proxy does not stand between us and our own machine.
    let (proxy, node) = (Capture::start(), Capture::start());
    nsparse.set("HTTP_PROXY", &proxy.url);
    nsparse.set("ALL_PROXY", &proxy.url);
    doctor(&nsparse, &format!("--url {}", node.url), 0);
    assert_eq!(proxy.count(), 0);
    assert!(node.count() > 0);
}

#[test]
fn a_dead_node_among_several_is_passed_over() {
    let nsparse = program();
    let dead = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let (one, two) = (Capture::start(), Capture::start());
    let shown = doctor(&nsparse, &format!("--url {dead} --url {},{}", one.url, two.url), 0);
    assert!(one.count() > 0 && two.count() > 0, "{shown}");
}

#[test]
fn what_is_refused_says_why() {
    let mut nsparse = program();
    let mut shown = String::new();
    for arguments in [
        "--url http://search.example:9200",
        "--url http://me:planted@localhost:9200",
        "--url ftp://search.example",
        "--url http://localhost:1 --ca-cert ca.pem",
        "--url https://localhost:1 --client-cert c.pem",
        "--url https://localhost:1 --user me",
        "--url https://localhost:1 --user me --aws es",
        "--url https://localhost:1 --proxy http://me:planted@proxy:1",
        "--url https://localhost:1 --password-file nowhere",
        "--url https://localhost:1 --user me --password-file nowhere",
        "--profile nowhere",
    ] {
        let outcome = nsparse.run(&format!("search x --index y --model z {arguments}"));
        assert!(!outcome.stderr.contains("planted"), "{}", outcome.stderr);
        let _ = write!(shown, "$ {arguments}\n{}\n\n", nsparse.shown(&outcome));
    }
    nsparse.write("p.yaml", "p: {user: me, password: planted}\n");
    std::fs::set_permissions(nsparse.path("p.yaml"), std::fs::Permissions::from_mode(0o640)).unwrap();
    nsparse.set("NSPARSE_PROFILES", nsparse.path("p.yaml").to_str().unwrap());
    let outcome = nsparse.run("search x --index y --model z --profile p");
    assert!(!outcome.stderr.contains("planted"), "{}", outcome.stderr);
    let _ = write!(shown, "$ --profile p\n{}", nsparse.shown(&outcome));
    insta::assert_snapshot!("refused", shown);
}

#[test]
fn a_password_is_typed_at_the_terminal_and_not_shown() {
    let nsparse = program();
    let server = Capture::start();
    // `script` gives the program a terminal.
    let mut command =
        nsparse.through_shell("exec script -qec \"$*\" /dev/null", &["doctor", "--user", "me", "--url", &server.url]);
    let out = nsparse.path("terminal");
    let file = std::fs::File::create(&out).unwrap();
    let mut child = command.stdin(Stdio::piped()).stdout(file).spawn().unwrap();
    let shown = || std::fs::read_to_string(&out).unwrap_or_default();
    wait_until(&mut child, "it asked", || shown().contains("Password of me: "));
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"planted-typed\n").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "it did not end within a minute: {}", shown());
        std::thread::park_timeout(std::time::Duration::from_millis(20));
    }
    assert_eq!(server.header("authorization").unwrap(), "Basic bWU6cGxhbnRlZC10eXBlZA==", "{}", shown());
    assert!(!shown().contains("planted"), "{}", shown());
}

#[test]
fn without_a_cluster_the_doctor_looks_at_this_machine() {
    let nsparse = program();
    let outcome = nsparse.run("doctor");
    assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.stdout, outcome.stderr);
    assert!(outcome.stdout.contains("only this machine was looked at"), "{}", outcome.stdout);
    let report = nsparse.json("doctor");
    assert!(report["cluster"].is_null() && report["machine"].as_array().unwrap().len() > 5, "{report}");
    let refused = nsparse.run("doctor --fix --yes");
    assert!(refused.code == Some(2) && refused.stderr.contains("nothing to fix"), "{}", refused.stderr);
}

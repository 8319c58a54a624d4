//! Tests of the client that need no cluster: settings, the unwrapping of errors, what is told apart.

#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use super::*;
use serde_json::json;

fn config(url: &str) -> ClusterConfig {
    ClusterConfig { timeout: Duration::from_secs(5), ..ClusterConfig::new(url) }
}

#[test]
fn secrets_show_nowhere() {
    let mut config = config("https://admin:p%40ss@localhost:9200/prefix/");
    let cluster = Cluster::connect(&config).unwrap();
    assert_eq!(cluster.url(), "https://localhost:9200/prefix");
    let (_, auth) = urls::resolve(&config).unwrap();
    assert_eq!(auth, Auth::Basic { user: "admin".into(), password: "p@ss".into() });
    assert_eq!(format!("{auth:?}"), r#"Basic { user: "admin", password: *** }"#);
    assert_eq!(auth.who(false), "user `admin`");

    config.urls = vec!["ftp://admin:hidden@host".into()];
    assert!(!Cluster::connect(&config).unwrap_err().to_string().contains("hidden"));
    config.urls = vec!["http://admin:hidden@:99999".into()];
    assert!(!Cluster::connect(&config).unwrap_err().to_string().contains("hidden"));
}

#[test]
fn settings_win_over_the_address() {
    let mut config = config("http://a:b@localhost:1");
    config.auth = Auth::Bearer("t".into());
    let (urls, auth) = urls::resolve(&config).unwrap();
    assert_eq!((urls[0].as_str(), auth), ("http://localhost:1/", Auth::Bearer("t".into())));
}

#[test]
fn reasons_are_unwrapped_to_the_innermost() {
    let search = json!({"error": {"type": "search_phase_execution_exception", "reason": "all shards failed",
        "root_cause": [{"type": "query_shard_exception", "reason": "failed to create query"}],
        "caused_by": {"type": "x", "reason": "weight must be in (0, 64.0]"}}, "status": 400});
    assert_eq!(
        unwrap_reason(&search),
        ("query_shard_exception".into(), "failed to create query: weight must be in (0, 64.0]".into())
    );
    let plain = json!({"error": "no handler found for uri [/x]"});
    assert_eq!(unwrap_reason(&plain), (String::new(), "no handler found for uri [/x]".into()));
    assert_eq!(unwrap_reason(&Value::String("<html>\n 502 ".into())), (String::new(), "<html> 502".into()));
    assert_eq!(unwrap_reason(&Value::Null), (String::new(), String::new()));
}

#[test]
fn a_port_without_a_listener_is_refused() {
    // Bound and dropped: nothing listens there now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let cluster = Cluster::connect(&config(&format!("http://127.0.0.1:{port}"))).unwrap();
    let error = cluster.request(Method::Get, "/", Body::None).unwrap_err();
    assert!(matches!(error, Error::Unreachable { why: Unreachable::Refused, .. }), "{error:?}");
    assert!(error.is_transient());
    assert!(error.hint().unwrap().contains("nsparse cluster up"));
}

#[test]
fn an_unknown_host_is_a_wrong_address() {
    // `.invalid` never resolves (RFC 2606).
    let cluster = Cluster::connect(&config("https://search.invalid:9200")).unwrap();
    let error = cluster.request(Method::Get, "/", Body::None).unwrap_err();
    assert!(matches!(error, Error::Unreachable { why: Unreachable::Dns, .. }), "{error:?}");
    assert_eq!(error.fault(), nsparse_core::Fault::Usage);
    assert!(!error.is_transient());
}

#[test]
fn silence_is_a_timeout() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cluster =
        Cluster::connect(&ClusterConfig { timeout: Duration::from_millis(50), ..ClusterConfig::new(url) }).unwrap();
    let error = cluster.request(Method::Get, "/", Body::None).unwrap_err();
    assert!(matches!(error, Error::Unreachable { why: Unreachable::Timeout, .. }), "{error:?}");
}

#[test]
fn tls_to_a_plain_server_is_told() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut seen = [0u8; 16];
        stream.read_exact(&mut seen).unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    });
    let cluster = Cluster::connect(&config(&url)).unwrap();
    let error = cluster.request(Method::Get, "/", Body::None).unwrap_err();
    server.join().unwrap();
    assert!(matches!(error, Error::Unreachable { why: Unreachable::Tls, .. }), "{error:?}");
    assert!(error.hint().unwrap().contains("http://"));
}

/// A server that gives one status to every request, each on a connection of its own, and counts them.
fn server(status: u16) -> (String, Arc<std::sync::atomic::AtomicUsize>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut reader = BufReader::new(stream.unwrap());
            let mut length = 0;
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            reader.read_exact(&mut vec![0; length]).unwrap();
            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let answer = format!(
                "HTTP/1.1 {status} X\r\nlocation: https://u:hidden@else.example/?q\r\ncontent-length: 2\r\n\
                 connection: close\r\n\r\n{{}}"
            );
            reader.get_mut().write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, count)
}

fn count(of: &Arc<std::sync::atomic::AtomicUsize>) -> usize {
    of.load(std::sync::atomic::Ordering::SeqCst)
}

/// The address of a port on which nothing listens.
fn dead() -> String {
    format!("http://{}", std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

#[test]
fn a_dead_node_costs_no_request() {
    let (alive, asked) = server(200);
    let cluster = Cluster::connect(&config(&format!("{},{alive}", dead()))).unwrap();
    for _ in 0..6 {
        // Not even one that must not be repeated: it never arrived.
        cluster.post("/x/_doc", json!({"a": 1})).unwrap();
    }
    assert_eq!(count(&asked), 6);
}

#[test]
fn requests_go_round() {
    let ((a, first), (b, second)) = (server(200), server(200));
    let cluster = Cluster::connect(&config(&format!("{a},{b}"))).unwrap();
    for _ in 0..6 {
        cluster.get("/").unwrap();
    }
    assert_eq!((count(&first), count(&second)), (3, 3));
    assert_eq!(cluster.urls().collect::<Vec<_>>(), [a.as_str(), b.as_str()]);
}

#[test]
fn a_node_that_cannot_is_left_out_for_a_while() {
    for status in [502, 503, 504] {
        let ((bad, tried), (good, served)) = (server(status), server(200));
        let cluster = Cluster::connect(&config(&format!("{bad},{good}"))).unwrap();
        for _ in 0..5 {
            cluster.get("/").unwrap();
        }
        assert_eq!((count(&tried), count(&served)), (1, 5), "{status}");
    }
}

#[test]
fn what_may_have_arrived_is_not_sent_to_another_node() {
    let ((bad, tried), (good, served)) = (server(504), server(200));
    let cluster = Cluster::connect(&config(&format!("{bad},{good}"))).unwrap();
    let error = cluster.post("/x/_doc", json!({"a": 1})).unwrap_err();
    assert_eq!((error.status(), count(&tried), count(&served)), (Some(504), 1, 0));
}

#[test]
fn redirects_are_not_followed() {
    let (url, asked) = server(302);
    let error = Cluster::connect(&config(&url)).unwrap().get("/").unwrap_err();
    let message = error.to_string();
    assert!(message.contains("redirect (302)") && !message.contains("hidden"), "{message}");
    assert_eq!(count(&asked), 1);
}

#[test]
fn contradictions_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let (cert, plain) =
        (file("cert.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), file("x", "x"));
    let locked =
        file("locked.pem", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nhidden\n-----END ENCRYPTED PRIVATE KEY-----\n");
    let own = |certificate: &std::path::Path, key: &std::path::Path| {
        Some(ClientCertificate { certificate: certificate.to_owned(), key: key.to_owned() })
    };
    let https = || config("https://search.example");
    let refused = |config: ClusterConfig| {
        let error = Cluster::connect(&config).unwrap_err();
        assert_eq!(error.fault(), nsparse_core::Fault::Usage, "{error}");
        assert!(error.hint().is_some() && !error.to_string().contains("hidden"), "{error}");
        error.to_string()
    };
    let http = || config("http://localhost:1");
    assert!(refused(ClusterConfig { ca: Some(cert.clone()), ..http() }).contains("speaks no TLS"));
    assert!(refused(ClusterConfig { insecure: true, ..http() }).contains("speaks no TLS"));
    assert!(refused(ClusterConfig { client_certificate: own(&cert, &cert), ..http() }).contains("speaks no TLS"));
    assert!(refused(ClusterConfig { ca: Some(cert.clone()), insecure: true, ..https() }).contains("would do nothing"));
    assert!(refused(ClusterConfig { ca: Some(plain.clone()), ..https() }).contains("no certificate in it"));
    assert!(refused(ClusterConfig { client_certificate: own(&plain, &plain), ..https() }).contains("no PEM file"));
    assert!(
        refused(ClusterConfig { client_certificate: own(&cert, &plain), ..https() })
            .contains("no PEM file with a private key")
    );
    assert!(refused(ClusterConfig { client_certificate: own(&cert, &locked), ..https() }).contains("is encrypted"));
    let proxy = |p: &str| refused(ClusterConfig { proxy: Some(p.into()), ..https() });
    assert!(proxy("socks5://u:hidden@p").contains("not http or https"));
    assert!(proxy("http://u:hidden@:x").contains("cannot be used"));
    let auth = Auth::Basic { user: "a:b".into(), password: "hidden".into() };
    assert!(refused(ClusterConfig { auth, ..https() }).contains("holds a colon"));
}

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
    let (_, auth) = split_url(&config).unwrap();
    assert_eq!(auth, Auth::Basic { user: "admin".into(), password: "p@ss".into() });
    assert_eq!(format!("{auth:?}"), r#"Basic { user: "admin", password: *** }"#);
    assert_eq!(auth.who(), "user `admin`");

    config.url = "ftp://admin:hidden@host".into();
    assert!(!Cluster::connect(&config).unwrap_err().to_string().contains("hidden"));
    config.url = "http://admin:hidden@:99999".into();
    assert!(!Cluster::connect(&config).unwrap_err().to_string().contains("hidden"));
}

#[test]
fn settings_win_over_the_address() {
    let mut config = config("http://a:b@localhost:1");
    config.auth = Auth::Bearer("t".into());
    let (url, auth) = split_url(&config).unwrap();
    assert_eq!((url.as_str(), auth), ("http://localhost:1/", Auth::Bearer("t".into())));
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
    let cluster = Cluster::connect(&config("http://search.invalid:9200")).unwrap();
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

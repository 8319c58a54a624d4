//! The program against a real OpenSearch 2.19.4 with the real security plugin: TLS with an authority of its own, users,
//! a read-only role, client certificates, tokens; and secrets, which are found nowhere.
#![cfg(feature = "test-node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nsparse_integration_tests::cli::Nsparse;
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::secrets::Planted;
use nsparse_integration_tests::secured::{
    DEPLOYER, DEPLOYER_PASSWORD, INDEXER, INDEXER_PASSWORD, READER, READER_PASSWORD, shared,
};
use serde_json::{Value, json};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// One test at a time: some change settings of the whole cluster.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program with a profile `p` of these lines, and the sample collection, a small model and its package.
fn with_profile(lines: &[String]) -> Nsparse {
    let mut nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let mut text = format!("p:\n  url: {}\n  ca_cert: {}\n", shared().url, shared().ca.display());
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
    nsparse.write("profiles.yaml", &text);
    std::fs::set_permissions(nsparse.path("profiles.yaml"), std::fs::Permissions::from_mode(0o600)).unwrap();
    nsparse.set("NSPARSE_PROFILES", nsparse.path("profiles.yaml").to_str().unwrap());
    nsparse.set("NSPARSE_PROFILE", "p");
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.ok("export model --out package");
    nsparse
}

fn user(name: &str, password: &str) -> [String; 2] {
    [format!("user: {name}"), format!("password: \"{password}\"")]
}

fn refused(nsparse: &Nsparse, arguments: &str, code: i32) -> String {
    let outcome = nsparse.run(arguments);
    assert_eq!(outcome.code, Some(code), "{arguments}: {}\n{}", outcome.stdout, outcome.stderr);
    outcome.stderr
}

#[test]
fn everything_works_over_tls_with_a_user() {
    let _turn = turn();
    let nsparse = with_profile(&user(INDEXER, INDEXER_PASSWORD));
    nsparse.ok("deploy package --index secured-articles --deployment d.json");
    nsparse.ok("ingest --deployment d.json --model model --data set");
    let count = || shared().cluster.get("/secured-articles/_count").unwrap()["count"].as_u64();
    shared().cluster.post("/secured-articles/_refresh", Value::Null).unwrap();
    assert!(count().unwrap() > 10);
    let found = nsparse.json("search shard --deployment d.json --model model");
    assert!(!found["results"].as_array().unwrap().is_empty(), "{found}");
    nsparse.ok("undeploy d.json --delete-index");
    assert!(shared().cluster.find("/secured-articles").unwrap().is_none());
}

/// The rights that docs/operations.md lists are enough.
#[test]
fn the_rights_listed_are_enough_for_a_version_and_the_next() {
    let _turn = turn();
    let nsparse = with_profile(&user(DEPLOYER, DEPLOYER_PASSWORD));
    nsparse.ok("deploy package --alias listed --deployment d.json");
    nsparse.ok("ingest --deployment d.json --model model --data set");
    nsparse.ok("switch d.json");
    nsparse.ok("status d.json");
    let found = nsparse.json("search shard --index listed --model model");
    assert!(!found["results"].as_array().unwrap().is_empty(), "{found}");
    nsparse.ok("reencode --index listed --to listed-anew --model model");
    nsparse.ok("undeploy d.json --delete-index");
    shared().cluster.delete("/listed-anew").unwrap();
    // Elsewhere it may do nothing.
    let shown = refused(&nsparse, "deploy package --index other-index --deployment e.json", 2);
    assert!(shown.contains("no permissions for ["), "{shown}");
}

#[test]
fn who_is_not_let_in_is_told_why() {
    let _turn = turn();
    let wrong = with_profile(&user(INDEXER, "Planted-wrong"));
    let shown = refused(&wrong, "deploy package --index x", 2);
    assert!(shown.contains("does not let user `indexer` in: GET / was answered with 401"), "{shown}");

    let nobody = with_profile(&[]);
    assert!(refused(&nobody, "deploy package --index x", 2).contains("anonymous users"), "no user is no user");

    let token = with_profile(&[format!("bearer_token: {}x", shared().token)]);
    let shown = refused(&token, "deploy package --index x", 2);
    assert!(shown.contains("does not let this token in") && shown.contains("not expired"), "{shown}");
}

#[test]
fn the_nodes_certificate_has_to_be_trusted() {
    let _turn = turn();
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let url = &shared().url;
    let shown = refused(&nsparse, &format!("search x --index y --model z --url {url}"), 3);
    assert!(shown.contains("no secure connection") && shown.contains("--ca-cert FILE"), "{shown}");
    // By its address it has another name than its certificate says.
    let ca = shared().ca.display();
    let by_ip = url.replace("localhost", "127.0.0.1");
    let shown = refused(&nsparse, &format!("search x --index y --model z --url {by_ip} --ca-cert {ca}"), 3);
    assert!(shown.contains("no secure connection"), "{shown}");
    // Any certificate, as asked: the next hurdle is the missing user.
    let shown = refused(&nsparse, &format!("search x --index y --model z --url {url} --insecure"), 2);
    assert!(shown.contains("anonymous users"), "{shown}");
    let plain = url.replace("https", "http");
    let shown = refused(&nsparse, &format!("search x --index y --model z --url {plain}"), 3);
    assert!(shown.contains("--url"), "{shown}");
}

/// Three ways to be the reader.
fn readers() -> Vec<Nsparse> {
    let own = &shared().certificate;
    let certificate =
        [format!("client_cert: {}", own.certificate.display()), format!("client_key: {}", own.key.display())];
    vec![
        with_profile(&user(READER, READER_PASSWORD)),
        with_profile(&certificate),
        with_profile(&[format!("bearer_token: {}", shared().token)]),
    ]
}

#[test]
fn a_reader_searches_and_changes_nothing() {
    let _turn = turn();
    let indexer = with_profile(&user(INDEXER, INDEXER_PASSWORD));
    indexer.ok("deploy package --index secured-read --deployment d.json");
    indexer.ok("ingest --deployment d.json --model model --data set");
    shared().cluster.post("/secured-read/_refresh", Value::Null).unwrap();
    let expected = indexer.json("search shard --deployment d.json --model model");
    let count = shared().cluster.get("/secured-read/_count").unwrap()["count"].clone();
    for reader in readers() {
        reader.write("d.json", &String::from_utf8(indexer.read("d.json")).unwrap());
        let found = reader.json("search shard --deployment d.json --model model");
        assert_eq!(found["results"], expected["results"]);
        // What it may not ask is a problem of its status, not the end.
        let seen = reader.run("status d.json --json");
        assert_eq!(seen.code, Some(1), "{}", seen.stderr);
        let status = seen.json();
        assert_eq!(status["indexes"][0]["documents"], count, "{status}");
        let problems: Vec<&str> = status["problems"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
        for path in ["/_cluster/health", "/secured-read"] {
            assert!(problems.contains(&format!("this user may not ask for {path}").as_str()), "{status}");
        }
        let shown = refused(&reader, "deploy package --index secured-read-2 --deployment e.json", 2);
        assert!(shown.contains("This user may not list the cluster's plugins"), "{shown}");
        let shown = refused(&reader, "deploy package --index secured-read-2 --deployment e.json --side client", 2);
        assert!(shown.contains("no permissions for [indices:admin/get] and User [name=reader"), "{shown}");
        assert!(shown.contains("hint: have an administrator give the user a role"), "{shown}");
        let undone = reader.run("undeploy d.json --delete-index");
        assert_ne!(undone.code, Some(0), "{}", undone.stdout);
        let shown = undone.stdout + &undone.stderr;
        assert!(shown.contains("no permissions for"), "{shown}");
    }
    assert!(shared().cluster.find("/secured-read-2").unwrap().is_none());
    indexer.ok("undeploy d.json --delete-index");
}

#[test]
fn the_doctor_sees_a_blocked_cluster_and_mends_it() {
    let _turn = turn();
    let nsparse = with_profile(&user(INDEXER, INDEXER_PASSWORD));
    let name = "cluster.blocks.read_only_allow_delete";
    let set = |value: Value| shared().cluster.put("/_cluster/settings", json!({"persistent": {name: value}})).unwrap();
    let value = || {
        let all = shared().cluster.get("/_cluster/settings?flat_settings=true").unwrap();
        all["persistent"].get(name).cloned()
    };
    let healthy = nsparse.run("doctor --json");
    assert_eq!(healthy.json()["would_fail"], false, "{}", healthy.stdout);
    assert_eq!(healthy.code, Some(0));

    set(json!(true));
    let shown = nsparse.run("doctor");
    assert_eq!(shown.code, Some(1));
    assert!(shown.stdout.contains(&format!("FAIL  {name}")), "{}", shown.stdout);
    // Nobody is there to answer.
    assert!(refused(&nsparse, "doctor --fix", 2).contains("give --yes"));
    assert_eq!(value(), Some(json!("true")));

    let fixed = nsparse.run("doctor --fix --yes --undo-file undo.json --json");
    let report = fixed.json();
    assert_eq!((fixed.code, &report["would_fail"]), (Some(0), &json!(false)), "{}", fixed.stdout);
    assert_eq!(report["applied"]["changes"][0]["setting"], name);
    assert_eq!(value(), None);
    nsparse.ok("doctor --undo undo.json");
    assert_eq!(value(), Some(json!("true")));
    // The way back of an earlier fix is not overwritten.
    refused(&nsparse, "doctor --fix --yes --undo-file undo.json", 2);
    set(Value::Null);

    // A reader sees little; the doctor says so and goes on.
    let reader = with_profile(&user(READER, READER_PASSWORD));
    let report = reader.json("doctor");
    let findings = report["cluster"]["findings"].as_array().unwrap();
    assert!(findings.iter().any(|f| f["subject"] == "/_cluster/settings" && f["value"] == "not readable"), "{report}");
    // A wrong password is a finding, and the machine's part stands.
    let wrong = with_profile(&user(INDEXER, "Planted-wrong"));
    let outcome = wrong.run("doctor --json");
    assert_eq!(outcome.code, Some(1));
    let report = outcome.json();
    assert!(report["machine"].as_array().unwrap().len() > 5);
    assert!(report["cluster"]["findings"][0]["meaning"].as_str().unwrap().contains("401"), "{report}");
}

#[test]
fn secrets_are_found_nowhere() {
    let _turn = turn();
    let key = std::fs::read_to_string(&shared().certificate.key).unwrap();
    // `Basic` headers, and the key's first line.
    let planted = Planted::new([INDEXER_PASSWORD, READER_PASSWORD, "Planted-wrong 1", &shared().token])
        .also("aW5kZXhlcjpQbGFudGVk")
        .also("cmVhZGVyOlBsYW50ZWQ")
        .also(key.lines().nth(1).unwrap());
    let own = &shared().certificate;
    let certificate =
        [format!("client_cert: {}", own.certificate.display()), format!("client_key: {}", own.key.display())];
    let mut everyone = vec![
        with_profile(&user(INDEXER, INDEXER_PASSWORD)),
        with_profile(&user(READER, READER_PASSWORD)),
        with_profile(&user(INDEXER, "Planted-wrong 1")),
        with_profile(&certificate),
        with_profile(&[format!("bearer_token: {}", shared().token)]),
    ];
    // One from the environment, its password in the address.
    let mut last = with_profile(&[]);
    let address = shared().url.replace("https://", "https://indexer:Planted-Pa55%20word%2F4711@");
    last.set("NSPARSE_URL", &address);
    everyone.push(last);
    let mut served = 0;
    for (number, nsparse) in everyone.iter_mut().enumerate() {
        Planted::make_loud(nsparse);
        let index = format!("secured-secrets-{number}");
        let (mut seen, mut logged) = (0, 0);
        for arguments in [
            "doctor".to_owned(),
            "doctor --json".to_owned(),
            format!("deploy package --index {index} --deployment d.json"),
            "ingest --deployment d.json --model model --data set".to_owned(),
            "search shard --deployment d.json --model model --json".to_owned(),
            "eval --data set --method bm25 --engine opensearch".to_owned(),
            "undeploy d.json --delete-index".to_owned(),
        ] {
            let watched = planted.run(nsparse, &arguments);
            seen += watched.seen;
            logged += watched.loud;
            served += usize::from(watched.outcome.code == Some(0));
        }
        assert!(seen > 0, "{number}: the program was never seen in the process list");
        assert!(logged > 20, "{number}: the log is not loud");
        planted.check_files(&nsparse.path(""), &[&nsparse.path("profiles.yaml")]);
    }
    // The two indexers did everything, the others at least something.
    assert!(served >= 14 + 3, "{served}");
}

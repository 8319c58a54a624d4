//! The program against the stand-in for a cluster with ML Commons: a plan as it is read, two versions behind an alias,
//! and a deploy that is killed at every request.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::io::{BufRead as _, Write as _};

use nsparse_integration_tests::cli::{Nsparse, Outcome, signal, wait_until};
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::standin::{Contents, Options, Outage, StandIn};
use nsparse_opensearch::{Cluster, ClusterConfig};
use serde_json::{Value, json};

/// The program with two packages.
fn with_packages(url: &str) -> Nsparse {
    let mut nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.set("NSPARSE_URL", url);
    for (number, name) in [("1", "tiny"), ("2", "tiny2")] {
        write(&nsparse.path(&format!("model{number}")), &Shape::small(), 5).unwrap();
        nsparse.ok(&format!("export model{number} --out package{number} --name {name}"));
    }
    nsparse
}

fn standin() -> StandIn {
    of_version("2.16.0")
}

fn of_version(version: &'static str) -> StandIn {
    // Every document gets these weights; that is enough to be found by.
    let encode = std::sync::Arc::new(|_: &str| [("search".to_owned(), 1.0), ("engine".to_owned(), 0.5)].into());
    StandIn::start(Options { encode, lag: 0, version, ..Options::default() })
}

fn fill(standin: &StandIn, index: &str, count: usize) {
    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    for i in 0..count {
        cluster.put(&format!("/{index}/_doc/{i}"), json!({ "title": "search engine", "text": "index" })).unwrap();
    }
}

/// Hashes, sizes, ids and addresses are this run's own.
fn steady(text: &str) -> String {
    let mut out = String::new();
    for word in text.split_inclusive([' ', '\n', ',']) {
        let bare = word.trim_end_matches([' ', '\n', ',']);
        let end = &word[bare.len()..];
        let steady = if bare.ends_with('…') && bare.len() == 15 {
            "[hash]…"
        } else if bare.starts_with("http://127") {
            "[url]"
        } else if bare.starts_with("model----") || bare.starts_with("(model----") {
            "[id]"
        } else if bare.len() >= 4 && bare.chars().all(|c| c.is_ascii_digit()) {
            "[number]"
        } else {
            bare
        };
        out.push_str(steady);
        out.push_str(end);
    }
    out
}

#[test]
fn pruning_is_a_version_of_its_own_and_the_cluster_does_it_from_2_19() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    let refused = nsparse.run("deploy package1 --alias articles --prune max_ratio:0.1");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("from OpenSearch 2.19 on, and this is 2.16.0"), "{}", refused.stderr);
    assert!(refused.stderr.contains("--side query"), "{}", refused.stderr);
    assert_eq!(standin.contents(), Contents::default());

    nsparse.ok("deploy package1 --alias articles --side query");
    let with = "deploy package1 --alias articles --side query --prune max_ratio:0.1 --batch-size 8";
    nsparse.ok(with);
    assert_eq!(standin.contents().indexes, ["articles-v1", "articles-v2"]);
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    assert_eq!(file["indexing"], json!({ "batch_size": 8, "pruning": "max_ratio:0.1" }));
    assert!(file["others"][0].get("indexing").is_none());
    assert_eq!(nsparse.json(&format!("{with} --plan"))["changes_nothing"], true);
    // How many documents are encoded at once makes no version.
    assert_eq!(nsparse.json(&with.replace(" 8", " 16"))["deployment"]["number"], 2);
}

#[test]
fn a_package_url_with_a_password_is_refused_and_not_repeated() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    for plan in ["", " --plan", " --plan --json"] {
        let url = "https://me:hidden@models.example/tiny";
        let refused = nsparse.run(&format!("deploy package1 --index articles --package-url {url}{plan}"));
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains("--package-url holds a user or password"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("hidden") && !refused.stdout.contains("hidden"));
    }
    assert_eq!(standin.contents(), Contents::default());
}

#[test]
fn other_shards_and_replicas_than_the_index_has_are_told() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    nsparse.ok("deploy package1 --index articles --shards 2");
    let again = "deploy package1 --index articles --shards 3 --replicas 2";
    let plan = nsparse.json(&format!("{again} --plan"));
    assert_eq!(plan["changes_nothing"], true);
    let notes = plan["plan"]["notes"].as_array().unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].as_str().unwrap().contains("number of shards, 2, not 3: it cannot be changed"), "{notes:?}");
    let told = notes[1].as_str().unwrap();
    assert!(told.contains("number of replicas, 1, not 2"), "{told}");
    assert!(told.contains("PUT /articles/_settings {\"index.number_of_replicas\": 2}"), "{told}");
    let outcome = nsparse.ok(again);
    assert!(outcome.stderr.contains("keeps its number of shards, 2"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("keeps its number of replicas, 1"), "{}", outcome.stderr);
}

#[test]
fn a_batch_size_is_refused_before_2_16() {
    let standin = of_version("2.15.0");
    let nsparse = with_packages(standin.url());
    for plan in ["", " --plan"] {
        let refused = nsparse.run(&format!("deploy package1 --index articles --batch-size 8{plan}"));
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("a batch size from OpenSearch 2.16 on, and this is 2.15.0"),
            "{}",
            refused.stderr
        );
        assert_eq!(standin.contents(), Contents::default());
    }
    // It is the cluster's pipeline that has it.
    nsparse.ok("deploy package1 --index articles --batch-size 8 --side query");
}

#[test]
fn titles_and_texts_stand_in_the_fields_that_deploy_names() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    let refused = nsparse.run("deploy package1 --index articles --title-field text");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    nsparse.ok("deploy package1 --index articles --title-field headline --text-field body");
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    assert_eq!(file["fields"], json!({ "title": "headline", "text": "body", "vector": "embedding" }));
    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    let pipeline = cluster.get("/_ingest/pipeline/articles-ingest").unwrap();
    let value = pipeline.pointer("/articles-ingest/processors/0/set/value").unwrap();
    assert_eq!(value, "{{{headline}}} {{{body}}}");
    // Once named they are known from the file.
    assert_eq!(nsparse.json("deploy package1 --index articles --plan")["changes_nothing"], true);
    nsparse.ok("undeploy");

    // What nsparse encodes is the same text under other names.
    nsparse.ok("deploy package1 --index articles --side query --title-field headline --text-field body");
    nsparse.ok("deploy package1 --index plain --side query --deployment plain.json");
    nsparse.write("named.jsonl", "{\"_id\":\"1\",\"headline\":\"search engine\",\"body\":\"index\"}\n");
    nsparse.write("plain.jsonl", "{\"_id\":\"1\",\"title\":\"search engine\",\"text\":\"index\"}\n");
    nsparse.ok("ingest named.jsonl --deployment deployment.json --model model1");
    nsparse.ok("ingest plain.jsonl --deployment plain.json --model model1");
    let vector = |index: &str| standin.document(index, "1").unwrap()["embedding"].clone();
    assert_eq!(vector("articles"), vector("plain"));
    let found = nsparse.json("search engine --method bm25 --deployment deployment.json");
    assert_eq!(found["results"][0]["title"], "search engine", "{found}");
}

#[test]
fn two_versions_behind_an_alias_as_an_operator_sees_them() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    let mut shown = String::new();
    let mut run = |arguments: &str| {
        let outcome = nsparse.run(arguments);
        writeln!(shown, "$ nsparse {arguments}\n{}", steady(&nsparse.shown(&outcome))).unwrap();
        outcome
    };
    run("deploy package1 --alias articles --plan");
    run("deploy package1 --alias articles");
    run("deploy package1 --plan");
    fill(&standin, "articles-v1", 3);
    run("deploy package2 --plan");
    run("deploy package2");
    let refused = run("switch");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    fill(&standin, "articles-v2", 3);
    run("switch");
    run("switch");
    run("rollback");
    run("switch --to 2");
    run("prune-models");
    run("undeploy --version 1 --delete-index");
    run("undeploy --delete-index");
    insta::assert_snapshot!("operator", shown);
    assert_eq!(standin.contents(), Contents::default());
}

#[test]
fn what_programs_read() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    let plan = nsparse.json("deploy package1 --alias articles --plan");
    assert_eq!((&plan["changes_nothing"], &plan["plan"]["number"]), (&json!(false), &json!(1)));
    assert_eq!(
        plan["plan"]["items"][0],
        json!({ "action": "create", "kind": "model group", "name": "nsparse-articles", "detail": "" })
    );
    let deployed = nsparse.json("deploy package1 --alias articles");
    assert_eq!(deployed["deployment"]["index"], "articles-v1");
    assert_eq!(nsparse.json("deploy package1 --plan")["changes_nothing"], true);
    fill(&standin, "articles-v1", 2);
    let switched = nsparse.json("switch");
    assert_eq!((&switched["changed"], &switched["to_documents"]), (&json!(false), &json!(2)));
    assert_eq!(nsparse.json("prune-models")["unused"], 0);
    // Flags that contradict each other are wrong use.
    assert_eq!(nsparse.run("deploy package1 --alias a --index b").code, Some(2));
    assert_eq!(nsparse.run("deploy package1 --alias a --pipeline b").code, Some(2));
}

#[test]
fn status_shows_what_is_there_and_what_is_wrong() {
    let standin = standin();
    let nsparse = with_packages(standin.url());
    nsparse.ok("deploy package1 --alias articles");
    fill(&standin, "articles-v1", 3);
    let shown = |outcome: &Outcome| steady(&nsparse.shown(outcome));
    insta::assert_snapshot!("status", shown(&nsparse.ok("status")));
    let status = nsparse.json("status --index articles");
    assert_eq!((&status["indexes"][0]["documents"], &status["indexes"][0]["served"]), (&json!(3), &json!(true)));
    assert_eq!(status["models"].as_array().unwrap().len(), 2, "{status}");
    assert_eq!(status["problems"], json!([]));

    // Watched without a terminal: a line a look, rates from the second on.
    let mut command = nsparse.command(["status", "--watch", "--every", "0.1"]);
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> = std::io::BufReader::new(child.stdout.take().unwrap())
        .lines()
        .take(3)
        .map(|line| line.unwrap())
        .inspect(|_| fill(&standin, "articles-v1", 3))
        .collect();
    signal(&child, "TERM");
    child.wait().unwrap();
    assert!(lines[0].starts_with("articles-v1: 3 documents, 3 indexed at 2.0 ms"), "{lines:?}");
    assert!(lines[2].contains(" indexed/s, "), "{lines:?}");

    // A cluster that is away for a while is a problem, not the end.
    for (json, works, problem) in [(None, "articles-v1: ", "problem: "), (Some("--json"), "{\"at\":", "{\"error\":\"")]
    {
        let mut command = nsparse.command(["status", "--watch", "--every", "0.1"].into_iter().chain(json));
        let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap());
        let mut until = |start: &str| lines.find(|line| line.starts_with(start)).unwrap();
        until(works);
        standin.out_of_reach(0, Outage::Unavailable);
        assert!(until(problem).contains("503"));
        standin.mend();
        until(works);
        signal(&child, "TERM");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    // On a terminal the same place is drawn anew, and `q` ends it.
    let script = "exec script -qec \"stty rows 30 cols 100; $*\" /dev/null";
    let mut command = nsparse.through_shell(script, &["status", "--watch", "--every", "0.1"]);
    let out = nsparse.path("terminal");
    let file = std::fs::File::create(&out).unwrap();
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(file).spawn().unwrap();
    let drawn = || String::from_utf8_lossy(&std::fs::read(&out).unwrap_or_default()).into_owned();
    wait_until(&mut child, "a second look", || drawn().contains(" indexed/s"));
    standin.out_of_reach(0, Outage::Unavailable);
    wait_until(&mut child, "the outage", || drawn().contains("Problem: "));
    // A request that hangs keeps nobody from ending it.
    standin.out_of_reach(0, Outage::Silent { works: false });
    child.stdin.as_mut().unwrap().write_all(b"q").unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while child.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "`q` did not end it: {}", drawn());
        std::thread::park_timeout(std::time::Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0), "{}", drawn());
    let drawn = drawn();
    // The other screen, without a cursor, and back.
    for sequence in ["\u{1b}[?1049h", "\u{1b}[?25l", "\u{1b}[?25h", "\u{1b}[?1049l"] {
        assert!(drawn.contains(sequence), "{sequence:?}: {drawn:?}");
    }
    assert!(drawn.contains("articles-v1, version 1, served: 3 documents"), "{drawn}");
    assert!(drawn.matches("Cluster http://").count() > 1, "{drawn}");
    standin.mend();

    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    cluster.delete("/_search/pipeline/articles-v1-search").unwrap();
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    let query = file["query_model"]["id"].as_str().unwrap();
    cluster.post(&format!("/_plugins/_ml/models/{query}/_undeploy"), Value::Null).unwrap();
    let outcome = nsparse.run("status");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("Problem: the search pipeline `articles-v1-search`"), "{}", outcome.stdout);
    assert!(outcome.stdout.contains("Problem: model `tiny-query` is UNDEPLOYED"), "{}", outcome.stdout);
    // Another deploy puts it right.
    nsparse.ok("deploy package1");
    nsparse.ok("status");
    assert_eq!(nsparse.run("status --index nothing").code, Some(2));
    assert_eq!(nsparse.run("status --every 0").code, Some(2));
}

/// What is there at the end, whatever the ids.
fn end(standin: &StandIn, nsparse: &Nsparse) -> (Contents, Value, Value) {
    let mut contents = standin.contents();
    contents.models.sort();
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    (contents, file["number"].clone(), file["history"][0]["indexes"].clone())
}

#[test]
fn a_deploy_that_is_killed_at_any_request_and_repeated_comes_to_the_same_end() {
    let good = standin();
    let nsparse = with_packages(good.url());
    nsparse.ok("deploy package1 --alias articles");
    let first = good.requests().len();
    nsparse.ok("deploy package2");
    let requests = good.requests();
    let wanted = end(&good, &nsparse);
    // The first deploy, and that of a second version beside the first.
    for (arguments, before, from, to) in [
        ("deploy package1 --alias articles", None, 0, first),
        ("deploy package2 --alias articles", Some("deploy package1 --alias articles"), first, requests.len()),
    ] {
        for n in 0..to - from {
            let works = n % 2 == 1;
            let standin = standin();
            let mut killed = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
            killed.set("NSPARSE_URL", standin.url());
            for package in ["package1", "package2"] {
                killed.copy(&nsparse.path(package), package);
            }
            if let Some(before) = before {
                killed.ok(before);
            }
            let seen = standin.requests().len();
            standin.out_of_reach(n, Outage::Silent { works });
            let mut child = killed.spawn(arguments);
            wait_until(&mut child, "the request at which it is killed", || standin.requests().len() > seen + n);
            child.kill().unwrap();
            child.wait().unwrap();
            standin.mend();
            let what = format!("killed at {} ({})", requests[from + n], if works { "arrived" } else { "lost" });
            let aliases = standin.contents().aliases;
            assert!(aliases.is_empty() || aliases == ["articles articles-v1"], "{what}: {aliases:?}");
            killed.ok(arguments);
            if before.is_none() {
                killed.ok("deploy package2");
            }
            assert_eq!(end(&standin, &killed), wanted, "{what}");
        }
    }
}

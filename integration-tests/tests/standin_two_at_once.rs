//! Two operators who deploy at the same moment: whatever one does between any two requests of the other, both end with
//! a deployment that works, or with an error that says what to do; nobody takes back what the other has made.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod versions_fixture;

use std::sync::{Arc, mpsc};

use nsparse_core::lock::FileLock;
use nsparse_integration_tests::standin::{Options, StandIn};
use nsparse_opensearch::ml::{
    DeployOptions, Deployment, SwitchOptions, UndeployOptions, plan_of, rollback_file, switch_file, undeploy_file,
};
use nsparse_opensearch::{Cluster, Error};
use serde_json::json;
use versions_fixture::{Fixture, at, fast, never};

/// Each operator has a deployment file.
fn options(fixture: &Fixture, who: &str, alias: bool) -> DeployOptions {
    let base = if alias { DeployOptions::behind("tiny") } else { DeployOptions::new("tiny") };
    DeployOptions { poll: fast(), chunk_bytes: 20_000, file: Some(fixture.path(&format!("{who}.json"))), ..base }
}

/// What the first operator came to, and the second, who did all of it before the first one's request number `n` was
/// answered.
struct Both {
    standin: StandIn,
    first: Result<Deployment, Error>,
    second: Result<Deployment, Error>,
}

fn at_once(fixture: &Arc<Fixture>, alias: bool, packages: [&'static str; 2], n: usize) -> Both {
    for who in ["first", "second"] {
        let _ = std::fs::remove_file(fixture.path(&format!("{who}.json")));
    }
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let (tell, told) = mpsc::channel();
    let (theirs, url) = (Arc::clone(fixture), standin.url().to_owned());
    standin.meanwhile(n, move || {
        let _ = tell.send(theirs.deploy(packages[1], &at(&url), &options(&theirs, "second", alias)));
    });
    let first = fixture.deploy(packages[0], &at(standin.url()), &options(fixture, "first", alias));
    let second = told.recv().unwrap();
    Both { standin, first, second }
}

/// Everything that a deployment needs stands, and documents get vectors through it.
fn works(fixture: &Fixture, cluster: &Cluster, standin: &StandIn, package: &str, who: &str, alias: bool, what: &str) {
    let plan = plan_of(cluster, &fixture.package(package), &options(fixture, who, alias)).unwrap();
    assert!(plan.changes_nothing(), "{what}: {who}: {plan:?}");
    let file = Deployment::load(&fixture.path(&format!("{who}.json"))).unwrap();
    cluster.put(&format!("/{}/_doc/{who}", file.index), json!({ "title": "the search", "text": "engine" })).unwrap();
    let document = standin.document(&file.index, who).unwrap();
    assert!(document["embedding"].as_object().is_some_and(|v| !v.is_empty()), "{what}: {who}: {document}");
}

/// Those of a deploy that is alone.
fn requests(fixture: &Arc<Fixture>, alias: bool) -> Vec<String> {
    let _ = std::fs::remove_file(fixture.path("first.json"));
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    fixture.deploy("package", &at(standin.url()), &options(fixture, "first", alias)).unwrap();
    standin.requests()
}

#[test]
fn one_package_by_two_operators_becomes_one_deployment() {
    let fixture = Arc::new(Fixture::new());
    for alias in [true, false] {
        for (n, request) in requests(&fixture, alias).iter().enumerate() {
            let what = format!("alias {alias}: {n} {request}");
            let Both { standin, first, second } = at_once(&fixture, alias, ["package"; 2], n);
            let cluster = at(standin.url());
            let index = if alias { "tiny-v1" } else { "tiny" };
            assert_eq!(second.unwrap_or_else(|e| panic!("{what}: {e}")).index, index, "{what}");
            assert_eq!(first.unwrap_or_else(|e| panic!("{what}: {e}")).index, index, "{what}");
            for who in ["second", "first"] {
                // Where both registered a model at the same moment, the pipeline has one of the two.
                fixture.deploy("package", &cluster, &options(&fixture, who, alias)).unwrap();
            }
            works(&fixture, &cluster, &standin, "package", "first", alias, &what);
            works(&fixture, &cluster, &standin, "package", "second", alias, &what);
            let contents = standin.contents();
            assert_eq!((contents.indexes.len(), contents.groups.len()), (1, 1), "{what}: {contents:?}");
            assert!(contents.models.iter().all(|m| m.ends_with(" DEPLOYED")), "{what}: {contents:?}");
        }
    }
}

#[test]
fn two_packages_at_once_become_two_versions() {
    let fixture = Arc::new(Fixture::new());
    let mut refused = 0;
    for (n, request) in requests(&fixture, true).iter().enumerate() {
        let what = format!("{n} {request}");
        let Both { standin, first, second } = at_once(&fixture, true, ["package", "package2"], n);
        let cluster = at(standin.url());
        let second = second.unwrap_or_else(|e| panic!("{what}: {e}"));
        let first = match first {
            Ok(first) => first,
            Err(error) => {
                refused += 1;
                assert!(
                    error.to_string().starts_with("Another deploy has made the index `tiny-v1`"),
                    "{what}: {error}"
                );
                assert!(error.hint().unwrap().contains("becomes the next version"), "{what}: {:?}", error.hint());
                fixture.deploy("package", &cluster, &options(&fixture, "first", true)).unwrap()
            }
        };
        let mut numbers = [first.number.unwrap(), second.number.unwrap()];
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2], "{what}");
        works(&fixture, &cluster, &standin, "package", "first", true, &what);
        works(&fixture, &cluster, &standin, "package2", "second", true, &what);
        let contents = standin.contents();
        assert_eq!((contents.pipelines.len(), contents.models.len()), (2, 4), "{what}: {contents:?}");
        assert!(
            matches!(contents.aliases[..].join(" ").as_str(), "tiny tiny-v1" | "tiny tiny-v2"),
            "{what}: {contents:?}"
        );
    }
    assert!(refused > 0, "nobody met the other at the index");
}

#[test]
fn two_packages_do_not_share_an_index() {
    let fixture = Arc::new(Fixture::new());
    for (n, request) in requests(&fixture, false).iter().enumerate() {
        let what = format!("{n} {request}");
        let Both { standin, first, second } = at_once(&fixture, false, ["package", "package2"], n);
        let cluster = at(standin.url());
        let (error, package, who) = match (first, second) {
            (Ok(_), Err(error)) => (error, "package", "first"),
            (Err(error), Ok(_)) => (error, "package2", "second"),
            other => panic!("{what}: {other:?}"),
        };
        assert!(error.to_string().starts_with("The index `tiny` was made for another package"), "{what}: {error}");
        works(&fixture, &cluster, &standin, package, who, false, &what);
        let contents = standin.contents();
        assert_eq!((contents.pipelines.len(), contents.models.len()), (1, 2), "{what}: {contents:?}");
    }
}

#[test]
fn a_deployment_file_has_one_command_at_a_time() {
    let fixture = Fixture::new();
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = at(standin.url());
    let options = options(&fixture, "first", true);
    let file = options.file.clone().unwrap();
    fixture.deploy("package", &cluster, &options).unwrap();
    let (before, contents) = (std::fs::read(&file).unwrap(), standin.contents());
    let held = FileLock::beside(&file).unwrap().unwrap();
    let asked = standin.requests().len();
    let switching = SwitchOptions { poll: fast(), ..SwitchOptions::default() };
    for error in [
        fixture.deploy("package2", &cluster, &options).unwrap_err(),
        switch_file(&cluster, &file, &switching, &never()).unwrap_err(),
        rollback_file(&cluster, &file, &switching, &never()).unwrap_err(),
        undeploy_file(&cluster, &file, &UndeployOptions::default()).unwrap_err(),
    ] {
        assert!(error.to_string().starts_with("Another nsparse is at work with"), "{error}");
        assert!(error.hint().unwrap().contains("wait until it has ended"), "{:?}", error.hint());
    }
    assert_eq!((standin.requests().len(), standin.contents()), (asked, contents));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // A plan only looks.
    plan_of(&cluster, &fixture.package("package2"), &options).unwrap();
    drop(held);
    fixture.deploy("package2", &cluster, &options).unwrap();
    let names: Vec<_> = std::fs::read_dir(fixture.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains(".lock")), "{names:?}");
}

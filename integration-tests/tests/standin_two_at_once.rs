//! Two operators who deploy at the same moment: whatever one does between any two requests of the other, both end with
//! a deployment that works, or with an error that says what to do; nobody takes back what the other has made.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

mod versions_fixture;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use nsparse_core::lock::FileLock;
use nsparse_core::{Cancel, NoProgress};
use nsparse_integration_tests::standin::{Contents, Options, StandIn, Strike};
use nsparse_opensearch::ml::{
    DeployOptions, Deployment, SwitchOptions, UndeployOptions, deploy, plan_of, rollback_file, switch_file,
    undeploy_file,
};
use nsparse_opensearch::{Cluster, Error};
use serde_json::json;
use versions_fixture::{Fixture, at, fast, never};

/// Each operator has a deployment file.
fn options(fixture: &Fixture, who: &str, alias: bool) -> DeployOptions {
    let base = if alias { DeployOptions::behind("tiny") } else { DeployOptions::new("tiny") };
    DeployOptions { poll: fast(), chunk_bytes: 20_000, file: Some(fixture.path(&format!("{who}.json"))), ..base }
}

/// Both begin without a file.
fn forget_files(fixture: &Fixture) {
    for who in ["first", "second"] {
        // Not there in the first round.
        let _ = std::fs::remove_file(fixture.path(&format!("{who}.json")));
    }
}

/// What the first operator came to, and the second, who did all of it before the first one's request number `n` was
/// answered.
struct Both {
    standin: StandIn,
    first: Result<Deployment, Error>,
    second: Result<Deployment, Error>,
}

fn at_once(fixture: &Arc<Fixture>, alias: bool, packages: [&'static str; 2], n: usize) -> Both {
    forget_files(fixture);
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let (tell, told) = mpsc::channel();
    let (theirs, url) = (Arc::clone(fixture), standin.url().to_owned());
    standin.meanwhile(n, move || {
        let _ = tell.send(theirs.deploy(packages[1], &at(&url), &options(&theirs, "second", alias)));
    });
    let first = fixture.deploy(packages[0], &at(standin.url()), &options(fixture, "first", alias));
    let second = told.recv_timeout(Duration::from_mins(2)).unwrap();
    Both { standin, first, second }
}

/// The file, once its models have come to the state that they were told: the stand-in's go on with each question.
fn settled(fixture: &Fixture, cluster: &Cluster, who: &str) -> Deployment {
    let file = Deployment::load(&fixture.path(&format!("{who}.json"))).unwrap();
    for id in file.model_ids() {
        for _ in 0..3 {
            cluster.get(&format!("/_plugins/_ml/models/{id}")).unwrap();
        }
    }
    file
}

/// Everything that a deployment needs stands, and documents get vectors through it.
fn works(fixture: &Fixture, cluster: &Cluster, standin: &StandIn, package: &str, who: &str, alias: bool, what: &str) {
    let file = settled(fixture, cluster, who);
    let plan = plan_of(cluster, &fixture.package(package), &options(fixture, who, alias)).unwrap();
    assert!(plan.changes_nothing(), "{what}: {who}: {plan:?}");
    cluster.put(&format!("/{}/_doc/{who}", file.index), json!({ "title": "the search", "text": "engine" })).unwrap();
    let document = standin.document(&file.index, who).unwrap();
    assert!(document["embedding"].as_object().is_some_and(|v| !v.is_empty()), "{what}: {who}: {document}");
}

/// Those of a deploy that is alone.
fn requests(fixture: &Arc<Fixture>, alias: bool) -> Vec<String> {
    forget_files(fixture);
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
            // Both take back what they have made or found: nothing is left, not even a model that both registered.
            let everything = UndeployOptions { delete_index: true, poll: fast(), ..UndeployOptions::default() };
            for who in ["first", "second"] {
                undeploy_file(&cluster, &fixture.path(&format!("{who}.json")), &everything).unwrap();
            }
            assert_eq!(standin.contents(), Contents::default(), "{what}");
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

/// The first is stopped once the second has found and used what it had made until then.
#[test]
fn what_another_uses_by_then_stays() {
    let fixture = Arc::new(Fixture::new());
    let (mut stopped, mut left) = (0, 0);
    for alias in [true, false] {
        for (n, request) in requests(&fixture, alias).iter().enumerate() {
            let what = format!("alias {alias}: {n} {request}");
            forget_files(&fixture);
            let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
            let (theirs, url, cancel) = (Arc::clone(&fixture), standin.url().to_owned(), Cancel::default());
            let (tell, told) = mpsc::channel();
            let stop = cancel.clone();
            standin.meanwhile(n, move || {
                let cluster = at(&url);
                let second = theirs.deploy("package", &cluster, &options(&theirs, "second", alias));
                let index = second.as_ref().map(|d| d.index.clone()).unwrap_or_default();
                cluster.put(&format!("/{index}/_doc/theirs"), json!({ "title": "the search" })).unwrap();
                stop.cancel();
                let _ = tell.send(second);
            });
            let cluster = at(standin.url());
            let package = fixture.package("package");
            let first = deploy(&cluster, &package, &options(&fixture, "first", alias), &cancel, &NoProgress);
            told.recv_timeout(Duration::from_mins(2)).unwrap().unwrap_or_else(|e| panic!("{what}: {e}"));
            if let Err(error) = first {
                stopped += 1;
                assert!(error.to_string().starts_with("Interrupted"), "{what}: {error}");
                left += usize::from(error.to_string().contains("somebody else uses it by now"));
            }
            if request.contains("/upload_chunk/") {
                // A last chunk that comes after the other's deploy sets the model's state back; the next deploy mends that.
                settled(&fixture, &cluster, "second");
                fixture.deploy("package", &cluster, &options(&fixture, "second", alias)).unwrap();
            }
            works(&fixture, &cluster, &standin, "package", "second", alias, &what);
        }
    }
    assert!(stopped > 20 && left > 5, "{stopped} stopped, {left} of them left something to the other");
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
    let asked = standin.requests().len();
    let switching = SwitchOptions { poll: fast(), ..SwitchOptions::default() };
    let busy = |error: Error| {
        assert!(error.to_string().starts_with("Another nsparse is at work with"), "{error}");
        assert!(error.hint().unwrap().contains("wait until it has ended"), "{:?}", error.hint());
    };
    // While another writes it.
    let held = FileLock::beside(&file).unwrap().unwrap();
    busy(switch_file(&cluster, &file, &switching, &never()).unwrap_err());
    busy(rollback_file(&cluster, &file, &switching, &never()).unwrap_err());
    busy(undeploy_file(&cluster, &file, &UndeployOptions::default()).unwrap_err());
    drop(held);
    // While another deploys.
    let deploying = FileLock::beside(&fixture.path("first.json.deploy")).unwrap().unwrap();
    busy(fixture.deploy("package2", &cluster, &options).unwrap_err());
    busy(undeploy_file(&cluster, &file, &UndeployOptions::default()).unwrap_err());
    assert_eq!((standin.requests().len(), standin.contents()), (asked, contents));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    // A plan only looks.
    plan_of(&cluster, &fixture.package("package2"), &options).unwrap();
    drop(deploying);
    fixture.deploy("package2", &cluster, &options).unwrap();
    let names: Vec<_> = std::fs::read_dir(fixture.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!names.iter().any(|n| n.to_string_lossy().contains(".lock")), "{names:?}");
}

/// The third version: the second package, indexed in another way.
fn third(options: &DeployOptions) -> DeployOptions {
    let mut options = options.clone();
    options.indexing.exclude_vector = true;
    options
}

#[test]
fn a_rollback_does_not_wait_for_a_deploy() {
    let fixture = Arc::new(Fixture::new());
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = at(standin.url());
    let options = options(&fixture, "first", true);
    let file = options.file.clone().unwrap();
    let switching = SwitchOptions { poll: fast(), ..SwitchOptions::default() };
    for (package, index) in [("package", "tiny-v1"), ("package2", "tiny-v2")] {
        fixture.deploy(package, &cluster, &options).unwrap();
        for i in 0..5 {
            let document = json!({ "title": format!("the search engine {i}"), "text": "w1 w2 w3 index model" });
            cluster.put(&format!("/{index}/_doc/{i}"), document).unwrap();
        }
        switch_file(&cluster, &file, &switching, &never()).unwrap();
    }
    let (tell, told) = mpsc::channel();
    let (url, theirs) = (standin.url().to_owned(), file.clone());
    standin.meanwhile_at("PUT /tiny-v3", 0, move || {
        let _ = tell.send(rollback_file(&at(&url), &theirs, &switching, &never()));
    });
    let deployed = fixture.deploy("package2", &cluster, &third(&options)).unwrap();
    assert_eq!(told.recv_timeout(Duration::from_mins(2)).unwrap().unwrap().to, ["tiny-v1"]);
    assert_eq!(standin.contents().aliases, ["tiny tiny-v1"]);
    // The file knows of both.
    let served: Vec<_> = deployed.history.iter().map(|s| s.indexes.join(",")).collect();
    assert_eq!((deployed.number, served.last().map(String::as_str)), (Some(3), Some("tiny-v1")), "{served:?}");
    assert_eq!(Deployment::load(&file).unwrap(), deployed);
    assert_eq!(deployed.versions().len(), 3);
}

#[test]
fn a_number_that_others_have_taken_is_not_taken_again() {
    let fixture = Arc::new(Fixture::new());
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let cluster = at(standin.url());
    let first = options(&fixture, "first", true);
    fixture.deploy("package", &cluster, &first).unwrap();
    assert_eq!(fixture.deploy("package2", &cluster, &first).unwrap().number, Some(2));
    // Somebody deletes the second version's index, and another operator's package gets its number.
    cluster.delete("/tiny-v2").unwrap();
    let theirs = fixture.deploy("package2", &cluster, &third(&options(&fixture, "second", true))).unwrap();
    assert_eq!(theirs.number, Some(2));
    let again = fixture.deploy("package2", &cluster, &first).unwrap();
    assert_eq!((again.number, again.index.as_str()), (Some(3), "tiny-v3"));
    works(&fixture, &cluster, &standin, "package2", "first", true, "taken");
}

/// Only the answer to making the index is lost, and by then it is the other's: it is not deleted.
#[test]
fn an_index_that_the_other_made_is_not_taken_for_ours() {
    let fixture = Arc::new(Fixture::new());
    let at_index = requests(&fixture, false).iter().position(|r| r == "PUT /tiny").unwrap();
    forget_files(&fixture);
    let standin = StandIn::start(Options { encode: fixture.encode(), ..Options::default() });
    let (theirs, url) = (Arc::clone(&fixture), standin.url().to_owned());
    let (tell, told) = mpsc::channel();
    standin.meanwhile(at_index, move || {
        let _ = tell.send(theirs.deploy("package", &at(&url), &options(&theirs, "second", false)));
    });
    standin.fail(at_index, Strike::Before);
    let cluster = at(standin.url());
    let error = fixture.deploy("package", &cluster, &options(&fixture, "first", false)).unwrap_err();
    told.recv_timeout(Duration::from_mins(2)).unwrap().unwrap();
    assert!(error.to_string().contains("injected failure"), "{error}");
    works(&fixture, &cluster, &standin, "package", "second", false, "lost");
}

//! The program against a real OpenSearch 2.16.0 that has neither ML Commons nor neural-search: documents and
//! queries are encoded here.
#![cfg(feature = "test-node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "measured figures are shown with --nocapture")]

use std::collections::BTreeSet;
use std::path::Path;

use nsparse_core::trec::read_run;
use nsparse_core::{Pruning, SparseVector};
use nsparse_integration_tests::cli::{Nsparse, finish, wait_until};
use nsparse_integration_tests::node::shared;
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::standin::{Options, StandIn};
use serde_json::{Value, json};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// With the node's address set, the sample collection in a folder `name`, which is the set's name in the cluster
/// too, and a small model with random weights in `model`.
fn with_sample(name: &str) -> Nsparse {
    let mut nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.set("NSPARSE_URL", &shared().url);
    nsparse.copy(Path::new(SAMPLE), name);
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse
}

fn documents(index: &str) -> u64 {
    shared().cluster.post(&format!("/{index}/_refresh"), Value::Null).unwrap();
    shared().cluster.get(&format!("/{index}/_count")).unwrap()["count"].as_u64().unwrap()
}

/// Every index, pipeline and template name there is.
fn everything() -> BTreeSet<String> {
    let cluster = &shared().cluster;
    let mut names = BTreeSet::new();
    for index in cluster.get("/_cat/indices?format=json&expand_wildcards=all").unwrap().as_array().unwrap() {
        names.insert(format!("index {}", index["index"].as_str().unwrap()));
    }
    // Without any pipeline the answer is 404.
    let pipelines = cluster.find("/_ingest/pipeline").unwrap().unwrap_or_default();
    names.extend(pipelines.as_object().into_iter().flatten().map(|(name, _)| format!("pipeline {name}")));
    names
}

#[test]
fn pruned_documents_are_stored_as_they_are_encoded_and_ranked() {
    let nsparse = with_sample("pruned");
    let rule: Pruning = "max_ratio:0.3".parse().unwrap();
    nsparse.ok("export model --out package");
    nsparse.ok("deploy package --index pruned --replicas 0 --prune max_ratio:0.3 --exclude-vector");
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    assert_eq!(file["indexing"], json!({ "pruning": "max_ratio:0.3", "exclude_vector": true }));
    nsparse.ok("ingest --deployment deployment.json --model model --data pruned --journal journal");
    let cluster = &shared().cluster;
    let mapping = cluster.get("/pruned/_mapping").unwrap();
    assert_eq!(mapping["pruned"]["mappings"]["_source"], json!({ "excludes": ["embedding"] }));
    assert!(cluster.get("/pruned/_doc/posting-list").unwrap()["_source"].get("embedding").is_none());

    // The same rule in a file of vectors, against the vectors themselves.
    nsparse.ok("encode --data pruned --model model --out all.jsonl");
    nsparse.ok("encode --data pruned --model model --out pruned.jsonl --prune max_ratio:0.3");
    let vectors = |name: &str| -> Vec<SparseVector> {
        String::from_utf8(nsparse.read(name))
            .unwrap()
            .lines()
            .map(|line| {
                let line: Value = serde_json::from_str(line).unwrap();
                let entries = line["vector"].as_object().unwrap().values().enumerate();
                SparseVector::from_pairs(entries.map(|(i, w)| (i as u32, w.as_f64().unwrap() as f32)).collect())
            })
            .collect()
    };
    let weights = |vector: &SparseVector| vector.heaviest_first().into_iter().map(|(_, w)| w).collect::<Vec<_>>();
    let (all, kept) = (vectors("all.jsonl"), vectors("pruned.jsonl"));
    assert!(kept.iter().map(SparseVector::len).sum::<usize>() < all.iter().map(SparseVector::len).sum());
    for (all, kept) in all.iter().zip(&kept) {
        assert_eq!(weights(&rule.prune(all)), weights(kept));
    }

    // Ranked in the index as by the embedded index over pruned vectors; not as over all of them.
    let search = |more: &[&str]| {
        let mut command = nsparse.command(["search", "the posting list of a term", "--model", "model", "--json"]);
        command.args(more);
        finish(command).json()["results"].as_array().unwrap().clone()
    };
    let scores = |found: &[Value]| -> Vec<(String, i64)> {
        let score = |r: &Value| (r["score"].as_f64().unwrap() * 1e4).round() as i64;
        found.iter().map(|r| (r["id"].as_str().unwrap().to_owned(), score(r))).collect()
    };
    let there = search(&["--deployment", "deployment.json"]);
    let here = search(&["--engine", "local", "--data", "pruned", "--prune-documents", "max_ratio:0.3"]);
    assert_eq!(scores(&there), scores(&here));
    assert_ne!(scores(&there), scores(&search(&["--engine", "local", "--data", "pruned"])));
    let refused = nsparse.run("search x --deployment deployment.json --model model --prune-documents top_k:3");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    nsparse.ok("undeploy deployment.json --delete-index");
}

#[test]
fn deploy_ingest_search_and_take_back() {
    let nsparse = with_sample("life");
    let cluster = &shared().cluster;
    cluster.put("/life-neighbour", json!({})).unwrap();
    nsparse.ok("export model --out package");
    let deployed = nsparse.ok("deploy package --index life --replicas 0");
    assert!(deployed.stderr.contains("ML Commons"), "{}", deployed.stderr);
    assert!(deployed.stdout.contains("both here, by `nsparse ingest` and `nsparse search`"), "{}", deployed.stdout);
    let file: Value = nsparse_core::files::read_json(&nsparse.path("deployment.json")).unwrap();
    assert_eq!((&file["index"], &file["side"]), (&json!("life"), &json!("client")));
    assert_eq!(
        cluster.get("/life/_mapping").unwrap()["life"]["mappings"]["properties"]["embedding"]["type"],
        "rank_features"
    );

    let ingest = "ingest --deployment deployment.json --model model --data life --journal journal";
    let first = nsparse.json(ingest);
    assert_eq!(first["report"]["indexed"], 256);
    assert_eq!(first["report"]["rejected"], json!([]));
    assert_eq!(documents("life"), 256);
    let second = nsparse.json(ingest);
    assert_eq!(second["report"]["skipped"], 256);
    assert_eq!((&second["report"]["indexed"], &second["report"]["requests"]), (&json!(0), &json!(0)));

    // Found by its own words, with the same scores as without a server.
    let search = |more: &[&str]| {
        let mut command = nsparse.command(["search", "the posting list of a term", "--model", "model", "--json"]);
        command.args(more);
        finish(command).json()
    };
    let found = search(&["--deployment", "deployment.json"]);
    let local = search(&["--engine", "local", "--data", "life"]);
    assert_eq!(found["how"], "rank_feature clauses encoded here");
    let ids = |found: &Value| -> Vec<String> {
        found["results"].as_array().unwrap().iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&found).len(), 10);
    assert_eq!(ids(&found), ids(&local));
    for (a, b) in found["results"].as_array().unwrap().iter().zip(local["results"].as_array().unwrap()) {
        let (a, b) = (a["score"].as_f64().unwrap(), b["score"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-4 * b, "{a} and {b}");
    }
    assert_eq!(found["results"][0]["title"], local["results"][0]["title"]);
    let bm25 = search(&["--deployment", "deployment.json", "--method", "bm25"]);
    assert_eq!(bm25["results"][0]["id"], "posting-list");

    // What each term gives is the same in the engine as here.
    let explained = |more: &[&str]| {
        let found = search(&[more, &["--explain", "-k", "3"]].concat());
        let terms = |r: &Value| -> Vec<String> {
            r["terms"].as_array().unwrap().iter().map(|t| format!("{} {}", t["token"], t["expansion"])).collect()
        };
        found["results"].as_array().unwrap().iter().map(terms).collect::<Vec<_>>()
    };
    let there = explained(&["--deployment", "deployment.json"]);
    assert_eq!(there, explained(&["--engine", "local", "--data", "life"]));
    assert!(there.iter().all(|terms| !terms.is_empty()));
    // With every document in the second phase nothing changes but the way.
    let phased = search(&["--deployment", "deployment.json", "--two-phase", "--expansion", "100"]);
    assert_eq!(phased["how"], "rank_feature clauses encoded here, in two phases");
    assert_eq!(ids(&phased), ids(&found));
    let later = search(&["--deployment", "deployment.json", "--from", "4", "-k", "6"]);
    assert_eq!(ids(&later), ids(&found)[4..]);
    let marked = search(&["--deployment", "deployment.json", "--method", "bm25", "--highlight", "-k", "1"]);
    assert!(marked["results"][0]["highlight"]["title"][0].as_str().unwrap().contains("<em>"), "{marked}");
    let word = found["results"][1]["title"].as_str().unwrap().split_whitespace().last().unwrap().to_owned();
    let filtered = search(&["--deployment", "deployment.json", "--filter", &format!("title={word}")]);
    assert!(ids(&filtered).contains(&ids(&found)[1]) && !ids(&filtered).is_empty());
    let without = search(&["--deployment", "deployment.json", "--filter", &format!("title!={word}")]);
    assert!(!ids(&without).contains(&ids(&found)[1]) && !ids(&without).is_empty());
    let hybrid = search(&["--deployment", "deployment.json", "--method", "hybrid"]);
    assert_eq!(hybrid["how"], "bm25 and rank_feature clauses encoded here, fused here");
    let here = search(&["--engine", "local", "--data", "life", "--method", "hybrid"]);
    // Equal scores stand in another order in the engine, so ranks near each other may change places.
    let best = |found: &Value| ids(found)[..3].iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!((&ids(&hybrid)[0], best(&hybrid)), (&ids(&here)[0], best(&here)));

    // An index with documents is not deleted by accident.
    let refused = nsparse.run("undeploy deployment.json");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("--delete-index"), "{}", refused.stderr);
    assert_eq!(documents("life"), 256);
    let before = everything();
    let report = nsparse.json("undeploy deployment.json --delete-index");
    assert_eq!(report["failed"], json!([]));
    // The other tests make and remove indexes of our naming meanwhile; nothing else may go.
    let after = everything();
    let gone: BTreeSet<&str> =
        before.difference(&after).map(String::as_str).filter(|name| !name.starts_with("index nsparse-")).collect();
    assert_eq!(gone, BTreeSet::from(["index life"]));
    assert!(cluster.find("/life-neighbour").unwrap().is_some());
    // What it was told by is gone with it.
    assert!(!nsparse.path("deployment.json").exists());
    assert_eq!(nsparse.run("undeploy deployment.json").code, Some(2));
}

#[test]
fn versions_behind_an_alias_without_plugins() {
    let nsparse = with_sample("versions");
    let cluster = &shared().cluster;
    write(&nsparse.path("model2"), &Shape::small(), 4).unwrap();
    nsparse.ok("export model --out package");
    nsparse.ok("export model2 --out package2");
    nsparse.ok("deploy package --alias news --replicas 0");
    nsparse.ok("ingest --deployment deployment.json --model model --data versions --journal journal");
    let planned = nsparse.json("deploy package2 --replicas 0 --plan");
    assert_eq!(planned["plan"]["items"][0]["name"], "news-v2", "{planned}");
    assert!(cluster.find("/news-v2").unwrap().is_none());
    nsparse.ok("deploy package2 --replicas 0");
    let refused = nsparse.run("switch");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("`news-v2` has no documents"), "{}", refused.stderr);
    nsparse.ok("ingest --deployment deployment.json --model model2 --data versions --journal journal2");
    let behind = || cluster.get("/_alias/news").unwrap().as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(behind(), ["news-v1"]);
    let switched = nsparse.json("switch");
    assert_eq!(
        (&switched["to_documents"], switched["asked"].as_array().unwrap().len()),
        (&json!(256), 3),
        "{switched}"
    );
    assert_eq!(behind(), ["news-v2"]);
    assert_eq!(nsparse.json("rollback")["changed"], true);
    assert_eq!(behind(), ["news-v1"]);
    assert_eq!(nsparse.run("rollback").code, Some(2));
    assert_eq!(behind(), ["news-v1"]);
    // What stands behind a name that is taken is left alone.
    let taken = nsparse.run("deploy package --alias news-v1 --deployment other.json");
    assert!(taken.stderr.contains("`news-v1` is an index in this cluster"), "{}", taken.stderr);
    let status = nsparse.json("status");
    assert_eq!(
        (&status["alias"][1], &status["indexes"][0]["documents"]),
        (&json!(["news-v1"]), &json!(256)),
        "{status}"
    );
    nsparse.ok("undeploy --version 2 --delete-index");
    nsparse.ok("undeploy --delete-index");
    assert!(!everything().iter().any(|name| name.contains("news")));
}

/// The model in `model`, made to read documents in segments.
fn with_segments(nsparse: &Nsparse) {
    let mut facts: Value = nsparse_core::files::read_json(&nsparse.path("model/nsparse.json")).unwrap();
    facts["segments"] = json!({ "max": 4, "overlap": 4, "min_last": 5 });
    nsparse.write("model/nsparse.json", &facts.to_string());
}

#[test]
fn long_documents_in_nested_segments() {
    let nsparse = with_sample("nested");
    with_segments(&nsparse);
    let exported = nsparse.ok("export model --out package");
    assert!(exported.stderr.contains("in up to 4 windows"), "{}", exported.stderr);
    let refused = nsparse.run("deploy package --index nested --segments nested --side cluster");
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("one vector a document, not one a segment"), "{}", refused.stderr);
    nsparse.ok("deploy package --index nested --replicas 0 --segments nested");
    let mapping = shared().cluster.get("/nested/_mapping").unwrap();
    assert_eq!(mapping["nested"]["mappings"]["properties"]["embedding"]["type"], "nested");

    let ingest = "ingest --deployment deployment.json --model model --data nested --journal journal";
    let wrong = nsparse.run(&format!("{ingest} --segments max"));
    assert_eq!(wrong.code, Some(2), "{}", wrong.stderr);
    let report = nsparse.json(ingest)["report"].clone();
    assert_eq!((&report["indexed"], &report["rejected"]), (&json!(256), &json!([])));
    assert_eq!(nsparse.json(ingest)["report"]["skipped"], 256);
    let stored = shared().cluster.get("/nested/_doc/posting-list").unwrap();
    assert_eq!(stored["_source"]["embedding"].as_array().unwrap().len(), 4);

    // By the deployment, by the index's mapping, and without a server.
    let search = |more: &[&str]| {
        let mut command = nsparse.command(["search", "the posting list of a term", "--model", "model", "--json"]);
        command.args(more);
        finish(command).json()
    };
    let found = search(&["--deployment", "deployment.json"]);
    assert_eq!(found["how"], "rank_feature clauses encoded here, over the best segment");
    assert_eq!(search(&["--index", "nested"])["results"], found["results"]);
    let local = search(&["--engine", "local", "--data", "nested", "--method", "nested"]);
    for (a, b) in found["results"].as_array().unwrap().iter().zip(local["results"].as_array().unwrap()) {
        assert_eq!(a["id"], b["id"]);
        let (a, b) = (a["score"].as_f64().unwrap(), b["score"].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * b, "{a} and {b}");
    }
    assert_ne!(search(&["--engine", "local", "--data", "nested"])["results"], local["results"]);
    assert!(nsparse.run("search x --model model --index nested --method nested").code == Some(0));

    let rank = |engine: &str, method: &str| {
        nsparse.json(&format!(
            "eval --data nested --model model --method {method} --engine {engine} --out {method}-{engine}"
        ))
    };
    for method in ["nested", "sparse"] {
        let ndcg = |summary: &Value| summary["metrics"]["ndcg@10"].as_f64().unwrap();
        let (there, here) = (rank("opensearch", method), rank("local", method));
        println!("{method}: nDCG@10 {:.4} in the engine, {:.4} here", ndcg(&there), ndcg(&here));
        assert!((ndcg(&there) - ndcg(&here)).abs() < 5e-5, "{method}");
    }
    assert_ne!(nsparse.read("nested-local/run.trec"), nsparse.read("sparse-local/run.trec"));
    assert_eq!(nsparse.json("eval --data nested --clean")["removed"].as_array().unwrap().len(), 2);
    nsparse.ok("undeploy deployment.json --delete-index");
}

/// An index for vectors, as somebody's own set-up may have made it.
fn own_index(name: &str) {
    let fields =
        json!({ "title": { "type": "text" }, "text": { "type": "text" }, "embedding": { "type": "rank_features" } });
    shared().cluster.put(&format!("/{name}"), json!({ "mappings": { "properties": fields } })).unwrap();
}

#[test]
fn a_killed_ingest_goes_on() {
    let nsparse = with_sample("killed");
    own_index("killed");
    // Enough documents for many batches: the sample's, many times over.
    let sample = String::from_utf8(nsparse.read("killed/corpus.jsonl")).unwrap();
    let mut corpus = String::new();
    for copy in 0..40 {
        for line in sample.lines() {
            corpus.push_str(&line.replacen("\"_id\": \"", &format!("\"_id\": \"{copy}-"), 1));
            corpus.push('\n');
        }
    }
    nsparse.write("killed/corpus.jsonl", &corpus);
    let total = 40 * 256;
    let ingest =
        "ingest --index killed --model model --data killed --journal journal --request-documents 500 --in-flight 2";
    let noted = || std::fs::read_to_string(nsparse.path("journal")).unwrap_or_default().lines().count();
    let mut child = nsparse.spawn(ingest);
    wait_until(&mut child, "a batch in the journal", || noted() > 500);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    let in_before = documents("killed");
    assert!(in_before >= 500 && in_before < total, "{in_before}");
    let report = &nsparse.json(ingest)["report"];
    let (indexed, skipped) = (report["indexed"].as_u64().unwrap(), report["skipped"].as_u64().unwrap());
    println!("{in_before} of {total} documents were in when the ingest was killed; {skipped} were not sent again");
    assert!(skipped >= 500);
    assert_eq!(indexed + skipped, total);
    // At most the batches in flight were sent twice, and no document is in twice.
    assert!(in_before - skipped <= 2 * 500, "{in_before} in, {skipped} known");
    assert_eq!(documents("killed"), total);
}

#[test]
fn rejected_documents_are_listed_and_the_rest_is_in() {
    let nsparse = with_sample("long");
    own_index("long");
    let long = "i".repeat(513);
    let line = |id: &str| json!({ "_id": id, "text": "search engine" }).to_string() + "\n";
    nsparse.write("long/corpus.jsonl", &[line("a"), line(&long), line("b")].concat());
    let outcome = nsparse.run("ingest --index long --model model --data long --json");
    // The answer to "is everything in?" is no.
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let report = outcome.json()["report"].clone();
    assert_eq!((&report["indexed"], &report["documents"]), (&json!(2), &json!(2)));
    let rejected = report["rejected"].as_array().unwrap();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0]["id"], long);
    assert!(rejected[0]["reason"].as_str().unwrap().contains("too long"), "{rejected:?}");
    let text = nsparse.run("ingest --index long --model model --data long").stdout;
    assert!(text.contains(&format!("rejected: {long}: ")), "{text}");
    // A misspelt index is not made by accident.
    let outcome = nsparse.run("ingest --index logn --model model --data long");
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("error: There is no index `logn`"), "{}", outcome.stderr);
}

#[test]
fn ranked_in_the_engine_as_here() {
    let nsparse = with_sample("ranked");
    for method in ["idf", "sparse"] {
        let rank = |engine: &str| {
            nsparse.json(&format!(
                "eval --data ranked --model model --method {method} --engine {engine} --out {method}-{engine}"
            ))
        };
        let (there, here) = (rank("opensearch"), rank("local"));
        let ndcg = |summary: &Value| summary["metrics"]["ndcg@10"].as_f64().unwrap();
        println!("{method}: nDCG@10 {:.4} in the engine, {:.4} here", ndcg(&there), ndcg(&here));
        assert!((ndcg(&there) - ndcg(&here)).abs() < 5e-5, "{method}");
        let top = |engine: &str| read_run(&nsparse.path(&format!("{method}-{engine}/run.trec"))).unwrap();
        let (there, here) = (top("opensearch"), top("local"));
        assert!(there.keys().eq(here.keys()));
        for (query, hits) in &there {
            let scores = |hits: &[nsparse_core::Hit]| hits.iter().take(10).map(|h| h.score).collect::<Vec<_>>();
            for (a, b) in scores(hits).iter().zip(scores(&here[query])) {
                assert!((a - b).abs() <= 1e-4 * b.max(1.0), "{method} {query}: {a} and {b}");
            }
            let top: BTreeSet<&str> = hits.iter().take(10).map(|h| h.id.as_str()).collect();
            // Equal scores stand in another order here and there: at the tenth place a tie may go either way.
            let last = here[query].get(9).map_or(0.0, |h| h.score);
            let sure = here[query].iter().take_while(|h| h.score > last * (1.0 + 1e-5));
            for hit in sure {
                assert!(top.contains(hit.id.as_str()), "{method} {query}: {} is missing", hit.id);
            }
        }
    }
    let bm25 = nsparse.json("eval --data ranked --method bm25");
    let ndcg = bm25["metrics"]["ndcg@10"].as_f64().unwrap();
    let here = nsparse.json("eval --data ranked --method bm25 --engine local")["metrics"]["ndcg@10"].as_f64().unwrap();
    println!("bm25: nDCG@10 {ndcg:.4} in the engine, {here:.4} here");
    assert!((ndcg - here).abs() < 0.005, "{ndcg} and {here}");

    let ours =
        || everything().into_iter().filter(|n| n.starts_with("index nsparse-") && n.contains("-ranked-")).count();
    assert_eq!(ours(), 3);
    nsparse.ok("eval --data ranked --method bm25");
    assert_eq!(ours(), 3);
    assert_eq!(nsparse.json("eval --data ranked --clean")["removed"].as_array().unwrap().len(), 3);
    assert_eq!(ours(), 0);
    assert_eq!(nsparse.json("eval --data ranked --clean")["removed"], json!([]));
}

/// Every step searches in the engine; what it finds teaches the same as what is found here, and the index stays.
#[test]
fn a_table_is_tuned_in_the_engine() {
    let nsparse = with_sample("tuned");
    own_index("tuned-own");
    nsparse.ok("encode --data tuned --model model --out vectors.nsv --format binary");
    nsparse.ok("ingest --index tuned-own --vectors vectors.nsv --data tuned --journal journal");
    assert_eq!(documents("tuned-own"), 256);
    let stats = || shared().cluster.get("/tuned-own/_stats/indexing,docs").unwrap()["_all"]["primaries"].clone();
    let before = stats();
    // With all documents as depth there is no tie at the cut.
    let tune = |engine: &str, out: &str| {
        nsparse.json(&format!(
            "tune-idf --model model --data tuned --vectors vectors.nsv --engine {engine} --out {out} --epochs 2 \
             --batch 16 --depth 256 --held-out 0.4 --learning-rate 0.05 --patience 0"
        ))["report"]
            .clone()
    };
    let (there, here) = (tune("opensearch --index tuned-own", "there"), tune("local", "here"));
    for (a, b) in there["epochs"].as_array().unwrap().iter().zip(here["epochs"].as_array().unwrap()) {
        for key in ["loss", "value", "not_retrieved"] {
            let (a, b) = (a[key].as_f64().unwrap_or(-1.0), b[key].as_f64().unwrap_or(-1.0));
            // Documents of equal scores stand in another order.
            assert!((a - b).abs() <= 0.01, "{key}: {a} in the engine, {b} here");
        }
    }
    let losses = |report: &Value| report["epochs"][2]["loss"].as_f64().unwrap();
    assert!((losses(&there) - losses(&here)).abs() < 1e-4 * losses(&here), "{there} and {here}");
    assert_eq!(stats(), before, "nothing was written to the index");
    // A token that a table leaves out: a query tokenizer in the cluster sends this weight, and the engine takes it.
    let silent =
        json!({ "rank_feature": { "field": "embedding.index", "boost": nsparse_core::idf::SILENT, "linear": {} } });
    let found = shared().cluster.post("/tuned-own/_search", json!({ "query": silent, "size": 1 })).unwrap();
    assert!(found["hits"]["total"]["value"].as_u64().unwrap() > 0, "{found}");
    assert!(nsparse.read("there/model.safetensors") == nsparse.read("model/model.safetensors"));
}

#[test]
fn mined_in_the_engine() {
    let nsparse = with_sample("mined");
    let mine = |out: &str| nsparse.json(&format!("mine --data mined --engine opensearch --sample 3 --out {out}"));
    let report = mine("a.jsonl");
    mine("b.jsonl");
    assert_eq!(nsparse.read("a.jsonl"), nsparse.read("b.jsonl"));
    assert!(report["report"]["negatives"].as_u64().unwrap() > 200, "{report}");
    assert!(String::from_utf8(nsparse.read("a.jsonl")).unwrap().lines().all(|l| l.contains("engine=bm25-opensearch")));
    nsparse.ok("eval --data mined --clean");
}

#[test]
fn mined_by_a_model_in_an_index() {
    let nsparse = with_sample("vectors");
    own_index("mined-vectors");
    nsparse.ok("ingest --index mined-vectors --model model --data vectors --journal journal");
    shared().cluster.post("/mined-vectors/_refresh", Value::Null).unwrap();
    // The window ends before some positives, so their scores are asked for by id; all that passes is taken.
    let mine = "mine --data vectors --model model --depth 200 --sample 200 --relative-margin 0.02";
    let there = nsparse.json(&format!("{mine} --engine opensearch --index mined-vectors --out there.jsonl"));
    let here = nsparse.json(&format!("{mine} --out here.jsonl"));
    let rows = |file: &str| nsparse_core::rows::read(&nsparse.path(file)).unwrap();
    let (mut all, mut differing) = (0, 0);
    for (a, b) in rows("there.jsonl").iter().zip(rows("here.jsonl")) {
        assert_eq!((&a.query_id, &a.pos_id), (&b.query_id, &b.pos_id));
        assert!(a.source.as_ref().unwrap().starts_with("engine=sparse-opensearch/mined-vectors model="));
        let (there, here): (BTreeSet<&String>, BTreeSet<&String>) =
            (a.neg_ids.iter().collect(), b.neg_ids.iter().collect());
        all += here.len();
        differing += there.symmetric_difference(&here).count();
    }
    println!("{all} negatives, {differing} of them in one of the two only");
    // Scores agree to rounding: what stands at the window's or the margin's edge may go either way.
    assert!(all > 200 && differing * 50 <= all, "{differing} of {all}");
    let count = |report: &Value, key: &str| report["report"][key].as_u64().unwrap();
    assert_eq!(count(&there, "rows"), count(&here, "rows"));
    assert!(count(&here, "positives_not_found") > 0 && count(&here, "positives_out_of_reach") < 20, "{here}");
    shared().cluster.delete("/mined-vectors").unwrap();
}

#[test]
fn the_main_job_against_a_cluster() {
    let nsparse = with_sample("unused");
    let before = everything();
    let result = nsparse.json(&format!("quickstart --out q --engine opensearch --url {}", shared().url));
    for method in ["bm25", "idf", "trained"] {
        let ndcg = result["methods"][method]["metrics"]["ndcg@10"].as_f64().unwrap();
        println!("{method}: nDCG@10 {ndcg:.4}");
        // The rankings come from the engine, and the embedded index gives the same figures for vectors.
        let local = match method {
            "bm25" => continue,
            "idf" => "idf",
            _ => "sparse",
        };
        let here = nsparse
            .json(&format!("eval --data q/data --model q/run/model --engine local --method {local} --depth 100"));
        let here = here["metrics"]["ndcg@10"].as_f64().unwrap();
        assert!((ndcg - here).abs() < 5e-5, "{method}: {ndcg} and {here}");
    }
    assert!(everything().contains("index nsparse-quickstart"));
    // What it made is taken back in the way it says.
    nsparse.ok("undeploy q/deployment.json --delete-index");
    nsparse.ok("eval --data q/data --clean");
    let left: Vec<String> = everything()
        .difference(&before)
        .filter(|n| n.contains("quickstart") || n.contains("-data-"))
        .cloned()
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// Whoever fuses, and whatever page is asked for, there is one ranking.
#[test]
fn pages_of_a_hybrid_ranking_are_parts_of_one() {
    let nsparse = with_sample("hybrid-pages");
    nsparse.ok("export model --out package");
    nsparse.ok("deploy package --side client --index hybrid-pages --replicas 0");
    nsparse.ok("ingest --deployment deployment.json --model model --data hybrid-pages --journal journal");
    // With neural-search, which is stood in for, the cluster fuses.
    let standin = StandIn::start(Options { upstream: Some(shared().url.clone()), ..Options::default() });
    let there = "--deployment deployment.json";
    let ways = [
        (format!("{there} --url {}", standin.url()), "hybrid query of the cluster"),
        (format!("{there} --url {} --fusion minmax", standin.url()), "fused here"),
        (there.to_owned(), "fused here"),
        ("--engine local --data hybrid-pages".to_owned(), "ranked here"),
    ];
    for (way, how) in ways {
        let ask = |from: usize, k: usize| {
            let mut command = nsparse.command(["search", "the posting list of a term", "--method", "hybrid", "--json"]);
            command.args(["--model", "model"]).args(way.split(' '));
            command.args(["--from", &from.to_string(), "-k", &k.to_string()]);
            finish(command)
        };
        let page = |from: usize, k: usize| {
            let found = ask(from, k).json();
            assert!(found["how"].as_str().unwrap().contains(how), "{way}: {}", found["how"]);
            found["results"].as_array().unwrap().clone()
        };
        let whole = page(0, 200);
        assert!(whole.len() > 60, "{way}: {}", whole.len());
        let parts: Vec<Value> =
            [(0, 10), (10, 10), (20, 30), (50, 150)].iter().flat_map(|&(f, k)| page(f, k)).collect();
        assert_eq!(parts, whole, "{way}");
        assert!(whole[0]["title"].as_str().is_some_and(|title| !title.is_empty()), "{}", whole[0]);
        let deep = ask(995, 10);
        assert_eq!(deep.code, Some(2), "{way}");
        assert!(deep.stderr.contains("has 1000 documents, and 996 to 1005 are asked for"), "{}", deep.stderr);
    }
    nsparse.ok("undeploy deployment.json --delete-index");
}

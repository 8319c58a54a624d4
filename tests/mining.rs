//! Mining by a trained model, the second stage, and the measuring of all checkpoints, on the sample collection with a
//! tiny model.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::float_cmp, reason = "the same computation gives the same bits")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use nsparse_core::rows::{self, TrainingRow};
use nsparse_core::trec;
use nsparse_integration_tests::cli::{Nsparse, signal, wait_until};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

/// With the sample collection in `set`, a small model with random weights in `model` and another in `other`.
fn with_sample() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    write(&nsparse.path("other"), &Shape::small(), 4).unwrap();
    nsparse
}

fn rows_of(nsparse: &Nsparse, file: &str) -> Vec<TrainingRow> {
    rows::read(&nsparse.path(file)).unwrap()
}

fn count(value: &Value, key: &str) -> usize {
    value[key].as_u64().unwrap_or_else(|| panic!("no count `{key}` in {value}")) as usize
}

fn text(nsparse: &Nsparse, file: &str) -> String {
    String::from_utf8(nsparse.read(file)).unwrap()
}

#[test]
fn a_model_mines_and_its_limits_hold() {
    let nsparse = with_sample();
    let mine = "mine --data set --model model --depth 60 --sample 5";
    let report = nsparse.json(&format!("{mine} --out a.jsonl --run-out a.trec"));
    // Vectors at hand give the same rows and rankings; so does a second run, from the cache.
    nsparse.ok("encode --data set --model model --format binary --out v.nsv");
    nsparse.ok(&format!("{mine} --vectors v.nsv --out b.jsonl --run-out b.trec"));
    nsparse.ok(&format!("{mine} --out c.jsonl"));
    assert!(nsparse.read("a.jsonl") == nsparse.read("b.jsonl") && nsparse.read("a.jsonl") == nsparse.read("c.jsonl"));
    assert_eq!(nsparse.read("a.trec"), nsparse.read("b.trec"));
    // The ranking is the one that `eval` measures.
    nsparse.ok("eval --data set --engine local --model model --split train --depth 60 --out measured");
    let run = trec::read_run(&nsparse.path("a.trec")).unwrap();
    let measured = trec::read_run(&nsparse.path("measured/run.trec")).unwrap();
    let by_document = |run: &trec::Run, query: &str| -> BTreeMap<String, u32> {
        run[query].iter().map(|h| (h.id.clone(), h.score.to_bits())).collect()
    };
    assert!(run.keys().eq(measured.keys()));
    assert!(run.keys().all(|query| by_document(&run, query) == by_document(&measured, query)));

    let qrels = trec::read_qrels(&nsparse.path("set/qrels/train.tsv")).unwrap();
    let rows = rows_of(&nsparse, "a.jsonl");
    assert_eq!(rows.iter().filter_map(|r| r.query_id.clone()).collect::<BTreeSet<_>>().len(), qrels.len());
    assert_eq!(count(&report["report"], "negatives"), rows.iter().map(|r| r.negs.len()).sum::<usize>());
    for row in &rows {
        let hits: Vec<&str> = run[row.query_id.as_ref().unwrap()].iter().map(|h| h.id.as_str()).collect();
        assert!(row.neg_ids.iter().all(|id| hits.contains(&id.as_str())));
        assert!(row.source.as_ref().unwrap().starts_with("engine=sparse-local model="), "{row:?}");
    }

    // Every negative is below its positive by the margin, and what was left out is counted.
    let report = nsparse.json(&format!("{mine} --relative-margin 0.01 --out margin.jsonl"));
    let scores = |query: &str| -> BTreeMap<&str, f32> { run[query].iter().map(|h| (h.id.as_str(), h.score)).collect() };
    let (mut expected, mut seen) = (0, 0);
    for row in rows_of(&nsparse, "margin.jsonl") {
        let query = row.query_id.unwrap();
        let scores = scores(&query);
        let positive = scores.get(row.pos_id.as_deref().unwrap()).copied();
        let Some(positive) = positive else { continue };
        assert!(row.neg_ids.iter().all(|id| scores[id.as_str()] <= positive - positive * 0.01), "{query}");
        let judged = |id: &str| qrels[&query].get(id).is_some_and(|&g| g > 0);
        expected += scores.iter().filter(|(id, s)| !judged(id) && **s > positive - positive * 0.01).count();
        seen += row.neg_ids.len();
    }
    let filtered = count(&report["report"]["filtered"], "relative_margin");
    assert!(seen > 0 && expected > 0 && filtered >= expected, "{seen} {expected} {filtered}");
    assert!(nsparse.ok(&format!("{mine} --relative-margin 0.1")).stdout.contains("relative margin"));
}

#[test]
fn teachers_judge_what_was_mined() {
    let nsparse = with_sample();
    let mine = "mine --data set --model model --depth 60 --sample 5 --absolute-margin 0.5";
    let live = nsparse.json(&format!("{mine} --teacher other --out live.jsonl"));
    // The same scores, stored: of the other model for all documents.
    nsparse.ok("eval --data set --engine local --model other --split train --depth 1000 --out teacher");
    let stored = nsparse.json(&format!("{mine} --denoise teacher/run.trec --out stored.jsonl"));
    let (live_rows, stored_rows) = (rows_of(&nsparse, "live.jsonl"), rows_of(&nsparse, "stored.jsonl"));
    let run = trec::read_run(&nsparse.path("teacher/run.trec")).unwrap();
    let complete = |r: &TrainingRow| {
        let found: BTreeSet<&str> = run[r.query_id.as_ref().unwrap()].iter().map(|h| h.id.as_str()).collect();
        found.len() == 256
    };
    let mut compared = 0;
    for (a, b) in live_rows.iter().zip(&stored_rows) {
        assert_eq!((&a.query_id, &a.pos_id), (&b.query_id, &b.pos_id));
        let scores: BTreeMap<&str, f32> =
            run[a.query_id.as_ref().unwrap()].iter().map(|h| (h.id.as_str(), h.score)).collect();
        let positive = scores.get(a.pos_id.as_deref().unwrap()).copied().unwrap_or(0.0);
        for id in &a.neg_ids {
            assert!(scores.get(id.as_str()).copied().unwrap_or(0.0) + 0.5 <= positive, "{a:?}");
        }
        if complete(a) {
            compared += 1;
            assert_eq!(a.neg_ids, b.neg_ids);
        }
    }
    assert!(compared > 0, "the teacher should find every document for some query");
    assert!(count(&live["report"]["filtered"], "absolute_margin") > 0);
    assert_eq!(count(&live["report"]["filtered"], "unscored"), 0);
    assert!(count(&stored["report"]["filtered"], "absolute_margin") > 0);
    assert!(live_rows[0].source.as_ref().unwrap().contains("teacher=sparse:"));
    assert!(stored_rows[0].source.as_ref().unwrap().contains("teacher=file:"));
}

#[test]
fn a_dense_teacher_judges_by_its_own_scores() {
    let nsparse = with_sample();
    nsparse.write("dense.yaml", "teachers: {members: [{kind: dense, path: other}]}\n");
    let mine = "mine --data set --sample 40 --depth 40";
    let report = nsparse.json(&format!("{mine} --absolute-margin 0 --teachers dense.yaml --out judged.jsonl"));
    nsparse.ok(&format!("{mine} --out all.jsonl"));
    assert!(count(&report["report"]["filtered"], "absolute_margin") > 0);
    // `nsparse score` gives the same teacher's scores for rows: the positive's stands first.
    nsparse.ok("score all.jsonl --teachers dense.yaml --raw --out scored.jsonl");
    let scored: BTreeMap<(String, String), TrainingRow> = rows_of(&nsparse, "scored.jsonl")
        .into_iter()
        .map(|row| ((row.query_id.clone().unwrap(), row.docs[0].clone()), row))
        .collect();
    let mut left_out = 0;
    for row in rows_of(&nsparse, "judged.jsonl") {
        let Some(all) = scored.get(&(row.query_id.clone().unwrap(), row.pos.clone().unwrap())) else { continue };
        let passing: BTreeSet<&String> =
            all.docs[1..].iter().zip(&all.scores[1..]).filter(|(_, s)| **s <= all.scores[0]).map(|(d, _)| d).collect();
        assert_eq!(row.negs.iter().collect::<BTreeSet<_>>(), passing, "{:?}", row.query_id);
        assert!(row.source.unwrap().contains(" teacher=dense:"));
        left_out += all.docs.len() - 1 - passing.len();
    }
    assert!(left_out > 0);
    nsparse.write("two.yaml", "teachers: {members: [{kind: bm25}, {kind: dense, path: other}]}\n");
    let refused = nsparse.run(&format!("{mine} --absolute-margin 0 --teachers two.yaml"));
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("names 2 teachers"), "{}", refused.stderr);
}

#[test]
fn what_cannot_be_mined_is_said_at_once() {
    let nsparse = with_sample();
    nsparse.write("foreign.trec", "nobody Q0 nothing 1 2.5 r\n");
    nsparse.write("kd.jsonl", "{\"query\":\"q\",\"docs\":[\"a\",\"b\"],\"scores\":[1,2]}\n");
    let mine = "mine --data set --model model";
    for (arguments, part) in [
        (format!("{mine} --teacher other"), "no limit on its scores"),
        (format!("{mine} --denoise foreign.trec --max-score 3"), "no score for any query"),
        (format!("{mine} --relative-margin 2"), "relative margin is 2"),
        (format!("{mine} --max-score 1 --min-score 3"), "No score is at least 3"),
        (format!("{mine} --margin-from lowest"), "without a margin"),
        (format!("{mine} --index articles"), "An index is named"),
        (format!("{mine} --merge kd.jsonl"), "without a positive"),
        ("mine --data set --vectors v.nsv".to_owned(), "--model"),
        ("mine --data set --model set".to_owned(), "no model directory"),
        (format!("{mine} --sample 0"), "0 negatives"),
    ] {
        let outcome = nsparse.run(&arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(part), "{arguments}: {}", outcome.stderr);
        assert!(!nsparse.path("rows.jsonl").exists(), "{arguments}");
    }
}

#[test]
fn an_encoding_that_was_stopped_goes_on() {
    let nsparse = with_sample();
    // Many documents, so that a first block is done before the last.
    let corpus = text(&nsparse, "set/corpus.jsonl");
    let mut all = String::new();
    for copy in 0..64 {
        for line in corpus.lines() {
            let mut document: Value = serde_json::from_str(line).unwrap();
            if copy > 0 {
                document["_id"] = format!("{}-{copy}", document["_id"].as_str().unwrap()).into();
                document["title"] = format!("{} copy {copy}", document["title"].as_str().unwrap()).into();
            }
            all.push_str(&document.to_string());
            all.push('\n');
        }
    }
    nsparse.write("set/corpus.jsonl", &all);
    let mine = "mine --data set --model model --depth 30 --sample 3";
    let journal = || {
        let entries = std::fs::read_dir(nsparse.path("cache/vectors")).into_iter().flatten().flatten();
        let mut journals = entries.filter(|e| e.file_name().to_string_lossy().ends_with(".journal"));
        journals.next().and_then(|e| std::fs::read_to_string(e.path()).ok()).unwrap_or_default()
    };
    let mut child = nsparse.spawn(&format!("{mine} --out a.jsonl"));
    // The job's line, then one a block.
    wait_until(&mut child, "a block", || journal().lines().count() >= 2);
    signal(&child, "TERM");
    assert_ne!(child.wait().unwrap().code(), Some(0));
    assert!(!nsparse.path("a.jsonl").exists());
    let again = nsparse.ok(&format!("{mine} --out a.jsonl"));
    assert!(again.stderr.contains("documents are done already"), "{}", again.stderr);
    nsparse.ok("encode --data set --model model --format binary --out v.nsv");
    nsparse.ok(&format!("{mine} --vectors v.nsv --out b.jsonl"));
    assert!(nsparse.read("a.jsonl") == nsparse.read("b.jsonl"));
}

const FIRST: &str = "run: {dir: one, seed: 11}\nmodel: {path: model}\ndata: {dir: set, rows: rows.jsonl, max_tokens: 32}\n\
    warm_start: {steps: 20, batch_documents: 8, learning_rate: {encoder: 1e-2, head: 1e-2}}\n\
    train: {steps: 40, batch_queries: 8, negatives: 1, learning_rate: {encoder: 5e-3, head: 5e-3}}\n\
    calibration: {when: always, active_dimensions: 40}\n\
    eval: {fraction: 0.2, every: 20, documents: 60}\ncheckpoint: {every: 20, keep: 0}\n";

/// A first stage with BM25's rows in `rows.jsonl` and the run in `one`.
fn with_first_stage() -> Nsparse {
    let nsparse = with_sample();
    nsparse.write("first.yaml", FIRST);
    nsparse.ok("mine --data set --sample 2 --out rows.jsonl");
    nsparse.ok("train first.yaml");
    nsparse
}

#[test]
fn a_second_stage_knows_where_it_comes_from() {
    let nsparse = with_first_stage();
    let bm25 = rows_of(&nsparse, "rows.jsonl");
    let report =
        nsparse.json("mine --data set --model one/model --depth 60 --sample 5 --merge rows.jsonl --out two.jsonl");
    let merged = &report["merged"];
    assert_eq!((count(merged, "rows"), count(merged, "joined"), count(merged, "kept")), (bm25.len(), bm25.len(), 0));
    let rows = rows_of(&nsparse, "two.jsonl");
    assert_eq!(rows.len(), bm25.len());
    let both = bm25.iter().map(|r| r.negs.len()).sum::<usize>();
    assert_eq!(count(merged, "negatives_added") + count(merged, "duplicates"), both);
    for (row, old) in rows.iter().zip(&bm25) {
        let new: BTreeSet<&String> = row.neg_ids.iter().collect();
        assert!(old.neg_ids.iter().all(|id| new.contains(id)) && new.len() == row.neg_ids.len(), "{row:?}");
    }

    // From the first stage, and from the base.
    let second = "train first.yaml --set data.rows=two.jsonl --set warm_start.steps=0 --set train.steps=10 \
        --set calibration.when=auto";
    let summary = nsparse.json(&format!("{second} --set run.dir=two --set model.path=one/model"));
    nsparse.ok(&format!("{second} --set run.dir=base"));
    let facts =
        |run: &str| -> Value { serde_json::from_slice(&nsparse.read(&format!("{run}/model/nsparse.json"))).unwrap() };
    let (first, two, base) = (facts("one"), facts("two"), facts("base"));
    assert_eq!(summary["lineage"], two["lineage"]);
    assert_eq!(two["lineage"]["start"]["name"], "one/model");
    assert_eq!(two["lineage"]["start"]["weights_sha256"], first["weights_sha256"]);
    assert_eq!(two["lineage"]["start"]["lineage"], first["lineage"]);
    assert_eq!(base["lineage"]["start"], first["lineage"]["start"]);
    assert!(base["lineage"]["start"].get("lineage").is_none());
    let hash = nsparse_core::files::sha256_file(&nsparse.path("two.jsonl")).unwrap().0;
    let file = &two["lineage"]["rows"][0];
    assert_eq!((file["name"].as_str(), file["sha256"].as_str()), (Some("two.jsonl"), Some(hash.as_str())));
    assert_eq!(count(file, "rows"), rows.len());
    let origins = file["origins"].as_object().unwrap();
    let names: Vec<&str> = origins.keys().map(|name| name.split(' ').next().unwrap()).collect();
    assert_eq!(names, ["engine=bm25-local", "engine=sparse-local"]);
    assert!(origins.values().all(|n| n.as_u64().unwrap() > 0));
}

#[test]
fn all_checkpoints_of_a_run_are_measured_once() {
    let nsparse = with_first_stage();
    let tree = |run: &str| -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        let mut open = vec![nsparse.path(run)];
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    open.push(path);
                } else if path.file_name().unwrap() != "checkpoint-evals.json" {
                    let hash = nsparse_core::files::sha256_file(&path).unwrap().0;
                    out.insert(path.display().to_string(), hash);
                }
            }
        }
        out
    };
    let before = tree("one");
    let eval = "eval --all-checkpoints one --data set";
    let all = nsparse.json(eval);
    assert_eq!(tree("one"), before);
    let lines = all["evaluations"].as_array().unwrap();
    // Warm start to 20, then 40 more; `keep: 0` leaves them all, and a checkpoint that is a model is one line with it.
    let steps: Vec<u64> = lines.iter().map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [20, 40, 60]);
    let names: BTreeSet<&str> =
        lines.iter().flat_map(|l| l["names"].as_array().unwrap()).map(|n| n.as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["model", "step-0000020", "step-0000040", "step-0000060", "warm-start"]));
    // Each is what `nsparse eval` says of it, and the best is marked.
    for folder in ["model", "warm-start"] {
        let alone = nsparse.json(&format!("eval --data set --engine local --model one/{folder}"));
        let line = lines.iter().find(|l| l["names"].as_array().unwrap().contains(&folder.into())).unwrap();
        assert_eq!(line["metrics"], alone["metrics"], "{folder}");
        assert_eq!(line["dimensions"], alone["dimensions"], "{folder}");
        assert_eq!(line["value"], alone["metrics"]["ndcg@10"]);
    }
    let best = lines.iter().map(|l| l["value"].as_f64().unwrap()).fold(f64::MIN, f64::max);
    let marked: Vec<f64> =
        lines.iter().filter(|l| l["is_best"] == true).map(|l| l["value"].as_f64().unwrap()).collect();
    assert_eq!(marked, [best]);
    assert!(lines[0]["difference"].is_null());
    let difference = lines[2]["value"].as_f64().unwrap() - lines[0]["value"].as_f64().unwrap();
    assert!((lines[2]["difference"]["difference"]["mean"].as_f64().unwrap() - difference).abs() < 1e-12);

    // A second time nothing is encoded; one that is missing is made again and comes out the same.
    let kept = nsparse.read("one/checkpoint-evals.json");
    let again = nsparse.ok(eval);
    assert!(!again.stderr.contains("Encoding"), "{}", again.stderr);
    assert_eq!(nsparse.read("one/checkpoint-evals.json"), kept);
    assert!(again.stdout.contains(" *") && again.stdout.contains("step-0000040"), "{}", again.stdout);
    let mut file: Value = serde_json::from_slice(&kept).unwrap();
    file["evaluations"].as_array_mut().unwrap().remove(1);
    nsparse.write("one/checkpoint-evals.json", &file.to_string());
    let mended = nsparse.json(eval);
    for (a, b) in mended["evaluations"].as_array().unwrap().iter().zip(lines) {
        assert_eq!(
            (&a["metrics"], &a["weights_sha256"], &a["step"]),
            (&b["metrics"], &b["weights_sha256"], &b["step"])
        );
    }
    let cached = || std::fs::read_dir(nsparse.path("cache/vectors")).unwrap().count();
    // Of `eval --model` above.
    let left = cached();
    // Another metric is another measure, kept beside the first; nothing of the vectors stays.
    let recall = nsparse.json(&format!("{eval} --metric recall@100 --against best"));
    let lines = recall["evaluations"].as_array().unwrap();
    assert!(lines.iter().all(|l| l["difference"].is_null() == (l["is_best"] == true)));
    assert_eq!(cached(), left);

    for (arguments, part) in [
        ("eval --all-checkpoints set --data set", "no run"),
        ("eval --all-checkpoints one --data set --method bm25", "by their vectors"),
        ("eval --all-checkpoints one --data set --engine opensearch", "by their vectors"),
        ("eval --all-checkpoints one --data set --metric beauty", "`beauty` is not known"),
        ("eval --all-checkpoints one --data set --model model", "cannot be used with"),
    ] {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(part), "{arguments}: {}", outcome.stderr);
    }
}

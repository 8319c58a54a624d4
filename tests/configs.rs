//! The recipes that come with the program: each is listed, explained line by line, and trains in a tiny form.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::fmt::Write as _;
use std::path::Path;

use nsparse_integration_tests::cli::{Nsparse, finish};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Names of `configs/*.yaml`, sorted.
fn files() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(Path::new(ROOT).join("configs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn every_recipe_is_listed_and_shown_as_it_is() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let listed = nsparse.json("config list");
    let listed = listed["recipes"].as_array().unwrap();
    let mut names: Vec<&str> = listed.iter().map(|r| r["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, files());
    for recipe in listed {
        let name = recipe["name"].as_str().unwrap();
        let summary = recipe["summary"].as_str().unwrap();
        assert!(summary.len() > 20 && !summary.contains("Budget"), "{name}: {summary}");
        let text = std::fs::read_to_string(Path::new(ROOT).join(format!("configs/{name}.yaml"))).unwrap();
        let shown = nsparse.json(&format!("config show {name}"));
        assert_eq!(shown["yaml"].as_str().unwrap(), text, "{name}");
        let budget = recipe["token_budget"].as_str().unwrap();
        assert!(budget.ends_with(" M") && text.contains("# Budget: "), "{name} says no token budget: {budget}");
    }
    nsparse.ok("config show scifact --out my.yaml");
    assert_eq!(nsparse.read("my.yaml"), std::fs::read(Path::new(ROOT).join("configs/scifact.yaml")).unwrap());
}

/// Every key of a value, joined with dots; what stands in lists and maps with free keys is left out.
fn keys(prefix: &str, value: &Value, out: &mut Vec<String>) {
    if let Value::Object(map) = value {
        for (key, value) in map {
            let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            keys(&name, value, out);
            out.push(name);
        }
    }
}

/// The schema at a key: references and alternatives are followed.
fn at<'a>(schema: &'a Value, root: &'a Value, path: &[&str]) -> Option<&'a Value> {
    if let Some(name) = schema["$ref"].as_str() {
        return at(root.pointer(name.trim_start_matches('#'))?, root, path);
    }
    let mut choices = ["anyOf", "oneOf", "allOf"].iter().filter_map(|word| schema[word].as_array()).flatten();
    let Some((key, rest)) = path.split_first() else {
        let section = choices.filter_map(|choice| at(choice, root, path)).find(|s| s["properties"].is_object());
        return section.or(Some(schema));
    };
    if let Some(found) = schema["properties"].get(key).and_then(|below| at(below, root, rest)) {
        return Some(found);
    }
    choices.find_map(|choice| at(choice, root, path))
}

/// Whether a key says what it means: beside its type, or at the type that it names.
fn is_described(parent: &Value, root: &Value, key: &str) -> bool {
    let here = at(parent, root, &[]).unwrap_or(parent);
    let own = &here["properties"][key];
    let named = own["$ref"].as_str().and_then(|name| root.pointer(name.trim_start_matches('#')));
    own["description"].is_string() || named.is_some_and(|n| n["description"].is_string())
}

#[test]
fn the_schema_knows_every_key_and_says_what_it_means() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let schemas = [nsparse.json("config schema"), nsparse.json("config schema --pretrain")];
    for schema in &schemas {
        assert_eq!(schema["$schema"], "http://json-schema.org/draft-07/schema#");
    }
    let mut seen = 0;
    for name in files() {
        let shown = nsparse.json(&format!("config show {name}"));
        let schema = &schemas[usize::from(shown["command"] == "pretrain")];
        let resolved = shown["resolved"].clone();
        let mut all = Vec::new();
        keys("", &resolved, &mut all);
        for key in all {
            let path: Vec<&str> = key.split('.').collect();
            assert!(at(schema, schema, &path).is_some(), "{name}: `{key}` is not in the schema");
            seen += 1;
        }
    }
    assert!(seen > 100 * files().len(), "{seen}");
    let [schema, _] = schemas;
    // Every section and every key of a section says what it means.
    for (section, _) in schema["properties"].as_object().unwrap() {
        assert!(is_described(&schema, &schema, section), "`{section}` has no description");
        let keys = at(&schema, &schema, &[section]).unwrap()["properties"].as_object().unwrap();
        for key in keys.keys() {
            assert!(is_described(at(&schema, &schema, &[section]).unwrap(), &schema, key), "`{section}.{key}`");
        }
        // A key that is not there is refused by the schema as by the program.
        assert_eq!(at(&schema, &schema, &[section]).unwrap()["additionalProperties"], false, "{section}");
    }
    nsparse.ok("config schema --out recipe.schema.json");
    assert_eq!(serde_json::from_slice::<Value>(&nsparse.read("recipe.schema.json")).unwrap(), schema);
}

#[test]
fn a_recipe_that_is_not_there() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    let failed = nsparse.run("config show scifakt");
    assert_eq!(failed.code, Some(2));
    assert!(failed.stderr.contains("`scifakt`") && failed.stderr.contains("scifact,"), "{}", failed.stderr);
    nsparse.write("my.yaml", "mine");
    let failed = nsparse.run("config show scifact --out my.yaml");
    assert_eq!(failed.code, Some(2));
    assert!(failed.stderr.contains("`my.yaml` is there already"), "{}", failed.stderr);
    assert_eq!(nsparse.read("my.yaml"), b"mine");
}

/// With the sample collection, a small random model, and rows of every form that a recipe names.
fn with_everything() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(&Path::new(ROOT).join("samples/retrieval"), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse.ok("mine --data set --depth 40 --sample 9 --out rows.jsonl");
    nsparse.ok("data sentences --data set --out sentences.jsonl");
    let rows: Vec<Value> = String::from_utf8(nsparse.read("rows.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let mut scored = String::new();
    let mut lists = String::new();
    for row in &rows {
        let texts = |key: &str| row[key].as_array().cloned().unwrap_or_default();
        let documents: Vec<Value> = std::iter::once(row["pos"].clone()).chain(texts("negs")).collect();
        let scores: Vec<usize> = (0..documents.len()).rev().collect();
        let line = serde_json::json!({ "query": row["query"], "docs": documents, "scores": scores });
        writeln!(scored, "{line}").unwrap();
        let ids: Vec<String> = texts("neg_ids").iter().map(|id| id.as_str().unwrap().to_owned()).collect();
        writeln!(lists, "{}\t{}", row["query_id"].as_str().unwrap(), ids.join(",")).unwrap();
    }
    nsparse.write("kd.jsonl", &scored);
    nsparse.write("negatives.tsv", &lists);
    nsparse
}

/// What makes a recipe small; everything else stays as it is written.
fn tiny(name: &str) -> Vec<&'static str> {
    let mut sets =
        vec!["run.dir=run", "run.device=cpu", "run.precision=null", "model.path=model", "checkpoint.every=1"];
    if name == "korean-english-pretrain" {
        sets.extend(["data.files=[set/corpus.jsonl]", "data.max_tokens=40", "data.held_out=0.1", "mlm.steps=2"]);
        sets.extend(["mlm.batch_windows=4", "mlm.evaluate_every=1", "mlm.evaluate_windows=8", "mlm.level.documents=8"]);
        sets.extend(["pairs.train.steps=2", "pairs.train.batch_queries=2", "pairs.evaluate_pairs=8"]);
        return sets;
    }
    sets.extend(["data.dir=set", "data.max_tokens=40", "data.idf={formula: bm25}", "calibration.documents=8"]);
    sets.extend(["warm_start.batch_documents=4", "train.batch_queries=3", "eval.documents=30"]);
    if name != "own-unjudged" {
        sets.extend(["train.steps=2", "eval.every=1"]);
    }
    if ["scifact", "scifact-distilled", "own-judged", "own-unjudged", "korean-english-baseline", "sample"]
        .contains(&name)
    {
        sets.push("warm_start.steps=2");
    }
    match name {
        "cocondenser-stage1" => sets.push("data.sets=[{hard_negatives: negatives.tsv, missing: skip}]"),
        "cocondenser-stage2" => {
            sets.push("data.sets=[{hard_negatives: negatives.tsv, missing: skip}, {rows: rows.jsonl}]");
        }
        "tuning-sample-l0" => sets.push("data.rows=kd.jsonl"),
        "own-unjudged" => {}
        "scifact-distilled" => sets.extend([
            "data.sets=[{name: claims, rows: rows.jsonl, weight: 1}, {name: sentences, rows: sentences.jsonl, weight: 3}]",
            "teachers.members=[{kind: dense, path: model, pooling: mean, weight: 0.6}, {kind: bm25, weight: 0.4}]",
        ]),
        _ => sets.push("data.rows=rows.jsonl"),
    }
    match name {
        "tuning-sample-kd" => sets.push(
            "teachers.members=[{kind: dense, path: model, pooling: cls, normalize: true}, {kind: sparse, path: model, query: encoder}]",
        ),
        "sedr" => sets.extend(["data.template.pattern='{title} {text}'", "data.segments.min_last=5"]),
        _ => {}
    }
    sets
}

#[test]
fn every_recipe_trains_in_a_tiny_form() {
    let nsparse = with_everything();
    for name in files() {
        nsparse.ok(&format!("config show {name} --out {name}.yaml"));
        let command = nsparse.json(&format!("config show {name}"))["command"].as_str().unwrap().to_owned();
        let recipe = format!("{name}.yaml");
        let mut arguments = vec!["--json", command.as_str(), recipe.as_str(), "--replace"];
        let sets = tiny(&name);
        arguments.extend(sets.iter().flat_map(|set| ["--set", set]));
        let trained = finish(nsparse.command(arguments));
        assert_eq!(trained.code, Some(0), "{name}: {}", nsparse.shown(&trained));
        assert_eq!(trained.json()["finished"], true, "{name}");
        assert!(nsparse.path("run/model/model.safetensors").is_file(), "{name}");
        assert!(nsparse.path("run/model/idf.json").is_file(), "{name}");
    }
}

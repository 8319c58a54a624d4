//! Bad input, as a user meets it: one message that says what, where and what to do; the right exit code; and no
//! half-written file in place of a good one.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;

use nsparse_core::files::sha256_file;
use nsparse_integration_tests::cli::{Nsparse, Outcome, SmallServer, finish};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

fn nsparse() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

/// With the sample collection in `set` and a small model with random weights in `model`.
fn with_sample() -> Nsparse {
    let nsparse = nsparse();
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse
}

/// Wrong use: exit code 2, nothing on standard output, and the words of the snapshot.
fn refused(nsparse: &Nsparse, arguments: &str) -> String {
    failed(nsparse, &nsparse.run(arguments), 2)
}

fn failed(nsparse: &Nsparse, outcome: &Outcome, code: i32) -> String {
    let shown = nsparse.shown(outcome);
    assert_eq!(outcome.code, Some(code), "{shown}");
    assert_eq!(outcome.stdout, "", "{shown}");
    // One message: a line that begins with "error:", and no Rust in it.
    assert_eq!(outcome.stderr.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{shown}");
    assert!(!outcome.stderr.contains("panicked") && !outcome.stderr.contains("Error {"), "{shown}");
    shown
}

/// Replaces one line (from 1) of a file.
fn replace_line(nsparse: &Nsparse, file: &str, line: usize, by: &str) {
    let text = String::from_utf8(nsparse.read(file)).unwrap();
    let lines: Vec<&str> = text.lines().enumerate().map(|(i, old)| if i + 1 == line { by } else { old }).collect();
    nsparse.write(file, &(lines.join("\n") + "\n"));
}

#[test]
fn an_unknown_key_of_a_recipe() {
    let nsparse = with_sample();
    nsparse.write("recipe.yaml", "model: {path: model}\ndata:\n  dir: set\n  max_token: 32\n");
    insta::assert_snapshot!("unknown_key", refused(&nsparse, "train recipe.yaml"));
    nsparse.write("recipe.yaml", "model: {path: model}\ndata: {dir: set, max_tokens: 32}\n");
    insta::assert_snapshot!("unknown_key_typed", refused(&nsparse, "train recipe.yaml --set train.epoch=2"));
    insta::assert_snapshot!("wrong_value", refused(&nsparse, "train recipe.yaml --set train.steps=many"));
}

#[test]
fn a_broken_line_and_a_missing_field_are_named_by_file_and_line() {
    let nsparse = with_sample();
    replace_line(&nsparse, "set/corpus.jsonl", 3, r#"{"_id": "d3", "text": "cut of"#);
    for command in
        ["eval --data set --method bm25 --engine local", "mine --data set", "idf --data set --tokenizer model"]
    {
        let shown = refused(&nsparse, command);
        assert!(shown.contains("Broken line set/corpus.jsonl:3: not JSON"), "{command}: {shown}");
    }
    insta::assert_snapshot!("broken_line", refused(&nsparse, "mine --data set"));
    nsparse.copy(Path::new(SAMPLE), "set");
    replace_line(&nsparse, "set/queries.jsonl", 2, r#"{"_id": "q002", "question": "where is the text"}"#);
    insta::assert_snapshot!("missing_field", refused(&nsparse, "mine --data set"));
    insta::assert_snapshot!("field_typed", refused(&nsparse, "idf --data set --tokenizer model --text-field body"));
}

#[test]
fn a_missing_column_of_judgments() {
    let nsparse = with_sample();
    replace_line(&nsparse, "set/qrels/test.tsv", 4, "q070");
    insta::assert_snapshot!("missing_column", refused(&nsparse, "eval --data set --method bm25 --engine local"));
    nsparse.write("qrels.txt", "q1 0 d1 1\nq1 0 d2 high\n");
    nsparse.write("run.txt", "q1 Q0 d1 1 2.5 x\n");
    insta::assert_snapshot!("grade_no_number", refused(&nsparse, "eval --qrels qrels.txt --run run.txt"));
    nsparse.write("qrels.txt", "q1 0 d1 1\n");
    nsparse.write("run.txt", "q1 Q0 d1 1 2.5 x\nq1 Q0 d2\n");
    insta::assert_snapshot!("run_column", refused(&nsparse, "eval --qrels qrels.txt --run run.txt"));
}

#[test]
fn data_that_is_not_there() {
    let nsparse = with_sample();
    insta::assert_snapshot!("no_data", refused(&nsparse, "eval --method bm25 --engine local"));
    insta::assert_snapshot!("unknown_beir_name", refused(&nsparse, "data scifacts"));
    insta::assert_snapshot!(
        "no_set_there",
        refused(&nsparse, "eval --beir scifact --data-dir set/qrels --method bm25")
    );
    insta::assert_snapshot!("no_such_folder", refused(&nsparse, "mine --data nowhere"));
    insta::assert_snapshot!("unknown_split", refused(&nsparse, "eval --data set --split dev --method bm25"));
    std::fs::remove_dir_all(nsparse.path("set/qrels")).unwrap();
    insta::assert_snapshot!("no_judgments", refused(&nsparse, "eval --data set --method bm25 --engine local"));
    insta::assert_snapshot!("no_model", refused(&nsparse, "search word --data set --engine local"));
}

#[test]
fn a_model_of_another_architecture() {
    let nsparse = with_sample();
    let config = String::from_utf8(nsparse.read("model/config.json")).unwrap();
    let good = "eval --data set --engine local --model model";
    nsparse.ok(good);
    nsparse.write("model/config.json", &config.replace("\"bert\"", "\"roberta\""));
    nsparse.write("recipe.yaml", "run: {dir: run}\nmodel: {path: model}\ndata: {dir: set, max_tokens: 32}\n");
    let expected = refused(&nsparse, "export model --out package");
    for command in ["train recipe.yaml", "train recipe.yaml --check", "inspect word --model model", good] {
        let shown = refused(&nsparse, command);
        let error = |text: &str| text.lines().find(|l| l.starts_with("error: ")).unwrap().to_owned();
        assert_eq!(error(&shown), error(&expected), "{command}");
    }
    insta::assert_snapshot!("architecture", expected);
    assert!(!nsparse.path("package").exists());
}

#[test]
fn a_checkpoint_of_another_recipe() {
    let nsparse = with_sample();
    nsparse.write(
        "recipe.yaml",
        "run: {dir: run}\nmodel: {path: model}\ndata: {dir: set, max_tokens: 32}\n\
         warm_start: {steps: 2, batch_documents: 4}\ntrain: {steps: 2, batch_queries: 4}\n\
         eval: {fraction: 0}\ncheckpoint: {every: 1, keep: 9}\n",
    );
    nsparse.ok("train recipe.yaml");
    let before = sha256_file(&nsparse.path("run/model/model.safetensors")).unwrap();
    let set = "--set train.batch_queries=5 --set run.seed=1";
    insta::assert_snapshot!("another_recipe", refused(&nsparse, &format!("train recipe.yaml --resume {set}")));
    insta::assert_snapshot!("run_is_there", refused(&nsparse, "train recipe.yaml"));
    assert_eq!(sha256_file(&nsparse.path("run/model/model.safetensors")).unwrap(), before);
    nsparse.ok("train recipe.yaml --resume");
}

#[test]
fn a_node_that_is_not_there_and_one_that_wants_a_password() {
    let mut nsparse = with_sample();
    nsparse.ok("export model --out package");
    let dead = "--url http://127.0.0.1:1";
    let shown = failed(&nsparse, &nsparse.run(&format!("deploy package {dead}")), 3);
    for command in [
        "eval --data set --method bm25",
        "mine --data set --engine opensearch",
        "ingest --data set --index x --model model",
        "search word --index x --model model",
        "quickstart --engine opensearch",
    ] {
        assert_eq!(failed(&nsparse, &nsparse.run(&format!("{command} {dead}")), 3), shown, "{command}");
    }
    insta::assert_snapshot!("dead_node", shown);
    // Nothing was computed before: the quickstart's folder is not even there.
    assert!(!nsparse.path("quickstart").exists() && !nsparse.path("deployment.json").exists());
    insta::assert_snapshot!("no_node", refused(&nsparse, "search word --index x --model model"));

    let secured = SmallServer::start(|_| (401, b"Unauthorized".to_vec()));
    let shown = |nsparse: &Nsparse, user: &str| {
        refused(nsparse, &format!("deploy package --url {} {user}", secured.url)).replace(&secured.url, "[URL]")
    };
    insta::assert_snapshot!("no_password", shown(&nsparse, "--user admin"));
    insta::assert_snapshot!("no_user", shown(&nsparse, ""));
    nsparse.set("NSPARSE_PASSWORD", "wrong-and-secret");
    let wrong = shown(&nsparse, "--user admin");
    insta::assert_snapshot!("wrong_password", wrong);
    let loud = nsparse.run(&format!("deploy package --url {} --user admin -vv", secured.url));
    assert!(!loud.stderr.contains("wrong-and-secret"), "{}", loud.stderr);
    // A password that is refused is not tried again and again: accounts get locked.
    assert_eq!(secured.requests(), 3);
}

/// Takes some entries out of a zip's `idf.json` and makes the package's hashes fit it again.
fn shorten_idf(package: &Path) {
    let manifest_path = package.join("package.json");
    let mut manifest: Value = nsparse_core::files::read_json(&manifest_path).unwrap();
    let zip = package.join(manifest["query"]["zip"].as_str().unwrap());
    let mut entries = Vec::new();
    let mut archive = zip::ZipArchive::new(std::fs::File::open(&zip).unwrap()).unwrap();
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        entries.push((entry.name().unwrap().into_owned(), bytes));
    }
    let idf = &mut entries.iter_mut().find(|(name, _)| name == "idf.json").unwrap().1;
    let mut table: serde_json::Map<String, Value> = serde_json::from_slice(idf).unwrap();
    table.remove("search").unwrap();
    table.insert("foreign".to_owned(), 1.0.into());
    *idf = serde_json::to_vec(&table).unwrap();
    let mut out = zip::ZipWriter::new(std::fs::File::create(&zip).unwrap());
    for (name, bytes) in entries {
        out.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        out.write_all(&bytes).unwrap();
    }
    out.finish().unwrap();
    let (sha256, bytes) = sha256_file(&zip).unwrap();
    let register = package.join(manifest["query"]["register"].as_str().unwrap());
    let mut body: Value = nsparse_core::files::read_json(&register).unwrap();
    body["model_content_hash_value"] = sha256.clone().into();
    body["model_content_size_in_bytes"] = bytes.into();
    nsparse_core::files::write_json(&register, &body).unwrap();
    manifest["query"]["sha256"] = sha256.into();
    manifest["query"]["bytes"] = bytes.into();
    nsparse_core::files::write_json(&manifest_path, &manifest).unwrap();
}

#[test]
fn a_package_whose_tokenizer_and_idf_disagree() {
    let nsparse = with_sample();
    nsparse.ok("export model --out package");
    shorten_idf(&nsparse.path("package"));
    // It would answer anything: the package is refused before anything is made.
    let asked = SmallServer::start(|path| {
        let answer = r#"{"name":"n","cluster_name":"c","version":{"distribution":"opensearch","number":"2.16.0"}}"#;
        if path == "/" { (200, answer.into()) } else { (200, b"[]".to_vec()) }
    });
    let shown = refused(&nsparse, &format!("deploy package --url {}", asked.url)).replace(&asked.url, "[URL]");
    insta::assert_snapshot!("package_disagrees", shown);
    assert!(!nsparse.path("deployment.json").exists());

    // The same in the model directory: neither exported nor used.
    let idf = String::from_utf8(nsparse.read("model/idf.json")).unwrap();
    nsparse.write("model/idf.json", &idf.replacen("\"search\"", "\"foreign\"", 1));
    insta::assert_snapshot!("model_disagrees", refused(&nsparse, "export model --out package2"));
    assert!(!nsparse.path("package2").exists());
    refused(&nsparse, "inspect word --model model");
    refused(&nsparse, "search word --data set --engine local --model model");
}

/// A file system of 1 MiB that is full but for 4 KiB, in a mount namespace of its own, where the system lets us
/// make one; else a limit of 4 KiB on each file. The file `full/good` stands there before and after.
fn on_a_full_disk(nsparse: &Nsparse, arguments: &[&str]) -> (Outcome, &'static str) {
    std::fs::create_dir_all(nsparse.path("full")).unwrap();
    let probe = nsparse.through_shell("exec unshare -rm mount -t tmpfs -o size=1m none full", &[]);
    if finish(probe).code == Some(0) {
        let script = r#"exec unshare -rm sh -c '
            mount -t tmpfs -o size=1m none full || exit 99
            mkdir full/good; cp -r good/. full/good
            dd if=/dev/zero of=full/fill bs=4096 2>/dev/null; truncate -s -4096 full/fill
            "$@"; code=$?
            diff -r good full/good >&2 && ls -A full >&2
            exit $code' sh "$@""#;
        (finish(nsparse.through_shell(script, arguments)), "No space left on device")
    } else {
        let script = r#"mkdir full/good; cp -r good/. full/good; trap "" XFSZ
            (ulimit -f 4; exec "$@"); code=$?
            diff -r good full/good >&2 && ls -A full >&2
            exit $code"#;
        (finish(nsparse.through_shell(script, arguments)), "File too large")
    }
}

#[test]
fn a_full_disk_leaves_what_was_good() {
    for (arguments, good) in [
        ("idf --data set --tokenizer model --out full/good/idf.json", "idf.json"),
        ("mine --data set --out full/good/rows.jsonl", "rows.jsonl"),
        ("export model --out full/good", "package.json"),
        ("eval --data set --method bm25 --engine local --out full/good", "run.trec"),
    ] {
        let nsparse = with_sample();
        nsparse.write(&format!("good/{good}"), "made earlier\n");
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (outcome, words) = on_a_full_disk(&nsparse, &arguments);
        let shown = failed(&nsparse, &outcome, 3);
        assert!(shown.contains("\nerror: Failed to write `"), "{shown}");
        assert!(shown.contains("full/good/") && shown.contains(words), "{shown}");
        // What was there is as it was, and nothing half-written lies beside it.
        assert!(outcome.stderr.ends_with("good\n") || outcome.stderr.ends_with("fill\ngood\n"), "{shown}");
        if words.starts_with("No space") {
            assert!(shown.contains("hint: the disk is full: free some space"), "{shown}");
        }
    }
}

#[test]
fn what_json_says_about_a_failure() {
    let nsparse = nsparse();
    let outcome = nsparse.run("eval --method bm25 --json");
    assert_eq!(outcome.code, Some(2));
    let object = outcome.json();
    assert_eq!(object["error"], "No data is named");
    assert_eq!(object["exit_code"], 2);
    assert!(object["hint"].as_str().unwrap().contains("--beir NAME"));
    // What clap refuses has the same exit code.
    assert_eq!(nsparse.run("evaluate").code, Some(2));
    assert_eq!(nsparse.run("eval --metod bm25").code, Some(2));
    assert_eq!(nsparse.run("eval --data a --beir b").code, Some(2));
}

#[test]
fn a_reader_that_left_is_no_reason_to_panic() {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    for arguments in [vec!["config", "list"], vec!["--json", "config", "schema"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = nsparse.command(&arguments);
        command.stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped());
        let outcome = command.spawn().unwrap().wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&outcome.stderr), "", "{arguments:?}");
        assert_eq!(outcome.status.code(), Some(0), "{arguments:?}");
    }
}

//! `nsparse encode` and `nsparse reduce`: forms, order, shards, and jobs that are killed or stopped and go on.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Stdio};

use nsparse_core::beir::{Document, FieldNames, read_corpus};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::vector_files::{FileMeta, VectorFile};
use nsparse_core::{DocumentEncoder as _, SparseVector};
use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::cli::{Nsparse, finish, signal, wait_until};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");
const FORMATS: [&str; 3] = ["jsonl", "anserini", "binary"];

/// With the sample collection in `set` and a small model with random weights in `model`.
fn with_sample() -> Nsparse {
    let nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.copy(Path::new(SAMPLE), "set");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    nsparse
}

fn documents(nsparse: &Nsparse) -> Vec<Document> {
    read_corpus(&nsparse.path("set/corpus.jsonl"), &FieldNames::default()).unwrap()
}

/// Each document's vector, encoded alone.
fn one_by_one(nsparse: &Nsparse) -> Vec<SparseVector> {
    let folder = nsparse.path("model");
    let encoder = SparseEncoder::load(&folder, Device::Cpu).unwrap();
    let template = ModelDir::open(&folder).unwrap().facts().unwrap().template;
    let encode = |d: &Document| encoder.encode(&[template.apply(d).as_str()]).unwrap().remove(0);
    documents(nsparse).iter().map(encode).collect()
}

fn lines(nsparse: &Nsparse, file: &str) -> Vec<Value> {
    let text = String::from_utf8(nsparse.read(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn binary(nsparse: &Nsparse, file: &str) -> Vec<(String, SparseVector)> {
    VectorFile::open(&nsparse.path(file)).unwrap().collect::<nsparse_core::Result<_>>().unwrap()
}

/// Lines of the journal behind its first: blocks that are done.
fn blocks_done(nsparse: &Nsparse, file: &str) -> usize {
    let journal = std::fs::read(nsparse.path(&format!("{file}.journal"))).unwrap_or_default();
    journal.split(|&b| b == b'\n').count().saturating_sub(2)
}

#[test]
fn the_forms_hold_the_vectors_of_single_texts_in_the_input_order() {
    let nsparse = with_sample();
    let (documents, expected) = (documents(&nsparse), one_by_one(&nsparse));
    let vocabulary = ModelDir::open(&nsparse.path("model")).unwrap().tokenizer().unwrap().vocabulary().to_vec();
    let ids: HashMap<&str, u32> = vocabulary.iter().enumerate().map(|(i, w)| (w.as_str(), i as u32)).collect();
    let template = ModelDir::open(&nsparse.path("model")).unwrap().facts().unwrap().template;
    let common = "encode --data set --model model --block 100 --batch-tokens 300";
    let summary = nsparse.json(&format!("{common} --out v.nsv --format binary"));
    nsparse.ok(&format!("{common} --out v9.nsv --format binary --weights stored"));
    nsparse.ok(&format!("{common} --out v.jsonl"));
    nsparse.ok(&format!("{common} --out v9.jsonl --weights stored"));
    nsparse.ok(&format!("{common} --out a.jsonl --format anserini --quantize 250"));

    let vectors = binary(&nsparse, "v.nsv");
    assert!(vectors.iter().map(|(id, _)| id).eq(documents.iter().map(|d| &d.id)));
    for ((id, vector), alone) in vectors.iter().zip(&expected) {
        // Exactly what a text gives alone: batches have no padding, and sums no order of their own.
        assert_eq!(vector, alone, "{id}");
    }
    let stored: Vec<SparseVector> = expected.iter().map(SparseVector::as_stored).collect();
    assert!(binary(&nsparse, "v9.nsv").into_iter().map(|(_, v)| v).eq(stored.iter().cloned()));
    let header = VectorFile::open(&nsparse.path("v.nsv")).unwrap().header().clone();
    assert_eq!(header.vocabulary, vocabulary);

    let of_line = |line: &Value| {
        let weights = line["vector"].as_object().unwrap().iter();
        SparseVector::from_pairs(weights.map(|(w, x)| (ids[w.as_str()], x.as_f64().unwrap() as f32)).collect())
    };
    for (file, expected) in [("v.jsonl", &expected), ("v9.jsonl", &stored)] {
        let lines = lines(&nsparse, file);
        assert!(lines.iter().map(|l| l["id"].as_str().unwrap()).eq(documents.iter().map(|d| &d.id)));
        assert!(lines.iter().map(of_line).eq(expected.iter().cloned()), "{file}");
    }
    for ((line, document), vector) in lines(&nsparse, "a.jsonl").iter().zip(&documents).zip(&expected) {
        assert_eq!(line["contents"], template.apply(document));
        let impacts = vector.iter().map(|(id, w)| (id, (w * 250.0).round_ties_even())).filter(|(_, w)| *w > 0.0);
        assert_eq!(of_line(line), SparseVector::from_pairs(impacts.collect()), "{}", document.id);
        assert!(line["vector"].as_object().unwrap().values().all(Value::is_i64));
    }

    let number = |key: &str| summary[key].as_f64().unwrap_or_else(|| panic!("no number `{key}` in {summary}"));
    let active: usize = expected.iter().map(SparseVector::len).sum();
    assert_eq!(summary["documents"], documents.len());
    assert_eq!(summary["encoded"], documents.len());
    assert_eq!(summary["finished"], true);
    assert!((number("mean_active_dimensions") - active as f64 / documents.len() as f64).abs() < 1e-9);
    assert_eq!(summary["zero_vectors"], expected.iter().filter(|v| v.is_empty()).count());
    let tokenizer = ModelDir::open(&nsparse.path("model")).unwrap().tokenizer().unwrap();
    let facts = ModelDir::open(&nsparse.path("model")).unwrap().facts().unwrap();
    let tokens = |d: &Document| tokenizer.window(&template.apply(d), facts.max_tokens).unwrap().0.len();
    assert_eq!(summary["tokens"], documents.iter().map(tokens).sum::<usize>());
    for rate in ["seconds", "documents_per_second", "tokens_per_second"] {
        assert!(number(rate) > 0.0, "{rate}");
    }
}

#[test]
fn threads_and_names_of_fields_change_nothing() {
    let nsparse = with_sample();
    nsparse.ok("encode --data set --model model --out v.jsonl");
    nsparse.ok("encode set/corpus.jsonl --model model --out one.jsonl --threads 1");
    nsparse.ok("encode --data set --model model --out three.jsonl --threads 3");
    assert!(nsparse.read("v.jsonl") == nsparse.read("one.jsonl"));
    assert!(nsparse.read("v.jsonl") == nsparse.read("three.jsonl"));
    let renamed: Vec<String> = documents(&nsparse)
        .iter()
        .map(|d| serde_json::json!({ "body": d.text, "head": d.title, "number": d.id, "more": [1] }).to_string())
        .collect();
    nsparse.write("own.jsonl", &(renamed.join("\n\n") + "\n"));
    nsparse
        .ok("encode own.jsonl --id-field number --title-field head --text-field body --model model --out own-v.jsonl");
    assert!(nsparse.read("v.jsonl") == nsparse.read("own-v.jsonl"));
}

#[test]
fn shards_reduce_to_the_whole_byte_for_byte() {
    let nsparse = with_sample();
    for (format, of) in FORMATS.into_iter().zip([2, 3, 20]) {
        let common = format!("encode --data set --model model --format {format} --block 16");
        nsparse.ok(&format!("{common} --out whole"));
        let mut parts = Vec::new();
        let mut documents = 0;
        for index in 1..=of {
            let part = format!("part-{index}");
            let summary = nsparse.json(&format!("{common} --out {part} --shard {index}/{of}"));
            documents += summary["documents"].as_u64().unwrap();
            // The order in which they are named does not matter.
            parts.insert(0, part);
        }
        assert_eq!(documents, 256);
        let reduce = format!("reduce {} --out merged", parts.join(" "));
        let summary = nsparse.json(&reduce);
        assert_eq!((&summary["documents"], &summary["written"]), (&256.into(), &true.into()));
        assert!(nsparse.read("merged") == nsparse.read("whole"), "{format}");
        assert!(nsparse.read("merged.meta") == nsparse.read("whole.meta"), "{format}");
        assert_eq!(nsparse.json(&reduce)["written"], false);
        // To `encode` it is the file that it would have written.
        let again = nsparse.json(&format!("{common} --out merged"));
        assert_eq!((&again["encoded"], &again["documents"]), (&0.into(), &256.into()));

        let missing = nsparse.run(&format!("reduce {} --out other", parts[1..].join(" ")));
        assert_eq!(missing.code, Some(2), "{}", missing.stderr);
        assert!(missing.stderr.contains(&format!("1 of {of} shards are missing: {of}/{of}")), "{}", missing.stderr);
        for file in parts.iter().map(String::as_str).chain(["whole", "merged"]) {
            std::fs::remove_file(nsparse.path(file)).unwrap();
            std::fs::remove_file(nsparse.path(&format!("{file}.meta"))).unwrap();
        }
    }
}

/// A job that reads its documents from a pipe.
struct Piped {
    child: Child,
    input: ChildStdin,
}

fn piped(nsparse: &Nsparse, arguments: &str) -> Piped {
    let mut command = nsparse.command(arguments.split(' '));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let input = child.stdin.take().unwrap();
    Piped { child, input }
}

impl Piped {
    fn feed(&mut self, lines: &[&str]) {
        for line in lines {
            self.input.write_all(line.as_bytes()).unwrap();
            self.input.write_all(b"\n").unwrap();
        }
        self.input.flush().unwrap();
    }

    /// The input ends; what the job then says, as its exit code, standard output and standard error.
    fn end(self) -> (Option<i32>, String, String) {
        drop(self.input);
        let output = self.child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}

#[test]
fn a_stream_is_written_while_it_comes_and_a_killed_job_goes_on() {
    let nsparse = with_sample();
    let corpus = String::from_utf8(nsparse.read("set/corpus.jsonl")).unwrap();
    let corpus: Vec<&str> = corpus.lines().collect();
    for format in FORMATS {
        let whole = format!("whole.{format}");
        nsparse.ok(&format!("encode --data set --model model --block 16 --format {format} --out {whole}"));
        let out = format!("stream.{format}");
        let encode = format!("encode - --model model --block 16 --format {format} --out {out}");
        // Killed with nothing done, after a block, in the middle of one, and with all but the last: each time the
        // whole stream comes again from its start. The pipe stays open, so what is written was never held back.
        for fed in [0, 16, 40, 40, 105, 255] {
            let mut job = piped(&nsparse, &encode);
            job.feed(&corpus[..fed]);
            wait_until(&mut job.child, "the blocks that are there", || blocks_done(&nsparse, &out) == fed / 16);
            signal(&job.child, "KILL");
            assert_eq!(job.child.wait().unwrap().code(), None);
            assert!(!nsparse.path(&out).exists());
        }
        let mut job = piped(&nsparse, &encode);
        job.feed(&corpus);
        let (code, stdout, stderr) = job.end();
        assert_eq!(code, Some(0), "{stderr}");
        assert!(stderr.contains("240 documents are done already"), "{stderr}");
        assert!(stdout.contains("16 documents encoded"), "{stdout}");
        assert!(nsparse.read(&out) == nsparse.read(&whole), "{format}");
        assert!(nsparse.read(&format!("{out}.meta")) == nsparse.read(&format!("{whole}.meta")), "{format}");
        for rest in ["journal", "part"] {
            assert!(!nsparse.path(&format!("{out}.{rest}")).exists(), "{rest}");
        }
    }
}

/// The sample again and again under other ids: long enough to be caught at work.
fn many(nsparse: &Nsparse, copies: usize) {
    let documents = documents(nsparse);
    let mut text = String::new();
    for copy in 0..copies {
        for d in &documents {
            let line = serde_json::json!({ "_id": format!("{}-{copy}", d.id), "title": d.title, "text": d.text });
            text += &line.to_string();
            text.push('\n');
        }
    }
    nsparse.write("many.jsonl", &text);
}

#[test]
fn a_job_on_a_file_is_killed_anywhere_and_ends_the_same() {
    let nsparse = with_sample();
    many(&nsparse, 40);
    let common = "encode many.jsonl --model model --format binary --block 32";
    nsparse.ok(&format!("{common} --out whole"));
    let size = nsparse.read("whole").len() as u64;
    let part = |nsparse: &Nsparse| std::fs::metadata(nsparse.path("v.part")).map_or(0, |m| m.len());
    let mut killed_at = Vec::new();
    for tenths in [0, 1, 2, 4, 6, 8] {
        let mut child = nsparse.spawn(&format!("{common} --out v"));
        // Beyond the last kill, wherever in a block that is.
        let least = (size * tenths / 10).max(part(&nsparse) + 1);
        wait_until(&mut child, "the part to grow", || part(&nsparse) >= least);
        signal(&child, "KILL");
        assert_eq!(child.wait().unwrap().code(), None);
        killed_at.push(part(&nsparse));
        assert!(!nsparse.path("v").exists());
    }
    assert!(killed_at.is_sorted(), "{killed_at:?}");
    // Stopped as users and schedulers do it: the exit code says that it is not done.
    let mut child = nsparse.spawn(&format!("{common} --out v"));
    wait_until(&mut child, "the part to grow", || part(&nsparse) > killed_at[5]);
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(1));
    let done = 32 * blocks_done(&nsparse, "v");
    let summary = nsparse.json(&format!("{common} --out v"));
    assert_eq!(summary["encoded"], 256 * 40 - done, "what was done is not done again");
    assert!(nsparse.read("v") == nsparse.read("whole"));
    assert!(nsparse.read("v.meta") == nsparse.read("whole.meta"));
    let again = nsparse.json(&format!("{common} --out v"));
    assert_eq!((&again["encoded"], &again["documents"]), (&0.into(), &(256 * 40).into()));
}

#[test]
fn a_stopped_stream_says_how_to_go_on() {
    let nsparse = with_sample();
    let corpus = String::from_utf8(nsparse.read("set/corpus.jsonl")).unwrap();
    let corpus: Vec<&str> = corpus.lines().collect();
    let mut job = piped(&nsparse, "encode - --model model --block 16 --out v.jsonl");
    job.feed(&corpus[..50]);
    wait_until(&mut job.child, "three blocks", || blocks_done(&nsparse, "v.jsonl") == 3);
    // Nothing comes, and the pipe is open: a stop is heard all the same.
    signal(&job.child, "TERM");
    let Piped { child, input } = job;
    let output = child.wait_with_output().unwrap();
    drop(input);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(said.contains("Stopped with 48 documents done; the same command goes on from there"), "{said}");
    // Two at once would spoil the file.
    let mut first = piped(&nsparse, "encode - --model model --block 16 --out v.jsonl");
    first.feed(&corpus[..66]);
    wait_until(&mut first.child, "the fourth block", || blocks_done(&nsparse, "v.jsonl") == 4);
    let second = nsparse.run("encode set/corpus.jsonl --model model --block 16 --out v.jsonl");
    assert_eq!(second.code, Some(2));
    assert!(second.stderr.contains("Another process is writing `v.jsonl`"), "{}", second.stderr);
    first.feed(&corpus[66..]);
    assert_eq!(first.end().0, Some(0));
    nsparse.ok("encode set/corpus.jsonl --model model --block 16 --out whole.jsonl");
    assert!(nsparse.read("v.jsonl") == nsparse.read("whole.jsonl"));
}

#[test]
fn a_broken_line_is_named_by_file_and_line() {
    let nsparse = with_sample();
    let corpus = String::from_utf8(nsparse.read("set/corpus.jsonl")).unwrap();
    let mut broken: Vec<&str> = corpus.lines().collect();
    broken[199] = r#"{"_id": "d200", "text": "cut of"#;
    nsparse.write("broken.jsonl", &(broken.join("\n") + "\n"));
    let outcome = nsparse.run("encode broken.jsonl --model model --block 16 --out v.jsonl");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("error: Broken line broken.jsonl:200: not JSON"), "{}", outcome.stderr);
    // A file is looked through before the work begins.
    assert!(["v.jsonl", "v.jsonl.part", "v.jsonl.journal"].iter().all(|file| !nsparse.path(file).exists()));
    // A stream can only be read as it comes: what stood before the line stays done.
    let mut job = piped(&nsparse, "encode - --model model --block 16 --out v.jsonl");
    job.feed(&broken);
    let (code, _, stderr) = job.end();
    assert_eq!(code, Some(2));
    assert!(stderr.contains("error: Broken line standard input:200: not JSON"), "{stderr}");
    assert_eq!(blocks_done(&nsparse, "v.jsonl"), 12);
    let mut job = piped(&nsparse, "encode - --model model --block 16 --out v.jsonl");
    job.feed(&corpus.lines().collect::<Vec<_>>());
    let (code, stdout, stderr) = job.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(stdout.contains("64 documents encoded"), "{stdout}");

    let mut twice: Vec<&str> = corpus.lines().collect();
    twice.push(twice[2]);
    nsparse.write("twice.jsonl", &twice.join("\n"));
    let outcome = nsparse.run("encode twice.jsonl --model model --out t.jsonl");
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("Broken line twice.jsonl:257: the id `"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("` stands in line 3 already"), "{}", outcome.stderr);
    let mut job = piped(&nsparse, "encode - --model model --block 16 --out t.jsonl");
    job.feed(&twice);
    let (code, _, stderr) = job.end();
    assert_eq!(code, Some(2));
    assert!(stderr.contains("comes twice: documents 3 and 257"), "{stderr}");
    assert!(!nsparse.path("t.jsonl").exists());
}

#[test]
fn what_is_there_is_kept_or_named() {
    let nsparse = with_sample();
    let encode = "encode set/corpus.jsonl --model model --out v.jsonl";
    nsparse.ok(encode);
    let before = nsparse.read("v.jsonl");
    let again = nsparse.ok(encode).stdout;
    assert!(again.contains("Nothing to encode: the file has all documents already"), "{again}");
    let refused = |arguments: &str, words: &[&str]| {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}\n{}", outcome.stderr);
        for word in words {
            assert!(outcome.stderr.contains(word), "{arguments}: `{word}` is not in\n{}", outcome.stderr);
        }
        assert!(nsparse.read("v.jsonl") == before, "{arguments}");
        assert!(!nsparse.path("v.jsonl.part").exists() && !nsparse.path("v.jsonl.journal").exists(), "{arguments}");
    };
    // Other settings, another model, other documents.
    refused(
        &format!("{encode} --format anserini"),
        &["`v.jsonl` is of another job", "format is jsonl there and anserini here", "hint:", "--force"],
    );
    refused(&format!("{encode} --shard 1/2"), &["shard is not set there and 1/2 here"]);
    write(&nsparse.path("other"), &Shape::small(), 4).unwrap();
    refused(&encode.replace("--model model", "--model other"), &["model is ", "hint:"]);
    let corpus = String::from_utf8(nsparse.read("set/corpus.jsonl")).unwrap();
    nsparse.write("set/corpus.jsonl", &(corpus.clone() + "{\"_id\":\"new\",\"text\":\"index\"}\n"));
    refused(encode, &["`set/corpus.jsonl` has more documents than `v.jsonl`"]);
    nsparse.write("set/corpus.jsonl", &corpus.replacen("search", "Search", 1));
    refused(encode, &["have changed", "--force"]);
    // A file that is not ours, and one that was cut off.
    nsparse.write("set/corpus.jsonl", &corpus);
    nsparse.write("mine.txt", "mine");
    refused(&encode.replace("v.jsonl", "mine.txt"), &["nothing says what made it"]);
    assert_eq!(nsparse.read("mine.txt"), b"mine");

    let meta = FileMeta::load(&nsparse.path("v.jsonl")).unwrap();
    assert_eq!((meta.counts.documents, meta.bytes), (256, before.len() as u64));
    nsparse.ok(&format!("{encode} --format binary --force"));
    assert_eq!(binary(&nsparse, "v.jsonl").len(), 256);
    nsparse.ok(&format!("{encode} --force"));
    assert!(nsparse.read("v.jsonl") == before);
}

#[test]
fn wrong_use_is_said_before_any_work() {
    let nsparse = with_sample();
    let refused = |arguments: &str, words: &str| {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}\n{}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{arguments}: `{words}` is not in\n{}", outcome.stderr);
        assert!(!nsparse.path("v").exists() && !nsparse.path("v.journal").exists(), "{arguments}");
    };
    let model = "--model model --out v";
    refused(&format!("encode {model}"), "No documents are named");
    refused(&format!("encode x.jsonl --data set {model}"), "Documents are named twice");
    refused(&format!("encode set {model}"), "`set` is a folder");
    refused(&format!("encode --data set {model} --shard 0/2"), "`0/2` is no shard");
    refused(&format!("encode --data set {model} --quantize 10"), "--format anserini only");
    refused(&format!("encode --data set {model} --format anserini --weights stored"), "no 9-bit weights");
    refused(&format!("encode --data set {model} --block 0"), "--block");
    refused(&format!("encode --data set {model} --threads 0"), "--threads");
    refused("encode --data set --model set --out v", "is no model directory");
    refused("reduce nowhere --out v", "`nowhere` is no file");
    // Several forms in one folder that Anserini is given would break it, so no other file there ends in .json.
    nsparse.ok("encode --data set --model model --out anserini/v.jsonl --format anserini");
    let mut names: Vec<String> = std::fs::read_dir(nsparse.path("anserini"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["v.jsonl", "v.jsonl.meta"]);
    let outcome = finish(nsparse.command(["encode", "--help"]));
    assert!(outcome.stdout.contains("zcat docs.jsonl.gz | nsparse encode -"), "{}", outcome.stdout);
}

/// Encoded on one machine, indexed from another: what the index then answers is the same.
#[cfg(feature = "test-node")]
#[test]
fn vectors_of_a_file_are_indexed() {
    use nsparse_integration_tests::node::shared;

    let mut nsparse = with_sample();
    nsparse.set("NSPARSE_URL", &shared().url);
    let fields = serde_json::json!({ "embedding": { "type": "rank_features" } });
    for index in ["encode-here", "encode-file"] {
        shared()
            .cluster
            .put(&format!("/{index}"), serde_json::json!({ "mappings": { "properties": fields } }))
            .unwrap();
    }
    for index in [1, 2] {
        let shard = format!("--shard {index}/2 --block 50 --out part-{index}");
        nsparse.ok(&format!("encode --data set --model model --format binary --weights stored {shard}"));
    }
    nsparse.ok("reduce part-1 part-2 --out v.nsv");
    let file = "ingest --index encode-file --data set --journal journal --vectors";
    let missing = nsparse.run(&format!("{file} part-1"));
    assert_eq!(missing.code, Some(2));
    assert!(missing.stderr.contains("documents have no vector in `part-1`"), "{}", missing.stderr);
    let report = nsparse.json(&format!("{file} v.nsv"));
    assert_eq!(report["report"]["indexed"], 256);
    assert_eq!(nsparse.json(&format!("{file} v.nsv"))["report"]["skipped"], 256);
    nsparse.ok("ingest --index encode-here --data set --journal other --model model");
    let search = |index: &str| {
        let arguments = ["search", "how large should a shard be", "--model", "model", "--index", index, "--json"];
        finish(nsparse.command(arguments)).json()["results"].clone()
    };
    // The engine keeps 9 bits of a weight, wherever they were cut.
    assert_eq!(search("encode-file"), search("encode-here"));
    assert_eq!(search("encode-file").as_array().unwrap().len(), 10);
}

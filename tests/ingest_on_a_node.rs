//! `ingest` and `reencode` as a user runs them, against a real OpenSearch: killed, continued, from every kind of file.
#![cfg(feature = "test-node")]
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
#![allow(clippy::print_stdout, reason = "seeds and figures are shown with --nocapture")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nsparse_encoder::{Device, SparseEncoder};
use nsparse_integration_tests::cli::{Nsparse, wait_until};
use nsparse_integration_tests::faults::{Fault, Proxy};
use nsparse_integration_tests::node::{everything, shared};
use nsparse_integration_tests::random_model::{Noise, Shape, write};
use nsparse_integration_tests::standin::{Options, StandIn, encode_with};
use nsparse_opensearch::Cluster;
use serde_json::{Value, json};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");

fn program() -> Nsparse {
    let mut nsparse = Nsparse::new(env!("CARGO_BIN_EXE_nsparse"));
    nsparse.set("NSPARSE_URL", &shared().url);
    nsparse
}

/// Documents that hold their vectors, as lines.
fn ready(count: usize) -> String {
    let mut text = String::new();
    for i in 0..count {
        let weights: BTreeMap<String, f32> =
            (0..12).map(|t| (format!("token{}", (i * 7 + t * 13) % 97), 0.25 + ((i + t) % 31) as f32 / 8.0)).collect();
        let line = json!({ "_id": format!("d{i:05}"), "title": format!("title {i}"), "n": i, "embedding": weights });
        writeln!(text, "{line}").unwrap();
    }
    text
}

fn own_index(cluster: &Cluster, name: &str) {
    let properties =
        json!({ "title": { "type": "text" }, "text": { "type": "text" }, "embedding": { "type": "rank_features" } });
    cluster.put(&format!("/{name}"), json!({ "mappings": { "properties": properties } })).unwrap();
}

fn settings(name: &str) -> (Value, Value) {
    let answer = shared().cluster.get(&format!("/{name}?flat_settings=true")).unwrap()[name].clone();
    (answer["settings"]["index.refresh_interval"].clone(), answer["mappings"]["_meta"]["nsparse_loading"].clone())
}

/// Killed at twenty random points and started again each time: the index is that of an undisturbed run.
#[test]
fn killed_at_twenty_random_points() {
    let nsparse = program();
    let cluster = &shared().cluster;
    nsparse.write("docs.jsonl", &ready(6000));
    own_index(cluster, "not-killed");
    nsparse.ok("ingest docs.jsonl --index not-killed --ready --journal undisturbed");
    own_index(cluster, "killed-often");
    let proxy = Proxy::start(&shared().url, |_| Fault::None);
    let ingest = format!(
        "ingest docs.jsonl --index killed-often --ready --journal journal --request-documents 20 --url {}",
        proxy.url
    );
    let seed = 20_261_121u64;
    println!("seed {seed}");
    let mut noise = Noise(seed);
    let mut left_loading = 0;
    for kill in 0..20 {
        // So many requests after the start, and at any moment of the next.
        let (requests, micros) = (noise.below(9), noise.below(8000) as u64);
        let until = proxy.bulks() + requests;
        let mut child = nsparse.spawn(&ingest);
        wait_until(&mut child, "some requests", || proxy.bulks() >= until);
        let moment = Instant::now() + Duration::from_micros(micros);
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().code(), None, "kill {kill}: it had ended");
        let noted = std::fs::read_to_string(nsparse.path("journal")).unwrap_or_default().lines().count();
        println!("kill {kill}: {requests} requests and {micros} µs after the start, {noted} lines in the journal");
        left_loading += usize::from(!settings("killed-often").1.is_null());
    }
    assert!(left_loading > 0, "no kill left the index with its settings of loading");
    let report = &nsparse.json(&ingest)["report"];
    let (indexed, skipped) = (report["indexed"].as_u64().unwrap(), report["skipped"].as_u64().unwrap());
    println!("{skipped} were known at the end, {indexed} sent");
    assert_eq!((indexed + skipped, report["documents"].as_u64().unwrap()), (6000, 6000));
    assert!(indexed > 0 && skipped > 0, "{report}");
    assert_eq!(everything(cluster, "killed-often"), everything(cluster, "not-killed"));
    assert_eq!(settings("killed-often"), (Value::Null, Value::Null), "settings are set back");
    // And a clean second run sends nothing.
    let report = &nsparse.json(&ingest)["report"];
    assert_eq!((&report["indexed"], &report["requests"]), (&json!(0), &json!(0)));
}

/// The documents of [`ready`] as Parquet, their vectors as maps.
#[cfg(feature = "parquet")]
fn write_parquet(path: &Path, text: &str) {
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;

    let documents: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let strings = |name: &str| -> Vec<ByteArray> {
        documents.iter().map(|d| ByteArray::from(d[name].as_str().unwrap().as_bytes().to_vec())).collect()
    };
    let vectors = || documents.iter().map(|d| d["embedding"].as_object().unwrap());
    let entries = vectors().map(serde_json::Map::len).sum();
    let (defined, mut repeated) = (vec![1; entries], Vec::new());
    for vector in vectors() {
        repeated.extend((0..vector.len()).map(|i| i16::from(i > 0)));
    }
    let schema = "message doc {
        REQUIRED BYTE_ARRAY _id (UTF8); REQUIRED BYTE_ARRAY title (UTF8); REQUIRED INT64 n;
        REQUIRED group embedding (MAP) {
            REPEATED group key_value { REQUIRED BYTE_ARRAY key (UTF8); REQUIRED FLOAT value; }
        }
    }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::file::writer::SerializedFileWriter::new(file, schema, std::sync::Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut number = 0;
    while let Some(mut column) = group.next_column().unwrap() {
        match (number, column.untyped()) {
            (0, ColumnWriter::ByteArrayColumnWriter(w)) => w.write_batch(&strings("_id"), None, None),
            (1, ColumnWriter::ByteArrayColumnWriter(w)) => w.write_batch(&strings("title"), None, None),
            (2, ColumnWriter::Int64ColumnWriter(w)) => {
                let numbers: Vec<i64> = documents.iter().map(|d| d["n"].as_i64().unwrap()).collect();
                w.write_batch(&numbers, None, None)
            }
            (3, ColumnWriter::ByteArrayColumnWriter(w)) => {
                let tokens: Vec<ByteArray> =
                    vectors().flat_map(|v| v.keys().map(|t| ByteArray::from(t.as_bytes().to_vec()))).collect();
                w.write_batch(&tokens, Some(&defined), Some(&repeated))
            }
            (4, ColumnWriter::FloatColumnWriter(w)) => {
                let weights: Vec<f32> =
                    vectors().flat_map(|v| v.values().map(|w| w.as_f64().unwrap() as f32)).collect();
                w.write_batch(&weights, Some(&defined), Some(&repeated))
            }
            _ => unreachable!("the schema has no other columns"),
        }
        .unwrap();
        column.close().unwrap();
        number += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn every_kind_of_input_gives_the_same_index() {
    let nsparse = program();
    let cluster = &shared().cluster;
    let text = ready(500);
    #[cfg(feature = "parquet")]
    write_parquet(&nsparse.path("docs.parquet"), &text);
    nsparse.write("docs.jsonl", &text);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    std::fs::write(nsparse.path("docs.jsonl.gz"), gzip.finish().unwrap()).unwrap();
    let fast = ruzstd::encoding::CompressionLevel::Fastest;
    std::fs::write(nsparse.path("docs.jsonl.zst"), ruzstd::encoding::compress_to_vec(text.as_bytes(), fast)).unwrap();
    let mut expected = None;
    for (name, script) in [
        ("in-plain", "\"$@\" docs.jsonl"),
        ("in-gzip", "\"$@\" docs.jsonl.gz"),
        ("in-zstd", "\"$@\" docs.jsonl.zst --workers 3"),
        ("in-pipe", "cat docs.jsonl | \"$@\" -"),
        ("in-pipe-zstd", "cat docs.jsonl.zst | \"$@\" - --in-flight 1"),
        #[cfg(feature = "parquet")]
        ("in-parquet", "\"$@\" docs.parquet"),
    ] {
        own_index(cluster, name);
        let mut command = nsparse.through_shell(script, &["ingest", "--index", name, "--ready", "--json"]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let found = everything(cluster, name);
        assert_eq!(found.len(), 500, "{name}");
        assert_eq!(*expected.get_or_insert_with(|| found.clone()), found, "{name}");
    }
}

#[test]
fn a_model_encodes_files_and_indexes_alike() {
    let nsparse = program();
    let cluster = &shared().cluster;
    nsparse.copy(Path::new(SAMPLE), "sample");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    write(&nsparse.path("other"), &Shape::small(), 4).unwrap();
    own_index(cluster, "by-set");
    own_index(cluster, "by-file");
    nsparse.ok("ingest --index by-set --data sample --model model --journal a");
    // A field more than a data set has.
    let lines = String::from_utf8(nsparse.read("sample/corpus.jsonl")).unwrap();
    let lines: String =
        lines.lines().map(|l| l.trim_end().trim_end_matches('}').to_owned() + ",\"year\":2020}\n").collect();
    nsparse.write("docs.jsonl", &lines);
    nsparse.ok("ingest docs.jsonl --index by-file --model model --journal b");
    let (by_set, by_file) = (everything(cluster, "by-set"), everything(cluster, "by-file"));
    assert_eq!(by_set.len(), 256);
    for (id, document) in &by_set {
        assert_eq!(document["embedding"], by_file[id]["embedding"], "{id}");
        assert_eq!((&by_file[id]["year"], &by_file[id]["text"]), (&json!(2020), &document["text"]));
    }
    // Anew with another model, stopped on the way, and without vectors in `_source`.
    let reencode = "reencode --index by-file --to by-other --model other --journal c --page 50 --request-documents 10";
    let noted = || std::fs::read_to_string(nsparse.path("c")).unwrap_or_default().lines().count();
    let mut child = nsparse.spawn(reencode);
    wait_until(&mut child, "a batch in the journal", || noted() > 1);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().code(), None);
    let report = nsparse.json(reencode)["report"].clone();
    assert!(report["skipped"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["documents"], 256);
    own_index(cluster, "other-fresh");
    nsparse.ok("ingest docs.jsonl --index other-fresh --model other --journal d");
    assert_eq!(everything(cluster, "by-other"), everything(cluster, "other-fresh"));
    assert_ne!(everything(cluster, "by-other"), by_file);
    nsparse.ok("reencode --index by-other --to by-lean --model model --journal e --exclude-vector");
    let lean = everything(cluster, "by-lean");
    assert!(lean.len() == 256 && lean.values().all(|d| d.get("embedding").is_none() && d["year"] == 2020));
    let refused = {
        nsparse.write("change.jsonl", "{\"_id\":\"posting-list\",\"year\":1}\n");
        nsparse.run("ingest change.jsonl --index by-lean --update")
    };
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("out of `_source`"), "{}", refused.stderr);
    nsparse.ok("ingest change.jsonl --index by-file --update --journal b");
    assert_eq!(everything(cluster, "by-file")["posting-list"]["year"], 1);
    nsparse.write("gone.txt", "posting-list\n{\"_id\":\"no-such\"}\n");
    let deleted = nsparse.json("ingest --index by-file --delete gone.txt --journal b")["report"].clone();
    assert_eq!(
        (&deleted["deleted"], &deleted["not_there"], &deleted["documents"]),
        (&json!(1), &json!(1), &json!(255))
    );
    // What was changed and what was deleted comes back with the documents themselves, and nothing else is sent.
    let again = nsparse.json("ingest docs.jsonl --index by-file --model model --journal b")["report"].clone();
    assert_eq!((&again["indexed"], &again["skipped"]), (&json!(1), &json!(255)));
    assert_eq!(everything(cluster, "by-file"), by_file);
}

/// Weights as the engine reads them, by token.
fn weights(document: &Value) -> BTreeMap<String, f32> {
    let object = document["embedding"].as_object().unwrap();
    object.iter().map(|(token, w)| (token.clone(), w.as_f64().unwrap() as f32)).collect()
}

/// The template in the cluster's `set`, `trim` and `gsub` processors and the one here give the encoder the same text.
#[test]
fn the_cluster_and_the_client_make_equal_vectors() {
    let nsparse = program();
    let cluster = &shared().cluster;
    nsparse.copy(Path::new(SAMPLE), "sample");
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    let model = nsparse.path("model");
    let encode = encode_with(move || SparseEncoder::load(&model, Device::Cpu).unwrap());
    let standin = StandIn::start(Options { encode, upstream: Some(shared().url.clone()), ..Options::default() });
    let mut lines = String::from_utf8(nsparse.read("sample/corpus.jsonl")).unwrap();
    // Blanks at the ends, braces, quotes, a text beyond the template's characters.
    let odd = [
        json!({ "_id": "odd-1", "title": " \u{a0}blank ", "text": "  {{text}} {title} \"quoted\" <b>&amp;</b>\n" }),
        json!({ "_id": "odd-2", "title": "", "text": "no title" }),
        json!({ "_id": "odd-3", "title": "long", "text": "search engine ".repeat(2000) }),
    ];
    for line in odd {
        writeln!(lines, "{line}").unwrap();
    }
    nsparse.write("docs.jsonl", &lines);
    nsparse.ok("export model --out package");
    let at = format!("--url {}", standin.url());
    nsparse.ok(&format!("deploy package --pipeline both-ingest --index by-cluster --replicas 0 {at}"));
    nsparse.ok(&format!("ingest docs.jsonl --deployment deployment.json --pipeline both-ingest --journal a {at}"));
    own_index(cluster, "by-client");
    nsparse.ok("ingest docs.jsonl --index by-client --model model --journal b");
    let (there, here) = (everything(cluster, "by-cluster"), everything(cluster, "by-client"));
    assert_eq!((there.len(), here.len()), (259, 259));
    for (id, document) in &here {
        // A batch and a single text differ in an `f32`'s last bits.
        let (here, there) = (weights(document), weights(&there[id]));
        assert!(!here.is_empty() && here.keys().eq(there.keys()), "{id}");
        for (token, weight) in &here {
            assert!((weight - there[token]).abs() <= 1e-6, "{id}, {token}: {weight} and {}", there[token]);
        }
    }
    nsparse.ok(&format!("undeploy deployment.json --delete-index {at}"));
}

/// A vector is made of the fields that the template names: none of them changes without it.
#[test]
fn a_change_of_any_field_of_the_template_is_refused() {
    let nsparse = program();
    write(&nsparse.path("model"), &Shape::small(), 3).unwrap();
    let mut facts: Value = serde_json::from_slice(&nsparse.read("model/nsparse.json")).unwrap();
    facts["template"] = json!({ "pattern": "{url} {text}", "max_chars": 20_000 });
    nsparse.write("model/nsparse.json", &facts.to_string());
    nsparse.ok("export model --out package");
    nsparse.ok("deploy package --index of-template --replicas 0 --side client");
    nsparse.write("docs.jsonl", "{\"_id\":\"a\",\"url\":\"search\",\"title\":\"t\",\"text\":\"query\",\"year\":1}\n");
    nsparse.ok("ingest docs.jsonl --deployment deployment.json --model model --journal a");
    let changed = |change: &str| {
        nsparse.write("change.jsonl", &format!("{{\"_id\":\"a\",{change}}}\n"));
        nsparse.run("ingest change.jsonl --deployment deployment.json --update --journal a --json")
    };
    // The title is not among them.
    for free in ["\"year\":2", "\"title\":\"other\""] {
        assert_eq!(changed(free).code, Some(0), "{free}");
    }
    for (bound, field) in [("\"url\":\"x\"", "url"), ("\"year\":3,\"text\":\"x\"", "text")] {
        let outcome = changed(bound);
        assert_eq!(outcome.code, Some(1), "{bound}: {}", outcome.stderr);
        let reason = outcome.json()["report"]["rejected"][0]["reason"].as_str().unwrap().to_owned();
        assert!(reason.starts_with(&format!("it changes `{field}` and not `embedding`")), "{reason}");
    }
    let document = everything(&shared().cluster, "of-template").remove("a").unwrap();
    assert_eq!(
        (&document["year"], &document["title"], &document["url"]),
        (&json!(2), &json!("other"), &json!("search"))
    );
    nsparse.ok("undeploy deployment.json --delete-index");
}

#[test]
fn refused_documents_are_kept_with_their_reasons() {
    let nsparse = program();
    own_index(&shared().cluster, "letters");
    nsparse.write(
        "docs.jsonl",
        "{\"_id\":\"a\",\"embedding\":{\"x\":1.5}}\n{\"_id\":\"b\",\"embedding\":{\"x\":65}}\n{\"_id\":\"c\",\"embedding\":7}\n",
    );
    let outcome = nsparse.run("ingest docs.jsonl --index letters --ready --journal journal --json");
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    let result = outcome.json();
    assert_eq!(result["report"]["indexed"], 1);
    let letters = String::from_utf8(nsparse.read("journal.rejected.jsonl")).unwrap();
    let mut letters: Vec<Value> = letters.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    letters.sort_by_key(|l| l["id"].as_str().unwrap().to_owned());
    assert_eq!(letters[0]["id"], "b");
    assert_eq!(letters[0]["reason"], "the weight 65 of token `x` is not in (0, 64]");
    assert_eq!(letters[0]["document"], json!({ "embedding": { "x": 65 } }));
    assert_eq!(letters[1]["id"], "c");
    // Wrong use is said in words.
    for (arguments, said) in [
        ("ingest docs.jsonl --index letters", "No model is named"),
        ("ingest --index letters --ready", "No documents are named"),
        ("ingest docs.jsonl --ready", "No index is named"),
        ("ingest docs.jsonl --index letters --ready --model m", "cannot be used with"),
        ("ingest none.jsonl --index letters --ready", "none.jsonl"),
        ("reencode --index letters --to letters --model m", "into itself"),
    ] {
        let outcome = nsparse.run(arguments);
        assert_eq!(outcome.code, Some(2), "{arguments}: {}", outcome.stderr);
        assert!(outcome.stderr.contains(said), "{arguments}: {}", outcome.stderr);
    }
}

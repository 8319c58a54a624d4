//! `nsparse data msmarco` and `nsparse data convert`, from files at hand and against a server of our own.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use md5::{Digest as _, Md5};
use nsparse_integration_tests::cli::{Nsparse, SmallServer};
use serde_json::Value;

const PASSAGES: usize = 40;

fn nsparse() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

/// Files as Microsoft publishes them: a collection, queries beyond the judged ones, triples with Windows line ends in no
/// order, the positive among the negatives of another.
fn files() -> BTreeMap<&'static str, String> {
    let mut files: BTreeMap<&'static str, String> = BTreeMap::new();
    for p in 0..PASSAGES {
        writeln!(files.entry("collection.tsv").or_default(), "{p}\tpassage {p} about topic{}", p % 10).unwrap();
    }
    for q in 0..9 {
        writeln!(files.entry("queries.train.tsv").or_default(), "{}\twhat is topic{q}", 100 + q).unwrap();
        writeln!(files.entry("queries.dev.small.tsv").or_default(), "{}\ttell me topic{q}", 200 + q).unwrap();
    }
    for q in 0..6 {
        writeln!(files.entry("qrels.train.tsv").or_default(), "{}\t0\t{q}\t1", 100 + q).unwrap();
        writeln!(files.entry("qrels.dev.small.tsv").or_default(), "{}\t0\t{}\t1", 200 + q, q + 10).unwrap();
    }
    let triples = files.entry("qidpidtriples.train.full.2.tsv").or_default();
    for n in 0..20 {
        // 105 has none, 108 is judged nowhere.
        for q in [0, 1, 2, 3, 4, 8] {
            write!(triples, "{}\t{q}\t{}\r\n", 100 + q, (q * 7 + n) % PASSAGES).unwrap();
        }
    }
    files
}

fn write(nsparse: &Nsparse, folder: &str, files: &BTreeMap<&'static str, String>) {
    for (name, text) in files {
        nsparse.write(&format!("{folder}/{name}"), text);
    }
}

fn text(nsparse: &Nsparse, path: &str) -> String {
    String::from_utf8(nsparse.read(path)).unwrap()
}

/// Lists of `negatives.tsv`, by query.
fn lists(nsparse: &Nsparse, folder: &str) -> BTreeMap<String, Vec<String>> {
    text(nsparse, &format!("{folder}/negatives.tsv"))
        .lines()
        .map(|line| {
            let (query, ids) = line.split_once('\t').unwrap();
            (query.to_owned(), ids.split(',').map(str::to_owned).collect())
        })
        .collect()
}

fn ids(jsonl: &str) -> Vec<String> {
    jsonl.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["_id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn files_at_hand_become_a_data_set() {
    let nsparse = nsparse();
    write(&nsparse, "marco", &files());
    let made = nsparse.json("data msmarco --from marco --out sets --negatives 5 --seed 3");
    let report = &made["report"];
    assert_eq!((&report["documents"], &report["queries"]), (&PASSAGES.into(), &12.into()));
    assert_eq!(
        (&report["lists"], &report["negatives"], &report["without_negatives"]),
        (&5.into(), &25.into(), &1.into())
    );

    let corpus = text(&nsparse, "sets/msmarco/corpus.jsonl");
    assert_eq!(corpus.lines().nth(7).unwrap(), r#"{"_id":"7","text":"passage 7 about topic7"}"#);
    assert_eq!(ids(&corpus).len(), PASSAGES);
    assert_eq!(ids(&text(&nsparse, "sets/msmarco/queries.jsonl")).len(), 12);
    assert!(
        text(&nsparse, "sets/msmarco/qrels/train.tsv")
            .starts_with("query-id\tcorpus-id\tscore\n100\t0\t1\n101\t1\t1\n")
    );
    for (query, negatives) in lists(&nsparse, "sets/msmarco") {
        let q: usize = query.parse::<usize>().unwrap() - 100;
        let allowed: BTreeSet<String> = (0..20).map(|n| ((q * 7 + n) % PASSAGES).to_string()).collect();
        assert!(negatives.iter().all(|n| allowed.contains(n) && *n != q.to_string()), "{query}: {negatives:?}");
        assert_eq!(negatives.iter().collect::<BTreeSet<_>>().len(), 5);
    }
    // It is a data set like any other.
    let found = nsparse
        .json("eval --method bm25 --engine local --data sets/msmarco --split dev --out scored --run-format msmarco");
    assert_eq!(found["queries"], 6);
    let run = text(&nsparse, "scored/run.tsv");
    assert_eq!(run.lines().next().unwrap().split('\t').count(), 3);
    assert_eq!(
        nsparse.json("eval --qrels sets/msmarco/qrels/dev.tsv --run scored/run.tsv")["metrics"]["recall@1000"],
        1.0
    );
    // Nothing is left beside it, and the second time nothing is done.
    assert_eq!(std::fs::read_dir(nsparse.path("sets")).unwrap().count(), 1);
    assert_eq!(nsparse.json("data msmarco --from marco --out sets --negatives 5 --seed 3"), made);
    let other = nsparse.run("data msmarco --from marco --out sets --negatives 6 --seed 3");
    assert_eq!(other.code, Some(2));
    assert!(
        other.stderr.contains("was made with other options") && other.stderr.contains("--force"),
        "{}",
        other.stderr
    );
    nsparse.ok("data msmarco --from marco --out sets --negatives 6 --seed 3 --force");
}

#[test]
fn packed_files_and_another_order_of_triples_give_the_same() {
    let nsparse = nsparse();
    let mut all = files();
    write(&nsparse, "plain", &all);
    let triples = all.get_mut("qidpidtriples.train.full.2.tsv").unwrap();
    let mut lines: Vec<&str> = triples.lines().collect();
    lines.reverse();
    *triples = lines.join("\n");
    let gz = |bytes: &[u8]| {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    };
    let mut archive = tar::Builder::new(Vec::new());
    for (name, text) in &all {
        if name.starts_with("qid") {
            let path = nsparse.path(&format!("packed/{name}.gz"));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, gz(text.as_bytes())).unwrap();
        } else {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("./{name}"), text.as_bytes()).unwrap();
        }
    }
    std::fs::write(nsparse.path("packed/collectionandqueries.tar.gz"), gz(&archive.into_inner().unwrap())).unwrap();
    let options = "--negatives 4 --seed 9";
    let one = nsparse.json(&format!("data msmarco --from plain --out one {options}"));
    let two = nsparse.json(&format!("data msmarco --from packed --out two {options}"));
    assert_eq!(one["report"], two["report"]);
    for file in ["corpus.jsonl", "queries.jsonl", "negatives.tsv", "qrels/train.tsv", "qrels/dev.tsv"] {
        assert_eq!(
            nsparse.read(&format!("one/msmarco/{file}")),
            nsparse.read(&format!("two/msmarco/{file}")),
            "{file}"
        );
    }
    nsparse.ok("data msmarco --from plain --out three --negatives 4 --seed 10");
    assert_ne!(lists(&nsparse, "one/msmarco"), lists(&nsparse, "three/msmarco"));
}

#[test]
fn a_sample_holds_what_it_names() {
    let nsparse = nsparse();
    write(&nsparse, "marco", &files());
    let sample = |out: &str, seed: u32, others: u32| {
        nsparse.json(&format!(
            "data msmarco --from marco --out {out} --sample 2 --others {others} --negatives 3 --seed {seed}"
        ))["report"]
            .clone()
    };
    let report = sample("a", 1, 0);
    assert_eq!((&report["queries"], &report["collection"]), (&4.into(), &PASSAGES.into()));
    let mut named: BTreeSet<String> = lists(&nsparse, "a/msmarco").into_values().flatten().collect();
    for split in ["train", "dev"] {
        let qrels = text(&nsparse, &format!("a/msmarco/qrels/{split}.tsv"));
        assert_eq!(qrels.lines().count(), 3);
        named.extend(qrels.lines().skip(1).map(|l| l.split('\t').nth(1).unwrap().to_owned()));
    }
    let corpus: BTreeSet<String> = ids(&text(&nsparse, "a/msmarco/corpus.jsonl")).into_iter().collect();
    assert_eq!(corpus, named);
    let more = sample("b", 1, 7);
    assert_eq!(more["documents"].as_u64().unwrap(), named.len() as u64 + 7);
    assert!(ids(&text(&nsparse, "b/msmarco/corpus.jsonl")).into_iter().collect::<BTreeSet<_>>().is_superset(&named));
    assert_eq!(lists(&nsparse, "a/msmarco"), lists(&nsparse, "b/msmarco"));
    let queries: BTreeSet<Vec<String>> = (1..6)
        .map(|seed| {
            sample(&format!("s{seed}"), seed, 0);
            ids(&text(&nsparse, &format!("s{seed}/msmarco/queries.jsonl")))
        })
        .collect();
    assert!(queries.len() > 1, "the seed draws the queries");
}

#[test]
fn documents_keep_their_url_and_old_mistakes_in_texts_can_be_mended() {
    let nsparse = nsparse();
    nsparse.write(
        "docs/msmarco-docs.tsv",
        "D1\thttp://a\tTitle\tIt\u{e2}\u{80}\u{99}s a\ttab\nD2\thttp://b\t\tcaf\u{e9}\n",
    );
    nsparse.write("docs/msmarco-doctrain-queries.tsv", "3\ta question\n");
    nsparse.write("docs/msmarco-doctrain-qrels.tsv", "3 0 D1 1\n");
    nsparse.ok("data msmarco --kind documents --from docs --out sets --repair");
    let corpus = text(&nsparse, "sets/msmarco-doc/corpus.jsonl");
    assert_eq!(
        corpus,
        "{\"_id\":\"D1\",\"url\":\"http://a\",\"title\":\"Title\",\"text\":\"It’s a\\ttab\"}\n\
         {\"_id\":\"D2\",\"url\":\"http://b\",\"text\":\"café\"}\n"
    );
    // What a template may name.
    let rows =
        nsparse.json("mine --data sets/msmarco-doc --template {url}|{title}|{body} --max-chars 12 --out rows.jsonl");
    assert_eq!(rows["report"]["rows"], 1);
    let row: Value = serde_json::from_str(&text(&nsparse, "rows.jsonl")).unwrap();
    assert_eq!(row["pos"], "http://a|Tit");
    let wrong = nsparse.run("mine --data sets/msmarco-doc --template {link}{text} --out rows.jsonl");
    assert_eq!(wrong.code, Some(2));
    assert!(wrong.stderr.contains("asks for `link`"), "{}", wrong.stderr);
}

#[test]
fn what_does_not_fit_is_named() {
    let nsparse = nsparse();
    let refused = |change: &dyn Fn(&mut BTreeMap<&'static str, String>), part: &str| {
        let mut all = files();
        change(&mut all);
        let folder = nsparse.path("marco");
        let _ = std::fs::remove_dir_all(&folder);
        write(&nsparse, "marco", &all);
        let outcome = nsparse.run("data msmarco --from marco --out sets");
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(part), "{part}: {}", outcome.stderr);
        assert!(!nsparse.path("sets/msmarco").exists());
    };
    let put = |name: &'static str, line: &'static str| {
        move |all: &mut BTreeMap<&'static str, String>| all.entry(name).or_default().push_str(line)
    };
    refused(&put("qrels.train.tsv", "101\t0\t999\t1\n"), "1 documents that judgments or negatives name are not in");
    refused(&put("qrels.train.tsv", "999\t0\t1\t1\n"), "1 judged queries have no text in it, the first is `999`");
    refused(&put("qidpidtriples.train.full.2.tsv", "100\t0\n"), "full.2.tsv:121: 2 columns");
    refused(&put("qidpidtriples.train.full.2.tsv", "100\t0\tD7\n"), "`D7` is no number");
    refused(&put("collection.tsv", "40 no tab\n"), "collection.tsv:41");
    refused(&put("collection.tsv", "7\tagain\n"), "the id `7` comes twice");
    refused(&put("queries.train.tsv", "no tab\n"), "queries.train.tsv:10: no tab");
    refused(&|all| drop(all.remove("collection.tsv")), "has none of collection.tsv");
    assert_eq!(nsparse.run("data msmarco --from nowhere").code, Some(2));
}

/// Sends `whole` for `/PATH/NAME`; the first answer for it breaks off in the middle. Keeps the ranges asked for.
fn stuttering_server(name: &'static str, whole: Vec<u8>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/files", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let (mut path, mut range) = (String::new(), String::new());
            for line in BufReader::new(stream.try_clone().unwrap()).lines() {
                let line = line.unwrap();
                if line.is_empty() {
                    break;
                }
                if let Some(rest) = line.strip_prefix("GET ") {
                    rest.split(' ').next().unwrap().clone_into(&mut path);
                }
                if let Some(rest) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                    rest.clone_into(&mut range);
                }
            }
            if path != format!("/files/{name}") {
                write!(stream, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
                continue;
            }
            let is_first = seen.lock().unwrap().is_empty();
            seen.lock().unwrap().push(range.clone());
            let from: usize = range.trim_end_matches('-').parse().unwrap_or(0);
            let rest = &whole[from..];
            let status = if range.is_empty() {
                "200 OK".to_owned()
            } else {
                format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", whole.len() - 1, whole.len())
            };
            write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", rest.len()).unwrap();
            let sent = if is_first { &rest[..rest.len() / 2] } else { rest };
            stream.write_all(sent).unwrap();
        }
    });
    (url, asked)
}

fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, text) in files().iter().filter(|(name, _)| !name.starts_with("qid")) {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    archive.into_inner().unwrap().finish().unwrap()
}

fn md5(bytes: &[u8]) -> String {
    nsparse_core::files::hex(&Md5::digest(bytes))
}

#[test]
fn a_broken_download_goes_on_where_it_was() {
    let nsparse = nsparse();
    let archive = archive();
    let (url, asked) = stuttering_server("collectionandqueries.tar.gz", archive.clone());
    let sum = md5(&archive);
    let fetch =
        format!("data msmarco --out sets --negatives 0 --base-url {url} --md5 collectionandqueries.tar.gz={sum}");
    let outcome = nsparse.run(&fetch);
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("it goes on where it was"), "{}", outcome.stderr);
    let made = nsparse.json(&fetch);
    assert_eq!(made["report"]["documents"], PASSAGES);
    let half = archive.len() / 2;
    assert_eq!(*asked.lock().unwrap(), [String::new(), format!("{half}-")]);
    // The archive is not needed any more.
    assert_eq!(std::fs::read_dir(nsparse.path("sets")).unwrap().count(), 1);
}

#[test]
fn a_file_that_is_not_the_published_one_is_not_kept() {
    let nsparse = nsparse();
    let archive = archive();
    let (sum, triples) = (md5(&archive), files()["qidpidtriples.train.full.2.tsv"].clone().into_bytes());
    let server = {
        let archive = archive.clone();
        SmallServer::start(move |path| match path {
            "/m/collectionandqueries.tar.gz" => (200, archive.clone()),
            "/m/qidpidtriples.train.full.2.tsv.gz" => (200, triples.clone()),
            _ => (404, Vec::new()),
        })
    };
    let fetch = format!("data msmarco --out sets --base-url {}/m/", server.url);
    let outcome = nsparse.run(&fetch);
    assert_eq!(outcome.code, Some(3));
    assert!(outcome.stderr.contains("expected 31644046b18952c1386cd4564ba2ae69"), "{}", outcome.stderr);
    assert_eq!(std::fs::read_dir(nsparse.path("sets/msmarco.download")).unwrap().count(), 0);
    // A mirror that repacked: the md5 is given for one file, the other one's is still the published one.
    let one = format!("{fetch} --md5 collectionandqueries.tar.gz={}", sum.to_uppercase());
    assert!(nsparse.run(&one).stderr.contains("expected 219083e80a0a751c08b968c2f31a4e0b"));
    let other = md5(&files()["qidpidtriples.train.full.2.tsv"].clone().into_bytes());
    let before = server.requests();
    let both = format!("{one} --md5 qidpidtriples.train.full.2.tsv.gz={other} --keep-downloads");
    assert_eq!(nsparse.json(&both)["report"]["lists"], 5);
    // The archive was there already.
    assert_eq!(server.requests(), before + 1);
    assert!(nsparse.path("sets/msmarco.download/collectionandqueries.tar.gz").is_file());
    assert_eq!(nsparse.run(&format!("{fetch} --md5 nothing.gz=00 --force")).code, Some(2));
}

#[test]
fn judgments_and_rankings_change_their_form() {
    let nsparse = nsparse();
    nsparse.write("qrels.tsv", "7\t0\t11\t1\n7\t0\t12\t0\n8\t0\t11\t1\n");
    assert_eq!(nsparse.json("data convert --qrels qrels.tsv --to beir --out beir.tsv")["lines"], 3);
    assert_eq!(text(&nsparse, "beir.tsv"), "query-id\tcorpus-id\tscore\n7\t11\t1\n7\t12\t0\n8\t11\t1\n");
    nsparse.ok("data convert --qrels beir.tsv --to trec --out qrels.trec");
    assert_eq!(text(&nsparse, "qrels.trec"), "7 0 11 1\n7 0 12 0\n8 0 11 1\n");
    nsparse.ok("data convert --qrels qrels.trec --to msmarco --out back.tsv");
    assert_eq!(nsparse.read("back.tsv"), nsparse.read("qrels.tsv"));
    // Lines of a ranking may stand in any order; the scores count.
    nsparse.write("run.trec", "7 Q0 12 2 0.5 x\n7 Q0 11 1 2.5 x\n8 Q0 12 1 1 x\n");
    nsparse.ok("data convert --run run.trec --to msmarco --out run.tsv");
    assert_eq!(text(&nsparse, "run.tsv"), "7\t11\t1\n7\t12\t2\n8\t12\t1\n");
    nsparse.ok("data convert --run run.tsv --to trec --tag back --out run.back");
    assert_eq!(text(&nsparse, "run.back"), "7 Q0 11 1 1 back\n7 Q0 12 2 0.5 back\n8 Q0 12 1 1 back\n");
    let metrics = |run: &str| nsparse.json(&format!("eval --qrels qrels.tsv --run {run}"))["metrics"].clone();
    assert_eq!(metrics("run.trec"), metrics("run.tsv"));
    for wrong in
        ["--run run.trec --to beir --out x", "--run run.trec --qrels qrels.tsv --to trec --out x", "--to trec --out x"]
    {
        assert_eq!(nsparse.run(&format!("data convert {wrong}")).code, Some(2), "{wrong}");
    }
    assert_eq!(nsparse.run("data").code, Some(2));
}

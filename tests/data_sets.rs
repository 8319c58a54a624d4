//! `nsparse data` and the ways to say where a data set lies, against a server of our own.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

use std::io::Write as _;

use md5::{Digest as _, Md5};
use nsparse_integration_tests::cli::{Nsparse, SmallServer};

const FILES: [(&str, &str); 3] = [
    (
        "tiny/corpus.jsonl",
        "{\"_id\": \"d1\", \"title\": \"One\", \"text\": \"a word\"}\n{\"_id\": \"d2\", \"text\": \"more\"}\n",
    ),
    ("tiny/queries.jsonl", "{\"_id\": \"q1\", \"text\": \"word\"}\n"),
    ("tiny/qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\n"),
];

fn zipped(files: &[(&str, &str)]) -> Vec<u8> {
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        out.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        out.write_all(text.as_bytes()).unwrap();
    }
    out.finish().unwrap().into_inner()
}

fn md5(bytes: &[u8]) -> String {
    nsparse_core::files::hex(&Md5::digest(bytes))
}

fn nsparse() -> Nsparse {
    Nsparse::new(env!("CARGO_BIN_EXE_nsparse"))
}

#[test]
fn a_set_is_fetched_once() {
    let nsparse = nsparse();
    let zip = zipped(&FILES);
    let sum = md5(&zip);
    let server =
        SmallServer::start(move |path| if path == "/sets/tiny.zip" { (200, zip.clone()) } else { (404, Vec::new()) });
    let fetch = format!("data tiny --out sets --base-url {}/sets/ --md5 {}", server.url, sum.to_uppercase());
    let made = nsparse.json(&fetch);
    assert_eq!((&made["documents"], &made["queries"], &made["splits"]), (&2.into(), &1.into(), &["test"].into()));
    for (name, text) in FILES {
        assert_eq!(nsparse.read(&format!("sets/{name}")), text.as_bytes());
    }
    // Nothing but the set's folder is left behind.
    assert_eq!(std::fs::read_dir(nsparse.path("sets")).unwrap().count(), 1);
    assert_eq!(server.requests(), 1);
    assert_eq!(nsparse.json(&fetch)["documents"], 2);
    assert_eq!(server.requests(), 1);
    nsparse.ok(&format!("{fetch} --force"));
    assert_eq!(server.requests(), 2);
}

#[test]
fn what_is_not_the_set_is_not_kept() {
    let nsparse = nsparse();
    let good = zipped(&FILES);
    let sum = md5(&good);
    let cut = good[..good.len() - 40].to_vec();
    let foreign = zipped(&[("other/corpus.jsonl", FILES[0].1)]);
    let escaping = zipped(&[FILES[0], ("tiny/../../evil", "x")]);
    let (cut_sum, foreign_sum, escaping_sum) = (md5(&cut), md5(&foreign), md5(&escaping));
    let server = SmallServer::start(move |path| match path {
        "/good/tiny.zip" => (200, good.clone()),
        "/cut/tiny.zip" => (200, cut.clone()),
        "/foreign/tiny.zip" => (200, foreign.clone()),
        "/escaping/tiny.zip" => (200, escaping.clone()),
        _ => (404, Vec::new()),
    });
    let fetch = |place: &str, md5: &str, more: &str| {
        nsparse.run(&format!("data tiny --out sets --base-url {}/{place} --md5 {md5}{more}", server.url))
    };
    let shown = |outcome| nsparse.shown(&outcome).replace(&server.url, "[URL]").replace(&cut_sum, "[MD5]");
    let outcome = fetch("cut", &sum, "");
    assert_eq!(outcome.code, Some(3));
    insta::assert_snapshot!("wrong_md5", shown(outcome).replace(&sum, "[EXPECTED]"));
    insta::assert_snapshot!("not_found", shown(fetch("nowhere", &sum, "")));
    for (place, sum) in [("cut", &cut_sum), ("foreign", &foreign_sum), ("escaping", &escaping_sum)] {
        let outcome = fetch(place, sum, "");
        assert!(matches!(outcome.code, Some(2 | 3)), "{place}: {}", outcome.stderr);
        assert!(outcome.stderr.contains("\nerror: "), "{place}: {}", outcome.stderr);
    }
    assert_eq!(std::fs::read_dir(nsparse.path("sets")).unwrap().count(), 0);
    assert!(!nsparse.path("evil").exists());

    // A good set stays where a later download fails.
    assert_eq!(fetch("good", &sum, "").code, Some(0));
    assert_eq!(fetch("cut", &sum, " --force").code, Some(3));
    assert_eq!(nsparse.read("sets/tiny/corpus.jsonl"), FILES[0].1.as_bytes());
}

#[test]
fn without_a_network_the_message_says_which_files_go_where() {
    let nsparse = nsparse();
    let url = SmallServer::start(|_| (500, Vec::new())).url.clone();
    // The server is gone by now.
    let outcome = nsparse.run(&format!("data scifact --out sets --base-url {url}"));
    assert_eq!(outcome.code, Some(3));
    insta::assert_snapshot!("offline", nsparse.shown(&outcome).replace(&url, "[URL]"));
    assert_eq!(std::fs::read_dir(nsparse.path("sets")).unwrap().count(), 0);
    // Files put there by hand are what it then takes.
    for (name, text) in FILES {
        nsparse.write(&format!("sets/{}", name.replace("tiny/", "scifact/")), text);
    }
    assert_eq!(nsparse.json(&format!("data scifact --out sets --base-url {url}"))["documents"], 2);
}

#[test]
fn where_sets_lie_is_said_in_three_ways() {
    let mut nsparse = nsparse();
    for (name, text) in FILES {
        nsparse.write(&format!("elsewhere/{name}"), text);
    }
    let eval = "eval --method bm25 --engine local --beir tiny";
    let expected = nsparse.json(&format!("{eval} --data-dir elsewhere"))["metrics"].clone();
    assert_eq!(expected["ndcg@10"], 1.0);
    assert_eq!(nsparse.json(&format!("{eval} --data-dir elsewhere/tiny"))["metrics"], expected);
    assert_eq!(nsparse.json("eval --method bm25 --engine local --data elsewhere/tiny")["metrics"], expected);
    assert_eq!(nsparse.run(eval).code, Some(2));
    nsparse.set("NSPARSE_DATA", "elsewhere");
    assert_eq!(nsparse.json(eval)["metrics"], expected);
    nsparse.set("NSPARSE_DATA", "elsewhere/tiny");
    assert_eq!(nsparse.json(eval)["metrics"], expected);
    // The flag goes before the variable.
    nsparse.set("NSPARSE_DATA", "nowhere");
    assert_eq!(nsparse.json(&format!("{eval} --data-dir elsewhere"))["metrics"], expected);
}

#[test]
fn documents_alone_give_rows_that_training_takes() {
    let nsparse = nsparse();
    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/samples/retrieval");
    let made = nsparse.json(&format!("data sentences --data {data} --out rows.jsonl --variants 1 --seed 7"));
    let rows = nsparse_core::rows::read(&nsparse.path("rows.jsonl")).unwrap();
    assert_eq!(made["report"]["rows"], rows.len());
    let corpus = nsparse_core::beir::Dataset::open(data.as_ref()).unwrap().corpus().unwrap();
    assert!(rows.len() > corpus.len() / 2, "{} rows of {} documents", rows.len(), corpus.len());
    for row in &rows {
        assert_eq!(row.problem(), None);
        // A title may well come up in its text; a sentence that was taken out does not.
        let is_title = corpus.iter().any(|d| d.title == row.query);
        assert!(is_title || !row.pos.as_ref().unwrap().contains(&row.query), "{row:?}");
    }
    // The same seed, the same bytes; what cannot be is refused before a file appears.
    nsparse.ok(&format!("data sentences --data {data} --out again.jsonl --variants 1 --seed 7"));
    assert_eq!(nsparse.read("again.jsonl"), nsparse.read("rows.jsonl"));
    let outcome = nsparse.run(&format!("data sentences --data {data} --out none.jsonl --share 1"));
    assert_eq!(outcome.code, Some(2));
    assert!(outcome.stderr.contains("share of sentences"), "{}", outcome.stderr);
    assert!(!nsparse.path("none.jsonl").exists());
}

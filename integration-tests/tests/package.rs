//! The ML Commons package: what lies where in it, that it repeats, and what each broken one gets.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use nsparse_core::files::{read_json, sha256_bytes, sha256_file};
use nsparse_core::model_dir::ModelDir;
use nsparse_core::{Fault, TextTokenizer};
use nsparse_exporter::{Error, Manifest, Package, RegisterBody, export};
use nsparse_integration_tests::random_model::{Shape, write};
use serde_json::Value;
use tempfile::TempDir;
use zip::ZipArchive;
use zip::write::SimpleFileOptions;

/// A small model and its package, in a folder of their own.
struct Made {
    folder: TempDir,
}

impl Made {
    fn new() -> Self {
        let made = Self { folder: tempfile::tempdir().unwrap() };
        write(&made.model(), &Shape::small(), 5).unwrap();
        made.export().unwrap();
        made
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    fn package(&self) -> PathBuf {
        self.folder.path().join("package")
    }

    fn export(&self) -> Result<nsparse_exporter::ExportReport, Error> {
        export(&self.model(), &self.package(), "org/tiny", "1.2.3")
    }

    /// Every file of the package with its sha256.
    fn hashes(&self) -> BTreeMap<String, String> {
        std::fs::read_dir(self.package())
            .unwrap()
            .map(|e| e.unwrap())
            .map(|e| (e.file_name().into_string().unwrap(), sha256_file(&e.path()).unwrap().0))
            .collect()
    }

    /// Rewrites a zip with some entries changed, added or (`None`) left out, and makes manifest and register
    /// body fit it, so that only what is inside can be wrong.
    fn tamper(&self, zip: &str, changes: &[(&str, Option<&[u8]>)]) {
        let path = self.package().join(zip);
        let mut entries = entries(&path);
        for (name, bytes) in changes {
            entries.retain(|(n, _)| n != name);
            entries.extend(bytes.map(|b| ((*name).to_owned(), b.to_vec())));
        }
        let mut out = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, bytes) in entries {
            out.start_file(name, SimpleFileOptions::default()).unwrap();
            out.write_all(&bytes).unwrap();
        }
        out.finish().unwrap();
        let (sha256, bytes) = sha256_file(&path).unwrap();
        let part = if zip.contains("-document") { "document" } else { "query" };
        self.edit("package.json", |manifest| {
            manifest[part]["sha256"] = sha256.clone().into();
            manifest[part]["bytes"] = bytes.into();
        });
        self.edit(&zip.replace(".zip", ".json"), |body| {
            body["model_content_hash_value"] = sha256.clone().into();
            body["model_content_size_in_bytes"] = bytes.into();
        });
    }

    fn edit(&self, file: &str, change: impl FnOnce(&mut Value)) {
        let path = self.package().join(file);
        let mut value: Value = read_json(&path).unwrap();
        change(&mut value);
        std::fs::write(path, value.to_string()).unwrap();
    }

    /// The message of a package that must not open; it is the user's to mend, and says how.
    fn refusal(&self) -> String {
        let error = Package::open(&self.package()).unwrap_err();
        assert_eq!(error.fault(), Fault::Usage, "{error}");
        assert!(error.hint().is_some_and(|h| !h.is_empty()), "{error} has no hint");
        let message = error.to_string();
        assert!(!message.contains('\n'), "more than one line: {message}");
        message
    }
}

fn entries(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut zip = ZipArchive::new(std::fs::File::open(path).unwrap()).unwrap();
    (0..zip.len())
        .map(|i| {
            let mut file = zip.by_index(i).unwrap();
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            (file.name().unwrap().into_owned(), bytes)
        })
        .collect()
}

#[track_caller]
fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

#[test]
fn a_package_holds_what_ml_commons_reads() {
    let made = Made::new();
    let names: Vec<String> = made.hashes().into_keys().collect();
    let expected = ["package.json", "tiny-document.json", "tiny-document.zip", "tiny-query.json", "tiny-query.zip"];
    assert_eq!(names, expected);

    let document: BTreeMap<_, _> = entries(&made.package().join("tiny-document.zip")).into_iter().collect();
    let names: Vec<&str> = document.keys().map(String::as_str).collect();
    assert_eq!(names, ["LICENSE", "idf.json", "tiny.pt", "tokenizer.json"]);
    let query: BTreeMap<_, _> = entries(&made.package().join("tiny-query.zip")).into_iter().collect();
    let names: Vec<&str> = query.keys().map(String::as_str).collect();
    assert_eq!(names, ["LICENSE", "idf.json", "tokenizer.json"]);

    // The model's own file cuts at 128 and pads to 128.
    for (zip, window) in [(&document, 32), (&query, 512)] {
        let json: Value = serde_json::from_slice(&zip["tokenizer.json"]).unwrap();
        assert_eq!(
            json["truncation"],
            serde_json::json!({
                "direction": "Right", "max_length": window, "strategy": "LongestFirst", "stride": 0
            })
        );
        assert!(json["padding"].is_null());
    }
    let tokenizer = TextTokenizer::from_bytes(&query["tokenizer.json"]).unwrap();
    let idf: BTreeMap<String, f64> = serde_json::from_slice(&query["idf.json"]).unwrap();
    let special = &tokenizer.special().all;
    assert_eq!(idf.len(), tokenizer.vocabulary().len() - special.len());
    assert!(idf.contains_key(".") && !idf.contains_key("[UNK]"));
    assert!(idf.values().all(|w| *w > 0.0 && *w <= 64.0));

    for (file, function, zip) in [
        ("tiny-document.json", "SPARSE_ENCODING", "tiny-document.zip"),
        ("tiny-query.json", "SPARSE_TOKENIZE", "tiny-query.zip"),
    ] {
        let body: RegisterBody = read_json(&made.package().join(file)).unwrap();
        let bytes = std::fs::read(made.package().join(zip)).unwrap();
        assert_eq!(body.name, format!("org/{}", file.replace(".json", "")));
        assert_eq!((body.version.as_str(), body.model_format.as_str()), ("1.2.3", "TORCH_SCRIPT"));
        assert_eq!(body.function_name, function);
        assert_eq!(body.model_content_hash_value, sha256_bytes(&bytes));
        assert_eq!(body.model_content_size_in_bytes, bytes.len() as u64);
    }
}

#[test]
fn the_archive_is_stored_aligned_and_holds_the_word_embeddings_once() {
    let made = Made::new();
    let bytes = entries(&made.package().join("tiny-document.zip")).into_iter().find(|(n, _)| n == "tiny.pt").unwrap().1;
    let mut zip = ZipArchive::new(std::io::Cursor::new(&bytes)).unwrap();
    let mut tensors = Vec::new();
    let mut source = String::new();
    for i in 0..zip.len() {
        let mut file = zip.by_index(i).unwrap();
        assert_eq!(file.compression(), zip::CompressionMethod::Stored);
        let name = file.name().unwrap().into_owned();
        if name.contains("/data/") {
            let start = file.data_start().unwrap() as usize;
            assert_eq!(start % 64, 0, "{name}");
            tensors.push(bytes[start..start + file.size() as usize].to_vec());
        } else if name.ends_with("__torch__.py") {
            file.read_to_string(&mut source).unwrap();
        }
    }
    let dir = ModelDir::open(&made.model()).unwrap();
    let model = nsparse_encoder::BertMlm::load(dir.folder(), 0).unwrap();
    // One file a parameter, and `keep`.
    assert_eq!(tensors.len(), model.parameters.specs().len() + 1);
    let words = model.parameters.get("bert.embeddings.word_embeddings.weight").unwrap();
    let words: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(tensors.iter().filter(|t| **t == words).count(), 1);

    let zeroed = dir.zeroed_ids().unwrap();
    let keep: Vec<u8> = (0..300u32).flat_map(|id| f32::from(!zeroed.contains(&id)).to_le_bytes()).collect();
    assert!(tensors.contains(&keep));
    // libtorch 1.13 does not have it.
    assert!(!source.contains("scaled_dot_product_attention"));
    assert_eq!(source.matches("self.bert_embeddings_word_embeddings_weight").count(), 2);
}

#[test]
fn an_export_repeats_and_reads_back() {
    let made = Made::new();
    let first = made.hashes();
    let report = made.export().unwrap();
    assert_eq!(made.hashes(), first);
    assert_eq!(made.hashes().len(), 5, "nothing is left aside");

    for path in [made.package(), made.package().join("package.json")] {
        let package = Package::open(&path).unwrap();
        assert_eq!(package.manifest(), &report.manifest);
        assert_eq!(package.document_zip(), report.document_zip);
        assert_eq!(package.query_zip(), report.query_zip);
        assert_eq!(package.document_body().name, "org/tiny-document");
        assert_eq!(package.query_body().name, "org/tiny-query");
        let dir = ModelDir::open(&made.model()).unwrap();
        assert_eq!(package.manifest().zeroed_ids, dir.zeroed_ids().unwrap());
        let text = "The query of a search engine. Twice the query!";
        let vector = package.query_encoder().encode(text).unwrap();
        assert!(vector.len() > 3);
        assert_eq!(vector, dir.query_encoder().unwrap().encode(text).unwrap());
    }
}

#[test]
fn a_model_that_cannot_be_exported_says_why_and_leaves_the_package_alone() {
    let made = Made::new();
    let before = made.hashes();
    let refused = |made: &Made, parts: &[&str]| {
        let error = made.export().unwrap_err();
        assert_says(&error.to_string(), parts);
        assert_eq!(error.fault(), Fault::Usage, "{error}");
        assert_eq!(made.hashes(), before);
    };
    let model = made.model();

    let idf = std::fs::read(model.join("idf.json")).unwrap();
    std::fs::remove_file(model.join("idf.json")).unwrap();
    refused(&made, &["no idf.json", model.to_str().unwrap()]);
    let hint = made.export().unwrap_err().hint().unwrap();
    assert_says(&hint, &["nsparse idf"]);

    let mut broken: BTreeMap<String, f64> = serde_json::from_slice(&idf).unwrap();
    broken.insert("nowhere".to_owned(), 1.0);
    std::fs::write(model.join("idf.json"), serde_json::to_vec(&broken).unwrap()).unwrap();
    refused(&made, &["idf.json", "nowhere"]);
    std::fs::write(model.join("idf.json"), &idf).unwrap();

    let facts = std::fs::read_to_string(model.join("nsparse.json")).unwrap();
    std::fs::write(model.join("nsparse.json"), facts.replace("\"max_tokens\": 32", "\"max_tokens\": 41")).unwrap();
    refused(&made, &["max_tokens", "41", "40"]);
    std::fs::write(model.join("nsparse.json"), &facts).unwrap();

    let loaded = nsparse_encoder::BertMlm::load(&model, 0).unwrap();
    let mut sick = loaded.clone();
    sick.parameters.get_mut("cls.predictions.bias").unwrap()[17] = f32::NAN;
    sick.save(&model).unwrap();
    refused(&made, &["cls.predictions.bias", "NaN", "17"]);
    loaded.save(&model).unwrap();

    for name in ["", "../up", "a b"] {
        let error = export(&model, &made.package(), name, "1").unwrap_err();
        assert_says(&error.to_string(), &["name"]);
    }
    assert_says(&export(&model, &made.package(), "a", "1/2").unwrap_err().to_string(), &["version"]);
    assert_eq!(made.hashes(), before);
    made.export().unwrap();
    assert_eq!(made.hashes(), before, "mended, it exports the same again");
}

#[test]
fn a_broken_package_gets_one_clear_message() {
    let message = |break_it: &dyn Fn(&Made)| {
        let made = Made::new();
        break_it(&made);
        made.refusal()
    };
    let other = br#"{"the": 1.0}"#;

    let m = message(&|made| std::fs::remove_file(made.package().join("package.json")).unwrap());
    assert_says(&m, &["package.json"]);
    let m = message(&|made| std::fs::remove_file(made.package().join("tiny-query.zip")).unwrap());
    assert_says(&m, &["tiny-query.zip", "not beside it"]);
    let m = message(&|made| std::fs::write(made.package().join("tiny-document.zip"), "no zip").unwrap());
    assert_says(&m, &["tiny-document.zip", "no zip"]);
    // The manifest's own words are not trusted with a path.
    let m = message(&|made| made.edit("package.json", |v| v["query"]["zip"] = "../package/tiny-query.zip".into()));
    assert_says(&m, &["../package/tiny-query.zip"]);
    let m = message(&|made| {
        // The last byte of a zip is in its comment's length; a byte of an entry's data changes nothing else.
        let path = made.package().join("tiny-document.zip");
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[5000] ^= 1;
        std::fs::write(path, bytes).unwrap();
    });
    assert_says(&m, &["tiny-document.zip", "changed since the export"]);
    let m = message(&|made| made.tamper("tiny-document.zip", &[("second.pt", Some(b"x"))]));
    assert_says(&m, &["tiny-document.zip", "exactly one .pt", "second.pt"]);
    let m = message(&|made| made.tamper("tiny-document.zip", &[("tiny.pt", None)]));
    assert_says(&m, &["exactly one .pt"]);
    let m = message(&|made| made.tamper("tiny-document.zip", &[("tiny.pt", None), ("folder/tiny.pt", Some(b"x"))]));
    assert_says(&m, &["at its root", "folder/tiny.pt"]);
    let m = message(&|made| made.tamper("tiny-query.zip", &[("tokenizer.json", None)]));
    assert_says(&m, &["tiny-query.zip", "no tokenizer.json"]);
    let m = message(&|made| made.tamper("tiny-query.zip", &[("tokenizer.json", Some(b"{"))]));
    assert_says(&m, &["tiny-query.zip", "tokenizer.json"]);
    let m = message(&|made| made.tamper("tiny-query.zip", &[("idf.json", Some(b"[1]"))]));
    assert_says(&m, &["tiny-query.zip", "idf.json is broken"]);
    let m = message(&|made| made.tamper("tiny-query.zip", &[("idf.json", Some(other))]));
    assert_says(&m, &["tiny-query.zip", "tokenizer.json and idf.json disagree"]);
    let m = message(&|made| {
        let zip: BTreeMap<_, _> = entries(&made.package().join("tiny-query.zip")).into_iter().collect();
        let mut idf: BTreeMap<String, f64> = serde_json::from_slice(&zip["idf.json"]).unwrap();
        idf.insert("search".to_owned(), 9.5);
        made.tamper("tiny-query.zip", &[("idf.json", Some(&serde_json::to_vec(&idf).unwrap()))]);
    });
    assert_says(&m, &["tiny-document.zip", "tiny-query.zip", "different"]);
    let m = message(&|made| made.edit("package.json", |v| v["max_tokens"] = 20.into()));
    assert_says(&m, &["at 32 tokens", "at 20 tokens"]);
    let m = message(&|made| made.edit("tiny-query.json", |v| v["function_name"] = "SPARSE_ENCODING".into()));
    assert_says(&m, &["tiny-query.json", "register body"]);
    let m = message(&|made| made.edit("package.json", |v| v["format"] = 2.into()));
    assert_says(&m, &["package.json", "form 2"]);
}

#[test]
fn the_manifest_says_what_the_model_computes() {
    let made = Made::new();
    let manifest: Manifest = read_json(&made.package().join("package.json")).unwrap();
    let facts = ModelDir::open(&made.model()).unwrap().facts().unwrap();
    assert_eq!((manifest.activation, manifest.max_tokens), (facts.activation, facts.max_tokens));
    assert_eq!(manifest.template, facts.template);
    assert_eq!((manifest.name.as_str(), manifest.version.as_str()), ("org/tiny", "1.2.3"));
    assert_eq!(manifest.vocabulary, 300);
}

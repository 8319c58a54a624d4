//! The ONNX form of a package: what lies where in it, its register body beside the recorded one, its life on the
//! stand-in, and what each broken one gets. The graph itself runs in `onnx_graph.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nsparse_core::files::{read_json, sha256_bytes, sha256_file};
use nsparse_core::{Cancel, DocumentEncoder as _, Fault, NoProgress};
use nsparse_encoder::{BertMlm, Device, SparseEncoder};
use nsparse_exporter::{Manifest, ModelFormat, Package, RegisterBody, export, export_as};
use nsparse_integration_tests::onnx_file::{OnnxFile, OnnxValue};
use nsparse_integration_tests::random_model::{Shape, write};
use nsparse_integration_tests::standin::replay::{Record, Replay, keys, trace};
use nsparse_integration_tests::standin::{Options, StandIn, encode_with};
use nsparse_opensearch::ml::{
    DeployOptions, Deployed, PackageFiles, Poll, UndeployOptions, deploy, lifecycle, register, undeploy_file,
};
use nsparse_opensearch::{Cluster, ClusterConfig};
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
        export_as(&made.model(), &made.package(), "org/tiny", "1.2.3", ModelFormat::Onnx).unwrap();
        made
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    fn package(&self) -> PathBuf {
        self.folder.path().join("package")
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        std::fs::read(self.package().join(file)).unwrap()
    }

    /// Rewrites the document zip with other entries, and makes manifest and register body fit it.
    fn rewrite(&self, change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        let path = self.package().join("tiny-document.zip");
        let mut entries = entries(&path);
        change(&mut entries);
        let mut out = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, bytes) in entries {
            out.start_file(name, SimpleFileOptions::default()).unwrap();
            out.write_all(&bytes).unwrap();
        }
        out.finish().unwrap();
        let (sha256, bytes) = sha256_file(&path).unwrap();
        self.edit("package.json", |manifest| {
            manifest["document"]["sha256"] = sha256.clone().into();
            manifest["document"]["bytes"] = bytes.into();
        });
        self.edit("tiny-document.json", |body| {
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
}

fn entries(path: &Path) -> BTreeMap<String, Vec<u8>> {
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

fn fast() -> Poll {
    Poll { interval: Duration::from_millis(1), deadline: Duration::from_secs(20) }
}

#[test]
fn a_package_holds_the_graph_twice_and_reads_back() {
    let made = Made::new();
    let names: Vec<String> = std::fs::read_dir(made.package())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let expected = [
        "package.json",
        "tiny-document.json",
        "tiny-document.zip",
        "tiny-query.json",
        "tiny-query.zip",
        "tiny.onnx",
        "tokenizer.json",
    ];
    assert_eq!(names, expected);
    let document = entries(&made.package().join("tiny-document.zip"));
    let names: Vec<&str> = document.keys().map(String::as_str).collect();
    assert_eq!(names, ["LICENSE", "idf.json", "tiny.onnx", "tokenizer.json"]);
    for file in ["tiny.onnx", "tokenizer.json"] {
        assert_eq!(document[file], made.bytes(file), "{file}");
    }

    let body: RegisterBody = read_json(&made.package().join("tiny-document.json")).unwrap();
    assert_eq!((body.model_format.as_str(), body.function_name.as_str()), ("ONNX", "SPARSE_ENCODING"));
    assert_eq!(body.model_content_hash_value, sha256_bytes(&made.bytes("tiny-document.zip")));
    let query: RegisterBody = read_json(&made.package().join("tiny-query.json")).unwrap();
    assert_eq!((query.model_format.as_str(), query.function_name.as_str()), ("TORCH_SCRIPT", "SPARSE_TOKENIZE"));

    let manifest: Manifest = read_json(&made.package().join("package.json")).unwrap();
    let onnx = manifest.onnx.clone().unwrap();
    assert_eq!((onnx.file.as_str(), onnx.bytes), ("tiny.onnx", made.bytes("tiny.onnx").len() as u64));
    assert_eq!(onnx.sha256, sha256_bytes(&made.bytes("tiny.onnx")));
    let package = Package::open(&made.package()).unwrap();
    assert_eq!(package.manifest(), &manifest);
    let copy = made.folder.path().join("copy.onnx");
    package.extract_model(&copy).unwrap();
    assert_eq!(std::fs::read(copy).unwrap(), made.bytes("tiny.onnx"));

    // The same model gives the same bytes.
    export_as(&made.model(), &made.package(), "org/tiny", "1.2.3", ModelFormat::Onnx).unwrap();
    assert_eq!(read_json::<Manifest>(&made.package().join("package.json")).unwrap(), manifest);
}

#[test]
fn the_file_says_what_ml_commons_asks_for() {
    let made = Made::new();
    let file = OnnxFile::parse(&made.bytes("tiny.onnx")).unwrap();
    assert_eq!((file.ir_version, file.opset), (8, 14));
    let value = |name: &str, kind, shape: [&str; 2]| OnnxValue {
        name: name.to_owned(),
        kind,
        shape: shape.map(str::to_owned).to_vec(),
    };
    let inputs = ["input1.input_ids", "input1.attention_mask"].map(|name| value(name, 7, ["batch", "length"]));
    assert_eq!(file.inputs, inputs);
    assert_eq!(file.outputs, [value("output", 1, ["batch", "300"])]);

    // The word embeddings stand there once, for words and for the decoder; linear layers turned.
    let model = BertMlm::load(&made.model(), 0).unwrap();
    let of = |name: &str| file.constants.iter().find(|c| c.name == name).unwrap();
    let words = model.parameters.get("bert.embeddings.word_embeddings.weight").unwrap();
    let words: Vec<u8> = words.iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(file.constants.iter().filter(|c| c.bytes == words).count(), 1);
    let name = "bert.encoder.layer.1.output.dense.weight";
    let (weight, values) = (of(name), model.parameters.get(name).unwrap());
    assert_eq!(weight.shape, [32, 16]);
    let turned: Vec<u8> =
        (0..32).flat_map(|i| (0..16).map(move |o| o * 32 + i)).flat_map(|at| values[at].to_le_bytes()).collect();
    assert_eq!(weight.bytes, turned);

    let zeroed = nsparse_core::model_dir::ModelDir::open(&made.model()).unwrap().zeroed_ids().unwrap();
    let keep: Vec<u8> = (0..300u32).flat_map(|id| f32::from(!zeroed.contains(&id)).to_le_bytes()).collect();
    assert_eq!(of("keep").bytes, keep);
    // Newer than opset 14.
    assert!(!file.operators.iter().any(|o| o == "LayerNormalization" || o == "Gelu"), "{:?}", file.operators);
}

#[test]
fn an_export_as_torchscript_says_nothing_of_onnx() {
    let made = Made::new();
    let folder = made.folder.path().join("other");
    export(&made.model(), &folder, "org/tiny", "1.2.3").unwrap();
    let text = std::fs::read_to_string(folder.join("package.json")).unwrap();
    assert!(!text.contains("onnx") && !text.contains("model_format"), "{text}");
    assert_eq!(Package::open(&folder).unwrap().manifest().model_format, ModelFormat::TorchScript);
}

/// The recordings of a real 2.16.0 that took ONNX.
fn recorded() -> Vec<Record> {
    trace().into_iter().filter(|r| r.scenario == "ONNX document encoder").collect()
}

#[test]
fn the_register_body_is_the_one_that_a_real_cluster_took() {
    let made = Made::new();
    let records = recorded();
    let package = PackageFiles::open(&made.package()).unwrap();
    let chunks = register::chunk_count(package.document.bytes, register::MAX_CHUNK_BYTES);
    let body = register::register_body(&package.document.body, chunks, None);
    let (ours, theirs) = (Value::Object(body.clone()), &records[0].body);
    assert_eq!(keys(&ours, &[]), keys(theirs, &[]));
    for key in ["function_name", "model_format", "total_chunks"] {
        assert_eq!(ours[key], theirs[key], "{key}");
    }

    // Sent in the recorded sequence: metadata, the chunk, the question for its state, the deploy.
    let first = |n: usize| {
        let mut records = records[..n].to_vec();
        records[1].body_bytes = Some(package.document.bytes);
        records
    };
    let replay = Replay::start(first(6));
    let cluster = Cluster::connect(&ClusterConfig::new(replay.url())).unwrap();
    let cancel = Cancel::default();
    let model = register::register_meta(&cluster, &body).unwrap();
    register::upload(&cluster, &model, &package.document, register::MAX_CHUNK_BYTES, &cancel, &NoProgress).unwrap();
    let sha256 = theirs["model_content_hash_value"].as_str().unwrap();
    register::wait_registered(&cluster, &model, sha256, &fast(), &cancel).unwrap();
    let task = lifecycle::start_deploy(&cluster, &model).unwrap();
    lifecycle::wait_task(&cluster, &task, nsparse_opensearch::ml::Step::Deploy, "m", &fast(), &cancel).unwrap();
    assert!(!lifecycle::predict(&cluster, &model, &["neural sparse retrieval"]).unwrap()[0].is_empty());
    assert_eq!(replay.differences(), Vec::<String>::new());
}

#[test]
fn a_model_is_registered_deployed_asked_undeployed_and_deleted() {
    let made = Made::new();
    let model = made.model();
    let encode = encode_with(move || SparseEncoder::load(&model, Device::Cpu).unwrap());
    let standin = StandIn::start(Options { encode, ..Options::default() });
    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    let package = PackageFiles::open(&made.package()).unwrap();
    let cancel = Cancel::default();
    let document =
        register::register(&cluster, &package.document, None, 20_000, &fast(), &cancel, &NoProgress).unwrap();
    let chunks = standin.requests().iter().filter(|r| r.contains("/upload_chunk/")).count() as u64;
    assert_eq!(chunks, package.document.bytes.div_ceil(20_000));
    assert!(chunks > 1, "the zip went in one chunk");
    let deployed = lifecycle::deploy(&cluster, &document, &fast(), &cancel).unwrap();
    assert_eq!(deployed, Deployed { nodes: 1, planned: 1, partial: None });
    let texts = ["the search engine", "[CLS] 한 😀 model"];
    let answers = lifecycle::predict(&cluster, &document, &texts).unwrap();
    let encoder = SparseEncoder::load(&made.model(), Device::Cpu).unwrap();
    for (answer, vector) in answers.iter().zip(encoder.encode(&texts).unwrap()) {
        assert_eq!(answer.len(), vector.len());
    }
    assert!(lifecycle::remove(&cluster, &document, &fast()).unwrap());
    assert!(standin.contents().models.is_empty());

    // And as users do it: pipeline and index too.
    let before = standin.contents();
    let options = DeployOptions { poll: fast(), chunk_bytes: 20_000, ..DeployOptions::new("tiny") };
    let deployment = deploy(&cluster, &made.package(), &options, &cancel, &NoProgress).unwrap();
    assert_eq!(deployment.package.len(), 2);
    let states = standin.contents().models;
    assert_eq!(states, ["org/tiny-query DEPLOYED", "org/tiny-document DEPLOYED"]);
    let take_back = UndeployOptions { poll: fast(), ..UndeployOptions::default() };
    undeploy_file(&cluster, &made.package().join("deployment.json"), &take_back).unwrap();
    assert_eq!(standin.contents(), before);
}

#[test]
fn inputs_of_other_names_are_refused_at_deploy_as_recorded() {
    let made = Made::new();
    // As many letters, so that every length in the file stays.
    made.rewrite(|entries| {
        let graph = entries.get_mut("tiny.onnx").unwrap();
        let name = b"input1.input_ids";
        let places: Vec<usize> = (0..graph.len() - name.len()).filter(|&at| graph[at..].starts_with(name)).collect();
        assert_eq!(places.len(), 2, "the input and the node that reads it");
        for at in places {
            graph[at..at + name.len()].copy_from_slice(b"plain__input_ids");
        }
    });
    let standin = StandIn::start(Options::default());
    let cluster = Cluster::connect(&ClusterConfig::new(standin.url())).unwrap();
    let package = PackageFiles::open(&made.package()).unwrap();
    let cancel = Cancel::default();
    let model = register::register(&cluster, &package.document, None, 1 << 20, &fast(), &cancel, &NoProgress).unwrap();
    let error = lifecycle::deploy(&cluster, &model, &fast(), &cancel).unwrap_err();
    let recorded = recorded().into_iter().find(|r| r.answer["state"] == "FAILED").unwrap();
    assert!(recorded.answer["error"].as_str().unwrap().contains("Invalid input tensor name: input1.input_ids"));
    assert!(error.to_string().contains("input1.input_ids"), "{error}");
}

#[test]
fn a_broken_package_gets_one_clear_message() {
    let refusal = |break_it: &dyn Fn(&Made)| {
        let made = Made::new();
        break_it(&made);
        let error = Package::open(&made.package()).unwrap_err();
        assert_eq!(error.fault(), Fault::Usage, "{error}");
        error.to_string()
    };
    let second = |name: &'static str| {
        move |made: &Made| {
            made.rewrite(|entries| drop(entries.insert(name.to_owned(), b"x".to_vec())));
        }
    };
    for name in ["second.onnx", "second.pt"] {
        let message = refusal(&second(name));
        assert!(message.contains("exactly one .onnx") && message.contains(name), "{message}");
    }
    let message = refusal(&|made| {
        made.rewrite(|entries| {
            let graph = entries.remove("tiny.onnx").unwrap();
            entries.insert("tiny.pt".to_owned(), graph);
        });
    });
    assert!(message.contains("exactly one .onnx") && message.contains("tiny.pt"), "{message}");
    let message = refusal(&|made| made.edit("tiny-document.json", |body| body["model_format"] = "TORCH_SCRIPT".into()));
    assert!(message.contains("tiny-document.json"), "{message}");
    let message = refusal(&|made| made.edit("package.json", |v| v["model_format"] = "TORCH_SCRIPT".into()));
    assert!(message.contains("exactly one .pt") || message.contains("register body"), "{message}");
}

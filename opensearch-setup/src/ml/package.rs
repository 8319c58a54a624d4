//! A package as `nsparse export` writes it: two zips with their register bodies, checked before anything is sent.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use nsparse_core::{DocumentTemplate, Error as CoreError, IdfTable, QueryEncoder, Segments, TextTokenizer, files};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

const EXPORT_AGAIN: &str = "make the package again with `nsparse export`";

/// One model of a package: its zip and what registers it.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelFile {
    /// The zip.
    pub zip: PathBuf,
    /// The register body as it stands in the package.
    pub body: Map<String, Value>,
    /// sha256 of the zip, lower-case hex; equal to the body's `model_content_hash_value`.
    pub sha256: String,
    /// The zip's size in bytes.
    pub bytes: u64,
}

impl ModelFile {
    /// A zip and its register body; the hash and the size are checked against the file.
    ///
    /// # Errors
    /// If a file is missing or broken, or the body's hash or size is not the zip's.
    pub fn open(zip: &Path, body_path: &Path) -> Result<Self> {
        let body: Map<String, Value> = files::read_json(body_path)?;
        for key in ["name", "version", "function_name", "model_format", "model_content_hash_value"] {
            if !body.get(key).is_some_and(Value::is_string) {
                return Err(broken(body_path, format!("its `{key}` is missing or no string")));
            }
        }
        let (sha256, bytes) = files::sha256_file(zip)?;
        let expected = body["model_content_hash_value"].as_str().unwrap_or_default();
        if !expected.eq_ignore_ascii_case(&sha256) {
            return Err(broken(
                zip,
                format!(
                    "its sha256 is {sha256}, but `{}` registers {expected}: the zip was changed",
                    body_path.display()
                ),
            ));
        }
        let size = body.get("model_content_size_in_bytes").and_then(Value::as_u64).unwrap_or(bytes);
        if size != bytes {
            return Err(broken(zip, format!("it has {bytes} bytes, but `{}` says {size}", body_path.display())));
        }
        Ok(Self { zip: zip.to_path_buf(), body, sha256, bytes })
    }

    /// The name under which it is registered.
    pub fn name(&self) -> &str {
        self.body.get("name").and_then(Value::as_str).unwrap_or_default()
    }

    /// `SPARSE_ENCODING` or `SPARSE_TOKENIZE`.
    pub fn function(&self) -> &str {
        self.body.get("function_name").and_then(Value::as_str).unwrap_or_default()
    }

    /// A file at the zip's root; `None` where it has none of that name.
    fn member(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let mut archive = self.archive()?;
        let mut entry = match archive.by_name(name) {
            Ok(entry) => entry,
            Err(zip::result::ZipError::FileNotFound) => return Ok(None),
            Err(e) => return Err(broken(&self.zip, e.to_string())),
        };
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(|e| broken(&self.zip, format!("{name}: {e}")))?;
        Ok(Some(bytes))
    }

    /// Names of all entries.
    fn entries(&self) -> Result<Vec<String>> {
        let archive = self.archive()?;
        archive
            .file_names()
            .map(|name| {
                name.map(std::borrow::Cow::into_owned).map_err(|e| broken(&self.zip, format!("a file name: {e}")))
            })
            .collect()
    }

    fn archive(&self) -> Result<zip::ZipArchive<std::fs::File>> {
        let file = std::fs::File::open(&self.zip).map_err(|e| CoreError::io("read", &self.zip, e))?;
        zip::ZipArchive::new(file).map_err(|e| broken(&self.zip, format!("it is no zip: {e}")))
    }

    fn tokenizer(&self) -> Result<TextTokenizer> {
        let bytes =
            self.member("tokenizer.json")?.ok_or_else(|| broken(&self.zip, "it has no tokenizer.json at its root"))?;
        TextTokenizer::from_bytes(&bytes).map_err(|e| broken(&self.zip, format!("tokenizer.json: {e}")))
    }
}

/// What deploy reads of `package.json`.
#[derive(Debug, Deserialize)]
struct Manifest {
    name: String,
    template: DocumentTemplate,
    #[serde(default)]
    segments: Option<Segments>,
    document: Part,
    query: Part,
}

/// Names of files beside `package.json`.
#[derive(Debug, Deserialize)]
struct Part {
    zip: String,
    register: String,
}

/// A package's folder: the document encoder and the query side.
#[derive(Debug, Clone)]
pub struct PackageFiles {
    /// The folder.
    pub folder: PathBuf,
    /// The package's name, from its manifest.
    pub name: String,
    /// The document encoder.
    pub document: ModelFile,
    /// Tokenizer and idf table.
    pub query: ModelFile,
    /// The template with which documents were put together in training.
    pub template: DocumentTemplate,
    /// How nsparse reads documents beyond the window; the cluster's encoder cuts them.
    pub segments: Option<Segments>,
    query_encoder: QueryEncoder,
}

impl PackageFiles {
    /// Opens and checks a package: hashes and sizes, one model file, tokenizer and idf table that agree, the same
    /// vocabulary on both sides.
    ///
    /// # Errors
    /// The first thing that is wrong, with the file it stands in.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("package.json");
        if !path.is_file() {
            return Err(Error::usage(
                format!("`{}` is no package: it has no package.json", folder.display()),
                "give the folder that `nsparse export` wrote",
            ));
        }
        let manifest: Manifest = files::read_json(&path)?;
        manifest.template.validate()?;
        let open = |part: &Part| ModelFile::open(&folder.join(&part.zip), &folder.join(&part.register));
        let (document, query) = (open(&manifest.document)?, open(&manifest.query)?);
        check_function(&document, "SPARSE_ENCODING")?;
        check_function(&query, "SPARSE_TOKENIZE")?;
        let models: Vec<String> =
            document.entries()?.into_iter().filter(|n| has_extension(n, "pt") || has_extension(n, "onnx")).collect();
        if models.len() != 1 {
            return Err(broken(
                &document.zip,
                format!(
                    "it has {} model files ({}); exactly one .pt or .onnx is needed",
                    models.len(),
                    models.join(", ")
                ),
            ));
        }
        let query_encoder = query_encoder(&query)?;
        let tokenizer = document.tokenizer()?;
        if tokenizer.vocabulary() != query_encoder.tokenizer().vocabulary() {
            return Err(broken(&document.zip, format!("its vocabulary is not that of `{}`", query.zip.display())));
        }
        let Manifest { name, template, segments, .. } = manifest;
        Ok(Self { folder: folder.to_path_buf(), name, document, query, template, segments, query_encoder })
    }

    /// The query side, as clients use it where the cluster has no model for it.
    pub fn query_encoder(&self) -> &QueryEncoder {
        &self.query_encoder
    }

    /// Number of vocabulary entries.
    pub fn vocabulary_size(&self) -> usize {
        self.query_encoder.tokenizer().vocabulary().len()
    }

    /// sha256 by file name.
    pub fn hashes(&self) -> BTreeMap<String, String> {
        [&self.document, &self.query]
            .into_iter()
            .map(|m| {
                let name = m.zip.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
                (name, m.sha256.clone())
            })
            .collect()
    }
}

fn query_encoder(query: &ModelFile) -> Result<QueryEncoder> {
    let tokenizer = query.tokenizer()?;
    let bytes = query.member("idf.json")?.ok_or_else(|| broken(&query.zip, "it has no idf.json at its root"))?;
    let map: BTreeMap<String, f64> =
        serde_json::from_slice(&bytes).map_err(|e| broken(&query.zip, format!("idf.json: {e}")))?;
    let idf = IdfTable::from_map(&map, &tokenizer)
        .map_err(|e| broken(&query.zip, format!("tokenizer.json and idf.json disagree: {e}")))?;
    Ok(QueryEncoder::new(tokenizer, idf)?)
}

fn check_function(model: &ModelFile, expected: &str) -> Result<()> {
    if model.function() == expected {
        return Ok(());
    }
    Err(broken(&model.zip, format!("its register body has function_name {}, expected {expected}", model.function())))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == extension)
}

fn broken(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::usage(format!("Unusable file `{}`: {what}", path.display()), EXPORT_AGAIN)
}

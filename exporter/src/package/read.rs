//! A package read back, with every check that a cluster would only make when it is too late.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use nsparse_core::{IdfTable, QueryEncoder, TextTokenizer, files};
use serde::de::DeserializeOwned;
use zip::ZipArchive;

use super::{
    IDF, MANIFEST, Manifest, ModelFormat, Part, QUERY_WINDOW, RegisterBody, TOKENIZER, check_name, check_version,
};
use crate::{Error, Result};

const EXPORT_AGAIN: &str = "make the package again with `nsparse export`";

/// A package whose files were found to fit together.
#[derive(Debug, Clone)]
pub struct Package {
    folder: PathBuf,
    manifest: Manifest,
    document: RegisterBody,
    query: RegisterBody,
    encoder: QueryEncoder,
    model_file: String,
}

impl Package {
    /// Opens a package by its folder or its `package.json`.
    ///
    /// # Errors
    /// If a file is missing, is no zip, or has changed since the export; if an entry is missing in a zip or
    /// there is not exactly one `.pt` or `.onnx`; if tokenizer and idf table disagree, or the two zips do; if a register
    /// body does not belong to its zip.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = if path.file_name().is_some_and(|n| n == MANIFEST) && !path.is_dir() {
            path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
        } else {
            path
        };
        let manifest_path = folder.join(MANIFEST);
        if !manifest_path.is_file() {
            return Err(Error::package(
                path,
                format!("there is no {MANIFEST}"),
                "give the folder that `nsparse export` wrote, or its package.json",
            ));
        }
        let manifest: Manifest = files::read_json(&manifest_path)?;
        if manifest.format != 1 {
            let found = manifest.format;
            return Err(Error::package(
                &manifest_path,
                format!("it has form {found}, and this nsparse reads form 1"),
                EXPORT_AGAIN,
            ));
        }
        check_name(&manifest.name)?;
        check_version(&manifest.version)?;

        let document = Opened::open(folder, &manifest, &manifest.document, "SPARSE_ENCODING")?;
        document.check_archive(manifest.model_format)?;
        document.check_window(manifest.max_tokens)?;
        let query = Opened::open(folder, &manifest, &manifest.query, "SPARSE_TOKENIZE")?;
        query.check_window(QUERY_WINDOW)?;
        if document.tokenizer.vocabulary() != query.tokenizer.vocabulary() || document.idf != query.idf {
            return Err(Error::package(
                folder,
                format!(
                    "`{}` and `{}` hold different tokenizers or idf tables",
                    manifest.document.zip, manifest.query.zip
                ),
                EXPORT_AGAIN,
            ));
        }
        let encoder = QueryEncoder::new(query.tokenizer, query.idf)?;
        let model_file = document.names.iter().find(|name| is_model(&name.as_str())).cloned().unwrap_or_default();
        Ok(Self {
            folder: folder.to_path_buf(),
            document: document.body,
            query: query.body,
            encoder,
            manifest,
            model_file,
        })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `package.json`.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The document encoder's zip.
    pub fn document_zip(&self) -> PathBuf {
        self.folder.join(&self.manifest.document.zip)
    }

    /// The query side's zip.
    pub fn query_zip(&self) -> PathBuf {
        self.folder.join(&self.manifest.query.zip)
    }

    /// Copies the document encoder's graph, `.pt` or `.onnx`, out of its zip.
    ///
    /// # Errors
    /// If it cannot be read, or the disk fails.
    pub fn extract_model(&self, to: &Path) -> Result<()> {
        let path = self.document_zip();
        let file = File::open(&path).map_err(|e| nsparse_core::Error::io("read", &path, e))?;
        let broken =
            |e: &dyn std::fmt::Display| Error::package(&path, format!("{}: {e}", self.model_file), EXPORT_AGAIN);
        let mut zip = ZipArchive::new(std::io::BufReader::new(file)).map_err(|e| broken(&e))?;
        let mut entry = zip.by_name(&self.model_file).map_err(|e| broken(&e))?;
        Ok(files::write_atomic(to, |out| {
            std::io::copy(&mut entry, out).map(drop).map_err(|e| nsparse_core::Error::io("write", to, e))
        })?)
    }

    /// What the document encoder is registered with.
    pub fn document_body(&self) -> &RegisterBody {
        &self.document
    }

    /// What the query side is registered with.
    pub fn query_body(&self) -> &RegisterBody {
        &self.query
    }

    /// Tokenizer and idf table as the query zip holds them: query vectors without a cluster.
    pub fn query_encoder(&self) -> &QueryEncoder {
        &self.encoder
    }
}

/// One zip of a package, read and checked on its own.
struct Opened {
    path: PathBuf,
    names: Vec<String>,
    window: Option<u64>,
    tokenizer: TextTokenizer,
    idf: IdfTable,
    body: RegisterBody,
}

impl Opened {
    fn open(folder: &Path, manifest: &Manifest, part: &Part, function: &str) -> Result<Self> {
        let path = folder.join(&part.zip);
        for name in [&part.zip, &part.register] {
            if name.contains(['/', '\\']) || !folder.join(name).is_file() {
                return Err(Error::package(
                    &folder.join(MANIFEST),
                    format!("it names `{name}`, which is not beside it"),
                    EXPORT_AGAIN,
                ));
            }
        }
        let file = File::open(&path).map_err(|e| nsparse_core::Error::io("read", &path, e))?;
        let mut zip = ZipArchive::new(std::io::BufReader::new(file))
            .map_err(|e| Error::package(&path, format!("it is no zip, or a broken one ({e})"), EXPORT_AGAIN))?;
        let (sha256, bytes) = files::sha256_file(&path)?;
        if (&sha256, bytes) != (&part.sha256, part.bytes) {
            return Err(Error::package(
                &path,
                format!(
                    "it has changed since the export: {bytes} bytes with sha256 {sha256}, package.json says {} and {}",
                    part.bytes, part.sha256
                ),
                EXPORT_AGAIN,
            ));
        }
        let names = zip
            .file_names()
            .map(|name| name.map(std::borrow::Cow::into_owned))
            .collect::<std::result::Result<Vec<String>, _>>()
            .map_err(|e| Error::package(&path, format!("it has an entry without a usable name ({e})"), EXPORT_AGAIN))?;
        let tokenizer_bytes = entry(&mut zip, &path, TOKENIZER)?;
        let tokenizer = TextTokenizer::from_bytes(&tokenizer_bytes)
            .map_err(|e| Error::package(&path, format!("{TOKENIZER}: {e}"), EXPORT_AGAIN))?;
        let raw: serde_json::Value = json(&tokenizer_bytes, &path, TOKENIZER)?;
        let map: BTreeMap<String, f64> = json(&entry(&mut zip, &path, IDF)?, &path, IDF)?;
        let idf = IdfTable::from_map(&map, &tokenizer).map_err(|e| {
            let hint = e.hint().unwrap_or_else(|| EXPORT_AGAIN.to_owned());
            Error::package(&path, format!("{TOKENIZER} and {IDF} disagree: {e}"), hint)
        })?;
        let register = folder.join(&part.register);
        let body: RegisterBody = files::read_json(&register)?;
        let (side, format) = match function {
            "SPARSE_ENCODING" => ("document", manifest.model_format),
            _ => ("query", ModelFormat::TorchScript),
        };
        let wanted = RegisterBody {
            name: format!("{}-{side}", manifest.name),
            version: manifest.version.clone(),
            model_format: format.name().to_owned(),
            function_name: function.to_owned(),
            model_content_hash_value: sha256,
            model_content_size_in_bytes: bytes,
            description: body.description.clone(),
        };
        if body != wanted {
            return Err(Error::package(
                &register,
                format!("it is not the register body of `{}`: name, version, function, hash or size differ", part.zip),
                EXPORT_AGAIN,
            ));
        }
        let window = raw.pointer("/truncation/max_length").and_then(serde_json::Value::as_u64);
        if raw.get("padding").is_some_and(|p| !p.is_null()) {
            return Err(Error::package(&path, format!("{TOKENIZER} pads texts; it must not"), EXPORT_AGAIN));
        }
        Ok(Self { path, names, window, tokenizer, idf, body })
    }

    /// ML Commons takes exactly one model file, and it must lie at the root.
    fn check_archive(&self, format: ModelFormat) -> Result<()> {
        let models: Vec<&str> = self.names.iter().map(String::as_str).filter(is_model).collect();
        match models.as_slice() {
            [one] if !one.contains('/') && has_extension(one, format.extension()) => Ok(()),
            found => Err(Error::package(
                &self.path,
                format!("it must hold exactly one .{} file, at its root; it holds {found:?}", format.extension()),
                EXPORT_AGAIN,
            )),
        }
    }

    /// The tokenizer must cut texts where the manifest says.
    fn check_window(&self, expected: usize) -> Result<()> {
        if self.window == Some(expected as u64) {
            return Ok(());
        }
        let found = self.window.map_or_else(|| "nowhere".to_owned(), |w| format!("at {w} tokens"));
        Err(Error::package(
            &self.path,
            format!("{TOKENIZER} cuts texts {found}; the package says at {expected} tokens"),
            EXPORT_AGAIN,
        ))
    }
}

/// Whether ML Commons takes an entry for a model: by its exact suffix.
fn is_model(name: &&str) -> bool {
    [ModelFormat::TorchScript, ModelFormat::Onnx].iter().any(|format| has_extension(name, format.extension()))
}

fn has_extension(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|e| e == extension)
}

/// The bytes of an entry at the root of a zip.
fn entry(zip: &mut ZipArchive<impl Read + std::io::Seek>, path: &Path, name: &str) -> Result<Vec<u8>> {
    let mut file =
        zip.by_name(name).map_err(|_| Error::package(path, format!("it has no {name} at its root"), EXPORT_AGAIN))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(|e| Error::package(path, format!("{name} cannot be read: {e}"), EXPORT_AGAIN))?;
    Ok(bytes)
}

/// An entry as JSON.
fn json<T: DeserializeOwned>(bytes: &[u8], path: &Path, name: &str) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::package(path, format!("{name} is broken: {e}"), EXPORT_AGAIN))
}

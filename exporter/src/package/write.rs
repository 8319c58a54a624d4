//! From a model directory to a package.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use nsparse_core::model_dir::{Activation, ModelDir, QuerySideKind};
use nsparse_core::{QueryEncoder, files};
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{
    ExportReport, IDF, LICENSE, MANIFEST, MAX_DOCUMENT_TOKENS, Manifest, ModelFormat, OnnxFile, Part, QUERY_WINDOW,
    RegisterBody, TOKENIZER, base_name, check_name, check_version,
};
use crate::error::zip_error;
use crate::quiet::Quiet;
use crate::source::DocumentSide;
use crate::{Error, Result};

/// As [`export_as`], with the document encoder as TorchScript.
///
/// # Errors
/// As [`export_as`].
pub fn export(model_dir: &Path, out: &Path, name: &str, version: &str) -> Result<ExportReport> {
    export_as(model_dir, out, name, version, ModelFormat::TorchScript)
}

/// Exports a model directory as a package into the folder `out`: `<name>-document.zip`, `<name>-query.zip`,
/// their register bodies as `.json`, and `package.json`; as ONNX also `<name>.onnx` and the `tokenizer.json` that
/// cuts texts at the model's window, as onnxruntime and a tokenizer library take them. All files are made aside
/// first, so that a package that lies there already stays whole if anything fails.
///
/// # Errors
/// If the name or version cannot be used, the model misses a file (`idf.json` too), its head is untrained, its
/// parts do not fit together, it is too large for the form, or the disk fails.
pub fn export_as(model_dir: &Path, out: &Path, name: &str, version: &str, format: ModelFormat) -> Result<ExportReport> {
    check_name(name)?;
    check_version(version)?;
    let source = Source::load(model_dir)?;
    let side = &source.document;
    std::fs::create_dir_all(out).map_err(|e| nsparse_core::Error::io("create", out, e))?;
    let aside = tempfile::Builder::new()
        .prefix(".nsparse-")
        .suffix(".tmp")
        .tempdir_in(out)
        .map_err(|e| nsparse_core::Error::io("create", out, e))?;
    let base = base_name(name);

    let archive = aside.path().join(format!("{base}.{}", format.extension()));
    match format {
        ModelFormat::TorchScript => side.torchscript().save(&archive)?,
        ModelFormat::Onnx => side.onnx().save(&archive)?,
    }

    let tokenizer = &side.tokenizer;
    let idf = to_json(&source.query.idf().to_map(tokenizer), model_dir)?;
    let document_tokenizer = tokenizer.to_json(side.max_tokens)?;
    let query_tokenizer = tokenizer.to_json(QUERY_WINDOW)?;
    let texts =
        |tokenizer: &str| [(TOKENIZER, tokenizer.to_owned()), (IDF, idf.clone()), (LICENSE, source.license.clone())];
    let activation = match side.activation {
        Activation::Splade => "ln(1+relu)",
        Activation::L0 => "ln(1+ln(1+relu))",
    };
    let document = Planned {
        stem: format!("{base}-document"),
        model: format!("{name}-document"),
        format,
        function: "SPARSE_ENCODING",
        description: format!(
            "Document side of a doc-only sparse model, made by nsparse: {activation}, {} tokens",
            side.max_tokens
        ),
    };
    let query = Planned {
        stem: format!("{base}-query"),
        model: format!("{name}-query"),
        format: ModelFormat::TorchScript,
        function: "SPARSE_TOKENIZE",
        description: "Query side of a doc-only sparse model, made by nsparse: tokenizer and idf table".to_owned(),
    };
    let document = document.write(aside.path(), version, &texts(&document_tokenizer), Some(&archive))?;
    let query = query.write(aside.path(), version, &texts(&query_tokenizer), None)?;
    let onnx = match format {
        ModelFormat::TorchScript => None,
        ModelFormat::Onnx => {
            files::write_bytes(&aside.path().join(TOKENIZER), document_tokenizer.as_bytes())?;
            let (sha256, bytes) = files::sha256_file(&archive)?;
            Some(OnnxFile { file: format!("{base}.onnx"), sha256, bytes })
        }
    };
    let manifest = Manifest {
        format: 1,
        name: name.to_owned(),
        version: version.to_owned(),
        model_format: format,
        activation: side.activation,
        max_tokens: side.max_tokens,
        segments: side.segments,
        template: side.template.clone(),
        vocabulary: side.model.config.vocab_size,
        zeroed_ids: side.zeroed.clone(),
        document,
        query,
        onnx,
        nsparse_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    files::write_json(&aside.path().join(MANIFEST), &manifest)?;

    // The manifest comes last: until then the old one names the hashes of what it belongs to.
    let parts = [&manifest.document, &manifest.query];
    let names = parts.iter().flat_map(|p| [p.zip.as_str(), p.register.as_str()]);
    let bare = manifest.onnx.iter().flat_map(|onnx| [onnx.file.as_str(), TOKENIZER]);
    for file in names.chain(bare).chain([MANIFEST]) {
        let place = out.join(file);
        std::fs::rename(aside.path().join(file), &place).map_err(|e| nsparse_core::Error::io("write", &place, e))?;
    }
    Ok(ExportReport {
        manifest_path: out.join(MANIFEST),
        document_zip: out.join(&manifest.document.zip),
        query_zip: out.join(&manifest.query.zip),
        manifest,
    })
}

/// All that goes into a package, checked against each other.
struct Source {
    document: DocumentSide,
    query: QueryEncoder,
    license: String,
}

impl Source {
    fn load(folder: &Path) -> Result<Self> {
        let dir = ModelDir::open(folder)?;
        if dir.facts()?.query_side == QuerySideKind::Encoder {
            return Err(Error::export(
                format!(
                    "`{}` is a siamese model: its queries need the network too, and a doc-only package has none for them",
                    folder.display()
                ),
                "train with `query.side: idf`, `trained_idf` or `table` to get a model that can be exported",
            ));
        }
        if !dir.file("idf.json").is_file() {
            return Err(Error::export(
                format!("`{}` has no idf.json: queries would have no weights", folder.display()),
                "make it from the corpus with `nsparse idf` and this model's tokenizer, and put it into that folder",
            ));
        }
        let query = dir.query_encoder()?;
        let license = match dir.file(LICENSE) {
            path if path.is_file() => files::read_text(&path)?,
            _ => license_note(),
        };
        Ok(Self { document: DocumentSide::load(folder, MAX_DOCUMENT_TOKENS)?, query, license })
    }
}

/// What stands for the terms of a model that brings no `LICENSE` file.
fn license_note() -> String {
    "The weights and the vocabulary in this package follow the terms of the encoder they were trained from\n\
     and of the data they were trained on; ask whoever gave you this package for them.\n\
     nsparse, the program that made this package, is under the Apache License 2.0.\n"
        .to_owned()
}

/// A part of the package that is to be written.
struct Planned {
    stem: String,
    model: String,
    format: ModelFormat,
    function: &'static str,
    description: String,
}

impl Planned {
    /// Writes zip and register body into `folder`.
    fn write(
        self,
        folder: &Path,
        version: &str,
        texts: &[(&'static str, String)],
        archive: Option<&PathBuf>,
    ) -> Result<Part> {
        let (zip, register) = (format!("{}.zip", self.stem), format!("{}.json", self.stem));
        let path = folder.join(&zip);
        files::write_atomic(&path, |out| {
            write_zip(out, texts, archive.map(PathBuf::as_path)).map_err(|e| zip_error(&path, e))
        })?;
        let (sha256, bytes) = files::sha256_file(&path)?;
        let body = RegisterBody {
            name: self.model,
            version: version.to_owned(),
            model_format: self.format.name().to_owned(),
            function_name: self.function.to_owned(),
            model_content_hash_value: sha256.clone(),
            model_content_size_in_bytes: bytes,
            description: self.description,
        };
        files::write_json(&folder.join(&register), &body)?;
        Ok(Part { zip, register, sha256, bytes })
    }
}

/// Writes the entries at the root of a zip: the archive as it is (weights hardly shrink), texts deflated.
fn write_zip(out: impl Write + Seek, texts: &[(&'static str, String)], archive: Option<&Path>) -> ZipResult<()> {
    let mut zip = ZipWriter::new(Quiet::new(out));
    if let Some(path) = archive {
        let name = path.file_name().expect("the archive was just written as a file").to_string_lossy();
        zip.start_file(name, options(CompressionMethod::Stored))?;
        std::io::copy(&mut std::fs::File::open(path)?, &mut zip)?;
    }
    for (name, text) in texts {
        zip.start_file(*name, options(CompressionMethod::Deflated))?;
        zip.write_all(text.as_bytes())?;
    }
    zip.finish()?;
    Ok(())
}

/// A fixed time, so that the same model gives the same bytes and hash.
fn options(method: CompressionMethod) -> SimpleFileOptions {
    SimpleFileOptions::default()
        .compression_method(method)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644)
}

/// A value as indented JSON; `origin` is named if it has none.
fn to_json<T: serde::Serialize>(value: &T, origin: &Path) -> Result<String> {
    Ok(serde_json::to_string_pretty(value).map_err(|e| nsparse_core::Error::file(origin, e.to_string()))?)
}

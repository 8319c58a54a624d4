//! From a model directory to a package.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};

use nsparse_core::model_dir::{Activation, ModelDir};
use nsparse_core::{QueryEncoder, TokenId, files};
use nsparse_encoder::BertMlm;
use zip::result::ZipResult;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::{
    ExportReport, IDF, LICENSE, MANIFEST, MAX_DOCUMENT_TOKENS, Manifest, Part, QUERY_WINDOW, RegisterBody, TOKENIZER,
    base_name, check_name, check_version,
};
use crate::error::zip_error;
use crate::quiet::Quiet;
use crate::{Error, Result, TorchScript};

/// Exports a model directory as a package into the folder `out`: `<name>-document.zip`, `<name>-query.zip`,
/// their register bodies as `.json`, and `package.json`. All files are made aside first, so that a package
/// that lies there already stays whole if anything fails.
///
/// # Errors
/// If the name or version cannot be used, the model misses a file (`idf.json` too), its head is untrained, its
/// parts do not fit together, or the disk fails.
pub fn export(model_dir: &Path, out: &Path, name: &str, version: &str) -> Result<ExportReport> {
    check_name(name)?;
    check_version(version)?;
    let source = Source::load(model_dir)?;
    std::fs::create_dir_all(out).map_err(|e| nsparse_core::Error::io("create", out, e))?;
    let aside = tempfile::Builder::new()
        .prefix(".nsparse-")
        .suffix(".tmp")
        .tempdir_in(out)
        .map_err(|e| nsparse_core::Error::io("create", out, e))?;
    let base = base_name(name);

    let archive = aside.path().join(format!("{base}.pt"));
    TorchScript {
        config: &source.model.config,
        parameters: &source.model.parameters,
        zeroed: &source.zeroed,
        activation: source.activation,
    }
    .save(&archive)?;

    let tokenizer = source.query.tokenizer();
    let idf = to_json(&source.query.idf().to_map(tokenizer), model_dir)?;
    let document_tokenizer = tokenizer.to_json(source.max_tokens)?;
    let query_tokenizer = tokenizer.to_json(QUERY_WINDOW)?;
    let texts =
        |tokenizer: &str| [(TOKENIZER, tokenizer.to_owned()), (IDF, idf.clone()), (LICENSE, source.license.clone())];
    let activation = match source.activation {
        Activation::Splade => "ln(1+relu)",
        Activation::L0 => "ln(1+ln(1+relu))",
    };
    let document = Planned {
        stem: format!("{base}-document"),
        model: format!("{name}-document"),
        function: "SPARSE_ENCODING",
        description: format!(
            "Document side of a doc-only sparse model, made by nsparse: {activation}, {} tokens",
            source.max_tokens
        ),
    };
    let query = Planned {
        stem: format!("{base}-query"),
        model: format!("{name}-query"),
        function: "SPARSE_TOKENIZE",
        description: "Query side of a doc-only sparse model, made by nsparse: tokenizer and idf table".to_owned(),
    };
    let document = document.write(aside.path(), version, &texts(&document_tokenizer), Some(&archive))?;
    let query = query.write(aside.path(), version, &texts(&query_tokenizer), None)?;
    let manifest = Manifest {
        format: 1,
        name: name.to_owned(),
        version: version.to_owned(),
        activation: source.activation,
        max_tokens: source.max_tokens,
        template: source.template,
        vocabulary: source.model.config.vocab_size,
        zeroed_ids: source.zeroed,
        document,
        query,
        nsparse_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    files::write_json(&aside.path().join(MANIFEST), &manifest)?;

    // The manifest comes last: until then the old one names the hashes of what it belongs to.
    let parts = [&manifest.document, &manifest.query];
    let names = parts.iter().flat_map(|p| [p.zip.as_str(), p.register.as_str()]).chain([MANIFEST]);
    for file in names {
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
    model: BertMlm,
    query: QueryEncoder,
    zeroed: Vec<TokenId>,
    activation: Activation,
    max_tokens: usize,
    template: nsparse_core::DocumentTemplate,
    license: String,
}

impl Source {
    fn load(folder: &Path) -> Result<Self> {
        let dir = ModelDir::open(folder)?;
        let facts = dir.facts()?;
        if !dir.file("idf.json").is_file() {
            return Err(Error::export(
                format!("`{}` has no idf.json: queries would have no weights", folder.display()),
                "make it from the corpus with `nsparse idf` and this model's tokenizer, and put it into that folder",
            ));
        }
        let query = dir.query_encoder()?;
        // The seed would make a head where there is none; such a model is refused.
        let model = BertMlm::load(folder, 0)?;
        if model.head_is_new {
            return Err(Error::export(
                format!(
                    "`{}` is an encoder without a trained head: its document vectors mean nothing",
                    folder.display()
                ),
                "train it first: `nsparse train CONFIG --set model.path=FOLDER`",
            ));
        }
        let (strings, rows) = (query.tokenizer().vocabulary().len(), model.config.vocab_size);
        if strings > rows {
            return Err(Error::export(
                format!("tokenizer.json has {strings} entries, but the model only {rows} (vocab_size in config.json)"),
                "tokenizer.json must be the one that the model was trained with",
            ));
        }
        let most = MAX_DOCUMENT_TOKENS.min(model.config.max_position_embeddings);
        if !(3..=most).contains(&facts.max_tokens) {
            return Err(Error::export(
                format!("max_tokens in nsparse.json is {}; it must lie between 3 and {most}", facts.max_tokens),
                format!(
                    "the model has {} positions, and ML Commons reads {MAX_DOCUMENT_TOKENS} tokens at most",
                    model.config.max_position_embeddings
                ),
            ));
        }
        let mut zeroed = dir.zeroed_ids()?;
        // Rows beyond the vocabulary (padded embedding tables) have no string to be indexed under.
        zeroed.extend(strings as TokenId..rows as TokenId);
        zeroed.sort_unstable();
        zeroed.dedup();
        let license = match dir.file(LICENSE) {
            path if path.is_file() => files::read_text(&path)?,
            _ => license_note(),
        };
        Ok(Self {
            model,
            query,
            zeroed,
            activation: facts.activation,
            max_tokens: facts.max_tokens,
            template: facts.template,
            license,
        })
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
            model_format: "TORCH_SCRIPT".to_owned(),
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

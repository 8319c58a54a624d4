//! The package that ML Commons takes: one zip for the document encoder, one for the query side, each with its
//! register body beside it, and `package.json` that says what belongs together. This module writes it;
//! [`Package::open`] in `read` reads it back with checks.

mod read;
mod write;

use std::path::PathBuf;

use nsparse_core::model_dir::Activation;
use nsparse_core::query::MAX_QUERY_PIECES;
use nsparse_core::{DocumentTemplate, Segments, TokenId};
use serde::{Deserialize, Serialize};

pub use read::Package;
pub use write::{export, export_as};

use crate::{Error, Result};

/// The manifest's file name.
pub const MANIFEST: &str = "package.json";
/// Entry of both zips, at the root: the tokenizer, with truncation and without padding.
pub const TOKENIZER: &str = "tokenizer.json";
/// Entry of both zips, at the root: token string to idf.
pub const IDF: &str = "idf.json";
/// Entry of both zips: the terms of the model.
pub const LICENSE: &str = "LICENSE";
/// Tokens that the query tokenizer reads, `[CLS]` and `[SEP]` included.
pub const QUERY_WINDOW: usize = MAX_QUERY_PIECES + 2;
/// Tokens that ML Commons reads of a document at most, whatever `tokenizer.json` says (DJL's default).
pub const MAX_DOCUMENT_TOKENS: usize = 512;

/// In which form the document encoder's graph is written, by ML Commons' names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelFormat {
    /// For libtorch.
    #[default]
    #[serde(rename = "TORCH_SCRIPT")]
    TorchScript,
    /// For onnxruntime.
    #[serde(rename = "ONNX")]
    Onnx,
}

impl ModelFormat {
    /// `TORCH_SCRIPT` or `ONNX`: what a register body says.
    pub fn name(self) -> &'static str {
        match self {
            Self::TorchScript => "TORCH_SCRIPT",
            Self::Onnx => "ONNX",
        }
    }

    /// `pt` or `onnx`: how the file's name ends.
    pub fn extension(self) -> &'static str {
        match self {
            Self::TorchScript => "pt",
            Self::Onnx => "onnx",
        }
    }

    /// For a manifest, which does not say what was there before there was a choice.
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    fn is_torchscript(&self) -> bool {
        *self == Self::TorchScript
    }
}

/// What ML Commons is told when a model is registered. The deployer adds `total_chunks` and, where there is
/// one, `model_group_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegisterBody {
    /// The model's name in the cluster.
    pub name: String,
    /// Its version.
    pub version: String,
    /// `TORCH_SCRIPT` or `ONNX`; the query side has no model file, but the field is required.
    pub model_format: String,
    /// `SPARSE_ENCODING` for documents, `SPARSE_TOKENIZE` for queries.
    pub function_name: String,
    /// sha256 of the zip, in lower-case hex.
    pub model_content_hash_value: String,
    /// Size of the zip in bytes.
    pub model_content_size_in_bytes: u64,
    /// One sentence for people.
    pub description: String,
}

/// One zip of the package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The zip's file name, beside the manifest.
    pub zip: String,
    /// The register body's file name, beside the manifest.
    pub register: String,
    /// sha256 of the zip, in lower-case hex.
    pub sha256: String,
    /// Size of the zip in bytes.
    pub bytes: u64,
}

/// The `.onnx` beside the manifest: the same as in the document encoder's zip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnnxFile {
    /// The file's name.
    pub file: String,
    /// Its sha256, in lower-case hex.
    pub sha256: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// `package.json`: what belongs together, and what the model computes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this file's form: 1.
    pub format: u32,
    /// The package's name; the models are `<name>-document` and `<name>-query`.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// In which form the document encoder is; TorchScript where nothing is said.
    #[serde(default, skip_serializing_if = "ModelFormat::is_torchscript")]
    pub model_format: ModelFormat,
    /// How a pooled logit becomes a weight.
    pub activation: Activation,
    /// Tokens of a document that are read, special ones included.
    pub max_tokens: usize,
    /// How a longer document is read by nsparse; a cluster's encoder reads the first `max_tokens` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
    /// How a document's fields become the text that is encoded.
    pub template: DocumentTemplate,
    /// Vocabulary entries of the model.
    pub vocabulary: usize,
    /// Ids whose weight is 0 in every document, ascending.
    pub zeroed_ids: Vec<TokenId>,
    /// The document encoder.
    pub document: Part,
    /// The query side.
    pub query: Part,
    /// The document encoder's graph as a file of its own, where it is ONNX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub onnx: Option<OnnxFile>,
    /// Version of nsparse that wrote it.
    pub nsparse_version: String,
}

/// What an export made.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportReport {
    /// The manifest's path; its folder holds everything else.
    pub manifest_path: PathBuf,
    /// The document encoder's zip.
    pub document_zip: PathBuf,
    /// The query side's zip.
    pub query_zip: PathBuf,
    /// The manifest.
    pub manifest: Manifest,
}

/// Checks a model name: letters, digits, `_`, `-`, `.`, and `/` between parts. ML Commons makes a file name of
/// it, so a part may not begin with a dot.
///
/// # Errors
/// If a character does not fit, a part is empty or begins with a dot, or it is longer than 200 characters.
pub fn check_name(name: &str) -> Result<()> {
    let fine = name.len() <= 200 && name.split('/').all(is_plain);
    if fine {
        return Ok(());
    }
    Err(Error::export(
        format!("`{name}` cannot be a model's name"),
        "use letters, digits, `_`, `-`, `.` and `/` between parts, at most 200 of them; no part begins with a dot",
    ))
}

/// Checks a version: as a name, but in one part.
///
/// # Errors
/// As [`check_name`].
pub fn check_version(version: &str) -> Result<()> {
    if version.len() <= 50 && is_plain(version) {
        return Ok(());
    }
    Err(Error::export(
        format!("`{version}` cannot be a model's version"),
        "use letters, digits, `_`, `-` and `.`, for example 1.0.0",
    ))
}

/// Letters, digits, `_`, `-`, `.`; not empty, not beginning with a dot.
fn is_plain(part: &str) -> bool {
    !part.is_empty()
        && !part.starts_with('.')
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// The last part of a name: what files are called.
fn base_name(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_cluster_can_take() {
        for good in ["nsparse", "org/my-model_v1.2", "A", "a/b/c"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(201);
        for bad in ["", "/a", "a/", "a//b", "../a", "a/../b", "a b", "a\\b", ".hidden", "ä", "a:b", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_version("1.0.0-rc_1").is_ok());
        for bad in ["", "1/2", "..", "1 0"] {
            assert!(check_version(bad).is_err(), "{bad}");
        }
        assert_eq!(base_name("org/model"), "model");
    }
}

//! What a node does with a model's bytes at deploy: the checks and their recorded messages, and the tokenizer.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use nsparse_core::{TextTokenizer, files};
use serde_json::Value;

use super::state::Model;
use crate::onnx_file::OnnxFile;

/// A model that a node has loaded.
pub(super) struct Loaded {
    pub(super) tokenizer: TextTokenizer,
    /// None: every token weighs 1.
    pub(super) idf: Option<BTreeMap<String, f32>>,
}

impl Loaded {
    /// `SPARSE_TOKENIZE`: each distinct token but the special ones with its idf, 1 where the table has none.
    pub(super) fn tokenize(&self, text: &str) -> BTreeMap<String, f32> {
        let ids = self.tokenizer.pieces(text).expect("the tokenizer takes any text");
        ids.into_iter()
            .take(510)
            .filter(|id| self.tokenizer.special().all.binary_search(id).is_err())
            .map(|id| {
                let token = self.tokenizer.vocabulary()[id as usize].clone();
                let weight = self.idf.as_ref().and_then(|idf| idf.get(&token).copied()).unwrap_or(1.0);
                (token, weight)
            })
            .collect()
    }
}

/// Puts the chunks together and loads what they hold.
pub(super) fn load(id: &str, model: &Model, offline_natives: bool) -> Result<Loaded, String> {
    if model.chunks.len() as u64 != model.total_chunks {
        return Err("Failed to deploy model".to_owned());
    }
    let bytes: Vec<u8> = model.chunks.values().flatten().copied().collect();
    if files::sha256_bytes(&bytes) != model.sha256 {
        return Err("model content changed".to_owned());
    }
    let mut archive =
        zip::ZipArchive::new(Cursor::new(&bytes)).map_err(|_| "Archive is not a ZIP archive".to_owned())?;
    let names: Vec<String> = archive.file_names().filter_map(|n| n.ok().map(std::borrow::Cow::into_owned)).collect();
    let folder =
        format!("/usr/share/opensearch/data/ml_cache/models_cache/models/{id}/{}/{}", model.version, model.name);
    if model.function == "SPARSE_ENCODING" {
        if offline_natives {
            return Err("Offline model is enabled.".to_owned());
        }
        let ends = |n: &str, end: &str| std::path::Path::new(n).extension().is_some_and(|e| e == end);
        let models: Vec<&String> = names.iter().filter(|n| ends(n, "pt") || ends(n, "onnx")).collect();
        match models.as_slice() {
            [] => return Err(format!("{}.pt file not found in: {folder}", model.name)),
            [one] => check_model(&read(&mut archive, one)?, &model.format)?,
            _ => return Err("found multiple models".to_owned()),
        }
    }
    let tokenizer = names.iter().find(|n| n.as_str() == "tokenizer.json" || n.ends_with("/tokenizer.json"));
    let Some(tokenizer) = tokenizer else {
        return Err(format!("Tokenizer file not exits: {folder}/tokenizer.json"));
    };
    let tokenizer = TextTokenizer::from_bytes(&read(&mut archive, tokenizer)?)
        .map_err(|_| "Model missing. at line 1 column 2".to_owned())?;
    let idf = match names.iter().find(|n| n.as_str() == "idf.json") {
        None => None,
        Some(name) => Some(idf(&read(&mut archive, name)?)?),
    };
    Ok(Loaded { tokenizer, idf })
}

/// What libtorch and onnxruntime say about files that they cannot take. A file that is no ONNX was not recorded:
/// those words are onnxruntime's own.
fn check_model(bytes: &[u8], format: &str) -> Result<(), String> {
    if format == "ONNX" {
        let file = OnnxFile::parse(bytes).map_err(|_| "Load model failed:Protobuf parsing failed.".to_owned())?;
        let is_missing = |name: &&str| file.inputs.iter().all(|input| input.name != *name);
        return match ["input1.input_ids", "input1.attention_mask"].iter().copied().find(is_missing) {
            None => Ok(()),
            Some(name) => Err(format!("Invalid input tensor name: {name}")),
        };
    }
    if bytes.starts_with(b"PK") {
        return Ok(());
    }
    Err("PytorchStreamReader failed reading zip archive: not a ZIP archive".to_owned())
}

fn idf(bytes: &[u8]) -> Result<BTreeMap<String, f32>, String> {
    let map: BTreeMap<String, Value> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    map.into_iter()
        .map(|(token, value)| {
            let number = match &value {
                Value::Number(n) => n.as_f64().map(|n| n as f32),
                Value::String(text) => text.parse().ok(),
                _ => None,
            };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            number.map(|n| (token, n)).ok_or_else(|| format!("For input string: \"{text}\""))
        })
        .collect()
}

fn read(archive: &mut zip::ZipArchive<Cursor<&Vec<u8>>>, name: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    archive.by_name(name).map_err(|e| e.to_string())?.read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    Ok(bytes)
}

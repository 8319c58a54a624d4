//! A model directory whose query table was tuned: every other file is a copy, byte for byte.

use std::path::Path;

use nsparse_core::model_dir::ModelDir;
use nsparse_core::{IdfTable, Weight, files};

use crate::folders::replace_folder;
use crate::{Error, Result};

/// The two files that are not copied.
const WRITTEN: [&str; 2] = ["idf.json", "idf.meta.json"];

/// Refuses a place that is taken, before anything is computed.
///
/// # Errors
/// If there is anything but an empty folder.
pub fn require_free(out: &Path) -> Result<()> {
    let is_taken = match std::fs::read_dir(out) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => out.exists(),
    };
    if is_taken {
        return Err(Error::config_with_hint(
            format!("`{}` is there already", out.display()),
            "name a new folder with --out, or remove this one",
        ));
    }
    Ok(())
}

/// Writes the folder: `idf.json` with the table, `idf.meta.json` as the model's with `about` under `tuned`, and copies
/// of the model's other files. It appears whole.
///
/// # Errors
/// If the place is taken, or a file cannot be read or written.
pub fn write_tuned(model: &ModelDir, out: &Path, table: &[Weight], about: &serde_json::Value) -> Result<()> {
    require_free(out)?;
    let tokenizer = model.tokenizer()?;
    let path = model.file("idf.meta.json");
    let mut metadata: serde_json::Value = if path.is_file() { files::read_json(&path)? } else { serde_json::json!({}) };
    metadata["tuned"] = about.clone();
    let folder = model.folder();
    replace_folder(out, |new| {
        let entries = std::fs::read_dir(folder).map_err(|e| nsparse_core::Error::io("read", folder, e))?;
        for entry in entries {
            let from = entry.map_err(|e| nsparse_core::Error::io("read", folder, e))?.path();
            let Some(name) = from.file_name() else { continue };
            if from.is_file() && !WRITTEN.iter().any(|w| name == *w) {
                std::fs::copy(&from, new.join(name)).map_err(|e| nsparse_core::Error::io("copy", &from, e))?;
            }
        }
        IdfTable::from_weights(table.to_vec()).save(&new.join("idf.json"), &tokenizer)?;
        files::write_json(&new.join("idf.meta.json"), &metadata)?;
        Ok(())
    })
}

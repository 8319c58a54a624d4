//! What a run starts from and learns from, by hashes: written into `nsparse.json` and `summary.json`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;

use nsparse_core::lineage::{Lineage, RowsFile, Start};
use nsparse_core::model_dir::{ModelDir, ModelFacts};
use nsparse_core::{Progress, files, rows};
use serde::Deserialize;

use crate::config::TrainConfig;
use crate::sections::SetSource;
use crate::{Error, Result};

/// The lineage of a recipe's run. Says so if the starting model was trained with another activation: its weights
/// then mean something else.
///
/// # Errors
/// If a file that the recipe names cannot be read.
pub fn lineage(config: &TrainConfig, progress: &dyn Progress) -> Result<Lineage> {
    let start = config.model.path.as_deref().map(|folder| start(folder, config, progress)).transpose()?;
    let mut rows = Vec::new();
    for set in config.data.training_sets() {
        match set.source()? {
            SetSource::Rows(path) | SetSource::HardNegatives(path) | SetSource::Tevatron(path) => {
                rows.push(rows_file(path)?);
            }
            SetSource::Judgments(_) => {}
        }
    }
    Ok(Lineage { start, rows })
}

fn start(folder: &Path, config: &TrainConfig, progress: &dyn Progress) -> Result<Start> {
    let weights_sha256 = files::sha256_file(&folder.join("model.safetensors"))?.0;
    let facts: Option<ModelFacts> = ModelDir::open(folder).ok().and_then(|directory| directory.facts().ok());
    if let Some(theirs) = facts.as_ref().map(|f| f.activation).filter(|a| *a != config.model.activation) {
        progress.warn(&format!(
            "`{}` was trained with the activation {theirs:?}, this recipe has {:?} (`model.activation`)",
            folder.display(),
            config.model.activation
        ));
    }
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_path_buf());
    let mut names: Vec<_> =
        absolute.components().rev().take(2).map(|c| c.as_os_str().to_string_lossy().into_owned()).collect();
    names.reverse();
    Ok(Start { name: names.join("/"), weights_sha256, lineage: facts.and_then(|f| f.lineage).map(Box::new) })
}

fn rows_file(path: &Path) -> Result<RowsFile> {
    #[derive(Deserialize)]
    struct Sourced {
        source: Option<String>,
    }
    let io = |e| Error::from(nsparse_core::Error::io("read", path, e));
    let mut origins: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = 0;
    for line in BufReader::new(std::fs::File::open(path).map_err(io)?).lines() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        count += 1;
        // Broken rows are the reader's to name.
        let Some(source) = serde_json::from_str::<Sourced>(&line).ok().and_then(|row| row.source) else { continue };
        let mut named: Vec<&str> = rows::origins(&source).map(|(origin, _)| origin).collect();
        named.sort_unstable();
        named.dedup();
        for origin in named {
            *origins.entry(origin.to_owned()).or_insert(0) += 1;
        }
    }
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    Ok(RowsFile { name, sha256: files::sha256_file(path)?.0, rows: count, origins })
}

//! Writes a model directory: Hugging Face's layout plus `idf.json`, `idf.meta.json` and `nsparse.json`.

use std::path::Path;

use nsparse_core::model_dir::{ModelFacts, QuerySideKind};
use nsparse_core::{IdfTable, files};
use nsparse_encoder::{BertMlm, Parameters};

use crate::Result;
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::folders::replace_folder;
use crate::query_side::SavedSide;
use crate::query_side::table::is_query;

/// Writes the model as it is now; what stood in the folder is replaced as a whole. `side`: what the query side learned.
///
/// # Errors
/// If a file cannot be written; a model that stood there is then still there.
pub fn write_model(
    folder: &Path,
    model: &BertMlm,
    data: &TrainingData,
    config: &TrainConfig,
    side: Option<&SavedSide>,
) -> Result<()> {
    let tokenizer = data.query_encoder.tokenizer();
    replace_folder(folder, |new| {
        model.config.save(&new.join("config.json"))?;
        save_encoder(&model.parameters, &new.join("model.safetensors"))?;
        files::write_bytes(&new.join("tokenizer.json"), tokenizer.to_json(config.data.max_tokens)?.as_bytes())?;
        let mut vocabulary = tokenizer.vocabulary().join("\n");
        vocabulary.push('\n');
        files::write_bytes(&new.join("vocab.txt"), vocabulary.as_bytes())?;
        let mut facts = ModelFacts::new(config.model.activation, config.data.max_tokens, config.data.template.clone());
        facts.segments = config.data.segments;
        match side {
            None => data.query_encoder.idf().save(&new.join("idf.json"), tokenizer)?,
            Some(SavedSide::Table(table)) => {
                IdfTable::from_weights(table.weights.clone()).save(&new.join("idf.json"), tokenizer)?;
            }
            Some(SavedSide::Siamese) => facts.query_side = QuerySideKind::Encoder,
        }
        if side != Some(&SavedSide::Siamese)
            && let Some(metadata) = idf_metadata(data, config, side)?
        {
            files::write_json(&new.join("idf.meta.json"), &metadata)?;
        }
        facts.weights_sha256 = Some(files::sha256_file(&new.join("model.safetensors"))?.0);
        facts.recipe = serde_json::to_value(config).ok();
        facts.lineage = Some(data.lineage.clone());
        files::write_json(&new.join("nsparse.json"), &facts)?;
        Ok(())
    })
}

/// The encoder's parameters alone.
fn save_encoder(parameters: &Parameters, path: &Path) -> Result<()> {
    let specs: Vec<_> = parameters.specs().iter().filter(|s| !is_query(s)).cloned().collect();
    Ok(Parameters::save_buffer(&specs, parameters.data(), path)?)
}

/// Where the idf comes from, and how it was learned where it was.
fn idf_metadata(
    data: &TrainingData,
    config: &TrainConfig,
    side: Option<&SavedSide>,
) -> Result<Option<serde_json::Value>> {
    let mut metadata = match (&data.idf_metadata, &config.data.idf.file) {
        (Some(metadata), _) => serde_json::to_value(metadata).ok(),
        (None, Some(file)) => {
            let beside = file.with_file_name("idf.meta.json");
            if beside.is_file() { Some(files::read_json(&beside)?) } else { None }
        }
        (None, None) => None,
    };
    if let Some(SavedSide::Table(table)) = side {
        metadata.get_or_insert_with(|| serde_json::json!({}))["learned"] = table.metadata();
    }
    Ok(metadata)
}

//! Writes a model directory: Hugging Face's layout plus `idf.json`, `idf.meta.json` and `nsparse.json`.

use std::path::Path;

use nsparse_core::files;
use nsparse_core::model_dir::ModelFacts;
use nsparse_encoder::BertMlm;

use crate::Result;
use crate::config::TrainConfig;
use crate::data::TrainingData;
use crate::folders::replace_folder;

/// Writes the model as it is now; what stood in the folder is replaced as a whole.
///
/// # Errors
/// If a file cannot be written; a model that stood there is then still there.
pub fn write_model(folder: &Path, model: &BertMlm, data: &TrainingData, config: &TrainConfig) -> Result<()> {
    let tokenizer = data.query_encoder.tokenizer();
    replace_folder(folder, |new| {
        model.save(new)?;
        files::write_bytes(&new.join("tokenizer.json"), tokenizer.to_json(config.data.max_tokens)?.as_bytes())?;
        let mut vocabulary = tokenizer.vocabulary().join("\n");
        vocabulary.push('\n');
        files::write_bytes(&new.join("vocab.txt"), vocabulary.as_bytes())?;
        data.query_encoder.idf().save(&new.join("idf.json"), tokenizer)?;
        if let Some(metadata) = &data.idf_metadata {
            files::write_json(&new.join("idf.meta.json"), metadata)?;
        } else if let Some(file) = &config.data.idf.file {
            let beside = file.with_file_name("idf.meta.json");
            if beside.is_file() {
                files::write_bytes(&new.join("idf.meta.json"), files::read_text(&beside)?.as_bytes())?;
            }
        }
        let mut facts = ModelFacts::new(config.model.activation, config.data.max_tokens, config.data.template.clone());
        facts.weights_sha256 = Some(files::sha256_file(&new.join("model.safetensors"))?.0);
        facts.recipe = serde_json::to_value(config).ok();
        files::write_json(&new.join("nsparse.json"), &facts)?;
        Ok(())
    })
}

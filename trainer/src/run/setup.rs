//! From a recipe to what a run works with: model, network, stages.

use nsparse_core::TextTokenizer;
use nsparse_encoder::{BertConfig, BertMlm, Device};

use crate::config::TrainConfig;
use crate::contrastive::Contrastive;
use crate::data::TrainingData;
use crate::network::Network;
use crate::sections::When;
use crate::stage::Stage;
use crate::teachers::Teachers;
use crate::warm_start::WarmStart;
use crate::{Error, Result};

/// Model and tokenizer that a recipe names.
pub(crate) fn load_model(config: &TrainConfig) -> Result<(BertMlm, TextTokenizer)> {
    let m = &config.model;
    let tokenizer_path = match (&m.tokenizer, &m.path) {
        (Some(file), _) => file.clone(),
        (None, Some(folder)) => folder.join("tokenizer.json"),
        (None, None) => return Err(Error::config("`model`: give `path` or `random`")),
    };
    let tokenizer = TextTokenizer::load(&tokenizer_path)?;
    let model = match (&m.path, &m.random) {
        (Some(folder), _) => BertMlm::load(folder, config.run.seed)?,
        (None, Some(shape)) => {
            let shape = serde_json::json!({
                "model_type": "bert",
                "vocab_size": tokenizer.vocabulary().len(),
                "hidden_size": shape.hidden_size,
                "num_hidden_layers": shape.num_hidden_layers,
                "num_attention_heads": shape.num_attention_heads,
                "intermediate_size": shape.intermediate_size,
                "hidden_act": "gelu",
                "max_position_embeddings": shape.max_position_embeddings,
                "type_vocab_size": 2,
                "layer_norm_eps": 1e-12,
                "initializer_range": shape.initializer_range,
                "pad_token_id": tokenizer.special().pad,
            });
            let shape: BertConfig =
                serde_json::from_value(shape).map_err(|e| Error::config(format!("`model.random`: {e}")))?;
            shape.validate().map_err(|e| Error::config(format!("`model.random`: {e}")))?;
            BertMlm::random(shape, config.run.seed)
        }
        (None, None) => return Err(Error::config("`model`: give `path` or `random`")),
    };
    let (named, entries) = (tokenizer.vocabulary().len(), model.config.vocab_size);
    if named > entries {
        return Err(Error::config_with_hint(
            format!("`{}` has {named} tokens, the model only {entries} embeddings", tokenizer_path.display()),
            "tokenizer.json and model.safetensors must come from the same model",
        ));
    }
    let most = model.config.max_position_embeddings;
    if config.data.max_tokens > most {
        return Err(Error::config(format!(
            "`data.max_tokens` is {}, but the model has only {most} positions",
            config.data.max_tokens
        )));
    }
    Ok((model, tokenizer))
}

pub(crate) fn build_network(config: &TrainConfig, model: &BertMlm, tokenizer: &TextTokenizer) -> Result<Network> {
    let device: Device = config.run.device.parse()?;
    let precision = config.run.precision.unwrap_or(device.default_precision());
    let backend = nsparse_encoder::create_with(&model.config, device, precision)?;
    let (vocab, named) = (model.config.vocab_size, tokenizer.vocabulary().len());
    Ok(Network::with_backend(backend, vocab, config.model.activation, &tokenizer.weightless(), named))
}

/// The stages that have steps, in their order.
pub(crate) fn stages<'a>(
    config: &'a TrainConfig,
    data: &'a TrainingData,
    zeroed: &'a [bool],
    teachers: Option<Teachers>,
) -> Result<Vec<Box<dyn Stage + 'a>>> {
    let mut stages: Vec<Box<dyn Stage + 'a>> = Vec::new();
    if config.warm_start.steps > 0 {
        stages.push(Box::new(WarmStart::new(&config.warm_start, &data.documents, zeroed, config.run.seed)));
    }
    if config.has_contrastive() {
        stages.push(Box::new(Contrastive::new(config, data, zeroed)?.with_teachers(teachers)));
    }
    Ok(stages)
}

pub(crate) fn needs_calibration(config: &TrainConfig, model: &BertMlm) -> bool {
    match config.calibration.when {
        When::Auto => model.head_is_new || config.model.random.is_some(),
        When::Always => true,
        When::Never => false,
    }
}

//! A BERT with masked-language-model head: its config and parameters, from and to Hugging Face folders.

use std::collections::BTreeMap;
use std::path::Path;

use crate::init::normal;
use crate::params::TensorMap;
use crate::{BertConfig, Error, Parameters, Result};

/// Word embeddings: the decoder's weight too.
const WORDS: &str = "bert.embeddings.word_embeddings.weight";
/// The decoder's bias.
const DECODER_BIAS: &str = "cls.predictions.bias";
/// Everything of the head begins so.
const HEAD: &str = "cls.predictions.";
/// Deviation of the noise on a new head's transform, so that it is not exactly symmetric.
const HEAD_NOISE: f64 = 0.02;

/// Config and parameters of one model. Parameter names are Hugging Face's for `BertForMaskedLM`; the decoder
/// is tied, so `cls.predictions.decoder.weight` is not stored: it is `bert.embeddings.word_embeddings.weight`.
#[derive(Debug, Clone, PartialEq)]
pub struct BertMlm {
    /// The shape.
    pub config: BertConfig,
    /// Encoder and head.
    pub parameters: Parameters,
    /// Whether the head was not in the files and is freshly made: it needs calibration and the warm start.
    pub head_is_new: bool,
}

impl BertMlm {
    /// Loads `config.json` and `model.safetensors` of a folder: names with or without `bert.` in front,
    /// norms as `weight`/`bias` or as the older `gamma`/`beta`, numbers of any float type. Pooler, position
    /// ids and the next-sentence head are left out.
    ///
    /// A bare encoder gets a new head ([`BertMlm::head_is_new`]): a transform that is the identity plus normal
    /// noise of deviation 0.02 from `seed`, a norm of weight 1 and bias 0, and a decoder bias of 0. So a
    /// token's logit starts as the likeness of its embedding to the hidden state.
    ///
    /// # Errors
    /// If a file is missing or broken, a tensor is missing or has another shape, the decoder is not tied to the
    /// word embeddings, or it is not a BERT.
    pub fn load(folder: &Path, seed: u64) -> Result<Self> {
        let config = BertConfig::load(&folder.join("config.json"))?;
        let path = folder.join("model.safetensors");
        if !path.is_file() {
            return Err(missing_weights(folder));
        }
        let mut found = BTreeMap::new();
        for (name, tensor) in Parameters::read_tensors(&path)? {
            found.insert(canonical_name(&name), tensor);
        }
        let unusable = |message: String| Error::from(nsparse_core::Error::file(&path, message));
        tie_decoder(&mut found).map_err(unusable)?;
        let head_is_new = !found.keys().any(|name| name.starts_with(HEAD));
        if head_is_new {
            found.extend(new_head(&config, seed));
        }
        let mut tensors = BTreeMap::new();
        for (name, shape) in parameter_shapes(&config) {
            let tensor = found
                .remove(&name)
                .ok_or_else(|| unusable(format!("tensor `{name}` is missing; expected shape {shape:?}")))?;
            if tensor.0 != shape {
                return Err(unusable(format!(
                    "tensor `{name}` has shape {:?}, but config.json asks for {shape:?}",
                    tensor.0
                )));
            }
            tensors.insert(name, tensor);
        }
        if let Some(name) = found.keys().find(|name| name.starts_with("bert.encoder.layer.")) {
            return Err(unusable(format!(
                "tensor `{name}` has no place: config.json describes {} layers of BERT",
                config.num_hidden_layers
            )));
        }
        Ok(Self { config, parameters: Parameters::from_tensors(tensors)?, head_is_new })
    }

    /// A new model with random weights (normal, `initializer_range`; biases 0, norms 1).
    pub fn random(config: BertConfig, seed: u64) -> Self {
        let tensors = parameter_shapes(&config)
            .into_iter()
            .map(|(name, shape)| {
                let n = shape.iter().product();
                let values = if name.rsplit('.').next() == Some("bias") {
                    vec![0.0; n]
                } else if name.contains("LayerNorm") {
                    vec![1.0; n]
                } else {
                    normal(seed, &name, n, config.initializer_range)
                };
                (name, (shape, values))
            })
            .collect();
        let parameters = Parameters::from_tensors(tensors).expect("every tensor is made in its own shape");
        Self { config, parameters, head_is_new: false }
    }

    /// Writes `config.json` and `model.safetensors` into a folder, as `BertForMaskedLM` of transformers loads
    /// them. Each file appears whole or not at all.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        self.config.save(&folder.join("config.json"))?;
        self.parameters.save(&folder.join("model.safetensors"))
    }
}

/// Every parameter's name and shape, by Hugging Face's names for `BertForMaskedLM` with a tied decoder.
pub fn parameter_shapes(config: &BertConfig) -> BTreeMap<String, Vec<usize>> {
    let (h, wide, v) = (config.hidden_size, config.intermediate_size, config.vocab_size);
    let mut out = BTreeMap::new();
    out.insert(WORDS.to_owned(), vec![v, h]);
    out.insert("bert.embeddings.position_embeddings.weight".to_owned(), vec![config.max_position_embeddings, h]);
    out.insert("bert.embeddings.token_type_embeddings.weight".to_owned(), vec![config.type_vocab_size, h]);
    out.insert(DECODER_BIAS.to_owned(), vec![v]);
    let mut linear = |name: String, from: usize, to: usize| {
        out.insert(format!("{name}.weight"), vec![to, from]);
        out.insert(format!("{name}.bias"), vec![to]);
    };
    linear("cls.predictions.transform.dense".to_owned(), h, h);
    for layer in 0..config.num_hidden_layers {
        let name = |part: &str| format!("bert.encoder.layer.{layer}.{part}");
        for part in ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"] {
            linear(name(part), h, h);
        }
        linear(name("intermediate.dense"), h, wide);
        linear(name("output.dense"), wide, h);
    }
    let mut norm = |name: String| {
        out.insert(format!("{name}.LayerNorm.weight"), vec![h]);
        out.insert(format!("{name}.LayerNorm.bias"), vec![h]);
    };
    norm("bert.embeddings".to_owned());
    norm("cls.predictions.transform".to_owned());
    for layer in 0..config.num_hidden_layers {
        norm(format!("bert.encoder.layer.{layer}.attention.output"));
        norm(format!("bert.encoder.layer.{layer}.output"));
    }
    out
}

/// The name that `BertForMaskedLM` of today gives a tensor.
fn canonical_name(name: &str) -> String {
    let name = match name.strip_suffix("LayerNorm.gamma") {
        Some(start) => format!("{start}LayerNorm.weight"),
        None => match name.strip_suffix("LayerNorm.beta") {
            Some(start) => format!("{start}LayerNorm.bias"),
            None => name.to_owned(),
        },
    };
    if name.starts_with("embeddings.") || name.starts_with("encoder.") || name.starts_with("pooler.") {
        format!("bert.{name}")
    } else {
        name
    }
}

/// Takes the decoder's own copies out of the tensors: they must equal what they are tied to.
fn tie_decoder(found: &mut TensorMap) -> std::result::Result<(), String> {
    if let Some(decoder) = found.remove("cls.predictions.decoder.weight")
        && found.get(WORDS).is_some_and(|words| *words != decoder)
    {
        return Err(format!(
            "tensor `cls.predictions.decoder.weight` differs from `{WORDS}`; nsparse computes a tied decoder only, so \
             take a model whose config has tie_word_embeddings true"
        ));
    }
    if let Some(decoder) = found.remove("cls.predictions.decoder.bias") {
        let bias = found.entry(DECODER_BIAS.to_owned()).or_insert_with(|| decoder.clone());
        if *bias != decoder {
            return Err(format!("tensors `cls.predictions.decoder.bias` and `{DECODER_BIAS}` differ; they are one"));
        }
    }
    Ok(())
}

/// A head for a bare encoder.
fn new_head(config: &BertConfig, seed: u64) -> TensorMap {
    let h = config.hidden_size;
    let dense = "cls.predictions.transform.dense.weight";
    let mut weight = normal(seed, dense, h * h, HEAD_NOISE);
    for i in 0..h {
        weight[i * h + i] += 1.0;
    }
    [
        (dense, vec![h, h], weight),
        ("cls.predictions.transform.dense.bias", vec![h], vec![0.0; h]),
        ("cls.predictions.transform.LayerNorm.weight", vec![h], vec![1.0; h]),
        ("cls.predictions.transform.LayerNorm.bias", vec![h], vec![0.0; h]),
        (DECODER_BIAS, vec![config.vocab_size], vec![0.0; config.vocab_size]),
    ]
    .into_iter()
    .map(|(name, shape, values)| (name.to_owned(), (shape, values)))
    .collect()
}

/// The error for a folder without `model.safetensors`.
fn missing_weights(folder: &Path) -> Error {
    let (what, hint) = if folder.join("pytorch_model.bin").is_file() {
        (
            "has pytorch_model.bin but no model.safetensors; nsparse reads safetensors only",
            "convert it once with Python: `AutoModelForMaskedLM.from_pretrained(FOLDER).save_pretrained(FOLDER)`, or \
             fetch the model's safetensors file",
        )
    } else if folder.join("model.safetensors.index.json").is_file() {
        ("has its weights in several files; nsparse reads one model.safetensors", "save the model as a single file")
    } else {
        ("has no model.safetensors", "give a folder with config.json, model.safetensors and tokenizer.json")
    };
    nsparse_core::Error::invalid_with_hint(format!("`{}` {what}", folder.display()), hint).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test fails by panicking
mod tests {
    use super::{TensorMap as Tensors, *};

    fn config() -> BertConfig {
        serde_json::from_value(serde_json::json!({
            "model_type": "bert", "vocab_size": 11, "hidden_size": 4, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 6, "hidden_act": "gelu",
            "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12
        }))
        .unwrap()
    }

    /// The tensors of a random model, changed by `edit`, written as a checkpoint and loaded.
    fn reload(edit: impl FnOnce(&mut Tensors)) -> (BertMlm, Result<BertMlm>) {
        let model = BertMlm::random(config(), 5);
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path()).unwrap();
        let path = folder.path().join("model.safetensors");
        let mut tensors = Parameters::read_tensors(&path).unwrap();
        edit(&mut tensors);
        Parameters::from_tensors(tensors).unwrap().save(&path).unwrap();
        let loaded = BertMlm::load(folder.path(), 9);
        (model, loaded)
    }

    fn rename(tensors: &mut Tensors, new_name: impl Fn(&str) -> String) {
        *tensors = std::mem::take(tensors).into_iter().map(|(n, t)| (new_name(&n), t)).collect();
    }

    #[test]
    fn a_saved_model_loads_equal() {
        let (model, loaded) = reload(|_| ());
        assert_eq!(loaded.unwrap(), model);
    }

    #[test]
    fn old_norm_names_extra_heads_and_decoder_copies_are_understood() {
        let (model, loaded) = reload(|tensors| {
            rename(tensors, |n| n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"));
            tensors.insert("cls.predictions.decoder.weight".into(), tensors[WORDS].clone());
            tensors.insert("cls.predictions.decoder.bias".into(), tensors[DECODER_BIAS].clone());
            tensors.insert("bert.pooler.dense.weight".into(), (vec![4, 4], vec![0.0; 16]));
            tensors.insert("cls.seq_relationship.weight".into(), (vec![2, 4], vec![0.0; 8]));
            tensors.insert("bert.embeddings.position_ids".into(), (vec![1, 8], vec![0.0; 8]));
        });
        assert_eq!(loaded.unwrap(), model);
    }

    #[test]
    fn a_bare_encoder_without_prefix_gets_a_new_head() {
        let (model, loaded) = reload(|tensors| {
            tensors.retain(|name, _| !name.starts_with("cls."));
            rename(tensors, |n| n.trim_start_matches("bert.").to_owned());
        });
        let loaded = loaded.unwrap();
        assert!(loaded.head_is_new);
        for spec in model.parameters.specs().iter().filter(|s| s.name.starts_with("bert.")) {
            assert_eq!(loaded.parameters.get(&spec.name).unwrap(), model.parameters.get(&spec.name).unwrap());
        }
        let dense = loaded.parameters.get("cls.predictions.transform.dense.weight").unwrap();
        for (i, &value) in dense.iter().enumerate() {
            let identity = if i % 5 == 0 { 1.0 } else { 0.0 };
            assert!((1e-7..0.1).contains(&(value - identity).abs()), "{i}: {value}");
        }
        assert!(loaded.parameters.get(DECODER_BIAS).unwrap().iter().all(|&b| b == 0.0));
        assert!(!model.head_is_new);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let message = |edit: fn(&mut Tensors)| reload(edit).1.unwrap_err().to_string();
        let name = "bert.encoder.layer.1.output.dense.weight";
        let missing = message(|t| drop(t.remove("bert.encoder.layer.1.output.dense.weight")));
        assert!(missing.contains(name) && missing.contains("[4, 6]"), "{missing}");
        let shape = message(|t| {
            t.insert("bert.encoder.layer.1.output.dense.weight".into(), (vec![6, 4], vec![0.0; 24]));
        });
        assert!(shape.contains(name) && shape.contains("[4, 6]") && shape.contains("[6, 4]"), "{shape}");
        let untied = message(|t| {
            let mut decoder = t[WORDS].clone();
            decoder.1[3] += 1.0;
            t.insert("cls.predictions.decoder.weight".into(), decoder);
        });
        assert!(untied.contains("tied"), "{untied}");
        let layers = message(|t| {
            t.insert("bert.encoder.layer.2.output.dense.bias".into(), (vec![4], vec![0.0; 4]));
        });
        assert!(layers.contains("2 layers"), "{layers}");
        let half_a_head = message(|t| drop(t.remove("cls.predictions.transform.dense.bias")));
        assert!(half_a_head.contains("cls.predictions.transform.dense.bias"), "{half_a_head}");
    }

    #[test]
    fn a_pickled_checkpoint_is_named() {
        let folder = tempfile::tempdir().unwrap();
        config().save(&folder.path().join("config.json")).unwrap();
        let bare = BertMlm::load(folder.path(), 0).unwrap_err().to_string();
        assert!(bare.contains("no model.safetensors") && !bare.contains("pytorch_model.bin"), "{bare}");
        std::fs::write(folder.path().join("pytorch_model.bin"), b"x").unwrap();
        let error = BertMlm::load(folder.path(), 0).unwrap_err();
        assert!(error.to_string().contains("pytorch_model.bin"), "{error}");
        assert!(error.hint().unwrap().contains("save_pretrained"));
    }

    #[test]
    fn random_weights_follow_their_seed() {
        let (a, b) = (BertMlm::random(config(), 1), BertMlm::random(config(), 2));
        assert_eq!(a, BertMlm::random(config(), 1));
        assert_ne!(a.parameters.get(WORDS).unwrap(), b.parameters.get(WORDS).unwrap());
        assert!(
            a.parameters
                .get("bert.embeddings.LayerNorm.weight")
                .unwrap()
                .iter()
                .all(|w| w.to_bits() == 1.0f32.to_bits())
        );
    }
}

//! A pre-training recipe: YAML with every key known, overrides, checks that name the key.

use std::path::{Path, PathBuf};

use nsparse_core::files;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::sections::{MlmSection, PairsSection, TextSection};
use crate::config::TrainConfig;
use crate::recipe_file::{self, Recipe, flatten};
use crate::sections::{
    CheckpointSection, DataSection, EvalSection, IdfSection, ModelSection, OptimizerSection, RunSection,
    WarmStartSection,
};
use crate::{Error, Result};

/// A whole recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Where the run lives and what it draws from.
    pub run: RunSection,
    /// What is trained.
    pub model: ModelSection,
    /// What is learned from.
    pub data: TextSection,
    /// Masked-language modelling; without the section there is no such stage.
    pub mlm: Option<MlmSection>,
    /// Contrastive training on pairs; without the section there is no such stage.
    pub pairs: Option<PairsSection>,
    /// `AdamW`, for both stages.
    pub optimizer: OptimizerSection,
    /// What a stopped run goes on from.
    pub checkpoint: CheckpointSection,
}

impl PretrainConfig {
    /// The JSON schema (draft 7, which editors know) of a recipe: keys, types, defaults and what they mean.
    pub fn schema() -> Value {
        SchemaSettings::draft07().into_generator().into_root_schema_for::<Self>().to_value()
    }

    /// Reads a recipe, applies overrides of the form `section.key=value` in order, and checks the whole.
    ///
    /// # Errors
    /// If the file cannot be read, has a key that is not known or a value of another type (with its line), an
    /// override names no key, or a value cannot be used.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        recipe_file::load(path, overrides)
    }

    /// As [`PretrainConfig::load`], from the text of a recipe.
    ///
    /// # Errors
    /// As [`PretrainConfig::load`].
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        recipe_file::parse(text, overrides)
    }

    /// The recipe as YAML, every key written out.
    ///
    /// # Errors
    /// If a value cannot be written.
    pub fn to_yaml(&self) -> Result<String> {
        recipe_file::to_yaml(self)
    }

    /// Writes the resolved recipe.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        files::write_bytes(path, self.to_yaml()?.as_bytes())?;
        Ok(())
    }

    /// The keys that a checkpoint of the masked-language stage depends on, with their values, sorted by key.
    ///
    /// # Errors
    /// If a value cannot be written.
    pub fn flat(&self) -> Result<Vec<(String, String)>> {
        let tree = serde_json::to_value(self).map_err(|e| Error::config(e.to_string()))?;
        let mut out = Vec::new();
        flatten("", &tree, &mut out);
        // They do not change what is computed in it.
        out.retain(|(key, _)| !key.starts_with("pairs") && !key.starts_with("mlm.level"));
        out.sort();
        Ok(out)
    }

    /// Checks every value that can be checked without reading data.
    ///
    /// # Errors
    /// The first value that cannot be used, by its key.
    pub fn validate(&self) -> Result<()> {
        self.data.validate()?;
        match (&self.mlm, &self.pairs) {
            (None, None) => {
                return Err(Error::config_with_hint(
                    "The recipe has no stage",
                    "give `mlm` (masked-language modelling), `pairs`, or both; `mlm: {}` takes all defaults",
                ));
            }
            (mlm, pairs) => {
                mlm.as_ref().map_or(Ok(()), MlmSection::validate)?;
                pairs.as_ref().map_or(Ok(()), PairsSection::validate)?;
            }
        }
        // The sections that both kinds of recipe have, and those of `pairs`, are checked as a training recipe's.
        self.training(&self.model, PathBuf::from("rows.jsonl"), None).validate().map_err(|e| match e {
            Error::Config { message, hint } => {
                let own = ["train", "calibration", "guard"]
                    .iter()
                    .fold(message, |m, section| m.replace(&format!("`{section}"), &format!("`pairs.{section}")));
                Error::Config { message: own, hint }
            }
            other => other,
        })
    }

    /// The training recipe of the pair stage, or of none: model and rows as given, the idf table in a file.
    pub(super) fn training(&self, model: &ModelSection, rows: PathBuf, idf: Option<PathBuf>) -> TrainConfig {
        let pairs = self.pairs.clone().unwrap_or_default();
        let mut train = pairs.train;
        if pairs.file.is_none() {
            train.negatives = 0;
        }
        TrainConfig {
            run: RunSection { dir: self.run.dir.join("pairs"), ..self.run.clone() },
            model: model.clone(),
            data: DataSection {
                rows: Some(rows),
                max_tokens: self.data.max_tokens,
                template: self.data.template.clone(),
                idf: idf.map_or_else(
                    || self.data.idf.clone(),
                    |file| IdfSection { file: Some(file), ..IdfSection::default() },
                ),
                ..DataSection::default()
            },
            calibration: pairs.calibration,
            warm_start: WarmStartSection { steps: 0, ..WarmStartSection::default() },
            train,
            optimizer: self.optimizer.clone(),
            // Held out by document, not by query: that is done before the rows are written.
            eval: EvalSection { fraction: 0.0, ..EvalSection::default() },
            checkpoint: self.checkpoint.clone(),
            guard: pairs.guard,
            ..TrainConfig::default()
        }
    }
}

impl Recipe for PretrainConfig {
    /// One of two keys says how long a stage is.
    fn settle(tree: &mut Value, key: &str) {
        let Some((stage, word)) = key.rsplit_once('.') else { return };
        let other = match (stage, word) {
            ("mlm" | "pairs.train", "steps") => "epochs",
            ("mlm" | "pairs.train", "epochs") => "steps",
            _ => return,
        };
        if let Some(place) = tree.pointer_mut(&format!("/{}/{other}", stage.replace('.', "/"))) {
            *place = Value::Null;
        }
    }

    fn check(&self) -> Result<()> {
        self.validate()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    const SMALL: &str = "model: {path: m}\ndata: {dir: d}\nmlm: {epochs: 2}\n";

    fn set(items: &[&str]) -> Result<PretrainConfig> {
        PretrainConfig::parse(SMALL, &items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn round_trip_and_overrides() {
        let config = set(&["pairs.kinds=[sentence_context]", "mlm.steps=7", "mlm.level=null"]).unwrap();
        let mlm = config.mlm.as_ref().unwrap();
        assert_eq!((mlm.steps, mlm.epochs, &mlm.level), (Some(7), None, &None));
        assert_eq!(config.pairs.as_ref().unwrap().kinds, [super::super::sections::PairKind::SentenceContext]);
        assert_eq!(PretrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        let config = set(&["pairs.train.epochs=3", "pairs.train.steps=4"]).unwrap();
        assert_eq!((config.pairs.unwrap().train.steps, config.mlm.unwrap().epochs), (Some(4), Some(2.0)));
    }

    #[test]
    fn what_cannot_be_used_names_its_key() {
        for (item, key) in [
            ("mlm.mask.share=0", "`mlm.mask.share`"),
            ("mlm.mask.hidden=0.95", "`mlm.mask`"),
            ("mlm.mask={hidden: 0, random: 0}", "`mlm.mask`"),
            ("mlm.batch_windows=0", "`mlm.batch_windows`"),
            ("mlm.steps=0", "`mlm.steps`"),
            ("mlm.dropout=1", "`mlm.dropout`"),
            ("mlm.level.active_dimensions=0", "`mlm.level`"),
            ("mlm.learning_rate={encoder: -1, head: 0}", "`mlm.learning_rate`"),
            ("data.held_out=0.6", "`data.held_out`"),
            ("data.dir=null", "`data`"),
            ("data.max_tokens=2", "`data.max_tokens`"),
            ("model.path=null", "`model`"),
            ("run.device=tpu", "`run.device`"),
            ("run.precision=bf16", "`run.precision`"),
            ("optimizer.beta1=1", "`optimizer.beta1`"),
            ("pairs.kinds=[]", "`pairs`"),
            ("pairs.kinds=[title_text, title_text]", "`pairs.kinds`"),
            ("pairs.paragraph_min=2000", "`pairs.paragraph_max`"),
            ("pairs.train.negatives=3", "`pairs.train.negatives`"),
            ("pairs.train.dropout=1", "`pairs.train.dropout`"),
            ("pairs.train.losses.infonce.temperature=0", "`pairs.train.losses.infonce.temperature`"),
            ("pairs.guard.spike=0", "`pairs.guard.spike`"),
            ("mlm.windows=3", "windows"),
            ("pairs.kinds=[titel]", "titel"),
            ("mlm=null", "no stage"),
        ] {
            let error = set(&[item]).unwrap_err();
            assert!(error.to_string().contains(key), "{item}: {error}");
            assert_eq!(error.fault(), nsparse_core::Fault::Usage);
        }
        let message = PretrainConfig::parse("model: {path: m}\ndata:\n  dirr: d\n", &[]).unwrap_err().to_string();
        assert!(message.contains("dirr") && message.contains('3'), "{message}");
    }

    #[test]
    fn a_checkpoint_does_not_depend_on_the_stage_after_it() {
        let (a, b) = (set(&[]).unwrap(), set(&["pairs.train.steps=4", "mlm.level=null"]).unwrap());
        assert_eq!(a.flat().unwrap(), b.flat().unwrap());
        assert_ne!(a.flat().unwrap(), set(&["mlm.mask.share=0.2"]).unwrap().flat().unwrap());
    }
}

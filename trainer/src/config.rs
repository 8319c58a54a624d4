//! A training recipe: YAML with every key known, overrides from the command line, checks that name the key.

use std::path::Path;

use nsparse_core::files;
use nsparse_encoder::{Device, Precision};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::recipe_file::{self, Recipe, flatten};
use crate::regularisers::Ramp;
use crate::sections::{
    CalibrationSection, Candidates, CheckpointSection, DataSection, EvalSection, FlopsForm, GuardSection, LearningRate,
    ModelSection, OptimizerSection, QuerySection, RunSection, SetSection, Teacher, TeachersSection, TrainSection,
    WarmStartSection, When,
};
use crate::{Error, Result};

/// A whole recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Where the run lives and what it draws from.
    pub run: RunSection,
    /// What is trained.
    pub model: ModelSection,
    /// What is learned from.
    pub data: DataSection,
    /// The bias of a fresh head.
    pub calibration: CalibrationSection,
    /// The stage without labels.
    pub warm_start: WarmStartSection,
    /// The contrastive stage.
    pub train: TrainSection,
    /// Where query weights come from.
    pub query: QuerySection,
    /// Whose scores the contrastive stage may learn from.
    pub teachers: TeachersSection,
    /// `AdamW`, for both stages.
    pub optimizer: OptimizerSection,
    /// How the best step is chosen.
    pub eval: EvalSection,
    /// What a stopped run goes on from.
    pub checkpoint: CheckpointSection,
    /// When a run is said to go wrong.
    pub guard: GuardSection,
}

impl TrainConfig {
    /// Reads a recipe, applies overrides of the form `section.key=value` in order, and checks the whole.
    ///
    /// # Errors
    /// If the file cannot be read, has a key that is not known or a value of another type (with its line), an
    /// override names no key, or a value cannot be used.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        recipe_file::load(path, overrides)
    }

    /// As [`TrainConfig::load`], from the text of a recipe.
    ///
    /// # Errors
    /// As [`TrainConfig::load`].
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

    /// The JSON schema (draft 7, which editors know) of a recipe: keys, types, defaults and what they mean.
    pub fn schema() -> Value {
        let schema = SchemaSettings::draft07().into_generator().into_root_schema_for::<Self>();
        schema.to_value()
    }

    /// Whether a contrastive stage is asked for.
    pub fn has_contrastive(&self) -> bool {
        self.train.steps != Some(0)
    }

    /// Checks every value that can be checked without reading data.
    ///
    /// # Errors
    /// The first value that cannot be used, by its key.
    pub fn validate(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`{key}`: {problem}")));
        let (model, data) = (&self.model, &self.data);
        match (&model.path, &model.random) {
            (None, None) => return bad("model", "give `path` (a Hugging Face folder) or `random` (a shape)"),
            (Some(_), Some(_)) => return bad("model", "give `path` or `random`, not both"),
            (None, Some(_)) if model.tokenizer.is_none() => {
                return bad("model.tokenizer", "a random model needs a tokenizer.json");
            }
            _ => {}
        }
        if data.dir.is_none() && data.training_sets().is_empty() {
            return bad("data", "give `dir` (a data set), `rows` or `sets` (what is trained on), or both");
        }
        data.validate_sets()?;
        if let Some(set) = &self.eval.set {
            let names: Vec<String> = data.training_sets().iter().map(SetSection::title).collect::<Result<_>>()?;
            if !names.contains(set) {
                return bad("eval.set", &format!("no set is called `{set}`: there are {}", names.join(", ")));
            }
        }
        self.train.validate_negatives()?;
        if data.max_tokens < 3 {
            return bad("data.max_tokens", "at least 3");
        }
        data.validate_segments()?;
        self.warm_start.validate_long_documents(data)?;
        self.train.validate_long_documents(data, self.query.side)?;
        data.template.validate().map_err(|e| Error::config(format!("`data.template`: {e}")))?;
        let device: Device = self.run.device.parse().map_err(|e| Error::config(format!("`run.device`: {e}")))?;
        if device == Device::Cpu && self.run.precision == Some(Precision::Bf16) {
            return bad("run.precision", "bf16 is for the device cuda; leave it out or use f32 with cpu");
        }
        let c = &self.calibration;
        if c.when != When::Never && (c.active_dimensions == 0 || c.documents < 2) {
            return bad("calibration", "`active_dimensions` must be at least 1, `documents` at least 2");
        }
        for (key, value) in [
            ("run.log_every", self.run.log_every),
            ("warm_start.batch_documents", self.warm_start.batch_documents),
            ("train.batch_queries", self.train.batch_queries),
            ("train.queries_per_document", self.train.queries_per_document),
            ("train.accumulation", self.train.accumulation),
        ] {
            if value == 0 {
                return bad(key, "at least 1");
            }
        }
        self.validate_rates()?;
        self.validate_losses()?;
        self.teachers.validate(&self.train.losses, self.has_contrastive())?;
        self.validate_guard()?;
        let matches = self.train.losses.flops.target.is_some_and(|t| t.flops.is_some());
        self.query.validate(self.has_contrastive(), matches)?;
        self.eval.validate()
    }

    fn validate_rates(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`{key}`: {problem}")));
        let (w, t, o) = (&self.warm_start, &self.train, &self.optimizer);
        for (key, rate) in [("warm_start.learning_rate", &w.learning_rate), ("train.learning_rate", &t.learning_rate)] {
            let LearningRate { encoder, head } = *rate;
            if !(encoder.is_finite() && head.is_finite() && encoder >= 0.0 && head >= 0.0 && encoder + head > 0.0) {
                return bad(key, "both rates must be at least 0, and one of them above");
            }
        }
        for (key, rate) in [("warm_start.dropout", w.dropout), ("train.dropout", t.dropout)] {
            if !(0.0..1.0).contains(&rate) {
                return bad(key, "a rate in [0, 1)");
            }
        }
        for (key, value, most) in [
            ("warm_start.b", w.b, 1.0),
            ("warm_start.slope_below_zero", w.slope_below_zero, 1.0),
            ("warm_start.k1", w.k1, 1e3),
            ("warm_start.other_weight", w.other_weight, 1e3),
            ("optimizer.weight_decay", o.weight_decay, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return bad(key, &format!("a number in [0, {most}]"));
            }
        }
        for (key, value) in [("optimizer.beta1", o.beta1), ("optimizer.beta2", o.beta2)] {
            if !(0.0..1.0).contains(&value) {
                return bad(key, "a number in [0, 1)");
            }
        }
        if o.epsilon <= 0.0 || !o.epsilon.is_finite() {
            return bad("optimizer.epsilon", "a number above 0");
        }
        if o.max_grad_norm.is_some_and(|n| n <= 0.0 || !n.is_finite()) {
            return bad("optimizer.max_grad_norm", "a number above 0, or null for no clipping");
        }
        match (t.steps, t.epochs) {
            (Some(_), Some(_)) => bad("train", "give `steps` or `epochs`, not both"),
            (None, Some(e)) if !(e > 0.0 && e.is_finite()) => bad("train.epochs", "a number above 0"),
            _ => Ok(()),
        }
    }

    fn validate_losses(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`train.losses.{key}`: {problem}")));
        let l = &self.train.losses;
        for (key, weight) in [
            ("infonce.weight", l.infonce.weight),
            ("kl.weight", l.kl.weight),
            ("margin_mse.weight", l.margin_mse.weight),
            ("flops.weight", l.flops.peak()),
            ("l1.weight", l.l1.weight),
            ("anti_zero.weight", l.anti_zero.weight),
            ("lexical.weight", l.lexical.weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return bad(key, "a number of at least 0");
            }
        }
        for (key, temperature) in [("infonce.temperature", l.infonce.temperature), ("kl.temperature", l.kl.temperature)]
        {
            if !(temperature > 0.0 && temperature.is_finite()) {
                return bad(key, "a number above 0");
            }
        }
        self.validate_penalties()?;
        if l.kl.weight > 0.0 && l.kl.teacher == Teacher::Rows && l.kl.candidates != Candidates::Own {
            return bad("kl.candidates", "stored scores cover a row's own documents only: use `own`");
        }
        if self.has_contrastive() && l.infonce.weight + l.kl.weight + l.margin_mse.weight + l.lexical.weight == 0.0 {
            return bad("infonce.weight", "every term that learns has weight 0; set one, or `train.steps: 0`");
        }
        Ok(())
    }

    fn validate_guard(&self) -> Result<()> {
        let g = &self.guard;
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`guard.{key}`: {problem}")));
        if g.documents == 0 {
            return bad("documents", "at least 1");
        }
        for (key, value) in [
            ("max_density", g.max_density),
            ("zero_vectors", g.zero_vectors),
            ("collapse", g.collapse),
            ("falling", g.falling),
            ("always_on", g.always_on),
            ("dead", g.dead),
            ("settled", g.settled),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return bad(key, "a share in [0, 1]");
            }
        }
        for (key, value) in [
            ("max_logit", g.max_logit),
            ("penalty_ratio", g.penalty_ratio),
            ("off_target", g.off_target),
            ("spike", g.spike),
            ("gradient", g.gradient),
            ("diverged", g.diverged),
        ] {
            if !(value > 0.0 && value.is_finite()) {
                return bad(key, "a number above 0");
            }
        }
        Ok(())
    }

    /// Keys of the penalties that would do nothing, and ranges.
    fn validate_penalties(&self) -> Result<()> {
        let bad = |key: &str, problem: &str| Err(Error::config(format!("`train.losses.{key}`: {problem}")));
        let (f, l1, infonce) = (&self.train.losses.flops, &self.train.losses.l1, &self.train.losses.infonce);
        if let Some(masked) = infonce.false_negatives {
            if masked.teacher == Teacher::Rows {
                return bad(
                    "infonce.false_negatives.teacher",
                    "stored scores leave out the positive: use `lexical` or `ensemble`",
                );
            }
            if infonce.weight == 0.0 {
                return bad("infonce.false_negatives", "`infonce.weight` is 0, so there is nothing to mask");
            }
        }
        if let Some(target) = f.target {
            if f.weight.is_some() {
                return bad("flops.weight", "`target` steers the weight; give one of the two");
            }
            if f.ramp_steps > 0 || f.ramp != Ramp::default() {
                return bad("flops.ramp_steps", "with `target` there is no ramp; take it out");
            }
            match (target.doc_dims, target.flops) {
                (Some(_), Some(_)) | (None, None) => return bad("flops.target", "give `doc_dims` or `flops`"),
                (Some(v), None) | (None, Some(v)) if !(v > 0.0 && v.is_finite()) => {
                    return bad("flops.target", "a number above 0");
                }
                _ => {}
            }
            if !(target.start_weight > 0.0 && target.start_weight.is_finite()) {
                return bad("flops.target.start_weight", "a number above 0");
            }
            if target.response_steps == Some(0) {
                return bad("flops.target.response_steps", "at least 1");
            }
        }
        for (key, ramp, steps) in [("flops.ramp", f.ramp, f.ramp_steps), ("l1.ramp", l1.ramp, l1.ramp_steps)] {
            if ramp == Ramp::None && steps > 0 {
                return bad(key, "`none` together with `ramp_steps` says nothing; take one of them out");
            }
            if ramp == Ramp::Linear && steps == 0 {
                return bad(key, "`linear` needs `ramp_steps`");
            }
        }
        match (&f.df, f.form) {
            (Some(_), FlopsForm::Mean | FlopsForm::Grouped) => bad("flops.df", "only `form: df` uses it"),
            (Some(d), FlopsForm::Df) if !(d.alpha > 0.0 && d.alpha < 1.0) => bad("flops.df.alpha", "a share in (0, 1)"),
            (Some(d), FlopsForm::Df) if !(d.beta > 0.0 && d.beta.is_finite()) => {
                bad("flops.df.beta", "a number above 0")
            }
            (Some(d), FlopsForm::Df) if d.memory == 0 => bad("flops.df.memory", "at least 1"),
            _ => Ok(()),
        }
    }

    /// All keys with their values, `section.key` → value as JSON, sorted by key.
    ///
    /// # Errors
    /// If a value cannot be written.
    pub fn flat(&self) -> Result<Vec<(String, String)>> {
        let tree = serde_json::to_value(self).map_err(|e| Error::config(e.to_string()))?;
        let mut out = Vec::new();
        flatten("", &tree, &mut out);
        out.sort();
        Ok(out)
    }
}

impl Recipe for TrainConfig {
    /// One of two keys says how long the stage is, or how strong the penalty.
    fn settle(tree: &mut Value, key: &str) {
        let (train, flops) = ("train", "train.losses.flops");
        match key {
            "train.steps" => tree[train]["epochs"] = Value::Null,
            "train.epochs" => tree[train]["steps"] = Value::Null,
            "train.losses.flops.weight" => tree[train]["losses"]["flops"]["target"] = Value::Null,
            _ if key.strip_prefix(flops).is_some_and(|rest| rest.starts_with(".target")) => {
                tree[train]["losses"]["flops"]["weight"] = Value::Null;
            }
            _ => {}
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

    const SMALL: &str = "model: {path: m}\ndata:\n  dir: d\ntrain:\n  learning_rate: {encoder: 4e-5, head: 1e-4}\n";

    #[test]
    fn round_trip_through_yaml() {
        let config = TrainConfig::parse(SMALL, &["eval.fraction=0.25".into(), "train.epochs=2".into()]).unwrap();
        assert!((config.train.learning_rate.encoder - 4e-5).abs() < 1e-18);
        assert!((config.eval.fraction - 0.25).abs() < 1e-18);
        assert_eq!(TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
    }

    #[test]
    fn overrides_reach_every_depth() {
        let set =
            |items: &[&str]| TrainConfig::parse(SMALL, &items.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>());
        let c = set(&["train.losses.kl.weight=0.5", "train.losses.flops.weight=1e-4", "run.dir=runs/a b"]).unwrap();
        assert!((c.train.losses.kl.weight - 0.5).abs() < 1e-18);
        assert_eq!(c.train.losses.flops.weight, Some(1e-4));
        assert_eq!(c.run.dir.to_str().unwrap(), "runs/a b");
        // The later of weight and target counts.
        let c = set(&["train.losses.flops.weight=1e-4", "train.losses.flops.target={doc_dims: 150}"]).unwrap();
        assert_eq!((c.train.losses.flops.weight, c.train.losses.flops.target.unwrap().doc_dims), (None, Some(150.0)));
        let c = set(&["train.losses.flops.target.flops=1.8", "train.losses.flops.weight=0"]).unwrap();
        assert_eq!((c.train.losses.flops.weight, c.train.losses.flops.target), (Some(0.0), None));
        let c = set(&["train.epochs=3", "train.steps=9"]).unwrap();
        assert_eq!((c.train.steps, c.train.epochs), (Some(9), None));
        assert_eq!(set(&["optimizer.max_grad_norm=null"]).unwrap().optimizer.max_grad_norm, None);
        let shape = set(&["model.path=null", "model.tokenizer=t.json", "model.random.hidden_size=64"]).unwrap();
        assert_eq!(shape.model.random.unwrap().hidden_size, 64);
        for (item, part) in [
            ("train.stepz=3", "stepz"),
            ("train.steps=many", "--set train.steps=many"),
            ("nothing", "has no `=`"),
            ("run.seed.x=1", "plain value"),
            ("train.steps=-1", "--set train.steps=-1"),
        ] {
            let message = set(&[item]).unwrap_err().to_string();
            assert!(message.contains(part), "{item}: {message}");
        }
    }

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let message = TrainConfig::parse("model: {path: m}\ndata:\n  dirr: d\n", &[]).unwrap_err().to_string();
        assert!(message.contains("dirr") && message.contains('3'), "{message}");
        let message = TrainConfig::parse("model: {path: m}\ndata: {dir: d}\nteain: {}\n", &[]).unwrap_err().to_string();
        assert!(message.contains("teain"), "{message}");
    }

    #[test]
    fn keys_that_would_do_nothing_are_refused() {
        for (flops, key) in [
            ("{weight: 1e-3, target: {doc_dims: 150}}", "flops.weight"),
            ("{target: {doc_dims: 150}, ramp_steps: 10}", "flops.ramp_steps"),
            ("{target: {doc_dims: 150, flops: 1.8}}", "flops.target"),
            ("{target: {}}", "flops.target"),
            ("{target: {doc_dims: -1}}", "flops.target"),
            ("{target: {flops: 2, start_weight: 0}}", "flops.target.start_weight"),
            ("{ramp: none, ramp_steps: 10}", "flops.ramp"),
            ("{ramp: linear}", "flops.ramp"),
            ("{df: {alpha: 0.1}}", "flops.df"),
            ("{form: df, df: {alpha: 1}}", "flops.df.alpha"),
        ] {
            let text = format!("model: {{path: m}}\ndata: {{dir: d}}\ntrain: {{losses: {{flops: {flops}}}}}\n");
            let message = TrainConfig::parse(&text, &[]).unwrap_err().to_string();
            assert!(message.contains(&format!("`train.losses.{key}`")), "{flops}: {message}");
        }
        for (infonce, key) in [
            ("{false_negatives: {teacher: rows, margin: {absolute: 0}}}", "infonce.false_negatives.teacher"),
            ("{weight: 0, false_negatives: {margin: {relative: 0.05}}}", "infonce.false_negatives"),
        ] {
            let text = format!(
                "model: {{path: m}}\ndata: {{dir: d}}\ntrain: {{losses: {{lexical: {{weight: 1}}, infonce: {infonce}}}}}\n"
            );
            let message = TrainConfig::parse(&text, &[]).unwrap_err().to_string();
            assert!(message.contains(&format!("`train.losses.{key}`")), "{infonce}: {message}");
        }
        for action in ["off", "'off'", "warn", "stop"] {
            let config = TrainConfig::parse(SMALL, &[format!("guard.action={action}")]).unwrap();
            assert_eq!(TrainConfig::parse(&config.to_yaml().unwrap(), &[]).unwrap(), config);
        }
        assert!(TrainConfig::parse(SMALL, &["guard.action=on".to_owned()]).is_err());
        let ok = "{form: df, df: {alpha: 0.2, beta: 4}, ramp: linear, ramp_steps: 9, spare_below: 40}";
        let text = format!("model: {{path: m}}\ndata: {{dir: d}}\ntrain: {{losses: {{flops: {ok}}}}}\n");
        assert!(TrainConfig::parse(&text, &[]).is_ok());
    }

    #[test]
    fn values_out_of_range_name_their_key() {
        for (item, key) in [
            ("train.dropout=1", "train.dropout"),
            ("eval.fraction=1", "eval.fraction"),
            ("train.losses.infonce.temperature=0", "train.losses.infonce.temperature"),
            ("data.max_tokens=2", "data.max_tokens"),
            ("run.device=tpu", "run.device"),
            ("run.precision=bf16", "run.precision"),
            ("model.random.hidden_size=8", "model"),
            ("warm_start.b=1.5", "warm_start.b"),
            ("guard.collapse=2", "guard.collapse"),
            ("guard.spike=0", "guard.spike"),
            ("eval.patience=0", "eval.patience"),
            ("eval.patience=2", "eval.patience"),
            ("eval.min_delta=0.01", "eval.min_delta"),
            ("data.template.pattern='{a b}'", "data.template"),
        ] {
            let error = TrainConfig::parse(SMALL, &[item.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("`{key}`")), "{item}: {error}");
            assert_eq!(error.fault(), nsparse_core::Fault::Usage);
        }
    }
}

//! The recipes that come with the program: `configs/*.yaml`, as text with its explanations.

use nsparse_trainer::TrainConfig;
use nsparse_trainer::pretrain::PretrainConfig;
use serde_json::Value;

/// The command that a recipe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `nsparse train`.
    Train,
    /// `nsparse pretrain`.
    Pretrain,
}

/// A recipe in the program.
pub(crate) struct Recipe {
    /// Its name: that of its file without `.yaml`.
    pub(crate) name: &'static str,
    /// What reads it.
    pub(crate) kind: Kind,
    /// The file's text.
    pub(crate) text: &'static str,
}

macro_rules! recipes {
    ($($kind:ident $name:literal),* $(,)?) => {
        &[$(Recipe { name: $name, kind: Kind::$kind, text: include_str!(concat!("../configs/", $name, ".yaml")) }),*]
    };
}

/// All of them, by name.
pub(crate) const RECIPES: &[Recipe] = recipes![
    Train "scifact",
    Train "scifact-distilled",
    Train "own-judged",
    Train "own-unjudged",
    Train "tuning-sample-infonce",
    Train "tuning-sample-kd",
    Train "tuning-sample-l0",
    Train "cocondenser-stage1",
    Train "cocondenser-stage2",
    Train "sedr",
    Pretrain "korean-english-pretrain",
    Train "korean-english-baseline",
    Train "korean-english-finetune",
    Train "sample",
];

impl Recipe {
    /// The recipe of a name.
    pub(crate) fn find(name: &str) -> Option<&'static Self> {
        RECIPES.iter().find(|r| r.name == name)
    }

    /// All keys with their values.
    pub(crate) fn resolved(&self) -> anyhow::Result<Value> {
        Ok(match self.kind {
            Kind::Train => serde_json::to_value(TrainConfig::parse(self.text, &[])?)?,
            Kind::Pretrain => serde_json::to_value(PretrainConfig::parse(self.text, &[])?)?,
        })
    }

    /// The command's name.
    pub(crate) fn command(&self) -> &'static str {
        match self.kind {
            Kind::Train => "train",
            Kind::Pretrain => "pretrain",
        }
    }

    /// The token budget that the head comment states, such as `2.4 M`.
    pub(crate) fn budget(&self) -> Option<&'static str> {
        let (_, rest) = self.text.split_once("# Budget: ")?;
        let (_, sum) = rest.split_once("= ")?;
        sum.split_once(" document tokens").map(|(figure, _)| figure)
    }

    /// What it is for: the first sentence of its head comment.
    pub(crate) fn summary(&self) -> String {
        let head: Vec<&str> = self
            .text
            .lines()
            .map_while(|line| line.strip_prefix('#'))
            .take_while(|line| !line.trim().is_empty())
            .collect();
        let head = head.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        // A full stop inside of a name, such as model.path, ends no sentence.
        head.split_once(". ").map_or(head.as_str(), |(first, _)| first).trim_end_matches('.').to_owned()
    }
}

//! The sections that only a pre-training recipe has, with their defaults.

use std::path::PathBuf;

use nsparse_core::DocumentTemplate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::sections::{CalibrationSection, Decay, GuardSection, IdfSection, LearningRate, TrainSection};
use crate::{Error, Result};

fn bad<T>(key: &str, problem: &str) -> Result<T> {
    Err(Error::config(format!("`{key}`: {problem}")))
}

/// `data`: the texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TextSection {
    /// A data set's folder; its `corpus.jsonl` is read.
    pub dir: Option<PathBuf>,
    /// Further files: `.jsonl` with `text` and, where there is one, `title` and `_id` or `id` a line; any other as
    /// plain text, in which a blank line ends a document (a file without blank lines has one document a line).
    pub files: Vec<PathBuf>,
    /// Tokens of a window, special tokens included; at least 3. Longer texts are cut into several.
    pub max_tokens: usize,
    /// How a document's fields become its text.
    pub template: DocumentTemplate,
    /// Where query weights come from: counted over all texts, or a file.
    pub idf: IdfSection,
    /// Share of the documents that is held out, drawn by the seed; 0: no evaluation.
    pub held_out: f64,
}

impl Default for TextSection {
    fn default() -> Self {
        Self {
            dir: None,
            files: Vec::new(),
            max_tokens: 256,
            template: DocumentTemplate::default(),
            idf: IdfSection::default(),
            held_out: 0.02,
        }
    }
}

impl TextSection {
    pub(super) fn validate(&self) -> Result<()> {
        if self.dir.is_none() && self.files.is_empty() {
            return bad("data", "give `dir` (a folder with corpus.jsonl), `files` (texts), or both");
        }
        if self.max_tokens < 3 {
            return bad("data.max_tokens", "at least 3");
        }
        if !(0.0..=0.5).contains(&self.held_out) {
            return bad("data.held_out", "a share in [0, 0.5]");
        }
        self.template.validate().map_err(|e| Error::config(format!("`data.template`: {e}")))
    }
}

/// `mlm.mask`: what is hidden from the network (arXiv 1810.04805).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MaskSection {
    /// Share of a window's ordinary tokens that are to be told, at least one of them.
    pub share: f64,
    /// Share of those that `[MASK]` takes the place of.
    pub hidden: f64,
    /// Share of those that a random token takes the place of; the rest stays as it is.
    pub random: f64,
    /// Whether all pieces of a word (`##…`) are chosen together.
    pub whole_words: bool,
}

impl Default for MaskSection {
    fn default() -> Self {
        Self { share: 0.15, hidden: 0.8, random: 0.1, whole_words: false }
    }
}

/// `mlm.level`: where zero lies among the logits of the model that is written. The softmax does not see a number
/// that is taken from every logit, sparse vectors do: the head's bias is lowered by one number for all tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LevelSection {
    /// Mean active dimensions of a window.
    pub active_dimensions: usize,
    /// Windows it is set on, each the first of a document.
    pub documents: usize,
}

impl Default for LevelSection {
    fn default() -> Self {
        Self { active_dimensions: 150, documents: 128 }
    }
}

/// `mlm`: masked-language modelling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MlmSection {
    /// Optimizer steps. Give this or `epochs`.
    pub steps: Option<usize>,
    /// Passes over the windows. Give this or `steps`; 1 if neither is given.
    pub epochs: Option<f64>,
    /// Windows a step.
    pub batch_windows: usize,
    /// Windows in memory at once; 0: all of the step's. The result is the same but for rounding.
    pub micro_batch: usize,
    /// Keep only each layer's input and compute the rest again in the backward: less memory, more time, same bits.
    pub activation_checkpointing: bool,
    /// Peak learning rates.
    pub learning_rate: LearningRate,
    /// Steps over which the rate rises from 0.
    pub warmup_steps: usize,
    /// What follows the warmup.
    pub decay: Decay,
    /// Dropout rate after embeddings, attention and feed-forward, and on attention; in [0, 1).
    pub dropout: f32,
    /// What is hidden.
    pub mask: MaskSection,
    /// Every so many steps the held-out windows are told; 0: only before and after the stage.
    pub evaluate_every: usize,
    /// Most held-out windows of an evaluation, drawn by the seed; at least 1.
    pub evaluate_windows: usize,
    /// Where zero lies among the logits of what comes out; `null`: where training left it.
    pub level: Option<LevelSection>,
}

impl Default for MlmSection {
    fn default() -> Self {
        Self {
            steps: None,
            epochs: None,
            batch_windows: 32,
            micro_batch: 0,
            activation_checkpointing: false,
            learning_rate: LearningRate { encoder: 1e-4, head: 1e-4 },
            warmup_steps: 100,
            decay: Decay::Linear,
            dropout: 0.1,
            mask: MaskSection::default(),
            evaluate_every: 0,
            evaluate_windows: 500,
            level: Some(LevelSection::default()),
        }
    }
}

impl MlmSection {
    pub(super) fn validate(&self) -> Result<()> {
        let m = &self.mask;
        let LearningRate { encoder, head } = self.learning_rate;
        if !(encoder.is_finite() && head.is_finite() && encoder >= 0.0 && head >= 0.0 && encoder + head > 0.0) {
            return bad("mlm.learning_rate", "both rates must be at least 0, and one of them above");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad("mlm.dropout", "a rate in [0, 1)");
        }
        if !(m.share > 0.0 && m.share <= 1.0) {
            return bad("mlm.mask.share", "a share in (0, 1]");
        }
        if !((0.0..=1.0).contains(&m.hidden) && (0.0..=1.0).contains(&m.random) && m.hidden + m.random <= 1.0 + 1e-9) {
            return bad("mlm.mask", "`hidden` and `random` are shares that together are at most 1");
        }
        if m.hidden + m.random == 0.0 {
            return bad("mlm.mask", "with `hidden` and `random` both 0 nothing is hidden");
        }
        for (key, value) in [("mlm.batch_windows", self.batch_windows), ("mlm.evaluate_windows", self.evaluate_windows)]
        {
            if value == 0 {
                return bad(key, "at least 1");
            }
        }
        if self.level.as_ref().is_some_and(|l| l.active_dimensions == 0 || l.documents == 0) {
            return bad("mlm.level", "`active_dimensions` and `documents` must be at least 1, or the whole null");
        }
        match (self.steps, self.epochs) {
            (Some(_), Some(_)) => bad("mlm", "give `steps` or `epochs`, not both"),
            (Some(0), None) => bad("mlm.steps", "at least 1; leave the section out for no masked-language stage"),
            (None, Some(e)) if !(e > 0.0 && e.is_finite()) => bad("mlm.epochs", "a number above 0"),
            _ => Ok(()),
        }
    }
}

/// What of a document becomes a query and its positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PairKind {
    /// The title, and the text.
    TitleText,
    /// The title, and the text's first sentences.
    TitleSummary,
    /// The title, and a paragraph.
    TitleParagraph,
    /// A sentence, and the sentences around it without itself.
    SentenceContext,
}

impl PairKind {
    /// As it stands in a recipe.
    pub fn name(self) -> &'static str {
        match self {
            Self::TitleText => "title_text",
            Self::TitleSummary => "title_summary",
            Self::TitleParagraph => "title_paragraph",
            Self::SentenceContext => "sentence_context",
        }
    }
}

/// `pairs`: contrastive training on pairs that the texts hold, or that a file gives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PairsSection {
    /// Pairs made from the texts: `title_text`, `title_summary`, `title_paragraph`, `sentence_context`.
    pub kinds: Vec<PairKind>,
    /// Pairs (jsonl): `query` with `document` or `pos`; `source_id` says what they come from, `hard_negatives` or
    /// `negs` are negatives. Other keys are passed over.
    pub file: Option<PathBuf>,
    /// Sentences of a summary, and on each side of a context's sentence.
    pub sentences: usize,
    /// Fewest characters of a paragraph.
    pub paragraph_min: usize,
    /// Most characters of a paragraph.
    pub paragraph_max: usize,
    /// Paragraphs, and sentences, taken of one document, drawn by the seed.
    pub per_document: usize,
    /// Most held-out pairs of an evaluation, drawn by the seed.
    pub evaluate_pairs: usize,
    /// How they are trained on: `train` of a training recipe.
    pub train: TrainSection,
    /// `calibration` of a training recipe; a head that comes from `mlm` is not new, so `auto` leaves it.
    pub calibration: CalibrationSection,
    /// `guard` of a training recipe.
    pub guard: GuardSection,
}

impl Default for PairsSection {
    fn default() -> Self {
        Self {
            kinds: vec![PairKind::TitleText],
            file: None,
            sentences: 3,
            paragraph_min: 100,
            paragraph_max: 1000,
            per_document: 1,
            evaluate_pairs: 500,
            train: TrainSection::default(),
            calibration: CalibrationSection::default(),
            guard: GuardSection::default(),
        }
    }
}

impl PairsSection {
    pub(super) fn validate(&self) -> Result<()> {
        let mut kinds = self.kinds.clone();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.len() < self.kinds.len() {
            return bad("pairs.kinds", "a kind stands there twice");
        }
        if kinds.is_empty() && self.file.is_none() {
            return bad("pairs", "give `kinds` (pairs made from the texts), `file` (pairs at hand), or both");
        }
        for (key, value) in [
            ("pairs.sentences", self.sentences),
            ("pairs.per_document", self.per_document),
            ("pairs.evaluate_pairs", self.evaluate_pairs),
            ("pairs.paragraph_min", self.paragraph_min),
        ] {
            if value == 0 {
                return bad(key, "at least 1");
            }
        }
        if self.paragraph_max < self.paragraph_min {
            return bad("pairs.paragraph_max", "below `paragraph_min`");
        }
        if self.train.steps == Some(0) {
            return bad("pairs.train.steps", "at least 1; leave the section out for no pair stage");
        }
        if self.file.is_none() && self.train.negatives > 1 {
            return bad("pairs.train.negatives", "pairs made from texts have no hard negatives; take it out");
        }
        Ok(())
    }
}

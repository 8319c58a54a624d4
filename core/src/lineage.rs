//! Where a model comes from: the weights it started from and the rows it learned from, back to the base.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a training started from and read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// The model whose weights came first; `None` for random ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// The files of training rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<RowsFile>,
}

/// The model that a training started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The last two names of its path.
    pub name: String,
    /// sha256 of its `model.safetensors`.
    pub weights_sha256: String,
    /// Where it comes from itself, if nsparse trained it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Box<Lineage>>,
}

/// A file of training rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowsFile {
    /// Its name.
    pub name: String,
    /// sha256 of its contents.
    pub sha256: String,
    /// Its rows.
    pub rows: usize,
    /// What the rows' `source` says, as miners write it, with the number of rows that name it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub origins: BTreeMap<String, usize>,
}

impl Lineage {
    /// How many trainings led to the model that this one started from.
    pub fn depth(&self) -> usize {
        self.start.as_ref().and_then(|s| s.lineage.as_ref()).map_or(0, |parent| 1 + parent.depth())
    }
}

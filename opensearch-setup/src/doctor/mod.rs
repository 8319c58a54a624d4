//! What would fail, on this machine and in a cluster, before it does; and the settings that mend it.
//!
//! [`machine`] looks at this machine, [`examine`] at a cluster; both give [`Finding`]s. A finding may carry a [`Change`]
//! of a setting, which [`fix::apply`] makes and [`fix::undo`] takes back.

mod cluster;
pub mod fix;
mod machine;
mod rules;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use cluster::examine;
pub use machine::machine;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Note,
    /// Works now, and may not later.
    Warning,
    /// Something that nsparse does would fail.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// `memory`, `opensearch-ml`, `plugins.ml_commons.only_run_on_ml_node`.
    pub subject: String,
    /// What it is: `23.4 GiB`, `true (default)`.
    pub value: String,
    /// How bad it is.
    pub level: Level,
    /// What that means, where it is not as it should be.
    pub meaning: Option<String>,
    /// What to do about it.
    pub mend: Option<String>,
    /// The change of a setting that mends it.
    pub change: Option<Change>,
}

impl Finding {
    fn ok(subject: impl Into<String>, value: impl Into<String>) -> Self {
        let (subject, value) = (subject.into(), value.into());
        Self { subject, value, level: Level::Ok, meaning: None, mend: None, change: None }
    }

    fn bad(mut self, level: Level, meaning: impl Into<String>, mend: impl Into<String>) -> Self {
        self.level = level;
        self.meaning = Some(meaning.into());
        let mend = mend.into();
        self.mend = Some(mend).filter(|m| !m.is_empty());
        self
    }

    fn with(mut self, change: Option<Change>) -> Self {
        self.change = change;
        self
    }
}

/// A change of one cluster setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its name, with dots.
    pub setting: String,
    /// `persistent`; `transient` where a transient value stands before it.
    pub scope: String,
    /// The value that was set; null where the default holds.
    pub old: Value,
    /// The value that counts now, default or not.
    pub effective: Value,
    /// The value to be; null for the default.
    pub new: Value,
}

/// Whether something would fail.
pub fn fails(findings: &[Finding]) -> bool {
    findings.iter().any(|f| f.level == Level::Problem)
}

#[cfg(test)]
mod tests;

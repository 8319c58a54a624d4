//! Versions behind one alias in a `deployment.json`: which there are, which is worked on, what was served before.

use std::time::{SystemTime, UNIX_EPOCH};

use nsparse_core::files::sha256_bytes;
use serde_json::{Value, json};

use super::alias::Behind;
use super::package::PackageFiles;
use super::plan::{Fields, Indexing};
use super::record::{Deployment, Made, Served, Side};

/// What tells one version's content from another's: package, template, side, fields, and what vectors are kept.
pub(super) fn key(package: &PackageFiles, side: Side, fields: &Fields, indexing: &Indexing) -> String {
    let mut content = vec![json!(package.hashes()), json!(package.template), json!(side), json!(fields)];
    if !indexing.holds_as(&Indexing::default()) {
        content.extend([json!(indexing.pruning), json!(indexing.exclude_vector)]);
    }
    let content = Value::Array(content);
    let mut hash = sha256_bytes(content.to_string().as_bytes());
    hash.truncate(16);
    hash
}

impl Deployment {
    /// All versions, by number; this alone where there is no alias.
    pub fn versions(&self) -> Vec<&Self> {
        let mut all: Vec<&Self> = std::iter::once(self).chain(&self.others).collect();
        all.sort_by_key(|v| v.number);
        all
    }

    /// The version with this index.
    pub fn of_index(&self, index: &str) -> Option<&Self> {
        self.versions().into_iter().find(|v| v.index == index)
    }

    /// The version with this number.
    pub fn numbered(&self, number: u32) -> Option<&Self> {
        self.versions().into_iter().find(|v| v.number == Some(number))
    }

    /// Everything that was made, each once, in an order that can be taken back from its end: groups first.
    pub fn everything_made(&self) -> Vec<Made> {
        let mut all: Vec<Made> = Vec::new();
        let versions = self.versions();
        let is_group = |m: &Made| matches!(m, Made::Group { .. });
        for groups in [true, false] {
            for made in versions.iter().flat_map(|v| &v.made).filter(|m| is_group(m) == groups) {
                if !all.contains(made) {
                    all.push(made.clone());
                }
            }
        }
        all
    }

    /// Ids of the models that this version uses.
    pub fn model_ids(&self) -> Vec<&str> {
        [&self.document_model, &self.query_model].into_iter().flatten().map(|m| m.id.as_str()).collect()
    }

    /// The same file with the version of this index as the one worked on; unchanged where there is none.
    #[must_use]
    pub fn working_on(self, index: &str) -> Self {
        if self.index == index {
            return self;
        }
        let Some(chosen) = self.of_index(index).cloned() else { return self };
        self.with(chosen)
    }

    /// The same file with this version as the one worked on, in place of what it had under the same index.
    #[must_use]
    pub fn with(mut self, version: Self) -> Self {
        let history = std::mem::take(&mut self.history);
        let mut others = std::mem::take(&mut self.others);
        others.push(self);
        others.retain(|o| o.index != version.index);
        others.sort_by_key(|o| o.number);
        Self { others, history, ..version }
    }

    /// The same file without the version of this index; `None` where it is the only one.
    pub fn without(mut self, index: &str) -> Option<Self> {
        for served in &mut self.history {
            served.indexes.retain(|i| i != index);
        }
        self.history.retain(|s| !s.indexes.is_empty());
        if self.index != index {
            self.others.retain(|o| o.index != index);
            return Some(self);
        }
        let next = self.others.last().map(|o| o.index.clone())?;
        self.working_on(&next).without(index)
    }

    /// Notes what the alias stands for now. A state that stands in the history already ends it there: that was a
    /// rollback whose file was not written.
    pub(super) fn note_served(&mut self, behind: &Behind) {
        let indexes: Vec<String> = behind.keys().cloned().collect();
        if indexes.is_empty() {
            return;
        }
        match self.history.iter().rposition(|s| s.indexes == indexes) {
            Some(at) => self.history.truncate(at + 1),
            None => self.history.push(Served { indexes, since: now() }),
        }
    }

    /// What was served before that which stands behind the alias now.
    pub(super) fn served_before(&self, behind: &Behind) -> Option<&Served> {
        let indexes: Vec<&String> = behind.keys().collect();
        let is_now = |s: &Served| s.indexes.iter().eq(indexes.iter().copied());
        match self.history.iter().rposition(is_now) {
            Some(at) => at.checked_sub(1).map(|before| &self.history[before]),
            None => self.history.last(),
        }
    }
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

//! Settings changed, and changed back.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Change, Finding};
use crate::client::{Body, Cluster, Method};
use crate::error::{Error, Result};

/// What was changed where: enough to change it back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The cluster's address, for people.
    pub cluster_url: String,
    /// The cluster's own id: nothing is changed in another one.
    pub cluster_uuid: String,
    /// What was changed.
    pub changes: Vec<Change>,
}

impl Record {
    /// The record of these changes in this cluster.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn new(cluster: &Cluster, changes: Vec<Change>) -> Result<Self> {
        Ok(Self { cluster_url: cluster.url().to_owned(), cluster_uuid: cluster.uuid()?, changes })
    }

    /// Reads a record.
    ///
    /// # Errors
    /// If it is not there, or no such record.
    pub fn load(path: &Path) -> Result<Self> {
        Ok(nsparse_core::files::read_json(path)?)
    }

    /// Writes the record; the file appears whole.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(nsparse_core::files::write_json(path, self)?)
    }
}

/// The changes that the findings propose.
pub fn changes(findings: &[Finding]) -> Vec<Change> {
    findings.iter().filter_map(|f| f.change.clone()).collect()
}

/// Makes all changes, in one request: all or none.
///
/// # Errors
/// If the cluster refuses, or another than the one recorded answers.
pub fn apply(cluster: &Cluster, record: &Record) -> Result<()> {
    put(cluster, record, |change| change.new.clone())
}

/// Takes all changes back, in one request.
///
/// # Errors
/// As [`apply`].
pub fn undo(cluster: &Cluster, record: &Record) -> Result<()> {
    put(cluster, record, |change| change.old.clone())
}

/// The body of `PUT /_cluster/settings`; null gives a setting its default.
pub fn body(changes: &[Change], value: impl Fn(&Change) -> Value) -> Value {
    let mut scopes: Map<String, Value> = Map::new();
    for change in changes {
        let scope = scopes.entry(change.scope.clone()).or_insert_with(|| json!({}));
        scope[&change.setting] = value(change);
    }
    Value::Object(scopes)
}

fn put(cluster: &Cluster, record: &Record, value: impl Fn(&Change) -> Value) -> Result<()> {
    if cluster.uuid()? != record.cluster_uuid {
        return Err(Error::usage(
            format!("{} is another cluster than the one that was changed ({})", cluster.url(), record.cluster_url),
            "give the URL of that cluster",
        ));
    }
    // The same values a second time change nothing, so it may be repeated.
    let body = Body::Json(body(&record.changes, value));
    cluster.request_retrying(Method::Put, "/_cluster/settings?flat_settings=true", body).map(drop)
}

//! `deployment.json`: what stands in the cluster and which of it a deploy has made.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use nsparse_core::lock::FileLock;
use nsparse_core::{DocumentTemplate, files};
use serde::{Deserialize, Serialize};

use super::lifecycle::Model;
use super::plan::{Fields, Indexing};
use super::poll::Poll;
use crate::client::Cluster;
use crate::error::{Error, Result};

/// Where documents and queries are encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// Both in the cluster where it has the plugins, else both here.
    #[default]
    Auto,
    /// Both in the cluster.
    Cluster,
    /// Queries by a tokenizer model in the cluster, documents here: for nodes that cannot load libtorch.
    Query,
    /// Both here; the cluster needs no plugin.
    Client,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cluster => "cluster",
            Self::Query => "query",
            Self::Client => "client",
        })
    }
}

/// A model of a deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelEntry {
    /// Its id in the cluster.
    pub id: String,
    /// The name under which it is registered.
    pub name: String,
    /// sha256 of its zip.
    pub sha256: String,
    /// Size of its zip in bytes.
    pub bytes: u64,
}

impl ModelEntry {
    /// For the calls of [`super::lifecycle`].
    pub fn model(&self) -> Model {
        Model { id: self.id.clone(), name: self.name.clone() }
    }
}

/// One thing that a deploy has made and an undeploy takes back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Made {
    /// A model group.
    Group {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// A model, registered and deployed.
    Model {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// A model that was there already and was deployed.
    Running {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
    },
    /// An ingest pipeline.
    Pipeline {
        /// Its name.
        name: String,
    },
    /// A search pipeline.
    SearchPipeline {
        /// Its name.
        name: String,
    },
    /// An index.
    Index {
        /// Its name.
        name: String,
        /// Its uuid: another index that later has the same name is not ours. Empty where the cluster tells none.
        uuid: String,
    },
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Group { id, name } => write!(f, "model group `{name}` (id {id})"),
            Self::Model { id, name } => write!(f, "model `{name}` (id {id})"),
            Self::Running { id, name } => write!(f, "running state of model `{name}` (id {id})"),
            Self::Pipeline { name } => write!(f, "ingest pipeline `{name}`"),
            Self::SearchPipeline { name } => write!(f, "search pipeline `{name}`"),
            Self::Index { name, .. } => write!(f, "index `{name}`"),
        }
    }
}

/// What an alias stood for from some time on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    /// The indexes behind the alias.
    pub indexes: Vec<String>,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// `deployment.json`: what stands in the cluster, so that later commands need only this file. With an alias it is
/// about the version that the last command made or chose, and `others` holds the other versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deployment {
    /// The deployment's name.
    pub name: String,
    /// The cluster's address, or its nodes' separated by commas, without user and password.
    pub cluster_url: String,
    /// The cluster's own unchanging id ([`Cluster::uuid`]).
    pub cluster_uuid: String,
    /// The cluster's release.
    pub version: String,
    /// Where documents and queries are encoded; never [`Side::Auto`].
    pub side: Side,
    /// The model group's id, where there are models.
    pub group_id: Option<String>,
    /// The document encoder, where it runs in the cluster.
    pub document_model: Option<ModelEntry>,
    /// The query tokenizer, where it runs in the cluster.
    pub query_model: Option<ModelEntry>,
    /// The ingest pipeline, where the cluster encodes documents. Clients that send vectors name `_none` instead.
    pub pipeline: Option<String>,
    /// The search pipeline that gives queries their model, where there is a query model: applications then send
    /// `query_text` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search_pipeline: Option<String>,
    /// The index.
    pub index: String,
    /// The alias that applications search, where the deployment has versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// This version's number behind the alias, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<u32>,
    /// Names of its fields.
    pub fields: Fields,
    /// How documents are indexed beyond that.
    #[serde(default, skip_serializing_if = "Indexing::is_default")]
    pub indexing: Indexing,
    /// The document template.
    pub template: DocumentTemplate,
    /// Entries of the vocabulary.
    pub vocabulary_size: usize,
    /// sha256 of the package's zips by file name.
    pub package: BTreeMap<String, String>,
    /// What was made, in the order in which it was made.
    pub made: Vec<Made>,
    /// What a person should know: what was reused, what is missing.
    pub notes: Vec<String>,
    /// The other versions behind the alias, each without `others` and `history` of its own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<Deployment>,
    /// What the alias stands for, newest last; before it what a rollback goes back to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Served>,
}

/// Keeps two deploys, or a deploy and an undeploy, from working on one file's deployment. Switch and rollback go on meanwhile.
pub(super) fn claim_work(path: &Path) -> Result<FileLock> {
    let mut name = path.as_os_str().to_owned();
    name.push(".deploy");
    FileLock::beside(Path::new(&name))?.ok_or_else(|| {
        busy(path, "wait until it has ended; a second deployment at the same time takes a file of its own (`--deployment FILE`)")
    })
}

/// Claims a deployment file that is there for one command that changes what is served, and reads it.
pub(super) fn claim_existing(path: &Path) -> Result<(FileLock, Deployment)> {
    Deployment::load(path)?;
    let held = FileLock::beside(path)?
        .ok_or_else(|| busy(path, "it serves another version or writes the file: wait until it has ended"))?;
    Ok((held, Deployment::load(path)?))
}

/// Claims a deployment file, there or not, to write it: waits for a switch that is under way.
pub(super) fn claim_to_write(path: &Path, poll: &Poll) -> Result<FileLock> {
    let begun = Instant::now();
    loop {
        if let Some(held) = FileLock::beside(path)? {
            return Ok(held);
        }
        if begun.elapsed() > poll.deadline {
            return Err(busy(path, "wait until it has ended, and run the same command again"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn busy(path: &Path, hint: &str) -> Error {
    Error::usage(format!("Another nsparse is at work with `{}` now", path.display()), hint)
}

/// Puts what was made in the order that can be taken back from its end: indexes last, so that they go before the
/// pipelines that they name.
pub(super) fn order(made: &mut [Made]) {
    made.sort_by_key(|m| matches!(m, Made::Index { .. }));
}

impl Deployment {
    /// Reads `deployment.json`.
    ///
    /// # Errors
    /// If it is missing or broken.
    pub fn load(path: &Path) -> Result<Self> {
        if !path.is_file() {
            return Err(Error::usage(
                format!("There is no deployment file `{}`", path.display()),
                "make one with `nsparse deploy`, or give the file's place",
            ));
        }
        Ok(files::read_json(path)?)
    }

    /// Refuses a cluster that is not the one deployed to.
    pub(super) fn check_cluster(&self, cluster: &Cluster) -> Result<()> {
        if cluster.uuid()? == self.cluster_uuid {
            return Ok(());
        }
        Err(Error::usage(
            format!("{} is another cluster than the one deployed to ({})", cluster.url(), self.cluster_url),
            "give the URL of the cluster that deployment.json names",
        ))
    }

    /// Writes `deployment.json`, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        Ok(files::write_json(path, self)?)
    }
}

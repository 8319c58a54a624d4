//! How to deploy: names, copies, side, and what a version behind an alias changes in them.

use std::path::PathBuf;

use super::alias::version_index;
use super::plan::{Fields, Indexing};
use super::poll::Poll;
use super::record::Side;
use crate::capabilities::{Capabilities, Version};

/// How to deploy.
#[derive(Debug, Clone)]
pub struct DeployOptions {
    /// The deployment's name; it marks what was made.
    pub name: String,
    /// The index's name; with an alias it follows from the version.
    pub index: String,
    /// The alias that applications search. Each package then becomes a version with an index `ALIAS-vN` of its own.
    pub alias: Option<String>,
    /// The ingest pipeline's name.
    pub pipeline: String,
    /// The model group's name.
    pub group: String,
    /// Shards of the index.
    pub shards: u32,
    /// Copies of each shard.
    pub replicas: u32,
    /// Names of the index's fields.
    pub fields: Fields,
    /// How documents are indexed beyond that.
    pub indexing: Indexing,
    /// Where documents and queries are encoded.
    pub side: Side,
    /// Where `deployment.json` is written; in the package's folder where `None`.
    pub file: Option<PathBuf>,
    /// How the cluster's states are waited for.
    pub poll: Poll,
    /// Bytes of one chunk, at most [`super::MAX_CHUNK_BYTES`].
    pub chunk_bytes: u64,
    /// Where the cluster can fetch the package's zips by itself, instead of an upload: the address before their names.
    pub url: Option<String>,
}

impl DeployOptions {
    /// Index, pipeline and group named after the deployment; one shard, no replica.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            index: name.to_owned(),
            alias: None,
            pipeline: format!("{name}-ingest"),
            group: format!("nsparse-{name}"),
            shards: 1,
            replicas: 0,
            fields: Fields::default(),
            indexing: Indexing::default(),
            side: Side::Auto,
            file: None,
            poll: Poll::default(),
            chunk_bytes: super::MAX_CHUNK_BYTES,
            url: None,
        }
    }

    /// Versions behind an alias, after which group and deployment are named.
    pub fn behind(alias: &str) -> Self {
        Self { alias: Some(alias.to_owned()), ..Self::new(alias) }
    }

    /// The search pipeline's name.
    pub(super) fn search_pipeline(&self) -> String {
        format!("{}-search", self.index)
    }

    /// The same for one version behind the alias.
    pub(super) fn version(&self, alias: &str, number: u32) -> Self {
        let index = version_index(alias, number);
        Self { pipeline: format!("{index}-ingest"), index, ..self.clone() }
    }
}

/// Whether the cluster can give sparse queries a default model: from 2.13.
pub(super) fn has_default_models(capabilities: &Capabilities) -> bool {
    capabilities.neural_search && capabilities.version.at_least(2, 13)
}

/// Whether a search by an alias gets the default pipeline of the index behind it: from 2.14 (OpenSearch issue 7512).
pub(super) fn has_pipelines_by_alias(version: Version) -> bool {
    version.at_least(2, 14)
}

/// Whether `sparse_encoding` takes a `batch_size`: from 2.16.
pub(super) fn has_batches(capabilities: &Capabilities) -> bool {
    capabilities.neural_search && capabilities.version.at_least(2, 16)
}

//! OpenSearch from the outside: client, capabilities by version, a local node, indexes, bulk ingest of what a
//! `DocumentEncoder` yields, search as a `Searcher`, and the ML Commons life cycle.
//!
//! The public interface blocks; [`Cluster`] owns the runtime on which its requests run.

pub mod capabilities;
pub mod client;
pub mod error;
pub mod ml;
pub mod node;

pub use capabilities::{Capabilities, Version};
pub use client::{Auth, Body, Cluster, ClusterConfig, Method, NDJSON, Response, RetryPolicy, Secret};
pub use error::{ApiError, Error, Result, Unreachable};

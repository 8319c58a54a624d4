//! OpenSearch from the outside: client, capabilities by version, a local node, indexes, bulk ingest of what a
//! `DocumentEncoder` yields, search as a `Searcher`, and the ML Commons life cycle.
//!
//! The public interface blocks; [`Cluster`] owns the runtime on which its requests run.

pub mod capabilities;
pub mod client;
pub mod corpus;
pub mod doctor;
pub mod error;
pub mod index;
pub mod ingest;
pub mod ml;
pub mod newer;
pub mod node;
mod node_stats;
pub mod page;
pub mod reencode;
pub mod search;
pub mod segments;
pub mod source;
pub mod two_phase;

pub use capabilities::{Capabilities, Feature, Managed, Version};
pub use client::{
    Auth, AwsCredentials, AwsService, AwsSigning, Body, ClientCertificate, Cluster, ClusterConfig, Method, NDJSON,
    Response, RetryPolicy, Secret, without_secrets,
};
pub use corpus::{bm25_searcher, segment_searcher, sparse_searcher};
pub use error::{ApiError, Error, Result, Unreachable};
pub use index::{IndexSpec, Kind, OwnIndex, State};
pub use ingest::{
    IngestOptions, IngestReport, Rejected, ingest, ingest_documents, ingest_encoded, ingest_segments, ingest_texts,
    ingest_vectors,
};
pub use page::{Found, Highlight, Page, Results, hybrid_request, search_page, stored};
pub use search::{Bm25Searcher, SparseMode, SparseSearcher, TermScore, bm25_query};
pub use two_phase::TwoPhase;

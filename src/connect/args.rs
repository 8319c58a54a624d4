//! What can be typed about a cluster. No secret is among it: the command line stands in the process list.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// How a cluster is reached (docs/connecting.md). Secrets come from files, the environment, a profile or a prompt.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Cluster")]
pub(crate) struct ClusterArgs {
    /// URL of the cluster, or of several of its nodes (repeated, or separated by commas) [env: `NSPARSE_URL`]
    /// [default: the node of `nsparse cluster up`]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub(crate) url: Vec<String>,
    /// Take what is not typed or in the environment from this profile [env: `NSPARSE_PROFILE`]
    #[arg(long, value_name = "NAME")]
    pub(crate) profile: Option<String>,
    /// User; the password comes from `NSPARSE_PASSWORD`, --password-file, the profile or a prompt [env: `NSPARSE_USER`]
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// File that holds the password [env: `NSPARSE_PASSWORD_FILE`]
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// File that holds an API key [env: `NSPARSE_API_KEY_FILE`; the key itself: `NSPARSE_API_KEY`]
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
    /// File that holds a bearer token [env: `NSPARSE_BEARER_TOKEN_FILE`; the token: `NSPARSE_BEARER_TOKEN`]
    #[arg(long, value_name = "FILE")]
    pub(crate) bearer_token_file: Option<PathBuf>,
    /// Sign requests with AWS keys: `es` is OpenSearch Service, `aoss` Serverless [env: `NSPARSE_AWS`]
    #[arg(long, value_enum, value_name = "SERVICE")]
    pub(crate) aws: Option<Aws>,
    /// AWS region [default: as AWS's tools, or from the host]
    #[arg(long, value_name = "REGION")]
    pub(crate) aws_region: Option<String>,
    /// Profile of AWS's own files [default: as AWS's tools]
    #[arg(long, value_name = "NAME")]
    pub(crate) aws_profile: Option<String>,
    /// A certificate authority's PEM file to trust beside the system's [env: `NSPARSE_CA_CERT`]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_cert: Option<PathBuf>,
    /// Our certificate, PEM [env: `NSPARSE_CLIENT_CERT`]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_cert: Option<PathBuf>,
    /// The key of our certificate, PEM, not encrypted [env: `NSPARSE_CLIENT_KEY`]
    #[arg(long, value_name = "FILE")]
    pub(crate) client_key: Option<PathBuf>,
    /// Go through this proxy [env: `NSPARSE_PROXY`, else `HTTPS_PROXY` and its like]
    #[arg(long, value_name = "URL")]
    pub(crate) proxy: Option<String>,
    /// Take any TLS certificate: for tests only
    #[arg(long)]
    pub(crate) insecure: bool,
    /// Speak plain http:// to another machine: for networks that are yours alone
    #[arg(long)]
    pub(crate) insecure_http: bool,
    /// Seconds until a request is given up [env: `NSPARSE_TIMEOUT`] [default: 60]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) timeout: Option<u64>,
    /// Seconds until a connection is given up [env: `NSPARSE_CONNECT_TIMEOUT`] [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) connect_timeout: Option<u64>,
}

/// Which of Amazon's services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Aws {
    /// Amazon OpenSearch Service
    Es,
    /// Amazon OpenSearch Serverless
    Aoss,
}

//! What a cluster is and can do: asked of it, never assumed.

use serde::Serialize;
use serde_json::Value;

use crate::client::Cluster;
use crate::error::{Error, Result};

/// The oldest OpenSearch that knows neural sparse search.
pub const OLDEST: Version = Version { major: 2, minor: 11, patch: 0 };

/// A release number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Version {
    /// 2 in 2.16.0.
    pub major: u32,
    /// 16 in 2.16.0.
    pub minor: u32,
    /// 0 in 2.16.0.
    pub patch: u32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl Version {
    /// Reads `2.16.0`, `3.0.0-beta1`, `2.16`.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.split(['-', '+']).next()?;
        let mut parts = number.split('.').map(|p| p.parse::<u32>().ok());
        let (major, minor) = (parts.next()??, parts.next()??);
        let patch = parts.next().flatten().unwrap_or(0);
        Some(Self { major, minor, patch })
    }

    /// Whether this is `major.minor` or later.
    pub fn at_least(self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

/// What a cluster is and can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is one independent ability")]
pub struct Capabilities {
    /// Its release.
    pub version: Version,
    /// `opensearch`.
    pub distribution: String,
    /// Its name, as configured.
    pub cluster_name: String,
    /// Plugins on any node, by component name, sorted.
    pub plugins: Vec<String>,
    /// Whether models can be registered and deployed (`opensearch-ml` is installed).
    pub ml_commons: bool,
    /// Whether `neural_sparse` and the `sparse_encoding` processor are there (`opensearch-neural-search`).
    pub neural_search: bool,
    /// Whether `neural_sparse` takes `query_tokens`: from 2.14.
    pub query_tokens: bool,
    /// Whether the two-phase processor is there: from 2.15.
    pub two_phase: bool,
    /// Whether `sparse_encoding` can prune: from 2.19.
    pub pruning: bool,
    /// Whether `neural_sparse` takes an `analyzer`: from 3.1.
    pub analyzers: bool,
    /// Whether `sparse_vector` fields (SEISMIC) are there: from 3.3.
    pub sparse_ann: bool,
    /// Whether the security plugin is installed.
    pub security: bool,
}

impl Capabilities {
    /// Asks a cluster.
    ///
    /// # Errors
    /// If it does not answer, is no OpenSearch, or is older than 2.11.
    pub(crate) fn ask(cluster: &Cluster) -> Result<Self> {
        let root = cluster.get("/")?;
        let plugins = match cluster.get("/_cat/plugins?format=json&h=component") {
            Ok(list) => list,
            // A user without the cat permission can still index and search.
            Err(Error::Forbidden { .. }) => {
                tracing::warn!("this user may not list plugins; taking it that there are none");
                Value::Array(Vec::new())
            }
            Err(e) => return Err(e),
        };
        Self::from_answers(cluster.url(), &root, &plugins)
    }

    /// From the bodies of `GET /` and `GET /_cat/plugins?format=json`.
    pub(crate) fn from_answers(url: &str, root: &Value, plugins: &Value) -> Result<Self> {
        let number = root.pointer("/version/number").and_then(Value::as_str).ok_or_else(|| {
            Error::usage(
                format!("{url} is no OpenSearch cluster: its first page has no version"),
                "check host, port and path of --url",
            )
        })?;
        let distribution = root.pointer("/version/distribution").and_then(Value::as_str).unwrap_or("elasticsearch");
        if distribution != "opensearch" {
            return Err(Error::usage(
                format!("{url} is {distribution} {number}; nsparse works with OpenSearch"),
                "give the address of an OpenSearch cluster, 2.11 or later, or start one with `nsparse cluster up`",
            ));
        }
        let version = Version::parse(number).ok_or_else(|| {
            Error::usage(
                format!("{url} names a version that cannot be read: `{number}`"),
                "check that --url is an OpenSearch cluster",
            )
        })?;
        if version < OLDEST {
            return Err(Error::usage(
                format!("{url} is OpenSearch {version}; nsparse needs {OLDEST} or later"),
                "neural sparse search came with 2.11: use a later cluster, or `nsparse cluster up` for a local one",
            ));
        }
        let mut names: Vec<String> = plugins
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|p| p.get("component").and_then(Value::as_str).map(str::to_owned))
            .collect();
        names.sort();
        names.dedup();
        let has = |name: &str| names.iter().any(|n| n == name);
        let (ml_commons, neural_search) = (has("opensearch-ml"), has("opensearch-neural-search"));
        Ok(Self {
            version,
            distribution: distribution.to_owned(),
            cluster_name: root.get("cluster_name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            ml_commons,
            neural_search,
            query_tokens: neural_search && version.at_least(2, 14),
            two_phase: neural_search && version.at_least(2, 15),
            pruning: neural_search && version.at_least(2, 19),
            analyzers: neural_search && version.at_least(3, 1),
            sparse_ann: neural_search && version.at_least(3, 3),
            security: has("opensearch-security"),
            plugins: names,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;
    use serde_json::json;

    fn root(number: &str) -> Value {
        json!({"cluster_name": "c", "version": {"distribution": "opensearch", "number": number}})
    }

    #[test]
    fn capabilities_follow_plugins_and_version() {
        let plugins = json!([{"component": "opensearch-ml"}, {"component": "opensearch-neural-search"},
                             {"component": "opensearch-ml"}]);
        let found = Capabilities::from_answers("u", &root("2.16.0"), &plugins).unwrap();
        assert!(found.ml_commons && found.neural_search && found.query_tokens && found.two_phase);
        assert!(!found.pruning && !found.analyzers && !found.sparse_ann && !found.security);
        assert_eq!(found.plugins, ["opensearch-ml", "opensearch-neural-search"]);

        let bare = Capabilities::from_answers("u", &root("3.3.0-beta1"), &json!([])).unwrap();
        assert_eq!(bare.version, Version { major: 3, minor: 3, patch: 0 });
        assert!(!bare.ml_commons && !bare.query_tokens && !bare.sparse_ann);
    }

    #[test]
    fn other_engines_and_old_releases_are_refused() {
        let elastic = json!({"version": {"number": "8.1.0", "build_flavor": "default"}, "tagline": "You Know"});
        let message = |root: &Value| Capabilities::from_answers("u", root, &json!([])).unwrap_err().to_string();
        assert_eq!(message(&elastic), "u is elasticsearch 8.1.0; nsparse works with OpenSearch");
        assert_eq!(message(&root("2.9.0")), "u is OpenSearch 2.9.0; nsparse needs 2.11.0 or later");
        assert_eq!(message(&json!({"hello": "world"})), "u is no OpenSearch cluster: its first page has no version");
    }
}

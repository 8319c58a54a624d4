//! What a cluster is and can do: asked of it, never assumed.

use serde::Serialize;
use serde_json::Value;

use crate::client::{AwsService, Cluster};
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
    /// Whether the user may list them; if not, none are taken to be there.
    pub plugins_known: bool,
    /// Whose service it is, where it is managed: such ones take no uploaded models.
    pub managed: Option<Managed>,
    /// Whether models can be registered and deployed: `opensearch-ml` is installed, and it is no managed service.
    pub ml_commons: bool,
    /// Whether `neural_sparse` and the `sparse_encoding` processor are there (`opensearch-neural-search`).
    pub neural_search: bool,
    /// Whether `neural_sparse` takes `query_tokens`: from 2.14.
    pub query_tokens: bool,
    /// Whether the two-phase processor is there: from 2.15.
    pub two_phase: bool,
    /// Whether `sparse_encoding` can prune: from 2.19.
    pub pruning: bool,
    /// Whether `sparse_encoding` can leave unchanged texts alone (`skip_existing`): from 3.1.
    pub skip_existing: bool,
    /// Whether `neural_sparse` takes an `analyzer`: from 3.1.
    pub analyzers: bool,
    /// Whether `sparse_vector` fields (SEISMIC) are there: from 3.3.
    pub sparse_ann: bool,
    /// Whether the security plugin is installed.
    pub security: bool,
}

/// A managed service. They run models that they reach over the network, but none that is uploaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Managed {
    /// Amazon OpenSearch Service.
    AmazonService,
    /// Amazon OpenSearch Serverless.
    AmazonServerless,
}

impl Managed {
    /// As it calls itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::AmazonService => "Amazon OpenSearch Service",
            Self::AmazonServerless => "Amazon OpenSearch Serverless",
        }
    }
}

impl From<AwsService> for Managed {
    fn from(service: AwsService) -> Self {
        match service {
            AwsService::Es => Self::AmazonService,
            AwsService::Aoss => Self::AmazonServerless,
        }
    }
}

/// Something that a cluster can do or not, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Whether it is used here.
    pub usable: bool,
    /// Why not, and what is done in its place; empty where it is.
    pub why: String,
}

impl Capabilities {
    /// What is used of this cluster, and what is not and why.
    pub fn features(&self) -> Vec<Feature> {
        let feature = |name, usable: bool, (from, lacks): (&str, bool), otherwise: &str| {
            let why = match (usable, self.managed) {
                (true, _) => String::new(),
                (false, Some(service)) if name == "models in the cluster" => {
                    format!("{} takes no uploaded models; {otherwise}", service.name())
                }
                _ if lacks => format!("the plugin for it is not installed; {otherwise}"),
                _ => format!("OpenSearch has it from {from}, this is {}; {otherwise}", self.version),
            };
            Feature { name, usable, why }
        };
        let none = !self.neural_search;
        vec![
            feature(
                "models in the cluster",
                self.ml_commons && self.neural_search,
                ("2.11", true),
                "documents and queries are encoded by nsparse (`--side client`)",
            ),
            feature(
                "neural_sparse with query_tokens",
                self.query_tokens,
                ("2.14", none),
                "queries encoded by nsparse become rank_feature clauses, with the same ranking",
            ),
            feature("two-phase search", self.two_phase, ("2.15", none), "queries run in one phase"),
            feature(
                "pruning while indexing",
                self.pruning,
                ("2.19", none),
                "nsparse prunes the vectors it makes itself",
            ),
            feature("skip_existing", self.skip_existing, ("3.1", none), "the cluster encodes each update again"),
            feature(
                "analyzers of neural_sparse",
                self.analyzers,
                ("3.1", none),
                "not needed: they know no idf table but their own",
            ),
            feature("sparse_vector fields", self.sparse_ann, ("3.3", none), "vectors are rank_features fields"),
        ]
    }

    /// Serverless has no first page and lists no plugins: what it is known to have.
    fn serverless() -> Self {
        Self {
            version: OLDEST,
            distribution: "opensearch".to_owned(),
            cluster_name: Managed::AmazonServerless.name().to_owned(),
            plugins: Vec::new(),
            plugins_known: true,
            managed: Some(Managed::AmazonServerless),
            ml_commons: false,
            neural_search: false,
            query_tokens: false,
            two_phase: false,
            pruning: false,
            skip_existing: false,
            analyzers: false,
            sparse_ann: false,
            security: true,
        }
    }

    /// Asks a cluster.
    ///
    /// # Errors
    /// If it does not answer, is no OpenSearch, or is older than 2.11.
    pub(crate) fn ask(cluster: &Cluster) -> Result<Self> {
        let managed = cluster.managed();
        if managed == Some(Managed::AmazonServerless) {
            // It has no first page; a list of its indexes shows that it answers and lets us in.
            cluster.get("/_cat/indices?format=json")?;
            return Ok(Self::serverless());
        }
        let root = cluster.get("/")?;
        let plugins = match cluster.get("/_cat/plugins?format=json&h=component") {
            Ok(list) => Some(list),
            // A user without the cat permission can still index and search.
            Err(Error::Forbidden { .. }) => {
                tracing::warn!("this user may not list plugins; taking it that there are none");
                None
            }
            Err(e) => return Err(e),
        };
        let plugins_known = plugins.is_some();
        let found = Self::from_answers(cluster.url(), &root, &plugins.unwrap_or_default(), managed)?;
        Ok(Self { plugins_known, ..found })
    }

    /// From the bodies of `GET /` and `GET /_cat/plugins?format=json`.
    pub(crate) fn from_answers(url: &str, root: &Value, plugins: &Value, managed: Option<Managed>) -> Result<Self> {
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
        let (ml_commons, neural_search) = (has("opensearch-ml") && managed.is_none(), has("opensearch-neural-search"));
        Ok(Self {
            version,
            distribution: distribution.to_owned(),
            cluster_name: root.get("cluster_name").and_then(Value::as_str).unwrap_or_default().to_owned(),
            managed,
            ml_commons,
            neural_search,
            query_tokens: neural_search && version.at_least(2, 14),
            two_phase: neural_search && version.at_least(2, 15),
            pruning: neural_search && version.at_least(2, 19),
            skip_existing: neural_search && version.at_least(3, 1),
            analyzers: neural_search && version.at_least(3, 1),
            sparse_ann: neural_search && version.at_least(3, 3),
            security: has("opensearch-security"),
            plugins: names,
            plugins_known: true,
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
        let found = Capabilities::from_answers("u", &root("2.16.0"), &plugins, None).unwrap();
        assert!(found.ml_commons && found.neural_search && found.query_tokens && found.two_phase);
        assert!(!found.pruning && !found.analyzers && !found.sparse_ann && !found.security);
        assert_eq!(found.plugins, ["opensearch-ml", "opensearch-neural-search"]);

        let bare = Capabilities::from_answers("u", &root("3.3.0-beta1"), &json!([]), None).unwrap();
        assert_eq!(bare.version, Version { major: 3, minor: 3, patch: 0 });
        assert!(!bare.ml_commons && !bare.query_tokens && !bare.sparse_ann);
    }

    #[test]
    fn other_engines_and_old_releases_are_refused() {
        let elastic = json!({"version": {"number": "8.1.0", "build_flavor": "default"}, "tagline": "You Know"});
        let message = |root: &Value| Capabilities::from_answers("u", root, &json!([]), None).unwrap_err().to_string();
        assert_eq!(message(&elastic), "u is elasticsearch 8.1.0; nsparse works with OpenSearch");
        assert_eq!(message(&root("2.9.0")), "u is OpenSearch 2.9.0; nsparse needs 2.11.0 or later");
        assert_eq!(message(&json!({"hello": "world"})), "u is no OpenSearch cluster: its first page has no version");
    }

    #[test]
    fn each_version_has_its_features() {
        let plugins = json!([{"component": "opensearch-ml"}, {"component": "opensearch-neural-search"}]);
        let shown: Vec<String> = ["2.11.0", "2.14.0", "2.15.0", "2.19.4", "3.0.0", "3.1.0", "3.3.0"]
            .into_iter()
            .map(|number| {
                let found = Capabilities::from_answers("u", &root(number), &plugins, None).unwrap();
                let marks = found.features().iter().map(|f| if f.usable { '+' } else { '-' }).collect::<String>();
                format!("{number} {marks}")
            })
            .collect();
        let expected = [
            "2.11.0 +------",
            "2.14.0 ++-----",
            "2.15.0 +++----",
            "2.19.4 ++++---",
            "3.0.0 ++++---",
            "3.1.0 ++++++-",
            "3.3.0 +++++++",
        ];
        assert_eq!(shown, expected);
        let old = Capabilities::from_answers("u", &root("2.11.0"), &plugins, None).unwrap();
        assert_eq!(old.features()[2].why, "OpenSearch has it from 2.15, this is 2.11.0; queries run in one phase");
        let bare = Capabilities::from_answers("u", &root("2.16.0"), &json!([]), None).unwrap();
        assert!(bare.features().iter().all(|f| !f.usable && f.why.starts_with("the plugin for it is not installed")));
    }

    #[test]
    fn a_managed_service_gets_the_client_side_form() {
        let plugins = json!([{"component": "opensearch-ml"}, {"component": "opensearch-neural-search"}]);
        let found = Capabilities::from_answers("u", &root("2.19.0"), &plugins, Some(Managed::AmazonService)).unwrap();
        assert!(!found.ml_commons && found.query_tokens);
        let why = &found.features()[0].why;
        assert!(why.starts_with("Amazon OpenSearch Service takes no uploaded models; documents and queries"), "{why}");
    }
}

//! The alias that applications search: what is behind it, and moving it in one step.
//!
//! A cluster changes an alias in one update of its state, so that a query sees the old index or the new one, never
//! both and never neither.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::messages::{Step, explain_error};
use super::plan;
use crate::client::Cluster;
use crate::error::{Error, Result};

/// Tries of one change; before each new one the alias is looked at.
const TRIES: usize = 5;

/// The indexes behind an alias with the alias's own properties (filter, routing); empty where there is no such alias.
pub type Behind = BTreeMap<String, Value>;

/// What is behind an alias.
///
/// # Errors
/// If an index has that name, or the cluster does not answer.
pub fn behind(cluster: &Cluster, alias: &str) -> Result<Behind> {
    let failed = |e| explain_error(Step::Index, &format!("alias `{alias}`"), e);
    let found = cluster.find(&format!("/_alias/{alias}")).map_err(failed)?.unwrap_or_default();
    let behind: Behind = found
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(index, body)| Some((index.clone(), body.pointer("/aliases")?.get(alias)?.clone())))
        .collect();
    if behind.is_empty() && cluster.find(&format!("/{alias}")).map_err(failed)?.is_some_and(|a| a.get(alias).is_some())
    {
        return Err(Error::usage(
            format!("`{alias}` is an index in this cluster, so no alias can have that name"),
            format!(
                "choose another name, such as `--alias {alias}-live`, fill the first version, and let applications ask \
                 for that name; or work with the index as it is: `--index {alias}`"
            ),
        ));
    }
    Ok(behind)
}

/// Makes the alias stand for the indexes `to` instead of those in `from`, all in one request. Nothing happens where it
/// does so already. Properties of the old alias are kept.
///
/// # Errors
/// If the alias has changed meanwhile (nothing is touched then), or the cluster refuses or does not answer.
pub fn point(cluster: &Cluster, alias: &str, from: &Behind, to: &[String]) -> Result<()> {
    let actions = actions(alias, from, to);
    if actions.is_empty() {
        return Ok(());
    }
    let subject = format!("alias `{alias}`");
    for left in (0..TRIES).rev() {
        let Err(error) = cluster.post("/_aliases", json!({ "actions": actions })) else { return Ok(()) };
        // It may have arrived, with only its answer lost.
        let now = behind(cluster, alias)?;
        if now.len() == to.len() && to.iter().all(|index| now.contains_key(index)) {
            return Ok(());
        }
        if !now.keys().eq(from.keys()) {
            let names: Vec<&str> = now.keys().map(String::as_str).collect();
            return Err(Error::world(
                format!("The alias `{alias}` was changed by somebody else: it stands for {}", names.join(", ")),
                "look at it with `nsparse status`, then run the same command again",
            ));
        }
        if !error.is_transient() || left == 0 {
            return Err(explain_error(Step::Index, &subject, error));
        }
        std::thread::sleep(cluster.retry_policy().min_delay);
    }
    Ok(())
}

/// A new alias for its first version; what it stands for then, which is another version where a deploy at the same moment
/// was quicker. A cluster cannot be told to add an alias only where there is none, so whoever finds another beside its own
/// takes its own away again.
///
/// # Errors
/// As [`point`].
pub(super) fn begin(cluster: &Cluster, alias: &str, index: &String) -> Result<Behind> {
    for _ in 0..TRIES {
        let now = behind(cluster, alias)?;
        if !now.is_empty() {
            return Ok(now);
        }
        point(cluster, alias, &now, std::slice::from_ref(index))?;
        let mut now = behind(cluster, alias)?;
        if now.len() < 2 {
            return Ok(now);
        }
        now.retain(|name, _| name == index);
        point(cluster, alias, &now, &[])?;
    }
    Err(Error::world(
        format!("The alias `{alias}` was changed by somebody else again and again"),
        "look at it with `nsparse status`, then run the same command again",
    ))
}

/// The actions of one `_aliases` request.
fn actions(alias: &str, from: &Behind, to: &[String]) -> Vec<Value> {
    let kept = from.values().next().and_then(Value::as_object).cloned().unwrap_or_default();
    let mut actions: Vec<Value> = from
        .keys()
        .filter(|index| !to.contains(index))
        .map(|index| json!({ "remove": { "index": index, "alias": alias } }))
        .collect();
    for index in to.iter().filter(|index| !from.contains_key(*index)) {
        let mut add: Map<String, Value> = Map::new();
        add.insert("index".to_owned(), index.as_str().into());
        add.insert("alias".to_owned(), alias.into());
        // As it is told by GET, so it is taken by _aliases.
        add.extend(kept.clone());
        actions.push(json!({ "add": add }));
    }
    actions
}

/// An index that is named as a version of this alias: `NAME-v3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct VersionIndex {
    /// 3 in `NAME-v3`.
    pub(super) number: u32,
    /// The deployment that made it, where one did.
    pub(super) deployment: Option<String>,
    /// What tells one version's content from another's.
    pub(super) key: Option<String>,
}

/// The name of a version's index.
pub fn version_index(alias: &str, number: u32) -> String {
    format!("{alias}-v{number}")
}

/// All indexes that are named as versions of this alias, whoever made them.
pub(super) fn version_indexes(cluster: &Cluster, alias: &str) -> Result<Vec<VersionIndex>> {
    let found = cluster
        .find(&format!("/{alias}-v*?expand_wildcards=all"))
        .map_err(|e| explain_error(Step::Index, &format!("versions of `{alias}`"), e))?
        .unwrap_or_default();
    let mut versions: Vec<VersionIndex> = found
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(name, index)| {
            let number = name.strip_prefix(alias)?.strip_prefix("-v")?.parse().ok()?;
            let meta = |key: &str| index.pointer("/mappings/_meta")?.get(key)?.as_str().map(str::to_owned);
            Some(VersionIndex { number, deployment: meta(plan::DEPLOYMENT), key: meta(plan::VERSION) })
        })
        .collect();
    versions.sort_by_key(|v| v.number);
    Ok(versions)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn behind_of(indexes: &[&str]) -> Behind {
        indexes.iter().map(|i| ((*i).to_owned(), json!({}))).collect()
    }

    #[test]
    fn one_request_takes_the_old_away_and_adds_the_new() {
        let to = ["a-v2".to_owned()];
        assert_eq!(
            actions("a", &behind_of(&["a-v1", "b"]), &to),
            [
                json!({ "remove": { "index": "a-v1", "alias": "a" } }),
                json!({ "remove": { "index": "b", "alias": "a" } }),
                json!({ "add": { "index": "a-v2", "alias": "a" } }),
            ]
        );
        assert!(actions("a", &behind_of(&["a-v2"]), &to).is_empty());
        assert_eq!(actions("a", &Behind::new(), &to), [json!({ "add": { "index": "a-v2", "alias": "a" } })]);
    }

    #[test]
    fn filters_go_with_the_alias() {
        let filter = json!({ "filter": { "term": { "public": true } }, "search_routing": "1" });
        let from = Behind::from([("a-v1".to_owned(), filter)]);
        assert_eq!(
            actions("a", &from, &["a-v2".to_owned()])[1],
            json!({ "add": { "index": "a-v2", "alias": "a", "filter": { "term": { "public": true } }, "search_routing": "1" } })
        );
    }
}

//! What all recipes share: they are YAML with every key known, overrides name keys joined with dots, and what is wrong is
//! said with the file and the key.

use std::path::Path;

use nsparse_core::files;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Error, Result};

/// A recipe.
pub(crate) trait Recipe: Default + Serialize + DeserializeOwned {
    /// Where only one of two keys may be given, the later word counts: takes back what `key`, just set, rules out.
    fn settle(tree: &mut Value, key: &str);

    /// Every value that can be checked without reading data.
    fn check(&self) -> Result<()>;
}

/// Reads a recipe, applies overrides in order, and checks the whole.
pub(crate) fn load<R: Recipe>(path: &Path, overrides: &[String]) -> Result<R> {
    let text = files::read_text(path)?;
    parse(&text, overrides).map_err(|e| match e {
        Error::Config { message, hint } => {
            Error::Config { message: format!("Unusable recipe `{}`: {message}", path.display()), hint }
        }
        other => other,
    })
}

/// As [`load`], from a recipe's text.
pub(crate) fn parse<R: Recipe>(text: &str, overrides: &[String]) -> Result<R> {
    let mut recipe: R = if text.trim().is_empty() {
        R::default()
    } else {
        serde_saphyr::from_str(text).map_err(|e| Error::config(e.to_string()))?
    };
    for item in overrides {
        // The value is put into the tree of keys before it is typed.
        let mut tree = serde_json::to_value(&recipe).map_err(|e| Error::config(e.to_string()))?;
        let (key, given) = put(&mut tree, item)?;
        if given {
            R::settle(&mut tree, key);
        }
        recipe = serde_json::from_value(tree).map_err(|e| {
            Error::config_with_hint(format!("`--set {item}`: {e}"), "keys are those of the recipe, joined with dots")
        })?;
    }
    recipe.check()?;
    Ok(recipe)
}

/// Every key written out.
pub(crate) fn to_yaml<R: Recipe>(recipe: &R) -> Result<String> {
    serde_saphyr::to_string(recipe).map_err(|e| Error::config(e.to_string()))
}

/// Puts the value of an override `section.key=value`, which is YAML, into a tree of keys. Its key, and whether the
/// value is one.
fn put<'a>(tree: &mut Value, item: &'a str) -> Result<(&'a str, bool)> {
    let Some((key, value)) = item.split_once('=') else {
        return Err(Error::config_with_hint(
            format!("`--set {item}` has no `=`"),
            "write --set section.key=value, such as --set train.steps=100",
        ));
    };
    let key = key.trim();
    let value: Value = serde_saphyr::from_str(value)
        .map_err(|e| Error::config(format!("The value of `--set {item}` is not YAML: {e}")))?;
    let mut place = tree;
    for part in key.split('.') {
        if place.is_null() {
            *place = Value::Object(serde_json::Map::new());
        }
        let Value::Object(map) = place else {
            return Err(Error::config(format!("`--set {item}`: nothing lies below a plain value at `{part}`")));
        };
        place = map.entry(part.to_owned()).or_insert(Value::Null);
    }
    let given = !value.is_null();
    *place = value;
    Ok((key, given))
}

pub(crate) fn flatten(prefix: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, value, out);
            }
        }
        other => out.push((prefix.to_owned(), other.to_string())),
    }
}

//! Profiles: what is the same for every command against one cluster, in a file that its owner alone may read.
//!
//! ```yaml
//! production:
//!   url: [https://a.example:9200, https://b.example:9200]
//!   user: indexer
//!   password: …
//!   ca_cert: ca.pem
//! ```

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nsparse_opensearch::Secret;
use serde::Deserialize;

use super::args::Aws;
use crate::failure::usage;

/// One profile. Paths are relative to the file's folder.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "the fields are the file's keys")]
pub(crate) struct Profile {
    #[serde(default)]
    pub(crate) url: Urls,
    pub(crate) user: Option<String>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) password: Option<Secret>,
    pub(crate) password_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) api_key: Option<Secret>,
    pub(crate) api_key_file: Option<PathBuf>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) bearer_token: Option<Secret>,
    pub(crate) bearer_token_file: Option<PathBuf>,
    pub(crate) aws: Option<Aws>,
    pub(crate) aws_region: Option<String>,
    pub(crate) aws_profile: Option<String>,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) client_cert: Option<PathBuf>,
    pub(crate) client_key: Option<PathBuf>,
    #[serde(default, deserialize_with = "secret")]
    pub(crate) proxy: Option<Secret>,
    #[serde(default)]
    pub(crate) insecure: bool,
    #[serde(default)]
    pub(crate) insecure_http: bool,
    pub(crate) timeout: Option<u64>,
    pub(crate) connect_timeout: Option<u64>,
}

/// One address or several; each may hold a password.
#[derive(Debug, Clone, Default)]
pub(crate) struct Urls(pub(crate) Vec<Secret>);

impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            One(String),
            Several(Vec<String>),
        }
        let texts = match Form::deserialize(deserializer)? {
            Form::One(text) => text.split(',').map(|t| t.trim().to_owned()).collect(),
            Form::Several(texts) => texts,
        };
        Ok(Self(texts.into_iter().filter(|t| !t.is_empty()).map(Secret::from).collect()))
    }
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Secret::from))
}

const KEYS: &str = "a profile has the keys url, user, password, password_file, api_key, api_key_file, bearer_token, \
                    bearer_token_file, aws, aws_region, aws_profile, ca_cert, client_cert, client_key, proxy, insecure, \
                    insecure_http, timeout, connect_timeout; quote a value that begins with a special character or is \
                    a number";

/// Reads a profile.
///
/// # Errors
/// If the file is not there, others may read it, it is no such YAML, or has no profile of this name. No message
/// repeats anything of the file but names of profiles.
pub(crate) fn read(path: &Path, name: &str) -> anyhow::Result<Profile> {
    let shown = path.display();
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(usage(
                format!("There is no profile `{name}`: the file `{shown}` is not there"),
                format!(
                    "write it, with mode 0600: `{name}:` and below it, indented, `url: https://…` (docs/connecting.md)"
                ),
            ));
        }
        Err(e) => return Err(nsparse_core::Error::io("read", path, e).into()),
    };
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(usage(
            format!("Others may read the profiles in `{shown}` (mode {mode:04o})"),
            format!("passwords belong to you alone: `chmod 600 {shown}`"),
        ));
    }
    let text = std::fs::read_to_string(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
    let mut profiles: BTreeMap<String, Profile> = serde_saphyr::from_str(&text).map_err(|e| {
        // The parser's own words show what stands in the line, which may be a password.
        let place = e.location().map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
        usage(format!("{shown}{place}: no key of a profile, or a value of another kind than its key takes"), KEYS)
    })?;
    let names = profiles.keys().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    let mut profile = profiles
        .remove(name)
        .ok_or_else(|| usage(format!("`{shown}` has no profile `{name}`"), format!("there are: {names}")))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for file in [
        &mut profile.password_file,
        &mut profile.api_key_file,
        &mut profile.bearer_token_file,
        &mut profile.ca_cert,
        &mut profile.client_cert,
        &mut profile.client_key,
    ]
    .into_iter()
    .flatten()
    {
        *file = folder.join(&*file);
    }
    if profile.timeout == Some(0) || profile.connect_timeout == Some(0) {
        return Err(usage(format!("The profile `{name}` of `{shown}` has a time limit of 0 s"), "give at least 1"));
    }
    if profile.user.is_none() && (profile.password.is_some() || profile.password_file.is_some()) {
        return Err(usage(
            format!("The profile `{name}` of `{shown}` has a password, but no user"),
            "add `user: NAME`",
        ));
    }
    Ok(profile)
}

/// `NSPARSE_PROFILES`, else `profiles.yaml` in `$XDG_CONFIG_HOME/nsparse` or `~/.config/nsparse`.
pub(crate) fn path(env: &dyn Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(path) = env("NSPARSE_PROFILES") {
        return PathBuf::from(path);
    }
    let folder =
        env("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env("HOME")?).join(".config")));
    folder.unwrap_or_default().join("nsparse/profiles.yaml")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;
    use crate::failure::Failure;

    fn file(text: &str, mode: u32) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        file
    }

    fn refused(text: &str, mode: u32, name: &str) -> (String, String) {
        let file = file(text, mode);
        let failure = Failure::from(&read(file.path(), name).unwrap_err());
        assert_eq!(failure.code, 2);
        let clean = |t: &str| t.replace(&file.path().display().to_string(), "FILE");
        let (message, hint) = (clean(&failure.message), clean(&failure.hint.unwrap()));
        assert!(!message.contains("hunter2") && !hint.contains("hunter2"), "{message} {hint}");
        (message, hint)
    }

    #[test]
    fn a_profile_is_read() {
        let file = file(
            "a: {url: 'https://x, https://y', user: me, password: '0123', timeout: 5}\nb:\n  url: [https://z]\n  ca_cert: ca.pem\n",
            0o600,
        );
        let a = read(file.path(), "a").unwrap();
        assert_eq!(a.url.0, [Secret::from("https://x"), "https://y".into()]);
        assert_eq!((a.user.as_deref(), a.password.clone(), a.timeout), (Some("me"), Some("0123".into()), Some(5)));
        assert!(!format!("{a:?}").contains("0123"));
        let b = read(file.path(), "b").unwrap();
        assert_eq!(b.ca_cert.unwrap(), file.path().parent().unwrap().join("ca.pem"));
    }

    #[test]
    fn others_must_not_read_it() {
        for mode in [0o644, 0o640, 0o604, 0o620] {
            let (message, hint) = refused("a: {password: hunter2}", mode, "a");
            assert_eq!(message, format!("Others may read the profiles in `FILE` (mode {mode:04o})"));
            assert_eq!(hint, "passwords belong to you alone: `chmod 600 FILE`");
        }
    }

    #[test]
    fn nothing_of_the_file_is_repeated() {
        let (message, _) = refused("a:\n  user: me\n  pasword: hunter2\n", 0o600, "a");
        assert!(message.starts_with("FILE:3:"), "{message}");
        let (message, _) = refused("a:\n  timeout: hunter2\n", 0o600, "a");
        assert!(message.starts_with("FILE:2:"), "{message}");
        refused("a:\n  password:hunter2\n", 0o600, "a");
        refused("a:\n  password: [hunter2]\n", 0o600, "a");
        refused("a:\n  password: \"hunter2\n", 0o600, "a");
        assert_eq!(refused("a: {user: x}\nb: {user: y}", 0o600, "c").1, "there are: `a`, `b`");
        assert!(refused("a: {password: hunter2}", 0o600, "a").0.ends_with("has a password, but no user"));
        assert!(refused("a: {timeout: 0}", 0o600, "a").0.ends_with("a time limit of 0 s"));
    }
}

//! Keys and region of AWS, from where its own tools read them: the environment, then `~/.aws/credentials` and
//! `~/.aws/config`. Roles, single sign-on and the machine's own role are left to those tools, which print keys.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::{Auth, AwsCredentials, AwsService, AwsSigning};
use crate::error::{Error, Result};

/// What is known already; the rest is looked up.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Service or Serverless.
    pub service: AwsService,
    /// The region, where it was named.
    pub region: Option<&'a str>,
    /// The profile of AWS's files, where it was named: the environment's keys do not count then.
    pub profile: Option<&'a str>,
    /// The cluster's address, whose host may hold the region.
    pub url: &'a str,
}

/// Finds keys and region. `env` reads the environment.
///
/// # Errors
/// If there are none, a file cannot be read, or the address belongs to the other service.
pub fn find(wanted: Wanted<'_>, env: &dyn Fn(&str) -> Option<String>) -> Result<AwsSigning> {
    let (host_service, host_region) = from_host(wanted.url);
    if let Some(other) = host_service.filter(|s| *s != wanted.service) {
        return Err(Error::usage(
            format!(
                "The cluster's host belongs to `{}`, but `{}` was asked for",
                other.as_str(),
                wanted.service.as_str()
            ),
            format!("give --aws {}", other.as_str()),
        ));
    }
    let set = |name: &str| env(name).filter(|v| !v.trim().is_empty());
    let name = wanted.profile.map(str::to_owned).or_else(|| set("AWS_PROFILE")).unwrap_or_else(|| "default".to_owned());
    let files = Files::new(&set);
    let profile = files.profile(&name)?;
    let region = wanted
        .region
        .map(str::to_owned)
        .or_else(|| set("AWS_REGION"))
        .or_else(|| set("AWS_DEFAULT_REGION"))
        .or_else(|| profile.get("region").cloned())
        .or(host_region)
        .ok_or_else(|| Error::usage("No AWS region is known", "give --aws-region, or set AWS_REGION"))?;
    let of_env = || {
        Some(AwsCredentials {
            access_key_id: set("AWS_ACCESS_KEY_ID")?,
            secret_access_key: set("AWS_SECRET_ACCESS_KEY")?.into(),
            session_token: set("AWS_SESSION_TOKEN").map(Into::into),
        })
    };
    let of_file = || {
        Some(AwsCredentials {
            access_key_id: profile.get("aws_access_key_id")?.clone(),
            secret_access_key: profile.get("aws_secret_access_key")?.clone().into(),
            session_token: profile.get("aws_session_token").cloned().map(Into::into),
        })
    };
    let found = if wanted.profile.is_some() { of_file() } else { of_env().or_else(of_file) };
    let credentials = found.ok_or_else(|| {
        let other = ["sso_session", "sso_start_url", "role_arn", "credential_process", "web_identity_token_file"]
            .iter()
            .find(|key| profile.contains_key(**key));
        let what = other.map_or_else(
            || format!("No AWS keys: neither AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY nor the profile `{name}`"),
            |key| format!("The AWS profile `{name}` gets its keys by `{key}`, which nsparse leaves to AWS's own tools"),
        );
        Error::usage(
            what,
            format!("put keys into the environment: `eval \"$(aws configure export-credentials --profile {name} --format env)\"`"),
        )
    })?;
    Ok(AwsSigning { service: wanted.service, region, credentials })
}

/// The service that requests go to: the one they are signed for, else the one that the host belongs to.
pub(super) fn service_of(auth: &Auth, url: &reqwest::Url) -> Option<AwsService> {
    match auth {
        Auth::Aws(signing) => Some(signing.service),
        _ => from_host(url.as_str()).0,
    }
}

/// `es` and `eu-west-1` of `https://search-x.eu-west-1.es.amazonaws.com`; on `on.aws` the region comes last:
/// `https://x.aoss.eu-west-1.on.aws`.
fn from_host(url: &str) -> (Option<AwsService>, Option<String>) {
    let host = reqwest::Url::parse(url).ok().and_then(|u| u.host_str().map(str::to_owned)).unwrap_or_default();
    let labels: Vec<&str> = host.split('.').collect();
    let is_service_first = host.ends_with(".on.aws");
    if !host.contains(".amazonaws.") && !is_service_first {
        return (None, None);
    }
    labels
        .windows(2)
        .find_map(|pair| {
            let (service, region) = if is_service_first { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            let service = match service {
                "es" | "aos" => AwsService::Es,
                "aoss" => AwsService::Aoss,
                _ => return None,
            };
            Some((Some(service), Some(region.to_owned())))
        })
        .unwrap_or_default()
}

/// AWS's two files.
struct Files {
    credentials: Option<PathBuf>,
    config: Option<PathBuf>,
}

impl Files {
    fn new(set: &dyn Fn(&str) -> Option<String>) -> Self {
        let home = |name: &str| set("HOME").map(|h| Path::new(&h).join(".aws").join(name));
        Self {
            credentials: set("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(|| home("credentials")),
            config: set("AWS_CONFIG_FILE").map(PathBuf::from).or_else(|| home("config")),
        }
    }

    /// A profile's keys; those of the credentials file win.
    fn profile(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let titles = [format!("profile {name}"), name.to_owned()];
        let mut found = BTreeMap::new();
        for path in [&self.config, &self.credentials].into_iter().flatten() {
            let text = match std::fs::read_to_string(path) {
                Ok(text) => text,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(nsparse_core::Error::io("read", path, e).into()),
            };
            found.extend(section(&text, &titles));
        }
        Ok(found)
    }
}

/// The keys of one section of an INI file; nested (indented) settings are left out.
fn section(text: &str, titles: &[String]) -> BTreeMap<String, String> {
    let mut inside = false;
    let mut found = BTreeMap::new();
    for line in text.lines() {
        if let Some(title) = line.trim().strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            let title = title.split_whitespace().collect::<Vec<_>>().join(" ");
            inside = titles.contains(&title);
        } else if inside
            && !line.starts_with([' ', '\t', '#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            found.insert(key.trim().to_lowercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    const URL: &str = "https://search-x.eu-west-1.es.amazonaws.com";

    fn wanted(url: &str) -> Wanted<'_> {
        Wanted { service: AwsService::Es, region: None, profile: None, url }
    }

    #[test]
    fn keys_come_from_the_environment_then_from_files() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".aws")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(".aws").join(name), text).unwrap();
        write(
            "credentials",
            "[default]\naws_access_key_id = AKFILE\naws_secret_access_key=file\n\n[work]\n\
                              aws_access_key_id=AKWORK\naws_secret_access_key=work\naws_session_token=t\n# x=y\n",
        );
        write("config", "[profile work]\nregion = us-west-2\ns3 =\n  region = wrong\n[profile sso]\nsso_session = x\n");
        let home = folder.path().to_str().unwrap().to_owned();
        let bare = |name: &str| (name == "HOME").then(|| home.clone());
        let found = find(wanted(URL), &bare).unwrap();
        assert_eq!((found.region.as_str(), found.credentials.access_key_id.as_str()), ("eu-west-1", "AKFILE"));
        assert!(!format!("{found:?}").contains("\"file\""));

        let work = find(Wanted { profile: Some("work"), ..wanted(URL) }, &bare).unwrap();
        assert_eq!((work.region.as_str(), work.credentials.access_key_id.as_str()), ("us-west-2", "AKWORK"));
        assert_eq!(work.credentials.session_token, Some("t".into()));

        let full = |name: &str| match name {
            "AWS_ACCESS_KEY_ID" => Some("AKENV".to_owned()),
            "AWS_SECRET_ACCESS_KEY" => Some("env".to_owned()),
            "AWS_REGION" => Some("eu-north-1".to_owned()),
            other => bare(other),
        };
        let env = find(wanted(URL), &full).unwrap();
        assert_eq!((env.region.as_str(), env.credentials.access_key_id.as_str()), ("eu-north-1", "AKENV"));
        let named = find(Wanted { profile: Some("work"), region: Some("r"), ..wanted(URL) }, &full).unwrap();
        assert_eq!((named.region.as_str(), named.credentials.access_key_id.as_str()), ("r", "AKWORK"));

        let sso = find(Wanted { profile: Some("sso"), ..wanted(URL) }, &bare).unwrap_err();
        assert!(sso.to_string().contains("`sso_session`") && sso.hint().unwrap().contains("--profile sso"), "{sso}");
    }

    #[test]
    fn the_host_tells_service_and_region() {
        let found = |host: &str| from_host(&format!("https://{host}"));
        let of = |service, region: &str| (Some(service), Some(region.to_owned()));
        assert_eq!(found("search-x.eu-west-1.es.amazonaws.com"), of(AwsService::Es, "eu-west-1"));
        assert_eq!(found("search-x.cn-north-1.es.amazonaws.com.cn"), of(AwsService::Es, "cn-north-1"));
        assert_eq!(found("07tjusf2h91cunochc.us-east-1.aoss.amazonaws.com"), of(AwsService::Aoss, "us-east-1"));
        assert_eq!(found("07tjusf2h91cunochc.aoss.us-east-1.on.aws"), of(AwsService::Aoss, "us-east-1"));
        assert_eq!(found("search-x.aos.eu-west-1.on.aws"), of(AwsService::Es, "eu-west-1"));
        assert_eq!(found("aoss.example.com"), (None, None));
    }

    #[test]
    fn what_is_missing_is_told() {
        let none = |_: &str| None;
        assert!(find(wanted(URL), &none).unwrap_err().to_string().starts_with("No AWS keys"));
        assert_eq!(find(wanted("https://a.example"), &none).unwrap_err().to_string(), "No AWS region is known");
        let serverless = find(wanted("https://x.us-east-1.aoss.amazonaws.com"), &none).unwrap_err();
        assert!(serverless.to_string().contains("belongs to `aoss`"), "{serverless}");
    }
}

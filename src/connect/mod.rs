//! How a cluster is reached: what was typed wins over the environment, and the environment over a profile. Resolved
//! once, into a [`ClusterConfig`]; docs/connecting.md is for users.

pub(crate) mod args;
mod profile;
mod prompt;

use std::path::Path;
use std::time::Duration;

use nsparse_opensearch::client::{aws, has_user_info};
use nsparse_opensearch::{Auth, AwsService, ClientCertificate, ClusterConfig, Secret};

use crate::failure::usage;
use args::{Aws, ClusterArgs};
use profile::Profile;

/// What surrounds the program; replaced in tests.
pub(crate) struct Surroundings<'a> {
    /// The environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<String>,
    /// Asks for a secret at the terminal.
    pub(crate) ask: &'a dyn Fn(&str) -> Option<String>,
}

/// The settings for a cluster. `url` gives the address where none was typed, in the environment or in a profile.
///
/// # Errors
/// If settings contradict each other, a secret or a file is missing, or none gives an address.
pub(crate) fn config(
    args: &ClusterArgs,
    url: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<ClusterConfig> {
    let env = |name: &str| std::env::var(name).ok();
    config_in(args, url, &Surroundings { env: &env, ask: &prompt::ask })
}

fn config_in(
    args: &ClusterArgs,
    url: impl FnOnce() -> anyhow::Result<String>,
    around: &Surroundings<'_>,
) -> anyhow::Result<ClusterConfig> {
    let set = |name: &str| (around.env)(name).filter(|v| !v.trim().is_empty());
    let profile = match args.profile.clone().or_else(|| set("NSPARSE_PROFILE")) {
        Some(name) => profile::read(&profile::path(&set), &name)?,
        None => Profile::default(),
    };
    let mut config = ClusterConfig::new("");
    config.urls = urls(args, &set, &profile, url)?;
    let path = |typed: &Option<std::path::PathBuf>, name: &str, saved: &Option<std::path::PathBuf>| {
        typed.clone().or_else(|| set(name).map(Into::into)).or_else(|| saved.clone())
    };
    config.ca = path(&args.ca_cert, "NSPARSE_CA_CERT", &profile.ca_cert);
    let certificate = path(&args.client_cert, "NSPARSE_CLIENT_CERT", &profile.client_cert);
    let key = path(&args.client_key, "NSPARSE_CLIENT_KEY", &profile.client_key);
    config.client_certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (None, None) => None,
        (Some(_), None) => {
            return Err(usage("A client certificate is given, but not its key", "give --client-key FILE"));
        }
        (None, Some(_)) => return Err(usage("A client key is given, but no certificate", "give --client-cert FILE")),
    };
    config.proxy = match &args.proxy {
        Some(typed) if has_user_info(typed) => {
            return Err(usage(
                "--proxy holds a user or password, which every user of this machine sees in the process list",
                "put the address into NSPARSE_PROXY or HTTPS_PROXY, or into a profile",
            ));
        }
        Some(typed) => Some(typed.clone().into()),
        None => set("NSPARSE_PROXY").map(Secret::from).or_else(|| profile.proxy.clone()),
    };
    config.insecure = args.insecure || profile.insecure;
    config.insecure_http = args.insecure_http || profile.insecure_http;
    let seconds = |typed: Option<u64>, name: &str, saved: Option<u64>| match (typed, set(name)) {
        (None, Some(text)) => match text.trim().parse() {
            Ok(seconds) if seconds > 0 => Ok(Some(Duration::from_secs(seconds))),
            _ => Err(usage(format!("{name} is `{text}`"), "set it to a whole number of seconds, at least 1")),
        },
        (typed, _) => Ok(typed.or(saved).map(Duration::from_secs)),
    };
    if let Some(timeout) = seconds(args.timeout, "NSPARSE_TIMEOUT", profile.timeout)? {
        config.timeout = timeout;
    }
    if let Some(timeout) = seconds(args.connect_timeout, "NSPARSE_CONNECT_TIMEOUT", profile.connect_timeout)? {
        config.connect_timeout = timeout;
    }
    config.auth = auth(args, &profile, &config, around, &set)?;
    Ok(config)
}

fn urls(
    args: &ClusterArgs,
    set: &dyn Fn(&str) -> Option<String>,
    profile: &Profile,
    otherwise: impl FnOnce() -> anyhow::Result<String>,
) -> anyhow::Result<Vec<Secret>> {
    if args.url.iter().any(|u| has_user_info(u)) {
        return Err(usage(
            "--url holds a user or password, which every user of this machine sees in the process list",
            "give --user, and the password in NSPARSE_PASSWORD, --password-file or a profile",
        ));
    }
    if !args.url.is_empty() {
        return Ok(args.url.iter().map(|u| Secret::from(u.trim())).collect());
    }
    if let Some(text) = set("NSPARSE_URL") {
        return Ok(ClusterConfig::new(text).urls);
    }
    if !profile.url.0.is_empty() {
        return Ok(profile.url.0.clone());
    }
    // With a profile that names no address: the deployment's, or this machine's node.
    Ok(ClusterConfig::new(otherwise()?).urls)
}

/// The ways to prove who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Basic,
    ApiKey,
    Bearer,
    Aws,
}

impl Way {
    /// The only way that a source names, with what named it.
    fn only(named: [(Self, bool, &'static str); 4], place: &str) -> anyhow::Result<Option<Self>> {
        let there: Vec<_> = named.into_iter().filter(|(_, is, _)| *is).collect();
        match there[..] {
            [] => Ok(None),
            [(way, _, _)] => Ok(Some(way)),
            [(_, _, first), (_, _, second), ..] => Err(usage(
                format!("{first} and {second} are two ways to prove who you are, both {place}"),
                "give one of them",
            )),
        }
    }
}

fn auth(
    args: &ClusterArgs,
    profile: &Profile,
    config: &ClusterConfig,
    around: &Surroundings<'_>,
    set: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Auth> {
    let has = |name: &str| set(name).is_some();
    let typed = Way::only(
        [
            (Way::Basic, args.user.is_some(), "--user"),
            (Way::ApiKey, args.api_key_file.is_some(), "--api-key-file"),
            (Way::Bearer, args.bearer_token_file.is_some(), "--bearer-token-file"),
            (Way::Aws, args.aws.is_some(), "--aws"),
        ],
        "typed",
    )?;
    let way = match typed {
        Some(way) => Some(way),
        None => Way::only(
            [
                (Way::Basic, has("NSPARSE_USER"), "NSPARSE_USER"),
                (Way::ApiKey, has("NSPARSE_API_KEY") || has("NSPARSE_API_KEY_FILE"), "NSPARSE_API_KEY"),
                (Way::Bearer, has("NSPARSE_BEARER_TOKEN") || has("NSPARSE_BEARER_TOKEN_FILE"), "NSPARSE_BEARER_TOKEN"),
                (Way::Aws, has("NSPARSE_AWS"), "NSPARSE_AWS"),
            ],
            "in the environment",
        )?,
    };
    let way = match way {
        Some(way) => Some(way),
        None => Way::only(
            [
                (Way::Basic, profile.user.is_some(), "user"),
                (Way::ApiKey, profile.api_key.is_some() || profile.api_key_file.is_some(), "api_key"),
                (Way::Bearer, profile.bearer_token.is_some() || profile.bearer_token_file.is_some(), "bearer_token"),
                (Way::Aws, profile.aws.is_some(), "aws"),
            ],
            "in the profile",
        )?,
    };
    if args.password_file.is_some() && way != Some(Way::Basic) {
        return Err(usage("--password-file is given, but no user", "give --user NAME, or leave it out"));
    }
    if (args.aws_region.is_some() || args.aws_profile.is_some()) && way != Some(Way::Aws) {
        return Err(usage("--aws-region and --aws-profile do nothing without --aws", "give --aws es or --aws aoss"));
    }
    match way {
        None => Ok(Auth::None),
        Some(Way::Basic) => {
            let user = args.user.clone().or_else(|| set("NSPARSE_USER")).or_else(|| profile.user.clone());
            let user = user.unwrap_or_default();
            let password = password(&user, args, profile, around, set)?;
            Ok(Auth::Basic { user, password })
        }
        Some(Way::ApiKey) => {
            let saved = (&profile.api_key, profile.api_key_file.as_deref());
            secret("API key", args.api_key_file.as_deref(), set, "NSPARSE_API_KEY", saved).map(Auth::ApiKey)
        }
        Some(Way::Bearer) => {
            let saved = (&profile.bearer_token, profile.bearer_token_file.as_deref());
            let token = args.bearer_token_file.as_deref();
            secret("bearer token", token, set, "NSPARSE_BEARER_TOKEN", saved).map(Auth::Bearer)
        }
        Some(Way::Aws) => {
            let service = match (args.aws, set("NSPARSE_AWS")) {
                (Some(aws), _) => aws,
                (None, Some(text)) => clap::ValueEnum::from_str(&text, true)
                    .map_err(|_| usage(format!("NSPARSE_AWS is `{text}`"), "set it to es or aoss"))?,
                (None, None) => profile.aws.unwrap_or(Aws::Es),
            };
            let wanted = aws::Wanted {
                service: match service {
                    Aws::Es => AwsService::Es,
                    Aws::Aoss => AwsService::Aoss,
                },
                region: args.aws_region.as_deref().or(profile.aws_region.as_deref()),
                profile: args.aws_profile.as_deref().or(profile.aws_profile.as_deref()),
                url: config.urls.first().map_or("", Secret::expose),
            };
            Ok(Auth::Aws(aws::find(wanted, around.env)?))
        }
    }
}

/// Typed file, environment, environment's file, profile, profile's file; the first that is there.
fn secret(
    what: &str,
    typed: Option<&Path>,
    set: &dyn Fn(&str) -> Option<String>,
    variable: &str,
    (saved, saved_file): (&Option<Secret>, Option<&Path>),
) -> anyhow::Result<Secret> {
    find_secret(what, typed, set, variable, (saved, saved_file))?
        .ok_or_else(|| usage(format!("No {what}"), format!("put it into the environment variable {variable}")))
}

fn find_secret(
    what: &str,
    typed: Option<&Path>,
    set: &dyn Fn(&str) -> Option<String>,
    variable: &str,
    (saved, saved_file): (&Option<Secret>, Option<&Path>),
) -> anyhow::Result<Option<Secret>> {
    if let Some(path) = typed {
        return secret_file(what, path).map(Some);
    }
    if let Some(value) = set(variable) {
        return Ok(Some(value.into()));
    }
    if let Some(path) = set(&format!("{variable}_FILE")) {
        return secret_file(what, Path::new(&path)).map(Some);
    }
    match (saved, saved_file) {
        (Some(_), Some(_)) => {
            Err(usage(format!("The profile names its {what} twice: itself and a file"), "keep one of the two"))
        }
        (Some(value), None) => Ok(Some(value.clone())),
        (None, Some(path)) => secret_file(what, path).map(Some),
        (None, None) => Ok(None),
    }
}

/// A file's content without the line break at its end.
fn secret_file(what: &str, path: &Path) -> anyhow::Result<Secret> {
    let text = std::fs::read_to_string(path).map_err(|e| nsparse_core::Error::io("read", path, e))?;
    let value = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
    if value.is_empty() || value.contains('\n') {
        let found = if value.is_empty() { "is empty" } else { "has several lines" };
        return Err(usage(
            format!("The file `{}` {found}", path.display()),
            format!("it should hold the {what} alone, on one line"),
        ));
    }
    Ok(value.into())
}

fn password(
    user: &str,
    args: &ClusterArgs,
    profile: &Profile,
    around: &Surroundings<'_>,
    set: &dyn Fn(&str) -> Option<String>,
) -> anyhow::Result<Secret> {
    // Another user's password is not sent for this one.
    let is_saved = profile.user.as_deref() == Some(user);
    let saved = if is_saved { (&profile.password, profile.password_file.as_deref()) } else { (&None, None) };
    let found = find_secret("password", args.password_file.as_deref(), set, "NSPARSE_PASSWORD", saved)?;
    let found = found.or_else(|| (around.ask)(&format!("Password of {user}")).map(Secret::from));
    found.ok_or_else(|| {
        usage(
            format!("No password for the user `{user}`"),
            "put it into the environment variable NSPARSE_PASSWORD, a file (--password-file) or a profile",
        )
    })
}

#[cfg(test)]
mod tests;

//! Addresses: read, checked, and freed of the user and the password that may stand in them.

use reqwest::Url;

use super::config::{Auth, ClusterConfig};
use crate::error::{Error, Result};

/// The nodes' addresses without user information, and who we are: the address's user counts where nothing else was
/// set.
pub(super) fn resolve(config: &ClusterConfig) -> Result<(Vec<Url>, Auth)> {
    if config.urls.is_empty() {
        return Err(Error::usage("No URL of a cluster is given", HOW));
    }
    let mut urls: Vec<Url> = Vec::with_capacity(config.urls.len());
    let mut auth = config.auth.clone();
    for text in &config.urls {
        let (url, found) = split(text.expose())?;
        if let Some(found) = found {
            if auth == Auth::None {
                auth = found;
            } else if config.auth == Auth::None && auth != found {
                return Err(Error::usage(
                    "The cluster's URLs name different users or passwords",
                    "all nodes of a cluster know the same users: name one with --user",
                ));
            }
        }
        if url.scheme() == "http" && !is_loopback(&url) && !config.insecure_http {
            return Err(Error::usage(
                format!("{} is another machine, and http:// would send everything to it in the clear", shown(&url)),
                "write https://; where the network between is yours alone, say so with --insecure-http",
            ));
        }
        if urls.first().is_some_and(|first| first.scheme() != url.scheme()) {
            return Err(Error::usage("Some of the cluster's URLs are http and some https", "use one for all nodes"));
        }
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    Ok((urls, auth))
}

const HOW: &str = "write it like http://localhost:9200 or https://search.example:9200";

/// One address, and the user in it.
fn split(text: &str) -> Result<(Url, Option<Auth>)> {
    let wrong = |what: String| Error::usage(what, HOW);
    // The address may hold a password: an unreadable one is not repeated.
    let mut url = Url::parse(text.trim()).map_err(|e| wrong(format!("The cluster's URL cannot be read: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("The cluster's URL has the scheme `{}`, not http or https", url.scheme())));
    }
    let mut auth = None;
    if !url.username().is_empty() || url.password().is_some() {
        auth = Some(Auth::Basic {
            user: percent_decode(url.username()),
            password: percent_decode(url.password().unwrap_or_default()).into(),
        });
        // Neither fails on an address that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    url.set_query(None);
    url.set_fragment(None);
    Ok((url, auth))
}

/// As messages show it: without a slash at the end.
pub(super) fn shown(url: &Url) -> String {
    url.as_str().trim_end_matches('/').to_owned()
}

/// Whether an address holds a user or a password. Unreadable ones are told elsewhere.
pub fn has_user_info(text: &str) -> bool {
    Url::parse(text.trim()).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}

/// Whether an address is this machine's own.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Undoes `%XX`; anything broken stays as it is.
pub(super) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        if let Some(byte) = hex.and_then(|h| u8::from_str_radix(h, 16).ok()).filter(|_| bytes[i] == b'%') {
            out.push(byte);
            i += 3;
        } else {
            out.push(bytes[i]);
            i += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    fn message(urls: &str, change: impl FnOnce(&mut ClusterConfig)) -> String {
        let mut config = ClusterConfig::new(urls);
        change(&mut config);
        resolve(&config).unwrap_err().to_string()
    }

    #[test]
    fn several_addresses_are_one_cluster() {
        let config = ClusterConfig::new("https://u:p@a:9200, https://b:9200/x/,https://a:9200");
        let (urls, auth) = resolve(&config).unwrap();
        assert_eq!(urls.iter().map(shown).collect::<Vec<_>>(), ["https://a:9200", "https://b:9200/x"]);
        assert_eq!(auth, Auth::Basic { user: "u".into(), password: "p".into() });
    }

    #[test]
    fn wrong_combinations_are_told() {
        assert_eq!(message("", |_| {}), "No URL of a cluster is given");
        assert_eq!(
            message("https://u:p@a:9200,https://v:q@b:9200", |_| {}),
            "The cluster's URLs name different users or passwords"
        );
        assert_eq!(
            message("https://a:9200,http://localhost:9200", |_| {}),
            "Some of the cluster's URLs are http and some https"
        );
        let open = message("http://u:secret@search.example:9200", |_| {});
        assert!(open.starts_with("http://search.example:9200 is another machine"), "{open}");
        assert!(resolve(&ClusterConfig { insecure_http: true, ..ClusterConfig::new("http://a:1") }).is_ok());
        for own in ["http://localhost:9200", "http://127.1.2.3:9200", "http://[::1]:9200"] {
            assert!(resolve(&ClusterConfig::new(own)).is_ok(), "{own}");
        }
        // `--insecure` is about certificates alone.
        let insecure = message("http://10.0.0.1:9200", |c| c.insecure = true);
        assert!(insecure.contains("in the clear"), "{insecure}");
    }

    #[test]
    fn users_in_addresses_are_seen() {
        assert!(has_user_info("https://u:p@a:9200") && has_user_info(" https://u@a "));
        assert!(!has_user_info("https://a:9200/@x") && !has_user_info("no address"));
    }
}

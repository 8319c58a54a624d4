//! What a person sees where the program itself is at fault: what and where, without secrets.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Write as _;
use std::panic::PanicHookInfo;

use nsparse_opensearch::without_secrets;

/// From here on panics are told by [`report`], on standard error.
pub(crate) fn report_ours() {
    std::panic::set_hook(Box::new(|info| crate::printer::err(&report(info))));
}

/// The message with every secret of this process taken out, the place, and with `RUST_BACKTRACE` the way there.
fn report(info: &PanicHookInfo<'_>) -> String {
    let message = info.payload_as_str().unwrap_or("a panic without a message");
    let mut text = format!("error: nsparse stopped through a fault of its own: {message}");
    if let Some(place) = info.location() {
        let _ = write!(text, " ({place})");
    }
    text.push_str(
        "\nhint: please report this text with the command; started again, the same command goes on where it can",
    );
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        let _ = write!(text, "\n{trace}");
    }
    without_secrets(&text)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::panic,
        reason = "a test may stop at the first surprise, and panics on purpose"
    )]

    use std::sync::{Arc, Mutex};

    use nsparse_opensearch::{Auth, AwsCredentials, AwsService, AwsSigning, Cluster, ClusterConfig};

    use super::*;

    /// What the hook says of a panic on this thread.
    fn said(panics: impl FnOnce() + std::panic::UnwindSafe) -> String {
        let said = Arc::new(Mutex::new(String::new()));
        let (heard, this) = (Arc::clone(&said), std::thread::current().id());
        let before = Arc::new(std::panic::take_hook());
        let others = Arc::clone(&before);
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().id() == this { *heard.lock().unwrap() = report(info) } else { others(info) }
        }));
        std::panic::catch_unwind(panics).unwrap_err();
        std::panic::set_hook(Box::new(move |info| before(info)));
        said.lock().unwrap().clone()
    }

    #[test]
    fn a_panic_says_where_and_shows_no_secret() {
        let aws = AwsCredentials {
            access_key_id: "AKIAPLANTED".into(),
            secret_access_key: "Planted/aws+secret".into(),
            session_token: Some("Planted-session".into()),
        };
        let signing = AwsSigning { service: AwsService::Es, region: "eu-west-1".into(), credentials: aws };
        let secrets = [
            "Planted pass:word",
            "UGxhbnRlZCB",
            "Planted/aws+secret",
            "Planted-session",
            "Planted-key",
            "Planted.token",
            "Planted-in-address",
            "Planted-proxy",
        ];
        for auth in [
            Auth::Basic { user: "me".into(), password: "Planted pass:word".into() },
            Auth::ApiKey("Planted-key".into()),
            Auth::Bearer("Planted.token".into()),
            Auth::Aws(signing),
        ] {
            let mut config = ClusterConfig::new("https://localhost:1");
            config.auth = auth.clone();
            config.proxy = Some("http://me:Planted-proxy@localhost:2".into());
            let cluster = Cluster::connect(&config).unwrap();
            config.urls = vec!["https://me:Planted-in-address@localhost:1".into()];
            // What a careless library might say: everything it holds, in its own words.
            let bare = match &auth {
                Auth::Basic { password, .. } => password.expose().to_owned(),
                Auth::ApiKey(key) | Auth::Bearer(key) => key.expose().to_owned(),
                Auth::Aws(a) => {
                    format!("{} {:?}", a.credentials.secret_access_key.expose(), a.credentials.session_token)
                }
                Auth::None => String::new(),
            };
            let header = if matches!(auth, Auth::Basic { .. }) { "Basic bWU6UGxhbnRlZCBwYXNzOndvcmQ=" } else { "" };
            let text = said(std::panic::AssertUnwindSafe(|| {
                panic!(
                    "{config:?} {cluster:?} {bare} {header} {} {:?}",
                    config.urls[0].expose(),
                    config.proxy.as_ref().map(nsparse_opensearch::Secret::expose)
                )
            }));
            assert!(text.starts_with("error: nsparse stopped through a fault of its own: ClusterConfig"), "{text}");
            assert!(text.contains("panics.rs:") && text.contains("please report"), "{text}");
            for secret in secrets {
                assert!(!text.contains(secret), "{secret}: {text}");
            }
            assert!(!text.contains("UGxhbnRlZCBwYXNz"), "{text}");
        }
    }
}

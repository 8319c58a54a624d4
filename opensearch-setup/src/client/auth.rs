//! What is added to a request so that the cluster knows who asks.

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::config::{Auth, AwsSigning, remember};
use crate::error::{Error, Result};

/// How each request is authorised. Its `Debug` shows no secret: header values are marked as sensitive.
#[derive(Debug)]
pub(super) enum Authorization {
    /// Not at all, or by the certificate alone.
    None,
    /// The same header each time.
    Header(HeaderValue),
    /// A signature over each request.
    #[cfg_attr(not(feature = "aws"), expect(dead_code, reason = "refused when it is made"))]
    Aws(AwsSigning),
}

impl Authorization {
    /// # Errors
    /// If a secret holds what no header can, or the program was built without AWS's signatures.
    pub(super) fn new(auth: &Auth) -> Result<Self> {
        let header = match auth {
            Auth::None => return Ok(Self::None),
            Auth::Aws(signing) if cfg!(feature = "aws") => return Ok(Self::Aws(signing.clone())),
            Auth::Aws(_) => {
                return Err(Error::usage(
                    "This nsparse was built without AWS's signatures",
                    "build it with its default features, or with --features aws",
                ));
            }
            Auth::Basic { user, password } => basic(user, password.expose())?,
            Auth::ApiKey(key) => value("API key", &format!("ApiKey {}", key.expose()))?,
            Auth::Bearer(token) => value("bearer token", &format!("Bearer {}", token.expose()))?,
        };
        Ok(Self::Header(header))
    }

    /// Adds what a request needs. `url` is the address as it will be sent.
    #[cfg_attr(not(feature = "aws"), expect(unused_variables, reason = "what only signatures need"))]
    pub(super) fn apply(&self, headers: &mut HeaderMap, method: &str, url: &reqwest::Url, body: &[u8]) -> Result<()> {
        match self {
            Self::None => Ok(()),
            Self::Header(value) => {
                headers.insert(AUTHORIZATION, value.clone());
                Ok(())
            }
            #[cfg(feature = "aws")]
            Self::Aws(signing) => super::sigv4::sign(headers, method, url, body, signing, std::time::SystemTime::now()),
            #[cfg(not(feature = "aws"))]
            Self::Aws(_) => Ok(()),
        }
    }
}

/// `Authorization: Basic …`, as reqwest writes it.
fn basic(user: &str, password: &str) -> Result<HeaderValue> {
    if user.contains(':') {
        return Err(Error::usage(
            format!("The user name `{user}` holds a colon"),
            "basic authentication cannot say it",
        ));
    }
    let request = reqwest::Client::new().get("http://localhost/").basic_auth(user, Some(password)).build();
    let mut header = request.ok().and_then(|r| r.headers().get(AUTHORIZATION).cloned()).ok_or_else(|| {
        Error::usage(format!("The password of the user `{user}` cannot be sent"), "check the file that it stands in")
    })?;
    // Without the word before it.
    header.to_str().iter().flat_map(|text| text.split(' ').skip(1)).for_each(remember);
    header.set_sensitive(true);
    Ok(header)
}

/// A header's value that no log shows.
pub(super) fn value(what: &str, text: &str) -> Result<HeaderValue> {
    let plain = text.bytes().all(|b| (0x20..0x7f).contains(&b)) && !text.ends_with(' ');
    // The text itself is never repeated.
    let mut header = HeaderValue::from_str(text).ok().filter(|_| plain).ok_or_else(|| {
        Error::usage(
            format!("The {what} holds something that no HTTP header can, or nothing"),
            "give it on one line, as it was given out, without quotes",
        )
    })?;
    header.set_sensitive(true);
    Ok(header)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    fn header(auth: &Auth) -> String {
        let mut headers = HeaderMap::new();
        let authorization = Authorization::new(auth).unwrap();
        assert!(!format!("{authorization:?}").contains("cGFzcw"), "{authorization:?}");
        let url = reqwest::Url::parse("https://a/").unwrap();
        authorization.apply(&mut headers, "GET", &url, b"").unwrap();
        assert!(headers[AUTHORIZATION].is_sensitive());
        headers[AUTHORIZATION].to_str().unwrap().to_owned()
    }

    #[test]
    fn each_kind_has_its_header() {
        // RFC 7617's example.
        let basic = Auth::Basic { user: "Aladdin".into(), password: "open sesame".into() };
        assert_eq!(header(&basic), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(header(&Auth::ApiKey("a2V5".into())), "ApiKey a2V5");
        assert_eq!(header(&Auth::Bearer("x.y.z".into())), "Bearer x.y.z");
    }

    #[test]
    fn a_secret_that_cannot_be_sent_is_not_shown() {
        for auth in [Auth::ApiKey("hid\nden".into()), Auth::Bearer("hidden\u{e9}".into()), Auth::Bearer("".into())] {
            let error = Authorization::new(&auth).unwrap_err().to_string();
            assert!(error.contains("no HTTP header") && !error.contains("hid"), "{error}");
        }
    }
}

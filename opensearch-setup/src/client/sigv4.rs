//! AWS Signature Version 4, as the AWS General Reference describes it ("Signature Version 4 signing process").
//!
//! The path is encoded a second time, as all services but S3 want it, and `x-amz-content-sha256` is always sent and
//! signed, as Serverless wants it. Checked against AWS's published test suite (see the tests).

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use hmac::{Hmac, KeyInit, Mac};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::auth::value;
use super::config::AwsSigning;
use super::urls::percent_decode;
use crate::error::Result;

/// Adds `x-amz-date`, `x-amz-content-sha256`, `x-amz-security-token` and `authorization`.
///
/// # Errors
/// If a key holds what no header can.
pub(super) fn sign(
    headers: &mut HeaderMap,
    method: &str,
    url: &Url,
    body: &[u8],
    signing: &AwsSigning,
    now: SystemTime,
) -> Result<()> {
    let hash = hex(&Sha256::digest(body));
    let date = timestamp(now);
    let mut signed = vec![
        ("host".to_owned(), host(url)),
        ("x-amz-content-sha256".to_owned(), hash.clone()),
        ("x-amz-date".to_owned(), date.clone()),
    ];
    if let Some(token) = &signing.credentials.session_token {
        signed.push(("x-amz-security-token".to_owned(), token.expose().to_owned()));
        headers.insert(HeaderName::from_static("x-amz-security-token"), value("AWS session token", token.expose())?);
    }
    let authorization = authorization(method, url, &signed, &hash, &date, signing, signing.service.as_str());
    headers.insert(HeaderName::from_static("x-amz-content-sha256"), plain(&hash));
    headers.insert(HeaderName::from_static("x-amz-date"), plain(&date));
    headers.insert(AUTHORIZATION, value("AWS access key", &authorization)?);
    Ok(())
}

fn plain(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits and letters alone")
}

/// The value of `Authorization`. `signed` are the headers, names in lower case and sorted.
fn authorization(
    method: &str,
    url: &Url,
    signed: &[(String, String)],
    body_hash: &str,
    date: &str,
    signing: &AwsSigning,
    service: &str,
) -> String {
    let names = signed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(";");
    let canonical = canonical_request(method, url, signed, &names, body_hash);
    let day = &date[..8];
    let scope = format!("{day}/{}/{service}/aws4_request", signing.region);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = format!("AWS4{}", signing.credentials.secret_access_key.expose()).into_bytes();
    for part in [day, signing.region.as_str(), service, "aws4_request"] {
        key = hmac(&key, part.as_bytes());
    }
    let signature = hex(&hmac(&key, to_sign.as_bytes()));
    let id = &signing.credentials.access_key_id;
    format!("AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn canonical_request(method: &str, url: &Url, signed: &[(String, String)], names: &str, body_hash: &str) -> String {
    let path = url.path().split('/').map(encode).collect::<Vec<_>>().join("/");
    let mut parameters: Vec<(String, String)> = url
        .query()
        .into_iter()
        .flat_map(|q| q.split('&'))
        .filter(|p| !p.is_empty())
        .map(|p| p.split_once('=').unwrap_or((p, "")))
        .map(|(k, v)| (encode(&percent_decode(k)), encode(&percent_decode(v))))
        .collect();
    parameters.sort();
    let query = parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&");
    let mut headers = String::new();
    for (name, value) in signed {
        let _ = writeln!(headers, "{name}:{}", value.split_whitespace().collect::<Vec<_>>().join(" "));
    }
    format!("{method}\n{path}\n{query}\n{headers}\n{names}\n{body_hash}")
}

/// As the connection sends it: without the scheme's own port.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Everything but letters, digits and `-._~` as `%XX`.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(b"0123456789ABCDEF"[usize::from(byte >> 4)]));
            out.push(char::from(b"0123456789ABCDEF"[usize::from(byte & 15)]));
        }
    }
    out
}

fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// `20150830T123600Z`.
fn timestamp(now: SystemTime) -> String {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant's `civil_from_days`: years begin in March, in eras of 400 years.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use std::time::Duration;

    use super::super::config::{AwsCredentials, AwsService};
    use super::*;

    /// The published suite's key, region and time; its service is called `service`.
    fn suite(token: Option<&str>) -> AwsSigning {
        AwsSigning {
            service: AwsService::Es,
            region: "us-east-1".to_owned(),
            credentials: AwsCredentials {
                access_key_id: "AKIDEXAMPLE".to_owned(),
                secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
                session_token: token.map(Into::into),
            },
        }
    }

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const DATE: &str = "20150830T123600Z";

    fn signature(method: &str, path: &str, more: &[(&str, &str)]) -> String {
        let url = Url::parse(&format!("https://example.amazonaws.com{path}")).unwrap();
        let mut signed = vec![("host".to_owned(), host(&url)), ("x-amz-date".to_owned(), DATE.to_owned())];
        signed.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        signed.sort();
        let line = authorization(method, &url, &signed, EMPTY, DATE, &suite(None), "service");
        line.rsplit_once("Signature=").unwrap().1.to_owned()
    }

    /// The names are those of AWS's `aws-signing-test-suite` (v4, `header-signature.txt`).
    #[test]
    fn the_published_signatures() {
        let token = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoI\
                     YRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXD\
                     vp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOL\
                     n9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA==";
        let unreserved = "-._~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let query = format!("/?{unreserved}={unreserved}");
        for (name, method, path, more, expected) in [
            ("get-vanilla", "GET", "/", &[][..], "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            ("post-vanilla", "POST", "/", &[], "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
            (
                "get-vanilla-query-order-key-case",
                "GET",
                "/?Param2=value2&Param1=value1",
                &[],
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
            (
                "get-vanilla-query-unreserved",
                "GET",
                &query,
                &[],
                "9c3e54bfcdf0b19771a7f523ee5669cdf59bc7cc0884027167c21bb143a40197",
            ),
            (
                "get-header-value-trim",
                "GET",
                "/",
                &[("my-header1", " value1"), ("my-header2", " \"a   b   c\"")],
                "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
            ),
            (
                "post-sts-header-before",
                "POST",
                "/",
                &[("x-amz-security-token", token)],
                "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
            ),
        ] {
            assert_eq!(signature(method, path, more), expected, "{name}");
        }
    }

    /// `double-encode-path` of the same suite, whose published part is the canonical request.
    #[test]
    fn the_path_is_encoded_twice() {
        let url =
            Url::parse("https://tj9n5r0m12.execute-api.us-east-1.amazonaws.com/test/@connections/JBDvjfGEIAMCERw%3D");
        let signed = [
            ("host".to_owned(), "tj9n5r0m12.execute-api.us-east-1.amazonaws.com".to_owned()),
            ("x-amz-date".to_owned(), "20210511T154045Z".to_owned()),
        ];
        let found = canonical_request("POST", &url.unwrap(), &signed, "host;x-amz-date", EMPTY);
        let expected = format!(
            "POST\n/test/%40connections/JBDvjfGEIAMCERw%253D\n\nhost:tj9n5r0m12.execute-api.us-east-1.amazonaws.com\n\
             x-amz-date:20210511T154045Z\n\nhost;x-amz-date\n{EMPTY}"
        );
        assert_eq!(found, expected);
    }

    #[test]
    fn a_request_carries_what_was_signed() {
        let url = Url::parse("https://search-x.us-east-1.es.amazonaws.com/a%20b/_doc/1?pretty&refresh=true").unwrap();
        let mut headers = HeaderMap::new();
        let at = UNIX_EPOCH + Duration::from_mins(24_015_636);
        sign(&mut headers, "PUT", &url, b"{}", &suite(Some("hidden")), at).unwrap();
        assert_eq!(headers["x-amz-date"], DATE);
        // sha256 of `{}`.
        assert_eq!(headers["x-amz-content-sha256"], "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a");
        let line = headers[AUTHORIZATION].to_str().unwrap();
        assert!(
            line.starts_with(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/es/aws4_request, \
                 SignedHeaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token, Signature="
            ),
            "{line}"
        );
        assert!(headers[AUTHORIZATION].is_sensitive() && headers["x-amz-security-token"].is_sensitive());
        assert!(!format!("{headers:?}").contains("hidden"));
    }

    #[test]
    fn days_become_dates() {
        let at = |seconds| timestamp(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(951_827_696), "20000229T123456Z");
        assert_eq!(at(4_107_542_400), "21000301T000000Z");
    }
}

//! The HTTP client: certificates, proxy, time limits.

use std::path::Path;

use reqwest::{Certificate, Identity, Proxy, Url, redirect};

use super::answers::innermost;
use super::config::{ClientCertificate, ClusterConfig, remember};
use super::urls;
use crate::error::{Error, Result};

/// The client that all requests to these nodes share.
///
/// # Errors
/// If a certificate, a key or the proxy's address cannot be used.
pub(super) fn http_client(config: &ClusterConfig, nodes: &[Url]) -> Result<reqwest::Client> {
    let tls = nodes.iter().any(|u| u.scheme() == "https");
    let local = nodes.iter().all(urls::is_loopback);
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("nsparse/", env!("CARGO_PKG_VERSION")))
        .timeout(config.timeout)
        .connect_timeout(config.connect_timeout)
        // What authorises must not follow a redirect to somebody else.
        .redirect(redirect::Policy::none())
        // On one machine packing costs more than it saves.
        .gzip(!local);
    if let Some(address) = &config.proxy {
        builder = builder.proxy(proxy(address.expose())?);
    } else if local {
        // A proxy set for the internet must not stand between us and our own machine.
        builder = builder.no_proxy();
    }
    if !tls && (config.ca.is_some() || config.client_certificate.is_some() || config.insecure) {
        let what = if config.ca.is_some() {
            "A certificate authority is"
        } else if config.client_certificate.is_some() {
            "A client certificate is"
        } else {
            "--insecure, which is about certificates, is"
        };
        return Err(Error::usage(
            format!("{what} given, but {} speaks no TLS", urls::shown(&nodes[0])),
            "write https:// in --url, or leave it out",
        ));
    }
    if config.insecure {
        if config.ca.is_some() {
            return Err(Error::usage(
                "--insecure takes any certificate, so a certificate authority would do nothing",
                "give one of the two: --ca-cert FILE is the safe one",
            ));
        }
        builder = builder.tls_danger_accept_invalid_certs(true);
    }
    if let Some(path) = &config.ca {
        builder = builder.tls_certs_merge(authorities(path)?);
    }
    if let Some(own) = &config.client_certificate {
        builder = builder.identity(identity(own)?);
    }
    builder.build().map_err(|e| {
        let why = innermost(&e);
        match &config.client_certificate {
            Some(own) => Error::usage(
                format!("The client certificate `{}` cannot be used: {why}", own.certificate.display()),
                "check that certificate and key belong together: `openssl x509 -in CERT -pubkey -noout` and \
                 `openssl pkey -in KEY -pubout` print the same",
            ),
            None => Error::world(format!("No HTTP client can be made: {why}"), "check the certificates installed"),
        }
    })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(std::fs::read(path).map_err(|e| nsparse_core::Error::io("read", path, e))?)
}

fn authorities(path: &Path) -> Result<Vec<Certificate>> {
    let wrong = |why: String| {
        Error::usage(
            format!("The certificate file `{}` cannot be used: {why}", path.display()),
            "give a PEM file that begins with -----BEGIN CERTIFICATE-----",
        )
    };
    let found = Certificate::from_pem_bundle(&read(path)?).map_err(|e| wrong(innermost(&e)))?;
    if found.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(found) }
}

fn identity(own: &ClientCertificate) -> Result<Identity> {
    let (certificate, key) = (read(&own.certificate)?, read(&own.key)?);
    let has = |bytes: &[u8], mark: &[u8]| bytes.windows(mark.len()).any(|w| w == mark);
    if !has(&certificate, b"-----BEGIN CERTIFICATE-----") {
        return Err(Error::usage(
            format!("The client certificate `{}` cannot be used: it is no PEM file", own.certificate.display()),
            "give a PEM file that begins with -----BEGIN CERTIFICATE-----",
        ));
    }
    if has(&key, b"ENCRYPTED") {
        return Err(Error::usage(
            format!("The key `{}` is encrypted, and nsparse asks for no passphrase", own.key.display()),
            "decrypt it into a file that you alone may read: `umask 077; openssl pkey -in KEY -out PLAIN`",
        ));
    }
    if !has(&key, b"PRIVATE KEY-----") {
        return Err(Error::usage(
            format!("The key `{}` cannot be used: it is no PEM file with a private key", own.key.display()),
            "give a PEM file that begins with -----BEGIN PRIVATE KEY-----",
        ));
    }
    // A certificate file may hold its key too; only the key file's counts.
    let mut pem = certificates_alone(&certificate);
    pem.push(b'\n');
    pem.extend_from_slice(&key);
    // The parser's message may name what it met: none of the key is repeated.
    Identity::from_pem(&pem).map_err(|_| {
        Error::usage(
            format!(
                "Client certificate `{}` and key `{}` cannot be read",
                own.certificate.display(),
                own.key.display()
            ),
            "give two PEM files, the key not encrypted (PKCS #8, PKCS #1 or SEC 1)",
        )
    })
}

/// The certificate sections of a PEM file.
fn certificates_alone(pem: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(pem);
    let mut kept = String::new();
    let mut inside = false;
    for line in text.lines() {
        inside |= line.starts_with("-----BEGIN CERTIFICATE-----");
        if inside {
            kept.push_str(line);
            kept.push('\n');
        }
        inside &= !line.starts_with("-----END CERTIFICATE-----");
    }
    kept.into_bytes()
}

fn proxy(address: &str) -> Result<Proxy> {
    // It may hold a password: an unreadable one is not repeated.
    let wrong = |why: String| {
        Error::usage(format!("The proxy's address cannot be used: {why}"), "write it like http://proxy.example:3128")
    };
    let url = Url::parse(address.trim()).map_err(|e| wrong(e.to_string()))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
        return Err(wrong(format!("its scheme is `{}`, not http or https", url.scheme())));
    }
    url.password().into_iter().for_each(remember);
    Proxy::all(url).map_err(|e| wrong(innermost(&e)))
}

//! Answers and failures read: bodies, OpenSearch's nested errors, what a broken connection means.

use serde_json::Value;

use crate::error::Unreachable;

/// The body as JSON, else as text.
pub(super) fn parse(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

/// Type and reason of the innermost cause. ML Commons and proxies answer in other shapes than the core does;
/// what is no OpenSearch error gives its first characters as the reason.
pub(crate) fn unwrap_reason(body: &Value) -> (String, String) {
    fn text(value: &Value, key: &str) -> String {
        value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
    }
    let error = match body {
        Value::Null => return (String::new(), String::new()),
        Value::String(text) => return (String::new(), shorten(text)),
        other => other.get("error").unwrap_or(other),
    };
    if let Value::String(text) = error {
        return (String::new(), shorten(text));
    }
    // `all shards failed` says nothing; its root cause does. A cause below that is more precise still.
    let mut at = error.pointer("/root_cause/0").unwrap_or(error);
    let (mut kind, mut reason) = (text(at, "type"), text(at, "reason"));
    if reason.is_empty() {
        at = error;
        (kind, reason) = (text(at, "type"), text(at, "reason"));
    }
    let mut cause = at.get("caused_by").or_else(|| error.get("caused_by"));
    while let Some(inner) = cause {
        let below = text(inner, "reason");
        if !below.is_empty() && !reason.contains(&below) {
            reason = if reason.is_empty() { below } else { format!("{reason}: {below}") };
        }
        cause = inner.get("caused_by");
    }
    if kind.is_empty() && reason.is_empty() {
        reason = shorten(&body.to_string());
    }
    (kind, reason)
}

/// At most 300 characters, on one line.
fn shorten(text: &str) -> String {
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match flat.char_indices().nth(300) {
        Some((end, _)) => format!("{}…", &flat[..end]),
        None => flat,
    }
}

/// The message at the end of an error's chain of causes.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// Sorts a network error by what it means to the user.
pub(super) fn why(error: &reqwest::Error) -> Unreachable {
    if error.is_timeout() {
        return Unreachable::Timeout;
    }
    let mut at: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut messages = String::new();
    while let Some(e) = at {
        if let Some(io) = e.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind as Kind;
            match io.kind() {
                Kind::ConnectionRefused => return Unreachable::Refused,
                Kind::TimedOut => return Unreachable::Timeout,
                Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe => return Unreachable::Reset,
                _ => {}
            }
        }
        messages.push_str(&e.to_string().to_lowercase());
        messages.push('\n');
        at = e.source();
    }
    let has = |words: &[&str]| words.iter().any(|w| messages.contains(w));
    if has(&["dns error", "failed to lookup address"]) {
        Unreachable::Dns
    } else if has(&["certificate", "tls", "invalidcontenttype", "corrupt message", "invalid http version"]) {
        Unreachable::Tls
    } else if has(&["connection closed", "incomplete message", "unexpected eof", "connection reset"]) {
        Unreachable::Reset
    } else {
        Unreachable::Other
    }
}

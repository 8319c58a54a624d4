//! A way to engines older than testcontainers' client, which asks for the newest API and does not negotiate: Debian's
//! engine answers "client version 1.53 is too new". Requests go through a socket of ours, which asks for the engine's own
//! version in their place.

use std::io::{Error, Read, Result, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::thread;

use testcontainers::bollard::API_DEFAULT_VERSION;

/// Where engines listen.
const SOCKET: &str = "/var/run/docker.sock";

/// Opens a bridge and points `DOCKER_HOST` at it, where the engine is older than the client; gives the folder of its
/// socket. An engine behind another kind of address than a socket is asked directly.
///
/// # Errors
/// If the engine does not answer, or the socket cannot be made.
pub(super) fn open() -> Result<Option<tempfile::TempDir>> {
    let engine = match std::env::var("DOCKER_HOST") {
        Err(_) => SOCKET.to_owned(),
        Ok(host) => match host.strip_prefix("unix://") {
            Some(path) => path.to_owned(),
            None => return Ok(None),
        },
    };
    let (asked, spoken) = (API_DEFAULT_VERSION.to_string(), engine_version()?);
    if number(&spoken) >= number(&asked) {
        return Ok(None);
    }
    let folder = tempfile::Builder::new().prefix("nsparse-docker-").tempdir()?;
    let path = folder.path().join("engine.sock");
    let listener = UnixListener::bind(&path)?;
    let (from, to) = (format!("/v{asked}/"), format!("/v{spoken}/"));
    thread::Builder::new().name("bridge".to_owned()).spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = UnixStream::connect(&engine) else { continue };
            // A connection that fails is seen by the client, which reports it.
            let _ = join(client, server, from.clone(), to.clone());
        }
    })?;
    // SAFETY: the standard library's readers of the environment hold its lock, and the C library's are not called yet:
    // all tests of a binary wait in `shared` for this.
    #[allow(unsafe_code, reason = "testcontainers takes the engine's address from the environment alone")]
    unsafe {
        std::env::set_var("DOCKER_HOST", format!("unix://{}", path.display()));
    }
    Ok(Some(folder))
}

/// The newest API version that the engine speaks: `1.41`.
fn engine_version() -> Result<String> {
    let output = Command::new("docker").args(["version", "--format", "{{.Server.APIVersion}}"]).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    Err(Error::other(format!("no container engine answers: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

fn number(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Two threads that carry bytes, one each way, until both ends are done.
fn join(client: UnixStream, server: UnixStream, from: String, to: String) -> Result<()> {
    let (client_in, server_out) = (client.try_clone()?, server.try_clone()?);
    thread::Builder::new().spawn(move || carry(client_in, server_out, |chunk| rewrite(chunk, &from, &to)))?;
    thread::Builder::new().spawn(move || carry(server, client, <[u8]>::to_vec))?;
    Ok(())
}

fn carry(mut from: UnixStream, mut to: UnixStream, change: impl Fn(&[u8]) -> Vec<u8>) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&change(&buffer[..count])).is_err() {
            break;
        }
    }
    // Gone already is as good.
    let _ = to.shutdown(Shutdown::Write);
}

/// Puts the version in a request's first line. A request begins where a read begins, because the client waits for each
/// answer, and its head comes in one piece, because the client writes it in one.
fn rewrite(chunk: &[u8], from: &str, to: &str) -> Vec<u8> {
    let method = chunk.iter().take_while(|b| b.is_ascii_uppercase()).count();
    let path = &chunk[method..];
    match path.strip_prefix(b" ").and_then(|p| p.strip_prefix(from.as_bytes())) {
        Some(rest) if method > 0 => [&chunk[..method], b" ", to.as_bytes(), rest].concat(),
        _ => chunk.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_requests_first_line_is_changed() {
        let changed =
            |text: &str| String::from_utf8_lossy(&rewrite(text.as_bytes(), "/v1.53/", "/v1.41/")).into_owned();
        assert_eq!(changed("GET /v1.53/info HTTP/1.1\r\n\r\n"), "GET /v1.41/info HTTP/1.1\r\n\r\n");
        for same in ["GET /version HTTP/1.1\r\n\r\n", "{\"Image\": \"a /v1.53/\"}", " /v1.53/x"] {
            assert_eq!(changed(same), same);
        }
    }

    #[test]
    fn versions_are_numbers() {
        assert!(number("1.9") < number("1.41"));
        assert_eq!(number("1.53"), Some((1, 53)));
        assert_eq!(number("unknown"), None);
    }
}

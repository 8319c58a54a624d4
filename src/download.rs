//! Downloads into files: what is there of an earlier try is gone on with.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};
use nsparse_core::{Cancel, Error, Progress as _, files};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};

use crate::failure::world;
use crate::printer::Printer;

/// Seconds until a server that does not answer is given up.
const CONNECT: u64 = 20;
/// Seconds without a byte until a download is given up.
const STALLED: u64 = 120;

/// Fetches a URL into a file. The bytes lie in `FILE.part` until all are there; a later call asks for the rest only.
/// `hint` is what to do without a network.
pub(crate) fn to_file(url: &str, file: &Path, hint: &str, cancel: &Cancel, printer: &Printer) -> anyhow::Result<()> {
    let failed = |reason: String| world(format!("Could not fetch `{url}`: {reason}"), hint.to_owned());
    let part = part_of(file);
    let there = std::fs::metadata(&part).map_or(0, |m| m.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let seconds = std::time::Duration::from_secs;
        let client =
            reqwest::Client::builder().connect_timeout(seconds(CONNECT)).read_timeout(seconds(STALLED)).build()?;
        let mut request = client.get(url);
        if there > 0 {
            request = request.header(RANGE, format!("bytes={there}-"));
        }
        let mut response = request.send().await.map_err(|e| failed(root_cause(&e)))?;
        if response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            // What is there is no beginning of what the server has.
            response = client.get(url).send().await.map_err(|e| failed(root_cause(&e)))?;
        }
        if !response.status().is_success() {
            return Err(failed(format!("the server answered {}", response.status())));
        }
        let goes_on = response.status() == StatusCode::PARTIAL_CONTENT
            && response
                .headers()
                .get(CONTENT_RANGE)
                .and_then(|v| v.to_str().ok())
                .is_some_and(|range| range.starts_with(&format!("bytes {there}-")));
        let from = if goes_on { there } else { 0 };
        let task = printer.progress().start("Fetching (bytes)", response.content_length().map_or(0, |n| n + from));
        task.advance(from);
        let mut out = OpenOptions::new()
            .create(true)
            .write(true)
            .append(goes_on)
            .truncate(!goes_on)
            .open(&part)
            .map_err(|e| Error::io("write", &part, e))?;
        while let Some(chunk) = response.chunk().await.map_err(|e| failed(root_cause(&e)))? {
            out.write_all(&chunk).map_err(|e| Error::io("write", &part, e))?;
            task.advance(chunk.len() as u64);
            cancel.check()?;
        }
        out.sync_all().map_err(|e| Error::io("write", &part, e))?;
        std::fs::rename(&part, file).map_err(|e| Error::io("write", file, e))?;
        Ok(())
    })
}

/// Where the bytes lie until all are there.
fn part_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// The md5 of a file, in lower-case hex.
pub(crate) fn md5_of(file: &Path) -> anyhow::Result<String> {
    let mut input = std::fs::File::open(file).map_err(|e| Error::io("read", file, e))?;
    let mut hash = Md5::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = input.read(&mut buffer).map_err(|e| Error::io("read", file, e))?;
        if n == 0 {
            return Ok(files::hex(&hash.finalize()));
        }
        hash.update(&buffer[..n]);
    }
}

/// The innermost cause says what happened: "Connection refused", "failed to lookup address".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

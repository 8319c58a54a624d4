//! The assembled node as a process: its configuration, its start as an unprivileged daemon, its end.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nsparse_core::Error as CoreError;

use super::java::Java;
use super::places::{self, make_folder};
use crate::error::{Error, Result};

/// What a node is started with.
pub(crate) struct Launch<'a> {
    /// The assembled server.
    pub(crate) home: &'a Path,
    /// The node's own folder.
    pub(crate) folder: &'a Path,
    pub(crate) java: &'a Java,
    pub(crate) version: &'a str,
    pub(crate) port: u16,
    /// As the JVM takes it: `1g`, `512m`.
    pub(crate) heap: &'a str,
}

/// Where the node's console output goes.
pub(crate) fn log_path(folder: &Path) -> PathBuf {
    folder.join("console.log")
}

/// Writes the node's folder and starts it. It belongs to no terminal and outlives us.
///
/// # Errors
/// If its folder cannot be written, its user may not read the server or Java, or it cannot be started.
pub(crate) fn start(launch: &Launch) -> Result<Child> {
    let owner = places::node_uid();
    if let Some(uid) = owner {
        for path in [launch.home, &launch.java.home, launch.folder] {
            if let Some(blocked) = places::blocked_at(path, uid) {
                return Err(Error::usage(
                    format!("The node runs as an unprivileged user, who may not enter `{}`", blocked.display()),
                    "start as an ordinary user, or use a Java and a cache folder that others may read",
                ));
            }
        }
    }
    configure(launch, owner)?;
    let log = log_path(launch.folder);
    let out = File::create(&log).map_err(|e| CoreError::io("write", &log, e))?;
    let copy = out.try_clone().map_err(|e| CoreError::io("write", &log, e))?;
    let mut command = Command::new("bash");
    command
        .arg(launch.home.join("bin/opensearch"))
        .current_dir(launch.folder)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(copy)
        .env("OPENSEARCH_JAVA_HOME", &launch.java.home)
        .env("OPENSEARCH_PATH_CONF", launch.folder.join("config"))
        .env("OPENSEARCH_TMPDIR", launch.folder.join("tmp"))
        .env("HOME", launch.folder);
    for name in ["JAVA_HOME", "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "OPENSEARCH_HOME", "OPENSEARCH_JAVA_OPTS"] {
        command.env_remove(name);
    }
    if let Some(uid) = owner {
        // The standard library also drops the supplementary groups when root sets a user.
        command.uid(uid).gid(uid);
    }
    detach(&mut command);
    command.spawn().map_err(|e| {
        Error::world(
            format!("OpenSearch could not be started: {e}"),
            "it needs bash, and root the right to change users",
        )
    })
}

/// A session of its own: closing the terminal or Ctrl-C there does not end the node.
#[allow(unsafe_code, reason = "the standard library has no stable way to call setsid")]
fn detach(command: &mut Command) {
    // SAFETY: setsid is async-signal-safe, and the closure allocates nothing between fork and exec.
    unsafe {
        command.pre_exec(|| if libc::setsid() == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
}

/// Folders and files of a node; the folders that it writes to belong to its user.
fn configure(launch: &Launch, owner: Option<u32>) -> Result<()> {
    let folder = launch.folder;
    let shown = folder.display().to_string();
    if shown.chars().any(|c| c.is_whitespace() || matches!(c, '"' | '\\')) {
        return Err(Error::usage(
            format!("OpenSearch cannot work in `{shown}`: its path has a blank or a quote"),
            "choose another cache folder with XDG_CACHE_HOME",
        ));
    }
    let data = folder.join(format!("data-{}", launch.version));
    let config = folder.join("config");
    // The folder itself stays ours, so that the node's user can put nothing in the place of what we write to.
    make_folder(folder, None)?;
    for path in [&config, &data, &folder.join("logs"), &folder.join("tmp")] {
        make_folder(path, owner)?;
    }
    let settings = format!(
        "# Written by `nsparse cluster up` at every start.\n\
         cluster.name: nsparse-{port}\nnode.name: nsparse-{port}\ndiscovery.type: single-node\n\
         network.host: 127.0.0.1\nhttp.port: {port}\npath.data: \"{data}\"\npath.logs: \"{shown}/logs\"\n\
         # A development node goes on writing on a disk that is nearly full.\n\
         cluster.routing.allocation.disk.threshold_enabled: false\n",
        port = launch.port,
        data = data.display(),
    );
    nsparse_core::files::write_bytes(&config.join("opensearch.yml"), settings.as_bytes())?;
    for name in ["jvm.options", "log4j2.properties"] {
        let source = launch.home.join("config").join(name);
        let text = nsparse_core::files::read_text(&source)?;
        let text = if name == "jvm.options" { jvm_options(&text, launch.heap, &shown) } else { text };
        nsparse_core::files::write_bytes(&config.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// The distribution's options with this heap, and with the node's folder in place of the server's.
fn jvm_options(text: &str, heap: &str, folder: &str) -> String {
    text.lines()
        .map(|line| match line.trim() {
            l if l.starts_with("-Xms") => format!("-Xms{heap}\n"),
            l if l.starts_with("-Xmx") => format!("-Xmx{heap}\n"),
            _ => {
                let line = line.replace("HeapDumpPath=data", &format!("HeapDumpPath={folder}/tmp"));
                line.replace("=logs/", &format!("={folder}/logs/")) + "\n"
            }
        })
        .collect()
}

/// Checks a heap size: a number and `m` or `g`.
///
/// # Errors
/// If it is something else.
pub(crate) fn check_heap(heap: &str) -> Result<()> {
    let number = heap.strip_suffix(['m', 'g', 'M', 'G']);
    if number.and_then(|n| n.parse::<u32>().ok()).is_some_and(|n| n > 0) {
        return Ok(());
    }
    Err(Error::usage(format!("`{heap}` is no heap size"), "write it like 1g or 512m"))
}

/// What tells a process from a later one with the same number: the machine's boot and its start in ticks.
/// `None` if there is no such process, or only its remains.
pub(crate) fn identity(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; state is the first field after it, the start time the 20th.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Some(format!("{}:{}", boot.trim(), fields.get(19)?))
}

/// Ends a process if it still is the one that was started: asks it to, waits, then forces it.
///
/// # Errors
/// If it cannot be signalled, or lives on.
pub(crate) fn stop(pid: u32, started: &str, patience: Duration) -> Result<()> {
    let alive = || identity(pid).is_some_and(|now| now == started);
    for (signal, limit) in [(libc::SIGTERM, patience), (libc::SIGKILL, Duration::from_secs(10))] {
        if !alive() {
            return Ok(());
        }
        send(pid, signal).map_err(|e| {
            Error::world(format!("Process {pid} cannot be ended: {e}"), "stop it as the user that started it")
        })?;
        let deadline = Instant::now() + limit;
        while alive() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    if alive() {
        return Err(Error::world(
            format!("Process {pid} does not end"),
            "see its log; the machine may be stuck on I/O",
        ));
    }
    Ok(())
}

#[allow(unsafe_code, reason = "libc has no safe form")]
fn send(pid: u32, signal: libc::c_int) -> std::io::Result<()> {
    // SAFETY: kill takes two integers and touches no memory of ours. The number is positive, so it means one
    // process, and the caller has checked that it is still the one we started.
    let done = unsafe { libc::kill(pid as libc::pid_t, signal) };
    let error = std::io::Error::last_os_error();
    // Gone in the meantime is what was wanted.
    if done == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// The last lines of a log that say something, for an error message.
pub(crate) fn last_lines(path: &Path, count: usize) -> String {
    let text = String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with("at ")).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn options_get_heap_and_folder() {
        let given = "# c\n-Xms1g\n-Xmx1g\n-XX:HeapDumpPath=data\n9-:-Xlog:gc*:file=logs/gc.log:utctime\n\
                     -Djava.io.tmpdir=${OPENSEARCH_TMPDIR}\n";
        let expected = "# c\n-Xms512m\n-Xmx512m\n-XX:HeapDumpPath=/n/tmp\n9-:-Xlog:gc*:file=/n/logs/gc.log:utctime\n\
                        -Djava.io.tmpdir=${OPENSEARCH_TMPDIR}\n";
        assert_eq!(jvm_options(given, "512m", "/n"), expected);
    }

    #[test]
    fn heaps_are_a_number_and_a_unit() {
        assert!(check_heap("1g").is_ok() && check_heap("768m").is_ok());
        for wrong in ["", "1", "g", "0g", "-1g", "1gb", "1g -XX:Evil"] {
            assert!(check_heap(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_process_that_was_started_is_ended() {
        let mut child = Command::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let started = identity(pid).unwrap();
        // Another identity: the number was given to somebody else since. Nothing may happen to it.
        stop(pid, "another-boot:1", Duration::from_secs(5)).unwrap();
        assert_eq!(identity(pid).as_ref(), Some(&started));
        stop(pid, &started, Duration::from_secs(5)).unwrap();
        assert_eq!(identity(pid), None);
        assert!(!child.wait().unwrap().success());
        stop(pid, &started, Duration::from_secs(5)).unwrap();
    }
}

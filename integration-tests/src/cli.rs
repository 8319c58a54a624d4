//! The program as a user runs it: a process of its own, in a folder of its own, with none of the surroundings'
//! settings; and small servers for it to meet.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;
use tempfile::TempDir;

/// Settings of the program that the surroundings may hold.
const SETTINGS: [&str; 30] = [
    "ALL_PROXY",
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_SECRET_ACCESS_KEY",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NSPARSE_API_KEY",
    "NSPARSE_API_KEY_FILE",
    "NSPARSE_AWS",
    "NSPARSE_BEARER_TOKEN",
    "NSPARSE_BEARER_TOKEN_FILE",
    "NSPARSE_BEIR_URL",
    "NSPARSE_CACHE",
    "NSPARSE_CA_CERT",
    "NSPARSE_CLIENT_CERT",
    "NSPARSE_CLIENT_KEY",
    "NSPARSE_DATA",
    "NSPARSE_LOG",
    "NSPARSE_OPENSEARCH_IMAGE",
    "NSPARSE_PASSWORD",
    "NSPARSE_PASSWORD_FILE",
    "NSPARSE_PROFILE",
    "NSPARSE_PROFILES",
    "NSPARSE_PROXY",
    "NSPARSE_URL",
    "NSPARSE_USER",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "https_proxy",
];

/// The program and the folder it runs in, which is removed at the end.
#[derive(Debug)]
pub struct Nsparse {
    program: PathBuf,
    folder: TempDir,
    env: BTreeMap<String, String>,
}

/// What a run of the program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Nsparse {
    /// The program at `path` (`env!("CARGO_BIN_EXE_nsparse")`) in a new folder.
    ///
    /// # Panics
    /// If no folder can be made.
    pub fn new(path: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the test");
        Self { program: PathBuf::from(path), folder, env: BTreeMap::new() }
    }

    /// The folder, or a path below it. The program runs in it, so relative paths reach the same files.
    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    /// Sets an environment variable for all runs that follow.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    /// Writes a file below the folder.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn write(&self, below: &str, text: &str) {
        nsparse_core::files::write_bytes(&self.path(below), text.as_bytes()).expect("the folder takes files");
    }

    /// Reads a file below the folder.
    ///
    /// # Panics
    /// If it is not there.
    #[expect(clippy::panic, reason = "test support: the message is the point")]
    pub fn read(&self, below: &str) -> Vec<u8> {
        std::fs::read(self.path(below)).unwrap_or_else(|e| panic!("{below}: {e}"))
    }

    /// Copies a folder with all that is in it below the folder.
    ///
    /// # Panics
    /// If something cannot be copied.
    pub fn copy(&self, from: &Path, below: &str) {
        copy_folder(from, &self.path(below)).expect("the folder takes files");
    }

    /// A command that is ready to run, in the folder and with the clean environment.
    pub fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        self.prepared(Command::new(&self.program), arguments)
    }

    /// As [`Nsparse::command`], run by a shell: `script` finds the program and its arguments in `"$@"`.
    pub fn through_shell(&self, script: &str, arguments: &[&str]) -> Command {
        let mut shell = Command::new("sh");
        shell.args(["-c", script, "sh"]).arg(&self.program);
        self.prepared(shell, arguments)
    }

    fn prepared<I, S>(&self, mut command: Command, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        for name in SETTINGS {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("HOME", self.folder.path())
            .env("NSPARSE_CACHE", self.path("cache"))
            // A proxy for the internet must not answer for this machine's own servers.
            .env("NO_PROXY", "127.0.0.1")
            .envs(&self.env)
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end. Arguments are split at spaces.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(&self, arguments: &str) -> Outcome {
        finish(self.command(arguments.split_whitespace()))
    }

    /// As [`Nsparse::run`]; it has to end with exit code 0.
    ///
    /// # Panics
    /// If it fails, with what it said.
    pub fn ok(&self, arguments: &str) -> Outcome {
        let outcome = self.run(arguments);
        assert_eq!(outcome.code, Some(0), "nsparse {arguments}\n{}\n{}", outcome.stdout, outcome.stderr);
        outcome
    }

    /// As [`Nsparse::ok`] with `--json`: the object that was printed.
    ///
    /// # Panics
    /// If it fails, or prints anything but one object.
    pub fn json(&self, arguments: &str) -> Value {
        self.ok(&format!("{arguments} --json")).json()
    }

    /// Starts the program; its output goes nowhere.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(&self, arguments: &str) -> Child {
        let mut command = self.command(arguments.split_whitespace());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the program starts")
    }

    /// Exit code, standard error and standard output as a snapshot holds them, this machine's paths replaced.
    pub fn shown(&self, outcome: &Outcome) -> String {
        let code = outcome.code.map_or_else(|| "a signal".to_owned(), |c| c.to_string());
        let mut text = format!("exit code {code}\n--- stderr\n{}", outcome.stderr);
        if !outcome.stdout.is_empty() {
            let _ = write!(text, "--- stdout\n{}", outcome.stdout);
        }
        text.replace(&self.folder.path().display().to_string(), "[FOLDER]")
    }
}

impl Outcome {
    /// Standard output as one JSON object.
    ///
    /// # Panics
    /// If it is anything else.
    #[expect(clippy::panic, reason = "test support: the message is the point")]
    pub fn json(&self) -> Value {
        let value: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout));
        assert!(value.is_object(), "{value}");
        value
    }
}

/// Runs a command to its end.
///
/// # Panics
/// If it cannot be started.
pub fn finish(mut command: Command) -> Outcome {
    let output = command.output().expect("the program starts");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Asks every few milliseconds until it is so.
///
/// # Panics
/// If it is not so within a minute, or the process has ended before.
pub fn wait_until(child: &mut Child, what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !so() {
        let ended = child.try_wait().expect("a child can be asked");
        assert!(ended.is_none(), "it ended ({ended:?}) before {what}");
        assert!(Instant::now() < deadline, "waited a minute in vain for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Sends a signal (`TERM`, `KILL`) to a child of this process.
///
/// # Panics
/// If it cannot be sent.
pub fn signal(child: &Child, name: &str) {
    let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status();
    assert!(sent.expect("a shell starts").success(), "kill -{name}");
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            // Contents alone: what is copied may be read-only.
            std::fs::write(target, std::fs::read(entry.path())?)?;
        }
    }
    Ok(())
}

/// What a [`SmallServer`] answers: a status and a body.
pub type Answer = (u16, Vec<u8>);

/// A server on the loopback interface with one answer a path; ends when dropped.
#[derive(Debug)]
pub struct SmallServer {
    /// Its address.
    pub url: String,
    requests: Arc<AtomicUsize>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl SmallServer {
    /// Answers every request with what `answer` makes of its path. A 401 asks for a password as OpenSearch's
    /// security plugin does.
    ///
    /// # Panics
    /// If no port is free.
    pub fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port on the loopback interface");
        listener.set_nonblocking(true).expect("a socket can be made non-blocking");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let answer = Arc::new(answer);
        let respond = move |request: Request| {
            counter.fetch_add(1, Ordering::SeqCst);
            let (status, body) = answer(request.uri().path());
            let mut response = Response::new(axum::body::Body::from(body));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status that HTTP knows");
            if status == 401 {
                let realm = HeaderValue::from_static("Basic realm=\"OpenSearch Security\"");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
            }
            std::future::ready(response)
        };
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .expect("a runtime for the server");
            runtime.spawn(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("the runtime takes the socket");
                axum::serve(listener, Router::new().fallback(respond)).await
            });
            // Until the sender is gone: then the runtime is dropped, and the socket with it.
            let _ = stopped.recv();
        });
        Self { url, requests, stop: Some(stop), thread: Some(thread) }
    }

    /// Requests that came so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

impl Drop for SmallServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked where there was no runtime; the test has failed by then.
            let _ = thread.join();
        }
    }
}

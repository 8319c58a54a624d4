//! Secrets that a test has planted, and every place where one could show itself.

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

use crate::cli::{Nsparse, Outcome};

/// Planted secrets in all forms that they may take.
#[derive(Debug)]
pub struct Planted {
    forms: Vec<String>,
}

/// A run of the program that was looked at all the while.
#[derive(Debug)]
pub struct Watched {
    /// How it ended.
    pub outcome: Outcome,
    /// How often it was seen in the process list.
    pub seen: usize,
    /// Lines of its log below `INFO`.
    pub loud: usize,
}

impl Planted {
    /// These, as they are and as they stand in an address, and their words.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a str>) -> Self {
        let mut forms = Vec::new();
        for secret in secrets {
            forms.push(secret.to_owned());
            forms.push(secret.replace(' ', "%20").replace('/', "%2F"));
            forms.extend(secret.split(' ').filter(|part| part.len() > 6).map(str::to_owned));
        }
        Self { forms }
    }

    /// Another form of one of them: a part of a header, a line of a key.
    #[must_use]
    pub fn also(mut self, form: &str) -> Self {
        self.forms.push(form.to_owned());
        self
    }

    /// Sets the program's log as loud as can be, backtraces included.
    pub fn make_loud(nsparse: &mut Nsparse) {
        nsparse.set("NSPARSE_LOG", "trace");
        nsparse.set("RUST_BACKTRACE", "full");
    }

    /// As [`Nsparse::run`], while the process list is looked at; what it says has none of the secrets.
    ///
    /// # Panics
    /// If one is seen.
    pub fn run(&self, nsparse: &Nsparse, arguments: &str) -> Watched {
        self.run_while(nsparse, arguments, |_| {})
    }

    /// As [`Planted::run`]; every few milliseconds `meanwhile` may do something, to the program too.
    ///
    /// # Panics
    /// If a secret is seen.
    pub fn run_while(&self, nsparse: &Nsparse, arguments: &str, mut meanwhile: impl FnMut(&mut Child)) -> Watched {
        let file = |name: &str| File::create(nsparse.path(name)).expect("the folder takes files");
        let mut command = nsparse.command(arguments.split_whitespace());
        let mut child = command.stdout(file("stdout")).stderr(file("stderr")).spawn().expect("the program starts");
        let line = format!("/proc/{}/cmdline", child.id());
        let mut seen = 0;
        while child.try_wait().expect("a child can be asked").is_none() {
            let shown = String::from_utf8_lossy(&std::fs::read(&line).unwrap_or_default()).into_owned();
            seen += usize::from(shown.contains("nsparse"));
            self.check(&shown, &format!("`{arguments}` in the process list"));
            meanwhile(&mut child);
            std::thread::park_timeout(Duration::from_millis(2));
        }
        let code = child.wait().expect("a child can be waited for").code();
        let text = |name: &str| String::from_utf8_lossy(&nsparse.read(name)).into_owned();
        let outcome = Outcome { code, stdout: text("stdout"), stderr: text("stderr") };
        self.check(&outcome.stdout, &format!("standard output of `{arguments}`"));
        self.check(&outcome.stderr, &format!("standard error of `{arguments}`"));
        let loud = outcome.stderr.lines().filter(|l| l.contains("TRACE") || l.contains("DEBUG")).count();
        Watched { outcome, seen, loud }
    }

    /// No file below a folder holds one, but for those that they were planted in.
    ///
    /// # Panics
    /// If one does.
    pub fn check_files(&self, folder: &Path, planted_in: &[&Path]) {
        for entry in std::fs::read_dir(folder).expect("the folder is there") {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                self.check_files(&path, planted_in);
            } else if !planted_in.contains(&path.as_path()) {
                let bytes = std::fs::read(&path).expect("the file can be read");
                let has = |form: &String| bytes.windows(form.len()).any(|w| w == form.as_bytes());
                assert!(!self.forms.iter().any(has), "{} holds a secret", path.display());
            }
        }
    }

    fn check(&self, text: &str, place: &str) {
        assert!(!self.forms.iter().any(|form| text.contains(form)), "a secret stands in {place}");
    }
}

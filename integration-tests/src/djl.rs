//! Runs an exported archive in DJL, fed as ML Commons feeds it.
//!
//! The Java harness of `integration-tests/djl` is built once a test run with the user's `mvn`, so that mirror
//! settings hold; after that nothing needs a network.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use nsparse_core::{SparseVector, TokenId};

/// A DJL version with the libtorch that OpenSearch runs it with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Djl {
    /// DJL 0.28.0 (OpenSearch 2.16) with libtorch 2.2.2.
    V0_28,
    /// DJL 0.21.0 (OpenSearch 2.11 to 2.14) with libtorch 1.13.1, which 2.16 runs too.
    V0_21,
}

impl Djl {
    /// The version's number.
    pub fn version(self) -> &'static str {
        match self {
            Self::V0_28 => "0.28.0",
            Self::V0_21 => "0.21.0",
        }
    }

    /// Maven arguments that choose it.
    fn profile(self) -> &'static [&'static str] {
        match self {
            Self::V0_28 => &[],
            Self::V0_21 => &["-P", "djl-0.21"],
        }
    }

    /// The folder with classes and jars, built on first use.
    fn folder(self) -> Result<&'static Path, String> {
        static NEW: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        static OLD: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let cell = match self {
            Self::V0_28 => &NEW,
            Self::V0_21 => &OLD,
        };
        cell.get_or_init(|| self.build()).as_deref().map_err(Clone::clone)
    }

    fn build(self) -> Result<PathBuf, String> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("djl");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/djl").join(self.version());
        std::fs::create_dir_all(&folder).map_err(|e| format!("cannot make {}: {e}", folder.display()))?;
        let folder = folder.canonicalize().map_err(|e| format!("cannot find {}: {e}", folder.display()))?;
        // One build at a time: tests of several processes share the folder.
        let _lock = lock(&folder)?;
        let output = Command::new("mvn")
            .args(["-q", "-B", "-f"])
            .arg(project.join("pom.xml"))
            .args(self.profile())
            .arg(format!("-Dharness.directory={}", folder.display()))
            .args(["package", "dependency:copy-dependencies"])
            .output();
        check("mvn", "Maven (Debian: maven)", output)?;
        Ok(folder)
    }
}

/// The folder to oneself, among all processes, until the file is dropped.
fn lock(folder: &Path) -> Result<std::fs::File, String> {
    let file = std::fs::File::create(folder.join("lock")).map_err(|e| format!("cannot lock: {e}"))?;
    file.lock().map_err(|e| format!("cannot lock: {e}"))?;
    Ok(file)
}

/// What a program that must succeed said; an error names the program, or what is missing.
fn check(program: &str, package: &str, output: std::io::Result<Output>) -> Result<Output, String> {
    let output = output.map_err(|e| format!("`{program}` cannot be started ({e}): this test needs {package}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("`{program}` failed ({}):\n{}{}", output.status, text(&output.stdout), text(&output.stderr)))
}

/// The vectors that DJL computes with an archive for texts given as token ids (special tokens included).
/// `batch` texts go in at once, padded with id 0; 1 is what ML Commons does. Entries keep whatever is not
/// exactly 0, negative ones too, in ascending order of ids.
///
/// # Errors
/// If Java or Maven is missing, or the engine refuses the archive; the message has what it said.
pub fn djl_outputs(
    djl: Djl,
    archive: &Path,
    texts: &[Vec<TokenId>],
    batch: usize,
) -> Result<Vec<SparseVector>, String> {
    let input = texts.iter().map(|ids| serde_json::json!({ "input_ids": ids })).collect::<Vec<_>>();
    let batch = batch.to_string();
    let text = run(djl, "nsparse.Harness", archive, &input, &[&batch, "0"])?;
    let vectors = text
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|e| format!("broken answer of the harness: {e}: {line}")))
        .collect::<Result<Vec<SparseVector>, String>>()?;
    if vectors.len() != texts.len() {
        return Err(format!("{} texts went in, {} vectors came out", texts.len(), vectors.len()));
    }
    Ok(vectors)
}

/// What DJL's tokenizer, loaded as ML Commons loads it, makes of a `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DjlTokens {
    /// The string that each id becomes in a document vector; empty where it is left out.
    pub strings: Vec<String>,
    /// The ids of each text.
    pub ids: Vec<Vec<TokenId>>,
}

/// Tokenizes texts in DJL and decodes every one of `vocabulary` ids on its own.
///
/// # Errors
/// As [`djl_outputs`].
pub fn djl_tokens(djl: Djl, tokenizer: &Path, texts: &[&str], vocabulary: usize) -> Result<DjlTokens, String> {
    let input = texts.iter().map(|text| serde_json::json!({ "text": text })).collect::<Vec<_>>();
    let answer = run(djl, "nsparse.Tokens", tokenizer, &input, &[&vocabulary.to_string()])?;
    let (strings, ids) = answer.split_once('\n').ok_or("the harness wrote nothing")?;
    let broken = |e: serde_json::Error| format!("broken answer of the harness: {e}");
    Ok(DjlTokens {
        strings: serde_json::from_str(strings).map_err(broken)?,
        ids: ids.lines().map(|line| serde_json::from_str(line).map_err(broken)).collect::<Result<_, _>>()?,
    })
}

/// Runs a class of the harness: `FILE INPUT OUTPUT REST…`, with the input as lines of JSON; gives the output.
fn run(djl: Djl, class: &str, file: &Path, input: &[serde_json::Value], rest: &[&str]) -> Result<String, String> {
    let folder = djl.folder()?;
    let scratch = tempfile::tempdir().map_err(|e| format!("no temporary folder: {e}"))?;
    let (input_path, output_path) = (scratch.path().join("input.jsonl"), scratch.path().join("output.jsonl"));
    let mut lines = input.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    lines.push('\n');
    std::fs::write(&input_path, lines).map_err(|e| format!("cannot write {}: {e}", input_path.display()))?;
    // One at a time: DJL unpacks its libraries in place, also while another process has them mapped.
    let _lock = lock(folder)?;
    let output = Command::new("java")
        // One thread, as ML Commons sets it; nothing is fetched, nothing is reported.
        .args(["-Xmx1g", "-Dai.djl.pytorch.num_threads=1", "-Dai.djl.pytorch.num_interop_threads=1"])
        .args(["-cp", &format!("{0}/harness.jar:{0}/lib/*", folder.display()), class])
        .arg(file)
        .args([&input_path, &output_path])
        .args(rest)
        .env("DJL_CACHE_DIR", folder.join("cache"))
        .env("DJL_OFFLINE", "true")
        .env("OPT_OUT_TRACKING", "true")
        .output();
    check("java", "Java 17 or newer (Debian: openjdk-17-jdk-headless)", output)?;
    std::fs::read_to_string(&output_path).map_err(|e| format!("cannot read {}: {e}", output_path.display()))
}

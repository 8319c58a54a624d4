//! onnxruntime's shared library: found, loaded once a process.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use nsparse_core::Fault;
use ort::environment::Environment;

use crate::{Error, Result};

/// The variable that names the library, as other programs on `ort` read it.
const VARIABLE: &str = "ORT_DYLIB_PATH";
/// What the system's loader is asked for where nothing is named.
const NAME: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// Where the library can be had.
const WHERE: &str = "onnxruntime's Python package holds it: run scripts/fetch-onnxruntime.sh, or \
    `pip install onnxruntime`, and name the package's capi/libonnxruntime.so.* with --onnxruntime FILE or ORT_DYLIB_PATH";

/// The environment of the library that was loaded first.
static LOADED: Mutex<Option<Environment>> = Mutex::new(None);

/// Loads the library, unless one is loaded already.
pub(super) fn load(named: Option<&Path>) -> Result<Environment> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let from_variable = std::env::var_os(VARIABLE).filter(|v| !v.is_empty()).map(PathBuf::from);
    let library = match named.map(Path::to_path_buf).or(from_variable) {
        Some(path) => find(&path)?,
        None => PathBuf::from(NAME),
    };
    let failed = |message: String, fault| Error::Runtime { message, hint: WHERE.to_owned(), fault };
    let builder = ort::init_from(&library)
        .map_err(|e| failed(format!("onnxruntime's shared library cannot be used: {}", reason(&e)), Fault::World))?;
    let environment =
        builder.with_name("nsparse").with_telemetry(false).build().map_err(|e| {
            failed(format!("onnxruntime from `{}` does not start: {e}", library.display()), Fault::World)
        })?;
    *loaded = Some(environment.clone());
    Ok(environment)
}

/// Why a library was not loaded, in the system's own words where it has some.
fn reason(error: &ort::LoadDynamicError) -> String {
    let cause = match error {
        ort::LoadDynamicError::Dlopen { error, .. } => std::error::Error::source(error),
        _ => None,
    };
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}

/// The library that a path names: the file, or the one in the folder. Absolute, because a relative one would be
/// looked for beside the program.
fn find(path: &Path) -> Result<PathBuf> {
    let missing = |what: String| Error::Runtime { message: what, hint: WHERE.to_owned(), fault: Fault::Usage };
    let path = path
        .canonicalize()
        .map_err(|e| missing(format!("onnxruntime's shared library is not at `{}`: {e}", path.display())))?;
    if !path.is_dir() {
        return Ok(path);
    }
    let entries = path.read_dir().map_err(|e| nsparse_core::Error::io("read", &path, e))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| is_library(p)).collect();
    found.sort();
    found.pop().ok_or_else(|| missing(format!("`{}` holds no libonnxruntime.so", path.display())))
}

/// `libonnxruntime.so`, with or without a version, `libonnxruntime.dylib`, `libonnxruntime.1.31.1.dylib`.
fn is_library(path: &Path) -> bool {
    path.file_name().and_then(|n| n.to_str()).is_some_and(|name| {
        name.strip_prefix("libonnxruntime.").is_some_and(|rest| rest.starts_with("so") || rest.ends_with("dylib"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_searched_for_the_library() {
        let folder = tempfile::tempdir().unwrap();
        let error = find(folder.path()).unwrap_err();
        assert!(error.to_string().contains("holds no libonnxruntime.so"), "{error}");
        assert_eq!(error.fault(), Fault::Usage);
        for name in ["libonnxruntime_providers_shared.so", "libonnxruntime.so.1.31.1", "onnxruntime.py"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(find(folder.path()).unwrap().ends_with("libonnxruntime.so.1.31.1"));
        let error = find(&folder.path().join("nowhere.so")).unwrap_err();
        assert!(error.to_string().contains("nowhere.so") && error.hint().unwrap().contains("pip install onnxruntime"));
    }
    #[test]
    fn a_file_that_is_no_library_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = load(Some(file.path())).unwrap_err();
        let name = file.path().file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains("cannot be used") && error.to_string().contains(name), "{error}");
        assert!(error.hint().unwrap().contains("fetch-onnxruntime.sh"));
    }
}

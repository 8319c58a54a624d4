//! Finds a Java that runs OpenSearch 2.x, and Maven: both named with their Debian package where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// Java releases on which OpenSearch 2.x runs.
pub(crate) const FIT: std::ops::RangeInclusive<u32> = 11..=21;
const INSTALL: &str = "install Java 17 (Debian: openjdk-17-jre-headless), or name one with NSPARSE_JAVA_HOME";

/// A Java found: its home folder and release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Java {
    /// The folder that holds `bin/java`.
    pub(crate) home: PathBuf,
    /// 17 in 17.0.15.
    pub(crate) release: u32,
}

/// The first fit Java of `NSPARSE_JAVA_HOME`, `JAVA_HOME`, PATH. One named by `NSPARSE_JAVA_HOME` has to fit.
///
/// # Errors
/// If there is none; the message says which were seen.
pub(crate) fn find_java() -> Result<Java> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut candidates = Vec::new();
    let explicit = variable("NSPARSE_JAVA_HOME");
    if let Some(home) = &explicit {
        candidates.push(("NSPARSE_JAVA_HOME", home.join("bin/java")));
    } else {
        candidates.extend(variable("JAVA_HOME").map(|home| ("JAVA_HOME", home.join("bin/java"))));
        candidates.extend(on_path("java").map(|path| ("PATH", path)));
    }
    choose(&candidates)
}

/// The first candidate that is fit; `(where it was named, the program)`.
fn choose(candidates: &[(&str, PathBuf)]) -> Result<Java> {
    let mut seen = Vec::new();
    for (source, program) in candidates {
        match ask(program) {
            Ok(java) if FIT.contains(&java.release) => return Ok(java),
            Ok(java) => seen.push(format!("`{}` ({source}) is Java {}", program.display(), java.release)),
            Err(why) => seen.push(format!("`{}` ({source}) {why}", program.display())),
        }
    }
    let needed = format!("OpenSearch needs Java {} to {}", FIT.start(), FIT.end());
    Err(Error::world(
        if seen.is_empty() {
            format!("{needed}; no `java` was found")
        } else {
            format!("{needed}; {}", seen.join(", "))
        },
        INSTALL,
    ))
}

/// Asks a Java for its home and release.
fn ask(program: &Path) -> std::result::Result<Java, String> {
    let output = Command::new(program)
        .args(["-XshowSettings:properties", "-version"])
        .env_remove("JAVA_TOOL_OPTIONS")
        .output()
        .map_err(|e| format!("cannot be run: {e}"))?;
    // Properties are printed to standard error.
    let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    parse(&text).ok_or_else(|| "does not tell its version".to_owned())
}

/// Reads `java.home` and `java.specification.version` (`1.8` is Java 8).
fn parse(text: &str) -> Option<Java> {
    let property = |name: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix('=').map(str::trim))
    };
    let version = property("java.specification.version")?;
    let release = version.strip_prefix("1.").unwrap_or(version).parse().ok()?;
    Some(Java { home: PathBuf::from(property("java.home")?), release })
}

/// Maven: `mvn` on PATH, else in `MAVEN_HOME`.
///
/// # Errors
/// If there is none.
pub(crate) fn find_mvn() -> Result<PathBuf> {
    let at_home = || std::env::var_os("MAVEN_HOME").map(|h| PathBuf::from(h).join("bin/mvn")).filter(|p| p.is_file());
    on_path("mvn").or_else(at_home).ok_or_else(|| {
        Error::world(
            "No `mvn` was found; it fetches OpenSearch with your own mirror settings",
            "install Maven (Debian: maven), or start Docker, or use a cluster of yours with --url",
        )
    })
}

/// A program on PATH.
fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(name)).find(|p| p.is_file())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that answers like Java of a release.
    fn fake(folder: &Path, name: &str, version: &str) -> PathBuf {
        let path = folder.join(name);
        let script = format!(
            "#!/bin/sh\necho 'Property settings:\n    java.home = /opt/{name}\n    java.specification.version = {version}' >&2\n"
        );
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn the_first_fit_java_is_taken_and_unfit_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let old = fake(folder.path(), "old", "1.8");
        let fit = fake(folder.path(), "fit", "17");
        let new = fake(folder.path(), "new", "25");
        let found = choose(&[("JAVA_HOME", old.clone()), ("PATH", fit)]).unwrap();
        assert_eq!(found, Java { home: "/opt/fit".into(), release: 17 });

        let gone = folder.path().join("gone");
        let error = choose(&[("JAVA_HOME", old), ("PATH", new), ("PATH", gone)]).unwrap_err();
        let message = error.to_string().replace(&folder.path().display().to_string(), "");
        assert!(message.starts_with("OpenSearch needs Java 11 to 21; `/old` (JAVA_HOME) is Java 8, `/new` (PATH) is Java 25, `/gone` (PATH) cannot be run"), "{message}");
        assert!(error.hint().unwrap().contains("openjdk-17-jre-headless"));
        assert_eq!(choose(&[]).unwrap_err().to_string(), "OpenSearch needs Java 11 to 21; no `java` was found");
    }
}

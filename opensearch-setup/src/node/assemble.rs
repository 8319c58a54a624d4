//! A minimal OpenSearch put together from Maven artifacts: the integration-test zip, which has a transport only,
//! plus the eight modules that make it the usual minimal distribution. Fetched by the user's own `mvn`, so that
//! mirror settings and proxies hold.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nsparse_core::{Error as CoreError, Progress};

use super::java::{Java, find_mvn};
use super::places::Places;
use crate::capabilities::Version;
use crate::error::{Error, Result};

/// A module of the minimal distribution.
struct Module {
    name: &'static str,
    /// Maven artifact in the group `org.opensearch.plugin`.
    artifact: &'static str,
    classname: &'static str,
    /// The module whose extension points it uses.
    extends: &'static str,
    /// Permissions that it needs under the security manager.
    permissions: &'static [&'static str],
}

const MODULES: [Module; 8] = [
    Module {
        name: "lang-painless",
        artifact: "lang-painless",
        classname: "org.opensearch.painless.PainlessPlugin",
        extends: "",
        permissions: &[
            "java.lang.RuntimePermission \"createClassLoader\"",
            "java.lang.RuntimePermission \"getClassLoader\"",
        ],
    },
    Module {
        name: "analysis-common",
        artifact: "analysis-common",
        classname: "org.opensearch.analysis.common.CommonAnalysisPlugin",
        extends: "lang-painless",
        permissions: &[],
    },
    // `rank_features` fields and `rank_feature` queries.
    Module {
        name: "mapper-extras",
        artifact: "mapper-extras-client",
        classname: "org.opensearch.index.mapper.MapperExtrasPlugin",
        extends: "",
        permissions: &[],
    },
    // Delete-by-query.
    Module {
        name: "reindex",
        artifact: "reindex-client",
        classname: "org.opensearch.index.reindex.ReindexPlugin",
        extends: "",
        permissions: &["java.net.SocketPermission \"*\", \"connect\""],
    },
    Module {
        name: "ingest-common",
        artifact: "ingest-common",
        classname: "org.opensearch.ingest.common.IngestCommonPlugin",
        extends: "lang-painless",
        permissions: &[],
    },
    Module {
        name: "rank-eval",
        artifact: "rank-eval-client",
        classname: "org.opensearch.index.rankeval.RankEvalPlugin",
        extends: "",
        permissions: &[],
    },
    Module {
        name: "lang-mustache",
        artifact: "lang-mustache-client",
        classname: "org.opensearch.script.mustache.MustachePlugin",
        extends: "",
        permissions: &[
            "java.lang.reflect.ReflectPermission \"suppressAccessChecks\"",
            "java.lang.RuntimePermission \"accessDeclaredMembers\"",
        ],
    },
    Module {
        name: "search-pipeline-common",
        artifact: "search-pipeline-common",
        classname: "org.opensearch.search.pipeline.common.SearchPipelineCommonModulePlugin",
        extends: "lang-painless",
        permissions: &[],
    },
];

/// The Maven goal, with its version so that the result does not depend on Maven's own.
const COPY: &str = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies";
/// Written last; a folder without it is not whole.
const MARK: &str = ".nsparse-assembled";
/// How the folders begin in which servers are put together.
const WORK: &str = ".assemble-";

/// The home folder of an assembled server, made on the first call and kept. It appears whole or not at all.
///
/// # Errors
/// If `mvn` is missing or fails, the version is not 2.11 to 2.x, or the disk fails.
pub(crate) fn assembled(places: &Places, version: &str, java: &Java, progress: &dyn Progress) -> Result<PathBuf> {
    let home = places.home(version);
    if home.join(MARK).is_file() {
        return Ok(home);
    }
    check_version(version)?;
    let mvn = find_mvn()?;
    remove_leftovers(&places.root);
    let task = progress.start(&format!("Assembling OpenSearch {version}"), 3);
    let work = tempfile::Builder::new()
        .prefix(WORK)
        .tempdir_in(&places.root)
        .map_err(|e| CoreError::io("create", &places.root, e))?;
    task.message("mvn fetches the server and its modules");
    fetch(&mvn, java, work.path(), version)?;
    task.advance(1);
    let server = unpack(work.path(), version)?;
    task.advance(1);
    for module in &MODULES {
        install(module, &server, &work.path().join(module.name).join("jars"), version)?;
    }
    for folder in ["logs", "plugins", "modules"] {
        create(&server.join(folder))?;
    }
    write(&server.join(MARK), version)?;
    open_to_all(&server).map_err(|e| CoreError::io("write", &server, e))?;
    if home.exists() {
        // Left by an older release or a broken copy: it has no mark.
        fs::remove_dir_all(&home).map_err(|e| CoreError::io("write", &home, e))?;
    }
    fs::rename(&server, &home).map_err(|e| CoreError::io("write", &home, e))?;
    task.advance(1);
    Ok(home)
}

/// Removes what a killed run left; the caller holds the lock, so nobody works there now.
fn remove_leftovers(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(WORK) {
            // What cannot be removed only takes space.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The modules' names and classes are those of 2.11 to 2.x.
fn check_version(version: &str) -> Result<()> {
    let fits = Version::parse(version).is_some_and(|v| v.major == 2 && v.at_least(2, 11));
    // The text becomes part of paths and of a pom.
    let plain = version.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    if fits && plain {
        return Ok(());
    }
    Err(Error::usage(
        format!("A node of version `{version}` cannot be assembled"),
        "give a release from 2.11.0 to 2.x, such as 2.16.0; later ones run in Docker",
    ))
}

/// One Maven project a module, so that each gets its own runtime dependencies, and one for the server's zip.
fn fetch(mvn: &Path, java: &Java, work: &Path, version: &str) -> Result<()> {
    let mut names = String::new();
    let server = ("server", "org.opensearch.distribution.integ-test-zip", "opensearch", "<type>zip</type>");
    let modules = MODULES.iter().map(|m| (m.name, "org.opensearch.plugin", m.artifact, ""));
    for (name, group, artifact, kind) in std::iter::once(server).chain(modules) {
        let _ = writeln!(names, "    <module>{name}</module>");
        create(&work.join(name))?;
        let dependency = format!(
            "  <dependencies><dependency>\n    <groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version>{kind}\n  </dependency></dependencies>\n"
        );
        write(&work.join(name).join("pom.xml"), &pom(name, &dependency))?;
    }
    write(&work.join("pom.xml"), &pom("all", &format!("  <modules>\n{names}  </modules>\n")))?;
    let output = Command::new(mvn)
        .current_dir(work)
        .args(["-B", "-q", COPY, "-DincludeScope=runtime", "-DoutputDirectory=${project.basedir}/jars"])
        .env("JAVA_HOME", &java.home)
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|e| Error::world(format!("`{}` cannot be run: {e}", mvn.display()), "check the Maven installation"))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> = log.lines().filter(|l| l.contains("ERROR")).take(4).collect();
    Err(Error::world(
        format!("Maven could not fetch OpenSearch {version} ({}):\n{}", output.status, errors.join("\n")),
        "Maven needs its central repository, or a mirror named in ~/.m2/settings.xml; check the version too",
    ))
}

fn pom(name: &str, content: &str) -> String {
    format!(
        "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  <modelVersion>4.0.0</modelVersion>\n  \
         <groupId>nsparse</groupId><artifactId>node-{name}</artifactId><version>1</version>\
         <packaging>pom</packaging>\n{content}</project>\n"
    )
}

/// Unpacks the server's zip; gives its only folder.
fn unpack(work: &Path, version: &str) -> Result<PathBuf> {
    let path = work.join("server/jars").join(format!("opensearch-{version}.zip"));
    let file = fs::File::open(&path).map_err(|e| CoreError::io("read", &path, e))?;
    let target = work.join("home");
    zip::ZipArchive::new(file)
        .and_then(|mut archive| archive.extract(&target))
        .map_err(|e| CoreError::file(&path, e.to_string()))?;
    Ok(target.join(format!("opensearch-{version}")))
}

/// Puts a module's jars, its descriptor and its policy in place. A jar that the server has already would be
/// loaded twice, which it refuses.
fn install(module: &Module, server: &Path, jars: &Path, version: &str) -> Result<()> {
    let target = server.join("modules").join(module.name);
    create(&target)?;
    let mut present = jar_names(&server.join("lib"))?;
    if !module.extends.is_empty() {
        present.extend(jar_names(&server.join("modules").join(module.extends))?);
    }
    for jar in list(jars)? {
        let name = jar.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !present.contains(artifact_of(&name)) {
            fs::copy(&jar, target.join(&name)).map_err(|e| CoreError::io("write", &target, e))?;
        }
    }
    let descriptor = format!(
        "description=OpenSearch module {name}\nversion={version}\nname={name}\nclassname={class}\njava.version=11\n\
         opensearch.version={version}\ncustom.foldername=\nextended.plugins={extends}\nhas.native.controller=false\n",
        name = module.name,
        class = module.classname,
        extends = module.extends,
    );
    write(&target.join("plugin-descriptor.properties"), &descriptor)?;
    if !module.permissions.is_empty() {
        let lines: String = module.permissions.iter().fold(String::new(), |mut out, p| {
            let _ = writeln!(out, "  permission {p};");
            out
        });
        write(&target.join("plugin-security.policy"), &format!("grant {{\n{lines}}};\n"))?;
    }
    Ok(())
}

fn jar_names(folder: &Path) -> Result<HashSet<String>> {
    let name = |p: &PathBuf| artifact_of(&p.file_name().unwrap_or_default().to_string_lossy()).to_owned();
    Ok(list(folder)?.iter().map(name).collect())
}

/// `lucene-core` of `lucene-core-9.11.1.jar`: everything before the first dash that a digit follows.
fn artifact_of(name: &str) -> &str {
    let digit_after = |i: &usize| name.as_bytes().get(i + 1).is_some_and(u8::is_ascii_digit);
    name.match_indices('-').map(|(i, _)| i).find(digit_after).map_or(name, |i| &name[..i])
}

/// The jars of a folder, sorted.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| CoreError::io("read", folder, e))?;
    let mut paths: Vec<PathBuf> =
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "jar")).collect();
    paths.sort();
    Ok(paths)
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| CoreError::io("create", folder, e).into())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|e| CoreError::io("write", path, e).into())
}

/// Lets everybody read, whatever the caller's umask was: the node may run as another user.
fn open_to_all(path: &Path) -> std::io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    if meta.is_symlink() {
        return Ok(());
    }
    let mode = meta.permissions().mode();
    let wanted = if meta.is_dir() { mode | 0o755 } else { mode | 0o444 | (mode & 0o100) >> 3 | (mode & 0o100) >> 6 };
    fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            open_to_all(&entry?.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn jars_are_compared_without_their_versions() {
        assert_eq!(artifact_of("lucene-core-9.11.1.jar"), "lucene-core");
        assert_eq!(artifact_of("antlr4-runtime-4.13.1.jar"), "antlr4-runtime");
        assert_eq!(artifact_of("HdrHistogram-2.2.2.jar"), "HdrHistogram");
        assert_eq!(artifact_of("t-digest-3.2.jar"), "t-digest");
        assert_eq!(artifact_of("plain.jar"), "plain.jar");
    }

    #[test]
    fn only_releases_that_fit_are_assembled() {
        assert!(check_version("2.16.0").is_ok());
        for wrong in ["3.0.0", "2.10.0", "latest", "2.16.0/../..", "2.16.0<x>"] {
            let error = check_version(wrong).unwrap_err();
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_module_gets_what_the_server_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let (server, jars) = (folder.path().join("server"), folder.path().join("jars"));
        for (at, name) in
            [(&server.join("lib"), "asm-9.6.jar"), (&jars, "asm-9.7.jar"), (&jars, "antlr4-runtime-4.13.1.jar")]
        {
            create(at).unwrap();
            write(&at.join(name), "jar").unwrap();
        }
        install(&MODULES[0], &server, &jars, "2.16.0").unwrap();
        let module = server.join("modules/lang-painless");
        assert!(module.join("antlr4-runtime-4.13.1.jar").is_file());
        assert!(!module.join("asm-9.7.jar").exists());
        let descriptor = fs::read_to_string(module.join("plugin-descriptor.properties")).unwrap();
        assert!(descriptor.contains("classname=org.opensearch.painless.PainlessPlugin\n"));
        let policy = fs::read_to_string(module.join("plugin-security.policy")).unwrap();
        assert_eq!(policy.matches("permission ").count(), 2);
    }
}

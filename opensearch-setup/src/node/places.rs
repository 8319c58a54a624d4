//! Where nodes live on disk: the cache folder, one folder a port, and who must be able to read them.
//!
//! ```text
//! <cache>/nsparse/opensearch-2.16.0/   the assembled server, never written to after it appeared
//! <cache>/nsparse/nodes/9200.json       what runs on that port
//! <cache>/nsparse/nodes/9200/           config/, data-2.16.0/, logs/, tmp/
//! ```

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The user and group that a node runs as when root starts it. OpenSearch refuses to run as root; no account
/// is made, and no account has this number unless somebody gave it one.
pub(crate) const NODE_UID: u32 = 59_200;

/// The folders of one machine's nodes.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    /// `<cache>/nsparse`.
    pub(crate) root: PathBuf,
    /// Why the default was not taken, for the user.
    pub(crate) note: Option<String>,
}

/// Whom a node runs as: `None` for the user that calls us.
pub(crate) fn node_uid() -> Option<u32> {
    (effective_uid() == 0).then_some(NODE_UID)
}

/// Our own effective user id.
#[allow(unsafe_code, reason = "libc has no safe form")]
pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing, changes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

impl Places {
    /// The folder given, else `$XDG_CACHE_HOME/nsparse`, else `~/.cache/nsparse`. Where root starts a node whose
    /// user could not enter that folder (`/root` is closed to others), `/var/tmp/nsparse-0`.
    ///
    /// # Errors
    /// If a folder that was asked for cannot be entered by the node's user.
    pub(crate) fn find(given: Option<&Path>) -> Result<Self> {
        let uid = node_uid();
        if let Some(folder) = given {
            let root = std::path::absolute(folder).map_err(|e| nsparse_core::Error::io("read", folder, e))?;
            if let Some(blocked) = uid.and_then(|uid| blocked_at(&root, uid)) {
                return Err(Error::usage(
                    format!(
                        "The node runs as an unprivileged user, who may not enter `{}` on the way to `{}`",
                        blocked.display(),
                        root.display()
                    ),
                    "choose a folder that others may enter, such as one in /var/tmp, or start as an ordinary user",
                ));
            }
            return Ok(Self { root, note: None });
        }
        let fallback = PathBuf::from(format!("/var/tmp/nsparse-{}", effective_uid()));
        let Some(root) = default_root() else { return Ok(Self { root: fallback, note: None }) };
        match uid.and_then(|uid| blocked_at(&root, uid)) {
            None => Ok(Self { root, note: None }),
            Some(blocked) => Ok(Self {
                note: Some(format!(
                    "`{}` is closed to the unprivileged user that runs the node; using `{}`",
                    blocked.display(),
                    fallback.display()
                )),
                root: fallback,
            }),
        }
    }

    /// Makes the root folder, open to be entered, owned by us.
    ///
    /// # Errors
    /// If it cannot be made, or somebody else's folder stands in its place.
    pub(crate) fn create(&self) -> Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&self.root)
            .map_err(|e| nsparse_core::Error::io("create", &self.root, e))?;
        let meta = std::fs::symlink_metadata(&self.root).map_err(|e| nsparse_core::Error::io("read", &self.root, e))?;
        // /var/tmp is everybody's: what stands there may have been put there for us to trip over.
        if self.root.starts_with("/var/tmp") && (!meta.is_dir() || meta.uid() != effective_uid()) {
            return Err(Error::usage(
                format!("`{}` belongs to somebody else", self.root.display()),
                "remove it, or choose another folder with XDG_CACHE_HOME",
            ));
        }
        Ok(())
    }

    /// The assembled server of a version.
    pub(crate) fn home(&self, version: &str) -> PathBuf {
        self.root.join(format!("opensearch-{version}"))
    }

    /// All nodes' folders.
    pub(crate) fn nodes(&self) -> PathBuf {
        self.root.join("nodes")
    }

    /// The folder of the node on a port.
    pub(crate) fn node(&self, port: u16) -> PathBuf {
        self.nodes().join(port.to_string())
    }
}

/// `$XDG_CACHE_HOME/nsparse` or `~/.cache/nsparse`.
fn default_root() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    Some(cache.join("nsparse"))
}

/// The first folder on the way to `path` that this user may not enter. What does not exist yet will be made so
/// that others may enter it.
pub(crate) fn blocked_at(path: &Path, uid: u32) -> Option<PathBuf> {
    let mut folders: Vec<&Path> = path.ancestors().collect();
    folders.reverse();
    folders.into_iter().find(|folder| closed_to(folder, uid)).map(Path::to_path_buf)
}

fn closed_to(folder: &Path, uid: u32) -> bool {
    let Ok(meta) = std::fs::metadata(folder) else { return false };
    let needed = if meta.uid() == uid { 0o100 } else { 0o001 };
    meta.is_dir() && meta.permissions().mode() & needed == 0
}

/// Makes a folder and hands it to the node's user, where that is not us.
///
/// # Errors
/// If it cannot be made or handed over.
pub(crate) fn make_folder(path: &Path, owner: Option<u32>) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .and_then(|()| owner.map_or(Ok(()), |uid| std::os::unix::fs::chown(path, Some(uid), Some(uid))))
        .map_err(|e| nsparse_core::Error::io("create", path, e).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn closed_folders_are_found_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        set(folder.path(), 0o755);
        let closed = folder.path().join("closed");
        std::fs::create_dir(&closed).unwrap();
        set(&closed, 0o700);
        let stranger = std::fs::metadata(&closed).unwrap().uid() + 1;
        assert_eq!(blocked_at(&closed.join("a/b"), stranger), Some(closed.clone()));
        set(&closed, 0o711);
        assert_eq!(blocked_at(&closed.join("a/b"), stranger), None);
    }
}

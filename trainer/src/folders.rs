//! Folders that are whole or not there, whatever stops the process that writes them.
//!
//! A new folder is filled aside, flushed to disk, and renamed. Where one stands in its place two renames are needed;
//! between them only the two others are there, and [`restore_folders`] puts the old one back.

use std::path::{Path, PathBuf};

use nsparse_core::files;

use crate::{Error, Result};

/// What the names beside the real one end with: being filled, replaced, being removed.
const ENDINGS: [&str; 3] = [".new", ".old", ".gone"];

fn io(action: &'static str, at: &Path, e: std::io::Error) -> Error {
    nsparse_core::Error::io(action, at, e).into()
}

/// `.NAME.new` and its like.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    path.with_file_name(format!(".{name}{ending}"))
}

fn remove(path: &Path) -> Result<()> {
    if path.exists() { std::fs::remove_dir_all(path).map_err(|e| io("remove", path, e)) } else { Ok(()) }
}

fn sync_parent(path: &Path) {
    files::sync_folder(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
}

/// Fills a new folder beside `path` and puts it in its place; what stood there is removed last.
///
/// # Errors
/// If something cannot be written; what stood at `path` is then still there.
pub(crate) fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let [new, old, _] = ENDINGS.map(|ending| beside(path, ending));
    remove(&new)?;
    remove(&old)?;
    files::create_folder(&new)?;
    if let Err(e) = fill(&new) {
        // The unfinished folder is worth nothing; its removal failing does not matter beside the error itself.
        let _ = std::fs::remove_dir_all(&new);
        return Err(e);
    }
    files::sync_folder(&new);
    if path.exists() {
        std::fs::rename(path, &old).map_err(|e| io("replace", path, e))?;
    }
    std::fs::rename(&new, path).map_err(|e| io("write", path, e))?;
    sync_parent(path);
    remove(&old)
}

/// Removes a folder, if it is there: a process that is killed meanwhile leaves no half of it under its name.
///
/// # Errors
/// If it cannot be removed.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let gone = beside(path, ENDINGS[2]);
    remove(&gone)?;
    std::fs::rename(path, &gone).map_err(|e| io("remove", path, e))?;
    sync_parent(path);
    remove(&gone)
}

/// Puts right what a killed process left in a folder: an old folder comes back where the new one had not come yet,
/// and unfinished ones go. The folder itself need not be there.
///
/// # Errors
/// If something cannot be renamed or removed.
pub(crate) fn restore_folders(folder: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let found = entry.map_err(|e| io("read", folder, e))?.path();
        let name = found.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let stem = |ending: &str| name.strip_prefix('.').and_then(|rest| rest.strip_suffix(ending));
        let Some(name) = ENDINGS.iter().find_map(|ending| stem(ending)).filter(|n| is_ours(n)) else { continue };
        let real = folder.join(name);
        if found == beside(&real, ENDINGS[1]) && !real.exists() {
            std::fs::rename(&found, &real).map_err(|e| io("write", &real, e))?;
        } else {
            remove(&found)?;
        }
    }
    files::sync_folder(folder);
    Ok(())
}

/// Folders that a run writes.
fn is_ours(name: &str) -> bool {
    matches!(name, "model" | "warm-start" | "checkpoints") || name.starts_with("step-")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step-1");
        replace_folder(&path, |f| Ok(files::write_bytes(&f.join("a"), b"1")?)).unwrap();
        let failed = replace_folder(&path, |f| {
            files::write_bytes(&f.join("a"), b"2")?;
            Err(Error::config("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"1");
        replace_folder(&path, |f| Ok(files::write_bytes(&f.join("a"), b"3")?)).unwrap();
        assert_eq!(std::fs::read(path.join("a")).unwrap(), b"3");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_kill_left_is_put_right() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let make = |name: &str| {
            std::fs::create_dir_all(at(name)).unwrap();
            std::fs::write(at(name).join("a"), name).unwrap();
        };
        // Killed between the two renames; after them; while filling; while removing; and somebody else's folder.
        for name in
            [".model.old", ".model.new", "warm-start", ".warm-start.old", ".step-3.new", ".step-1.gone", ".mine.old"]
        {
            make(name);
        }
        restore_folders(folder.path()).unwrap();
        let mut left: Vec<String> =
            std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, [".mine.old", "model", "warm-start"]);
        assert_eq!(std::fs::read(at("model").join("a")).unwrap(), b".model.old");
        assert_eq!(std::fs::read(at("warm-start").join("a")).unwrap(), b"warm-start");
        remove_folder(&at("model")).unwrap();
        remove_folder(&at("model")).unwrap();
        assert!(!at("model").exists());
        restore_folders(&at("nowhere")).unwrap();
    }
}

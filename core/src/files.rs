//! Files that appear whole: written aside, synced, renamed; and hashes of their contents.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::{Error, Result};

/// How the names of unfinished files begin and end.
const TEMPORARY: (&str, &str) = (".nsparse-", ".tmp");

/// Writes a file so that it appears whole or not at all: beside its place, flushed to disk, then renamed.
/// `fill` writes the contents. A good file already there stays if anything fails.
///
/// # Errors
/// If the folder cannot be made, the disk is full, or `fill` fails.
pub fn write_atomic<F>(path: &Path, fill: F) -> Result<()>
where
    F: FnOnce(&mut BufWriter<&mut File>) -> Result<()>,
{
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    create_folder(folder)?;
    let mut temp = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .tempfile_in(folder)
        .map_err(|e| Error::io("write", path, e))?;
    {
        let mut out = BufWriter::with_capacity(1 << 18, temp.as_file_mut());
        fill(&mut out)?;
        out.flush().map_err(|e| Error::io("write", path, e))?;
    }
    set_readable(temp.as_file()).map_err(|e| Error::io("write", path, e))?;
    temp.as_file().sync_all().map_err(|e| Error::io("write", path, e))?;
    temp.persist(path).map_err(|e| Error::io("write", path, e.error))?;
    sync_folder(folder);
    Ok(())
}

/// Flushes a folder's entries to disk: what was created, renamed or removed in it stays so after a power cut. A file
/// system that cannot do that still has the files.
pub fn sync_folder(folder: &Path) {
    if let Ok(dir) = File::open(folder) {
        let _ = dir.sync_all();
    }
}

/// Makes a folder and those above it that are not there, flushed to disk.
///
/// # Errors
/// If one cannot be made.
pub fn create_folder(folder: &Path) -> Result<()> {
    let missing: Vec<&Path> = folder.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    for made in missing {
        sync_folder(made.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")));
    }
    Ok(())
}

/// Removes the files that [`write_atomic`] had begun in a folder when its process was killed.
///
/// # Errors
/// If the folder cannot be read or a file cannot be removed.
pub fn remove_unfinished(folder: &Path) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io("read", folder, e))? {
        let path = entry.map_err(|e| Error::io("read", folder, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1) {
            std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        }
    }
    Ok(())
}

/// Temporary files are private; a finished one has the usual permissions.
#[cfg(unix)]
fn set_readable(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_readable(_file: &File) -> std::io::Result<()> {
    Ok(())
}

/// [`write_atomic`] for bytes at hand.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes).map_err(|e| Error::io("write", path, e)))
}

/// [`write_atomic`] for a value as indented JSON with a newline at its end.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|e| Error::file(path, e.to_string()))?;
    bytes.push(b'\n');
    write_bytes(path, &bytes)
}

/// Reads a JSON file into a type.
///
/// # Errors
/// If it cannot be read or does not fit the type; the message has line and column.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, e.to_string()))
}

/// Reads a whole text file.
///
/// # Errors
/// If it cannot be read or is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))
}

/// sha256 of some bytes, in lower-case hex.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// sha256 of a file's contents, in lower-case hex, and its size in bytes.
///
/// # Errors
/// If it cannot be read.
pub fn sha256_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0u8; 1 << 20];
    let mut size = 0u64;
    loop {
        let n = file.read(&mut buffer).map_err(|e| Error::io("read", path, e))?;
        if n == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}

/// Bytes as lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

//! Documents that the cluster will never take, each on a line with the reason, to be mended and sent again.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use nsparse_core::Error;
use serde::Serialize;

/// A file that appears with the first document that is rejected.
#[derive(Debug)]
pub(crate) struct DeadLetters {
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

/// One line.
#[derive(Serialize)]
struct Letter<'a> {
    id: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<serde_json::Value>,
}

impl DeadLetters {
    /// Nothing is written yet. A file that an earlier run left is kept as `FILE.previous`: what it names is tried again
    /// now, or belongs to other documents.
    ///
    /// # Errors
    /// If that file cannot be renamed.
    pub(crate) fn new(path: &Path) -> nsparse_core::Result<Self> {
        if path.is_file() {
            let mut kept = path.as_os_str().to_owned();
            kept.push(".previous");
            std::fs::rename(path, &kept).map_err(|e| Error::io("rename", path, e))?;
        }
        Ok(Self { path: path.to_path_buf(), file: None })
    }

    /// Writes down a document; `document` is its JSON where it has any..
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn push(&mut self, id: &str, reason: &str, document: &[u8]) -> nsparse_core::Result<()> {
        let failed = |e| Error::io("write", &self.path, e);
        if self.file.is_none() {
            if let Some(folder) = self.path.parent() {
                std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            }
            self.file = Some(BufWriter::new(File::create(&self.path).map_err(failed)?));
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let letter = Letter { id, reason, document: serde_json::from_slice(document).ok() };
        let mut line = serde_json::to_vec(&letter).expect("strings and JSON are always JSON");
        line.push(b'\n');
        file.write_all(&line).map_err(failed)
    }

    /// Hands what was written to the system.
    ///
    /// # Errors
    /// If the disk fails.
    pub(crate) fn flush(&mut self) -> nsparse_core::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        file.flush().map_err(|e| Error::io("write", &self.path, e))
    }
}

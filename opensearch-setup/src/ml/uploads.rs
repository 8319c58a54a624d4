//! Which chunks of which model have arrived, kept beside `deployment.json` while a deploy is on its way: after a cut or
//! a kill the next run sends only what is missing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nsparse_core::files;
use serde::{Deserialize, Serialize};

use super::lifecycle::Model;

/// One upload on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Upload {
    /// The model's id.
    id: String,
    chunk_bytes: u64,
    /// Chunks from the first on that the cluster has taken.
    sent: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Contents {
    cluster_uuid: String,
    /// By the zip's sha256.
    uploads: BTreeMap<String, Upload>,
}

/// The record of a deploy's uploads.
#[derive(Debug)]
pub(super) struct Uploads {
    path: PathBuf,
    contents: Contents,
}

impl Uploads {
    /// Reads what an earlier run has left; that of another cluster, or what cannot be read, counts for nothing.
    pub(super) fn open(deployment: &Path, cluster_uuid: &str) -> Self {
        let mut name = deployment.as_os_str().to_owned();
        name.push(".uploads");
        let path = PathBuf::from(name);
        let contents = files::read_json::<Contents>(&path).ok().filter(|c| c.cluster_uuid == cluster_uuid);
        let contents =
            contents.unwrap_or_else(|| Contents { cluster_uuid: cluster_uuid.to_owned(), ..Contents::default() });
        Self { path, contents }
    }

    /// How many chunks of this model have arrived.
    pub(super) fn sent(&self, sha256: &str, model: &Model, chunk_bytes: u64) -> u64 {
        let known = self.contents.uploads.get(sha256);
        known.filter(|u| u.id == model.id && u.chunk_bytes == chunk_bytes).map_or(0, |u| u.sent)
    }

    /// Whether an earlier run with this record has begun to upload this model.
    pub(super) fn knows(&self, sha256: &str, model: &Model) -> bool {
        self.contents.uploads.get(sha256).is_some_and(|u| u.id == model.id)
    }

    /// Notes that the first `sent` chunks have arrived. Where that cannot be written, a later run sends them again.
    pub(super) fn note(&mut self, sha256: &str, model: &Model, chunk_bytes: u64, sent: u64) {
        let upload = Upload { id: model.id.clone(), chunk_bytes, sent };
        self.contents.uploads.insert(sha256.to_owned(), upload);
        if let Err(error) = files::write_json(&self.path, &self.contents) {
            tracing::warn!(%error, "the chunks that have arrived cannot be noted");
        }
    }

    /// Forgets everything: all is registered, or taken back.
    pub(super) fn forget(&mut self) {
        self.contents.uploads.clear();
        // Where it cannot be deleted, it names a model that has all of its chunks or is gone: it will not be used.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]

    use super::*;

    #[test]
    fn what_was_sent_is_known_to_the_next_run_of_the_same_upload() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deployment.json");
        let model = Model { id: "m".to_owned(), name: "n".to_owned() };
        let mut uploads = Uploads::open(&file, "c");
        assert_eq!(uploads.sent("s", &model, 10), 0);
        uploads.note("s", &model, 10, 3);
        let again = Uploads::open(&file, "c");
        assert_eq!(again.sent("s", &model, 10), 3);
        let other = Model { id: "o".to_owned(), name: "n".to_owned() };
        assert_eq!((again.sent("s", &model, 20), again.sent("t", &model, 10), again.sent("s", &other, 10)), (0, 0, 0));
        assert_eq!(Uploads::open(&file, "another").sent("s", &model, 10), 0);
        uploads.forget();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}

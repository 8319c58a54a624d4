//! The run's folder before a run begins.

use std::path::{Path, PathBuf};

use super::Start;
use crate::{Error, Result};

/// What a run writes into its folder.
const OUTPUTS: [&str; 6] = ["config.yaml", "metrics.jsonl", "summary.json", "checkpoints", "model", "warm-start"];

pub(super) fn prepare_folder(dir: &Path, start: Start) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| nsparse_core::Error::io("create", dir, e))?;
    let there: Vec<PathBuf> = OUTPUTS.iter().map(|name| dir.join(name)).filter(|p| p.exists()).collect();
    match start {
        Start::Continue => Ok(()),
        Start::New => match there.first() {
            None => Ok(()),
            Some(found) => Err(Error::config_with_hint(
                format!("`{}` holds a run already: `{}` is there", dir.display(), found.display()),
                "go on with it (--resume), replace it (--replace), or choose another folder: --set run.dir=FOLDER",
            )),
        },
        Start::Replace => {
            for path in there {
                let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                removed.map_err(|e| nsparse_core::Error::io("remove", &path, e))?;
            }
            Ok(())
        }
    }
}

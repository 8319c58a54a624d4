//! The run's folder before a run begins.

use std::path::{Path, PathBuf};

use nsparse_core::files;

use super::Start;
use crate::folders::{remove_folder, restore_folders};
use crate::tensorboard::event_files;
use crate::{Error, Result};

/// What a run writes into its folder, besides TensorBoard's event files.
const OUTPUTS: [&str; 9] = [
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "checkpoints",
    "model",
    "warm-start",
    "sittings.jsonl",
    "held-out.jsonl",
    "report.html",
];

pub(super) fn prepare_folder(dir: &Path, start: Start) -> Result<()> {
    files::create_folder(dir)?;
    let named = OUTPUTS.iter().map(|name| dir.join(name)).filter(|p| p.exists());
    let there: Vec<PathBuf> = named.chain(event_files(dir)).collect();
    match start {
        Start::Continue => {
            files::remove_unfinished(dir)?;
            restore_folders(dir)
        }
        Start::New => match there.first() {
            None => Ok(()),
            Some(found) => Err(Error::config_with_hint(
                format!("`{}` holds a run already: `{}` is there", dir.display(), found.display()),
                "go on with it (--resume), replace it (--replace), or choose another folder: --set run.dir=FOLDER",
            )),
        },
        Start::Replace => {
            for path in there {
                if path.is_dir() {
                    remove_folder(&path)?;
                } else {
                    std::fs::remove_file(&path).map_err(|e| nsparse_core::Error::io("remove", &path, e))?;
                }
            }
            Ok(())
        }
    }
}

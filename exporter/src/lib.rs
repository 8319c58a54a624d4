//! TorchScript archives and ML Commons packages, written without PyTorch and without libtorch.
//!
//! [`pickle`] emits the few pickle opcodes that an archive needs, [`torchscript`] writes a model as an archive
//! that libtorch 1.13 and newer load, [`package`] puts it into the two zips that ML Commons takes and reads
//! such zips back with checks.

pub mod error;
pub mod package;
pub mod pickle;
mod quiet;
pub mod torchscript;

pub use error::{Error, Result};
pub use package::{ExportReport, Manifest, Package, RegisterBody, export};
pub use torchscript::TorchScript;

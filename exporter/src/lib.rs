//! TorchScript archives, ONNX files and ML Commons packages, written without PyTorch and without onnx.
//!
//! [`pickle`] emits the few pickle opcodes that an archive needs, [`torchscript`] writes a model as an archive
//! that libtorch 1.13 and newer load, [`onnx`] writes it as a file for onnxruntime, [`package`] puts either into
//! the two zips that ML Commons takes and reads such zips back with checks. With the feature `onnxruntime`, `ort`
//! encodes documents with onnxruntime's shared library.

pub mod error;
pub mod onnx;
#[cfg(feature = "onnxruntime")]
pub mod ort;
pub mod package;
mod parts;
pub mod pickle;
mod quiet;
mod source;
pub mod torchscript;

#[cfg(feature = "onnxruntime")]
pub use self::ort::OrtEncoder;
pub use error::{Error, Result};
pub use onnx::Onnx;
pub use package::{ExportReport, Manifest, ModelFormat, Package, RegisterBody, export, export_as};
pub use torchscript::TorchScript;

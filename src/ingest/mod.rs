//! Documents for an index: where they come from (`input`), and what can be typed about them (`args`).

pub(crate) mod args;
pub(crate) mod input;
#[cfg(feature = "parquet")]
mod parquet;
pub(crate) mod show;
mod zstd;

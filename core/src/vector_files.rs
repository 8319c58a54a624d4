//! Files of document vectors, written by jobs that can be stopped, continued and split over machines.
//!
//! Three forms ([`Format`]): jsonl for `rank_features` fields, Anserini's impact form, and a compact binary of our
//! own ([`binary`] has its bytes). A job writes `FILE.part` and notes in `FILE.journal` how far it is ([`part`]); at
//! its end the file appears whole, with `FILE.meta` beside it, which says what made it ([`job`]). A job may be one
//! shard of several; [`merge()`] puts their files together, byte for byte what one job would have written.
//!
//! The endings are not `.json`, so that a folder with Anserini's form can be indexed as it is.

pub mod binary;
pub mod documents;
pub mod ids;
pub mod job;
pub mod layout;
pub mod merge;
pub mod part;
pub mod records;
#[cfg(test)]
mod tests;

pub use binary::VectorFile;
pub use documents::{Block, Blocks, DocumentStream, check_documents};
pub use ids::IdCheck;
pub use job::{Counts, FileMeta, Format, InputPosition, Job, Precision, Shard};
pub use layout::Layout;
pub use merge::merge;
pub use part::{Opened, PartFile};

//! Pre-training without labels: masked-language modelling, so that a bare encoder, or a model of random weights for
//! another language, gets a head; then pairs that the texts themselves hold.
//!
//! [`pretrain`] runs a whole recipe, [`check()`] reads everything first and reports. What comes out is a model
//! directory that `nsparse train` takes as `model.path`. As in training, everything random is a function of seed,
//! epoch and window, and a resumed run equals one that never stopped, bit for bit.

pub mod check;
pub mod config;
pub mod level;
pub mod masking;
pub mod mlm;
pub mod pairs;
pub mod run;
pub mod sections;
pub mod texts;

pub use check::{PretrainCheck, check};
pub use config::PretrainConfig;
pub use run::{PretrainSummary, pretrain};

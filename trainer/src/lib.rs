//! Training of doc-only sparse encoders: data, the lexical warm start, losses and regularisers, the optimizer,
//! checkpoints with exact resume, evaluation on held-out queries, and the loop.
//!
//! [`train`] runs a whole recipe, [`check()`] reads everything first and reports. Losses act on the `[B, V]`
//! matrix of document vectors with gradients written out by hand; the network is a
//! [`nsparse_encoder::Backend`]. On one machine with one thread count a resumed run equals, bit for bit, one
//! that never stopped: batches, dropout and schedules are functions of seed and step alone.

pub mod batches;
pub mod calibrate;
pub mod check;
pub mod checkpoint;
pub mod config;
pub mod contrastive;
pub mod controller;
pub mod data;
pub mod density;
pub mod draw;
pub mod error;
pub mod evaluate;
pub mod fit_head;
mod folders;
pub mod guard;
pub mod held_out;
pub mod late_cache;
pub mod lift;
pub mod lineage;
pub mod losses;
pub mod metrics_log;
pub mod metrics_reader;
pub mod mixing;
pub mod model_out;
pub mod network;
pub mod objective;
pub mod optimizer;
pub mod parallel;
pub mod pretrain;
mod probe;
pub mod query_side;
mod recipe_file;
pub mod regularisers;
pub mod run;
pub mod run_folder;
pub mod run_log;
pub mod run_models;
pub mod sections;
mod segments;
pub mod stage;
pub mod standing;
pub mod survey;
pub mod synthetic;
pub mod teachers;
pub mod tensorboard;
pub mod warm_start;

pub use check::{CheckReport, check};
pub use config::TrainConfig;
pub use error::{Error, Result};
pub use run::{Hooks, Start, Summary, follow, train, train_together};

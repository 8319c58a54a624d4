//! One command a file; each returns an exit status and prints through the `Printer` alone.

pub(crate) mod bench;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod deploy;
pub(crate) mod encode;
pub(crate) mod eval;
pub(crate) mod eval_checkpoints;
pub(crate) mod export;
pub(crate) mod idf;
pub(crate) mod ingest;
pub(crate) mod inspect;
pub(crate) mod mine;
pub(crate) mod monitor;
pub(crate) mod msmarco;
pub(crate) mod pretrain;
pub(crate) mod quickstart;
pub(crate) mod reduce;
pub(crate) mod report;
pub(crate) mod score;
pub(crate) mod search;
pub(crate) mod sentences;
pub(crate) mod train;
pub(crate) mod tune_idf;
pub(crate) mod undeploy;

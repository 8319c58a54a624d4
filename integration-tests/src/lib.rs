//! Tests against a real node, containers, the ML Commons stand-in and the DJL harness.

pub mod agreement;
pub mod cli;
#[cfg(feature = "containers")]
pub mod containers;
pub mod djl;
pub mod faults;
pub mod golden;
pub mod golden_losses;
pub mod node;
pub mod onnx_file;
pub mod random_model;
pub mod secrets;
pub mod secured;
pub mod standin;

//! ML Commons: registering, deploying, asking and taking back the two models of a package, with the ingest
//! pipeline and the index around them.
//!
//! [`deploy`] does the whole; [`register`](mod@register), [`lifecycle`] and [`group`] are its single steps;
//! [`messages`] explains what the cluster answers.

pub mod alias;
mod apply;
mod apply_index;
mod causes;
pub mod deployment;
pub mod group;
pub mod lifecycle;
mod looks;
pub mod messages;
pub mod options;
pub mod package;
pub mod plan;
pub mod poll;
pub mod preview;
pub mod prune;
pub mod record;
pub mod register;
mod rows;
pub mod smoke;
pub mod status;
pub mod switch;
pub mod troubleshooting;
pub mod undeploy;
mod uploads;
mod versions;

pub use deployment::deploy;
pub use lifecycle::{Deployed, Model, ModelInfo};
pub use messages::{Cause, Problem, Step, explain, explain_task};
pub use options::DeployOptions;
pub use package::{ModelFile, PackageFiles};
pub use plan::{Fields, Indexing};
pub use poll::Poll;
pub use preview::{Action, Plan, Planned, plan_of};
pub use prune::{OurModel, PruneReport, our_models, prune};
pub use record::{Deployment, Made, ModelEntry, Served, Side};
pub use register::MAX_CHUNK_BYTES;
pub use status::{Counter, IndexStatus, ModelStatus, NodeStatus, PipelineStatus, Status, status_of, status_of_index};
pub use switch::{SwitchOptions, SwitchReport, rollback_file, switch_file};
pub use undeploy::{UndeployOptions, UndeployReport, undeploy, undeploy_file};

//! Life cycle of containers over the sandbox: create, start, wait, remove, collect.
//!
//! The engine merges a [`isles_spec::Workload`] with the configuration of its image, keeps the state of
//! the container as files, and is the monitor of what it runs in the foreground.

mod error;
mod process;
mod stack;
mod step;
mod user;

pub use error::{Error, Result};
pub use step::{Exit, Step, StepInput, StepOutcome, StepOutput, StepRoot, host_ca_wanted};

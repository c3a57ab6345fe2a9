//! The engine under workflows: work that waits for resources, threads that do it, and executors that run a step.
//!
//! What is to be done when is the caller's matter; here is only how much of it at once, and how one step is run.

pub mod pool;
pub mod step;

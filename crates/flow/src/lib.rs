//! The engine under workflows: work that waits for resources, threads that do it, executors that run a step, and what is
//! written down of it all.
//!
//! What is to be done when is the caller's matter; here is how much of it at once, how one step is run, and what
//! becomes known of it.

pub mod attend;
pub mod graph;
pub mod guard;
pub mod history;
mod journal;
mod log;
pub mod pool;
pub mod record;
pub mod remote;
pub mod report;
pub mod run;
pub mod step;

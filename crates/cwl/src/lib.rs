//! The Common Workflow Language, v1.0 to v1.2: documents become processes, processes run.
//!
//! [`load`] reads documents and tells everything that is wrong with them; [`run`] runs a process with its inputs.

pub mod cache;
pub mod check;
pub mod command;
pub mod document;
pub mod draw;
pub mod expression;
pub mod files;
pub mod glob;
pub mod inputs;
pub mod job;
pub mod js;
mod links;
pub mod load;
pub mod model;
pub mod needs;
pub mod ontology;
pub mod outputs;
pub mod overrides;
pub mod pack;
pub mod provenance;
pub mod relocate;
pub mod run;
pub mod stage;
pub mod tool;
pub mod tree;
pub mod type_system;
pub mod value;
pub mod web;
mod work_dir;

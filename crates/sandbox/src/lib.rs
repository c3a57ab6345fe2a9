//! Runs one process tree between Linux namespaces, and ends it.
pub mod capability;
pub mod cgroup;
pub mod seccomp;

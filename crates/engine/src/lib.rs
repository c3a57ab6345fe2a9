//! Life cycle of containers over the sandbox: create, start, wait, remove, collect.

//! Runs one process tree between Linux namespaces, and ends it.

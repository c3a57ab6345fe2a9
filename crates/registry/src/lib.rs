//! The OCI distribution protocol: a client that pulls and pushes.
//!
//! One idea: bytes go from the socket straight into the store, which hashes and unpacks them on the way; what
//! breaks on the way is continued where it broke. Blocking calls and a few threads, no async runtime.
//!
//! A registry is not trusted: every size is bounded, every digest is checked, and credentials never leave
//! the registry they are for.
//!
//! Specifications: OCI distribution-spec 1.1, distribution's token authentication, Docker's `config.json`,
//! containers-registries.conf(5).

mod artifact;
mod auth;
mod blob;
mod catalog;
mod challenge;
mod client;
mod copy;
mod credential_helper;
mod credentials;
mod daemon;
mod error;
mod guard;
mod hash;
mod http;
mod keyserver;
mod library;
mod location;
mod manifest;
mod oras;
mod pages;
mod proxy;
mod pull;
mod push;
mod referrers;
mod registries;
pub mod retry;
mod tag;
mod together;
mod trust;
mod upload;
pub mod web;

pub use artifact::NewArtifact;
pub use client::{Client, ClientOptions};
pub use copy::{Copied, CopyFrom, CopyOptions, CopyTo, Platforms, copy, copy_to_docker_archive};
pub use credentials::{Credentials, Login};
pub use daemon::Daemon;
pub use error::{Error, Result};
pub use guard::is_link_local;
pub use keyserver::KeyServer;
pub use library::{Library, LibraryImage, LibraryMatch, LibraryName};
pub use manifest::{Document, Resolved};
pub use oras::{SIF_CONFIG, SIF_LAYER, SifArtifact};
pub use pull::Pulled;
pub use push::Pushed;
pub use registries::Registries;
pub use trust::host_certificates;

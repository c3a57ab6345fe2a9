//! A registry over the local store: the server's side of the OCI distribution specification.
//!
//! One idea: the store's files are all the state there is. A repository is a folder of links to the store's blobs,
//! an upload is a file that grows, so any number of server processes serve one store, and one that is killed loses
//! nothing but requests under way. What is pushed is hashed while it comes, what is pulled goes from the file to the
//! socket, and neither is ever in memory as a whole.
//!
//! Clients are not trusted: every size is bounded, every digest is checked, a connection on which nothing moves is
//! closed.
//!
//! Specifications: OCI distribution-spec 1.1 with the endpoints that 1.2 adds, Docker's schema 2 types and headers,
//! distribution's token authentication.

mod access;
mod blob;
mod config;
mod connection;
mod error;
mod glob;
mod handle;
mod identity;
mod list;
mod log;
mod manifest;
mod metrics;
mod mirror;
mod page;
mod passwords;
mod quota;
mod reply;
mod retention;
mod route;
mod self_signed;
mod sendfile;
mod server;
mod tls;
mod token;
mod upload;

pub use access::{Access, Action, Rule};
pub use config::{Collect, Config, MirrorConfig, Quota, Retention, TlsConfig, parse_duration};
pub use error::{Error, Result};
pub use glob::fits;
pub use log::LogTo;
pub use retention::collect;
pub use server::Server;
pub use tls::OwnCertificate;

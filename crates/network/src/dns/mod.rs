//! Names of containers: answered by whoever stays with a container, on sockets in the container's own network namespace, from
//! what is written down of networks. All other questions go to the host's servers, from the host's network.

mod connection;
pub mod message;
mod resolver;
mod sockets;
mod upstreams;

pub use resolver::{Resolver, Token};
pub use sockets::{ADDRESS, Sockets};
pub use upstreams::Upstreams;

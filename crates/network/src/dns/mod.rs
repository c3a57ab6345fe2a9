//! Names of containers: answered by whoever stays with a container, on sockets in the container's own network namespace, from
//! what is written down of networks. All other questions go to the host's servers, from the host's network.

pub mod message;
mod resolver;

pub use resolver::{ADDRESS, Resolver, Sockets, Token, Upstreams};

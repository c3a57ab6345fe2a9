//! Networks of containers: bridges and pairs of devices, addresses, one table of the host's firewall, and published ports.
//!
//! Nobody stays awake for a network. What there is, is written down below one folder ([`state`]); what the kernel
//! has to know of it is said over netlink, by the process that starts a container, and can be said again from what is
//! written down when somebody has flushed it. No program is run for any of this.

pub mod dns;
mod error;
pub mod firewall;
pub mod netlink;
pub mod place;
pub mod state;
pub mod subnet;
pub mod user;

pub use error::{Error, Result};
pub use isles_spec::port::{self, Port, Protocol};
pub use subnet::Subnet;

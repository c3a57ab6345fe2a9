//! Networks for users who have no rights on the host's: what a container sends is taken up by this process, and goes
//! on through sockets like those of any program.
//!
//! | module | for |
//! |---|---|
//! | [`inside`] | what the container's network namespace gets |
//! | [`serve`] | the thread that serves it |
//! | [`ring`] | frames from and to the namespace |
//! | [`stack`] | which packet belongs to which socket |
//! | [`relay`] | from the host's own loopback to a published port |
//! | `late` | what a container needs that joins others while it runs |
//! | `tcp` | one connection, without buffers of its own |
//! | [`neighbour`] | from one container to another |
//! | [`packet`] | headers |
//! | `parts` | packets that were too long for the device |
//! | [`rules`] | where packets may go |

pub mod door;
pub mod inside;
mod late;
mod link;
pub mod neighbour;
pub mod packet;
mod parts;
pub mod relay;
pub mod ring;
pub mod rules;
pub mod serve;
mod socket;
pub mod stack;
mod tcp;

pub use late::Late;
pub use link::Link;
pub use serve::{Kind, Listener, Service, serve};

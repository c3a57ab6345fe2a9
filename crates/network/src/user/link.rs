//! Where the frames of a container come from and go to.

use std::net::IpAddr;

use super::inside::{MAC, ROUTER};
use super::packet::{Headers, Way};

/// Something that frames can be sent to. One that cannot be sent is lost, as on any wire.
pub trait Link {
    fn send(&mut self, headers: &Headers, data: &[u8]);

    /// From now on the container's device has this address.
    fn belongs_to(&mut self, mac: [u8; 6]);
}

/// From where to where, on the one link that there is. Whoever sends it puts the address of the container's device in its
/// place, where that is another one.
pub(super) fn way(from: IpAddr, to: IpAddr) -> Way {
    Way { from, to, device: MAC, router: ROUTER }
}

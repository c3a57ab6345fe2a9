//! Packets that a container's kernel had to cut, because its device has a smaller MTU than what was sent: put together again.
//!
//! There is nothing on the way that could change the order of parts, so each is the next one of its packet, or the packet is
//! lost (RFC 791, section 3.2; RFC 8200, section 4.5). So many packets are put together at once, and none is longer than the
//! longest that there are.

use std::net::IpAddr;

use super::packet::Ip;

/// So many packets may be incomplete.
const MOST: usize = 8;
const LONGEST: usize = 65_535;

/// From whom to whom, by which protocol, and which packet of theirs.
type Key = (IpAddr, IpAddr, u8, u32);

/// What is known of packets that are not complete.
#[derive(Debug, Default)]
pub struct Parts {
    /// The oldest first.
    begun: Vec<(Key, Vec<u8>)>,
}

impl Parts {
    /// Takes a part. Returns the payload of a packet that is whole with it.
    pub fn take(&mut self, ip: &Ip<'_>) -> Option<Vec<u8>> {
        let part = ip.part?;
        let key = (ip.source, ip.destination, ip.protocol, part.id);
        let found = self.begun.iter().position(|(known, _)| *known == key).map(|at| self.begun.remove(at).1);
        // One that begins anew takes the place of what was there.
        let mut payload = if part.offset == 0 { Vec::new() } else { found? };
        if payload.len() != part.offset || payload.len() + ip.payload.len() > LONGEST {
            return None;
        }
        payload.extend_from_slice(ip.payload);
        if part.last {
            return Some(payload);
        }
        if self.begun.len() >= MOST {
            self.begun.remove(0);
        }
        self.begun.push((key, payload));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Part, UDP};
    use super::*;

    fn part(id: u32, offset: usize, last: bool, payload: &[u8]) -> Ip<'_> {
        Ip {
            source: [10, 0, 2, 100].into(),
            destination: [10, 0, 2, 2].into(),
            protocol: UDP,
            payload,
            each: None,
            part: Some(Part { id, offset, last }),
        }
    }

    #[test]
    fn parts_in_their_order_are_a_packet() {
        let mut parts = Parts::default();
        assert_eq!(parts.take(&part(1, 0, false, &[1; 8])), None);
        assert_eq!(parts.take(&part(2, 0, false, &[2; 8])), None);
        assert_eq!(parts.take(&part(1, 8, false, &[3; 8])), None);
        assert_eq!(parts.take(&part(2, 8, true, &[4; 3])).unwrap(), [[2; 8].as_slice(), &[4; 3]].concat());
        assert_eq!(parts.take(&part(1, 16, true, &[])).unwrap(), [[1; 8], [3; 8]].concat());
        assert!(parts.begun.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_lost_and_nothing_grows_without_end() {
        let mut parts = Parts::default();
        assert_eq!(parts.take(&part(1, 8, true, &[1; 8])), None, "it has no beginning");
        assert_eq!(parts.take(&part(1, 0, false, &[1; 8])), None);
        assert_eq!(parts.take(&part(1, 24, true, &[1; 8])), None, "something is missing");
        assert_eq!(parts.take(&part(1, 8, true, &[1; 8])), None, "and then it is gone");
        for id in 0..100 {
            assert_eq!(parts.take(&part(id, 0, false, &[0; 1400])), None);
        }
        assert_eq!(parts.begun.len(), MOST);
        let last = |parts: &Parts| parts.begun.last().unwrap().1.len();
        while parts.begun.iter().any(|((.., id), _)| *id == 99) {
            let offset = last(&parts);
            assert!(offset <= LONGEST);
            assert_eq!(parts.take(&part(99, offset, false, &[0; 1400])), None);
        }
    }
}

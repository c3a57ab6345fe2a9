//! How messages and their attributes are laid out: linux/netlink.h.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

/// Refusals and acknowledgements (NLMSG_ERROR).
pub const ERROR: u16 = 2;
/// The end of a list (NLMSG_DONE).
pub const DONE: u16 = 3;

/// NLM_F_REQUEST, and others of its kind.
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
pub const REPLACE: u16 = 0x100;
pub const EXCLUSIVE: u16 = 0x200;
pub const DUMP: u16 = 0x300;
pub const CREATE: u16 = 0x400;
pub const APPEND: u16 = 0x800;

/// NLA_F_NESTED.
const NESTED: u16 = 1 << 15;
/// Without the two bits that say how an attribute is encoded.
const ATTRIBUTE_KIND: u16 = 0x3fff;
const HEADER: usize = 16;

/// What a message begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: u16,
    pub sequence: u32,
}

/// Messages that go to the kernel together.
#[derive(Debug, Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    /// The number of the first message. Late answers to other batches are known by theirs.
    first: u32,
    count: u32,
    acknowledged: Vec<u32>,
    transaction: bool,
}

/// So many messages a batch has at most.
const ROOM: u32 = 1 << 16;
static NUMBERS: AtomicU32 = AtomicU32::new(ROOM);

impl Default for Batch {
    fn default() -> Batch {
        let first = NUMBERS.fetch_add(ROOM, Ordering::Relaxed);
        Batch { bytes: Vec::new(), first, count: 0, acknowledged: Vec::new(), transaction: false }
    }
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Messages of which all or none take effect.
    pub fn transaction() -> Batch {
        Batch { transaction: true, ..Batch::default() }
    }

    /// Adds a message that is acknowledged; `flags` besides those that say so.
    pub fn command(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        self.acknowledged.push(self.first.wrapping_add(self.count));
        self.message(kind, flags | ACKNOWLEDGE, body);
    }

    /// Adds a message that is answered, or that only frames others.
    pub fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&self.first.wrapping_add(self.count).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(&mut Body(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
        self.count += 1;
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// How many of its messages are acknowledged.
    pub fn commands(&self) -> usize {
        self.acknowledged.len()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn acknowledged(&self) -> &[u32] {
        &self.acknowledged
    }

    pub(super) fn is_transaction(&self) -> bool {
        self.transaction
    }

    pub(super) fn has(&self, sequence: u32) -> bool {
        sequence.wrapping_sub(self.first) < self.count
    }

    pub(super) fn index(&self, sequence: u32) -> usize {
        sequence.wrapping_sub(self.first) as usize
    }
}

/// The inside of a message that is being written.
#[derive(Debug)]
pub struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
    /// The fixed part that some messages begin with.
    pub fn fixed(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        pad(self.0);
        self
    }

    /// Attributes that were made before ([`inner`]).
    pub(super) fn raw(&mut self, attributes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(attributes);
        self
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        pad(self.0);
        self
    }

    /// As the rest of the kernel counts.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// In the order of the network, as the firewall has all its numbers.
    pub fn network_number(&mut self, kind: u16, value: u32) -> &mut Self {
        self.attribute(kind, &value.to_be_bytes())
    }

    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// An attribute that is made of others.
    pub fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 2]);
        self.0.extend_from_slice(&(kind | NESTED).to_ne_bytes());
        body(&mut Body(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self
    }
}

/// Attributes that are to stand in others later.
pub(super) fn inner(body: impl FnOnce(&mut Body<'_>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    body(&mut Body(&mut bytes));
    bytes
}

/// Netlink aligns everything to four bytes.
fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The messages of an answer.
pub(crate) fn split(mut bytes: &[u8]) -> io::Result<Vec<(Header, Vec<u8>)>> {
    let mut out = Vec::new();
    while bytes.len() >= HEADER {
        let length = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize;
        if length < HEADER || length > bytes.len() {
            return Err(io::Error::other("an answer of the kernel is malformed"));
        }
        let header = Header {
            kind: u16::from_ne_bytes([bytes[4], bytes[5]]),
            sequence: u32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]]),
        };
        out.push((header, bytes[HEADER..length].to_vec()));
        bytes = &bytes[length.next_multiple_of(4).min(bytes.len())..];
    }
    Ok(out)
}

/// The attributes in `bytes`, by kind. What is cut off at the end is left out.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = (bytes.first_chunk::<2>()?, bytes.get(2..4)?);
        let length = usize::from(u16::from_ne_bytes(*length));
        let value = bytes.get(4..length)?;
        let kind = u16::from_ne_bytes([kind[0], kind[1]]) & ATTRIBUTE_KIND;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of an attribute.
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text that may end with a zero byte.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut batch = Batch::new();
        batch.command(16, CREATE, |body| {
            body.fixed(&[7; 6]).text(3, "lo").nested(18, |inner| {
                inner.number(1, 5).network_number(2, 5);
            });
        });
        batch.message(9, 0, |_| {});
        assert_eq!(batch.bytes().len() % 4, 0);
        let messages = split(batch.bytes()).unwrap();
        assert_eq!(messages.len(), 2);
        let first = messages[0].0.sequence;
        assert_eq!(messages[0].0.kind, 16);
        assert_eq!(messages[1], (Header { kind: 9, sequence: first + 1 }, Vec::new()));
        assert!(batch.has(first + 1) && !batch.has(first + 2) && !Batch::new().has(first));
        let found = &messages[0].1[8..];
        assert_eq!(attribute(found, 3).map(text).as_deref(), Some("lo"));
        let inner = attribute(found, 18).unwrap();
        assert_eq!(attribute(inner, 1), Some(&5u32.to_ne_bytes()[..]));
        assert_eq!(attribute(inner, 2), Some(&5u32.to_be_bytes()[..]));
        assert_eq!(attribute(inner, 9), None);
    }

    #[test]
    fn malformed_answers() {
        let mut good = Batch::new();
        good.message(1, 0, |body| {
            body.number(1, 2);
        });
        let good = good.bytes();
        for length in [0u32, 15, 1000, u32::MAX] {
            let mut bad = good.to_vec();
            bad[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(split(&bad).is_err(), "{length}");
        }
        // Attributes that claim too much, or less than their own header, end the list.
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bad = good[16..].to_vec();
            bad[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(attributes(&bad).count(), 0, "{length}");
        }
        assert_eq!(attributes(&[1]).count(), 0);
    }
}

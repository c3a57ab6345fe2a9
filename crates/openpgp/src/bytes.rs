//! Packets and what is in them, read and written (RFC 9580, sections 3 and 4).

/// A keyring or a block of signatures may have this many bytes.
pub const LIMIT: usize = 4 << 20;

/// Bytes that do not follow the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

pub(crate) type Result<T> = std::result::Result<T, Malformed>;

/// A cursor over bytes that refuses to run over their end.
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed("it is cut short"))?;
        self.0 = rest;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub fn u16(&mut self) -> Result<usize> {
        Ok(usize::from(u16::from_be_bytes(self.array()?)))
    }

    pub fn u32(&mut self) -> Result<u64> {
        Ok(u64::from(u32::from_be_bytes(self.array()?)))
    }

    /// A multi-precision integer without its leading zeros.
    pub fn integer(&mut self) -> Result<Vec<u8>> {
        let bits = self.u16()?;
        if bits > 16384 {
            return Err(Malformed("a number is too large"));
        }
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Ok(bytes[zeros..].to_vec())
    }

    /// The next packet's tag and body.
    pub fn packet(&mut self) -> Result<(u8, &'a [u8])> {
        let head = self.byte()?;
        if head & 0x80 == 0 {
            return Err(Malformed("it is not an OpenPGP packet"));
        }
        if head & 0x40 != 0 {
            let length = match self.byte()? {
                first @ 0..=191 => usize::from(first),
                first @ 192..=223 => ((usize::from(first) - 192) << 8) + usize::from(self.byte()?) + 192,
                255 => self.length32()?,
                _ => return Err(Malformed("a packet comes in parts")),
            };
            return Ok((head & 0x3f, self.take(length)?));
        }
        let length = match head & 3 {
            0 => usize::from(self.byte()?),
            1 => self.u16()?,
            2 => self.length32()?,
            _ => return Err(Malformed("a packet has no length")),
        };
        Ok(((head >> 2) & 0x0f, self.take(length)?))
    }

    pub fn length32(&mut self) -> Result<usize> {
        match usize::try_from(self.u32()?) {
            Ok(n) if n <= LIMIT => Ok(n),
            _ => Err(Malformed("a packet is too long")),
        }
    }
}

/// A packet with its header.
pub(crate) fn packet(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0xc0 | tag];
    match body.len() {
        n @ 0..=191 => packet.push(n as u8),
        n @ 192..=8383 => packet.extend_from_slice(&[((n - 192) >> 8) as u8 + 192, (n - 192) as u8]),
        n => {
            packet.push(255);
            packet.extend_from_slice(&(n as u32).to_be_bytes());
        }
    }
    packet.extend_from_slice(body);
    packet
}

/// A multi-precision integer: how many bits it has, and its bytes without leading zeros.
pub(crate) fn integer(value: &[u8]) -> Vec<u8> {
    let zeros = value.iter().take_while(|b| **b == 0).count();
    let value = &value[zeros..];
    let bits = value.first().map_or(0, |first| value.len() * 8 - first.leading_zeros() as usize);
    [&(bits as u16).to_be_bytes(), value].concat()
}

/// Brings the bytes of a number to a length.
pub(crate) fn left_pad(value: &[u8], length: usize) -> Option<Vec<u8>> {
    let missing = length.checked_sub(value.len())?;
    let mut padded = vec![0; missing];
    padded.extend_from_slice(value);
    Some(padded)
}

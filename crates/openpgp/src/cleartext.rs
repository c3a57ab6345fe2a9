//! Text with its signatures below it (RFC 9580, section 7), as `InRelease` files have it.
//!
//! What is handed out is exactly what was signed. Anything before, between or after the framework's own
//! lines is refused: readers that skipped over it have been fooled that way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::bytes::{LIMIT, Malformed};
use crate::signature::{Signature, signatures};

const BEGIN: &str = "-----BEGIN PGP SIGNED MESSAGE-----";
const SIGNATURE: &str = "-----BEGIN PGP SIGNATURE-----";

/// A text and the signatures that claim to be over it; nothing has been verified.
#[derive(Debug)]
pub struct Signed {
    /// Lines with LF at their ends.
    pub text: String,
    /// The same as it is hashed: CR LF between lines, none at the end.
    pub canonical: Vec<u8>,
    pub signatures: Vec<Signature>,
}

/// Takes a signed message apart.
pub fn parse(message: &[u8]) -> Result<Signed, Malformed> {
    let message = std::str::from_utf8(message).map_err(|_| Malformed("it is not UTF-8"))?;
    let mut lines = message.split_inclusive('\n');
    if lines.next().map(str::trim_end) != Some(BEGIN) {
        return Err(Malformed("it does not begin with a signed message"));
    }
    let mut position = message.find('\n').map_or(message.len(), |at| at + 1);
    for line in lines.by_ref() {
        position += line.len();
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if !line.starts_with("Hash: ") {
            return Err(Malformed("there is something between its first line and its text"));
        }
    }
    let mut text = String::with_capacity(message.len());
    let mut canonical = Vec::with_capacity(message.len() + message.len() / 32);
    let mut block = None;
    for line in lines {
        let content = line.trim_end_matches(['\n', '\r', ' ', '\t']);
        if content == SIGNATURE {
            block = Some(&message[position..]);
            break;
        }
        position += line.len();
        let content = match content.strip_prefix("- ") {
            Some(escaped) => escaped,
            None if content.starts_with('-') => {
                return Err(Malformed("a line of its text begins with a dash"));
            }
            None => content,
        };
        if !canonical.is_empty() || !text.is_empty() {
            canonical.extend_from_slice(b"\r\n");
        }
        canonical.extend_from_slice(content.as_bytes());
        text.push_str(content);
        text.push('\n');
    }
    let block = block.ok_or(Malformed("it has no signature"))?;
    let (packets, after) = armored(block, "SIGNATURE")?;
    if !after.trim().is_empty() {
        return Err(Malformed("there is something after its signature"));
    }
    Ok(Signed { text, canonical, signatures: signatures(&packets)? })
}

/// Decodes the armored block that `text` begins with, and gives the rest behind it (RFC 9580, section 6.2).
/// The checksum is optional and protects against nothing, so it is not looked at.
pub fn armored<'a>(text: &'a str, kind: &str) -> Result<(Vec<u8>, &'a str), Malformed> {
    let (begin, end) = (format!("-----BEGIN PGP {kind}-----"), format!("-----END PGP {kind}-----"));
    let body = text.strip_prefix(begin.as_str()).ok_or(Malformed("an armored block is missing"))?;
    let close = body.find(end.as_str()).ok_or(Malformed("an armored block is cut short"))?;
    let after = &body[close + end.len()..];
    if close > 2 * LIMIT {
        return Err(Malformed("an armored block is too long"));
    }
    let mut packets = Vec::with_capacity(close * 3 / 4);
    let mut in_headers = true;
    let (mut buffer, mut bits) = (0u32, 0);
    for line in body[..close].lines().skip(1) {
        let line = line.trim();
        if in_headers {
            in_headers = line.contains(": ");
            if line.is_empty() || in_headers {
                continue;
            }
        }
        if line.starts_with('=') {
            break;
        }
        for byte in line.bytes() {
            let value = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                b'=' => continue,
                _ => return Err(Malformed("an armored block has a character that is not base64")),
            };
            buffer = buffer << 6 | u32::from(value);
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                packets.push((buffer >> bits) as u8);
                buffer &= (1 << bits) - 1;
            }
        }
    }
    Ok((packets, after))
}

/// Packets as text. The checksum is optional (RFC 9580, section 6.1), and signatures of SIF files have none, but without it
/// GnuPG 2.2 takes the last line for more of them where their number of bytes can be divided by three.
pub fn armor(packets: &[u8], kind: &str, with_checksum: bool) -> String {
    let encoded = STANDARD.encode(packets);
    let mut text = format!("-----BEGIN PGP {kind}-----\n\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    if with_checksum {
        text.push_str(&format!("={}\n", STANDARD.encode(checksum(packets))));
    }
    text.push_str(&format!("-----END PGP {kind}-----"));
    text
}

/// A text with the signature below it that `sign` makes of its canonical form. Lines of the text end with LF, and
/// have no blanks before it.
pub(crate) fn compose(text: &str, hash: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let mut message = format!("{BEGIN}\nHash: {hash}\n\n");
    let mut canonical = Vec::with_capacity(text.len() + 16);
    for (n, line) in text.trim_end_matches('\n').split('\n').enumerate() {
        if n > 0 {
            canonical.extend_from_slice(b"\r\n");
        }
        canonical.extend_from_slice(line.trim_end_matches(['\r', ' ', '\t']).as_bytes());
        if line.starts_with('-') {
            message.push_str("- ");
        }
        message.push_str(line);
        message.push('\n');
    }
    message + &armor(&sign(&canonical), "SIGNATURE", false)
}

/// CRC-24 (RFC 9580, section 6.1.1).
fn checksum(bytes: &[u8]) -> [u8; 3] {
    let crc = bytes.iter().fold(0xb7_04ce_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte) << 16, |crc, _| {
            let next = crc << 1;
            if next & 0x100_0000 == 0 { next } else { next ^ 0x186_4cfb }
        })
    });
    let [_, checksum @ ..] = crc.to_be_bytes();
    checksum
}

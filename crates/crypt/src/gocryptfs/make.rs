//! Makes encrypted files, and the tree around them.

use std::io::{self, Read, Seek, SeekFrom};

use isles_squashfs::{Compression, FileType, Fragments, Node, Options, Tree};

use super::config::Config;
use super::{CONFIG, HEADER, NONCE, PLAIN, PREFIX, SEALED, VERSION, about};
use crate::error::{Error, Result};
use crate::gcm::{Gcm, TAG};
use crate::kdf::{fill_random, random};
use crate::luks::Strength;

/// Both files that are in the image around.
pub struct Files<R> {
    plain: R,
    /// Bytes of what is encrypted.
    len: u64,
    name: Vec<u8>,
    config: Vec<u8>,
    gcm: Gcm,
    id: [u8; 16],
    time: i64,
}

/// The tree with `len` bytes of `plain` in it, encrypted. It is read from its beginning each time.
pub fn encrypt<R: Read + Seek>(
    plain: R,
    len: u64,
    passphrase: &[u8],
    strength: Strength,
    time: i64,
) -> Result<Files<R>> {
    let log_n = match strength {
        Strength::Passphrase => 16,
        Strength::Random => 10,
    };
    let (config, gcm) = Config::make(passphrase, log_n)?;
    // As Apptainer names it: after a file for temporary use.
    let number = u32::from_ne_bytes(random()?);
    let name = [PREFIX, number.to_string().as_bytes()].concat();
    Ok(Files { plain, len, name, config, gcm, id: random()?, time })
}

/// How the image around is to be written: what is encrypted can be made no smaller, and is never the same twice.
pub fn around() -> Options {
    let (compression, fragments) = (Compression::None, Fragments::Small);
    Options { compression, fragments, deduplicate: false, ..Options::default() }
}

impl<R: Read + Seek> Tree for Files<R> {
    fn root(&mut self) -> io::Result<Node> {
        Ok(Node { mtime: self.time, ..Node::new("", FileType::Dir, 0o755) })
    }

    fn children(&mut self, path: &[u8]) -> io::Result<Vec<Node>> {
        if !path.is_empty() {
            return Ok(Vec::new());
        }
        let blocks = self.len.div_ceil(PLAIN as u64);
        let sealed = HEADER + self.len + blocks * (SEALED - PLAIN) as u64;
        let file = |name: &[u8], mode, size| Node {
            size,
            mtime: self.time,
            ..Node::new(name, FileType::File, mode)
        };
        Ok(vec![file(CONFIG.as_bytes(), 0o400, self.config.len() as u64), file(&self.name, 0o644, sealed)])
    }

    fn open(&mut self, path: &[u8]) -> io::Result<Box<dyn Read + '_>> {
        if path == CONFIG.as_bytes() {
            return Ok(Box::new(self.config.as_slice()));
        }
        self.plain.seek(SeekFrom::Start(0))?;
        let header = [&VERSION.to_be_bytes()[..], &self.id].concat();
        Ok(Box::new(Encrypting {
            plain: (&mut self.plain).take(self.len),
            gcm: &self.gcm,
            id: &self.id,
            block: header,
            given: 0,
            number: 0,
        }))
    }
}

/// A file as it is encrypted.
pub struct Encrypting<'a, R> {
    plain: io::Take<&'a mut R>,
    gcm: &'a Gcm,
    id: &'a [u8; 16],
    block: Vec<u8>,
    given: usize,
    number: u64,
}

impl<R: Read> Read for Encrypting<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() {
            self.block.clear();
            self.given = 0;
            self.block.resize(NONCE, 0);
            let n = (&mut self.plain).take(PLAIN as u64).read_to_end(&mut self.block)?;
            if n == 0 {
                self.block.clear();
                return Ok(0);
            }
            let (nonce, data) = self.block.split_at_mut(NONCE);
            fill_random(nonce).map_err(|e: Error| io::Error::other(e))?;
            let nonce = std::array::from_fn(|n| nonce[n]);
            let tag: [u8; TAG] = self.gcm.seal(&nonce, &about(self.number, self.id), data);
            self.block.extend(tag);
            self.number += 1;
        }
        let n = out.len().min(self.block.len() - self.given);
        out[..n].copy_from_slice(&self.block[self.given..self.given + n]);
        self.given += n;
        Ok(n)
    }
}

//! As much of an ELF file as tells whether a library of the host runs in an image: its machine, the newest version of
//! glibc that it needs, and the newest that it provides (System V gABI, chapters 4 and 5; LSB, symbol versioning).
//!
//! Files are read in place and never trusted: every offset is checked, and loops have an end.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// The tables that are looked at have at most this many entries.
const MOST: usize = 4096;
/// And so often is read from one file at all; a large library needs some hundreds.
const READS: u32 = 1 << 16;
/// Names of versions are short.
const LONGEST_NAME: usize = 64;

const PT_LOAD: u32 = 1;
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_VERDEF: u64 = 0x6fff_fffc;
const DT_VERDEFNUM: u64 = 0x6fff_fffd;
const DT_VERNEED: u64 = 0x6fff_fffe;
const DT_VERNEEDNUM: u64 = 0x6fff_ffff;

/// A version of glibc: 2.17 is `(2, 17)`.
pub type Version = (u32, u32);

/// What a library is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Library {
    /// `e_machine`: 62 for x86-64, 183 for AArch64, 3 for i386.
    pub machine: u16,
    pub wide: bool,
    /// The newest `GLIBC_` version of the symbols that it needs.
    pub needs: Option<Version>,
    /// The newest that it defines: for glibc itself.
    pub provides: Option<Version>,
}

/// The machine of this program.
pub fn own_machine() -> (u16, bool) {
    match std::env::consts::ARCH {
        "x86_64" => (62, true),
        "aarch64" => (183, true),
        "x86" => (3, false),
        "arm" => (40, false),
        "powerpc64" => (21, true),
        "s390x" => (22, true),
        "riscv64" => (243, true),
        "loongarch64" => (258, true),
        _ => (0, true),
    }
}

/// What the name of a machine is in messages (Go's names, as Apptainer has them).
pub fn machine_name(machine: u16, wide: bool) -> &'static str {
    match (machine, wide) {
        (62, _) => "amd64",
        (3, _) => "386",
        (183, _) => "arm64",
        (40, _) => "arm",
        (21, _) => "ppc64le",
        (22, _) => "s390x",
        (243, _) => "riscv64",
        (258, _) => "loong64",
        _ => "unknown architecture",
    }
}

struct Elf<'a> {
    read: &'a dyn Fn(&mut [u8], u64) -> bool,
    left: Cell<u32>,
    wide: bool,
    little: bool,
}

impl Elf<'_> {
    fn bytes<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.left.set(self.left.get().checked_sub(1)?);
        let mut bytes = [0; N];
        (self.read)(&mut bytes, at).then_some(bytes)
    }

    fn u16(&self, at: u64) -> Option<u16> {
        let bytes = self.bytes(at)?;
        Some(if self.little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    }

    fn u32(&self, at: u64) -> Option<u32> {
        let bytes = self.bytes(at)?;
        Some(if self.little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) })
    }

    fn word(&self, at: u64) -> Option<u64> {
        if !self.wide {
            return self.u32(at).map(u64::from);
        }
        let bytes = self.bytes(at)?;
        Some(if self.little { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
    }

    fn name(&self, at: u64) -> Option<String> {
        let mut name = Vec::new();
        for n in 0..LONGEST_NAME as u64 {
            match self.bytes::<1>(at.checked_add(n)?)? {
                [0] => return String::from_utf8(name).ok(),
                [byte] => name.push(byte),
            }
        }
        None
    }
}

/// Reads a library; `None` for what is no ELF file.
pub fn library(file: &File) -> Option<Library> {
    inspect(&|out, at| file.read_exact_at(out, at).is_ok())
}

/// Reads a library that is in memory.
pub fn library_in(bytes: &[u8]) -> Option<Library> {
    inspect(&|out, at| {
        let Ok(at) = usize::try_from(at) else { return false };
        let Some(part) = at.checked_add(out.len()).and_then(|end| bytes.get(at..end)) else { return false };
        out.copy_from_slice(part);
        true
    })
}

fn inspect(read: &dyn Fn(&mut [u8], u64) -> bool) -> Option<Library> {
    let mut ident = [0u8; 16];
    if !read(&mut ident, 0) || !ident.starts_with(b"\x7fELF") {
        return None;
    }
    let elf = Elf { read, left: Cell::new(READS), wide: ident[4] == 2, little: ident[5] == 1 };
    let mut out = Library { machine: elf.u16(18)?, wide: elf.wide, ..Library::default() };
    // What cannot be understood below leaves the versions unknown.
    let _ = versions(&elf, &mut out);
    Some(out)
}

fn versions(elf: &Elf<'_>, out: &mut Library) -> Option<()> {
    let (table_at, size_at, count_at) = if elf.wide { (32, 54, 56) } else { (28, 42, 44) };
    let table = elf.word(table_at)?;
    let (size, count) = (u64::from(elf.u16(size_at)?), usize::from(elf.u16(count_at)?).min(MOST));
    let mut loads = Vec::new();
    let mut dynamic = None;
    for n in 0..count as u64 {
        let at = table.checked_add(n.checked_mul(size)?)?;
        let (offset, address, length) = if elf.wide {
            (elf.word(at.checked_add(8)?)?, elf.word(at.checked_add(16)?)?, elf.word(at.checked_add(32)?)?)
        } else {
            (elf.word(at.checked_add(4)?)?, elf.word(at.checked_add(8)?)?, elf.word(at.checked_add(16)?)?)
        };
        match elf.u32(at)? {
            PT_LOAD => loads.push((address, length, offset)),
            PT_DYNAMIC => dynamic = Some((offset, length)),
            _ => {}
        }
    }
    let (dynamic, length) = dynamic?;
    let step = if elf.wide { 16 } else { 8 };
    let mut tags = [None; 5];
    for n in 0..(length / step).min(MOST as u64) {
        let at = dynamic.checked_add(n * step)?;
        let (mut tag, value) = (elf.word(at)?, elf.word(at.checked_add(step / 2)?)?);
        if !elf.wide {
            tag = u64::from(u32::try_from(tag).ok()?);
        }
        match tag {
            0 => break,
            DT_STRTAB => tags[0] = Some(value),
            DT_VERNEED => tags[1] = Some(value),
            DT_VERNEEDNUM => tags[2] = Some(value),
            DT_VERDEF => tags[3] = Some(value),
            DT_VERDEFNUM => tags[4] = Some(value),
            _ => {}
        }
    }
    // Addresses of a library are those of its segments.
    let place = |address: u64| {
        loads.iter().find_map(|(start, length, offset)| {
            let into = address.checked_sub(*start)?;
            (into < *length).then_some(offset.checked_add(into)?)
        })
    };
    let names = place(tags[0]?)?;
    if let (Some(needs), Some(count)) = (tags[1], tags[2]) {
        let mut at = place(needs)?;
        for _ in 0..count.min(MOST as u64) {
            let (entries, first, next) =
                (elf.u16(at.checked_add(2)?)?, elf.u32(at.checked_add(8)?)?, elf.u32(at.checked_add(12)?)?);
            let mut entry = at.checked_add(u64::from(first))?;
            for _ in 0..entries {
                let name = elf.name(names.checked_add(u64::from(elf.u32(entry.checked_add(8)?)?))?)?;
                out.needs = out.needs.max(glibc(&name));
                match elf.u32(entry.checked_add(12)?)? {
                    0 => break,
                    next => entry = entry.checked_add(u64::from(next))?,
                }
            }
            match next {
                0 => break,
                next => at = at.checked_add(u64::from(next))?,
            }
        }
    }
    if let (Some(defined), Some(count)) = (tags[3], tags[4]) {
        let mut at = place(defined)?;
        for _ in 0..count.min(MOST as u64) {
            let (first, next) = (elf.u32(at.checked_add(12)?)?, elf.u32(at.checked_add(16)?)?);
            let name = elf.u32(at.checked_add(u64::from(first))?)?;
            let name = elf.name(names.checked_add(u64::from(name))?)?;
            out.provides = out.provides.max(glibc(&name));
            match next {
                0 => break,
                next => at = at.checked_add(u64::from(next))?,
            }
        }
    }
    Some(())
}

/// `GLIBC_2.17`; `GLIBC_PRIVATE` is no version.
fn glibc(name: &str) -> Option<Version> {
    let mut numbers = name.strip_prefix("GLIBC_")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// ELF files for tests.
#[cfg(test)]
pub mod made {
    /// A library of this machine that needs one version of glibc, or defines one.
    pub fn library(machine: u16, version: &str, defines: bool) -> Vec<u8> {
        let mut out = vec![0u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &3u16.to_le_bytes());
        put(18, &machine.to_le_bytes());
        put(32, &64u64.to_le_bytes());
        put(54, &56u16.to_le_bytes());
        put(56, &2u16.to_le_bytes());
        let mut segment = |at: usize, kind: u32, offset: u64, address: u64, length: u64| {
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 16, &address.to_le_bytes());
            put(at + 32, &length.to_le_bytes());
        };
        segment(64, 1, 0, 0x1000, 0x400);
        segment(120, 2, 0x200, 0x1200, 0x60);
        let (table, count) =
            if defines { (0x6fff_fffcu64, 0x6fff_fffdu64) } else { (0x6fff_fffe, 0x6fff_ffff) };
        for (n, (tag, value)) in [(5u64, 0x1300u64), (table, 0x1280), (count, 1)].into_iter().enumerate() {
            put(0x200 + n * 16, &tag.to_le_bytes());
            put(0x208 + n * 16, &value.to_le_bytes());
        }
        if defines {
            put(0x280 + 12, &20u32.to_le_bytes());
            put(0x280 + 20, &1u32.to_le_bytes());
        } else {
            put(0x280 + 2, &1u16.to_le_bytes());
            put(0x280 + 8, &16u32.to_le_bytes());
            put(0x290 + 8, &1u32.to_le_bytes());
        }
        put(0x301, version.as_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_library_needs_and_provides() {
        let needs = made::library(62, "GLIBC_2.34", false);
        let expected = Library { machine: 62, wide: true, needs: Some((2, 34)), provides: None };
        assert_eq!(library_in(&needs), Some(expected));
        let provides = library_in(&made::library(183, "GLIBC_2.36", true)).unwrap();
        assert_eq!((provides.machine, provides.provides, provides.needs), (183, Some((2, 36)), None));
        assert_eq!(library_in(&made::library(62, "GLIBC_PRIVATE", false)).unwrap().needs, None);
    }

    #[test]
    fn damaged_files_do_no_harm() {
        let good = made::library(62, "GLIBC_2.34", false);
        for length in 0..good.len() {
            let _ = library_in(&good[..length]);
        }
        for at in 0..0x2a0 {
            for byte in [0xff, 0x80, 1] {
                let mut bad = good.clone();
                bad[at] = byte;
                let _ = library_in(&bad);
            }
        }
        // Offsets near the end of what there is.
        for (at, n) in (0..0x2a0).step_by(4).flat_map(|at| (0..32).map(move |n| (at, n))) {
            let mut bad = good.clone();
            bad[at..at + 8].copy_from_slice(&(u64::MAX - n).to_le_bytes());
            let _ = inspect(&|out, at| {
                let known = usize::try_from(at).ok().and_then(|at| bad.get(at..at.checked_add(out.len())?));
                out.fill(0);
                if let Some(known) = known {
                    out.copy_from_slice(known);
                }
                true
            });
        }
        assert_eq!(library_in(b"#!/bin/sh\n"), None);
    }

    #[test]
    fn tables_without_an_end_are_left() {
        let mut good = made::library(62, "GLIBC_2.34", false);
        good[0x220 + 8..0x220 + 16].copy_from_slice(&u64::MAX.to_le_bytes());
        let reads = Cell::new(0u32);
        let _ = inspect(&|out, at| {
            reads.set(reads.get() + 1);
            match usize::try_from(at).ok().and_then(|at| good.get(at..at.checked_add(out.len())?)) {
                Some(known) if at < 0x280 => out.copy_from_slice(known),
                _ => out.fill(u8::from(out.len() > 1)),
            }
            true
        });
        assert!(reads.get() > 1000 && reads.get() <= READS + 1, "{}", reads.get());
    }

    #[test]
    fn the_hosts_own_library() {
        let usual =
            ["/lib/x86_64-linux-gnu/libc.so.6", "/lib/aarch64-linux-gnu/libc.so.6", "/lib64/libc.so.6"];
        let Some(file) = usual.iter().find_map(|path| File::open(path).ok()) else {
            println!("skip: this host has no glibc at a usual place");
            return;
        };
        let found = library(&file).unwrap();
        assert_eq!((found.machine, found.wide), own_machine());
        assert!(found.provides.unwrap() >= (2, 17), "{found:?}");
    }
}

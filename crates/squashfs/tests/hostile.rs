//! Images that lie: every one is answered with an error that says what is wrong, in little time.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use isles_squashfs::{Compression, Error, FileType, Image, Limits, Node, Options, Result};
use support::*;

/// A small tree with all that inodes have.
fn small() -> Made {
    let mut tree = Made::default();
    tree.file("a-file", &text(9000, 1));
    tree.file("b-small", b"small");
    tree.file("dir/c-holes", &[noise(4096, 1), vec![0; 8192], text(100, 2)].concat());
    let mut node = |path: &str, file_type, change: fn(&mut Node)| {
        let mut node = Node::new(path.rsplit('/').next().unwrap(), file_type, 0o755);
        change(&mut node);
        tree.nodes.insert(path.into(), node);
    };
    node("dir", FileType::Dir, |n| n.xattrs = vec![(b"user.x".to_vec(), b"value".to_vec())]);
    node("dir/deep", FileType::Dir, |n| n.xattrs = vec![(b"user.x".to_vec(), b"value".to_vec())]);
    node("dir/deep/link", FileType::Symlink, |n| n.target = b"../../a-file".to_vec());
    node("dir/device", FileType::CharDevice, |n| n.device = (5, 1));
    node("dir/xx", FileType::Fifo, |_| {});
    node("dir/fifo", FileType::Fifo, |n| (n.uid, n.gid) = (1000, 1001));
    node("dir/twin-1", FileType::Socket, |n| n.link = Some((1, 1)));
    node("dir/twin-2", FileType::Socket, |n| n.link = Some((1, 1)));
    for n in 0..160 {
        node(&format!("wide/{n:03}{}", "w".repeat(80)), FileType::Fifo, |_| {});
    }
    node("wide", FileType::Dir, |_| {});
    tree
}

fn options(compression: Compression) -> Options {
    Options { compression, block_size: 4096, padding: 1, ..Options::default() }
}

/// Asks an image everything; reads no more of it than a small image can honestly have.
fn ask(bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    let image = Image::open_with(file, 0, bytes.len() as u64, Limits { cache: 1 << 20 })?;
    let mut first = None;
    let mut keep = |e: Error| {
        assert!(!e.to_string().contains('\n'));
        first.get_or_insert(e);
    };
    let mut buffer = vec![0; 70_000];
    // A file of holes may be as large as it likes; it has as many pieces as a caller has patience.
    let mut pieces = 0;
    for walked in image.walk() {
        let inode = match walked {
            Ok(walked) => walked.inode,
            Err(e) => {
                keep(e);
                break;
            }
        };
        image.xattrs(&inode).map(drop).unwrap_or_else(&mut keep);
        match inode.file_type {
            FileType::File => {
                for at in [0, 1, inode.size / 2, inode.size.saturating_sub(1)] {
                    image.read_at(&inode, &mut buffer, at).map(drop).unwrap_or_else(&mut keep);
                }
                let mut at = 0;
                while at < inode.size && pieces < 200 {
                    pieces += 1;
                    match image.read_at(&inode, &mut buffer, at) {
                        Ok(n) => at += n as u64,
                        Err(e) => {
                            keep(e);
                            break;
                        }
                    }
                }
            }
            FileType::Symlink => image.read_link(&inode).map(drop).unwrap_or_else(&mut keep),
            FileType::Dir => {
                for name in [&b"a-file"[..], b"link", b"100", b"zzz"] {
                    image.lookup(&inode, name).map(drop).unwrap_or_else(&mut keep);
                }
                for cursor in [1, 3, 512, 1 << 20, u64::MAX] {
                    if let Ok(list) = image.read_dir(&inode, cursor) {
                        let _ = list.take(10).collect::<Vec<_>>();
                    }
                }
            }
            _ => {}
        }
    }
    for number in [0, 1, 5, u32::MAX] {
        let found = image.by_number(number).unwrap_or_else(|e| {
            keep(e);
            None
        });
        if let Some(reference) = found {
            image.inode(reference).map(drop).unwrap_or_else(&mut keep);
        }
    }
    first.map_or(Ok(()), Err)
}

fn within_time(bytes: &[u8], what: &str) -> Result<()> {
    let begun = Instant::now();
    let result = ask(bytes);
    // Far more than needed, because other tests run as well; a walk without a bound takes for ever.
    assert!(begun.elapsed() < Duration::from_secs(20), "{what} took {:?}", begun.elapsed());
    result
}

/// Numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below.max(1)
    }
}

/// Changes some bytes: single bits, whole fields, interesting numbers, pieces copied from elsewhere, the end
/// cut off.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..1 + random.next(4) {
        // Half of the changes go to the superblock and to the tables, which are at the end.
        let at = match random.next(4) {
            0 => random.next(96.min(bytes.len())),
            1 => bytes.len() - 1 - random.next(bytes.len().min(3000)),
            _ => random.next(bytes.len()),
        };
        match random.next(6) {
            0 => bytes[at] ^= 1 << random.next(8),
            1 => bytes[at] = random.next(256) as u8,
            2 => {
                let values = [0, 1, 0xff, 0x7fff_ffff, 0x8000_0000, u64::MAX, 0xffff, 0x1_0000, 4096, 8192];
                let value = values[random.next(values.len())].to_le_bytes();
                let len = [1, 2, 4, 8][random.next(4)].min(bytes.len() - at);
                bytes[at..at + len].copy_from_slice(&value[..len]);
            }
            3 => {
                let len = random.next(64).min(bytes.len() - at);
                let from = random.next(bytes.len() - len);
                bytes.copy_within(from..from + len, at);
            }
            4 => bytes[at] = bytes[at].wrapping_add(1),
            _ if random.next(8) == 0 => bytes.truncate(at.max(1)),
            _ => bytes[at] = bytes[at].wrapping_sub(1),
        }
    }
}

/// `ISLES_FUZZ` is how many images are tried (4,500 where it is not set).
#[test]
fn no_change_of_an_image_does_harm() {
    let rounds: usize = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(4500);
    let mut seeds = corpus();
    for compression in [Compression::None, Compression::Gzip(6), Compression::Zstd(3)] {
        seeds.push((format!("{compression:?}").into(), small().bytes(&options(compression))));
    }
    // Without compression a change reaches what it is in; so most rounds are for that.
    let plain = small().bytes(&options(Compression::None));
    let (mut harmless, mut found) = (0, 0);
    for round in 0..rounds {
        let mut random = Random(0x1234_5678_9abc ^ (round as u64 + 1) << 20);
        let mut bytes = if round % 3 < 2 { plain.clone() } else { seeds[random.next(seeds.len())].1.clone() };
        mutate(&mut bytes, &mut random);
        match within_time(&bytes, &format!("round {round}")) {
            Ok(()) => harmless += 1,
            Err(_) => found += 1,
        }
    }
    // The changes must neither be all fatal at once nor all without effect, or they would show nothing.
    assert!(found > rounds / 3 && harmless > rounds / 30, "{found} found, {harmless} harmless");
}

/// An image without compression, in which everything can be found and changed.
struct Lie {
    bytes: Vec<u8>,
    image: Image,
}

impl Lie {
    fn new() -> Lie {
        let bytes = small().bytes(&options(Compression::None));
        Lie { image: in_file(&bytes).unwrap(), bytes }
    }

    fn table(&self, field: usize) -> usize {
        u64::from_le_bytes(self.bytes[field..field + 8].try_into().unwrap()) as usize
    }

    /// Where an inode is in the file: behind the header of its metadata block.
    fn inode(&self, path: &str) -> usize {
        let raw = resolve(&self.image, path.as_bytes()).raw();
        self.table(INODES) + (raw >> 16) as usize + 2 + (raw & 0xffff) as usize
    }

    fn put(&mut self, at: usize, value: &[u8]) {
        self.bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn inode_field(&mut self, path: &str, field: usize, value: &[u8]) {
        let at = self.inode(path);
        self.put(at + field, value);
    }

    /// Gives a name in a directory another spelling.
    fn rename(&mut self, old: &[u8], new: &[u8]) {
        let from = self.table(DIRECTORIES);
        let found = self.bytes[from..].windows(old.len()).position(|w| w == old).unwrap();
        self.put(from + found, new);
    }

    /// Where the table of owners has its only block.
    fn put_at_table(&mut self, field: usize, offset: usize, value: &[u8]) {
        let at = self.table(field);
        self.put(at + offset, value);
    }
}

// Fields of the superblock that say where tables are.
const IDS: usize = 48;
const XATTRS: usize = 56;
const INODES: usize = 64;
const DIRECTORIES: usize = 72;
const FRAGMENTS: usize = 80;
const EXPORTS: usize = 88;

/// zlib's own words for twenty thousand zeros.
fn bomb() -> Vec<u8> {
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(9));
    std::io::Write::write_all(&mut encoder, &[0; 20_000]).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn lies_are_named() {
    type Change = fn(&mut Lie);
    let cases: &[(&str, Change, &str)] = &[
        ("magic", |l| l.put(0, b"ELF!"), "not a squashfs image: it begins with 0x21464c45"),
        (
            "big-endian",
            |l| l.put(0, b"sqsh"),
            "squashfs before version 4, big-endian, which is not supported",
        ),
        ("version", |l| l.put(28, &[3]), "uses squashfs version 3.0"),
        ("lz4", |l| l.put(20, &[5]), "uses lz4 compression"),
        ("lzma", |l| l.put(20, &[2]), "uses lzma compression"),
        ("codec", |l| l.put(20, &[9]), "uses the unknown compression 9"),
        ("block", |l| l.put(12, &[1]), "at byte 12: blocks of 4097 bytes"),
        ("giant", |l| l.put(12, &0x4000_0000u32.to_le_bytes()), "at byte 12: blocks of 1073741824 bytes"),
        ("log", |l| l.put(22, &[13]), "the two sizes of a block differ"),
        (
            "end",
            |l| l.put(40, &u64::MAX.to_le_bytes()),
            "it is cut short: it should have 18446744073709551615",
        ),
        ("no-inodes", |l| l.put(4, &[0; 4]), "no inodes or no owners"),
        ("no-owners", |l| l.put(26, &[0; 2]), "no inodes or no owners"),
        ("inodes", |l| l.put(INODES, &[0; 8]), "the inode or directory table is outside of the image"),
        (
            "crossed",
            |l| l.put(DIRECTORIES, &[96, 0, 0]),
            "the inode or directory table is outside of the image",
        ),
        ("owners", |l| l.put(IDS, &[0xff; 8]), "the table of owners is outside of the image"),
        ("tables", |l| l.put(EXPORTS, &[0, 0, 0, 0, 1]), "a table is outside of the image"),
        ("fragments", |l| l.put(FRAGMENTS, &[0; 8]), "the table of fragments is outside of the image"),
        ("root", |l| l.put(32, &[0xff; 8]), "a reference leads out of its table"),
        ("root-offset", |l| l.put(32, &[0xff; 2]), "offset 65535 is behind the end of a metadata block"),
        ("empty-block", |l| l.put_at_table(INODES, 0, &[0, 0x80]), "a metadata block of 0 bytes"),
        ("large-block", |l| l.put_at_table(INODES, 0, &[1, 0xa0]), "a metadata block of 8193 bytes"),
        ("no-zlib", |l| l.put_at_table(INODES, 0, &[9, 0]), "a metadata block: its gzip data is"),
        (
            "bomb",
            |l| {
                let bomb = bomb();
                l.put_at_table(INODES, 0, &(bomb.len() as u16).to_le_bytes());
                l.put_at_table(INODES, 2, &bomb);
            },
            "a metadata block: it decompresses to too much",
        ),
        (
            "data-bomb",
            |l| {
                let bomb = bomb();
                l.inode_field("a-file", 32, &(bomb.len() as u32).to_le_bytes());
                l.put(96, &bomb);
            },
            "a block: it decompresses to too much",
        ),
        ("data-size", |l| l.inode_field("a-file", 32, &[0, 0, 0, 9]), "a block has the size 0x9000000"),
        ("data-long", |l| l.inode_field("a-file", 32, &[1, 16, 0, 1]), "a block has the size 0x1001001"),
        (
            "data-short",
            |l| l.inode_field("a-file", 32, &[255, 15, 0, 1]),
            "a block has 4095 bytes instead of 4096",
        ),
        ("data-start", |l| l.inode_field("a-file", 16, &[0xff; 4]), "4096 bytes are outside of the image"),
        ("size", |l| l.inode_field("a-file", 28, &[0xff; 4]), ""),
        ("type-0", |l| l.inode_field("a-file", 0, &[0]), "an inode of the unknown type 0"),
        ("type-15", |l| l.inode_field("a-file", 0, &[15]), "an inode of the unknown type 15"),
        (
            "other-type",
            |l| l.inode_field("dir/fifo", 0, &[7]),
            "'fifo' is not the file that its directory says",
        ),
        ("number-0", |l| l.inode_field("a-file", 12, &[0; 4]), "an inode with the number 0"),
        ("user", |l| l.inode_field("a-file", 4, &[200]), "owner 200 of 3"),
        ("fragment", |l| l.inode_field("b-small", 20, &[7]), "fragment 7 of 1"),
        (
            "fragment-end",
            |l| l.inode_field("b-small", 24, &[252, 15]),
            "a file's end is not inside of its fragment",
        ),
        ("fragment-short", |l| l.inode_field("b-small", 24, &[0, 15]), "fragment 0 has"),
        (
            "link-long",
            |l| l.inode_field("dir/deep/link", 20, &5000u32.to_le_bytes()),
            "a symbolic link of 5000 bytes",
        ),
        ("link-empty", |l| l.inode_field("dir/deep/link", 20, &[0; 4]), "a symbolic link of 0 bytes"),
        (
            "link-nul",
            |l| l.inode_field("dir/deep/link", 25, &[0]),
            "a symbolic link's target contains a NUL byte",
        ),
        ("loop", |l| share(l, "dir"), "a directory is in more than one place"),
        ("shared", |l| share(l, "wide"), "directories share what is in them"),
        ("dot-dot", |l| l.rename(b"xx", b".."), "a file cannot have the name '..'"),
        ("slash", |l| l.rename(b"fifo", b"f/fo"), "a file cannot have the name 'f/fo'"),
        ("nul", |l| l.rename(b"fifo", b"f\0fo"), "a file cannot have the name 'f\\x00fo'"),
        ("twice", |l| l.rename(b"twin-2", b"twin-1"), "the name 'twin-1' is out of order or twice"),
        ("order", |l| l.rename(b"twin-2", b"twin-0"), "the name 'twin-0' is out of order or twice"),
        (
            "entry-type",
            |l| {
                let from = l.table(DIRECTORIES);
                let found = l.bytes[from..].windows(4).position(|w| w == b"fifo").unwrap();
                l.put(from + found - 4, &[12]);
            },
            "a file of the unknown type 12",
        ),
        ("run", |l| l.put_at_table(DIRECTORIES, 2, &[0, 1]), "a run of 257 names"),
        ("listing-short", |l| l.inode_field("dir", 20, &[30, 0]), "a directory is cut short"),
        ("listing-long", |l| l.inode_field("dir", 20, &[0xff, 0xff]), "directories share what is in them"),
        ("listing-longer", |l| l.inode_field("dir", 20, &[0, 0x20]), "out of order or twice"),
        ("listing-start", |l| l.inode_field("dir", 24, &[0xff; 4]), "a reference leads out of its table"),
        ("index", |l| l.inode_field("wide", 40, &[0xff; 4]), "the index of a directory is not in order"),
        ("index-name", |l| l.inode_field("wide", 48, &[255]), "a name of 256 bytes"),
        ("list", |l| l.inode_field("dir/deep", 36, &[5, 0, 0, 0]), "list of attributes 5 of 1"),
        ("list-start", |l| l.put_at_table(XATTRS, 0, &[0; 8]), "the attributes are outside of their table"),
        (
            "table-index",
            |l| l.put_at_table(IDS, 0, &[96, 0, 0, 0]),
            "the index of a table points outside of it",
        ),
        (
            "attribute-kind",
            |l| {
                let at = attribute(l);
                l.put(at, &[9]);
            },
            "an attribute of the unknown kind 0x9",
        ),
        (
            "attribute-size",
            |l| {
                let at = attribute(l);
                l.put(at + 5, &[0xff; 4]);
            },
            "an attribute's value of 4294967295 bytes",
        ),
        (
            "attribute-reference",
            |l| {
                let at = attribute(l);
                l.put(at, &[0, 1]);
            },
            "a reference of 5 bytes to an attribute's value",
        ),
    ];
    for (what, change, want) in cases {
        let mut lie = Lie::new();
        change(&mut lie);
        let error = within_time(&lie.bytes, what).expect_err(what).to_string();
        assert!(error.contains(want), "{what}: {error}");
    }
    assert!(ask(&Lie::new().bytes).is_ok());
}

/// Gives the innermost directory the listing of another one. Both are extended, because of attributes and of
/// an index.
fn share(lie: &mut Lie, other: &str) {
    let (from, to) = (lie.inode(other), lie.inode("dir/deep"));
    for (at, len) in [(20, 8), (34, 2)] {
        let field = lie.bytes[from + at..from + at + len].to_vec();
        lie.put(to + at, &field);
    }
}

/// Where the only attribute is.
fn attribute(lie: &Lie) -> usize {
    let table = lie.table(XATTRS);
    u64::from_le_bytes(lie.bytes[table..table + 8].try_into().unwrap()) as usize + 2
}

#[test]
fn files_that_are_no_images_are_refused() {
    let sound = small().bytes(&options(Compression::Zstd(3)));
    for len in [0, 1, 95, 96, 97, sound.len() / 2, sound.len() - 1] {
        assert!(in_file(&sound[..len]).is_err(), "{len} bytes");
    }
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, &sound).unwrap();
    let len = sound.len() as u64;
    // The file is shorter than whoever opens it was told.
    let begin = |start, len| Image::open(file.try_clone().unwrap(), start, len);
    assert!(begin(0, len).is_ok());
    assert!(begin(0, 1 << 40).is_ok());
    for (start, len) in [(1, len), (len, len), (1 << 40, 4096), (u64::MAX, 2), (u64::MAX - 96, 96)] {
        assert!(begin(start, len).unwrap_err().is_damage(), "{start} {len}");
    }
    let image = begin(0, len).unwrap();
    let kinds =
        ["a-file", "dir", "dir/deep/link"].map(|p| image.inode(resolve(&image, p.as_bytes())).unwrap());
    for (n, inode) in kinds.iter().enumerate() {
        assert_eq!(image.read_at(inode, &mut [0; 1], 0).is_ok(), n == 0);
        assert_eq!(image.read_dir(inode, 0).is_ok(), n == 1);
        assert_eq!(image.lookup(inode, b"x").is_ok(), n == 1);
        assert_eq!(image.read_link(inode).is_ok(), n == 2);
    }
}

fn corpus_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn corpus() -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(corpus_dir()).unwrap().map(|e| e.unwrap().path());
    let mut paths: Vec<_> = entries.filter(|p| p.extension().is_some_and(|e| e == "squashfs")).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Each image of the corpus has its answer beside it. `ISLES_BLESS=1` writes the answers anew.
#[test]
fn the_corpus_is_answered_as_before() {
    let corpus = corpus();
    assert!(corpus.len() > 40);
    for (path, bytes) in corpus {
        let answer = match within_time(&bytes, &path.display().to_string()) {
            Ok(()) => "sound\n".to_owned(),
            Err(e) => format!("{e}\n"),
        };
        let expected = path.with_extension("txt");
        if std::env::var_os("ISLES_BLESS").is_some() {
            std::fs::write(&expected, &answer).unwrap();
        }
        assert_eq!(answer, std::fs::read_to_string(&expected).unwrap(), "{}", path.display());
    }
}

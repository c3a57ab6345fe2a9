//! Containers that cryptsetup makes, and ours, which it opens; and containers that lie.
//!
//! No device mapper takes part: cryptsetup encrypts and decrypts files by itself when it is told that nobody uses them.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::Command;

use isles_crypt::luks::{self, Strength};
use isles_crypt::{Error, Result};
use sha2::{Digest as _, Sha256};
use support::*;

const PASSPHRASE: &[u8] = b"a secret, with a space";
/// A whole number of sectors of either size.
const LENGTH: usize = 300 << 10;

fn open(container: &[u8], passphrase: &[u8]) -> Result<luks::Volume> {
    luks::open(file(container), 0, container.len() as u64, passphrase)
}

/// The host's cryptsetup, which locks what it encrypts in a folder that is root's.
fn cryptsetup() -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        println!("skip: not root, so cryptsetup encrypts nothing");
        return None;
    }
    program("cryptsetup")
}

/// What cryptsetup makes of `plain`; `None` where there is none.
fn made(plain: &[u8], options: &str) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("container");
    let mut with_room = plain.to_vec();
    with_room.resize(plain.len() + (2 << 20), 0);
    fs::write(&path, with_room).unwrap();
    let mut command = Command::new(cryptsetup()?);
    command.args(["reencrypt", "--encrypt", "--batch-mode", "--type=luks2", "--key-file=-"]);
    command.args(["--reduce-device-size=2M", "--luks2-keyslots-size=512k"]);
    run(command.args(options.split_whitespace()).arg(&path), PASSPHRASE);
    Some(fs::read(&path).unwrap())
}

#[test]
fn what_cryptsetup_makes_is_read() {
    let plain = noise(LENGTH, 1);
    for options in [
        "--pbkdf=pbkdf2 --pbkdf-force-iterations=1000",
        "--pbkdf=pbkdf2 --pbkdf-force-iterations=1234 --hash=sha512 --sector-size=4096",
        "--pbkdf=pbkdf2 --pbkdf-force-iterations=1000 --hash=sha1 --key-size=256 --sector-size=2048",
        "--pbkdf=argon2id --pbkdf-force-iterations=4 --pbkdf-memory=8192 --pbkdf-parallel=3",
        "--pbkdf=argon2i --pbkdf-force-iterations=5 --pbkdf-memory=1024 --luks2-metadata-size=64k",
    ] {
        let Some(container) = made(&plain, options) else { return };
        let volume = open(&container, PASSPHRASE).unwrap();
        // Some of the room that it was given is left behind the data.
        let len = volume.len() as usize;
        assert!((LENGTH..=LENGTH + (1 << 20)).contains(&len), "{options}: {len}");
        let mut rest = vec![0; len - LENGTH];
        isles_squashfs::Source::read_exact_at(&volume, &mut rest, LENGTH as u64).unwrap();
        same(&volume, &[plain.clone(), rest].concat());
        for wrong in [&b"another"[..], b"", b"a secret, with a space\n"] {
            assert!(matches!(open(&container, wrong), Err(Error::Passphrase)), "{options}");
        }
    }
}

#[test]
fn a_container_within_a_file_and_with_two_passphrases() {
    let plain = noise(LENGTH, 2);
    let Some(container) = made(&plain, "--pbkdf=pbkdf2 --pbkdf-force-iterations=1000") else { return };
    let dir = tempfile::tempdir().unwrap();
    let (path, second) = (dir.path().join("container"), dir.path().join("second"));
    fs::write(&path, &container).unwrap();
    fs::write(&second, "another").unwrap();
    let mut command = Command::new(program("cryptsetup").unwrap());
    command.args([
        "luksAddKey",
        "--batch-mode",
        "--key-file=-",
        "--pbkdf=pbkdf2",
        "--pbkdf-force-iterations=1000",
    ]);
    run(command.arg(&path).arg(&second), PASSPHRASE);
    let container = fs::read(&path).unwrap();
    let len = container.len() as u64;
    let within = file(&[noise(5000, 3), container, noise(5000, 4)].concat());
    for passphrase in [PASSPHRASE, b"another"] {
        let volume = luks::open(within.try_clone().unwrap(), 5000, len, passphrase).unwrap();
        let mut out = vec![0; LENGTH];
        isles_squashfs::Source::read_exact_at(&volume, &mut out, 0).unwrap();
        assert!(out == plain);
    }
    assert!(matches!(luks::open(within, 5000, len, b"a third"), Err(Error::Passphrase)));
}

/// All that a reader gives.
fn all(mut from: impl Read) -> Vec<u8> {
    let mut out = Vec::new();
    from.read_to_end(&mut out).unwrap();
    out
}

/// As it comes out where it is encrypted with a random key, whose slot is cheap.
fn ours(plain: &[u8]) -> Vec<u8> {
    all(luks::encrypt(plain, PASSPHRASE, Strength::Random).unwrap())
}

#[test]
fn what_is_made_here_is_read_here_and_by_cryptsetup() {
    for (length, strength) in
        [(LENGTH, Strength::Random), (1 << 20, Strength::Passphrase), ((3 << 20) + 512, Strength::Random)]
    {
        let plain = noise(length, 5);
        let container = all(luks::encrypt(plain.as_slice(), PASSPHRASE, strength).unwrap());
        same(&open(&container, PASSPHRASE).unwrap(), &plain);
        assert!(matches!(open(&container, b"another"), Err(Error::Passphrase)));
        let Some(cryptsetup) = cryptsetup() else { continue };
        let dir = tempfile::tempdir().unwrap();
        let (path, header) = (dir.path().join("container"), dir.path().join("header"));
        fs::write(&path, &container).unwrap();
        let of = |words: &str| {
            let mut command = Command::new(&cryptsetup);
            command.args(words.split_whitespace());
            command
        };
        run(of("open --test-passphrase --batch-mode --type=luks2 --key-file=-").arg(&path), PASSPHRASE);
        run(of("luksDump").arg(&path), b"");
        run(
            of("reencrypt --decrypt --force-offline-reencrypt --batch-mode --key-file=-")
                .args(["--pbkdf=pbkdf2", "--pbkdf-force-iterations=1000", "--header"])
                .args([&header, &path]),
            PASSPHRASE,
        );
        assert!(fs::read(&path).unwrap()[..length] == plain, "{length} bytes");
    }
}

#[test]
fn what_does_not_fill_a_sector_is_filled_up() {
    for length in [0, 1, 511, 512, 513] {
        let plain = noise(length, 6);
        let container = ours(&plain);
        if length == 0 {
            assert!(matches!(open(&container, PASSPHRASE), Err(Error::Damaged { .. })));
            continue;
        }
        let volume = open(&container, PASSPHRASE).unwrap();
        let mut whole = plain.clone();
        whole.resize(length.next_multiple_of(512), 0);
        let mut out = vec![0; whole.len()];
        isles_squashfs::Source::read_exact_at(&volume, &mut out, 0).unwrap();
        assert_eq!(out, whole);
        assert_eq!(volume.len(), whole.len() as u64);
    }
}

/// Changes the document in both copies of the header, and makes the checksums right.
fn with(container: &[u8], change: impl Fn(&mut serde_json::Value)) -> Vec<u8> {
    let mut out = container.to_vec();
    for at in [0, 16 << 10] {
        let copy = &mut out[at..at + (16 << 10)];
        let text = copy[4096..].split(|b| *b == 0).next().unwrap();
        let mut document = serde_json::from_slice(text).unwrap();
        change(&mut document);
        copy[4096..].fill(0);
        let text = document.to_string();
        copy[4096..4096 + text.len()].copy_from_slice(text.as_bytes());
        seal(copy);
    }
    out
}

fn seal(copy: &mut [u8]) {
    copy[448..512].fill(0);
    let checksum = Sha256::digest(&*copy);
    copy[448..480].copy_from_slice(&checksum);
}

#[test]
fn headers_that_lie() {
    let plain = noise(4096, 7);
    let container = ours(&plain);
    type Change = fn(&mut serde_json::Value);
    let cases: &[(Change, &str)] = &[
        (|d| d["keyslots"]["0"]["kdf"]["iterations"] = 4_000_000_000u64.into(), "4000000000 iterations"),
        (|d| d["digests"]["0"]["iterations"] = 4_000_000_000u64.into(), "4000000000 iterations"),
        (|d| d["keyslots"]["0"]["kdf"] = kdf(1, u32::MAX, 4), "4194303 MiB of memory"),
        (|d| d["keyslots"]["0"]["kdf"] = kdf(u32::MAX, 1 << 20, 4), "passes over 1024 MiB"),
        (|d| d["keyslots"]["0"]["kdf"] = kdf(1, 1 << 20, 1000), "1000 threads"),
        (|d| d["keyslots"]["0"]["kdf"]["type"] = "argon3".into(), "document in its header"),
        (|d| d["keyslots"]["0"]["kdf"]["hash"] = "whirlpool".into(), "'whirlpool' is not supported"),
        (|d| d["keyslots"]["0"]["kdf"]["salt"] = "!".into(), "no base64"),
        (|d| d["keyslots"]["0"]["key_size"] = 1_000_000_000.into(), "key of 1000000000 bytes"),
        (|d| d["keyslots"]["0"]["area"]["key_size"] = 48.into(), "key of 48 bytes"),
        (|d| d["keyslots"]["0"]["af"]["stripes"] = 1_000_000_000.into(), "1000000000 stripes"),
        (|d| d["keyslots"]["0"]["af"]["stripes"] = 0.into(), "0 stripes"),
        (|d| d["keyslots"]["0"]["area"]["offset"] = "18446744073709551615".into(), "bytes only"),
        (|d| d["keyslots"]["0"]["area"]["offset"] = "x".into(), "'x' is no number"),
        (
            |d| d["keyslots"]["0"]["area"]["encryption"] = "serpent-xts-plain64".into(),
            "'serpent-xts-plain64'",
        ),
        (|d| d["keyslots"]["0"]["type"] = "reencrypt".into(), "no key is there"),
        (|d| d["keyslots"]["0"]["priority"] = 0.into(), "no key is there"),
        (|d| d["segments"]["0"]["encryption"] = "aes-cbc-essiv:sha256".into(), "'aes-cbc-essiv:sha256'"),
        (|d| d["segments"]["0"]["sector_size"] = 0.into(), "sectors of 0 bytes"),
        (|d| d["segments"]["0"]["sector_size"] = 65536.into(), "sectors of 65536 bytes"),
        (|d| d["segments"]["0"]["size"] = "513".into(), "within a sector"),
        (|d| d["segments"]["0"]["size"] = "1099511627776".into(), "behind its end"),
        (|d| d["segments"]["0"]["offset"] = "18446744073709551615".into(), "behind its end"),
        (|d| d["segments"]["0"]["integrity"] = serde_json::json!({"type": "hmac(sha256)"}), "have checksums"),
        (|d| d["segments"]["0"]["type"] = "linear".into(), "'linear'"),
        (|d| d["segments"]["1"] = d["segments"]["0"].clone(), "2 segments"),
        (|d| d["segments"] = serde_json::json!({}), "no data"),
        (|d| d["digests"] = serde_json::json!({}), "nothing tells"),
        (|d| d["digests"]["0"]["segments"] = serde_json::json!(["7"]), "nothing tells"),
        (|d| d["digests"]["0"]["digest"] = "".into(), "digest of 0 bytes"),
        (
            |d| d["config"]["requirements"] = serde_json::json!({"mandatory": ["online-reencrypt-v2"]}),
            "'online-reencrypt-v2'",
        ),
        (|d| d["config"]["requirements"] = serde_json::json!(["some"]), "requirement 'some'"),
        (|d| *d = serde_json::json!([]), "document in its header"),
    ];
    for (change, word) in cases {
        let error = open(&with(&container, change), PASSPHRASE).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{word}: {error}");
    }
    let changed = with(&container, |d| {
        (1..40).for_each(|n| d["keyslots"][n.to_string()] = serde_json::json!({"type": "other"}));
    });
    assert!(open(&changed, PASSPHRASE).unwrap_err().to_string().contains("40 slots"));
}

fn kdf(time: u32, memory: u32, cpus: u32) -> serde_json::Value {
    serde_json::json!({"type": "argon2id", "time": time, "memory": memory, "cpus": cpus, "salt": "AAAAAAAAAAAAAAAAAAAAAA=="})
}

#[test]
fn the_second_copy_stands_in_for_the_first() {
    let plain = noise(4096, 8);
    let container = ours(&plain);
    let mut first = container.clone();
    first[5000] ^= 1;
    same_start(&open(&first, PASSPHRASE).unwrap(), &plain);
    first[..6].fill(0);
    same_start(&open(&first, PASSPHRASE).unwrap(), &plain);
    first[(16 << 10) + 5000] ^= 1;
    assert!(matches!(open(&first, PASSPHRASE), Err(Error::Other { .. })));
    for (bytes, word) in [
        (Vec::new(), "0 bytes"),
        (vec![0; 100 << 10], "does not begin as one"),
        (container[..20 << 10].to_vec(), "bytes only"),
        (
            {
                let mut old = container.clone();
                old[7] = 1;
                old
            },
            "version 1 of LUKS",
        ),
    ] {
        let error = open(&bytes, PASSPHRASE).unwrap_err().to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
}

fn same_start(volume: &luks::Volume, plain: &[u8]) {
    let mut out = vec![0; plain.len()];
    isles_squashfs::Source::read_exact_at(volume, &mut out, 0).unwrap();
    assert!(out == plain);
}

/// Headers that were changed at random, with right checksums: what comes is an error or a volume, and soon.
#[test]
fn changed_headers() {
    let container = ours(&noise(4096, 9));
    let tries = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let text_len = container[4096..].iter().position(|b| *b == 0).unwrap();
    let mut opened = 0;
    for seed in 1..=tries {
        let random = noise(64, seed);
        let mut bytes = container.clone();
        for change in random.chunks_exact(4).take(1 + random[60] as usize % 4) {
            let place = u16::from_le_bytes([change[0], change[1]]) as usize;
            // Mostly in the document, sometimes in the binary part.
            let at = if change[3] % 5 == 0 { place % 4096 } else { 4096 + place % text_len };
            match change[3] % 4 {
                0 => bytes[at] = b'0' + change[2] % 10,
                1 => bytes[at] ^= 1 << (change[2] % 8),
                2 => bytes[at] = change[2],
                _ => bytes.copy_within(at..at + usize::from(change[2] % 16), 4096 + place / 7 % text_len),
            }
        }
        bytes[16 << 10] = 0;
        if bytes.starts_with(b"LUKS") {
            seal(&mut bytes[..16 << 10]);
        }
        match open(&bytes, PASSPHRASE) {
            Ok(volume) => {
                opened += 1;
                let mut out = vec![0; (volume.len() as usize).min(8192)];
                isles_squashfs::Source::read_exact_at(&volume, &mut out, 0).unwrap();
            }
            Err(e) => assert!(!e.to_string().contains('\n')),
        }
    }
    println!("{opened} of {tries} were opened");
}

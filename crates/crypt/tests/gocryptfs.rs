//! Files that gocryptfs encrypts, and ours, which it decrypts; and files that lie.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;

use isles_crypt::luks::Strength;
use isles_crypt::{Error, Result, gocryptfs};
use isles_squashfs::{Compression, Folder, Image, Options, Source as _};
use support::*;

const PASSPHRASE: &str = "a secret, with a space";

/// The image around two files.
fn around(folder: &Path) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let options = Options { compression: Compression::None, ..Options::default() };
    isles_squashfs::write(&mut Folder::open(folder).unwrap(), &mut out, &options).unwrap();
    out.into_inner()
}

fn open(image: &[u8], passphrase: &str) -> Result<gocryptfs::Volume> {
    gocryptfs::open(file(image), 0, image.len() as u64, passphrase.as_bytes())
}

fn ours(plain: &[u8], strength: Strength) -> Vec<u8> {
    let len = plain.len() as u64;
    let mut files = gocryptfs::encrypt(Cursor::new(plain), len, PASSPHRASE.as_bytes(), strength, 5).unwrap();
    let mut out = Cursor::new(Vec::new());
    isles_squashfs::write(&mut files, &mut out, &gocryptfs::around()).unwrap();
    out.into_inner()
}

/// Runs a script of the shell in a mount namespace of its own, where gocryptfs mounts `cipher` at `plain`. Says whether
/// that could be done.
fn mounted(dir: &Path, script: &str) -> bool {
    if program("gocryptfs").is_none() || program("unshare").is_none() {
        return false;
    }
    if !rustix::process::geteuid().is_root() || fs::File::options().write(true).open("/dev/fuse").is_err() {
        println!("skip: gocryptfs mounts for root only, and where there is /dev/fuse");
        return false;
    }
    let whole = format!("gocryptfs -q -passfile passphrase cipher plain && {script} && umount plain");
    run(Command::new("unshare").args(["-m", "sh", "-ec", &whole]).current_dir(dir), b"");
    true
}

#[test]
fn what_gocryptfs_encrypts_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (length, log_n) in [(1, 10), (4096, 11), (300_001, 10), ((1 << 20) + 4095, 12)] {
        let plain = noise(length, 1);
        fs::create_dir(at("cipher")).unwrap();
        fs::create_dir_all(at("plain")).unwrap();
        fs::write(at("passphrase"), PASSPHRASE).unwrap();
        fs::write(at("file"), &plain).unwrap();
        let Some(gocryptfs) = program("gocryptfs") else { return };
        let mut init = Command::new(gocryptfs);
        init.args(["-init", "-q", "-deterministic-names", "-plaintextnames", "-passfile", "passphrase"]);
        run(init.args(["-scryptn", &log_n.to_string(), "cipher"]).current_dir(dir.path()), b"");
        if !mounted(dir.path(), "cp file plain/squashfs-123") {
            return;
        }
        let image = around(&at("cipher"));
        let volume = open(&image, PASSPHRASE).unwrap();
        assert_eq!(volume.len(), length as u64);
        if length > 200_000 {
            same(&volume, &plain);
        } else {
            let mut out = vec![0; length];
            volume.read_exact_at(&mut out, 0).unwrap();
            assert_eq!(out, plain);
        }
        for wrong in ["", "another", "a secret, with a space "] {
            assert!(matches!(open(&image, wrong), Err(Error::Passphrase)));
        }
        fs::remove_dir_all(at("cipher")).unwrap();
    }
}

#[test]
fn what_is_made_here_is_read_here_and_by_gocryptfs() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (length, strength) in [(300 << 10, Strength::Random), (200_001, Strength::Passphrase)] {
        let plain = noise(length, 2);
        let image = ours(&plain, strength);
        same(&open(&image, PASSPHRASE).unwrap(), &plain);
        assert!(matches!(open(&image, "another"), Err(Error::Passphrase)));

        let inside = Image::open(file(&image), 0, image.len() as u64).unwrap();
        let root = inside.inode(inside.root()).unwrap();
        fs::create_dir(at("cipher")).unwrap();
        fs::create_dir_all(at("plain")).unwrap();
        for entry in inside.read_dir(&root, 0).unwrap() {
            let entry = entry.unwrap();
            let name = String::from_utf8(entry.name).unwrap();
            let content = inside.read_all(&inside.inode(entry.inode).unwrap(), 10 << 20).unwrap();
            let name = if name.starts_with("squashfs-") { "squashfs-1".to_owned() } else { name };
            fs::write(at("cipher").join(name), content).unwrap();
        }
        fs::write(at("passphrase"), PASSPHRASE).unwrap();
        if !mounted(dir.path(), "cp plain/squashfs-1 file") {
            return;
        }
        assert!(fs::read(at("file")).unwrap() == plain);
        fs::remove_dir_all(at("cipher")).unwrap();
    }
}

/// The two files that are in an image of ours, for tests that change them.
fn parts(plain: &[u8]) -> (serde_json::Value, Vec<u8>) {
    let image = ours(plain, Strength::Random);
    let inside = Image::open(file(&image), 0, image.len() as u64).unwrap();
    let root = inside.inode(inside.root()).unwrap();
    let (mut config, mut data) = (None, None);
    for entry in inside.read_dir(&root, 0).unwrap() {
        let entry = entry.unwrap();
        let content = inside.read_all(&inside.inode(entry.inode).unwrap(), 10 << 20).unwrap();
        match entry.name.as_slice() {
            b"gocryptfs.conf" => config = Some(serde_json::from_slice(&content).unwrap()),
            _ => data = Some(content),
        }
    }
    (config.unwrap(), data.unwrap())
}

fn of_parts(config: &serde_json::Value, data: &[u8]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("gocryptfs.conf"), config.to_string()).unwrap();
    fs::write(dir.path().join("squashfs-1"), data).unwrap();
    around(dir.path())
}

#[test]
fn blocks_that_were_changed_or_moved() {
    const SEALED: usize = 4096 + 32;
    let (config, data) = parts(&noise(3 * 4096 + 100, 3));
    let read = |data: &[u8], at: u64, n: usize| -> std::result::Result<(), String> {
        let volume = open(&of_parts(&config, data), PASSPHRASE).map_err(|e| e.to_string())?;
        volume.read_exact_at(&mut vec![0; n], at).map_err(|e| e.to_string())
    };
    read(&data, 0, 3 * 4096 + 100).unwrap();
    type Change = fn(&mut Vec<u8>);
    let cases: &[(Change, &str)] = &[
        (|d| d[18 + SEALED] ^= 1, "block 1"),
        (|d| d[18 + SEALED + 2000] ^= 1, "block 1"),
        (|d| d[18 + 2 * SEALED - 1] ^= 1, "block 1"),
        (|d| d[5] ^= 1, "block 0"),
        (|d| d.copy_within(18..18 + SEALED, 18 + SEALED), "block 1"),
        (|d| drop(d.drain(18..18 + SEALED)), "block 0"),
        (|d| d.truncate(d.len() - 1), "block 3"),
        (|d| d.truncate(18 + 3 * SEALED + 32), "within a block"),
        (|d| d.truncate(18), "18 bytes"),
        (|d| d.clear(), "0 bytes"),
        (|d| d[1] = 3, "version 3"),
    ];
    for (change, word) in cases {
        let mut changed = data.clone();
        change(&mut changed);
        let length = changed.len().saturating_sub(18 + 4 * 32);
        let error = read(&changed, 0, length).unwrap_err();
        assert!(error.contains(word), "{word}: {error}");
    }
    let mut hole = data.clone();
    hole[18..18 + SEALED].fill(0);
    let volume = open(&of_parts(&config, &hole), PASSPHRASE).unwrap();
    let mut out = vec![1; 4096];
    volume.read_exact_at(&mut out, 0).unwrap();
    assert_eq!(out, [0; 4096]);
}

#[test]
fn configurations_that_lie() {
    let (config, data) = parts(&noise(100, 4));
    type Change = fn(&mut serde_json::Value);
    let cases: &[(Change, &str)] = &[
        (|c| c["Version"] = 3.into(), "version 3"),
        (|c| c["FeatureFlags"][3] = "AESSIV".into(), "'AESSIV'"),
        (|c| c["FeatureFlags"][3] = "XChaCha20Poly1305".into(), "'XChaCha20Poly1305'"),
        (|c| c["FeatureFlags"] = serde_json::json!(["GCMIV128", "PlaintextNames"]), "without 'HKDF'"),
        (|c| c["ScryptObject"]["N"] = (1u64 << 40).into(), "of memory"),
        (|c| c["ScryptObject"]["N"] = 1000.into(), "scrypt"),
        (|c| c["ScryptObject"]["N"] = (-1).into(), "gocryptfs.conf"),
        (|c| c["ScryptObject"]["R"] = u32::MAX.into(), "of memory"),
        (|c| c["ScryptObject"]["P"] = u32::MAX.into(), "of memory"),
        (|c| c["ScryptObject"]["P"] = 0.into(), "scrypt"),
        (|c| c["ScryptObject"]["Salt"] = "".into(), "salt of 0 bytes"),
        (|c| c["ScryptObject"]["KeyLen"] = 16.into(), "keys of 16 bytes"),
        (|c| c["EncryptedKey"] = "AAAA".into(), "key of 3 bytes"),
        (|c| c["EncryptedKey"] = "!".into(), "no base64"),
        (|c| *c = serde_json::json!({}), "gocryptfs.conf"),
    ];
    for (change, word) in cases {
        let mut changed = config.clone();
        if word.contains("AESSIV") || word.contains("XChaCha") {
            changed["FeatureFlags"].as_array_mut().unwrap().push("".into());
        }
        change(&mut changed);
        let error = open(&of_parts(&changed, &data), PASSPHRASE).unwrap_err().to_string();
        assert!(error.contains(word) && !error.contains('\n'), "{word}: {error}");
    }
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("squashfs-1"), &data).unwrap();
    assert!(open(&around(dir.path()), PASSPHRASE).unwrap_err().to_string().contains("no gocryptfs.conf"));
    fs::rename(dir.path().join("squashfs-1"), dir.path().join("other")).unwrap();
    fs::write(dir.path().join("gocryptfs.conf"), config.to_string()).unwrap();
    fs::create_dir(dir.path().join("squashfs-1")).unwrap();
    assert!(open(&around(dir.path()), PASSPHRASE).unwrap_err().to_string().contains("no encrypted file"));
    assert!(open(&noise(5000, 1), PASSPHRASE).is_err());
}

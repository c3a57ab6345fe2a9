//! Files that lie: each is refused with its reason, and no change of a good file makes the reader panic, read outside of
//! the file, or take memory that the file does not justify.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use isles_openpgp::Certificate;
use isles_sif::{
    Arch, Editor, Extra, FileSystem, Kind, Kinds, MessageFormat, MessageKind, NewObject, NewSif, PrivateKey,
    Role, SbomFormat, Selection, Sif, Signer, Trust, sign, verify,
};

const TABLE: usize = 4096;
const DESCRIPTOR: usize = 585;

fn good(folder: &Path) -> Vec<u8> {
    let amd64 = Arch::from_name("amd64").unwrap();
    let path = folder.join("good.sif");
    NewSif::new(vec![
        NewObject::new(Kind::Definition, &b"bootstrap: scratch\n"[..]),
        NewObject::json("inspect-metadata.json", &b"{}"[..]),
        NewObject::partition(FileSystem::Squashfs, Role::Primary, amd64, &b"root"[..]),
        NewObject::partition(FileSystem::Squashfs, Role::System, amd64, &b"more"[..]),
    ])
    .create(&path)
    .unwrap();
    fs::read(path).unwrap()
}

fn open(bytes: &[u8]) -> isles_sif::Result<Sif> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Sif::from_file(file, "x.sif")
}

/// Reads everything that the file says it has.
fn read_all(sif: &Sif) {
    let mut total = 0;
    for object in sif.objects() {
        let mut bytes = Vec::new();
        sif.reader(object).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, object.size);
        total += object.size;
        object.integrity(sif.first_id(object.group).unwrap());
    }
    assert!(total <= sif.file().metadata().unwrap().len(), "objects do not share bytes");
    let _ = (sif.header().launch_line(), sif.header().uuid_text(), sif.header().integrity());
}

#[test]
fn lies_are_refused_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let good = good(folder.path());
    let slot = |n: usize, at: usize| TABLE + n * DESCRIPTOR + at;
    let number = |n: i64| n.to_le_bytes().to_vec();
    let id = |n: u32| n.to_le_bytes().to_vec();
    let cases: [(usize, Vec<u8>, &str); 19] = [
        (32, b"SIF_MAGIX".to_vec(), "does not have the mark"),
        (42, b"02".to_vec(), "version is not 01"),
        (88, number(-1), "-1 descriptors"),
        (88, number(i64::MAX), "descriptors, and 16384 at most"),
        (88, number(47), "47 descriptors do not have 28080 bytes"),
        (96, number(-4096), "descriptors lie over its header"),
        (96, number(64), "descriptors lie over its header"),
        (96, number(i64::MAX), "descriptors lie over its header"),
        (96, number(1 << 40), "descriptors are cut short"),
        (112, number(4096), "data lies over its descriptors"),
        (120, number(-1), "its data has -1 bytes"),
        (120, number(i64::MAX), "its data has"),
        (slot(0, 5), id(0), "ID 0"),
        (slot(0, 5), id(2), "two objects have the ID 2"),
        (slot(0, 17), number(-1), "begins before the file"),
        (slot(0, 25), number(-1), "negative size"),
        (slot(0, 25), number(i64::MAX), "object 1 reaches beyond the end of the file"),
        (slot(1, 17), number(4096), "object 2 lies over the descriptors"),
        (slot(3, 205), id(2), "two primary partitions"),
    ];
    for (at, bytes, reason) in cases {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(&bytes);
        let error = open(&file).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(reason), "at {at}: {error}");
    }
    let mut over = good.clone();
    over[slot(1, 17)..slot(1, 25)].copy_from_slice(&number(32_180));
    assert!(open(&over).unwrap_err().to_string().contains("object 1 lies over object 2"));
    for length in [0, 1, 127, 128, 4096, 32_175, 32_180, good.len() - 1] {
        assert!(open(&good[..length]).is_err(), "{length} bytes");
    }
    // Nor do empty objects lie far behind the end, where the next one would then go.
    for (offset, fine) in [(good.len() as i64, true), (1 << 40, false), (i64::MAX, false)] {
        let mut empty = good.clone();
        empty[slot(0, 17)..slot(0, 25)].copy_from_slice(&number(offset));
        empty[slot(0, 25)..slot(0, 33)].copy_from_slice(&number(0));
        assert_eq!(open(&empty).is_ok(), fine, "{offset}");
    }
    open(&good).unwrap();
}

#[test]
fn what_is_unknown_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = good(folder.path());
    file[TABLE..TABLE + 4].copy_from_slice(&0x4fff_i32.to_le_bytes());
    file[TABLE + 73..TABLE + 201].fill(b'n');
    let sif = open(&file).unwrap();
    assert_eq!(sif.objects()[0].kind, Kind::Other(0x4fff));
    assert_eq!(sif.objects()[0].name.len(), 128, "a name without a zero byte ends with its field");
    read_all(&sif);
}

#[test]
fn what_is_no_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in [File::open(folder.path()).unwrap(), File::open("/dev/null").unwrap()] {
        let error = Sif::from_file(file, "x").unwrap_err().to_string();
        assert!(error.contains("not a regular file"), "{error}");
    }
}

/// Files of all shapes, for the changes below to begin with.
fn seeds(folder: &Path) -> Vec<Vec<u8>> {
    let make = |objects: Vec<NewObject<'_>>| {
        let path = folder.join("seed.sif");
        NewSif::new(objects).create(&path).unwrap();
        path
    };
    let read = |path: &Path| fs::read(path).unwrap();
    let mut seeds = vec![good(folder), read(&make(Vec::new()))];
    // An OCI image in a file.
    let blob = |bytes: &'static [u8]| NewObject::new(Kind::OciBlob, bytes);
    let index = NewObject::new(Kind::OciRootIndex, &b"{\"schemaVersion\":2,\"manifests\":[]}"[..]);
    seeds.push(read(&make(vec![blob(b"one"), blob(b""), index])));
    // More descriptors than usual.
    seeds.push(read(&make((0..60).map(|_| NewObject::new(Kind::Generic, &b"x"[..])).collect())));
    // Every other kind of object, and signatures of both kinds.
    let extra = |kind, extra| NewObject { extra, ..NewObject::new(kind, &b"x"[..]) };
    let message = Extra::CryptoMessage { format: MessageFormat::Pem, kind: MessageKind::RsaOaep };
    let path = make(vec![
        extra(Kind::CryptoMessage, message),
        extra(Kind::Sbom, Extra::Sbom(SbomFormat::SpdxJson)),
        NewObject { group: 2, ..NewObject::json("a.json", &b"{}"[..]) },
    ]);
    let mut editor = Editor::open(&path).unwrap();
    let certificate = Certificate::generate("A <a@example.org>", None, 1).unwrap();
    let key = certificate.open(None).unwrap();
    sign(&mut editor, &Signer::OpenPgp { key: &key, now: 1 }, &Selection::default()).unwrap();
    let pem = "-----BEGIN PRIVATE KEY-----\n\
        MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";
    let pem = [PrivateKey::from_pem(pem, "pem").unwrap()];
    sign(&mut editor, &Signer::Pem(&pem), &Selection::default()).unwrap();
    seeds.push(read(&path));
    seeds
}

/// Changes of good files, the same in every run. `ISLES_FUZZ` is how many are tried (1,500 where it is not set).
#[test]
fn no_change_of_a_file_does_harm() {
    let folder = tempfile::tempdir().unwrap();
    let seeds = seeds(folder.path());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    const ODD: [u64; 10] =
        [0, 1, 127, 255, 4095, 4096, u32::MAX as u64, i64::MAX as u64, i64::MIN as u64, u64::MAX];
    let (mut opened, mut refused) = (0, 0);
    let path = folder.path().join("changed.sif");
    let trust = Trust { keyring: Some(&[]), keys: &[], now: 1 };
    let rounds = std::env::var("ISLES_FUZZ").ok().and_then(|n| n.parse().ok()).unwrap_or(1500);
    for _ in 0..rounds {
        let mut file = seeds[random() % seeds.len()].clone();
        for _ in 0..=random() % 3 {
            let at = match random() % 3 {
                0 => random() % 128,
                1 => TABLE + random() % (6 * DESCRIPTOR),
                _ => random() % file.len(),
            };
            match random() % 3 {
                0 => file[at] ^= 1 << (random() % 8),
                1 => file[at] = random() as u8,
                _ => {
                    let odd = ODD[random() % ODD.len()].to_le_bytes();
                    let end = (at + 8).min(file.len());
                    file[at..end].copy_from_slice(&odd[..end - at]);
                }
            }
        }
        if random() % 8 == 0 {
            file.truncate(random() % file.len());
        }
        fs::write(&path, &file).unwrap();
        match Sif::open(&path) {
            Ok(sif) => {
                read_all(&sif);
                for kinds in [Kinds::Usual, Kinds::Legacy { all: true }] {
                    // Nobody is trusted, so whatever it says is a reason not to believe it.
                    let report = verify(&sif, &Selection::default(), kinds, &trust);
                    assert!(report.is_err() || report.is_ok_and(|report| report.problem.is_some()));
                }
                opened += 1;
            }
            Err(error) => {
                assert!(!error.to_string().contains('\n'));
                refused += 1;
            }
        }
    }
    assert!(opened > rounds / 15 && refused > rounds / 15, "{opened} opened, {refused} refused");
}

//! Signatures: what we make is, byte for byte, what the format's own library makes with the same keys; what it made is
//! believed, and nothing that differs by a byte.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;
use std::path::{Path, PathBuf};

use isles_openpgp::{Certificate, Key};
use isles_sif::{
    Arch, Editor, FileSystem, Kind, Kinds, NewObject, NewSif, PrivateKey, Problem, PublicKey, Role,
    Selection, Sif, Signer, Trust, sign, verify,
};
use world::conformance;

/// When the library's test images were signed.
const THEN: u64 = 1_593_475_316;
const NOW: u64 = 1_700_000_000;
const LEGACY: Kinds = Kinds::Legacy { all: false };
const LEGACY_ALL: Kinds = Kinds::Legacy { all: true };

fn amd64() -> Arch {
    Arch::from_name("amd64").unwrap()
}

/// Three objects in two groups.
fn image(folder: &Path) -> PathBuf {
    let path = folder.join("image.sif");
    let primary = NewObject::partition(FileSystem::Squashfs, Role::Primary, amd64(), &b"root"[..]);
    let other = NewObject { group: 2, ..NewObject::json("more", &b"{}"[..]) };
    NewSif::new(vec![NewObject::new(Kind::Definition, &b"bootstrap: scratch\n"[..]), primary, other])
        .create(&path)
        .unwrap();
    path
}

fn all() -> Selection {
    Selection::default()
}

fn groups(groups: &[u32]) -> Selection {
    Selection { groups: groups.to_vec(), ..Selection::default() }
}

fn objects(objects: &[u32]) -> Selection {
    Selection { objects: objects.to_vec(), ..Selection::default() }
}

fn trust(keyring: &[Key]) -> Trust<'_> {
    Trust { keyring: Some(keyring), keys: &[], now: NOW }
}

#[test]
fn signed_files_are_equal_byte_for_byte() {
    let Some(key) = conformance("private.asc") else { return };
    let certificate = Certificate::read(&fs::read(key).unwrap()).unwrap().remove(0);
    let key = certificate.open(None).unwrap();
    let pem = ["ed25519-private.pem", "rsa-private.pem"].map(|name| {
        let text = fs::read_to_string(conformance(name).unwrap()).unwrap();
        PrivateKey::from_pem(&text, name).unwrap()
    });
    let folder = tempfile::tempdir().unwrap();
    for image in ["one-group", "two-groups"] {
        for (kind, signer) in [("pgp", Signer::OpenPgp { key: &key, now: THEN }), ("dsse", Signer::Pem(&pem))]
        {
            let path = folder.path().join("image.sif");
            fs::copy(conformance(&format!("{image}.sif")).unwrap(), &path).unwrap();
            sign(&mut Editor::open(&path).unwrap(), &signer, &all()).unwrap();
            let golden = conformance(&format!("{image}-signed-{kind}.sif")).unwrap();
            assert!(fs::read(&path).unwrap() == fs::read(golden).unwrap(), "{image} {kind}");
        }
    }
}

/// An image, what of it is verified and how, and the objects that are found good.
type Case<'a> = (&'a str, Selection, Kinds, Trust<'a>, Result<&'a [u32], Problem>);

#[test]
fn what_the_library_signed_is_verified() {
    let Some(key) = conformance("private.asc") else { return };
    let keyring = Certificate::read(&fs::read(key).unwrap()).unwrap()[0].keys().unwrap();
    let pem = ["ed25519-public.pem", "rsa-public.pem", "ecdsa-public.pem"].map(|name| {
        PublicKey::from_pem(&fs::read_to_string(conformance(name).unwrap()).unwrap(), name).unwrap()
    });
    let nobody = Trust { now: NOW, ..Trust::default() };
    let by_keys = |keys| Trust { keys, now: NOW, keyring: None };
    let cases: [Case<'_>; 20] = [
        ("one-group", all(), Kinds::Usual, trust(&keyring), Err(Problem::UnsignedGroup(1))),
        ("one-group-signed-pgp", all(), Kinds::Usual, trust(&keyring), Ok(&[1, 2])),
        ("one-group-signed-pgp", objects(&[2]), Kinds::Usual, trust(&keyring), Ok(&[2])),
        ("one-group-signed-pgp", all(), Kinds::Usual, nobody.clone(), Err(Problem::NoKeyring(3))),
        ("one-group-signed-pgp", all(), LEGACY, trust(&keyring), Err(Problem::UnsignedObject(2))),
        ("two-groups-signed-pgp", all(), Kinds::Usual, trust(&keyring), Ok(&[1, 2, 3])),
        ("two-groups-signed-pgp", groups(&[2]), Kinds::Usual, trust(&keyring), Ok(&[3])),
        (
            "one-group-signed-pgp",
            all(),
            Kinds::Usual,
            trust(&[]),
            Err(Problem::UnknownKey { signature: 3, key: "12045C8C0B1004D058DE4BEDA20C27EE7FF7BA84".into() }),
        ),
        ("one-group-signed-dsse", all(), Kinds::Usual, by_keys(&pem[..1]), Ok(&[1, 2])),
        ("one-group-signed-dsse", all(), Kinds::Usual, by_keys(&pem[1..2]), Ok(&[1, 2])),
        ("two-groups-signed-dsse", all(), Kinds::Usual, by_keys(&pem), Ok(&[1, 2, 3])),
        ("one-group-signed-dsse", all(), Kinds::Usual, trust(&keyring), Err(Problem::NoKeys(3))),
        (
            "one-group-signed-dsse",
            all(),
            Kinds::Usual,
            by_keys(&pem[2..]),
            Err(Problem::Invalid {
                signature: 3,
                reason: "none of its signatures is by the given key".into(),
            }),
        ),
        ("one-group-signed-legacy", all(), Kinds::Usual, trust(&keyring), Err(Problem::UnsignedGroup(1))),
        ("one-group-signed-legacy", all(), LEGACY, trust(&keyring), Ok(&[2])),
        ("one-group-signed-legacy-all", all(), LEGACY_ALL, trust(&keyring), Ok(&[1, 2])),
        ("one-group-signed-legacy-group", groups(&[1]), LEGACY, trust(&keyring), Ok(&[1, 2])),
        ("two-groups-signed-legacy-all", all(), LEGACY_ALL, trust(&keyring), Err(Problem::UnsignedObject(3))),
        ("two-groups-signed-legacy-group", groups(&[1]), LEGACY, trust(&keyring), Ok(&[1, 2])),
        ("one-group-signed-legacy", all(), LEGACY_ALL, trust(&keyring), Err(Problem::UnsignedObject(1))),
    ];
    for (n, (name, selection, kinds, trust, expected)) in cases.into_iter().enumerate() {
        let sif = Sif::open(&conformance(&format!("{name}.sif")).unwrap()).unwrap();
        let report = verify(&sif, &selection, kinds, &trust).unwrap();
        let verified: Vec<u32> = report.checked.iter().flat_map(|c| c.verified.clone()).collect();
        assert_eq!(report.problem.map_or(Ok(verified.as_slice()), Err), expected, "case {n}: {name}");
    }
}

#[test]
fn a_signature_speaks_for_what_it_names_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let certificate = Certificate::generate("Tester <t@example.org>", None, THEN).unwrap();
    let keyring = certificate.keys().unwrap();
    let key = certificate.open(None).unwrap();
    let signer = Signer::OpenPgp { key: &key, now: THEN };
    let problem = |selection: &Selection| {
        verify(&Sif::open(&path).unwrap(), selection, Kinds::Usual, &trust(&keyring)).unwrap().problem
    };
    let mut editor = Editor::open(&path).unwrap();
    assert_eq!(sign(&mut editor, &signer, &groups(&[1])).unwrap(), [4]);
    assert_eq!(problem(&groups(&[1])), None);
    assert_eq!(problem(&all()), Some(Problem::UnsignedGroup(2)));
    let report = verify(&Sif::open(&path).unwrap(), &groups(&[1]), Kinds::Usual, &trust(&keyring)).unwrap();
    assert_eq!(report.uncovered(&Sif::open(&path).unwrap()), [3]);
    assert_eq!(report.signers(), [certificate.fingerprint()]);

    // What is added to a signed group, or to no group, is noticed.
    let id = editor.add(NewObject::new(Kind::Generic, &b"later"[..])).unwrap();
    assert_eq!(problem(&groups(&[1])), Some(Problem::NotSigned(id)));
    assert_eq!(problem(&objects(&[1, 2])), None);
    editor.delete(id, Default::default()).unwrap();
    let id = editor.add(NewObject { group: 0, ..NewObject::new(Kind::Generic, &b"x"[..]) }).unwrap();
    assert_eq!(problem(&groups(&[1])), Some(Problem::Ungrouped(id)));
    editor.delete(id, Default::default()).unwrap();
    editor.delete(1, Default::default()).unwrap();
    assert_eq!(problem(&groups(&[1])), Some(Problem::Lost(3)), "relative to the group's first object");
    for (selection, why) in [(groups(&[7]), "has no group 7"), (objects(&[9]), "has no object 9")] {
        let error = sign(&mut editor, &signer, &selection).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let error = sign(&mut editor, &signer, &objects(&[4])).unwrap_err().to_string();
    assert!(error.contains("object 4 is in no group"), "{error}");
}

/// Every byte of the file that a signature covers.
#[test]
fn no_byte_can_be_changed_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(folder.path());
    let certificate = Certificate::generate("Tester <t@example.org>", None, THEN).unwrap();
    let keyring = certificate.keys().unwrap();
    let key = certificate.open(None).unwrap();
    sign(&mut Editor::open(&path).unwrap(), &Signer::OpenPgp { key: &key, now: THEN }, &all()).unwrap();
    let good = fs::read(&path).unwrap();
    let check = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let sif = Sif::open(&path).ok()?;
        Some(verify(&sif, &all(), Kinds::Usual, &trust(&keyring)).unwrap().problem)
    };
    assert_eq!(check(&good), Some(None));
    // The launch line and the UUID; of a descriptor all but the mark of groups (12), the offset (17), the padded size
    // (33) and the time of change (49); the data of each object.
    let header = (0..32).chain(48..64);
    let descriptor = (0..12).chain(13..17).chain(25..33).chain(41..49).chain(57..585).map(|at| 4096 + at);
    let data = (32_176..32_195).chain(32_768..32_772).chain(32_772..32_774);
    for at in header.chain(descriptor.step_by(3)).chain(data) {
        let mut changed = good.clone();
        changed[at] ^= 0x10;
        assert_ne!(check(&changed), Some(None), "byte {at}");
    }
}

#[test]
fn keys_of_openssl_sign_and_verify() {
    let openssl = |arguments: &[&str]| {
        let output = std::process::Command::new("openssl").args(arguments).output();
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8(o.stdout).unwrap())
    };
    let folder = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 5] = [
        &["genpkey", "-algorithm", "ed25519"],
        &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
        &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
        &["ecparam", "-name", "prime256v1", "-genkey"],
        &["genrsa", "-traditional", "2048"],
    ];
    for arguments in cases {
        let Some(private) = openssl(arguments) else {
            println!("skip: no openssl");
            return;
        };
        let file = folder.path().join("key.pem");
        fs::write(&file, &private).unwrap();
        let public = openssl(&["pkey", "-pubout", "-in", file.to_str().unwrap()]).unwrap();
        let public = PublicKey::from_pem(&public, "public.pem").unwrap();
        let key = PrivateKey::from_pem(&private, "key.pem").unwrap();
        assert_eq!(key.public(), public, "{arguments:?}");
        let path = image(folder.path());
        sign(&mut Editor::open(&path).unwrap(), &Signer::Pem(&[key]), &all()).unwrap();
        let trust = Trust { keys: &[public], now: NOW, keyring: None };
        let report = verify(&Sif::open(&path).unwrap(), &all(), Kinds::Usual, &trust).unwrap();
        assert_eq!((report.problem, report.checked.len()), (None, 2), "{arguments:?}");
    }
    for (text, why) in [
        ("", "there is none in PEM form"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "it is a public key"),
        ("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "it is neither RSA"),
        ("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n", "it is locked with a passphrase"),
    ] {
        let error = PrivateKey::from_pem(text, "key.pem").map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

//! What we write is, byte for byte, what the format's own library wrote.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;

use isles_sif::{
    Arch, Extra, FileSystem, Kind, MessageFormat, MessageKind, NewObject, NewSif, Role, SbomFormat, Sif,
};
use world::conformance;

type Objects = fn() -> Option<Vec<NewObject<'static>>>;

fn input(name: &str) -> Option<std::io::Cursor<Vec<u8>>> {
    Some(std::io::Cursor::new(fs::read(conformance(name)?).unwrap()))
}

fn arch(name: &str) -> Arch {
    Arch::from_name(name).unwrap()
}

fn json() -> Option<Vec<NewObject<'static>>> {
    Some(vec![NewObject::json("data.json", &b"{}"[..])])
}

fn message() -> Option<Vec<NewObject<'static>>> {
    let extra = Extra::CryptoMessage { format: MessageFormat::OpenPgp, kind: MessageKind::ClearSignature };
    Some(vec![NewObject { extra, ..NewObject::new(Kind::CryptoMessage, &[0xfe, 0xfe, 0xf0, 0xf0][..]) }])
}

fn sbom() -> Option<Vec<NewObject<'static>>> {
    let extra = Extra::Sbom(SbomFormat::CycloneDxJson);
    Some(vec![NewObject { extra, ..NewObject::new(Kind::Sbom, input("sbom.cdx.json")?) }])
}

fn two() -> Option<Vec<NewObject<'static>>> {
    Some(vec![
        NewObject::partition(FileSystem::Raw, Role::System, arch("386"), &[0xfa, 0xce, 0xfe, 0xed][..]),
        NewObject::partition(FileSystem::Squashfs, Role::Primary, arch("386"), input("root.squashfs")?),
    ])
}

fn three() -> Option<Vec<NewObject<'static>>> {
    let mut objects = two()?;
    let third = NewObject::partition(FileSystem::Ext3, Role::System, arch("amd64"), input("root.ext3")?);
    objects.push(NewObject { group: 2, ..third });
    Some(objects)
}

#[test]
fn files_are_equal_byte_for_byte() {
    let id = [0x3f, 0xa8, 0x02, 0xcc, 0x35, 0x8b, 0x45, 0xe3, 0xbc, 0xc0, 0x69, 0xdc, 0x7a, 0x45, 0xf9, 0xf8];
    let (none, script): (&[u8], &[u8]) = (b"", b"#!/usr/bin/env run-script\n");
    let plain = || NewSif { launch: none, ..NewSif::new(Vec::new()) };
    let cases: [(&str, NewSif<'_>, Objects); 10] = [
        ("empty", plain(), || Some(Vec::new())),
        ("empty-id", NewSif { uuid: id, ..plain() }, || Some(Vec::new())),
        ("empty-launch-script", NewSif { launch: script, ..plain() }, || Some(Vec::new())),
        ("one-object-time", NewSif { time: 1_593_475_316, ..plain() }, json),
        ("one-object-generic-json", plain(), json),
        ("one-object-crypt-message", plain(), message),
        ("one-object-sbom", plain(), sbom),
        ("one-object-oci-root-index", plain(), || {
            Some(vec![NewObject::new(Kind::OciRootIndex, input("index.json")?)])
        }),
        ("one-group", plain(), two),
        ("two-groups", plain(), three),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (name, new, objects) in cases {
        let (Some(golden), Some(objects)) = (conformance(&format!("{name}.sif")), objects()) else { return };
        let path = folder.path().join(name);
        NewSif { objects, ..new }.create(&path).unwrap();
        assert!(fs::read(&path).unwrap() == fs::read(golden).unwrap(), "{name} differs");
    }
}

#[test]
fn what_the_library_wrote_is_read() {
    let Some(path) = conformance("two-groups-signed-pgp.sif") else { return };
    let sif = Sif::open(&path).unwrap();
    let seen: Vec<_> = sif.objects().iter().map(|o| (o.id, o.group, o.kind, o.offset, o.size)).collect();
    assert_eq!(
        seen,
        [
            (1, 1, Kind::Partition, 32_768, 4),
            (2, 1, Kind::Partition, 36_864, 4_096),
            (3, 2, Kind::Partition, 40_960, 262_144),
            (4, 0, Kind::Signature, 303_104, 1_048),
            (5, 0, Kind::Signature, 304_152, 849),
        ]
    );
    assert_eq!(sif.primary().map(|o| o.id), Some(2));
    assert_eq!(sif.header().arch.name(), "386");
}

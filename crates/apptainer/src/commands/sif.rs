//! `apptainer sif …`: what is in a SIF file, and changes of it, object by object.

use std::fs::File;
use std::io;
use std::path::Path;

use isles_sif::{
    Arch, Deletion, Editor, Extra, FileSystem, Hash, Kind, Link, MessageFormat, MessageKind, NewObject,
    NewSif, Object, Role, SbomFormat, Sif,
};

use crate::columns::{aligned, time};
use crate::command::{Arity, Command, Context};
use crate::failure::{Failure, USAGE};
use crate::flag::Flag;

static DATATYPE: Flag = Flag::number(
    "datatype",
    "the kind of object: 1 definition file, 2 environment, 3 labels, 4 partition, 5 signature, 6 JSON, 7 anything, \
     8 cryptographic message, 9 SBOM, 10 OCI index, 11 OCI blob",
);
static PARTTYPE: Flag =
    Flag::number("parttype", "of a partition: 1 system, 2 primary system, 3 data, 4 overlay");
static PARTFS: Flag = Flag::number("partfs", "of a partition: 1 squashfs, 2 ext3, 3 archive, 4 raw");
static PARTARCH: Flag = Flag::number(
    "partarch",
    "of a partition: 1 386, 2 amd64, 3 arm, 4 arm64, 5 ppc64, 6 ppc64le, 7 mips, 8 mipsle, 9 mips64, 10 mips64le, \
     11 s390x, 12 riscv64, 13 loong64",
);
static SIGNHASH: Flag =
    Flag::number("signhash", "of a signature: 1 SHA-256, 2 SHA-384, 3 SHA-512, 4 BLAKE2s, 5 BLAKE2b");
static SIGNENTITY: Flag =
    Flag::text("signentity", "fingerprint", "of a signature: the fingerprint of its key");
static SBOMFORMAT: Flag = Flag::text(
    "sbomformat",
    "format",
    "of an SBOM: cyclonedx-json, cyclonedx-xml, github-json, spdx-json, spdx-rdf, spdx-tag-value, spdx-yaml, syft-json",
);
static GROUPID: Flag = Flag::number("groupid", "the object's group (default 0, none)");
static LINK: Flag = Flag::number("link", "the object that it belongs to");
static ALIGNMENT: Flag =
    Flag::number("alignment", "begin at a multiple of this (default 4096 for partitions)");
static FILENAME: Flag = Flag::text("filename", "name", "the object's name");

pub static COMMAND: Command = Command {
    usage: "sif",
    short: "Look into SIF files and change them",
    commands: &[&ADD, &DEL, &DUMP, &HEADER, &INFO, &LIST, &NEW, &SETPRIM],
    ..Command::EMPTY
};

static HEADER: Command = Command {
    usage: "header <sif_path>",
    short: "Show the header of a file",
    examples: "apptainer sif header image.sif",
    arity: Arity::Exactly(1),
    run: |cx| cx.print(header(&open(&cx.arguments[0])?)).map(|()| 0),
    ..Command::EMPTY
};

static LIST: Command = Command {
    usage: "list <sif_path>",
    short: "List the objects of a file",
    examples: "apptainer sif list image.sif",
    arity: Arity::Exactly(1),
    run: |cx| cx.print(list(&open(&cx.arguments[0])?)).map(|()| 0),
    ..Command::EMPTY
};

static INFO: Command = Command {
    usage: "info <id> <sif_path>",
    short: "Show what a file says about an object",
    examples: "apptainer sif info 1 image.sif",
    arity: Arity::Exactly(2),
    run: |cx| {
        let sif = open(&cx.arguments[1])?;
        cx.print(info(sif.object(id(&cx.arguments[0])?).map_err(misuse)?)).map(|()| 0)
    },
    ..Command::EMPTY
};

static DUMP: Command = Command {
    usage: "dump <id> <sif_path>",
    short: "Write the bytes of an object to standard output",
    examples: "apptainer sif dump 1 image.sif",
    arity: Arity::Exactly(2),
    run: |cx| {
        let sif = open(&cx.arguments[1])?;
        let object = sif.object(id(&cx.arguments[0])?).map_err(misuse)?;
        match io::copy(&mut sif.reader(object), &mut io::stdout().lock()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(0),
            Err(e) => Err(Failure::because(format!("cannot write out object {}", object.id), &e)),
            Ok(_) => Ok(0),
        }
    },
    ..Command::EMPTY
};

static NEW: Command = Command {
    usage: "new <sif_path>",
    short: "Make a file without objects",
    examples: "apptainer sif new image.sif",
    arity: Arity::Exactly(1),
    run: |cx| {
        let now = super::now().cast_signed();
        let uuid = isles_sif::random_uuid()?;
        let new = NewSif { uuid, time: now, launch: b"", ..NewSif::new(Vec::new()) };
        new.create(Path::new(&cx.arguments[0]))?;
        Ok(0)
    },
    ..Command::EMPTY
};

static ADD: Command = Command {
    usage: "add [add options...] <sif_path> <object_path>",
    short: "Add an object to a file",
    examples: "apptainer sif add image.sif recipe.def --datatype 1\n\
               apptainer sif add image.sif root.squashfs --datatype 4 --parttype 1 --partfs 1 --partarch 2",
    flags: &[&[
        &ALIGNMENT,
        &DATATYPE,
        &FILENAME,
        &GROUPID,
        &LINK,
        &PARTARCH,
        &PARTFS,
        &PARTTYPE,
        &SBOMFORMAT,
        &SIGNENTITY,
        &SIGNHASH,
    ]],
    interspersed: true,
    arity: Arity::Exactly(2),
    run: |cx| {
        let path = &cx.arguments[1];
        let file = File::open(path).map_err(|e| Failure::because(format!("cannot open {path}"), &e))?;
        let object = described(cx, file)?;
        Editor::open(Path::new(&cx.arguments[0])).map_err(misuse)?.add(object).map_err(misuse)?;
        Ok(0)
    },
    ..Command::EMPTY
};

static DEL: Command = Command {
    usage: "del <id> <sif_path>",
    short: "Delete an object of a file",
    examples: "apptainer sif del 1 image.sif",
    arity: Arity::Exactly(2),
    run: |cx| {
        let mut editor = Editor::open(Path::new(&cx.arguments[1])).map_err(misuse)?;
        editor.delete(id(&cx.arguments[0])?, Deletion::default()).map_err(misuse)?;
        Ok(0)
    },
    ..Command::EMPTY
};

static SETPRIM: Command = Command {
    usage: "setprim <id> <sif_path>",
    short: "Say which partition holds the root file system",
    examples: "apptainer sif setprim 1 image.sif",
    arity: Arity::Exactly(2),
    run: |cx| {
        let mut editor = Editor::open(Path::new(&cx.arguments[1])).map_err(misuse)?;
        editor.set_primary(id(&cx.arguments[0])?).map_err(misuse)?;
        Ok(0)
    },
    ..Command::EMPTY
};

fn open(path: &str) -> Result<Sif, Failure> {
    Sif::open(Path::new(path)).map_err(misuse)
}

/// The commands of `sif` fail with 1, whatever the reason.
fn misuse(error: isles_sif::Error) -> Failure {
    Failure::from(error).with_code(USAGE)
}

fn id(text: &str) -> Result<u32, Failure> {
    let odd =
        |_| Failure::new(format!("'{text}' is no ID of an object; `sif list` shows them")).with_code(USAGE);
    text.parse().map_err(odd)
}

/// The object that the flags describe.
fn described(cx: &Context<'_>, file: File) -> Result<NewObject<'static>, Failure> {
    let wrong = |message: &str| Failure::new(message).with_code(USAGE);
    let number = |flag| cx.values.number(flag).and_then(|n| u32::try_from(n).ok());
    let code = |flag| cx.values.number(flag).and_then(|n| i32::try_from(n).ok());
    let kind = number(&DATATYPE).and_then(|n| Kind::ALL.get((n as usize).checked_sub(1)?).copied());
    let kind = kind.ok_or_else(|| wrong("--datatype is needed, a number from 1 to 11"))?;
    let extra = match kind {
        Kind::Partition => {
            let arch = number(&PARTARCH).filter(|n| (1..=13).contains(n));
            let arch = arch.map(|n| Arch([b'0' + (n / 10) as u8, b'0' + (n % 10) as u8, 0]));
            let (Some(system), Some(role), Some(arch)) = (code(&PARTFS), code(&PARTTYPE), arch) else {
                return Err(wrong("a partition needs --partfs, --parttype and --partarch"));
            };
            let (file_system, role) = (FileSystem::from_code(system), Role::from_code(role));
            Extra::Partition(isles_sif::Partition { file_system, role, arch })
        }
        Kind::Signature => {
            let hash = code(&SIGNHASH).filter(|n| (1..=5).contains(n));
            let hash = hash.ok_or_else(|| wrong("a signature needs --signhash, a number from 1 to 5"))?;
            let fingerprint = cx.values.text(&SIGNENTITY).and_then(super::fingerprint);
            let needed = "a signature needs --signentity, a fingerprint of 40 hexadecimal digits";
            let fingerprint = Some(fingerprint.ok_or_else(|| wrong(needed))?);
            Extra::Signature { hash: Hash::from_code(hash), fingerprint }
        }
        Kind::Sbom => {
            let name = cx.values.text(&SBOMFORMAT).unwrap_or_default();
            let name = if name == "github" { "github-json" } else { name };
            let format = (1..=8).map(SbomFormat::from_code).find(|format| format.name() == name);
            Extra::Sbom(
                format.ok_or_else(|| wrong("an SBOM needs --sbomformat, one of those that --help names"))?,
            )
        }
        Kind::CryptoMessage => {
            Extra::CryptoMessage { format: MessageFormat::Other(0), kind: MessageKind::Other(0) }
        }
        _ => Extra::None,
    };
    let mut object = NewObject { group: number(&GROUPID).unwrap_or(0), extra, ..NewObject::new(kind, file) };
    if let Some(link) = number(&LINK).filter(|link| *link > 0) {
        object.link = Link::Object(link);
    }
    if let Some(alignment) = number(&ALIGNMENT) {
        object.alignment = u64::from(alignment);
    }
    if let Some(name) = cx.values.text(&FILENAME) {
        object.name = name.to_owned();
    }
    Ok(object)
}

fn header(sif: &Sif) -> String {
    let header = sif.header();
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(vec![format!("{name}:"), value]);
    if !header.launch_line().is_empty() {
        line("Launch Script", header.launch_line());
    }
    line("Version", "01".to_owned());
    if header.arch.name() != "unknown" {
        line("Primary Architecture", header.arch.name().to_owned());
    }
    if let Some(uuid) = header.uuid_text() {
        line("ID", uuid);
    }
    for (name, at) in [("Created At", header.created), ("Modified At", header.modified)] {
        if at != isles_sif::NO_TIME {
            line(name, time(at));
        }
    }
    line("Descriptors Free", header.descriptors_free.to_string());
    line("Descriptors Total", header.descriptors_total.to_string());
    line("Descriptors Offset", header.descriptors_offset.to_string());
    line("Descriptors Size", readable(header.descriptors_size));
    line("Data Offset", header.data_offset.to_string());
    line("Data Size", readable(header.data_size));
    aligned(&lines, 1)
}

fn list(sif: &Sif) -> String {
    let rule = "-".repeat(78);
    let mut text = format!(
        "{rule}\n{:<4} {:<8} {:<8} {:<26} {}\n{rule}\n",
        "ID", "|GROUP", "|LINK", "|SIF POSITION (start-end)", "|TYPE"
    );
    for object in sif.objects() {
        let link = match object.link {
            Link::None => format!("|{:<7} ", "NONE"),
            Link::Group(group) => format!("|{group:<3} (G) "),
            Link::Object(id) => format!("|{id:<7} "),
        };
        let group = if object.group == 0 { "NONE".to_owned() } else { object.group.to_string() };
        let position = format!("|{}-{} ", object.offset, object.end());
        text.push_str(&format!("{:<4} |{group:<7} {link}{position:<26} |{}\n", object.id, kind(object)));
    }
    text
}

fn kind(object: &Object) -> String {
    let name = object.kind.name();
    match &object.extra {
        Extra::Partition(p) => {
            format!("{name} ({}/{}/{})", p.file_system.name(), p.role.name(), p.arch.name())
        }
        Extra::Signature { hash, .. } => format!("{name} ({})", hash.name()),
        Extra::CryptoMessage { format, kind } => format!("{name} ({}/{})", format.name(), kind.name()),
        Extra::Sbom(format) => format!("{name} ({})", format.name()),
        Extra::None | Extra::OciDigest(_) => name.to_owned(),
    }
}

fn info(object: &Object) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(vec![String::new(), format!("{name}:"), value]);
    line("Data Type", object.kind.name().to_owned());
    line("ID", object.id.to_string());
    line("Group ID", if object.group == 0 { "NONE".to_owned() } else { object.group.to_string() });
    line(
        "Linked ID",
        match object.link {
            Link::None => "NONE".to_owned(),
            Link::Group(group) => format!("{group} (G)"),
            Link::Object(id) => id.to_string(),
        },
    );
    line("Offset", object.offset.to_string());
    line("Size", object.size.to_string());
    for (name, at) in [("Created At", object.created), ("Modified At", object.modified)] {
        if at != isles_sif::NO_TIME {
            line(name, time(at));
        }
    }
    if !object.name.is_empty() {
        line("Name", object.name.clone());
    }
    match &object.extra {
        Extra::None => {}
        Extra::Partition(partition) => {
            line("Filesystem Type", partition.file_system.name().to_owned());
            line("Partition Type", partition.role.name().to_owned());
            line("Architecture", partition.arch.name().to_owned());
        }
        Extra::Signature { hash, fingerprint } => {
            line("Hash Type", hash.name().to_owned());
            if let Some(fingerprint) = fingerprint {
                line("Entity", isles_sif::fingerprint_text(fingerprint));
            }
        }
        Extra::CryptoMessage { format, kind } => {
            line("Format Type", format.name().to_owned());
            line("Message Type", kind.name().to_owned());
        }
        Extra::Sbom(format) => line("Format", format.name().to_owned()),
        Extra::OciDigest(digest) => line("Digest", digest.clone()),
    }
    aligned(&lines, 2)
}

/// `27 KiB`
fn readable(size: i64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if size < 1024 {
        return format!("{size} B");
    }
    let mut size = size as f64;
    let mut unit = "B";
    for next in UNITS {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, next);
    }
    format!("{size:.0} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sif(folder: &Path) -> Sif {
        let amd64 = Arch::from_name("amd64").unwrap();
        let path = folder.join("x.sif");
        let signature = Extra::Signature { hash: Hash::Sha256, fingerprint: Some([0xab; 20]) };
        let signature = NewObject {
            group: 0,
            link: Link::Group(1),
            extra: signature,
            ..NewObject::new(Kind::Signature, &b"sig"[..])
        };
        NewSif::new(vec![
            NewObject::new(Kind::Definition, &b"bootstrap: scratch\n"[..]),
            NewObject::json("inspect-metadata.json", &b"{}"[..]),
            NewObject::partition(FileSystem::Squashfs, Role::Primary, amd64, &b"root"[..]),
            signature,
        ])
        .create(&path)
        .unwrap();
        Sif::open(&path).unwrap()
    }

    #[test]
    fn lists_as_the_real_tool_has_them() {
        let folder = tempfile::tempdir().unwrap();
        let sif = sif(folder.path());
        assert_eq!(
            list(&sif),
            "\
------------------------------------------------------------------------------
ID   |GROUP   |LINK    |SIF POSITION (start-end)  |TYPE
------------------------------------------------------------------------------
1    |1       |NONE    |32176-32195               |Def.FILE
2    |1       |NONE    |32195-32197               |JSON.Generic
3    |1       |NONE    |32768-32772               |FS (Squashfs/*System/amd64)
4    |NONE    |1   (G) |32772-32775               |Signature (SHA-256)
"
        );
        assert_eq!(
            header(&sif),
            "\
Launch Script:        #!/usr/bin/env run-singularity
Version:              01
Primary Architecture: amd64
Descriptors Free:     44
Descriptors Total:    48
Descriptors Offset:   4096
Descriptors Size:     27 KiB
Data Offset:          32176
Data Size:            599 B
"
        );
        assert_eq!(
            info(sif.object(4).unwrap()),
            "  Data Type:  Signature
  ID:         4
  Group ID:   NONE
  Linked ID:  1 (G)
  Offset:     32772
  Size:       3
  Hash Type:  SHA-256
  Entity:     ABABABABABABABABABABABABABABABABABABABAB
"
        );
    }

    #[test]
    fn sizes() {
        for (size, text) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (28_080, "27 KiB"), (5 << 30, "5 GiB")]
        {
            assert_eq!(readable(size), text);
        }
    }
}

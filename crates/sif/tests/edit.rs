//! Files that are changed where they are.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use isles_sif::{Arch, Deletion, Editor, FileSystem, Kind, NewObject, NewSif, Role, Sif};

fn amd64() -> Arch {
    Arch::from_name("amd64").unwrap()
}

fn partition(role: Role, data: &'static [u8]) -> NewObject<'static> {
    NewObject::partition(FileSystem::Squashfs, role, amd64(), data)
}

fn made(folder: &Path, objects: Vec<NewObject<'_>>) -> PathBuf {
    let path = folder.join("image.sif");
    NewSif::new(objects).create(&path).unwrap();
    path
}

fn content(sif: &Sif, id: u32) -> String {
    let mut text = String::new();
    sif.reader(sif.object(id).unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_new_file_can_be_run_and_has_its_objects() {
    let folder = tempfile::tempdir().unwrap();
    let path = made(
        folder.path(),
        vec![
            NewObject::new(Kind::Definition, &b"bootstrap: scratch\n"[..]),
            partition(Role::Primary, b"root"),
        ],
    );
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o700, 0o700);
    let sif = Sif::open(&path).unwrap();
    assert_eq!(sif.header().launch_line(), "#!/usr/bin/env run-singularity");
    assert_eq!((content(&sif, 1).as_str(), content(&sif, 2).as_str()), ("bootstrap: scratch\n", "root"));
    let root = sif.primary().unwrap();
    assert_eq!((root.offset % 4096, root.padded_size), (0, 32_768 - 32_176 - 19 + 4));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing stays beside it");
}

#[test]
fn the_same_objects_make_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    let objects = || vec![NewObject::json("a.json", &b"{}"[..]), partition(Role::Primary, b"root")];
    let first = fs::read(made(folder.path(), objects())).unwrap();
    assert!(first == fs::read(made(folder.path(), objects())).unwrap());
}

#[test]
fn what_is_added_and_deleted_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        made(folder.path(), vec![NewObject::json("a", &b"one"[..]), partition(Role::Primary, b"root")]);
    let mut editor = Editor::open(&path).unwrap();
    assert_eq!(editor.add(NewObject::new(Kind::Generic, &b"three"[..])).unwrap(), 3);
    editor.delete(1, Deletion { zero: true, compact: false }).unwrap();
    assert!(editor.sif().object(1).is_err());
    assert_eq!(
        editor.add(NewObject::new(Kind::Generic, &b"again one"[..])).unwrap(),
        1,
        "IDs are used again"
    );
    let header = editor.sif().header().clone();
    assert_eq!((header.descriptors_free, header.arch), (45, amd64()));
    assert_eq!(header.created, header.modified, "nothing brings in a time");
    drop(editor);
    let sif = Sif::open(&path).unwrap();
    let all: Vec<String> = [1, 2, 3].iter().map(|id| content(&sif, *id)).collect();
    assert_eq!(all, ["again one", "root", "three"]);
    assert_eq!(&fs::read(&path).unwrap()[32_176..32_179], [0; 3], "what is deleted was overwritten");
}

#[test]
fn a_compacted_file_ends_with_its_last_object() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        made(folder.path(), vec![NewObject::json("a", &b"one"[..]), partition(Role::Primary, b"root")]);
    let mut editor = Editor::open(&path).unwrap();
    editor.delete(2, Deletion { zero: false, compact: true }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), 32_179);
    assert_eq!(editor.sif().header().arch, Arch::UNKNOWN);
    assert_eq!(editor.sif().header().data_size, 3);
}

#[test]
fn there_is_one_primary_partition() {
    let folder = tempfile::tempdir().unwrap();
    let arm = Arch::from_name("arm64").unwrap();
    let path = made(
        folder.path(),
        vec![
            partition(Role::Primary, b"a"),
            NewObject::partition(FileSystem::Squashfs, Role::System, arm, &b"b"[..]),
            partition(Role::Data, b"c"),
            NewObject::new(Kind::Generic, &b"d"[..]),
        ],
    );
    let mut editor = Editor::open(&path).unwrap();
    assert!(editor.add(partition(Role::Primary, b"e")).is_err());
    editor.set_primary(2).unwrap();
    assert_eq!(editor.sif().primary().map(|o| o.id), Some(2));
    assert_eq!(editor.sif().header().arch, arm);
    for (id, why) in [(3, "is not a system partition"), (4, "is not a partition"), (9, "has no object 9")] {
        let error = editor.set_primary(id).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let two = vec![partition(Role::Primary, b"a"), partition(Role::Primary, b"b")];
    let error = NewSif::new(two).create(&folder.path().join("x.sif")).unwrap_err().to_string();
    assert!(error.contains("two primary partitions"), "{error}");
}

#[test]
fn more_objects_than_usual_get_more_descriptors() {
    let folder = tempfile::tempdir().unwrap();
    let objects = (0..60).map(|_| NewObject::new(Kind::Generic, &b"x"[..])).collect();
    let path = made(folder.path(), objects);
    let header = Sif::open(&path).unwrap().header().clone();
    assert_eq!((header.descriptors_total, header.descriptors_free), (76, 16));
    let mut editor = Editor::open(&path).unwrap();
    for _ in 0..16 {
        editor.add(NewObject::new(Kind::Generic, &b"y"[..])).unwrap();
    }
    let error = editor.add(NewObject::new(Kind::Generic, &b"z"[..])).unwrap_err().to_string();
    assert!(error.contains("all of its descriptors are in use"), "{error}");
}

/// What a crash leaves: the file is as it was until one byte says otherwise, and goes on being changed.
#[test]
fn an_interrupted_change_has_happened_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let path =
        made(folder.path(), vec![NewObject::json("a", &b"one"[..]), partition(Role::Primary, b"root")]);
    let before = fs::read(&path).unwrap();
    Editor::open(&path).unwrap().add(NewObject::new(Kind::Generic, &b"three"[..])).unwrap();
    let after = fs::read(&path).unwrap();
    // In the order in which they are written: the data, the descriptor that is not in use yet, the byte that says that
    // it is, the header.
    let descriptor = 4096 + 2 * 585;
    let mut data = before.clone();
    data.extend_from_slice(&after[before.len()..]);
    let mut unused = data.clone();
    unused[descriptor..descriptor + 585].copy_from_slice(&after[descriptor..descriptor + 585]);
    unused[descriptor + 4] = 0;
    let mut used = unused.clone();
    used[descriptor + 4] = 1;
    for (state, is_there) in [(data, false), (unused, false), (used, true), (after, true)] {
        fs::write(&path, state).unwrap();
        let mut editor = Editor::open(&path).unwrap();
        assert_eq!((content(editor.sif(), 1), content(editor.sif(), 2)), ("one".into(), "root".into()));
        assert_eq!(editor.sif().object(3).is_ok(), is_there);
        let id = editor.add(NewObject::new(Kind::Generic, &b"next"[..])).unwrap();
        assert_eq!(content(editor.sif(), id), "next");
        if is_there {
            assert_eq!((id, content(editor.sif(), 3)), (4, "three".into()));
        }
        let header = editor.sif().header();
        assert_eq!(header.descriptors_free, 48 - editor.sif().objects().len() as i64);
    }
}

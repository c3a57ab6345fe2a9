//! The root of a container that is one image and stays as it is: mounted as it is, without an overlay.
//!
//! An overlay over an image that nobody writes to has one use, the places of mounts that the image lacks, and makes every
//! look at a file cost half as much again. Mostly these places are in folders that are empty (`/home`, `/var/tmp`); then a
//! small tmpfs at each of them, with the folder's mode, shows the same, and is read-only when all places are made. Where a
//! place is missing elsewhere, or in `/` itself, it takes the overlay.

use std::path::{Path, PathBuf};

use isles_sandbox::setup::{Mount, MountFlags, MountSource, RootFs, Setup};
use isles_store::FileKind;

use crate::layers::PLACES_SIZE;
use crate::view::{View, absolute};

/// So many tmpfs cost what an overlay does.
const MOST: usize = 8;

/// Takes the overlay away, where it has one image below it and all places are there or in folders that are empty. Nobody
/// may write to the root.
pub fn without_overlay(setup: &mut Setup, view: &View) {
    let RootFs::Overlay { lowers, upper, foreign: false, .. } = &setup.root else { return };
    let [lower] = lowers.as_slice() else { return };
    let made_later = setup.process.create_cwd
        || !setup.devices.iter().all(|device| absolute(&device.path).starts_with("/dev"));
    if made_later {
        return;
    }
    let destinations: Vec<_> = setup
        .mounts
        .iter()
        .map(|mount| (absolute(&mount.destination), matches!(mount.source, MountSource::Place { .. })))
        .collect();
    let Some(folders) = empty_folders(&destinations, view) else { return };
    // The memory that the overlay would have written to.
    setup.prepared.retain(|prepared| !upper.starts_with(&prepared.place));
    setup.root = RootFs::Directory(lower.clone());
    let places = folders.into_iter().map(|(folder, mode)| {
        let options = [("size", PLACES_SIZE.to_string()), ("mode", format!("{mode:o}"))]
            .map(|(k, v)| (k.to_owned(), v));
        let source =
            MountSource::Filesystem { kind: "tmpfs".into(), source: "tmpfs".into(), options: options.into() };
        let flags = MountFlags { nosuid: true, nodev: true, sealed: true, ..MountFlags::default() };
        Mount { flags, ..Mount::new(folder, source) }
    });
    setup.mounts.splice(0..0, places);
}

/// The folders, with their modes, in which places are missing; `None` where one is not empty, or cannot be covered.
/// Destinations that are only places show nothing by themselves.
fn empty_folders(destinations: &[(PathBuf, bool)], view: &View) -> Option<Vec<(PathBuf, u32)>> {
    let mut out: Vec<(PathBuf, u32)> = Vec::new();
    for (at, (destination, _)) in destinations.iter().enumerate() {
        // What an earlier mount shows there is not the image's.
        let covered = |(earlier, is_place): &(PathBuf, bool)| !is_place && destination.starts_with(earlier);
        if destinations[..at].iter().any(covered) || view.exists(destination) {
            continue;
        }
        let above = destination.ancestors().skip(1).find(|path| view.exists(path))?;
        let folder = absolute(&view.canonical(above).ok()?);
        if out.iter().any(|(known, _)| *known == folder) {
            continue;
        }
        let found = view.stat(&folder)?;
        let usable = folder != Path::new("/") && found.kind == FileKind::Dir && out.len() < MOST;
        if !usable || !view.names(&folder).is_empty() {
            return None;
        }
        out.push((folder, found.mode & 0o7777));
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_store::{Merged, Ownership};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn places_are_made_in_empty_folders_only() {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["etc", "home", "proc", "var/tmp", "full/x"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        fs::set_permissions(dir.path().join("var/tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777))
            .unwrap();
        fs::write(dir.path().join("etc/hosts"), "").unwrap();
        symlink("/home", dir.path().join("users")).unwrap();
        symlink("/nowhere", dir.path().join("full/dangling")).unwrap();
        let view: View = Merged::open(&[dir.path().to_owned()], Ownership::Single).unwrap().into();
        type Case<'a> = (&'a [&'a str], Option<&'a [(&'a str, u32)]>);
        let cases: [Case<'_>; 10] = [
            (&["/proc", "/etc/hosts"], Some(&[])),
            (&["/home/me", "/home/me/x", "/home/you"], Some(&[("/home", 0o755)])),
            (&["/users/me/deep", "/home/me"], Some(&[("/home", 0o755)])),
            (&["/var/tmp/a/b", "/home/me"], Some(&[("/var/tmp", 0o1777), ("/home", 0o755)])),
            // Below what is mounted already there is nothing of the image.
            (&["/full/x", "/full/x/y/z"], Some(&[])),
            (&["/etc/other"], None),
            (&["/new"], None),
            (&["/new/deep"], None),
            (&["/etc/hosts/x"], None),
            (&["/full/dangling/x"], None),
        ];
        for (destinations, want) in cases {
            let list: Vec<_> = destinations.iter().map(|path| (PathBuf::from(path), false)).collect();
            let want = want.map(|all| all.iter().map(|(path, mode)| (PathBuf::from(path), *mode)).collect());
            assert_eq!(empty_folders(&list, &view), want, "{destinations:?}");
        }
        let places = [(PathBuf::from("/full"), true), (PathBuf::from("/full/new"), false)];
        assert_eq!(empty_folders(&places, &view), None, "a place hides nothing");
    }

    #[test]
    fn only_one_image_that_nobody_writes_to_has_no_overlay() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        let view: View = Merged::open(&[dir.path().to_owned()], Ownership::Single).unwrap().into();
        let overlay = |lowers: &[&str], foreign: bool| RootFs::Overlay {
            lowers: lowers.iter().map(PathBuf::from).collect(),
            upper: "/memory/upper".into(),
            work: "/memory/work".into(),
            volatile: true,
            userxattr: true,
            foreign,
        };
        for (lowers, foreign, create_cwd, bare) in [
            (&["/a"][..], false, false, true),
            (&["/a", "/b"], false, false, false),
            (&["/a"], true, false, false),
            (&["/a"], false, true, false),
        ] {
            let mut setup = Setup::new(overlay(lowers, foreign), &["true"]);
            setup.mounts = vec![Mount::new("/home/me", MountSource::Proc)];
            setup.process.create_cwd = create_cwd;
            without_overlay(&mut setup, &view);
            assert_eq!(matches!(setup.root, RootFs::Directory(_)), bare);
            assert_eq!(setup.mounts.len(), if bare { 2 } else { 1 });
            assert!(
                setup
                    .mounts
                    .iter()
                    .rev()
                    .skip(1)
                    .all(|m| m.flags.sealed && m.destination == Path::new("/home"))
            );
        }
    }
}

//! Places of mounts in a folder that belongs to somebody else. An overlay over it lets nobody but its owner make
//! something in its folders; so those that need it are made in the layer on top, before it is mounted, and belong to the
//! container's user there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path};

use isles_spec::Workload;

use crate::view::{View, absolute};

/// The folders to make below `upper`, parents first. `root` is the folder of the image, `uid` who starts the container.
pub fn folders(workload: &Workload, root: &Path, view: &View, uid: u32) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let destinations: Vec<_> = workload.mounts.iter().map(|mount| absolute(&mount.destination)).collect();
    for (at, destination) in destinations.iter().enumerate() {
        // What an earlier mount shows there is not the image's.
        if destinations[..at].iter().any(|earlier| destination.starts_with(earlier))
            || view.exists(destination)
        {
            continue;
        }
        let above = destination.ancestors().skip(1).find(|path| view.exists(path));
        let Some(place) = above.and_then(|path| view.canonical(path).ok()) else { continue };
        let real = place.components().filter(|part| matches!(part, Component::Normal(_)));
        let real = real.fold(root.to_owned(), |path, part| path.join(part));
        if fs::symlink_metadata(&real).is_ok_and(|found| found.uid() == uid) {
            continue;
        }
        let mut path = "upper".to_owned();
        for part in place.components() {
            let Component::Normal(name) = part else { continue };
            path = format!("{path}/{}", name.to_string_lossy());
            if !out.contains(&path) {
                out.push(path.clone());
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_spec::{Mount, MountKind};
    use isles_store::{Merged, Ownership};
    use std::os::unix::fs::symlink;

    #[test]
    fn only_what_is_missing_in_folders_of_others() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("mnt/real")).unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        symlink("/mnt", dir.path().join("media")).unwrap();
        let view = Merged::open(&[dir.path().to_owned()], Ownership::Single).unwrap().into();
        let mounts = ["/mnt/real/x/y", "/mnt/real/z", "/etc", "/etc/hosts", "/new/a", "/media/b"]
            .map(|destination| Mount {
                destination: destination.into(),
                kind: MountKind::Tmpfs { size: None, mode: None, options: vec![] },
                read_only: false,
                optional: false,
            })
            .to_vec();
        let workload = Workload { mounts, ..Workload::default() };
        let own = rustix::process::geteuid().as_raw();
        assert_eq!(folders(&workload, dir.path(), &view, own + 1), ["upper/mnt", "upper/mnt/real"]);
        assert!(folders(&workload, dir.path(), &view, own).is_empty());
    }
}

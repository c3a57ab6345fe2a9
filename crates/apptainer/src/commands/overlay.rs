//! `apptainer overlay …`: files that a container may write into.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use isles_ext::{Folder, NewExt3, make};
use isles_sif::{Arch, Editor, Extra, FileSystem, Kind, NewObject, Role, is_sif};
use isles_spec::Platform;
use rustix::fs::{FallocateFlags, fallocate};

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;

const LEAST: i64 = 64;
/// What is free is kept in memory while it is made: a byte for each block.
const MOST: i64 = 1 << 20;

static SIZE: Flag = Flag::number("size", "the size in MiB (default 64)").short('s');
static SPARSE: Flag =
    Flag::switch("sparse", "take room on the disk only as it is used").short('S').env(&["SPARSE"]);
static CREATE_DIR: Flag = Flag::words("create-dir", "folder", "a folder to make in the overlay");
static FAKEROOT: Flag = Flag::switch("fakeroot", "for actions with --fakeroot: everything belongs to root")
    .short('f')
    .env(&["FAKEROOT"]);

pub static COMMAND: Command =
    Command { usage: "overlay", short: "Manage writable overlays", commands: &[&CREATE], ..Command::EMPTY };

static CREATE: Command = Command {
    usage: "create [create options...] <path to image>",
    short: "Make a writable overlay: an ext3 image, or a partition of a SIF file",
    examples: "apptainer overlay create --size 1024 overlay.img\napptainer overlay create --size 256 image.sif",
    flags: &[&[&CREATE_DIR, &FAKEROOT, &SIZE, &SPARSE]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let path = Path::new(&cx.arguments[0]);
    let size = cx.values.number(&SIZE).unwrap_or(LEAST);
    if size < LEAST {
        return Err(Failure::new(format!("image size must be equal or greater than {LEAST} MiB")));
    }
    if size > MOST {
        return Err(Failure::new(format!("image size must be equal or less than {MOST} MiB")));
    }
    let size = size.cast_unsigned() << 20;
    let folders = folders(cx.values.list(&CREATE_DIR))?;
    match File::open(path) {
        Ok(file) if is_sif(&file).unwrap_or(false) => into_sif(cx, path, size, &folders)?,
        Ok(_) => return Err(Failure::new(format!("destination image '{}' already exists", path.display()))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let made = File::options().read(true).write(true).create_new(true).mode(0o644).open(path);
            let file = made.map_err(|e| Failure::because(format!("cannot create {}", path.display()), &e))?;
            if let Err(e) = fill(cx, &file, size, &folders) {
                // Half of one is of no use to anybody.
                let _ = fs::remove_file(path);
                return Err(Failure::because(format!("cannot write {}", path.display()), &e));
            }
        }
        Err(e) => return Err(Failure::because(format!("cannot open {}", path.display()), &e)),
    }
    Ok(0)
}

/// An overlay's own two folders, and those that are asked for.
fn folders(asked: &[String]) -> Result<Vec<Folder>, Failure> {
    let mut all = vec![
        Folder { path: "upper".to_owned(), mode: 0o755 },
        Folder { path: "work".to_owned(), mode: 0o755 },
    ];
    for folder in asked {
        let mut path = "upper".to_owned();
        for name in folder.split('/').filter(|name| !name.is_empty() && *name != ".") {
            if name == ".." || name.len() > 255 {
                return Err(Failure::new(format!("'{folder}' cannot be a folder of an overlay")));
            }
            path = format!("{path}/{name}");
            if !all.iter().any(|known| known.path == path) {
                all.push(Folder { path: path.clone(), mode: 0o755 });
            }
        }
    }
    Ok(all)
}

fn fill(cx: &Context<'_>, file: &File, size: u64, folders: &[Folder]) -> io::Result<()> {
    if cx.values.is(&SPARSE) {
        file.set_len(size)?;
    } else {
        match fallocate(file.as_fd(), FallocateFlags::empty(), 0, size) {
            // A file system that cannot: the file grows as it is used.
            Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(size)?,
            other => other?,
        }
    }
    let owner = match cx.values.is(&FAKEROOT) {
        true => (0, 0),
        false => (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw()),
    };
    let time = super::epoch().map_or_else(super::now, i64::unsigned_abs);
    let uuid = isles_sif::random_uuid().map_err(io::Error::other)?;
    let new = NewExt3 { owner, time: u32::try_from(time).unwrap_or(u32::MAX), uuid, folders };
    make(file, size, &new)?;
    file.sync_data()
}

/// As a partition of a SIF file, which must not be signed: it changes with every use.
fn into_sif(cx: &Context<'_>, path: &Path, size: u64, folders: &[Folder]) -> Result<(), Failure> {
    let name = path.display();
    let mut editor = Editor::open(path)?;
    let sif = editor.sif();
    if sif.of_kind(Kind::Signature).next().is_some() {
        return Err(Failure::new(format!("SIF image {name} is signed: could not add writable overlay"))
            .with_hint("keep the overlay in a file of its own, and give it with --overlay"));
    }
    let is_overlay = |object: &&isles_sif::Object| matches!(&object.extra, Extra::Partition(partition) if partition.role == Role::Overlay);
    if let Some(object) = sif.objects().iter().find(is_overlay) {
        let id = object.id;
        return Err(Failure::new(format!(
            "a writable overlay partition already exists in {name} (ID: {id})"
        ))
        .with_hint(format!("remove it with `sif del {id} {name}`")));
    }
    let arch = sif.header().arch;
    let own = || Arch::from_name(&Platform::host().architecture).unwrap_or(Arch::UNKNOWN);
    let arch = if arch == Arch::UNKNOWN { own() } else { arch };
    let failed = |e: io::Error| Failure::because(format!("cannot make an overlay for {name}"), &e);
    let (file, beside) = temporary(path).map_err(failed)?;
    let added = fill(cx, &file, size, folders).map_err(failed).and_then(|()| {
        let reading = File::open(&beside).map_err(failed)?;
        let object = NewObject::partition(FileSystem::Ext3, Role::Overlay, arch, reading);
        editor.add(object).map_err(Failure::from)
    });
    let removed = fs::remove_file(&beside).map_err(failed);
    added.and(removed)
}

fn temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let beside = path.with_file_name(format!(".new-{}", isles_store::random_name()));
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&beside)?;
    Ok((file, beside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_with_those_above_them() {
        let paths = |asked: &[&str]| -> Vec<String> {
            let asked: Vec<String> = asked.iter().map(|a| (*a).to_owned()).collect();
            folders(&asked).unwrap().into_iter().map(|folder| folder.path).collect()
        };
        assert_eq!(paths(&[]), ["upper", "work"]);
        assert_eq!(paths(&["/a/b", "a/c/"]), ["upper", "work", "upper/a", "upper/a/b", "upper/a/c"]);
        assert!(folders(&["../a".to_owned()]).is_err());
    }
}

//! Making a file: written without a name and then put into its place, so that nobody ever sees half of one. What goes in
//! decides every byte that comes out, unless an identity or a time is asked for.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::header::{Arch, Header, LAUNCH, LAUNCH_LENGTH, NO_TIME};
use crate::object::{self, NewObject};
use crate::{Error, Result, descriptor};

const DESCRIPTORS_OFFSET: u64 = 4096;
const USUAL_DESCRIPTORS: usize = 48;
/// How many descriptors stay free for signatures where the usual number is too small.
const ROOM: usize = 16;

/// A file that is to be made.
pub struct NewSif<'a> {
    /// All zeros for none.
    pub uuid: [u8; 16],
    /// Seconds since 1970; [`NO_TIME`] for none.
    pub time: i64,
    /// The line that starts the file as a program: 31 bytes at most, or none.
    pub launch: &'a [u8],
    pub objects: Vec<NewObject<'a>>,
}

impl<'a> NewSif<'a> {
    /// A file without identity and time.
    pub fn new(objects: Vec<NewObject<'a>>) -> NewSif<'a> {
        NewSif { uuid: [0; 16], time: NO_TIME, launch: LAUNCH, objects }
    }

    /// Makes the file at `path`, in place of what may be there.
    pub fn create(self, path: &Path) -> Result<()> {
        create_whole(path, PROGRAM, |file| self.write(file, &path.display().to_string()))
    }

    /// Writes the file into one that is open and empty; `name` is what messages call it.
    pub fn write(self, file: &File, name: &str) -> Result<()> {
        let wanted = self.objects.len();
        let total = if wanted <= USUAL_DESCRIPTORS { USUAL_DESCRIPTORS } else { wanted + ROOM };
        let table_size = (total * descriptor::LENGTH) as u64;
        let data_offset = DESCRIPTORS_OFFSET + table_size;
        let mut arch = Arch::UNKNOWN;
        let mut table = Vec::with_capacity(table_size as usize);
        let mut end = data_offset;
        for (id, new) in (1u32..).zip(self.objects) {
            if let Some(of_primary) = new.primary_arch() {
                if arch != Arch::UNKNOWN {
                    return Err(Error::refused("create", name, "it would have two primary partitions"));
                }
                arch = of_primary;
            }
            let written = object::write(file, name, new, id, end, self.time)?;
            table.extend_from_slice(&written.descriptor);
            end = written.end;
        }
        table.resize(table_size as usize, 0);
        let mut launch = [0; LAUNCH_LENGTH];
        if self.launch.len() >= LAUNCH_LENGTH {
            return Err(Error::refused("create", name, "the line that starts it has more than 31 bytes"));
        }
        launch[..self.launch.len()].copy_from_slice(self.launch);
        let header = Header {
            launch,
            arch,
            uuid: self.uuid,
            created: self.time,
            modified: self.time,
            descriptors_free: (total - wanted) as i64,
            descriptors_total: total as i64,
            descriptors_offset: DESCRIPTORS_OFFSET.cast_signed(),
            descriptors_size: table_size.cast_signed(),
            data_offset: data_offset.cast_signed(),
            data_size: (end - data_offset).cast_signed(),
        };
        let failed = |e| Error::io("write", name, e);
        file.write_all_at(&table, DESCRIPTORS_OFFSET).map_err(failed)?;
        file.write_all_at(&header.encode(), 0).map_err(failed)?;
        Ok(())
    }
}

/// Who may do what with a SIF file, less the umask: it can be run.
pub const PROGRAM: u32 = 0o755;

/// Makes a file: it has its name when `write` is done with it and it is on the disk, and replaces what had the name
/// before. Where the file system can, nothing is left of one that does not get so far.
pub fn create_whole<E: From<Error>>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&File) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let beside = path.with_file_name(format!(".new-{}", isles_spec::digest::hex(&random_uuid()?)));
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
    let (file, has_name) = match rustix::fs::open(parent, flags, Mode::from_raw_mode(mode)) {
        Ok(file) => (File::from(file), false),
        // Some file systems, NFS among them, have no files without names.
        Err(_) => {
            let mut options = File::options();
            let file = options.read(true).write(true).create_new(true).mode(mode).open(&beside);
            (file.map_err(Error::at("create", path))?, true)
        }
    };
    let made = write(&file).and_then(|()| Ok(publish(&file, mode & 0o700, has_name, &beside, path)?));
    if made.is_err() {
        let _ = fs::remove_file(&beside);
    }
    made
}

fn publish(file: &File, of_owner: u32, has_name: bool, beside: &Path, path: &Path) -> Result<()> {
    let failed = Error::at("write", path);
    let done = (|| {
        // The caller's umask takes nothing from the owner, who is to be able to run an image.
        let mode = file.metadata()?.permissions().mode();
        file.set_permissions(fs::Permissions::from_mode(mode | of_owner))?;
        file.sync_data()?;
        if !has_name {
            let own = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(CWD, own, CWD, beside, AtFlags::SYMLINK_FOLLOW)?;
        }
        fs::rename(beside, path)
    })();
    done.map_err(failed)?;
    sync_parent(path)
}

/// A new identity (UUID version 4, RFC 9562).
pub fn random_uuid() -> Result<[u8; 16]> {
    let mut uuid = [0; 16];
    getrandom(&mut uuid[..], GetRandomFlags::empty())
        .map_err(|e| Error::io("read", "the kernel's random numbers", e))?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Makes a new name in a directory survive a power cut, where the file system can.
fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(parent).and_then(|dir| dir.sync_all()) {
        Err(e) if e.kind() != std::io::ErrorKind::InvalidInput => Err(Error::at("write", path)(e)),
        _ => Ok(()),
    }
}

//! Making a file: written without a name and then put into its place, so that nobody ever sees half of one. What goes in
//! decides every byte that comes out, unless an identity or a time is asked for.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

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

/// A file that is being made. It has its name when it is kept and on the disk, and replaces what had the name before. Where
/// the file system can, nothing is left of one that does not get so far.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    mode: u32,
    /// The name that it has until it is kept, where it has one.
    beside: PathBuf,
    has_name: bool,
    path: PathBuf,
}

impl NewFile {
    /// Begins a file that may be used as `mode` says, less the umask.
    pub fn create(path: &Path, mode: u32) -> io::Result<NewFile> {
        let random = random_uuid().map_err(io::Error::other)?;
        let beside = path.with_file_name(format!(".new-{}", isles_spec::digest::hex(&random)));
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        let (file, has_name) = match rustix::fs::open(folder_of(path), flags, Mode::from_raw_mode(mode)) {
            Ok(file) => (File::from(file), false),
            // Some file systems, NFS among them, have no files without names.
            Err(_) => {
                let mut options = File::options();
                (options.read(true).write(true).create_new(true).mode(mode).open(&beside)?, true)
            }
        };
        Ok(NewFile { file, mode, beside, has_name, path: path.to_owned() })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is going to be.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the file into its place.
    pub fn keep(mut self) -> io::Result<()> {
        // The caller's umask takes nothing from the owner, who is to be able to run an image.
        let mode = self.file.metadata()?.permissions().mode();
        self.file.set_permissions(fs::Permissions::from_mode(mode | self.mode & 0o700))?;
        self.file.sync_data()?;
        if !self.has_name {
            let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
            rustix::fs::linkat(CWD, own, CWD, &self.beside, AtFlags::SYMLINK_FOLLOW)?;
            self.has_name = true;
        }
        fs::rename(&self.beside, &self.path)?;
        self.has_name = false;
        sync_parent(&self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.has_name {
            let _ = fs::remove_file(&self.beside);
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Makes a file as [`NewFile`] does, with what `write` puts into it.
pub fn create_whole<E: From<Error>>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&File) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let new = NewFile::create(path, mode).map_err(Error::at("create", path))?;
    write(new.file())?;
    Ok(new.keep().map_err(Error::at("write", path))?)
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
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
fn sync_parent(path: &Path) -> io::Result<()> {
    match File::open(folder_of(path)).and_then(|dir| dir.sync_all()) {
        Err(e) if e.kind() != io::ErrorKind::InvalidInput => Err(e),
        _ => Ok(()),
    }
}

//! The file system of an image file, as it can be served and looked into: SquashFS, encrypted or not, or ext2 and its
//! heirs.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use isles_fuse::{Attributes, DirEntry, FileKind, FileSystem, Statistics};
use isles_spec::FileSystemKind;
use rustix::io::{Errno, Result};

use crate::error::Error;
use crate::kept_blocks::Label;

/// An open image, as the kernel is to see it.
#[derive(Debug)]
pub struct FileImage {
    content: Content,
    owner: OnceLock<(u32, u32)>,
    encrypted: bool,
    /// Under which its blocks are kept.
    label: OnceLock<Label>,
}

// There is one for each image that is open.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
enum Content {
    Squashfs(isles_squashfs::Image),
    Ext(isles_ext::Image),
}

impl FileImage {
    /// Opens what lies in a file from `offset` on, in `size` bytes. `path` is for messages, `secret` the passphrase of
    /// what is encrypted, which is kept nowhere.
    pub fn open(
        kind: FileSystemKind,
        file: File,
        offset: u64,
        size: u64,
        path: &Path,
        secret: Option<&[u8]>,
    ) -> std::result::Result<FileImage, Error> {
        let bad = |source| Error::Squashfs { path: path.to_owned(), source };
        let wrong = |source| Error::Crypt { path: path.to_owned(), source };
        let secret = || secret.ok_or_else(|| Error::Encrypted { path: path.to_owned() });
        let content = match kind {
            FileSystemKind::Squashfs => {
                Content::Squashfs(isles_squashfs::Image::open(file, offset, size).map_err(bad)?)
            }
            FileSystemKind::LuksSquashfs => {
                let volume = isles_crypt::luks::open(file, offset, size, secret()?).map_err(wrong)?;
                let size = volume.len();
                Content::Squashfs(isles_squashfs::Image::open(volume, 0, size).map_err(bad)?)
            }
            FileSystemKind::GocryptfsSquashfs => {
                let volume = isles_crypt::gocryptfs::open(file, offset, size, secret()?).map_err(wrong)?;
                let size = volume.len();
                Content::Squashfs(isles_squashfs::Image::open(volume, 0, size).map_err(bad)?)
            }
            FileSystemKind::Ext => {
                let bad = |source| Error::Ext { path: path.to_owned(), source };
                Content::Ext(isles_ext::Image::open(file, offset, size).map_err(bad)?)
            }
        };
        Ok(FileImage {
            content,
            owner: OnceLock::new(),
            encrypted: kind.is_encrypted(),
            label: OnceLock::new(),
        })
    }

    /// All files are this user's and group's, from now on: those of a user namespace that has no others.
    pub fn belongs_to(&self, uid: u32, gid: u32) {
        // Said once, before it is served.
        let _ = self.owner.set((uid, gid));
    }

    #[cfg(test)]
    pub fn pretend_encrypted(self) -> FileImage {
        FileImage { encrypted: true, ..self }
    }

    /// The SquashFS image, where it lies open in its file.
    pub fn plain_squashfs(&self) -> Option<&isles_squashfs::Image> {
        match &self.content {
            Content::Squashfs(image) if !self.encrypted => Some(image),
            _ => None,
        }
    }

    pub fn set_label(&self, label: Label) {
        // Said once, when it is opened.
        let _ = self.label.set(label);
    }

    pub fn label(&self) -> Option<&Label> {
        self.label.get()
    }

    fn owner(&self, uid: u32, gid: u32) -> (u32, u32) {
        *self.owner.get().unwrap_or(&(uid, gid))
    }
}

impl FileSystem for FileImage {
    fn root(&self) -> u64 {
        match &self.content {
            Content::Squashfs(image) => image.root().raw(),
            Content::Ext(image) => image.root().into(),
        }
    }

    fn attributes(&self, file: u64) -> Result<Attributes> {
        Ok(match &self.content {
            Content::Squashfs(image) => {
                let inode = squashfs::inode(image, file)?;
                let (uid, gid) = self.owner(inode.uid, inode.gid);
                Attributes {
                    inode: inode.number.into(),
                    kind: squashfs::kind(inode.file_type),
                    mode: inode.mode,
                    links: inode.nlink,
                    uid,
                    gid,
                    size: inode.size,
                    mtime: inode.mtime.into(),
                    device: inode.device,
                }
            }
            Content::Ext(_) if file & ext::GONE != 0 => {
                let (uid, gid) = self.owner(0, 0);
                let inode = file & !ext::GONE;
                Attributes {
                    inode,
                    kind: FileKind::CharDevice,
                    mode: 0,
                    links: 1,
                    uid,
                    gid,
                    size: 0,
                    mtime: 0,
                    device: (0, 0),
                }
            }
            Content::Ext(image) => {
                let inode = ext::inode(image, file)?;
                let (uid, gid) = self.owner(inode.uid, inode.gid);
                Attributes {
                    inode: inode.number.into(),
                    kind: ext::kind(inode.file_type),
                    mode: inode.mode,
                    links: inode.links,
                    uid,
                    gid,
                    size: inode.size,
                    mtime: inode.mtime,
                    device: inode.device,
                }
            }
        })
    }

    fn lookup(&self, folder: u64, name: &[u8]) -> Result<u64> {
        let found = match &self.content {
            Content::Squashfs(image) => {
                let found = image.lookup(&squashfs::inode(image, folder)?, name);
                found.map_err(|e| squashfs::errno(&e))?.map(|entry| entry.inode.raw())
            }
            Content::Ext(image) => ext::lookup(image, folder, name)?,
        };
        found.ok_or(Errno::NOENT)
    }

    fn read(&self, file: u64, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        match &self.content {
            Content::Squashfs(image) => {
                image.read_at(&squashfs::inode(image, file)?, buffer, offset).map_err(|e| squashfs::errno(&e))
            }
            Content::Ext(image) => {
                image.read_at(&ext::inode(image, file)?, buffer, offset).map_err(|e| ext::errno(&e))
            }
        }
    }

    fn read_link(&self, file: u64) -> Result<Vec<u8>> {
        match &self.content {
            Content::Squashfs(image) => {
                image.read_link(&squashfs::inode(image, file)?).map_err(|e| squashfs::errno(&e))
            }
            Content::Ext(image) => image.read_link(&ext::inode(image, file)?).map_err(|e| ext::errno(&e)),
        }
    }

    fn read_dir(&self, folder: u64, cursor: u64, take: &mut dyn FnMut(&DirEntry) -> bool) -> Result<()> {
        match &self.content {
            Content::Squashfs(image) => {
                let all = image.read_dir(&squashfs::inode(image, folder)?, cursor);
                for entry in all.map_err(|e| squashfs::errno(&e))? {
                    let entry = entry.map_err(|e| squashfs::errno(&e))?;
                    let wanted = take(&DirEntry {
                        name: entry.name,
                        file: entry.inode.raw(),
                        inode: entry.number.into(),
                        kind: squashfs::kind(entry.file_type),
                        next: entry.next,
                    });
                    if !wanted {
                        break;
                    }
                }
                Ok(())
            }
            Content::Ext(image) => {
                let mut failed = None;
                let listed = image.read_dir(&ext::inode(image, folder)?, cursor, &mut |mut entry| {
                    let (inode, next) = (u64::from(entry.inode), entry.next);
                    if let Some(hidden) = entry.name.strip_prefix(ext::WHITEOUT) {
                        if ext::OPAQUE_FILES.contains(&hidden) {
                            return true;
                        }
                        let (name, file) = (hidden.to_vec(), inode | ext::GONE);
                        return take(&DirEntry { name, file, inode, kind: FileKind::CharDevice, next });
                    }
                    let of_inode = || Ok(ext::inode(image, inode)?.file_type);
                    let kind = match entry.file_type.map_or_else(of_inode, Ok) {
                        Ok(file_type) => ext::kind(file_type),
                        Err(e) => {
                            failed = Some(e);
                            return false;
                        }
                    };
                    take(&DirEntry { name: std::mem::take(&mut entry.name), file: inode, inode, kind, next })
                });
                listed.map_err(|e| ext::errno(&e))?;
                failed.map_or(Ok(()), Err)
            }
        }
    }

    fn has_xattrs(&self) -> bool {
        match &self.content {
            Content::Squashfs(image) => image.has_xattrs(),
            Content::Ext(image) => image.has_attributes(),
        }
    }

    fn xattrs(&self, file: u64) -> Result<Vec<Vec<u8>>> {
        Ok(self.all_xattrs(file)?.into_iter().map(|(name, _)| name).collect())
    }

    fn xattr(&self, file: u64, name: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.all_xattrs(file)?.into_iter().find(|(known, _)| known == name).map(|(_, value)| value))
    }

    fn statistics(&self) -> Statistics {
        match &self.content {
            Content::Squashfs(image) => {
                let all = image.statistics();
                Statistics { bytes: all.bytes_used, files: all.inodes.into() }
            }
            Content::Ext(image) => {
                let (bytes, files) = image.statistics();
                Statistics { bytes, files: files.into() }
            }
        }
    }
}

impl FileImage {
    fn all_xattrs(&self, file: u64) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        match &self.content {
            Content::Squashfs(image) => {
                let mut all =
                    image.xattrs(&squashfs::inode(image, file)?).map_err(|e| squashfs::errno(&e))?;
                all.retain(|(name, _)| shown(name));
                Ok(all)
            }
            Content::Ext(_) if file & ext::GONE != 0 => Ok(Vec::new()),
            Content::Ext(image) => {
                let inode = ext::inode(image, file)?;
                let all = image.attributes(&inode).map_err(|e| ext::errno(&e))?;
                let marks = |name: &[u8]| OPAQUE.contains(&name) || name == ext::OPAQUE_BY_PROGRAM;
                let is_opaque = all.iter().any(|(name, value)| marks(name) && value == b"y")
                    || inode.file_type == isles_ext::FileType::Dir && ext::has_opaque_file(image, &inode)?;
                let mut all: Vec<_> = all.into_iter().filter(|(name, _)| shown(name)).collect();
                if is_opaque {
                    all.extend(OPAQUE.map(|name| (name.to_vec(), b"y".to_vec())));
                }
                Ok(all)
            }
        }
    }
}

/// Marks by which an overlay changes what it shows are the overlay's own, and no image's.
fn shown(name: &[u8]) -> bool {
    !name.starts_with(b"user.overlay.") && !name.starts_with(b"trusted.")
}

/// But one in an image that an overlay wrote to: that a folder hides what is below it. Root's overlays write it by another
/// name than those of others, which may mount what root wrote.
const OPAQUE: [&[u8]; 2] = [b"user.overlay.opaque", b"trusted.overlay.opaque"];

/// Errors and kinds of files of a room as the kernel is told of them. Both rooms name them alike; a folder is called so in the
/// errors of the one, and otherwise in those of the other.
macro_rules! as_the_kernel_has_it {
    ($folder:literal) => {
        /// What the kernel is told; what it was in words, nobody could hear.
        pub fn errno(error: &Error) -> Errno {
            match error {
                Error::Kind { wanted: $folder, .. } => Errno::NOTDIR,
                Error::Kind { .. } => Errno::INVAL,
                Error::Unsupported { .. } => Errno::OPNOTSUPP,
                Error::Read { source, .. } => Errno::from_io_error(source).unwrap_or(Errno::IO),
                _ => Errno::IO,
            }
        }

        pub fn kind(of: FileType) -> FileKind {
            match of {
                FileType::Dir => FileKind::Dir,
                FileType::File => FileKind::File,
                FileType::Symlink => FileKind::Symlink,
                FileType::BlockDevice => FileKind::BlockDevice,
                FileType::CharDevice => FileKind::CharDevice,
                FileType::Fifo => FileKind::Fifo,
                FileType::Socket => FileKind::Socket,
            }
        }
    };
}

mod squashfs {
    use isles_fuse::FileKind;
    use isles_squashfs::{Error, FileType, Image, Inode, InodeRef};
    use rustix::io::{Errno, Result};

    pub fn inode(image: &Image, file: u64) -> Result<Inode> {
        image.inode(InodeRef::from_raw(file)).map_err(|e| errno(&e))
    }

    as_the_kernel_has_it!("directory");
}

mod ext {
    //! Also what fuse-overlayfs leaves in an image where it may not write what the kernel's overlay would: it is shown as that.

    use isles_ext::{Error, FileType, Image, Inode};
    use isles_fuse::FileKind;
    use rustix::io::{Errno, Result};

    /// `.wh.NAME` says that NAME is gone. Such a file stands for a device 0:0 of that name, and this bit says so of its number.
    pub const WHITEOUT: &[u8] = b".wh.";
    pub const GONE: u64 = 1 << 32;
    /// What is behind `.wh.` in a folder that hides what is below it.
    pub const OPAQUE_FILES: [&[u8]; 2] = [b".wh..opq", b".opq"];
    pub const OPAQUE_BY_PROGRAM: &[u8] = b"user.fuseoverlayfs.opaque";

    pub fn lookup(image: &Image, folder: u64, name: &[u8]) -> Result<Option<u64>> {
        if name.starts_with(WHITEOUT) {
            return Ok(None);
        }
        let folder = inode(image, folder)?;
        let find = |name: &[u8]| image.lookup(&folder, name).map_err(|e| errno(&e));
        Ok(match find(name)? {
            Some(found) => Some(found.into()),
            None => find(&[WHITEOUT, name].concat())?.map(|found| u64::from(found) | GONE),
        })
    }

    pub fn has_opaque_file(image: &Image, folder: &Inode) -> Result<bool> {
        let name = [WHITEOUT, OPAQUE_FILES[0]].concat();
        Ok(image.lookup(folder, &name).map_err(|e| errno(&e))?.is_some())
    }

    pub fn inode(image: &Image, file: u64) -> Result<Inode> {
        let number = u32::try_from(file).map_err(|_| Errno::IO)?;
        image.inode(number).map_err(|e| errno(&e))
    }

    as_the_kernel_has_it!("folder");
}

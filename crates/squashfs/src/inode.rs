//! Inodes: fourteen kinds on disk, a basic and an extended one of each of seven file types.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::meta::{self, Place, Reader};

/// No fragment, no attributes.
pub(crate) const NOTHING: u32 = u32::MAX;
/// PATH_MAX without its NUL.
const LINK_MAX: u32 = 4095;
/// 16 TiB in blocks of 128 KiB.
const BLOCKS_MAX: u64 = 1 << 27;

/// Names an inode of an image: the position of its block and the offset in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeRef(u64);

impl InodeRef {
    /// As the number that the format writes; any number is checked when it is used.
    pub fn from_raw(raw: u64) -> InodeRef {
        InodeRef(raw)
    }

    pub fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn new(block: u64, offset: u16) -> InodeRef {
        InodeRef(block << 16 | u64::from(offset))
    }

    pub(crate) fn block(self) -> u64 {
        self.0 >> 16
    }

    pub(crate) fn offset(self) -> u16 {
        self.0 as u16
    }
}

/// The type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileType {
    Dir,
    File,
    Symlink,
    BlockDevice,
    CharDevice,
    Fifo,
    Socket,
}

impl FileType {
    /// As directories number them; extended inodes have seven more.
    pub(crate) fn from_number(number: u16) -> Option<FileType> {
        Some(match number {
            1 => FileType::Dir,
            2 => FileType::File,
            3 => FileType::Symlink,
            4 => FileType::BlockDevice,
            5 => FileType::CharDevice,
            6 => FileType::Fifo,
            7 => FileType::Socket,
            _ => return None,
        })
    }

    pub(crate) fn number(self) -> u16 {
        match self {
            FileType::Dir => 1,
            FileType::File => 2,
            FileType::Symlink => 3,
            FileType::BlockDevice => 4,
            FileType::CharDevice => 5,
            FileType::Fifo => 6,
            FileType::Socket => 7,
        }
    }
}

/// What an inode says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    pub reference: InodeRef,
    /// Unique in a sound image, and never 0.
    pub number: u32,
    pub file_type: FileType,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u32,
    pub nlink: u32,
    /// Bytes of a regular file, of a link's target, or of a directory's listing.
    pub size: u64,
    /// Bytes of a regular file that are holes.
    pub sparse: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    pub(crate) body: Body,
    pub(crate) xattrs: u32,
}

/// Where the rest of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Dir(DirBody),
    File(FileBody),
    /// The place of the target.
    Symlink(Place),
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirBody {
    /// Relative to the directory table, as written.
    pub block: u32,
    pub offset: u16,
    /// Bytes of the listing.
    pub listing: u32,
    /// The index: how many entries, and where.
    pub index: (u16, Place),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileBody {
    /// Position of the first block in the image.
    pub start: u64,
    /// Blocks that are not in a fragment.
    pub blocks: u64,
    /// Number of the fragment block and the offset in it, or `NOTHING`.
    pub fragment: (u32, u32),
    /// Where the sizes of the blocks are.
    pub sizes: Place,
}

impl Inode {
    /// Whether there are extended attributes.
    pub fn has_xattrs(&self) -> bool {
        self.xattrs != NOTHING
    }

    /// Position of the inode in the image, for errors.
    pub(crate) fn at(&self, image: &Image) -> u64 {
        image.superblock.inode_table.saturating_add(self.reference.block())
    }
}

impl Image {
    /// Reads an inode.
    pub fn inode(&self, reference: InodeRef) -> Result<Inode> {
        let region = self.superblock.inode_region();
        let block = region.start.checked_add(reference.block()).ok_or_else(|| Error::Damaged {
            at: region.start,
            what: format!("inode reference {:#x}", reference.raw()),
        })?;
        let place = Place { block, offset: reference.offset() };
        let mut r = Reader::new(self, region, place)?;
        let (number, mode) = (r.u16()?, r.u16()?);
        let owners = (r.u16()?, r.u16()?);
        let (mtime, inode) = (r.u32()?, r.u32()?);
        let extended = number > 7;
        let Some(file_type) = FileType::from_number(if extended { number.wrapping_sub(7) } else { number })
        else {
            return r.damaged(format!("an inode of the unknown type {number}"));
        };
        let mut out = Inode {
            reference,
            number: inode,
            file_type,
            mode: u32::from(mode & 0o7777),
            uid: self.owner(owners.0, block)?,
            gid: self.owner(owners.1, block)?,
            mtime,
            nlink: 1,
            size: 0,
            sparse: 0,
            device: (0, 0),
            body: Body::Other,
            xattrs: NOTHING,
        };
        if inode == 0 {
            return r.damaged("an inode with the number 0");
        }
        match (file_type, extended) {
            (FileType::Dir, false) => self.basic_dir(&mut r, &mut out)?,
            (FileType::Dir, true) => self.extended_dir(&mut r, &mut out)?,
            (FileType::File, false) => {
                let (start, fragment, size) = (r.u32()?, (r.u32()?, r.u32()?), r.u32()?);
                self.file(&mut r, &mut out, u64::from(start), fragment, u64::from(size))?;
            }
            (FileType::File, true) => {
                let (start, size) = (r.u64()?, r.u64()?);
                out.sparse = r.u64()?.min(size);
                out.nlink = r.u32()?;
                let fragment = (r.u32()?, r.u32()?);
                out.xattrs = r.u32()?;
                self.file(&mut r, &mut out, start, fragment, size)?;
            }
            (FileType::Symlink, _) => {
                out.nlink = r.u32()?;
                let size = r.u32()?;
                if size == 0 || size > LINK_MAX {
                    return r.damaged(format!("a symbolic link of {size} bytes"));
                }
                out.size = u64::from(size);
                out.body = Body::Symlink(r.place());
                if extended {
                    r.skip(u64::from(size))?;
                    out.xattrs = r.u32()?;
                }
            }
            (FileType::BlockDevice | FileType::CharDevice, _) => {
                out.nlink = r.u32()?;
                out.device = device(r.u32()?);
                if extended {
                    out.xattrs = r.u32()?;
                }
            }
            (FileType::Fifo | FileType::Socket, _) => {
                out.nlink = r.u32()?;
                if extended {
                    out.xattrs = r.u32()?;
                }
            }
        }
        Ok(out)
    }

    fn basic_dir(&self, r: &mut Reader<'_>, out: &mut Inode) -> Result<()> {
        let block = r.u32()?;
        out.nlink = r.u32()?;
        let (size, offset) = (r.u16()?, r.u16()?);
        let _parent = r.u32()?;
        let index = (0, r.place());
        set_dir(out, block, offset, u32::from(size), index);
        Ok(())
    }

    fn extended_dir(&self, r: &mut Reader<'_>, out: &mut Inode) -> Result<()> {
        out.nlink = r.u32()?;
        let (size, block) = (r.u32()?, r.u32()?);
        let _parent = r.u32()?;
        let (entries, offset) = (r.u16()?, r.u16()?);
        out.xattrs = r.u32()?;
        let index = (entries, r.place());
        set_dir(out, block, offset, size, index);
        Ok(())
    }

    fn file(
        &self,
        r: &mut Reader<'_>,
        out: &mut Inode,
        start: u64,
        fragment: (u32, u32),
        size: u64,
    ) -> Result<()> {
        let block_size = u64::from(self.superblock.block_size);
        let blocks = if fragment.0 == NOTHING { size.div_ceil(block_size) } else { size / block_size };
        // No block of a table is smaller than three bytes, nor holds more than 2048 sizes.
        let region = self.superblock.inode_region();
        let possible = (region.end - region.start).div_ceil(3).saturating_mul(meta::BLOCK as u64 / 4);
        if blocks > BLOCKS_MAX || blocks > possible {
            return r.damaged(format!("a file of {size} bytes"));
        }
        if fragment.0 != NOTHING && u64::from(fragment.1) + size % block_size > block_size {
            return r.damaged("a file's end is not inside of its fragment");
        }
        out.size = size;
        out.body = Body::File(FileBody { start, blocks, fragment, sizes: r.place() });
        Ok(())
    }

    /// The target of a symbolic link.
    pub fn read_link(&self, inode: &Inode) -> Result<Vec<u8>> {
        let Body::Symlink(place) = inode.body else {
            return Err(Error::Kind { number: inode.number, wanted: "symbolic link" });
        };
        let mut r = Reader::new(self, self.superblock.inode_region(), place)?;
        let target = r.bytes(inode.size as usize)?;
        if target.contains(&0) {
            return r.damaged("a symbolic link's target contains a NUL byte");
        }
        Ok(target)
    }
}

fn set_dir(out: &mut Inode, block: u32, offset: u16, size: u32, index: (u16, Place)) {
    // The size counts three bytes for `.` and `..`, which are not in the listing.
    let listing = size.saturating_sub(3);
    out.size = u64::from(listing);
    out.body = Body::Dir(DirBody { block, offset, listing, index });
}

/// Linux's `new_decode_dev`.
fn device(raw: u32) -> (u32, u32) {
    ((raw >> 8) & 0xfff, (raw & 0xff) | ((raw >> 12) & 0xf_ff00))
}

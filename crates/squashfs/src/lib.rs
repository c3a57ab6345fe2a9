//! SquashFS 4.0 images: a reader for hostile ones, and a writer that gives the same bytes every time.
//!
//! One idea for reading: an image is never loaded. [`Image`] answers each question with the few blocks that
//! it needs, through a cache of a fixed size, so opening an image of any size costs one block. Any number of
//! threads may ask at once. Every length, offset and count is checked before it is used, and what is wrong
//! is said with its position.
//!
//! One idea for writing: one thread reads the [`Tree`] and puts blocks in order, others compress them. What
//! is written depends on the tree and the [`Options`] only, never on the number of threads.
//!
//! The crate knows squashfs and nothing else of this project.
//!
//! ```no_run
//! let file = std::fs::File::open("image.squashfs")?;
//! let len = file.metadata()?.len();
//! let image = isles_squashfs::Image::open(file, 0, len)?;
//! let root = image.inode(image.root())?;
//! for entry in image.read_dir(&root, 0)? {
//!     println!("{}", String::from_utf8_lossy(&entry?.name));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```no_run
//! use isles_squashfs::{Folder, Options, write};
//! let mut out = std::fs::File::create("image.squashfs")?;
//! write(&mut Folder::open("folder".as_ref())?, &mut out, &Options::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Specification: Linux, `Documentation/filesystems/squashfs.rst` and `fs/squashfs/squashfs_fs.h`.

mod cache;
mod codec;
mod data;
mod dir;
mod error;
mod folder;
mod image;
mod inode;
mod kept;
mod meta;
mod partial;
mod path;
mod source;
mod superblock;
mod table;
mod tree;
mod walk;
mod write;
mod xattr;

pub use codec::Codec;
pub use dir::{Entry, ReadDir};
pub use error::{Error, Result};
pub use folder::Folder;
pub use image::{Image, Limits, Statistics};
pub use inode::{FileType, Inode, InodeRef};
pub use source::Source;
pub use tree::{Node, Tree};
pub use walk::{Walk, Walked};
pub use write::{Compression, Fragments, Options, Written, write};
pub use xattr::Xattr;

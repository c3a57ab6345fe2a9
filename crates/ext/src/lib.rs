//! Images of ext2, ext3 and ext4: a reader for hostile ones, and a maker of empty ones.
//!
//! One idea for reading: an image is never loaded. [`Image`] answers each question with the few blocks that it needs, and
//! keeps nothing but the superblock, so opening an image of any size costs one read, and any number of threads may ask
//! at once. Every number is checked before it is used. Checksums of metadata are not looked at: they tell damage, not
//! malice, and an image that was made with an error in it is no worse than one without.
//!
//! A journal is not replayed: an image that needs that is refused, as a kernel does that may not write to it.
//!
//! The crate knows these file systems and nothing else of this project.
//!
//! Specification: Linux, `Documentation/filesystems/ext4`.

mod attributes;
mod dir;
mod error;
mod image;
mod inode;
mod make;
mod map;
mod superblock;
mod walk;

pub use dir::Entry;
pub use error::{Error, Result};
pub use image::Image;
pub use inode::{FileType, Inode};
pub use make::{Folder, NewExt3, make};
pub use walk::{Walk, Walked};

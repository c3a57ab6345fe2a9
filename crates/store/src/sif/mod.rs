//! SIF files, from images and to images. A file holds one flat root file system, so an image's layers become one on the
//! way out, and a file's content becomes one layer on the way in. Both ways give the same bytes for the same content.

mod archive;
mod export;
mod file_tree;
mod import;
mod oci;
mod tree;

pub use export::{EncryptedForm, Encryption, NewSifImage, Secret, SifMade};
pub use file_tree::FileTree;
pub use import::SifSource;
pub use tree::Added;

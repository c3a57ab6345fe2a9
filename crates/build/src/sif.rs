//! An image as a SIF file: the store's merged tree with all that Apptainer looks for in an image put over it.

use std::path::Path;

use isles_squashfs::Options;
use isles_store::{Added, Encryption, Image, Merged, NewSifImage, SifMade, Store};

use crate::definition::{Entry, Origin, singularity_tree};
use crate::error::Result;

const DEFINITION: &str = "/.singularity.d/Singularity";
/// Definition files of more bytes than this are not carried along.
const LIMIT: u64 = 4 << 20;

/// How a SIF file is to be.
#[derive(Debug, Clone, Default)]
pub struct SifOptions {
    /// What the file says that the image was made from, where the image itself does not say it.
    pub origin: Origin,
    /// How the file system is written; its times are those of `latest`.
    pub squashfs: Options,
    /// Files changed later say that they were changed then (`SOURCE_DATE_EPOCH`).
    pub latest: Option<i64>,
    /// The identity of the file; all zeros for none.
    pub uuid: [u8; 16],
    /// Its root file system is encrypted.
    pub encryption: Option<Encryption>,
}

/// Makes a SIF file of an image at `path`, in place of what may be there. The same image and options give the same
/// bytes, unless they are encrypted.
pub fn write_sif(store: &Store, image: &Image, options: &SifOptions, path: &Path) -> Result<SifMade> {
    let merged = Merged::open(&store.layers_of(image)?, store.ownership())?;
    let has = |path: &str| merged.lstat(Path::new(path)).is_ok();
    let tree = singularity_tree(&image.config, &options.origin, &has);
    let added: Vec<(String, Added)> = tree.into_iter().map(added).collect();
    let ours = added.iter().find_map(|(path, what)| match what {
        Added::File { content, .. } if path == DEFINITION => String::from_utf8(content.clone()).ok(),
        _ => None,
    });
    let theirs = || {
        let file = merged.open_file(Path::new(DEFINITION)).ok()?;
        String::from_utf8(isles_store::read_bounded(file, LIMIT).ok()??).ok()
    };
    let definition = ours.or_else(theirs).unwrap_or_default();
    let new = NewSifImage {
        added: &added,
        definition: &definition,
        squashfs: options.squashfs.clone(),
        latest: options.latest,
        uuid: options.uuid,
        encryption: options.encryption.as_ref(),
    };
    Ok(store.export_sif(image, &new, path)?)
}

/// Makes an OCI-SIF file of an image at `path`: nothing is put over it, since it says by its configuration how it
/// starts.
pub fn write_oci_sif(store: &Store, image: &Image, options: &SifOptions, path: &Path) -> Result<SifMade> {
    let new = NewSifImage {
        added: &[],
        definition: "",
        squashfs: options.squashfs.clone(),
        latest: options.latest,
        uuid: options.uuid,
        encryption: None,
    };
    Ok(store.export_oci_sif(image, &new, path)?)
}

fn added(entry: Entry) -> (String, Added) {
    match entry {
        Entry::Folder { path, mode } => (path, Added::Folder { mode }),
        Entry::File { path, mode, text } => (path, Added::File { mode, content: text.into_bytes() }),
        Entry::Link { path, target } => (path, Added::Link { target: target.to_owned() }),
    }
}

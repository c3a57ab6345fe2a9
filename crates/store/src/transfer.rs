//! Images in and out of files: OCI layout folders, OCI archives, Docker archives; and layers compressed for
//! a push.

use std::io::{Read, Write};
use std::path::Path;

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Progress, Reference};

use crate::{Error, Image, Lease, Result, Store};

/// The formats that images are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A tar file with an OCI layout; what `podman load`, skopeo and Docker 25 and later read.
    OciArchive,
    /// A tar file that every Docker reads, and that is an OCI layout too.
    DockerArchive,
}

/// How layers are compressed for a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Deterministic: one member, no name, no time.
    Gzip,
    Zstd,
}

impl Store {
    /// Reads images from an archive (OCI or Docker, also compressed), which is recognised by its content,
    /// and gives them the names it says. Returns each image with its names.
    pub fn import_archive(
        &self,
        lease: &Lease,
        archive: &mut (dyn Read + Send),
        progress: &dyn Progress,
    ) -> Result<Vec<(Image, Vec<Reference>)>> {
        let _ = (lease, archive, progress);
        Err(Error::Unsupported { object: "the archive".into(), what: "import, for some minutes,".into() })
    }

    /// Reads images from an OCI layout folder: the one with the name or tag `select`, or all.
    pub fn import_oci_dir(
        &self,
        lease: &Lease,
        dir: &Path,
        select: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Vec<(Image, Vec<Reference>)>> {
        let _ = (lease, select, progress);
        Err(Error::Unsupported {
            object: dir.display().to_string(),
            what: "import, for some minutes,".into(),
        })
    }

    /// Writes images, with names, as one archive.
    pub fn export_archive(
        &self,
        images: &[(Image, Vec<Reference>)],
        format: ExportFormat,
        out: &mut dyn Write,
        progress: &dyn Progress,
    ) -> Result<()> {
        let _ = (images, format, out, progress);
        Err(Error::Unsupported { object: "the archive".into(), what: "export, for some minutes,".into() })
    }

    /// Adds images to an OCI layout folder, which is created where missing.
    pub fn export_oci_dir(
        &self,
        images: &[(Image, Vec<Reference>)],
        dir: &Path,
        progress: &dyn Progress,
    ) -> Result<()> {
        let _ = (images, progress);
        Err(Error::Unsupported {
            object: dir.display().to_string(),
            what: "export, for some minutes,".into(),
        })
    }

    /// The compressed blob of a layer that is here uncompressed: made once, then remembered. A layer that is
    /// here compressed in any way is given as it is.
    pub fn compressed_layer(&self, lease: &Lease, diff_id: &Digest, with: Compression) -> Result<Descriptor> {
        let _ = (lease, with);
        Err(Error::Unsupported { object: diff_id.to_string(), what: "compression, for some minutes,".into() })
    }

    /// The uncompressed archive of a layer, from whatever blob holds it here.
    pub fn open_layer_tar(&self, diff_id: &Digest) -> Result<Box<dyn Read + Send>> {
        Err(Error::Unsupported { object: diff_id.to_string(), what: "reading, for some minutes,".into() })
    }
}

//! Layers compressed for a registry, once; and uncompressed again, for archives that want them so.

use std::fs::File;
use std::io::{BufReader, Read, Write};

use flate2::GzBuilder;
use isles_spec::image::{Descriptor, media_type};
use isles_spec::{Algorithm, Digest};

use crate::decompress::Decoder;
use crate::error::At;
use crate::{BlobWriter, Error, Lease, Result, Store};

const BUFFER: usize = 256 << 10;
const ZSTD_LEVEL: i32 = 3;

/// How layers are compressed for a registry. Either way the same layer gives the same blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// One member, no name, no time.
    Gzip,
    Zstd,
}

impl Compression {
    fn media_type(self) -> &'static str {
        match self {
            Compression::Gzip => media_type::OCI_LAYER_GZIP,
            Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        }
    }
}

impl Store {
    /// The compressed blob of a layer that is here uncompressed: made once, then remembered. A layer that is
    /// here compressed in any way is given as it is.
    pub fn compressed_layer(&self, lease: &Lease, diff_id: &Digest, with: Compression) -> Result<Descriptor> {
        lease.hold(diff_id)?;
        let info = self.layer_info(diff_id)?;
        let compressed =
            info.blobs.iter().find(|b| b.digest != *diff_id && self.blob_size(&b.digest) == Some(b.size));
        if let Some(blob) = compressed {
            lease.hold(&blob.digest)?;
            return Ok(Descriptor::new(&tar_type(blob), blob.digest.clone(), blob.size));
        }
        self.compress(lease, diff_id, with, None)
    }

    /// The blob of a layer in exactly this encoding; without one, the plain archive. A blob that is here is
    /// taken, unless a level of compression is asked for, which blobs do not tell.
    pub fn layer_encoded(
        &self,
        lease: &Lease,
        diff_id: &Digest,
        encoding: Option<Compression>,
        level: Option<u32>,
    ) -> Result<Descriptor> {
        lease.hold(diff_id)?;
        let Some(with) = encoding else { return self.plain(lease, diff_id) };
        let info = self.layer_info(diff_id)?;
        let fits = |b: &&Descriptor| {
            let kind = tar_type(b);
            let kinds = match with {
                Compression::Gzip => [media_type::OCI_LAYER_GZIP, media_type::DOCKER_LAYER_GZIP],
                Compression::Zstd => [media_type::OCI_LAYER_ZSTD, media_type::DOCKER_LAYER_ZSTD],
            };
            b.digest != *diff_id
                && kinds.contains(&kind.as_str())
                && self.blob_size(&b.digest) == Some(b.size)
        };
        if let (Some(blob), None) = (info.blobs.iter().find(fits), level) {
            lease.hold(&blob.digest)?;
            return Ok(Descriptor::new(with.media_type(), blob.digest.clone(), blob.size));
        }
        self.compress(lease, diff_id, with, level)
    }

    /// The plain archive of a layer as a blob.
    fn plain(&self, lease: &Lease, diff_id: &Digest) -> Result<Descriptor> {
        if let Some(size) = self.blob_size(diff_id) {
            return Ok(Descriptor::new(media_type::OCI_LAYER, diff_id.clone(), size));
        }
        let mut tar = self.open_layer_tar(diff_id)?;
        let mut out = self.blob_writer(lease, diff_id.algorithm())?;
        self.copy(&mut tar, &mut out)?;
        let (digest, size) = out.finish(lease, Some(diff_id))?;
        let blob = Descriptor::new(media_type::OCI_LAYER, digest, size);
        self.remember_blob(diff_id, &blob)?;
        Ok(blob)
    }

    fn compress(
        &self,
        lease: &Lease,
        diff_id: &Digest,
        with: Compression,
        level: Option<u32>,
    ) -> Result<Descriptor> {
        let mut tar = self.open_layer_tar(diff_id)?;
        let out = self.blob_writer(lease, Algorithm::Sha256)?;
        let out = match with {
            Compression::Gzip => {
                let level =
                    level.map_or_else(flate2::Compression::default, |l| flate2::Compression::new(l.min(9)));
                let mut encoder = GzBuilder::new().write(out, level);
                self.copy(&mut tar, &mut encoder)?;
                encoder.finish()
            }
            Compression::Zstd => {
                let level = level.map_or(ZSTD_LEVEL, |l| l.min(22).cast_signed());
                let mut encoder =
                    zstd::stream::write::Encoder::new(out, level).at("compress in", self.root())?;
                encoder.include_checksum(true).at("compress in", self.root())?;
                self.copy(&mut tar, &mut encoder)?;
                encoder.finish()
            }
        };
        let out: BlobWriter = out.at("write a blob in", self.root())?;
        let (digest, size) = out.finish(lease, None)?;
        let blob = Descriptor::new(with.media_type(), digest, size);
        self.remember_blob(diff_id, &blob)?;
        Ok(blob)
    }

    fn copy(&self, from: &mut dyn Read, to: &mut dyn Write) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        loop {
            let n = crate::pipe::read_full(from, &mut buffer).at("read a layer in", self.root())?;
            if n == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..n]).at("write a blob in", self.root())?;
        }
    }

    /// The uncompressed archive of a layer, from whatever blob holds it here. The digest is not checked;
    /// readers that pass it on should.
    pub fn open_layer_tar(&self, diff_id: &Digest) -> Result<Box<dyn Read + Send>> {
        let file: File = match self.open_blob(diff_id) {
            Ok(file) => file,
            Err(Error::NoBlob { .. }) => match self.blob_of_layer(diff_id, None)? {
                Some(blob) => self.open_blob(&blob.digest)?,
                None => return Err(Error::NoBlob { digest: diff_id.clone() }),
            },
            Err(e) => return Err(e),
        };
        let decoder =
            Decoder::new(BufReader::with_capacity(BUFFER, file)).at("decompress a layer in", self.root())?;
        Ok(Box::new(decoder))
    }
}

/// The media type of a compressed blob, also where whoever brought it called it a plain archive.
fn tar_type(blob: &Descriptor) -> String {
    match blob.media_type.as_str() {
        media_type::OCI_LAYER | media_type::DOCKER_LAYER => media_type::OCI_LAYER_GZIP.to_owned(),
        other => other.to_owned(),
    }
}

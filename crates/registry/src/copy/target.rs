//! Where a copy goes: a registry, a layout or the store, which take documents and blobs one by one.

use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use isles_spec::image::Descriptor;
use isles_spec::{Progress, Reference};
use isles_store::{LayoutWriter, Lease, Store};

use super::source::{Source, Subject};
use crate::manifest::{Document, digest_of};
use crate::upload::{Counts, Nearby, Sender};
use crate::{Error, Result};

pub enum Target<'a> {
    Registry(Sender<'a>, &'a Reference),
    Layout(&'a LayoutWriter, Counts),
    Store(&'a Store, &'a Lease, Counts),
}

/// By what name a document is kept.
#[derive(Clone, Copy)]
pub enum Under<'n> {
    /// That of the target.
    Target,
    Digest,
    Tag(&'n str),
}

impl Target<'_> {
    pub fn counts(&self) -> &Counts {
        match self {
            Target::Registry(sender, _) => &sender.counts,
            Target::Layout(_, counts) | Target::Store(_, _, counts) => counts,
        }
    }

    /// Keeps a document.
    pub fn document(&self, document: &Document, under: Under<'_>) -> Result<()> {
        match self {
            Target::Registry(sender, reference) => {
                let own = sender.repository.reference()?;
                let name = match under {
                    Under::Target => (*reference).clone(),
                    Under::Digest => own.with_digest(document.digest.clone()),
                    Under::Tag(tag) => own.with_tag(tag)?,
                };
                if let Some(wanted) = name.digest().filter(|d| **d != document.digest) {
                    return Err(Error::Mismatch {
                        host: sender.repository.registry.clone(),
                        object: crate::client::object_name(&name),
                        expected: wanted.clone(),
                        actual: digest_of(wanted.algorithm(), &document.bytes),
                    });
                }
                let (sent, listed) = sender.document_about(&document.media_type, &document.bytes, &name)?;
                match Subject::of(&document.bytes) {
                    Subject { subject: Some(subject), artifact_type, .. } if !listed => {
                        let entry = Descriptor { artifact_type, ..sent };
                        sender.list_under_tag(&subject.digest, &entry)
                    }
                    _ => Ok(()),
                }
            }
            // What names there are is written when all is there.
            Target::Layout(writer, _) => match writer.has(&document.digest) {
                true => Ok(()),
                false => Ok(writer.blob(&document.descriptor(), &mut &document.bytes[..])?),
            },
            Target::Store(store, lease, _) => {
                Ok(store.put_expected(lease, &document.digest, &document.bytes)?)
            }
        }
    }

    /// Keeps a blob of the source. `siblings` are repositories of the target's registry that should have it.
    pub fn blob(
        &self,
        source: &Source<'_>,
        blob: &Descriptor,
        siblings: &[String],
        progress: &dyn Progress,
    ) -> Result<()> {
        let (counts, there) = match self {
            Target::Registry(sender, _) => {
                return source.with_blob(blob, &mut |open| {
                    let nearby = || Ok(Nearby { siblings, offer: None });
                    sender.blob(blob, &nearby, open)
                });
            }
            Target::Layout(writer, counts) => (counts, writer.has(&blob.digest)),
            Target::Store(store, lease, counts) => {
                lease.hold(&blob.digest)?;
                (counts, store.blob_size(&blob.digest) == Some(blob.size))
            }
        };
        if there {
            counts.existing.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let id = progress.begin(blob.digest.short(), Some(blob.size));
        let done = source.with_blob(blob, &mut |open| {
            let told = |n| {
                counts.bytes.fetch_add(n, Ordering::Relaxed);
                progress.advance(id, n);
            };
            let mut data = Told { inner: Stopped { inner: open(0)?, stop: &counts.stop }, told: &told };
            match self {
                Target::Store(store, lease, _) => into_store(store, lease, blob, &mut data),
                Target::Layout(writer, _) => writer.blob(blob, &mut data).map_err(own),
                Target::Registry(..) => Ok(()),
            }
        });
        progress.end(id, if done.is_ok() { "copied" } else { "failed" });
        done?;
        counts.uploaded.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn into_store(store: &Store, lease: &Lease, blob: &Descriptor, data: &mut dyn Read) -> Result<()> {
    let mut writer = store.blob_writer(lease, blob.digest.algorithm())?;
    let written = io::copy(&mut data.take(blob.size.saturating_add(1)), &mut writer);
    written.map_err(|source| {
        own(isles_store::Error::Io { doing: "write", object: format!("blob {}", blob.digest), source })
    })?;
    Ok(writer.finish(lease, Some(&blob.digest)).map(drop)?)
}

/// An error of ours that went through the store comes out as itself.
pub fn own(error: isles_store::Error) -> Error {
    match error {
        isles_store::Error::Io { doing, object, source } => match source.downcast::<Error>() {
            Ok(ours) => ours,
            Err(source) => isles_store::Error::Io { doing, object, source }.into(),
        },
        other => other.into(),
    }
}

/// Tells how many bytes pass.
pub struct Told<'a, R> {
    pub inner: R,
    pub told: &'a dyn Fn(u64),
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(out)?;
        (self.told)(n as u64);
        Ok(n)
    }
}

/// Ends when another part has failed.
struct Stopped<'a, R> {
    inner: R,
    stop: &'a AtomicBool,
}

impl<R: Read> Read for Stopped<'_, R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("another part of the image failed"));
        }
        self.inner.read(out)
    }
}

//! A layer from the stream it comes in: stored, checked twice and unpacked in one pass.
//!
//! Three threads pass buffers on: the caller's fetches, hashes and stores the compressed bytes; the second
//! inflates and hashes the archive; the third makes the files. Memory is the buffers between them.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use isles_spec::image::Descriptor;
use isles_spec::{Digest, Progress};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::decompress::Decoder;
use crate::error::At;
use crate::hash::Hasher;
use crate::pipe::{Gone, Sink, Source, pipe, read_full};
use crate::unpack::{Unpacked, unpack};
use crate::{Error, LayerInfo, Lease, Result, Skipped, Store};

/// Opens the compressed layer at a byte offset. It is called again, with the new offset, when reading fails;
/// the ingest ends with the error that this returns. It runs on the caller's thread.
pub type Fetch<'a> = dyn FnMut(u64) -> io::Result<Box<dyn Read + 'a>> + 'a;

const COMPRESSED_BUFFER: usize = 128 << 10;
const ARCHIVE_BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;
/// Below this many bytes no ratio is suspicious.
const RATIO_GRACE: u64 = 1 << 30;
/// Tries in a row that bring nothing, before a stream counts as broken.
const FUTILE_TRIES: u32 = 8;

/// What ingesting a layer gave.
#[derive(Debug, Clone)]
pub struct Ingested {
    pub diff_id: Digest,
    /// The blob that holds the layer here. Not the one asked for where the layer was here already under
    /// another compression.
    pub blob: Descriptor,
    /// Nothing was fetched: the layer was here.
    pub reused: bool,
    /// What could not be made here, such as devices.
    pub skipped: Vec<Skipped>,
}

impl Store {
    /// Fetches a layer unless it is here, stores its blob, checks digest and size of the blob and the diff ID
    /// of its content, and unpacks it, in one pass over the stream. A partial blob left by an earlier try is
    /// continued. Several processes may ingest the same layer; one fetches and the others wait for it.
    /// Before an image is recorded with it, the layer may not survive a power cut.
    pub fn ingest_layer(
        &self,
        lease: &Lease,
        blob: &Descriptor,
        diff_id: &Digest,
        open: &mut Fetch<'_>,
        progress: &dyn Progress,
    ) -> Result<Ingested> {
        let id = progress.begin(blob.digest.short(), Some(blob.size));
        let result = self.ingest(lease, blob, diff_id, open, &|n| progress.advance(id, n), &|text| {
            progress.status(id, text);
        });
        match &result {
            Ok(done) if done.reused => progress.end(id, "already here"),
            Ok(_) => progress.end(id, "done"),
            Err(_) => progress.end(id, "failed"),
        }
        result
    }

    fn ingest(
        &self,
        lease: &Lease,
        blob: &Descriptor,
        diff_id: &Digest,
        open: &mut Fetch<'_>,
        advance: &dyn Fn(u64),
        status: &dyn Fn(&str),
    ) -> Result<Ingested> {
        lease.hold(diff_id)?;
        lease.hold(&blob.digest)?;
        let lock = DigestLock::take(self, diff_id, status)?;
        if self.has_layer(diff_id)
            && let Some(here) = self.blob_of_layer(diff_id, Some(&blob.digest))?
        {
            // Held before it is looked at again: a collection may just have taken it.
            lease.hold(&here.digest)?;
            if self.has_layer(diff_id) && self.blob_size(&here.digest) == Some(here.size) {
                let skipped = self.layer_info(diff_id)?.skipped;
                return Ok(Ingested { diff_id: diff_id.clone(), blob: here, reused: true, skipped });
            }
        }
        let work = self.scratch("layer")?;
        fs::DirBuilder::new().mode(0o700).create(&work).at("create", &work)?;
        let result = (|| {
            let had = self.has_blob(&blob.digest) || Partial::path(self, &blob.digest).exists();
            let mut passed = self.pass(blob, diff_id, &work, open, advance);
            if had && matches!(passed, Err(Error::WrongDigest { .. } | Error::WrongSize { .. })) {
                // What was here of the blob is damaged: it goes, and a good one is fetched.
                self.remove_blob(&blob.digest)?;
                crate::remove::tree(&work.join("root"))?;
                passed = self.pass(blob, diff_id, &work, open, advance);
            }
            let (unpacked, size) = passed?;
            let info = LayerInfo {
                diff_id: diff_id.clone(),
                size,
                content: unpacked.content,
                entries: unpacked.entries,
                blobs: vec![Descriptor::new(&blob.media_type, blob.digest.clone(), blob.size)],
                opaque: unpacked.opaque,
                moved: false,
                skipped: unpacked.skipped,
            };
            if self.has_layer(diff_id) {
                // Unpacked before, and its blobs were gone.
                self.remember_blob(diff_id, blob)?;
                crate::remove::tree(&work)?;
            } else {
                self.place_layer(&work, &info)?;
            }
            Ok(info.skipped)
        })();
        match result {
            Ok(skipped) => {
                drop(lock);
                Ok(Ingested { diff_id: diff_id.clone(), blob: blob.clone(), reused: false, skipped })
            }
            Err(e) => {
                let _ = crate::remove::tree(&work);
                Err(e)
            }
        }
    }

    /// One pass over the stream. Returns what was unpacked and the size of the archive.
    fn pass(
        &self,
        blob: &Descriptor,
        diff_id: &Digest,
        work: &Path,
        open: &mut Fetch<'_>,
        advance: &dyn Fn(u64),
    ) -> Result<(Unpacked, u64)> {
        let root = make_root(&work.join("root"))?;
        let object = format!("layer {}", blob.digest);
        let (compressed_in, compressed_out) = pipe(BUFFERS, COMPRESSED_BUFFER);
        let (archive_in, archive_out) = pipe(BUFFERS, ARCHIVE_BUFFER);
        std::thread::scope(|scope| {
            let limits = &self.limits;
            let inflating = scope.spawn(move || {
                inflate(compressed_out, &archive_in, diff_id, limits.layer_bytes, limits.ratio, blob.size)
            });
            let unpacking = {
                let object = object.as_str();
                scope.spawn(move || {
                    let (unpacked, mut rest) =
                        unpack(archive_out, root, self.ownership, &self.limits).map_err(|e| e.of(object))?;
                    // What follows the archive counts for the digest only.
                    while let Ok(slice) = rest.fill_buf()
                        && !slice.is_empty()
                    {
                        let n = slice.len();
                        rest.consume(n);
                    }
                    Ok(unpacked)
                })
            };
            let fetched = self.fetch(blob, compressed_in, open, advance);
            let inflated = join(inflating);
            let unpacked = join(unpacking);
            // A damaged stream makes every stage fail; the first cause is the one to name.
            fetched?;
            match (inflated, unpacked) {
                // The archive was cut off because inflating it had to stop.
                (Err(stopped @ (Stopped::Corrupt(_) | Stopped::Limit { .. })), _) => {
                    Err(stopped.named(&object))
                }
                (_, Err(e)) => Err(e),
                (Err(stopped), Ok(_)) => Err(stopped.named(&object)),
                (Ok((actual, size)), Ok(unpacked)) => {
                    if actual != *diff_id {
                        return Err(Error::WrongDigest {
                            object: format!("the content of {object}"),
                            expected: diff_id.clone(),
                            actual,
                        });
                    }
                    Ok((unpacked, size))
                }
            }
        })
    }

    /// Feeds the compressed bytes into the pipe, from the blob or its beginning where they are here, else
    /// from the stream; makes the blob visible when it is complete and right.
    fn fetch(
        &self,
        blob: &Descriptor,
        out: Source,
        open: &mut Fetch<'_>,
        advance: &dyn Fn(u64),
    ) -> Result<()> {
        let mut hasher = Hasher::new(blob.digest.algorithm());
        let mut feed = Feed { out: Some(out), hasher: &mut hasher, size: 0, advance };
        let wrong_size = |actual| Error::WrongSize {
            object: format!("blob {}", blob.digest),
            expected: blob.size,
            actual,
        };
        if let Ok(mut file) = self.open_blob(&blob.digest) {
            let path = self.blob_path(&blob.digest);
            feed.from(&mut file, u64::MAX, None).map_err(|(e, _)| Error::io("read", &path, e))?;
            if feed.size != blob.size {
                return Err(wrong_size(feed.size));
            }
            drop(feed);
            return expect(blob, hasher);
        }
        let mut partial = Partial::open(self, &blob.digest)?;
        feed.from(&mut partial.file, blob.size, None)
            .map_err(|(e, _)| Error::io("read", &partial.path, e))?;
        let resumed = feed.size;
        partial.file.set_len(resumed).at("write", &partial.path)?;
        let mut futile = 0;
        while feed.size < blob.size || (feed.size == 0 && blob.size == 0) {
            let before = feed.size;
            let mut stream =
                open(before).map_err(|source| Error::Fetch { digest: blob.digest.clone(), source })?;
            // One byte more than there should be tells a stream that is too long.
            match feed.from(&mut *stream, blob.size + 1, Some(&mut partial.file)) {
                Ok(()) if feed.size == blob.size => break,
                Ok(()) if feed.size > blob.size => {
                    partial.discard();
                    return Err(wrong_size(feed.size));
                }
                // The connection was closed early, which some servers do without any error.
                Ok(()) => futile = if feed.size == before { futile + 1 } else { 0 },
                Err((e, Failed::Writing)) => return Err(Error::io("write", &partial.path, e)),
                Err((_, Failed::Reading)) => futile = if feed.size == before { futile + 1 } else { 0 },
            }
            if futile >= FUTILE_TRIES {
                return Err(wrong_size(feed.size));
            }
        }
        drop(feed);
        if let Err(e) = expect(blob, hasher) {
            partial.discard();
            return Err(e);
        }
        partial.publish(self, &blob.digest)
    }
}

/// Passes bytes on to the next thread, hashing and counting them.
struct Feed<'a> {
    /// `None` once the reader is gone: the rest is still fetched, to know whose fault it was.
    out: Option<Source>,
    hasher: &'a mut Hasher,
    size: u64,
    advance: &'a dyn Fn(u64),
}

enum Failed {
    Reading,
    Writing,
}

impl Feed<'_> {
    /// Takes bytes until the stream ends or `limit` bytes have passed in all.
    fn from(
        &mut self,
        input: &mut dyn Read,
        limit: u64,
        mut copy: Option<&mut File>,
    ) -> std::result::Result<(), (io::Error, Failed)> {
        let mut spare = Vec::new();
        while self.size < limit {
            let mut buffer = match &self.out {
                Some(out) => match out.buffer() {
                    Ok(buffer) => buffer,
                    Err(Gone) => {
                        self.out = None;
                        continue;
                    }
                },
                None if spare.is_empty() => vec![0; COMPRESSED_BUFFER],
                None => std::mem::take(&mut spare),
            };
            let room = buffer.len().min(usize::try_from(limit - self.size).unwrap_or(usize::MAX));
            let mut filled = 0;
            let mut failure = None;
            while filled < room {
                match input.read(&mut buffer[filled..room]) {
                    Ok(0) => break,
                    Ok(n) => {
                        filled += n;
                        (self.advance)(n as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
            let ended = filled < room;
            self.hasher.update(&buffer[..filled]);
            self.size += filled as u64;
            if let Some(file) = copy.as_deref_mut() {
                file.write_all(&buffer[..filled]).map_err(|e| (e, Failed::Writing))?;
            }
            match &self.out {
                // An empty buffer would only cost the reader a turn, but it must go back into circulation.
                Some(out) => {
                    if out.send(buffer, filled).is_err() {
                        self.out = None;
                    }
                }
                None => spare = buffer,
            }
            if let Some(e) = failure {
                return Err((e, Failed::Reading));
            }
            if ended {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn expect(blob: &Descriptor, hasher: Hasher) -> Result<()> {
    let actual = hasher.finish();
    if actual == blob.digest {
        return Ok(());
    }
    Err(Error::WrongDigest { object: format!("blob {}", blob.digest), expected: blob.digest.clone(), actual })
}

/// Why the second thread stopped.
enum Stopped {
    /// The third thread is gone, and has a reason of its own.
    Downstream,
    Corrupt(io::Error),
    Limit {
        what: &'static str,
        limit: u64,
    },
}

impl Stopped {
    fn named(self, object: &str) -> Error {
        let object = object.to_owned();
        match self {
            Stopped::Downstream => Error::Archive { object, reason: "it could not be unpacked".into() },
            Stopped::Corrupt(e) if e.kind() == io::ErrorKind::Unsupported => {
                Error::Unsupported { object, what: e.to_string() }
            }
            Stopped::Corrupt(e) => Error::Archive { object, reason: format!("decompression failed: {e}") },
            Stopped::Limit { what, limit } => Error::Limit { object, what: what.into(), limit },
        }
    }
}

/// Inflates and hashes. Returns the archive's digest and size.
fn inflate(
    input: Sink,
    out: &Source,
    like: &Digest,
    most: u64,
    ratio: u64,
    compressed: u64,
) -> std::result::Result<(Digest, u64), Stopped> {
    let mut decoder = Decoder::new(input).map_err(Stopped::Corrupt)?;
    let mut hasher = Hasher::new(like.algorithm());
    let allowed = compressed.saturating_mul(ratio).max(RATIO_GRACE);
    let mut size = 0u64;
    loop {
        let Ok(mut buffer) = out.buffer() else { return Err(Stopped::Downstream) };
        let filled = read_full(&mut decoder, &mut buffer).map_err(Stopped::Corrupt)?;
        if filled == 0 {
            return Ok((hasher.finish(), size));
        }
        size += filled as u64;
        if size > most {
            return Err(Stopped::Limit { what: "the uncompressed size", limit: most });
        }
        if size > allowed {
            return Err(Stopped::Limit {
                what: "the ratio of uncompressed to compressed size",
                limit: ratio,
            });
        }
        hasher.update(&buffer[..filled]);
        if out.send(buffer, filled).is_err() {
            return Err(Stopped::Downstream);
        }
    }
}

/// Unpacks an uncompressed archive into `work/root`, hashing it on the way.
pub(crate) fn unpack_plain(
    store: &Store,
    work: &Path,
    input: &mut dyn Read,
    mut seen: impl FnMut(&[u8]) -> Result<()>,
) -> Result<Unpacked> {
    let root = make_root(&work.join("root"))?;
    let (source, sink) = pipe(BUFFERS, ARCHIVE_BUFFER);
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || {
            let (unpacked, mut rest) =
                unpack(sink, root, store.ownership, &store.limits).map_err(|e| e.of("the archive"))?;
            while let Ok(slice) = rest.fill_buf()
                && !slice.is_empty()
            {
                let n = slice.len();
                rest.consume(n);
            }
            Ok(unpacked)
        });
        let fed = (|| {
            let mut size = 0u64;
            while let Ok(mut buffer) = source.buffer() {
                let filled = read_full(input, &mut buffer).map_err(|source| Error::Io {
                    doing: "read",
                    object: "the archive".into(),
                    source,
                })?;
                if filled == 0 {
                    break;
                }
                size += filled as u64;
                if size > store.limits.layer_bytes {
                    let limit = store.limits.layer_bytes;
                    return Err(Error::Limit {
                        object: "the archive".into(),
                        what: "its size".into(),
                        limit,
                    });
                }
                seen(&buffer[..filled])?;
                if source.send(buffer, filled).is_err() {
                    break;
                }
            }
            Ok(())
        })();
        drop(source);
        let unpacked = join(unpacking);
        fed?;
        unpacked
    })
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// The directory that a layer is unpacked into, with the mode it has where the layer says nothing.
pub(crate) fn make_root(path: &Path) -> Result<std::os::fd::OwnedFd> {
    match fs::DirBuilder::new().mode(0o755).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(Error::io("create", path, e)),
        _ => {}
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).at("open", path)?;
    // Neither the umask nor a setgid bit of the store's directory may show in the image.
    rustix::fs::fchmod(&fd, Mode::from(0o755)).at("set the mode of", path)?;
    Ok(fd)
}

/// A blob that is not complete yet, under `partial/`, locked against others.
struct Partial {
    path: PathBuf,
    file: File,
}

impl Partial {
    fn open(store: &Store, digest: &Digest) -> Result<Partial> {
        store.dir("partial")?;
        let path = Partial::path(store, digest);
        let file = open_locked(&path)?;
        Ok(Partial { path, file })
    }

    fn path(store: &Store, digest: &Digest) -> PathBuf {
        store.root.join("partial").join(format!("{}-{}", digest.algorithm().name(), digest.hex()))
    }

    /// Content that turned out wrong is not continued next time.
    fn discard(&self) {
        let _ = fs::remove_file(&self.path);
    }

    fn publish(mut self, store: &Store, digest: &Digest) -> Result<()> {
        let target = store.blob_dir(digest)?.join(digest.hex());
        self.file.sync_data().at("write to disk", &self.path)?;
        self.file.seek(SeekFrom::Start(0)).at("read", &self.path)?;
        fs::rename(&self.path, &target).at("write", &target)
    }
}

/// Opens a file and locks it; waits while another process has it, and starts over where that one removed
/// or renamed it meanwhile.
fn open_locked(path: &Path) -> Result<File> {
    loop {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .at("open", path)?;
        flock(&file, FlockOperation::LockExclusive).at("lock", path)?;
        if is_at(&file, path)? {
            return Ok(file);
        }
    }
}

fn is_at(file: &File, path: &Path) -> Result<bool> {
    let ours = file.metadata().at("look at", path)?;
    Ok(fs::symlink_metadata(path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())))
}

/// Makes sure that one process at a time works on a layer.
pub(crate) struct DigestLock {
    path: PathBuf,
    _file: File,
}

impl DigestLock {
    pub(crate) fn take(store: &Store, digest: &Digest, status: &dyn Fn(&str)) -> Result<DigestLock> {
        let path = store.dir("partial")?.join(format!("{}.lock", digest.hex()));
        loop {
            let file =
                File::options().write(true).create(true).truncate(false).open(&path).at("open", &path)?;
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                status("waiting for another process");
                flock(&file, FlockOperation::LockExclusive).at("lock", &path)?;
            }
            if is_at(&file, &path)? {
                return Ok(DigestLock { path, _file: file });
            }
        }
    }
}

impl Drop for DigestLock {
    fn drop(&mut self) {
        // Still locked: whoever waits sees that the file is gone and takes a new one.
        let _ = fs::remove_file(&self.path);
    }
}

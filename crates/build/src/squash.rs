//! A SquashFS image as a layer: its files as an archive, which the store unpacks as any other. So owners are kept
//! for every kind of user, and names that no layer may have are refused in one place.

use std::collections::HashMap;
use std::io::{self, BufWriter, Write};

use isles_squashfs::{FileType, Image, Inode, Walked};
use isles_store::tar::{Entry, Kind, Writer};
use isles_store::{CommittedLayer, Lease, Store};

use crate::error::{Error, Result};

/// Data is read from the image in pieces of so many bytes.
const PIECE: usize = 1 << 20;

/// Makes a layer of an image. Messages call it `name`.
pub fn layer(store: &Store, lease: &Lease, image: &Image, name: &str) -> Result<CommittedLayer> {
    let failed = |e: io::Error| -> Error {
        isles_spec::Error::new(format!("cannot read the files of '{name}': {e}"))
            .with_hint("the file may be damaged; fetch or build it again")
            .into()
    };
    let (mut reader, writer) = io::pipe().map_err(failed)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || archive(image, writer));
        let made = store.layer_from_tar(lease, &mut reader);
        // What is not read any more would be waited for.
        drop(reader);
        let written =
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads it ended")));
        match (made, written) {
            (_, Err(e)) if e.kind() != io::ErrorKind::BrokenPipe => Err(failed(e)),
            (made, _) => Ok(made?),
        }
    })
}

fn archive(image: &Image, output: impl Write) -> io::Result<()> {
    let mut tar = Writer::new(BufWriter::with_capacity(PIECE, output));
    // The first name of files that have several.
    let mut names: HashMap<u32, Vec<u8>> = HashMap::new();
    let mut piece = vec![0; PIECE];
    for walked in image.walk() {
        let Walked { path, inode } = walked.map_err(io::Error::other)?;
        let kind = match inode.file_type {
            FileType::Dir => Kind::Dir,
            FileType::File => Kind::File,
            FileType::Symlink => Kind::Symlink,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::CharDevice => Kind::CharDevice,
            FileType::Fifo => Kind::Fifo,
            // An archive has no entry for a socket, so an image cannot have one.
            FileType::Socket => continue,
        };
        if path.rsplit(|b| *b == b'/').next().is_some_and(|name| name.starts_with(b".wh.")) {
            // In a layer it means that a file was removed (image-spec, layer.md, "Whiteouts").
            let name = String::from_utf8_lossy(&path).escape_debug().to_string();
            return Err(io::Error::other(format!("'{name}' has a name that no layer can have")));
        }
        let mut entry = entry(image, &inode, kind)?;
        entry.path = if path.is_empty() { b"./".to_vec() } else { path };
        if kind != Kind::Dir && inode.nlink > 1 {
            if let Some(first) = names.get(&inode.number) {
                (entry.kind, entry.link, entry.size) = (Kind::Hardlink, first.clone(), 0);
                entry.xattrs.clear();
            } else {
                names.insert(inode.number, entry.path.clone());
            }
        }
        tar.begin(&entry)?;
        if entry.kind == Kind::File {
            let mut at = 0;
            while at < inode.size {
                let n = image.read_at(&inode, &mut piece, at).map_err(io::Error::other)?;
                if n == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                tar.data(&piece[..n])?;
                at += n as u64;
            }
        }
    }
    tar.finish()?.flush()
}

fn entry(image: &Image, inode: &Inode, kind: Kind) -> io::Result<Entry> {
    Ok(Entry {
        kind,
        link: match kind {
            Kind::Symlink => image.read_link(inode).map_err(io::Error::other)?,
            _ => Vec::new(),
        },
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime.into(), 0),
        size: if kind == Kind::File { inode.size } else { 0 },
        device: inode.device,
        xattrs: image.xattrs(inode).map_err(io::Error::other)?,
        ..Entry::default()
    })
}

//! Packs a folder: `pack FOLDER IMAGE [gzip-6|zstd-3|none] [THREADS]`.

use std::error::Error;
use std::fs::File;
use std::path::Path;

use isles_squashfs::{Compression, Folder, Options, write};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, image, more @ ..] = arguments.as_slice() else {
        return Err("usage: pack FOLDER IMAGE [gzip-6|zstd-3|none] [THREADS]".into());
    };
    let mut options = Options::default();
    if let Some(compression) = more.first() {
        options.compression = match compression.split_once('-') {
            Some(("gzip", level)) => Compression::Gzip(level.parse()?),
            Some(("zstd", level)) => Compression::Zstd(level.parse()?),
            _ => Compression::None,
        };
    }
    if let Some(threads) = more.get(1) {
        options.threads = threads.parse()?;
    }
    let written = write(&mut Folder::open(Path::new(folder))?, &mut File::create(image)?, &options)?;
    println!("{} bytes, {} files, {} duplicates", written.bytes, written.inodes, written.duplicates);
    Ok(())
}

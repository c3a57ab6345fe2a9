//! Lists an image: `list IMAGE [PATH…]`; with paths, their bytes go to standard output.

use std::error::Error;
use std::fs::File;
use std::io::Write;

use isles_squashfs::Image;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [image, paths @ ..] = arguments.as_slice() else { return Err("usage: list IMAGE [PATH…]".into()) };
    let file = File::open(image)?;
    let len = file.metadata()?.len();
    let image = Image::open(file, 0, len)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    if paths.is_empty() {
        for walked in image.walk() {
            let walked = walked?;
            let inode = &walked.inode;
            write!(out, "{:04o} {:>5} {:>5} {:>10} /", inode.mode, inode.uid, inode.gid, inode.size)?;
            out.write_all(&walked.path)?;
            out.write_all(b"\n")?;
        }
    }
    for path in paths {
        let mut inode = image.inode(image.root())?;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let entry = image.lookup(&inode, name.as_bytes())?.ok_or_else(|| format!("no '{path}'"))?;
            inode = image.inode(entry.inode)?;
        }
        let mut buffer = vec![0; 1 << 17];
        let mut at = 0;
        while at < inode.size {
            let n = image.read_at(&inode, &mut buffer, at)?;
            out.write_all(&buffer[..n])?;
            at += n as u64;
        }
    }
    Ok(out.flush()?)
}

//! `--mksquashfs-args`: the words of mksquashfs(1), for a writer that is no mksquashfs. What they ask for is done or
//! refused by name; those that only change what mksquashfs says, or how it works, are taken as they are.

use isles_squashfs::{Compression, Fragments, Options};

use crate::failure::Failure;

/// Words without a value that change nothing here.
const NOTHING: [&str; 12] = [
    "-noappend",
    "-reproducible",
    "-quiet",
    "-progress",
    "-no-progress",
    "-info",
    "-exit-on-error",
    "-no-recovery",
    "-xattrs",
    "-exports",
    "-no-tailends",
    "-no-sparse",
];
/// What may be left uncompressed: all of it, or nothing. The third is implied by the first.
const UNCOMPRESSED: [(&str, &str, u8); 5] = [
    ("-noI", "-noInodeCompression", 1),
    ("-noD", "-noDataCompression", 2),
    ("-noId", "-noIdTableCompression", 0),
    ("-noF", "-noFragmentCompression", 4),
    ("-noX", "-noXattrCompression", 8),
];
const KNOWN: &str = "known are -comp gzip|zstd, -Xcompression-level, -b, -processors, -all-root, -force-uid with -force-gid, -no-xattrs, \
     -no-exports, -no-fragments, -tailends, -no-duplicates, and -noI -noD -noF -noX together";

/// Reads them, on top of what is usual.
///
/// # Errors
/// A word that cannot be honoured, or a value that it cannot have.
pub fn options(args: &str) -> Result<Options, Failure> {
    let mut out = Options::default();
    let (mut level, mut user, mut group, mut plain) = (None, None, None, 0);
    let mut words = args.split_whitespace();
    while let Some(word) = words.next() {
        if NOTHING.contains(&word) {
            continue;
        }
        if let Some((.., bit)) = UNCOMPRESSED.iter().find(|(short, long, _)| word == *short || word == *long)
        {
            plain |= bit;
            continue;
        }
        match word {
            "-all-root" | "-root-owned" => (user, group) = (Some(0), Some(0)),
            "-no-xattrs" => out.xattrs = false,
            "-no-exports" => out.exportable = false,
            "-no-fragments" => out.fragments = Fragments::Never,
            "-tailends" | "-always-use-fragments" => out.fragments = Fragments::Always,
            "-no-duplicates" => out.deduplicate = false,
            "-comp" | "-b" | "-processors" | "-mem" | "-Xcompression-level" | "-force-uid" | "-force-gid" => {
                let value = words.next().ok_or_else(|| refused(word))?;
                let wrong = || refused(&format!("{word} {value}"));
                let number = || value.parse::<u32>().map_err(|_| wrong());
                match word {
                    "-comp" => {
                        out.compression = match value {
                            "gzip" => Compression::Gzip(9),
                            "zstd" => Compression::default(),
                            _ => return Err(wrong()),
                        }
                    }
                    "-b" => {
                        out.block_size = bytes(value)
                            .filter(|n| n.is_power_of_two() && (4 << 10..=1 << 20).contains(n))
                            .ok_or_else(wrong)?;
                    }
                    "-processors" => out.threads = number()? as usize,
                    // The writer has a few blocks for each thread, whatever may be had.
                    "-mem" => drop(bytes(value).ok_or_else(wrong)?),
                    "-Xcompression-level" => level = Some((number()?, value)),
                    "-force-uid" => user = Some(number()?),
                    _ => group = Some(number()?),
                }
            }
            _ => return Err(refused(word)),
        }
    }
    out.owner = match (user, group) {
        (None, None) => None,
        (Some(user), Some(group)) => Some((user, group)),
        (Some(_), None) => return Err(refused("-force-uid without -force-gid")),
        (None, Some(_)) => return Err(refused("-force-gid without -force-uid")),
    };
    if let Some((level, value)) = level {
        let wrong = || refused(&format!("-Xcompression-level {value}"));
        out.compression = match out.compression {
            // mksquashfs compresses by gzip where nothing is said.
            Compression::Gzip(_) if (1..=9).contains(&level) => Compression::Gzip(level),
            Compression::Zstd(_) if (1..=22).contains(&level) => {
                Compression::Zstd(i32::try_from(level).map_err(|_| wrong())?)
            }
            _ => return Err(wrong()),
        };
    }
    match plain {
        0 => {}
        15 => out.compression = Compression::None,
        _ => return Err(refused("one of -noI, -noD, -noF and -noX alone")),
    }
    Ok(out)
}

fn refused(what: &str) -> Failure {
    Failure::unsupported(format!("--mksquashfs-args {what}"), KNOWN)
}

/// `128K`, `1M` or a number of bytes.
fn bytes(text: &str) -> Option<u32> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['m', 'M']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    digits.parse::<u32>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_honoured() {
        let usual = Options::default();
        for (args, expected) in [
            ("", usual.clone()),
            ("-no-progress -noappend  -mem 2M", usual.clone()),
            (
                "-processors 2 -comp gzip",
                Options { threads: 2, compression: Compression::Gzip(9), ..usual.clone() },
            ),
            (
                "-comp gzip -Xcompression-level 3",
                Options { compression: Compression::Gzip(3), ..usual.clone() },
            ),
            (
                "-Xcompression-level 19 -comp zstd",
                Options { compression: Compression::Zstd(19), ..usual.clone() },
            ),
            ("-b 1M", Options { block_size: 1 << 20, ..usual.clone() }),
            ("-b 4096", Options { block_size: 4096, ..usual.clone() }),
            ("-all-root", Options { owner: Some((0, 0)), ..usual.clone() }),
            ("-force-uid 5 -force-gid 6", Options { owner: Some((5, 6)), ..usual.clone() }),
            (
                "-no-xattrs -no-exports -no-fragments -no-duplicates",
                Options {
                    xattrs: false,
                    exportable: false,
                    fragments: Fragments::Never,
                    deduplicate: false,
                    ..usual.clone()
                },
            ),
            ("-tailends", Options { fragments: Fragments::Always, ..usual.clone() }),
            ("-noI -noD -noF -noX", Options { compression: Compression::None, ..usual.clone() }),
        ] {
            assert_eq!(format!("{:?}", options(args).unwrap()), format!("{expected:?}"), "{args}");
        }
    }

    #[test]
    fn what_is_refused_by_name() {
        for (args, word) in [
            ("-comp", "-comp"),
            ("-comp xz", "-comp xz"),
            ("-comp gzip -Xcompression-level 10", "-Xcompression-level 10"),
            ("-Xcompression-level 0", "-Xcompression-level 0"),
            ("-b 5000", "-b 5000"),
            ("-b 2M", "-b 2M"),
            ("-b 99999999999", "-b 99999999999"),
            ("-processors x", "-processors x"),
            ("-force-uid 5", "-force-uid without"),
            ("-noI", "-noI"),
            ("-Xdict-size 1M", "-Xdict-size"),
            ("-e /etc", "-e"),
            ("-root-mode 0700", "-root-mode"),
        ] {
            let failure = options(args).unwrap_err();
            assert!(failure.message.contains(word), "{args}: {}", failure.message);
            assert!(failure.hint.is_some_and(|hint| hint.contains("-all-root")), "{args}");
        }
    }
}

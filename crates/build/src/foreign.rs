//! Programs of another architecture: the kernel runs them where `binfmt_misc` knows an interpreter, which must have
//! been registered with the flag F, as then the interpreter need not be in the image (kernel
//! Documentation/admin-guide/binfmt-misc.rst).

use std::fs;
use std::path::Path;

use isles_spec::{Error as Refusal, Platform};

const HANDLERS: &str = "/proc/sys/fs/binfmt_misc";
/// A handler's description is short.
const LIMIT: u64 = 64 << 10;

/// How programs of an architecture begin (ELF header): 64 bits, big-endian, machine; and the handler that people
/// usually have.
const ARCHITECTURES: [(&str, bool, bool, u16, &str); 13] = [
    ("386", false, false, 3, "qemu-i386"),
    ("amd64", true, false, 62, "qemu-x86_64"),
    ("arm", false, false, 40, "qemu-arm"),
    ("arm64", true, false, 183, "qemu-aarch64"),
    ("loong64", true, false, 258, "qemu-loongarch64"),
    ("mips", false, true, 8, "qemu-mips"),
    ("mipsle", false, false, 8, "qemu-mipsel"),
    ("mips64", true, true, 8, "qemu-mips64"),
    ("mips64le", true, false, 8, "qemu-mips64el"),
    ("ppc64", true, true, 21, "qemu-ppc64"),
    ("ppc64le", true, false, 21, "qemu-ppc64le"),
    ("riscv64", true, false, 243, "qemu-riscv64"),
    ("s390x", true, true, 22, "qemu-s390x"),
];

/// Whether this machine runs programs for a platform.
///
/// # Errors
/// It does not; what is missing is named.
pub fn ensure_runnable(platform: &Platform) -> Result<(), Refusal> {
    check(platform, &Platform::host(), Path::new(HANDLERS))
}

fn check(platform: &Platform, host: &Platform, handlers: &Path) -> Result<(), Refusal> {
    let refuse =
        |why: &str| Refusal::new(format!("programs for {platform} do not run on this machine: {why}"));
    if platform.os != host.os {
        return Err(refuse(&format!("its system is {}", host.os))
            .with_hint("steps that only copy files work for every platform"));
    }
    let native = match (host.architecture.as_str(), platform.architecture.as_str()) {
        (own, other) if own == other => true,
        // Processors of the larger kind run the smaller one.
        ("amd64", "386") | ("arm64", "arm") => true,
        _ => false,
    };
    if native {
        return Ok(());
    }
    let known = ARCHITECTURES.iter().find(|(name, ..)| *name == platform.architecture);
    let Some((_, wide, big, machine, handler)) = known else {
        return Err(
            refuse("the architecture is not known").with_hint("see --platform in `isles build --help`")
        );
    };
    let header = header(*wide, *big, *machine);
    let hint = format!(
        "install qemu-user-static, or run a container that registers {handler} with the flag F; \
         FROM --platform=$BUILDPLATFORM keeps a stage on this machine's own"
    );
    let Ok(entries) = fs::read_dir(handlers) else {
        let why = format!("'{handler}' is missing, as {} is not mounted", handlers.display());
        return Err(refuse(&why).with_hint(hint));
    };
    let mut found = None;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let text = fs::File::open(entry.path()).and_then(|f| isles_store::read_bounded(f, LIMIT));
        let Ok(Some(text)) = text else { continue };
        let handler = Handler::parse(&String::from_utf8_lossy(&text));
        if !handler.accepts(&header) {
            continue;
        }
        if handler.enabled && handler.fixed {
            return Ok(());
        }
        found = Some((name, handler));
    }
    Err(match found {
        None => refuse(&format!("'{handler}' is not registered in {}", handlers.display())),
        Some((name, handler)) if !handler.enabled => refuse(&format!("the handler '{name}' is disabled")),
        Some((name, _)) => refuse(&format!("the handler '{name}' was registered without the flag F")),
    }
    .with_hint(hint))
}

/// The first bytes of an executable.
fn header(wide: bool, big: bool, machine: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[..7].copy_from_slice(&[0x7f, b'E', b'L', b'F', 1 + u8::from(wide), 1 + u8::from(big), 1]);
    let bytes = |n: u16| if big { n.to_be_bytes() } else { n.to_le_bytes() };
    header[16..18].copy_from_slice(&bytes(2));
    header[18..20].copy_from_slice(&bytes(machine));
    header
}

/// A registered interpreter.
#[derive(Debug, Default, PartialEq, Eq)]
struct Handler {
    enabled: bool,
    /// The flag F: the interpreter was opened when it was registered.
    fixed: bool,
    offset: usize,
    magic: Vec<u8>,
    mask: Vec<u8>,
}

impl Handler {
    fn parse(text: &str) -> Handler {
        let mut handler = Handler::default();
        for line in text.lines() {
            match line.split_once(' ') {
                None => handler.enabled |= line == "enabled",
                Some(("flags:", flags)) => handler.fixed = flags.contains('F'),
                Some(("offset", n)) => handler.offset = n.trim().parse().unwrap_or(usize::MAX),
                Some(("magic", hex)) => handler.magic = bytes(hex),
                Some(("mask", hex)) => handler.mask = bytes(hex),
                Some(_) => {}
            }
        }
        handler
    }

    fn accepts(&self, header: &[u8]) -> bool {
        let Some(start) = header.get(self.offset..) else { return false };
        !self.magic.is_empty()
            && self.magic.iter().enumerate().all(|(i, magic)| {
                let mask = self.mask.get(i).copied().unwrap_or(0xff);
                start.get(i).is_some_and(|byte| byte & mask == magic & mask)
            })
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] * 16 + pair[1]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian's qemu-user-static registers it.
    const AARCH64: &str = "enabled\ninterpreter /usr/libexec/qemu-binfmt/aarch64-binfmt-P\nflags: POCF\noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";

    #[test]
    fn what_is_missing_is_named() {
        let platform = |text: &str| text.parse::<Platform>().unwrap();
        let host = platform("linux/amd64");
        let said = |wanted: &str, files: &[(&str, String)]| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("status"), "enabled\n").unwrap();
            for (name, text) in files {
                fs::write(dir.path().join(name), text).unwrap();
            }
            check(&platform(wanted), &host, dir.path()).map_err(|e| e.to_string())
        };
        let one = |text: &str| vec![("qemu-aarch64", text.to_owned())];
        for (wanted, files, expected) in [
            ("linux/amd64", vec![], None),
            ("linux/amd64/v3", vec![], None),
            ("linux/386", vec![], None),
            ("linux/arm64", one(AARCH64), None),
            ("linux/arm64", vec![], Some("'qemu-aarch64' is not registered")),
            ("linux/arm64", one(&AARCH64.replace("POCF", "POC")), Some("without the flag F")),
            ("linux/arm64", one(&AARCH64.replace("enabled", "disabled")), Some("is disabled")),
            ("linux/arm", one(AARCH64), Some("'qemu-arm' is not registered")),
            ("linux/s390x", one(AARCH64), Some("'qemu-s390x' is not registered")),
            ("linux/arm64", one("enabled\nextension .jar\n"), Some("is not registered")),
            ("linux/arm64", one("enabled\nflags: F\noffset 99\nmagic 7f\n"), Some("is not registered")),
            ("linux/vax", vec![], Some("not known")),
            ("windows/amd64", vec![], Some("its system is linux")),
        ] {
            match (said(wanted, &files), expected) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.contains(words), "{wanted}: {error}"),
                (other, _) => panic!("{wanted} {files:?}: {other:?}"),
            }
        }
        let gone = check(&platform("linux/riscv64"), &host, Path::new("/nonexistent")).unwrap_err();
        assert!(gone.to_string().contains("'qemu-riscv64' is missing"), "{gone}");
        assert!(check(&platform("linux/arm/v7"), &platform("linux/arm64"), Path::new("/none")).is_ok());
    }
}

//! Programs of another architecture: the kernel runs them by an interpreter of `binfmt_misc` (kernel
//! Documentation/admin-guide/binfmt-misc.rst). The host's is taken where there is one; it must have been registered with
//! the flag F, as then the interpreter need not be in the image. Else, since Linux 6.7, a static qemu of the host is
//! registered in the user namespace of the container alone ([`isles_sandbox::setup::Interpreter`]).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use isles_sandbox::explain::{HEAD, loader_of};
use isles_sandbox::setup;
use isles_spec::{Error as Refusal, Platform};

use crate::error::{Error, Result};

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

/// A static interpreter of this host, for one architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interpreter {
    /// As `/proc/sys/fs/binfmt_misc` calls it.
    pub name: &'static str,
    pub file: PathBuf,
    header: [u8; 20],
    keeps_name: bool,
}

impl Interpreter {
    /// What the sandbox registers.
    pub(crate) fn open(&self) -> Result<setup::Interpreter> {
        let file = File::open(&self.file).map_err(|e| Error::file("open the interpreter", &self.file, e))?;
        let (magic, mask) = (self.header.to_vec(), mask(&self.header).to_vec());
        let (name, keeps_name) = (self.name.to_owned(), self.keeps_name);
        Ok(setup::Interpreter { name, magic, mask, file: file.into(), keeps_name })
    }
}

/// Which bits of the header count: neither for which system an executable is (EI_OSABI), nor whether it may lie anywhere
/// in memory (ET_DYN beside ET_EXEC).
fn mask(header: &[u8; 20]) -> [u8; 20] {
    let mut mask = [0xff; 20];
    mask[7] = 0;
    let big = header[5] == 2;
    mask[16 + usize::from(big)] = 0xfe;
    mask
}

/// What of this host has to be lent to programs for a platform, for this machine to run them: `None` where it runs them as
/// it is.
///
/// # Errors
/// It does not run them; what is missing is named.
pub fn interpreter(platform: &Platform) -> std::result::Result<Option<Interpreter>, Refusal> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).chain(USUAL.map(PathBuf::from)).collect();
    let here = Here { host: Platform::host(), handlers: Path::new(HANDLERS), folders, own: own_handlers() };
    here.interpreter(platform)
}

/// Whether user namespaces have handlers of their own: since Linux 6.7.
fn own_handlers() -> bool {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7)
}

/// What is looked at.
struct Here<'a> {
    host: Platform,
    handlers: &'a Path,
    /// Where interpreters may be.
    folders: Vec<PathBuf>,
    own: bool,
}

impl Here<'_> {
    fn interpreter(&self, platform: &Platform) -> std::result::Result<Option<Interpreter>, Refusal> {
        let refuse =
            |why: &str| Refusal::new(format!("programs for {platform} do not run on this machine: {why}"));
        if platform.os != self.host.os {
            return Err(refuse(&format!("its system is {}", self.host.os))
                .with_hint("steps that only copy files work for every platform"));
        }
        let native = match (self.host.architecture.as_str(), platform.architecture.as_str()) {
            (own, other) if own == other => true,
            // Processors of the larger kind run the smaller one.
            ("amd64", "386") | ("arm64", "arm") => true,
            _ => false,
        };
        if native {
            return Ok(None);
        }
        let known = ARCHITECTURES.iter().find(|(name, ..)| *name == platform.architecture);
        let Some(&(_, wide, big, machine, name)) = known else {
            return Err(
                refuse("the architecture is not known").with_hint("see --platform in `isles build --help`")
            );
        };
        let header = header(wide, big, machine);
        let missing = match self.registered(name, &header) {
            None => return Ok(None),
            Some(missing) => missing,
        };
        if !self.own {
            return Err(refuse(&missing).with_hint(format!(
                "install qemu-user-static, or run a container that registers {name} with the flag F; \
                 FROM --platform=$BUILDPLATFORM keeps a stage on this machine's own"
            )));
        }
        match find(&self.folders, name) {
            Some(file) => {
                let keeps_name = keeps_name(&file);
                Ok(Some(Interpreter { name, file, header, keeps_name }))
            }
            None => Err(refuse(&format!("{missing}, and there is no static {name}")).with_hint(format!(
                "install qemu-user-static: {name}-static on PATH is enough, nothing need be registered; \
                     FROM --platform=$BUILDPLATFORM keeps a stage on this machine's own"
            ))),
        }
    }

    /// What is wrong with the host's handler of such programs: `None` where nothing is.
    fn registered(&self, handler: &str, header: &[u8]) -> Option<String> {
        let Ok(entries) = fs::read_dir(self.handlers) else {
            return Some(format!("'{handler}' is missing, as {} is not mounted", self.handlers.display()));
        };
        let mut found = None;
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = File::open(entry.path()).and_then(|f| isles_store::read_bounded(f, LIMIT));
            let Ok(Some(text)) = text else { continue };
            let handler = Handler::parse(&String::from_utf8_lossy(&text));
            if !handler.accepts(header) {
                continue;
            }
            if handler.enabled && handler.fixed {
                return None;
            }
            found = Some((name, handler));
        }
        Some(match found {
            None => format!("'{handler}' is not registered in {}", self.handlers.display()),
            Some((name, handler)) if !handler.enabled => format!("the handler '{name}' is disabled"),
            Some((name, _)) => format!("the handler '{name}' was registered without the flag F"),
        })
    }
}

/// Where interpreters are beside the folders of PATH.
const USUAL: [&str; 3] = ["/usr/bin", "/usr/local/bin", "/usr/libexec/qemu-binfmt"];

/// A static program by one of the names that distributions give to `qemu-aarch64`.
fn find(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let bare = name.strip_prefix("qemu-").unwrap_or(name);
    let names = [format!("{name}-static"), name.to_owned(), format!("{bare}-binfmt-P")];
    let absolute = folders.iter().filter(|folder| folder.is_absolute());
    let mut files = absolute.flat_map(|folder| names.iter().map(|name| folder.join(name)));
    files.find(|file| is_static(file))
}

fn is_static(file: &Path) -> bool {
    let Ok(file) = File::open(file) else { return false };
    let mut head = Vec::new();
    let read = std::io::Read::read_to_end(&mut std::io::Read::take(file, HEAD as u64), &mut head);
    read.is_ok() && head.starts_with(b"\x7fELF") && loader_of(&head).is_none()
}

/// Whether this qemu reads the program's own argument 0, which the kernel says that it passes on (AT_FLAGS, Linux 5.12):
/// since version 6.
fn keeps_name(file: &Path) -> bool {
    let said = Command::new(file).arg("--version").env_clear().output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let mut words = said.split_whitespace().skip_while(|word| *word != "version").skip(1);
    let major = words.next().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    major.is_some_and(|major| major >= 6)
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
            let here = Here { host: host.clone(), handlers: dir.path(), folders: Vec::new(), own: false };
            let found = here.interpreter(&platform(wanted));
            found.map(|found| assert!(found.is_none())).map_err(|e| e.to_string())
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
        let none = Path::new("/nonexistent");
        let here =
            |host: &str| Here { host: platform(host), handlers: none, folders: Vec::new(), own: false };
        let gone = here("linux/amd64").interpreter(&platform("linux/riscv64")).unwrap_err();
        assert!(gone.to_string().contains("'qemu-riscv64' is missing"), "{gone}");
        assert!(here("linux/arm64").interpreter(&platform("linux/arm/v7")).is_ok());
    }

    /// An ELF file that names a loader.
    fn with_loader() -> Vec<u8> {
        let mut file = header(true, false, 62).to_vec();
        file.resize(120, 0);
        for (at, byte) in [(32, 64), (54, 56), (56, 1), (64, 3), (72, 120), (96, 8)] {
            file[at] = byte;
        }
        file.extend(b"/lib/ld\0");
        file
    }

    #[test]
    fn a_static_interpreter_is_lent() {
        let dir = tempfile::tempdir().unwrap();
        let (bare, full) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir_all(&bare).unwrap();
        fs::create_dir_all(&full).unwrap();
        // A script is no static program, and neither is one with a loader.
        fs::write(bare.join("qemu-aarch64-static"), "#!/bin/sh\n").unwrap();
        fs::write(bare.join("qemu-aarch64"), with_loader()).unwrap();
        let wanted: Platform = "linux/arm64".parse().unwrap();
        let here = |folders: &[&Path], own| Here {
            host: "linux/amd64".parse().unwrap(),
            handlers: Path::new("/nonexistent"),
            folders: folders.iter().map(|f| f.to_path_buf()).collect(),
            own,
        };
        let refused = here(&[&bare], true).interpreter(&wanted).unwrap_err();
        assert!(refused.to_string().contains("no static qemu-aarch64"), "{refused}");
        fs::write(full.join("qemu-aarch64-static"), header(true, false, 62)).unwrap();
        let folders = [Path::new("relative"), &bare, &full];
        let found = here(&folders, true).interpreter(&wanted).unwrap().unwrap();
        assert_eq!((found.name, &found.file), ("qemu-aarch64", &full.join("qemu-aarch64-static")));
        assert_eq!((found.header[18], mask(&found.header)[16]), (183, 0xfe));
        assert_eq!(mask(&header(true, true, 22))[16..18], [0xff, 0xfe], "the other order of bytes");
        assert!(!found.keeps_name, "it does not say its version");
        assert!(here(&folders, false).interpreter(&wanted).is_err(), "older kernels have one list for all");
    }
}

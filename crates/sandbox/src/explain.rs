//! Why a program could not be run: execve(2) gives a number, people need the reason.
//!
//! The same ENOENT means a missing program, a missing interpreter of a script, or a missing loader of a
//! binary; ENOEXEC means another processor or no program at all. The root file system is looked at after the
//! fact, through a [`Tree`], so that the start itself pays nothing.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What stands at a path, links followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Permission bits and up to [`HEAD`] bytes from the beginning.
    File {
        mode: u32,
        head: Vec<u8>,
    },
    Directory,
    Other,
}

/// How much of a file's beginning is looked at.
pub const HEAD: usize = 4096;

/// A root file system to look at; no path leaves it.
pub trait Tree {
    /// `None` when nothing is there.
    fn look(&self, path: &Path) -> Option<Found>;
    /// The names in a folder; none where it cannot be read.
    fn names(&self, folder: &Path) -> Vec<OsString>;
}

/// What to do without a shell, which commands in one string take.
const NO_SHELL: &str = "the image has no shell: take one that has, or give the program and its arguments one by one, \
                        in a recipe as [\"program\", \"argument\"]";

/// A reason, what to do, and the exit code that goes with it (docker-run(1)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    pub reason: String,
    pub hint: Option<String>,
    pub exit_code: u8,
}

/// Explains why `program` did not start. `path` is the PATH that was searched, `cwd` the working folder, and
/// `errno` what execve(2) said in the end.
pub fn explain(tree: &dyn Tree, program: &OsStr, path: &str, cwd: &Path, errno: i32) -> Explanation {
    let say = |exit_code: u8, reason: String, hint: Option<String>| Explanation { reason, hint, exit_code };
    if program.is_empty() {
        return say(127, "the command is empty".into(), None);
    }
    let shown = program.to_string_lossy();
    if errno == libc::E2BIG {
        return say(
            126,
            format!("the arguments and the environment of '{shown}' are too long"),
            Some("pass long lists in a file".into()),
        );
    }
    let file = if program.as_bytes().contains(&b'/') {
        let file = cwd.join(program);
        if tree.look(&file).is_none() {
            let near = near(tree, [file.parent().unwrap_or(Path::new("/"))].into_iter(), file.file_name());
            let near = near.or_else(|| (program == "/bin/sh").then(|| NO_SHELL.to_owned()));
            return say(127, format!("no file '{shown}' in the container"), near);
        }
        file
    } else {
        let folders = || path.split(':').map(|f| cwd.join(if f.is_empty() { "." } else { f }));
        let hit =
            folders().map(|f| f.join(program)).find(|f| matches!(tree.look(f), Some(Found::File { .. })));
        match hit {
            Some(file) => file,
            None => {
                let folders: Vec<PathBuf> = folders().collect();
                let near = near(tree, folders.iter().map(PathBuf::as_path), Some(program));
                let hint = near.or_else(|| {
                    path.is_empty().then(|| "PATH is empty in the container; give the whole path".into())
                });
                return say(127, format!("no program '{shown}' in the container's PATH ({path})"), hint);
            }
        }
    };
    let at = file.display();
    match tree.look(&file) {
        Some(Found::Directory) => say(126, format!("'{at}' is a directory"), None),
        Some(Found::File { mode, .. }) if mode & 0o111 == 0 => say(
            126,
            format!("'{at}' is not executable"),
            Some(format!("make it executable in the image: chmod +x {at}")),
        ),
        Some(Found::File { head, .. }) => by_content(tree, &file, &head, errno),
        _ => say(126, format!("'{at}' is not a program"), None),
    }
}

fn by_content(tree: &dyn Tree, file: &Path, head: &[u8], errno: i32) -> Explanation {
    let say = |exit_code: u8, reason: String, hint: Option<String>| Explanation { reason, hint, exit_code };
    let at = file.display();
    if head.is_empty() {
        return say(126, format!("'{at}' is empty"), None);
    }
    if let Some(rest) = head.strip_prefix(b"#!") {
        let line = rest.split(|b| *b == b'\n').next().unwrap_or_default();
        let words = String::from_utf8_lossy(line);
        let interpreter = words.split_whitespace().next().unwrap_or_default().to_owned();
        if line.ends_with(b"\r") {
            return say(
                127,
                format!("the first line of '{at}' ends with a carriage return"),
                Some("the file has Windows line ends; convert it with dos2unix or sed -i 's/\\r$//'".into()),
            );
        }
        if interpreter.is_empty() {
            return say(126, format!("the first line of '{at}' names no interpreter"), None);
        }
        let path = Path::new("/").join(&interpreter);
        return match tree.look(&path) {
            None => say(
                127,
                format!("'{at}' wants the interpreter '{interpreter}', which is not in the container"),
                near(tree, [path.parent().unwrap_or(Path::new("/"))].into_iter(), path.file_name()),
            ),
            Some(Found::File { mode, .. }) if mode & 0o111 == 0 => {
                say(126, format!("the interpreter '{interpreter}' of '{at}' is not executable"), None)
            }
            Some(Found::File { head, .. }) if !head.starts_with(b"#!") => {
                let inner = by_content(tree, &path, &head, errno);
                say(
                    inner.exit_code,
                    format!("'{at}' cannot start its interpreter: {}", inner.reason),
                    inner.hint,
                )
            }
            _ => refused(file, errno),
        };
    }
    if head.starts_with(b"\x7fELF") {
        return elf(tree, file, head, errno);
    }
    say(
        126,
        format!("'{at}' is neither a binary nor a script with a #! line"),
        Some("begin a script with #!/bin/sh, or run it by its interpreter".into()),
    )
}

fn elf(tree: &dyn Tree, file: &Path, head: &[u8], errno: i32) -> Explanation {
    let say = |exit_code: u8, reason: String, hint: Option<String>| Explanation { reason, hint, exit_code };
    let at = file.display();
    let u16_at = |offset: usize| -> Option<u16> {
        let bytes: [u8; 2] = head.get(offset..offset + 2)?.try_into().ok()?;
        Some(if head.get(5) == Some(&2) { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) })
    };
    if errno == libc::ENOEXEC {
        let machine = u16_at(18).map_or("a damaged header", machine_name);
        let own = std::env::consts::ARCH;
        return say(
            126,
            format!("'{at}' is for another kind of processor ({machine}; this machine is {own})"),
            Some("pull the image for this machine with --platform, or install qemu-user-static".into()),
        );
    }
    if let Some(loader) = loader_of(head)
        && tree.look(&Path::new("/").join(&loader)).is_none()
    {
        let hint = if loader.contains("musl") {
            "the binary was made for musl (Alpine); use an image with musl, or rebuild it for this one"
        } else {
            "the binary was made for glibc or another layout; use an image that has this loader, or link it statically"
        };
        return say(
            127,
            format!("'{at}' wants the loader '{loader}', which is not in the container"),
            Some(hint.into()),
        );
    }
    refused(file, errno)
}

fn refused(file: &Path, errno: i32) -> Explanation {
    let cause = std::io::Error::from_raw_os_error(errno);
    let hint = match errno {
        libc::EACCES => Some("a folder above it, or a noexec mount, may forbid it".to_owned()),
        libc::EPERM => Some("it may want capabilities (getcap) that the container does not have".to_owned()),
        _ => None,
    };
    Explanation { reason: format!("'{}' cannot be run: {cause}", file.display()), hint, exit_code: 126 }
}

/// The loader that an ELF file names in PT_INTERP (elf(5)), where the beginning of the file has it.
pub fn loader_of(head: &[u8]) -> Option<String> {
    let little = head.get(5)? == &1;
    let wide = head.get(4)? == &2;
    let number = |offset: usize, length: usize| -> Option<usize> {
        let bytes = head.get(offset..offset.checked_add(length)?)?;
        let fold = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
        let value = if little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) };
        usize::try_from(value).ok()
    };
    let (table, size, count) = if wide {
        (number(32, 8)?, number(54, 2)?, number(56, 2)?)
    } else {
        (number(28, 4)?, number(42, 2)?, number(44, 2)?)
    };
    for index in 0..count.min(64) {
        let entry = table.checked_add(index.checked_mul(size)?)?;
        if number(entry, 4)? != 3 {
            continue;
        }
        let (offset, length) = if wide {
            (number(entry + 8, 8)?, number(entry + 32, 8)?)
        } else {
            (number(entry + 4, 4)?, number(entry + 16, 4)?)
        };
        let bytes = head.get(offset..offset.checked_add(length.min(HEAD))?)?;
        let text = bytes.split(|b| *b == 0).next()?;
        return String::from_utf8(text.to_vec()).ok();
    }
    None
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        3 => "x86",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "PowerPC 64",
        22 => "S/390",
        40 => "ARM",
        62 => "x86_64",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "unknown",
    }
}

/// `did you mean …`, from the names that are closest.
fn near<'a>(
    tree: &dyn Tree,
    folders: impl Iterator<Item = &'a Path>,
    name: Option<&OsStr>,
) -> Option<String> {
    let wanted = name?.to_string_lossy().into_owned();
    let limit = if wanted.len() <= 3 { 1 } else { 2 };
    let mut close: Vec<(usize, String)> = Vec::new();
    for folder in folders {
        for other in tree.names(folder).into_iter().take(20_000) {
            let Ok(other) = other.into_string() else { continue };
            let versioned = other
                .strip_prefix(&wanted)
                .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit() || b == b'.' || b == b'-'));
            let far = if versioned { 1 } else { isles_spec::nearest::distance(&wanted, &other) };
            if far > 0 && far <= limit && !close.iter().any(|(_, name)| *name == other) {
                close.push((far, other));
            }
        }
    }
    close.sort();
    let names: Vec<String> = close.into_iter().take(3).map(|(_, name)| format!("'{name}'")).collect();
    if names.is_empty() { None } else { Some(format!("did you mean {}?", names.join(" or "))) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Fake(BTreeMap<&'static str, Found>);

    impl Tree for Fake {
        fn look(&self, path: &Path) -> Option<Found> {
            self.0.get(path.to_str()?).cloned()
        }
        fn names(&self, folder: &Path) -> Vec<OsString> {
            let names = self.0.keys().map(Path::new).filter(|p| p.parent() == Some(folder));
            names.filter_map(|p| p.file_name().map(OsStr::to_owned)).collect()
        }
    }

    fn file(mode: u32, head: &[u8]) -> Found {
        Found::File { mode, head: head.to_vec() }
    }

    /// A 64-bit little-endian binary for a machine, with a loader.
    fn binary(machine: u16, loader: &str) -> Vec<u8> {
        let mut b = vec![0u8; 120];
        b[..6].copy_from_slice(b"\x7fELF\x02\x01");
        b[18..20].copy_from_slice(&machine.to_le_bytes());
        b[32] = 64;
        b[54] = 56;
        b[56] = 1;
        b[64] = 3;
        b[72] = 120;
        b[96] = loader.len() as u8 + 1;
        b.extend_from_slice(loader.as_bytes());
        b.push(0);
        b
    }

    #[test]
    fn reasons() {
        let tree = Fake(BTreeMap::from([
            ("/bin", Found::Directory),
            ("/bin/sh", file(0o755, &binary(62, "/lib64/ld.so"))),
            ("/lib64/ld.so", file(0o755, b"\x7fELF")),
            ("/bin/python3", file(0o755, b"\x7fELF")),
            ("/bin/plain", file(0o644, b"x")),
            ("/bin/text", file(0o755, b"hello")),
            ("/bin/void", file(0o755, b"")),
            ("/bin/crlf", file(0o755, b"#!/bin/sh\r\necho\r\n")),
            ("/bin/script", file(0o755, b"#!/bin/bahs\n")),
            ("/bin/bare", file(0o755, b"#!\n")),
            ("/bin/arm", file(0o755, &binary(183, "/lib/ld"))),
            ("/bin/musl", file(0o755, &binary(62, "/lib/ld-musl-x86_64.so.1"))),
            ("/bin/ok", file(0o755, &binary(62, "/lib64/ld.so"))),
        ]));
        for (program, errno, code, reason, hint) in [
            ("", libc::ENOENT, 127, "empty", ""),
            ("pyhton3", libc::ENOENT, 127, "no program 'pyhton3'", "'python3'"),
            ("python", libc::ENOENT, 127, "no program 'python'", "'python3'"),
            ("/bin/shh", libc::ENOENT, 127, "no file '/bin/shh'", "'sh'"),
            ("/bin", libc::EACCES, 126, "is a directory", ""),
            ("plain", libc::EACCES, 126, "not executable", "chmod +x"),
            ("text", libc::ENOEXEC, 126, "neither a binary nor a script", "#!/bin/sh"),
            ("void", libc::ENOEXEC, 126, "is empty", ""),
            ("crlf", libc::ENOENT, 127, "carriage return", "dos2unix"),
            ("script", libc::ENOENT, 127, "interpreter '/bin/bahs'", ""),
            ("bare", libc::ENOEXEC, 126, "names no interpreter", ""),
            ("arm", libc::ENOEXEC, 126, "aarch64", "--platform"),
            ("musl", libc::ENOENT, 127, "/lib/ld-musl-x86_64.so.1", "musl"),
            ("ok", libc::EACCES, 126, "cannot be run", "noexec"),
            ("ok", libc::E2BIG, 126, "too long", "file"),
        ] {
            let e = explain(&tree, program.as_ref(), "/bin", Path::new("/"), errno);
            assert_eq!(e.exit_code, code, "{program}: {e:?}");
            assert!(e.reason.contains(reason), "{program}: {e:?}");
            assert!(e.hint.as_deref().unwrap_or_default().contains(hint), "{program}: {e:?}");
        }
    }

    #[test]
    fn damaged_binaries_do_not_break_the_reader() {
        let whole = binary(62, "/lib64/ld.so");
        for end in 0..whole.len() {
            let _ = loader_of(&whole[..end]);
        }
        let mut wild = whole.clone();
        for i in 4..120 {
            wild[i] = 0xff;
            let _ = loader_of(&wild);
        }
    }
}

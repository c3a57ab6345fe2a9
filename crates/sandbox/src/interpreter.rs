//! Programs of another architecture: interpreters in `binfmt_misc` of the container's own user namespace, which has one
//! since Linux 6.7 (kernel Documentation/admin-guide/binfmt-misc.rst). Nothing of the host is changed, nobody has to be
//! root, and what is registered goes with the container.
//!
//! A container that shares its caller's user namespace gets one at the end of its set-up, when all is mounted: in it
//! every ID is what it was, so files keep their owners. What the program loses are rights over the namespaces that were
//! made before, and over devices.

use std::os::fd::{AsRawFd, OwnedFd};

use crate::child::{At, Done, Ends, tell, wait_for_go};
use crate::error::{SpawnError, Step};
use crate::plan::map_text;
use crate::setup::{Setup, UserNs};
use crate::sys::mount as m;
use crate::sys::{self, Errno, process as p};
use isles_spec::IdMapping;

/// Where the kernel has its interpreters, and programs look for them.
const PLACE: &std::ffi::CStr = c"/proc/sys/fs/binfmt_misc";

/// What is registered, made flat.
pub(crate) struct Registrations {
    /// What is written to `register`, one for each interpreter.
    lines: Vec<Vec<u8>>,
    /// The interpreters, at numbers that no stream of the program takes.
    _files: Vec<OwnedFd>,
    /// The maps of a user namespace that has to be made for them.
    pub maps: Option<(Vec<u8>, Vec<u8>)>,
    /// The parent is not root of the machine, and may write them only while the child can be looked into.
    shown: bool,
}

pub(crate) fn plan(setup: &Setup) -> Result<Registrations, SpawnError> {
    let failed = |name: &str, cause: std::io::Error| SpawnError {
        step: Step::Interpreter,
        object: name.to_owned(),
        cause,
    };
    let (mut lines, mut files) = (Vec::new(), Vec::new());
    for interpreter in &setup.interpreters {
        if interpreter.name.is_empty() || interpreter.name.contains([':', '/', '\n', '\0']) {
            return Err(SpawnError::value("name of an interpreter", &interpreter.name));
        }
        let file = rustix::io::fcntl_dupfd_cloexec(&interpreter.file, 64)
            .map_err(|e| failed(&interpreter.name, e.into()))?;
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("\\x{b:02x}")).collect::<String>();
        // F: the file is opened now, as the root of the program has no such path; O and C: the program is handed over
        // open, and its set-uid bit counts; P: so is the name that it was called by.
        let flags = if interpreter.keeps_name { "POCF" } else { "OCF" };
        let (magic, mask) = (hex(&interpreter.magic), hex(&interpreter.mask));
        let (name, fd) = (&interpreter.name, file.as_raw_fd());
        lines.push(format!(":{name}:M::{magic}:{mask}:/proc/self/fd/{fd}:{flags}").into_bytes());
        files.push(file);
    }
    let maps = (!lines.is_empty() && matches!(setup.namespaces.user, UserNs::Host)).then(|| {
        let same = |file: &str| map_text(&same_ids(&crate::proc_file::read(file).unwrap_or_default()));
        (same("/proc/self/uid_map"), same("/proc/self/gid_map"))
    });
    let shown = maps.is_some() && !crate::plan::initial_user_namespace();
    Ok(Registrations { lines, _files: files, maps, shown })
}

/// The IDs of a map of user_namespaces(7), each as itself.
fn same_ids(map: &str) -> Vec<IdMapping> {
    let line = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        let (inside, length) = (numbers.next()?.ok()?, numbers.nth(1)?.ok()?);
        Some(IdMapping { inside, outside: inside, length })
    };
    map.lines().filter_map(line).collect()
}

/// Registers them. Runs between clone3 and exec, in the root of the container.
pub(crate) fn register(registrations: &Registrations, ends: &Ends) -> Done {
    if registrations.lines.is_empty() {
        return Ok(());
    }
    if registrations.maps.is_some() {
        p::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS).at(Step::UserNamespace)?;
        p::prctl(libc::PR_SET_DUMPABLE, registrations.shown.into()).at(Step::UserNamespace)?;
        tell(ends, b'u');
        wait_for_go(ends)?;
        p::prctl(libc::PR_SET_DUMPABLE, 0).at(Step::UserNamespace)?;
    }
    for (index, line) in registrations.lines.iter().enumerate() {
        add(line, index == 0).at_index(Step::Interpreter, index)?;
    }
    Ok(())
}

fn add(line: &[u8], show: bool) -> sys::Result<()> {
    // All mounts of it in a user namespace show the same interpreters, which live as long as one of the mounts.
    let mount =
        m::create(&m::fsopen_named(c"binfmt_misc")?, m::ATTR_NOSUID | m::ATTR_NODEV | m::ATTR_NOEXEC)?;
    let file = sys::openat(mount.0, c"register", libc::O_WRONLY, 0)?;
    match sys::write_all(file.0, line) {
        // The user namespace was joined, and another container of it was here before.
        Ok(()) | Err(Errno(libc::EEXIST)) => {}
        other => other?,
    }
    // A mount with a file that is open for writing cannot be made read-only.
    drop(file);
    if show {
        m::set_attributes(mount.0, false, m::ATTR_RDONLY, 0, 0, -1)?;
        let place = sys::open(PLACE, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        m::attach(&mount, place.0)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::{Interpreter, RootFs};

    #[test]
    fn every_id_stays_what_it_is() {
        for (map, expected) in [
            ("         0          0 4294967295\n", "0 0 4294967295\n"),
            ("0 1000 1\n1 100000 65536\n", "0 0 1\n1 1 65536\n"),
            ("", ""),
        ] {
            assert_eq!(String::from_utf8(map_text(&same_ids(map))).unwrap(), expected);
        }
    }

    #[test]
    fn what_is_written() {
        let mut setup = Setup::new(RootFs::Directory("/".into()), &["true"]);
        assert!(plan(&setup).unwrap().maps.is_none(), "no namespace is made for nothing");
        let of = |name: &str, keeps_name| Interpreter {
            name: name.into(),
            magic: vec![0x7f, b'E', 0],
            mask: vec![0xff, 0, 0xfe],
            file: std::fs::File::open("/dev/null").unwrap().into(),
            keeps_name,
        };
        setup.interpreters = vec![of("qemu-x", true), of("qemu-y", false)];
        let planned = plan(&setup).unwrap();
        let line = String::from_utf8(planned.lines[0].clone()).unwrap();
        assert!(line.starts_with(":qemu-x:M::\\x7f\\x45\\x00:\\xff\\x00\\xfe:/proc/self/fd/"), "{line}");
        assert!(line.ends_with(":POCF") && planned.lines[1].ends_with(b":OCF"), "{line}");
        assert!(planned.maps.is_some());
        setup.namespaces.user = UserNs::New { uids: Vec::new(), gids: Vec::new() };
        assert!(plan(&setup).unwrap().maps.is_none(), "it has one of its own already");
        setup.interpreters = vec![of("a:b", true)];
        assert!(plan(&setup).is_err());
    }
}

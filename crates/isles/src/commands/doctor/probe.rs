//! Things that are tried in namespaces of their own, by a copy of this program.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::ValueEnum;
use isles_sandbox::identity::is_real_root;
use rustix::mount::{MountFlags, MountPropagationFlags, OpenTreeFlags};
use rustix::thread::UnshareFlags;

use crate::context::Context;
use crate::failure::{Code, Failure};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Probe {
    /// A user namespace with one ID.
    UserNamespace,
    /// An overlay in the current folder, as `isles run` makes it.
    Overlay,
    /// A user namespace that somebody else maps; it lives until standard input ends.
    Unmapped,
}

/// What a failed try says begins so, to tell it from a program that could not be started.
const REFUSED: &str = "refused: ";

/// Runs a probe in `dir`. The error is one line.
pub fn ask(probe: Probe, dir: &Path) -> Result<(), String> {
    let output = command(probe, dir).output().map_err(|e| e.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout);
    match (output.status.success(), said.trim().strip_prefix(REFUSED)) {
        (true, None) => Ok(()),
        (_, Some(why)) => Err(why.to_owned()),
        (false, None) => Err(format!("the try ended with {}", output.status)),
    }
}

fn command(probe: Probe, dir: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    let name = probe.to_possible_value().map(|v| v.get_name().to_owned()).unwrap_or_default();
    command.args(["doctor", "--probe", &name]).current_dir(dir).stdin(Stdio::null()).stderr(Stdio::null());
    command
}

/// The copy's side.
pub fn run(cx: &Context, probe: Probe) -> Result<Code, Failure> {
    let tried = match probe {
        Probe::UserNamespace => user_namespace(UnshareFlags::NEWUSER),
        Probe::Overlay => overlay(),
        Probe::Unmapped => {
            let made = unshare(UnshareFlags::NEWUSER);
            if made.is_ok() {
                cx.ui.line("ready")?;
                // Until whoever asked has seen enough.
                let _ = io::stdin().read_to_end(&mut Vec::new());
            }
            made
        }
    };
    if let Err(why) = tried {
        cx.ui.line(&format!("{REFUSED}{why}"))?;
        return Ok(Code(1));
    }
    Ok(Code::SUCCESS)
}

fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: this program has one thread, and nothing in it depends on file descriptors or memory that such a
    // change would split; only namespaces are named.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

fn user_namespace(flags: UnshareFlags) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(flags)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Mounts an overlay of `lower`, `upper` and `work` at `merged`, and uses it.
fn overlay() -> io::Result<()> {
    let what = |what: &'static str| {
        move |e: rustix::io::Errno| io::Error::other(format!("{what}: {}", io::Error::from(e)))
    };
    let options: &CStr = if is_real_root() {
        unshare(UnshareFlags::NEWNS)?;
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).map_err(what("mounts cannot be made private"))?;
        c"lowerdir=lower,upperdir=upper,workdir=work"
    } else {
        user_namespace(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
        c"lowerdir=lower,upperdir=upper,workdir=work,userxattr"
    };
    rustix::mount::mount("overlay", "merged", "overlay", MountFlags::empty(), Some(options))
        .map_err(what("mount"))?;
    let read = fs::read("merged/old")?;
    fs::write("merged/old", "changed")?;
    fs::create_dir("merged/gone.d")?;
    fs::remove_file("merged/gone")?;
    if read != b"old" || fs::read("upper/old")? != b"changed" || fs::exists("merged/gone")? {
        return Err(io::Error::other("it does not behave as an overlay"));
    }
    Ok(())
}

/// Tries an idmapped mount of the root directory, which only root may make (mount_setattr(2)).
pub fn idmapped_mount() -> io::Result<()> {
    let mut child =
        command(Probe::Unmapped, Path::new("/")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let result = (|| {
        let mut word = [0u8; 6];
        let mut output = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        if output.read_exact(&mut word).is_err() || &word != b"ready\n" {
            return Err(io::Error::other("there is no user namespace"));
        }
        let proc = format!("/proc/{}", child.id());
        for file in ["uid_map", "gid_map"] {
            fs::write(format!("{proc}/{file}"), "0 100000 1000")?;
        }
        let namespace = File::open(format!("{proc}/ns/user"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, "/", flags)?;
        set_idmap(tree.as_fd(), namespace.as_fd())
    })();
    drop(child.stdin.take());
    child.wait()?;
    result
}

fn set_idmap(tree: std::os::fd::BorrowedFd<'_>, namespace: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the descriptors are open for the whole call, the path is an empty C string, and the size is that of
    // the structure.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

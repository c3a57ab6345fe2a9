//! What the kernel itself takes for a container on a bridge: a process that makes the namespaces, the devices and the mounts
//! that any container has, and ends. Nothing is read, written down or allowed, so no start can be faster by much, and what
//! it takes longer with thousands of containers beside it is the kernel's own.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::ptr::null;

use isles_network::netlink::message::Batch;
use isles_network::netlink::{Socket, route};

use crate::Result;

/// The command of this program by which it is that process.
pub const COMMAND: &str = "bench-floor";
const BRIDGE: &str = "floor";
/// The loopback of every network namespace.
const LOOPBACK: u32 = 1;

/// Is that process; `tree` is its root file system.
pub fn run(arguments: &[String]) -> Result<()> {
    let [tree] = arguments else { return Err(format!("{COMMAND} TREE")) };
    let tree = CString::new(tree.as_str()).map_err(|e| e.to_string())?;
    devices().and_then(|()| mounts(&tree)).map_err(|e| format!("the kernel alone: {e}"))
}

/// Enters a network namespace with a device on the bridge of the one that was there before.
fn devices() -> io::Result<()> {
    let mut host = Socket::route()?;
    let bridge = match route::index(&mut host, BRIDGE)? {
        Some(bridge) => bridge,
        None => {
            let bridge = route::add_bridge(&mut host, BRIDGE, None, "")?;
            let mut batch = Batch::new();
            route::up(&mut batch, bridge);
            host.apply(&batch)?;
            bridge
        }
    };
    // SAFETY: unshare(2) has no memory effects, and this process has one thread.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) })?;
    let namespace = File::open("/proc/self/ns/net")?;
    let name = format!("floor{}", std::process::id());
    let inside = route::Inside { name: "eth0", mac: [2, 0x49, 0, 0, 0, 1], namespace: namespace.as_fd() };
    route::add_pair(&mut host, &name, bridge, None, Path::new("/proc/net/if_inet6").exists(), &inside)?;
    let mut own = Socket::route()?;
    let index = route::index(&mut own, "eth0")?.ok_or(io::ErrorKind::NotFound)?;
    let mut batch = Batch::new();
    route::up(&mut batch, LOOPBACK);
    route::address(&mut batch, index, [10, 99, 0, 2].into(), 24);
    route::up(&mut batch, index);
    route::default_route(&mut batch, index, [10, 99, 0, 1].into(), None);
    Ok(own.apply(&batch)?)
}

/// The tree takes the place of the root, with the kernel's own file systems in it.
fn mounts(tree: &CStr) -> io::Result<()> {
    mount(None, c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    mount(Some(tree), tree, None, libc::MS_BIND | libc::MS_REC)?;
    // SAFETY: the path is a string that lives.
    check(unsafe { libc::chdir(tree.as_ptr()) })?;
    mount(None, c"proc", Some(c"proc"), 0)?;
    mount(None, c"sys", Some(c"sysfs"), 0)?;
    mount(None, c"dev", Some(c"tmpfs"), 0)?;
    let here = c".".as_ptr();
    // SAFETY: the paths are strings that live.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, here, here) } as libc::c_int)?;
    // SAFETY: as above.
    check(unsafe { libc::umount2(here, libc::MNT_DETACH) })
}

fn mount(source: Option<&CStr>, target: &CStr, kind: Option<&CStr>, flags: libc::c_ulong) -> io::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(null(), CStr::as_ptr);
    // SAFETY: all of them are strings that live, or null, which mount(2) allows where it needs none.
    check(unsafe { libc::mount(pointer(source), target.as_ptr(), pointer(kind), flags, null()) })
}

fn check(code: libc::c_int) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

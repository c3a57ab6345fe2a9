//! Where the host keeps its control groups, and where in them we may make ours.

use std::io;
use std::path::{Path, PathBuf};

use super::files;

/// One cgroup v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// `memory`, or `cpu` and `cpuacct` together, or `name=systemd`.
    pub controllers: Vec<String>,
    pub mount: PathBuf,
    /// This process's group, relative to the mount.
    pub own: String,
}

/// The cgroup v2 tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unified {
    pub mount: PathBuf,
    /// This process's group, relative to the mount.
    pub own: String,
}

/// All control group trees of the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Layout {
    pub v1: Vec<Hierarchy>,
    pub v2: Option<Unified>,
}

impl Layout {
    /// Looks at this process's mounts and groups.
    pub fn detect() -> io::Result<Layout> {
        let mounts = crate::proc_file::read("/proc/self/mountinfo")?;
        // Kernels without control groups have no such file, and that is a layout too.
        let own = crate::proc_file::read("/proc/self/cgroup").unwrap_or_default();
        Ok(Layout::parse(&mounts, &own))
    }

    /// From the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` (proc(5)).
    pub fn parse(mountinfo: &str, cgroup: &str) -> Layout {
        let own: Vec<(&str, &str)> =
            cgroup.lines().filter_map(|line| line.split_once(':')?.1.split_once(':')).collect();
        let mut layout = Layout::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let ([_, _, _, root, mount, ..], [kind, _, options, ..]) = (&left[..], &right[..]) else {
                continue;
            };
            let (root, mount) = (unescape(root), PathBuf::from(unescape(mount)));
            match *kind {
                "cgroup2" if layout.v2.is_none() => {
                    let path = own.iter().find(|(names, _)| names.is_empty()).map_or("/", |(_, path)| path);
                    layout.v2 = Some(Unified { mount, own: relative(path, &root) });
                }
                "cgroup" => {
                    let Some((names, path)) = own.iter().find(|(names, _)| {
                        !names.is_empty() && names.split(',').all(|n| options.split(',').any(|o| o == n))
                    }) else {
                        continue;
                    };
                    let controllers: Vec<String> = names.split(',').map(str::to_owned).collect();
                    if !layout.v1.iter().any(|h| h.controllers == controllers) {
                        layout.v1.push(Hierarchy { controllers, mount, own: relative(path, &root) });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// The v1 hierarchy that carries a controller.
    pub fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller))
    }

    /// `none`, `v1`, `v2` or `hybrid`.
    pub fn kind(&self) -> &'static str {
        let controllers = self.v1.iter().any(|h| !h.controllers[0].starts_with("name="));
        match (controllers, &self.v2) {
            (false, None) => "none",
            (true, None) => "v1",
            (false, Some(_)) => "v2",
            (true, Some(_)) => "hybrid",
        }
    }

    /// The directory of the v2 tree, relative to its mount, below which this process may make groups: for root
    /// `isles`, for others the group above their own where it was delegated to them.
    pub(super) fn v2_parent(&self, root: bool) -> Option<(PathBuf, String)> {
        let unified = self.v2.as_ref()?;
        if root {
            return Some((unified.mount.clone(), "isles".into()));
        }
        // A process moves only below a directory whose cgroup.procs its user may write; that is the group above
        // ours, and controllers can be handed on only where no process sits.
        let own = Path::new(&unified.own);
        [own.parent(), Some(own)]
            .into_iter()
            .flatten()
            .map(|p| p.to_string_lossy().trim_start_matches('/').to_owned())
            .find(|p| delegated(&unified.mount.join(p)))
            .map(|p| (unified.mount.clone(), p))
    }
}

/// Whether this process may make groups in a directory and move processes there.
fn delegated(dir: &Path) -> bool {
    let writable = |file: &str| {
        files::open_mount(dir).and_then(|d| files::open_file(d, file, rustix::fs::OFlags::WRONLY)).is_ok()
    };
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok() && writable("cgroup.procs")
}

/// A group's path below the part of its tree that is mounted.
fn relative(path: &str, root: &str) -> String {
    let below = if root == "/" { path } else { path.strip_prefix(root).unwrap_or("/") };
    if below.is_empty() { "/".into() } else { below.to_owned() }
}

/// Spaces and the like stand as `\040` in mountinfo.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let code = bytes.get(i + 1..i + 4).filter(|_| bytes[i] == b'\\');
        match code.and_then(|c| u8::from_str_radix(std::str::from_utf8(c).ok()?, 8).ok()) {
            Some(byte) => {
                out.push(byte);
                i += 4;
            }
            None => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/my\\040systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn layouts() {
        let own = "9:name=systemd:/\n4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n";
        let layout = Layout::parse(HYBRID, own);
        assert_eq!(layout.kind(), "hybrid");
        assert_eq!(layout.hierarchy("cpuacct").unwrap().mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(layout.hierarchy("memory").unwrap().own, "/a/b");
        assert_eq!(layout.hierarchy("name=systemd").unwrap().mount, Path::new("/sys/fs/cgroup/my systemd"));
        assert!(layout.hierarchy("pids").is_none());

        let v2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let layout = Layout::parse(v2, "0::/user.slice/user-1000.slice/session-1.scope\n");
        assert_eq!(layout.kind(), "v2");
        assert_eq!(layout.v2.unwrap().own, "/user.slice/user-1000.slice/session-1.scope");

        // In a container that shares its host's cgroup namespace only its own part is mounted.
        let inner = "50 40 0:32 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        assert_eq!(Layout::parse(inner, "4:memory:/docker/x/y\n").v1[0].own, "/y");
        assert_eq!(Layout::parse(inner, "4:memory:/docker/x\n").v1[0].own, "/");

        assert_eq!(Layout::parse("", "").kind(), "none");
        assert_eq!(Layout::parse("garbage\n1 2 3 - cgroup2\n", "x\n::\n").kind(), "none");
    }
}

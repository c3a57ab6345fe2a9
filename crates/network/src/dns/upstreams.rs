//! The servers that are asked what is not known here: given, or those of a resolv.conf(5), whenever it changes.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};

use super::sockets::PORT;

/// Servers of the host beyond these are never asked (resolv.conf(5)).
const MOST_SERVERS: usize = 3;

/// The servers that are asked what is not known here.
#[derive(Debug, Clone)]
pub struct Upstreams {
    pub(super) all: Vec<SocketAddr>,
    /// The file that names them, and when it was changed last.
    of: Option<(PathBuf, Option<SystemTime>)>,
}

impl Upstreams {
    pub fn given(all: Vec<SocketAddr>) -> Upstreams {
        Upstreams { all, of: None }
    }

    /// Those that a resolv.conf(5) names: now, and whenever it changes.
    pub fn of_file(path: &Path) -> Upstreams {
        let mut upstreams = Upstreams { all: Vec::new(), of: Some((path.to_owned(), None)) };
        upstreams.refresh();
        upstreams
    }

    /// Reads their file again, where it has changed.
    pub(super) fn refresh(&mut self) {
        let Some((path, changed)) = &mut self.of else { return };
        let found = std::fs::metadata(&*path).and_then(|found| found.modified()).ok();
        if found.is_some() && *changed != found {
            *changed = found;
            self.all = servers(&std::fs::read_to_string(&*path).unwrap_or_default());
        }
    }
}

fn servers(resolv_conf: &str) -> Vec<SocketAddr> {
    let words = resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let addresses = words.filter_map(|word| word.trim().parse::<IpAddr>().ok());
    addresses.take(MOST_SERVERS).map(|address| SocketAddr::new(address, PORT)).collect()
}

/// A socket to a server, connected or about to be.
pub(super) fn to(address: SocketAddr, kind: SocketType) -> io::Result<OwnedFd> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn servers_of_the_host_may_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 10.0.0.1\n").unwrap();
        let mut upstreams = Upstreams::of_file(&file);
        assert_eq!(upstreams.all, ["10.0.0.1:53".parse().unwrap()]);
        std::fs::write(&file, "nameserver 10.0.0.2\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(2);
        std::fs::File::options().write(true).open(&file).unwrap().set_modified(later).unwrap();
        upstreams.refresh();
        assert_eq!(upstreams.all, ["10.0.0.2:53".parse().unwrap()]);
        // While it is being written anew, those that are known will do.
        std::fs::remove_file(&file).unwrap();
        upstreams.refresh();
        assert_eq!(upstreams.all.len(), 1);
    }

    #[test]
    fn servers_of_the_host() {
        let text = "# x\nnameserver 127.0.0.53\n nameserver fd00::1\nnameserver bad\nnameserver 1.1.1.1\nnameserver 2.2.2.2\n";
        let shown: Vec<String> = servers(text).iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.53:53", "[fd00::1]:53", "1.1.1.1:53"]);
    }
}

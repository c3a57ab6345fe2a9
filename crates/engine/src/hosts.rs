//! The files of /etc by which a container knows names, and the certificate authorities of the host.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use isles_network::state::Places;
use isles_sandbox::setup::{Mount, MountSource};
use isles_spec::{Dns, NetworkMode, Root, Workload, Writable};
use isles_store::{Container, FileKind};

use crate::error::{Error, Result};
use crate::networks::own_names;
use crate::plan::bind;
use crate::step::StepNames;
use crate::user::User;
use crate::user_network::UserNetwork;
use crate::view::{View, absolute, read, text};

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTNAME: &str = "/etc/hostname";

/// Where systems keep the authorities that they trust, as one file: Debian and Alpine, Fedora, openSUSE, others.
const AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// /etc/passwd and /etc/group of an image may have this many bytes.
const ENTRIES_LIMIT: u64 = 4 << 20;
/// In /dev, which is the container's own and never part of an image.
const AUTHORITIES_INSIDE: &str = "/dev/ca-certificates.crt";
/// What programs look at for such a file: OpenSSL and Python, pip, requests, curl, git, Node.js, cargo, the AWS tools.
const AUTHORITIES_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
];

/// What a step's system is called where nobody says anything else.
pub const HOSTNAME_OF_STEPS: &str = "isle";

/// /etc/hosts and resolv.conf(5) for a step of a build: the host's own, or files that are written for it. Without a network
/// there are only the names that were given.
pub fn of_step(
    mode: &NetworkMode,
    view: &View,
    (names, hostname): (Option<StepNames<'_>>, Option<&str>),
    network: Option<&UserNetwork>,
) -> Result<Vec<Mount>> {
    let networked = *mode != NetworkMode::None;
    let mut files = Vec::with_capacity(2);
    if let Some(StepNames { folder, extra }) = names {
        let of_host = if networked { fs::read_to_string(HOSTS).unwrap_or_default() } else { String::new() };
        let hostname = hostname.unwrap_or(HOSTNAME_OF_STEPS);
        let text = match network {
            Some(network) => {
                let router = network.plan.v4.router;
                let own: Vec<_> =
                    network.plan.addresses().map(|(address, _)| (address, hostname.to_owned())).collect();
                hosts(&seen_from_outside(&of_host, router), hostname, extra, Some(&own), Some(router.into()))?
            }
            None => hosts(&of_host, hostname, extra, None, None)?,
        };
        files.push((HOSTS, write_whole(folder, "hosts", &text)?));
    } else if networked {
        files.push((HOSTS, HOSTS.into()));
    }
    match (network, names) {
        (Some(network), Some(StepNames { folder, .. })) => {
            let of_host = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
            let dns = Dns { servers: network.resolvers(&of_host), ..Dns::default() };
            let text = resolv_conf(&of_host, &dns, false);
            files.push((RESOLV_CONF, write_whole(folder, "resolv.conf", &text)?));
        }
        _ if networked => files.push((RESOLV_CONF, RESOLV_CONF.into())),
        _ => {}
    }
    let mounts = files.into_iter().filter_map(|(path, source)| {
        let mut mount = bind(&place(view, path)?, Some(source).filter(|source| source.is_file())?.as_path());
        mount.flags.read_only = true;
        Some(mount)
    });
    Ok(mounts.collect())
}

/// Where a file of the image's really is: an image may have a link there (systemd-resolved's), which leads nowhere
/// before its own system has started. `None` where no file can be put: in the place of a folder, or in /proc.
fn place(view: &View, path: &str) -> Option<String> {
    let path = Path::new(path);
    let place = match view.canonical(path) {
        Ok(place) => Path::new("/").join(place),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => match view.read_link(path) {
            Some(target) => absolute(&path.parent()?.join(target)),
            None => path.to_owned(),
        },
        Err(_) => return None,
    };
    let apart = ["/dev", "/proc", "/sys"].iter().any(|system| place.starts_with(system));
    let other = view.stat(&place).is_some_and(|found| found.kind != FileKind::File);
    if apart || other { None } else { Some(place.to_str()?.to_owned()) }
}

/// The authorities that the host trusts as a mount, and the variables that tell programs of it. `None` where the
/// host has none.
pub fn authorities() -> Option<(Mount, Vec<String>)> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = AUTHORITIES.iter().map(PathBuf::from);
    let file = named.into_iter().chain(known).find(|file| file.is_absolute() && file.is_file())?;
    let mut mount = bind(AUTHORITIES_INSIDE, &file);
    mount.flags.read_only = true;
    Some((mount, AUTHORITIES_VARIABLES.iter().map(|name| format!("{name}={AUTHORITIES_INSIDE}")).collect()))
}

/// Writes the container's own files into its folder, and says where they are mounted.
pub fn of_container(
    container: &Container,
    hostname: &str,
    workload: &Workload,
    view: &View,
    places: Option<&Places>,
    network: Option<&UserNetwork>,
) -> Result<Vec<Mount>> {
    let networked = workload.network != NetworkMode::None;
    let of_host = networked && places.is_none();
    let host =
        |path: &str| if of_host { fs::read_to_string(path).unwrap_or_default() } else { String::new() };
    let own = match (places, network) {
        (Some(places), _) => Some(own_names(places, hostname, workload)),
        (None, Some(network)) => {
            Some(network.plan.addresses().map(|(address, _)| (address, hostname.to_owned())).collect())
        }
        (None, None) => None,
    };
    let of_places = places.and_then(|places| places.endpoints.first()?.gateways.first().copied());
    let gateway = of_places.or(network.map(|network| network.plan.v4.router.into()));
    let hosts_of_host = match network.filter(|_| places.is_none()) {
        Some(network) => seen_from_outside(&host(HOSTS), network.plan.v4.router),
        None => host(HOSTS),
    };
    let hosts = hosts(&hosts_of_host, hostname, &workload.extra_hosts, own.as_deref(), gateway)?;
    let mut files = vec![(HOSTNAME, "hostname", format!("{hostname}\n")), (HOSTS, "hosts", hosts)];
    if networked {
        let text = fs::read_to_string(RESOLV_CONF).unwrap_or_default();
        let mut dns = workload.dns.clone();
        if let Some(network) = network.filter(|_| dns.servers.is_empty() && places.is_none()) {
            dns.servers = network.resolvers(&text);
        }
        files.push((RESOLV_CONF, "resolv.conf", resolv_conf(&text, &dns, places.is_some())));
    }
    let in_place = workload.writable == Writable::Usual && workload.overlays.is_empty();
    let unwritable = in_place && matches!(&workload.root, Root::Directory(root) if is_read_only(root));
    let mut mounts = Vec::with_capacity(files.len());
    for (path, name, text) in files {
        let Some(place) = place(view, path) else { continue };
        // On a read-only root no mount point can be made, and nothing depends on these that much.
        if unwritable && !view.exists(place.as_ref()) {
            continue;
        }
        mounts.push(bind(&place, &write(container.path(), name, &text, READABLE)?));
    }
    Ok(mounts)
}

/// The files of a container in another one's network: what there is to know of it is in that one's.
pub fn of_shared_network(
    container: &Container,
    hostname: &str,
    other: &Path,
    view: &View,
) -> Result<Vec<Mount>> {
    let own = write(container.path(), "hostname", &format!("{hostname}\n"), READABLE)?;
    let of_other = [(HOSTS, other.join("hosts")), (RESOLV_CONF, other.join("resolv.conf"))];
    let files = std::iter::once((HOSTNAME, own)).chain(of_other);
    let there = files.filter(|(_, source)| source.is_file());
    Ok(there.filter_map(|(path, source)| Some(bind(&place(view, path)?, &source))).collect())
}

/// What `--here` shows: the caller's home, the current folder, the folders for temporary files, and entries in
/// /etc/passwd and /etc/group by which programs know who runs them.
pub fn of_caller(user: &User, container: &Container, view: &View) -> Result<Vec<Mount>> {
    let here = std::env::current_dir().map_err(|e| Error::system("find the current folder", e))?;
    let mut folders = vec![user.home.clone(), here, "/tmp".into(), "/var/tmp".into()];
    folders.retain(|folder| folder.is_dir() && folder != Path::new("/"));
    // A folder below another one is there with it.
    let all = folders.clone();
    folders.retain(|folder| !all.iter().any(|other| other != folder && folder.starts_with(other)));
    folders.dedup();
    let mut mounts: Vec<Mount> =
        folders.iter().filter_map(|folder| Some(shared_folder(folder.to_str()?, folder))).collect();
    let name = user.name.as_deref().unwrap_or("user");
    let home = user.home.display();
    for (path, file, id, line) in [
        ("/etc/passwd", "passwd", user.uid, format!("{name}:x:{}:{}::{home}:/bin/sh", user.uid, user.gid)),
        ("/etc/group", "group", user.gid, format!("{name}:x:{}:", user.gid)),
    ] {
        let old = read(view, Path::new(path), ENTRIES_LIMIT)?.unwrap_or_default();
        let old = text(&old);
        let known = old.lines().any(|l| l.split(':').nth(2).and_then(|n| n.parse().ok()) == Some(id));
        let Some(place) = place(view, path).filter(|_| !known) else { continue };
        let separator = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
        mounts.push(bind(
            &place,
            &write(container.path(), file, &format!("{old}{separator}{line}\n"), READABLE)?,
        ));
    }
    Ok(mounts)
}

/// Lets a container that runs ask whoever stays with it for names: its resolv.conf(5) says so in the place of the servers that
/// it was given. What it has written there itself stays.
pub(crate) fn ask_at_home(folder: &Path, given: impl Fn(IpAddr) -> bool) -> std::io::Result<()> {
    let path = folder.join("resolv.conf");
    let now = fs::read_to_string(&path)?;
    // The file is mounted in the container, so it is the same one.
    fs::write(&path, at_home(&now, given))
}

fn at_home(resolv_conf: &str, given: impl Fn(IpAddr) -> bool) -> String {
    let is_given = |line: &str| {
        let server = line.trim().strip_prefix("nameserver").and_then(|rest| rest.trim().parse().ok());
        server.is_some_and(&given)
    };
    let mut text = String::with_capacity(resolv_conf.len());
    let mut said = false;
    for line in resolv_conf.lines() {
        if !is_given(line) {
            text.push_str(&format!("{line}\n"));
        } else if !std::mem::replace(&mut said, true) {
            text.push_str(&format!("nameserver {}\n", isles_network::dns::ADDRESS));
        }
    }
    text
}

/// Adds the names that a container has at an address to its hosts(5), or takes them away again, while it runs. Other lines
/// stay as they are.
pub(crate) fn change_own_names(folder: &Path, names: &[(IpAddr, String)], adds: bool) -> Result<()> {
    let path = folder.join("hosts");
    let changed = fs::read_to_string(&path).and_then(|now| fs::write(&path, with_names(&now, names, adds)));
    match changed {
        // One whose files of /etc are its own.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|e| Error::file("write", &path, e)),
    }
}

fn with_names(hosts: &str, names: &[(IpAddr, String)], adds: bool) -> String {
    let lines: Vec<String> = names.iter().map(|(address, names)| format!("{address}\t{names}")).collect();
    let kept = hosts.lines().filter(|line| !lines.iter().any(|own| own == line));
    let all = kept.chain(lines.iter().filter(|_| adds).map(String::as_str));
    all.flat_map(|line| [line, "\n"]).collect()
}

/// The mode of files that every user of the container can read.
const READABLE: u32 = 0o644;

/// Writes a file with that mode, whatever the umask of the caller.
pub fn write(folder: &Path, name: &str, text: &str, mode: u32) -> Result<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)))
        .map_err(|e| Error::file("write", &path, e))?;
    Ok(path)
}

/// The same for a folder that several steps use at once: none sees half of a file, and what is there already stays.
fn write_whole(folder: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
        return Ok(path);
    }
    let beside = write(folder, &format!("{name}.{:?}", std::thread::current().id()), text, READABLE)?;
    fs::rename(&beside, &path).map_err(|e| Error::file("write", &path, e))?;
    Ok(path)
}

fn is_read_only(root: &Path) -> bool {
    rustix::fs::statvfs(root).is_ok_and(|s| s.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
}

fn shared_folder(destination: &str, source: &Path) -> Mount {
    let mut mount = bind(destination, source);
    mount.source = MountSource::Bind { source: source.to_owned(), recursive: true };
    mount
}

/// Names by which a container knows the host, as Docker Desktop and podman have them.
const NAMES_OF_HOST: &str = "host.docker.internal host.containers.internal";

/// The host's lines of hosts(5) but those about its loopback, which is another one in a network of the container's own, and
/// the names of the host.
fn seen_from_outside(of_host: &str, router: Ipv4Addr) -> String {
    let elsewhere = |line: &&str| {
        let address = line.split_whitespace().next().and_then(|word| word.parse::<IpAddr>().ok());
        address.is_some_and(|address| !address.is_loopback() && !address.is_multicast())
    };
    let lines: String = of_host.lines().filter(elsewhere).flat_map(|line| [line, "\n"]).collect();
    format!("{LOCALHOST}{lines}{router}\t{NAMES_OF_HOST}\n")
}

const LOCALHOST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

/// hosts(5): the host's lines, the container's own name, and those that the caller adds (`name:address`).
///
/// `own` are the container's addresses where it has some; `gateway` is the host as the container sees it.
fn hosts(
    of_host: &str,
    hostname: &str,
    extra: &[String],
    own: Option<&[(IpAddr, String)]>,
    gateway: Option<IpAddr>,
) -> Result<String> {
    let mut text = of_host.to_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if !text.lines().any(|line| line.split_whitespace().any(|word| word == "localhost")) {
        text.push_str(LOCALHOST);
    }
    match own {
        None => text.push_str(&format!("127.0.1.1\t{hostname}\n")),
        Some(own) => own.iter().for_each(|(address, names)| text.push_str(&format!("{address}\t{names}\n"))),
    }
    for entry in extra {
        let bad = || {
            isles_spec::Error::new(format!("invalid host '{entry}'"))
                .with_hint("write NAME:ADDRESS, for example --add-host db:10.0.0.5")
        };
        let (name, address) = entry.split_once([':', '=']).ok_or_else(bad)?;
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let plain =
            !name.is_empty() && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#');
        let address: IpAddr = match address {
            "host-gateway" => gateway.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            other => other.parse().map_err(|_| bad())?,
        };
        if !plain {
            return Err(bad().into());
        }
        text.push_str(&format!("{address}\t{name}\n"));
    }
    Ok(text)
}

/// resolv.conf(5): the caller's servers, or those of the host, with the caller's words over the host's. A container in
/// networks asks whoever stays with it (`networked`), who asks those.
fn resolv_conf(of_host: &str, dns: &Dns, networked: bool) -> String {
    if dns == &Dns::default() && !networked {
        return of_host.to_owned();
    }
    let lines = |word: &str| -> Vec<&str> {
        let lines = of_host.lines().filter_map(|line| line.trim().strip_prefix(word));
        lines.filter(|rest| rest.starts_with([' ', '\t'])).map(str::trim).collect()
    };
    let mut text = String::new();
    let of_host: Vec<IpAddr> = lines("nameserver").iter().filter_map(|word| word.parse().ok()).collect();
    let own = vec![isles_network::dns::ADDRESS];
    let servers = match (networked, dns.servers.is_empty()) {
        (true, _) => &own,
        (false, true) => &of_host,
        (false, false) => &dns.servers,
    };
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let search = if dns.search.is_empty() {
        lines("search").last().map(|words| (*words).to_owned()).unwrap_or_default()
    } else {
        // Docker's word for none.
        dns.search.iter().filter(|word| *word != ".").cloned().collect::<Vec<_>>().join(" ")
    };
    if !search.is_empty() {
        text.push_str(&format!("search {search}\n"));
    }
    let options = if dns.options.is_empty() { lines("options").join(" ") } else { dns.options.join(" ") };
    if !options.is_empty() {
        text.push_str(&format!("options {options}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_network_of_its_own() {
        let text =
            seen_from_outside("# c\n127.0.1.1 laptop\n10.1.1.1 db\nff02::1 all\n", [10, 0, 2, 2].into());
        assert_eq!(text, format!("{LOCALHOST}10.1.1.1 db\n10.0.2.2\t{NAMES_OF_HOST}\n"));
    }

    #[test]
    fn the_hosts_file() {
        let words = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let text =
            hosts("127.0.0.1 localhost\n10.1.1.1 db", "isle", &words(&["x:::1", "y=10.0.0.5"]), None, None)
                .unwrap();
        assert_eq!(text, "127.0.0.1 localhost\n10.1.1.1 db\n127.0.1.1\tisle\n::1\tx\n10.0.0.5\ty\n");
        assert!(hosts("", "isle", &[], None, None).unwrap().starts_with("127.0.0.1\tlocalhost\n"));
        let own = [("10.0.0.2".parse().unwrap(), "isle".to_owned())];
        let text =
            hosts("", "isle", &words(&["h:host-gateway"]), Some(&own), "10.0.0.1".parse().ok()).unwrap();
        assert!(text.ends_with("10.0.0.2\tisle\n10.0.0.1\th\n"));
        for bad in ["x", ":1.2.3.4", "x:", "x:host", "a b:1.2.3.4", "a\nb:1.2.3.4"] {
            assert!(hosts("", "isle", &words(&[bad]), None, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_container_that_joins_others_asks_at_home() {
        let given = |server: IpAddr| server == IpAddr::from([10, 0, 2, 3]);
        for (now, then) in [
            ("nameserver 10.0.2.3\nsearch a.org\n", "nameserver 127.0.0.11\nsearch a.org\n"),
            ("search a\nnameserver 10.0.2.3\nnameserver\t10.0.2.3", "search a\nnameserver 127.0.0.11\n"),
            ("nameserver 9.9.9.9\n", "nameserver 9.9.9.9\n"),
            ("", ""),
        ] {
            assert_eq!(at_home(now, given), then);
        }
        let own = [(IpAddr::from([172, 18, 0, 2]), "isle".to_owned())];
        let more = with_names("127.0.0.1 localhost", &own, true);
        assert_eq!(more, "127.0.0.1 localhost\n172.18.0.2\tisle\n");
        assert_eq!(with_names(&more, &own, true), more);
        assert_eq!(with_names(&more, &own, false), "127.0.0.1 localhost\n");
    }

    #[test]
    fn the_resolver_file() {
        let host = "# made by x\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nsearch a.org b.org\noptions edns0 trust-ad\n";
        let dns = Dns::default();
        assert_eq!(resolv_conf(host, &dns, false), host);
        assert_eq!(
            resolv_conf(host, &dns, true),
            "nameserver 127.0.0.11\nsearch a.org b.org\noptions edns0 trust-ad\n"
        );
        let own = Dns {
            servers: vec!["9.9.9.9".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:2".into()],
        };
        assert_eq!(resolv_conf(host, &own, false), "nameserver 9.9.9.9\noptions ndots:2\n");
    }
}

//! What a system has beside its packages before they are configured, and what it loses afterwards so that
//! the same packages give the same tree.

use std::io;

use super::archive::Place;
use super::resolve::Selection;
use super::tree::Tree;

/// `/bin`, `/sbin` and `/lib*` as links into `/usr` (Debian since bookworm has nothing else; earlier
/// releases work so, too).
pub fn merged_usr(tree: &Tree, architecture: &str) -> io::Result<()> {
    let lib64 = matches!(architecture, "amd64" | "ppc64el" | "loong64");
    let names = ["bin", "sbin", "lib"].into_iter().chain(lib64.then_some("lib64"));
    for name in names {
        tree.directory(format!("usr/{name}").as_bytes())?;
        tree.link(name, &format!("usr/{name}"))?;
    }
    Ok(())
}

/// Where apt looks for packages, and which it may take away again.
pub fn apt(tree: &Tree, places: &[Place], architecture: &str, selection: &Selection<'_>) -> io::Result<()> {
    let mut sources = String::new();
    for place in places {
        sources.push_str(&format!("deb {} {} {}\n", place.url, place.suite, place.components.join(" ")));
    }
    tree.write("etc/apt/sources.list", 0o644, sources.as_bytes())?;
    // In a user namespace with one ID there is no other user that apt could become to fetch packages.
    let conf = b"APT::Sandbox::User \"root\";\n";
    tree.write("etc/apt/apt.conf.d/99isles", 0o644, conf)?;
    tree.write("var/lib/dpkg/arch", 0o644, format!("{architecture}\n").as_bytes())?;
    let mut states = String::new();
    for name in selection.packages.keys().filter(|n| selection.automatic.contains(*n)) {
        let architecture = match selection.packages[name].architecture {
            "all" => architecture,
            own => own,
        };
        states.push_str(&format!("Package: {name}\nArchitecture: {architecture}\nAuto-Installed: 1\n\n"));
    }
    tree.write("var/lib/apt/extended_states", 0o644, states.as_bytes())
}

/// Takes away what differs from run to run, or what the machine or the sandbox put there.
pub fn clean(tree: &Tree) -> io::Result<()> {
    for file in [
        "var/cache/ldconfig/aux-cache",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/cache/debconf/config.dat-old",
        "var/cache/debconf/templates.dat-old",
        "var/lib/dpkg/status-old",
        "var/lib/dpkg/diversions-old",
        "var/lib/dpkg/statoverride-old",
        "var/lib/dpkg/available-old",
        "var/lib/systemd/catalog/database",
        "var/lib/dbus/machine-id",
        "etc/machine-id",
        "etc/passwd-",
        "etc/group-",
        "etc/shadow-",
        "etc/gshadow-",
        "etc/subuid-",
        "etc/subgid-",
        "etc/hostname",
        "etc/hosts",
        "etc/resolv.conf",
        ".dockerenv",
    ] {
        tree.remove(file)?;
    }
    tree.empty("var/cache/apt/archives", true)?;
    tree.empty("var/lib/apt/lists", true)?;
    tree.empty("tmp", false)?;
    tree.empty("var/tmp", false)?;
    tree.empty("dev", true)?;
    tree.empty("run", true)?;
    empty_logs(tree, "var/log")
}

/// Logs that were begun stay as empty files where they are records of logins (utmp(5)), whose owner and
/// mode matter; the others go.
fn empty_logs(tree: &Tree, dir: &str) -> io::Result<()> {
    for (name, is_directory) in tree.names(dir)? {
        let path = format!("{dir}/{name}");
        if is_directory {
            empty_logs(tree, &path)?;
        } else if !matches!(name.as_str(), "btmp" | "wtmp" | "lastlog" | "faillog") {
            tree.remove(&path)?;
        }
    }
    Ok(())
}

//! Runs what packages want to be run when they are installed, inside the sandbox (Debian Policy, chapter 6;
//! deb-preinst(5)): the `preinst` scripts, and then dpkg for the rest.
//!
//! A `preinst` is meant to run before its package's files are there. For a fresh system the difference shows
//! in nothing but diversions, and debootstrap has always had the files there first, too.

use super::database::Installed;
use super::error::{Error, Result};
use super::tree::Tree;

/// Services are not started while a system is being made, nor in a container afterwards (invoke-rc.d(8)).
const POLICY: &str = "#!/bin/sh\n# Services are not started in a container.\nexit 101\n";
const DAEMON: &str = "usr/sbin/start-stop-daemon";
const DAEMON_ASIDE: &str = "start-stop-daemon.isles";

/// The environment of the scripts. `date` is what they take for the present (SOURCE_DATE_EPOCH).
pub fn environment(date: i64) -> Vec<String> {
    vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
        "HOME=/root".into(),
        "LC_ALL=C.UTF-8".into(),
        "DEBIAN_FRONTEND=noninteractive".into(),
        "DEBCONF_NONINTERACTIVE_SEEN=true".into(),
        "DEBCONF_NOWARNINGS=yes".into(),
        format!("SOURCE_DATE_EPOCH={date}"),
    ]
}

/// What the scripts need around them that the finished system does not.
pub fn prepare(tree: &Tree) -> std::io::Result<()> {
    tree.write("usr/sbin/policy-rc.d", 0o755, POLICY.as_bytes())?;
    if tree.exists(DAEMON) {
        tree.rename(DAEMON, DAEMON_ASIDE)?;
        tree.write(DAEMON, 0o755, b"#!/bin/sh\nexit 0\n")?;
    }
    // Scripts may use these before anyone has made them.
    if !tree.exists("usr/bin/awk") && tree.exists("usr/bin/mawk") {
        tree.link("usr/bin/awk", "mawk")?;
    }
    if !tree.exists("usr/bin/sh") {
        tree.link("usr/bin/sh", "dash")?;
    }
    Ok(())
}

/// Takes [`prepare`] back, except for the policy.
pub fn restore(tree: &Tree) -> std::io::Result<()> {
    if tree.exists(&format!("usr/sbin/{DAEMON_ASIDE}")) {
        tree.rename(&format!("usr/sbin/{DAEMON_ASIDE}"), "start-stop-daemon")?;
    }
    Ok(())
}

/// The shell script that configures everything: the base first, then what was included.
pub fn script(packages: &[Installed<'_>], is_base: impl Fn(&str) -> bool) -> String {
    // Scripts run from where dpkg has them, because debconf finds their package by that.
    let mut script = String::from(
        "set -e\numask 022\ncd /\n\
         preinst() {\n\
         ci=/var/lib/dpkg/tmp.ci\n\
         mkdir -p $ci\n\
         for part in preinst config templates; do\n\
         if [ -e \"$3.$part\" ]; then cp -p \"$3.$part\" $ci/$part; fi\n\
         done\n\
         printf 'Package: %s\\nArchitecture: %s\\n' \"$1\" \"$2\" > $ci/control\n\
         DPKG_MAINTSCRIPT_PACKAGE=$1 DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT=1 DPKG_MAINTSCRIPT_ARCH=$2 \\\n\
         DPKG_MAINTSCRIPT_NAME=preinst DPKG_ADMINDIR=/var/lib/dpkg DPKG_ROOT= $ci/preinst install || {\n\
         echo \"the preinst script of $1 failed\" >&2; exit 1; }\n\
         rm -r $ci\n}\n",
    );
    let (mut base, rest): (Vec<_>, Vec<_>) = packages.iter().partition(|p| is_base(p.name));
    // The users that other scripts give files to come from here.
    base.sort_by_key(|p| (p.name != "base-passwd", p.name != "base-files", p.name));
    let preinsts = |packages: &[&Installed<'_>]| -> String {
        let line = |package: &&Installed<'_>| {
            let path = package.script("preinst").filter(|_| !preinst_is_idle(package))?;
            let stem = path.trim_end_matches(".preinst");
            Some(format!("preinst {} {} {stem}\n", package.name, package.architecture))
        };
        packages.iter().filter_map(line).collect()
    };
    script.push_str(&preinsts(&base));
    let later = preinsts(&rest);
    if !later.is_empty() {
        // What is included may count on a working base.
        let names: Vec<_> = base.iter().map(|p| p.name).collect();
        script.push_str(&format!("dpkg --configure {}\n{later}", names.join(" ")));
    }
    script.push_str("dpkg --configure -a\n");
    script
}

/// Whether a `preinst` does nothing in a fresh system: it only moves files of earlier versions about
/// (dpkg-maintscript-helper(1)), and there is no earlier version.
fn preinst_is_idle(package: &Installed<'_>) -> bool {
    let Some(text) = package.control.text("preinst") else { return true };
    if !text.starts_with("#!/bin/sh") {
        return false;
    }
    text.lines().map(str::trim).all(|line| {
        let moves = line.strip_prefix("dpkg-maintscript-helper ").is_some_and(|rest| {
            let known = ["rm_conffile ", "mv_conffile ", "symlink_to_dir ", "dir_to_symlink "];
            let plain = !rest.contains([';', '|', '&', '`', '>', '<', '(']) && rest.ends_with("-- \"$@\"");
            known.iter().any(|k| rest.starts_with(k)) && plain
        });
        moves || line.is_empty() || line.starts_with('#') || matches!(line, "set -e" | "exit 0")
    })
}

/// Checks that dpkg finds everything installed and nothing waiting.
pub fn audit(tree: &Tree) -> Result<()> {
    const STATUS: &str = "var/lib/dpkg/status";
    let unreadable = |e| Error::Io { operation: "read", path: STATUS.into(), source: e };
    let bytes = tree.read(STATUS, 256 << 20).map_err(unreadable)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut wrong = Vec::new();
    for stanza in super::control::stanzas(&text) {
        let field = |name| super::control::field(stanza, name).unwrap_or_default();
        if field("Status") != "install ok installed" {
            wrong.push(format!("{} is '{}'", field("Package"), field("Status")));
        }
    }
    wrong.truncate(5);
    if wrong.is_empty() { Ok(()) } else { Err(Error::Audit(wrong.join(", "))) }
}

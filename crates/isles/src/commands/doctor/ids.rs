//! User namespaces, subordinate IDs and idmapped mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use isles_sandbox::identity::{Identity, detect, is_real_root, on_path, subordinate, user_name};

use super::Finding;
use super::probe::{self, Probe};

pub fn findings() -> Vec<Finding> {
    vec![namespaces(), ranges(), idmapped()]
}

fn namespaces() -> Finding {
    const CHECK: &str = "user namespaces";
    let refused = match probe::ask(Probe::UserNamespace, Path::new("/")) {
        Ok(()) => return Finding::ok(CHECK, "can be made"),
        Err(why) => why,
    };
    let sysctl =
        |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().to_owned();
    let cure = if sysctl("user/max_user_namespaces") == "0" {
        "allow them: sysctl -w user.max_user_namespaces=10000"
    } else if sysctl("kernel/unprivileged_userns_clone") == "0" {
        "allow them: sysctl -w kernel.unprivileged_userns_clone=1"
    } else if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "allow them: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give this program an AppArmor \
         profile with `userns,`"
    } else {
        "inside a container, the outer engine must allow them (docker: --security-opt seccomp=unconfined)"
    };
    let text = format!("cannot be made: {refused}");
    if is_real_root() { Finding::note(CHECK, text, cure) } else { Finding::problem(CHECK, text, cure) }
}

fn ranges() -> Finding {
    const CHECK: &str = "subordinate IDs";
    if is_real_root() {
        return Finding::ok(CHECK, "root needs none");
    }
    if detect() == Identity::Mapped {
        return Finding::ok(CHECK, "this user namespace has a range of IDs");
    }
    let uid = rustix::process::geteuid().as_raw();
    let name = user_name(uid);
    let [uids, gids] =
        ["/etc/subuid", "/etc/subgid"].map(|f| subordinate(Path::new(f), name.as_deref(), uid));
    let who = name.unwrap_or_else(|| uid.to_string());
    let (Some(uids), Some(gids)) = (uids, gids) else {
        return Finding::note(
            CHECK,
            "this user has none: containers have one ID, and remember other owners of files",
            format!(
                "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {who}, if programs need several"
            ),
        );
    };
    for program in ["newuidmap", "newgidmap"] {
        let Some(path) = on_path(program).next() else {
            return Finding::note(
                CHECK,
                format!("{program} is missing, which hands them out"),
                "install the package uidmap",
            );
        };
        let setuid = fs::metadata(&path).is_ok_and(|m| m.permissions().mode() & 0o6000 != 0);
        let mut capability = [0u8; 24];
        let capable = rustix::fs::getxattr(&path, "security.capability", &mut capability[..]).is_ok();
        if !setuid && !capable {
            return Finding::note(
                CHECK,
                format!("{} has neither a setuid bit nor capabilities", path.display()),
                "install the package uidmap again",
            );
        }
    }
    let few = uids.count.min(gids.count);
    if few < 65_536 {
        return Finding::note(
            CHECK,
            format!("only {few}: files of other owners do not unpack as they are"),
            format!("give {who} 65536 in /etc/subuid and /etc/subgid"),
        );
    }
    Finding::ok(
        CHECK,
        format!("{} from {}, and {} groups from {}", uids.count, uids.first, gids.count, gids.first),
    )
}

fn idmapped() -> Finding {
    const CHECK: &str = "idmapped mounts";
    if !is_real_root() {
        return Finding::ok(CHECK, "for root only; nothing here needs them");
    }
    match probe::idmapped_mount() {
        Ok(()) => Finding::ok(CHECK, "work"),
        Err(e) => Finding::note(
            CHECK,
            format!("do not work: {e}"),
            "containers with a user namespace of their own want Linux 5.12 and a file system that supports them \
             (ext4, xfs, btrfs, tmpfs)",
        ),
    }
}

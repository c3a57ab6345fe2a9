//! What the flags of an action say, taken together: some imply others, some exclude each other, and some are refused.

use std::path::PathBuf;

use isles_spec::SeccompChoice;

use crate::action_flags as flags;
use crate::failure::Failure;
use crate::flag::Flag;
use crate::network::Network;
use crate::parse::Values;
use crate::site::Site;
use crate::talk::Talk;

/// The walls and the comforts that were asked for.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// An instance whose first process is the container's own `/sbin/init`.
    pub boot: bool,
    pub contain: bool,
    pub clean_env: bool,
    pub pid: bool,
    pub ipc: bool,
    pub uts: bool,
    pub userns: bool,
    pub network: Network,
    pub fakeroot: bool,
    pub writable: bool,
    pub writable_tmpfs: bool,
    pub no_init: bool,
    pub no_umask: bool,
    pub no_eval: bool,
    pub no_mount: Vec<String>,
    pub seccomp: Option<PathBuf>,
    /// `--security uid:` and `gid:`
    pub uid: Option<u32>,
    pub gids: Vec<u32>,
    /// /dev has only what every program expects, whatever else is shown.
    pub minimal_dev: bool,
    pub site: Site,
}

/// What `--no-mount` knows beside paths.
const MOUNTS: [&str; 9] = ["proc", "sys", "dev", "devpts", "home", "tmp", "hostfs", "cwd", "bind-paths"];

/// Flags that are refused, and what can be done instead.
const REFUSED: [(&Flag, &str); 3] = [
    (&flags::DMTCP_LAUNCH, "programs can save their state inside of the container"),
    (&flags::DMTCP_RESTART, "programs can save their state inside of the container"),
    (&flags::NVCCLI, "--nv finds the driver without nvidia-container-cli, and --device takes CDI names"),
];

impl Settings {
    /// Reads the flags. `root` says who calls.
    pub fn read(values: &Values, root: bool, talk: &Talk) -> Result<Settings, Failure> {
        for (flag, instead) in REFUSED {
            if values.has(flag) && values.text(flag) != Some("false") {
                return Err(Failure::unsupported(format!("--{}", flag.name), instead));
            }
        }
        for flag in [&flags::ALLOW_SETUID, &flags::KEEP_PRIVS, &flags::BOOT] {
            if values.is(flag) && !root {
                let name = flag.name;
                return Err(Failure::new(format!(
                    "Could not configure --{name}: --{name} requires root privileges"
                )));
            }
        }
        let is = |flag| values.is(flag);
        let (compat, boot) = (is(&flags::COMPAT), is(&flags::BOOT));
        let all = compat || is(&flags::CONTAINALL);
        let mut out = Settings {
            boot,
            contain: all || boot || is(&flags::CONTAIN),
            clean_env: all || is(&flags::CLEANENV),
            // Programs that serve mounts end with it.
            pid: (all || is(&flags::PID) || !values.list(&flags::FUSEMOUNT).is_empty())
                && !is(&flags::NO_PID),
            ipc: all || is(&flags::IPC),
            uts: is(&flags::UTS) || boot || values.word(&flags::HOSTNAME).is_some(),
            userns: is(&flags::USERNS) && !is(&flags::IGNORE_USERNS),
            network: Network::of(values, boot, talk)?,
            fakeroot: is(&flags::FAKEROOT),
            writable: is(&flags::WRITABLE),
            writable_tmpfs: compat || is(&flags::WRITABLE_TMPFS),
            no_init: compat || is(&flags::NO_INIT),
            no_umask: compat || is(&flags::NO_UMASK),
            no_eval: compat || is(&flags::NO_EVAL),
            ..Settings::default()
        };
        if out.writable && out.writable_tmpfs {
            talk.warning("Disabling --writable-tmpfs flag, mutually exclusive with --writable");
            out.writable_tmpfs = false;
        }
        for word in values.list(&flags::NO_MOUNT) {
            if !MOUNTS.contains(&word.as_str()) && !word.starts_with('/') {
                talk.warning(&format!("Ignoring unknown mount type '{word}'"));
            } else {
                out.no_mount.push(word.clone());
            }
        }
        for option in values.list(&flags::SECURITY) {
            out.security(option)?;
        }
        Ok(out)
    }

    /// What the site wants otherwise than the caller.
    pub fn of_site(mut self, site: Site, talk: &Talk) -> Settings {
        for what in ["proc", "sys", "home", "tmp"] {
            if !site.is(&format!("mount {what}")) {
                self.no_mount.push(what.to_owned());
            }
        }
        match site.one("mount dev") {
            "no" => self.no_mount.push("dev".to_owned()),
            "minimal" => self.minimal_dev = true,
            _ => {}
        }
        for (what, on) in [("pid", &mut self.pid), ("ipc", &mut self.ipc), ("uts", &mut self.uts)] {
            if *on && !site.is(&format!("allow {what} ns")) {
                talk.warning(&format!(
                    "{} namespace disabled by configuration, it is shared with the host",
                    what.to_uppercase()
                ));
                *on = false;
            }
        }
        self.site = site;
        self
    }

    fn security(&mut self, option: &str) -> Result<(), Failure> {
        let (name, value) = option.split_once(':').unwrap_or((option, ""));
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| {
                Failure::new(format!("failed to parse provided {}: '{text}'", name.to_uppercase()))
            })
        };
        match name {
            "seccomp" if !value.is_empty() => self.seccomp = Some(value.into()),
            "uid" => self.uid = Some(number(value)?),
            "gid" => self.gids = value.split(':').map(number).collect::<Result<_, _>>()?,
            "apparmor" | "selinux" => {
                return Err(Failure::unsupported(
                    format!("--security {name}"),
                    "leave it out: the label of the caller is kept",
                ));
            }
            _ => {
                return Err(Failure::new(format!("unknown security option '{option}'"))
                    .with_hint("known are uid:N, gid:N[:N] and seccomp:PROFILE"));
            }
        }
        Ok(())
    }

    /// Whether something that is mounted by default stays out.
    pub fn without(&self, what: &str) -> bool {
        self.no_mount.iter().any(|word| word == what)
            || what.starts_with('/') && self.no_mount.iter().any(|word| word == "bind-paths")
    }

    pub fn seccomp(&self) -> SeccompChoice {
        self.seccomp.clone().map_or(SeccompChoice::Unconfined, SeccompChoice::Profile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::talk::Level;

    fn read(list: &[(&Flag, &str)], root: bool) -> Result<Settings, Failure> {
        let mut values = Values::default();
        for (flag, value) in list {
            values.set(flag, value).unwrap();
        }
        Settings::read(&values, root, &Talk::new(Level::Fatal, false))
    }

    #[test]
    fn flags_imply_others() {
        let s = read(&[(&flags::CONTAINALL, "true")], false).unwrap();
        assert!(s.contain && s.clean_env && s.pid && s.ipc && !s.no_eval && !s.writable_tmpfs);
        let s = read(&[(&flags::COMPAT, "true"), (&flags::NO_PID, "true")], false).unwrap();
        assert!(s.contain && s.no_eval && s.no_init && s.no_umask && s.writable_tmpfs && !s.pid);
        let s = read(&[(&flags::CONTAIN, "true")], false).unwrap();
        assert!(s.contain && !s.clean_env && !s.pid);
        let s = read(&[(&flags::WRITABLE, "true"), (&flags::WRITABLE_TMPFS, "true")], false).unwrap();
        assert!(s.writable && !s.writable_tmpfs);
        assert!(read(&[(&flags::HOSTNAME, "x")], false).unwrap().uts);
        assert!(read(&[(&flags::FUSEMOUNT, "host:x /y")], false).unwrap().pid);
        let s = read(&[(&flags::NO_MOUNT, "tmp,moon,/etc/hosts")], false).unwrap();
        assert!(
            s.without("tmp") && s.without("/etc/hosts") && !s.without("moon") && !s.without("/etc/localtime")
        );
        assert!(read(&[(&flags::NO_MOUNT, "bind-paths")], false).unwrap().without("/etc/hosts"));
    }

    #[test]
    fn the_site_has_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.conf");
        std::fs::write(&file, "mount tmp = no\nmount dev = minimal\nallow pid ns = no\n").unwrap();
        let site = Site::load(Some(&file)).unwrap();
        let s = read(&[(&flags::CONTAINALL, "true")], false).unwrap();
        let s = s.of_site(site, &Talk::new(Level::Fatal, false));
        assert!(s.without("tmp") && !s.without("home") && s.minimal_dev && !s.pid && s.ipc);
    }

    #[test]
    fn what_is_refused_is_named() {
        for (list, word) in [
            (&[(&flags::NVCCLI, "true")][..], "--nvccli"),
            (&[(&flags::BOOT, "true")], "--boot requires root privileges"),
            (&[(&flags::ALLOW_SETUID, "true")], "requires root privileges"),
            (&[(&flags::SECURITY, "apparmor:x")], "apparmor"),
            (&[(&flags::SECURITY, "uid:x")], "UID"),
            (&[(&flags::SECURITY, "moon")], "'moon'"),
        ] {
            let failure = read(list, false).unwrap_err();
            assert!(failure.message.contains(word), "{word}: {}", failure.message);
            assert_eq!(failure.code, None, "255");
        }
        assert!(read(&[(&flags::KEEP_PRIVS, "true")], true).is_ok());
        let s = read(&[(&flags::BOOT, "true")], true).unwrap();
        assert!(s.boot && s.contain && s.uts && s.network.is_own());
        let s = read(&[(&flags::SECURITY, "uid:5,gid:6:7,seccomp:/p.json")], true).unwrap();
        assert_eq!((s.uid, s.gids, s.seccomp), (Some(5), vec![6, 7], Some("/p.json".into())));
    }
}

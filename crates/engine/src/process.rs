//! What a container runs: the caller's wishes over the image's configuration, as Docker merges them.

use std::path::PathBuf;

use isles_spec::image::ContainerConfig;
use isles_spec::{Pod, Workload};

use crate::error::{Error, Result};

/// Where programs are looked for when neither image nor caller says (Docker's default).
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The words of the process: the entrypoint and then the command. An entrypoint of the caller's own
/// leaves the image's command out.
pub fn argv(workload: &Workload, image: &ContainerConfig) -> Result<Vec<String>> {
    let (entrypoint, image_command) = match &workload.entrypoint {
        Some(own) => (own.as_slice(), &[][..]),
        None => (image.entrypoint.as_deref().unwrap_or_default(), image.cmd.as_deref().unwrap_or_default()),
    };
    let command = if workload.command.is_empty() { image_command } else { &workload.command };
    let argv: Vec<String> = entrypoint.iter().chain(command).cloned().collect();
    // The owner of a pod's namespaces has no program.
    let is_owner = matches!(workload.pod, Some(Pod::Owner(_)));
    if argv.is_empty() && !is_owner { Err(Error::NoCommand) } else { Ok(argv) }
}

/// Variables in the order of their first mention; a later value replaces an earlier one, and a later
/// name without a value removes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(Vec<String>);

impl Environment {
    /// Sets `NAME=value`, or removes `NAME`.
    pub fn apply(&mut self, entry: &str) {
        let name = entry.split_once('=').map_or(entry, |(name, _)| name);
        let place = self.0.iter().position(|e| e.split_once('=').is_some_and(|(n, _)| n == name));
        match (place, entry.contains('=')) {
            (Some(at), true) => entry.clone_into(&mut self.0[at]),
            (None, true) => self.0.push(entry.to_owned()),
            (Some(at), false) => {
                self.0.remove(at);
            }
            (None, false) => {}
        }
    }

    /// Sets `name` where nobody did.
    pub fn add(&mut self, name: &str, value: &str) {
        if self.get(name).is_none() {
            self.0.push(format!("{name}={value}"));
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find_map(|e| e.split_once('=').filter(|(n, _)| *n == name).map(|(_, v)| v))
    }

    pub fn into_vec(self) -> Vec<String> {
        self.0
    }
}

/// The environment of the process, before HOME is known.
pub fn environment(workload: &Workload, image: &ContainerConfig, hostname: &str) -> Environment {
    let mut env = Environment::default();
    if workload.bare_env {
        workload.env.iter().for_each(|entry| env.apply(entry));
        return env;
    }
    env.apply(&format!("PATH={DEFAULT_PATH}"));
    env.apply(&format!("HOSTNAME={hostname}"));
    if workload.tty {
        env.apply("TERM=xterm");
    }
    for entry in image.env.iter().chain(&workload.env) {
        env.apply(entry);
    }
    env
}

/// Where the process starts.
pub fn working_dir(workload: &Workload, image: &ContainerConfig) -> PathBuf {
    match &workload.working_dir {
        Some(dir) => dir.clone(),
        None if image.working_dir.is_empty() => "/".into(),
        None => crate::view::absolute(image.working_dir.as_ref()),
    }
}

/// Whether a process catches, ignores or blocks a signal, rather than leaving it to the kernel
/// (proc_pid_status(5)).
pub fn minds(pid: i32, signal: i32) -> bool {
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return true };
    let set = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    let minded = ["SigCgt:", "SigIgn:", "SigBlk:"].map(|name| set(name).unwrap_or(u64::MAX));
    minded.iter().any(|set| set & (1 << (signal - 1)) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn entrypoint_and_command() {
        for (image, own_entrypoint, command, expected) in [
            (("", "sh"), None, "", "sh"),
            (("", "sh"), None, "ls -l", "ls -l"),
            (("init", "a b"), None, "", "init a b"),
            (("init", "a b"), None, "c", "init c"),
            (("init", "a b"), Some("own"), "", "own"),
            (("init", "a b"), Some("own"), "x", "own x"),
            (("init", "a b"), Some(""), "x", "x"),
        ] {
            let config = ContainerConfig {
                entrypoint: Some(words(image.0)),
                cmd: Some(words(image.1)),
                ..Default::default()
            };
            let workload = Workload {
                entrypoint: own_entrypoint.map(words),
                command: words(command),
                ..Default::default()
            };
            assert_eq!(argv(&workload, &config).unwrap(), words(expected));
        }
        assert!(matches!(argv(&Workload::default(), &ContainerConfig::default()), Err(Error::NoCommand)));
    }

    #[test]
    fn later_variables_win_and_bare_names_remove() {
        let image = ContainerConfig { env: words("PATH=/bin A=1 B=2"), ..Default::default() };
        let workload = Workload { env: words("B=3 A C=x=y C=z"), tty: true, ..Default::default() };
        let env = environment(&workload, &image, "h");
        assert_eq!(env.into_vec(), ["PATH=/bin", "HOSTNAME=h", "TERM=xterm", "B=3", "C=z"]);
        let bare = Workload { bare_env: true, ..workload };
        assert_eq!(environment(&bare, &image, "h").into_vec(), ["B=3", "C=z"]);
    }

    #[test]
    fn working_directories() {
        let image = ContainerConfig { working_dir: "app".into(), ..Default::default() };
        assert_eq!(working_dir(&Workload::default(), &image), PathBuf::from("/app"));
        let own = Workload { working_dir: Some("/w".into()), ..Default::default() };
        assert_eq!(working_dir(&own, &image), PathBuf::from("/w"));
    }
}

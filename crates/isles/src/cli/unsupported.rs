//! Options of docker's client that this program does not have, each with what to do instead: whoever types one is told
//! more than that it is unknown. A test holds this table, and the command line, against the client that is installed.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::failure::Failure;

const WINDOWS: &str = "it is for containers of Windows";
const SWARM: &str = "it is for swarms, which there are none of here; leave it out";
const REALTIME: &str = "there are no limits for real-time scheduling; --ulimit rtprio=N allows it";
const TRUST: &str = "signatures of this kind are not read; leave it out, or name the image by its digest";
const LEGACY_LINK: &str = "links are not supported; containers of one network know each other by name";
const GROUP: &str = "Isles chooses the control group; the group that the command is in bounds it as well";
const BUILD_LIMITS: &str =
    "steps of a build have no limits of their own; run the build in a control group that has them";
const ADDRESSES: &str = "addresses are given by Isles: see --subnet, --gateway and --ip-range";

/// Commands (a space before and behind each), the option, and what to do.
const TABLE: &[(&str, &str, &str)] = &[
    (
        " run create ",
        "--annotation",
        "annotations go to a runtime of its own, and there is none; use --label",
    ),
    (" run create ", "--cgroup-parent", GROUP),
    (" run create ", "--cpu-count", WINDOWS),
    (" run create ", "--cpu-percent", WINDOWS),
    (" run create update ", "--cpu-rt-period", REALTIME),
    (" run create update ", "--cpu-rt-runtime", REALTIME),
    (" run create ", "--device-cgroup-rule", "name the devices with --device PATH:PATH:rwm"),
    (" run create pull push build ", "--disable-content-trust", TRUST),
    (" run create ", "--domainname", "give the whole name with --hostname"),
    (" run create ", "--io-maxbandwidth", WINDOWS),
    (" run create ", "--io-maxiops", WINDOWS),
    (" run create build ", "--isolation", WINDOWS),
    (
        " run create update ",
        "--kernel-memory",
        "the kernel has no such limit any more; --memory counts its memory, too",
    ),
    (
        " run create network-connect ",
        "--link-local-ip",
        "choose an address of the network with --ip or --ip6",
    ),
    (" run create ", "--runtime", "Isles is the runtime; `isles oci` is one for others"),
    (
        " run create ",
        "--storage-opt",
        "there is no quota for what a container writes; --writable-tmpfs bounds it by memory",
    ),
    (" run create ", "--use-api-socket", "mount the socket with -v"),
    (" run create ", "--volume-driver", "volumes have the driver local; see `isles volume create --opt`"),
    (" network-create ", "--attachable", SWARM),
    (" network-create ", "--ingress", SWARM),
    (" network-create ", "--scope", SWARM),
    (" network-create ", "--config-from", SWARM),
    (" network-create ", "--config-only", SWARM),
    (" network-create ", "--aux-address", ADDRESSES),
    (" network-create ", "--ipam-driver", ADDRESSES),
    (" network-create ", "--ipam-opt", ADDRESSES),
    (" network-create ", "--ipv4", "a network has IPv4 in any case"),
    (" network-connect ", "--driver-opt", "say it of the network, with `isles network create --opt`"),
    (" network-connect ", "--gw-priority", "the first network of a container has its route to the world"),
    (" rm ", "--link", LEGACY_LINK),
    (" network-inspect ", "--verbose", SWARM),
    (" volume-create ", "--availability", SWARM),
    (" volume-create ", "--group", SWARM),
    (" volume-create ", "--limit-bytes", SWARM),
    (" volume-create ", "--required-bytes", SWARM),
    (" volume-create ", "--scope", SWARM),
    (" volume-create ", "--secret", SWARM),
    (" volume-create ", "--sharing", SWARM),
    (" volume-create ", "--topology-preferred", SWARM),
    (" volume-create ", "--topology-required", SWARM),
    (" volume-create ", "--type", SWARM),
    (" volume-ls ", "--cluster", SWARM),
    (" update ", "--cpu-period", "use --cpus, which is the quota in a period of 100 ms"),
    (" update ", "--cpu-quota", "use --cpus, which is the quota in a period of 100 ms"),
    (" update ", "--memory-reservation", "it is given when the container is made, with `isles create`"),
    (" inspect ", "--size", "`isles ps --size` tells how much a container has written"),
    (
        " start ",
        "--checkpoint",
        "there are no checkpoints; `isles commit` keeps files, `isles pause` processes",
    ),
    (
        " start ",
        "--checkpoint-dir",
        "there are no checkpoints; `isles commit` keeps files, `isles pause` processes",
    ),
    (" images ", "--tree", "`isles inspect` shows the platforms of an image"),
    (" pull push ", "--all-tags", "name each tag"),
    (" build ", "--cgroup-parent", GROUP),
    (" build ", "--compress", "nothing is sent anywhere, so there is nothing to compress"),
    (" build ", "--cpu-period", BUILD_LIMITS),
    (" build ", "--cpu-quota", BUILD_LIMITS),
    (" build ", "--cpu-shares", BUILD_LIMITS),
    (" build ", "--cpuset-cpus", BUILD_LIMITS),
    (" build ", "--cpuset-mems", BUILD_LIMITS),
    (" build ", "--memory", BUILD_LIMITS),
    (" build ", "--memory-swap", BUILD_LIMITS),
    (" build ", "--force-rm", "containers of steps are removed in any case; leave it out"),
    (" build ", "--rm", "containers of steps are removed in any case; leave it out"),
    (" build ", "--security-opt", "steps that need rights name them in the recipe: RUN --security=insecure"),
    (" build ", "--squash", "join commands to one RUN, or copy the result to a last stage"),
    (" rmi ", "--no-prune", "layers that no image needs are kept until `isles prune`"),
    (" rmi load history ", "--platform", "name the image by the digest of the platform's manifest"),
];

/// Short options of docker's for those in the table.
const SHORT: &[(&str, &str, &str)] = &[
    (" inspect ", "-s", "--size"),
    (" rm ", "-l", "--link"),
    (" pull push ", "-a", "--all-tags"),
    (" build ", "-c", "--cpu-shares"),
    (" build ", "-m", "--memory"),
    (" network-inspect ", "-v", "--verbose"),
];

/// What is said of an option that clap does not know, where docker's client does. `command` has a dash between its words.
pub fn hint(command: &str, option: &str) -> Option<&'static str> {
    let option = option.split('=').next().unwrap_or(option);
    let command = format!(" {command} ");
    let short = SHORT.iter().find(|(of, name, _)| *name == option && of.contains(&command));
    let option = short.map_or(option, |(.., long)| long);
    TABLE.iter().find(|(of, name, _)| *name == option && of.contains(&command)).map(|(.., hint)| *hint)
}

/// The failure that clap's stands for, where the option is in the table.
pub fn failure(words: &[std::ffi::OsString], error: &clap::Error) -> Option<Failure> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    let option = option.split('=').next().unwrap_or(option);
    let (first, rest) = super::meant(words)?;
    let second = rest.first().and_then(|word| word.to_str()).unwrap_or_default();
    let hint = hint(first, option).or_else(|| hint(&format!("{first}-{second}"), option))?;
    Some(Failure::new(format!("docker's option {option} is not supported here")).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;
    use std::process::Command;

    /// What both programs have, by docker's words.
    const COMMANDS: &str = "run create exec ps logs stats update events inspect cp commit diff export import kill pause \
        port rename restart rm start stop top unpause wait attach images pull push build tag rmi save load login logout \
        history search info container-prune image-prune system-df system-events system-info system-prune network-create network-connect network-disconnect network-ls network-inspect network-prune \
        network-rm volume-create volume-ls volume-inspect volume-prune volume-rm";

    /// The options that a help text of docker's lists, each with its short form, which may be empty.
    fn options(help: &str) -> Vec<(&str, &str)> {
        let lines = help.lines().filter_map(|line| {
            let line = line.trim_start();
            let (short, long) =
                line.split_once(", ").filter(|(short, _)| short.len() == 2).unwrap_or(("", line));
            let long = long.split_whitespace().next()?;
            (long.len() > 2 && long.starts_with("--")).then_some((short, long))
        });
        lines.filter(|(_, long)| *long != "--help").collect()
    }

    fn ours(command: &str) -> clap::Command {
        let mut all = Cli::command();
        all.build();
        let mut found = &all;
        for word in command.split('-') {
            found = found.find_subcommand(word).unwrap_or_else(|| panic!("there is no command {command}"));
        }
        found.clone()
    }

    fn knows(command: &clap::Command, option: &str) -> bool {
        command.get_arguments().any(|argument| {
            let names = argument.get_long().into_iter().chain(argument.get_all_aliases().unwrap_or_default());
            names.into_iter().any(|name| option.strip_prefix("--") == Some(name))
        })
    }

    /// Whether the short form stands for the same as the long one.
    fn is_short_for(command: &clap::Command, short: &str, long: &str) -> bool {
        let letter = short.chars().nth(1);
        command.get_arguments().any(|argument| {
            let letters =
                argument.get_short().into_iter().chain(argument.get_all_short_aliases().unwrap_or_default());
            let names = argument.get_long().into_iter().chain(argument.get_all_aliases().unwrap_or_default());
            letters.into_iter().any(|own| Some(own) == letter)
                && names.into_iter().any(|name| long.strip_prefix("--") == Some(name))
        })
    }

    #[test]
    fn every_option_of_dockers_client_is_understood_or_refused_by_name() {
        if Command::new("docker").arg("--version").output().is_err() {
            println!("skip: docker's client is not installed");
            return;
        }
        let (mut seen, mut missing) = (0, Vec::new());
        for command in COMMANDS.split_whitespace() {
            let docker = Command::new("docker").args(command.split('-')).arg("--help").output().unwrap();
            let help = String::from_utf8(docker.stdout).unwrap();
            let ours = ours(command);
            for (short, option) in options(&help) {
                seen += 1;
                if !knows(&ours, option) && hint(command, option).is_none() {
                    missing.push(format!("{command} {option}"));
                }
                if short.is_empty() {
                    continue;
                }
                let known = is_short_for(&ours, short, option);
                // What is refused by its long name is by the other one as well.
                if !known && (knows(&ours, option) || hint(command, short).is_none()) {
                    missing.push(format!("{command} {short}, {option}"));
                }
            }
        }
        assert!(seen > 200, "only {seen} options were found in docker's help");
        assert_eq!(missing, <[String; 0]>::default());
    }

    #[test]
    fn dockers_groups_have_its_commands() {
        if Command::new("docker").arg("--version").output().is_err() {
            println!("skip: docker's client is not installed");
            return;
        }
        let mut all = Cli::command();
        all.build();
        for group in ["container", "image", "system", "volume", "network"] {
            let help = Command::new("docker").args([group, "--help"]).output().unwrap();
            let help = String::from_utf8(help.stdout).unwrap();
            let listed = help.split_once("Commands:\n").unwrap().1.split("\n\n").next().unwrap();
            let words = listed.lines().filter_map(|line| line.split_whitespace().next());
            let ours = all.find_subcommand(group).unwrap();
            let missing: Vec<&str> = words.filter(|word| ours.find_subcommand(word).is_none()).collect();
            assert_eq!(missing, <[&str; 0]>::default(), "{group}");
            let named = |word: &str| all.find_subcommand(word).is_some();
            for word in ours.get_subcommands().map(clap::Command::get_name) {
                let (meaning, taken) = crate::commands::group::meant(group, word);
                // A group's own command has no other name.
                assert!(taken == 1 || meaning == "prune" || named(meaning), "{group} {word}");
            }
        }
    }

    #[test]
    fn what_is_refused_is_not_there_and_is_said_with_a_hint() {
        for (commands, option, _) in TABLE.iter().chain(SHORT) {
            for command in commands.split_whitespace() {
                let of = ours(command);
                let letter = option.chars().nth(1).filter(|_| option.len() == 2);
                let taken = of.get_arguments().any(|a| letter.is_some() && a.get_short() == letter);
                assert!(!knows(&of, option) && !taken, "{command} has {option}");
                let words = ["isles"].into_iter().chain(command.split('-')).chain([*option, "x"]);
                let words: Vec<std::ffi::OsString> = words.map(Into::into).collect();
                let error = Cli::command().try_get_matches_from(&words).unwrap_err();
                let failure =
                    failure(&words, &error).unwrap_or_else(|| panic!("{command} {option}: {error}"));
                assert!(failure.message.contains(option) && failure.hint.is_some(), "{command} {option}");
            }
        }
    }
}

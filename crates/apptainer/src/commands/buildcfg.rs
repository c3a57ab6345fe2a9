//! `apptainer buildcfg`: where things are. Apptainer's are chosen when it is compiled; these are where they are found.

use std::path::Path;

use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::program::VERSION;
use crate::site;

pub static COMMAND: Command = Command {
    usage: "buildcfg [parameter]",
    short: "Output where this program has its parts",
    long: "What stands for a place of Apptainer's that this program does not have is left out.",
    examples: "apptainer buildcfg APPTAINER_CONF_FILE",
    hidden: true,
    arity: Arity::Between(0, 1),
    run,
    ..Command::EMPTY
};

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let program = std::env::current_exe().unwrap_or_default();
    let file = site::file(cx.config).unwrap_or_else(site::usual_file);
    let all = parameters(&program, &file);
    match cx.arguments {
        [name] => {
            let found = all.iter().find(|(known, _)| known == name);
            let (_, value) =
                found.ok_or_else(|| Failure::new(format!("no variable named {name:?}")).with_code(1))?;
            cx.print(format!("{value}\n"))?;
        }
        _ => cx.print(all.iter().map(|(name, value)| format!("{name}={value}\n")).collect::<String>())?,
    }
    Ok(0)
}

fn parameters(program: &Path, file: &Path) -> Vec<(&'static str, String)> {
    let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).display().to_string();
    let bin = folder(program);
    vec![
        ("PACKAGE_NAME", "apptainer".to_owned()),
        ("PACKAGE_VERSION", VERSION.to_owned()),
        ("PREFIX", folder(Path::new(&bin))),
        ("EXECPREFIX", folder(Path::new(&bin))),
        ("BINDIR", bin),
        ("SYSCONFDIR", "/etc".to_owned()),
        ("APPTAINER_CONFDIR", folder(file)),
        ("APPTAINER_CONF_FILE", file.display().to_string()),
        // No part of it is set-uid.
        ("APPTAINER_SUID_INSTALL", "0".to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let all = parameters(Path::new("/usr/bin/isles"), Path::new("/etc/apptainer/apptainer.conf"));
        let of = |name: &str| all.iter().find(|(known, _)| *known == name).unwrap().1.as_str();
        for (name, value) in [
            ("PREFIX", "/usr"),
            ("BINDIR", "/usr/bin"),
            ("APPTAINER_CONFDIR", "/etc/apptainer"),
            ("APPTAINER_SUID_INSTALL", "0"),
        ] {
            assert_eq!(of(name), value);
        }
    }
}

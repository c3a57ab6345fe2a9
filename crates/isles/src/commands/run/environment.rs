//! Variables of a container: of files, of options, and of the caller.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use isles_spec::Error as Spelling;

use super::Args;
use crate::failure::Failure;

/// Of files, then of options; a bare name is the caller's variable. Where the caller has none, a file's name does
/// nothing, and an option's takes away the image's. With `--here` the caller's own environment comes before all.
pub(super) fn environment(args: &Args) -> Result<Vec<String>, Failure> {
    /// What belongs to the host's system rather than to the user.
    const OF_HOST: [&str; 5] = ["PATH", "HOSTNAME", "PWD", "OLDPWD", "SHLVL"];
    let mut env = Vec::new();
    if args.here {
        for (name, value) in std::env::vars_os() {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else { continue };
            if !OF_HOST.contains(&name) && !name.starts_with("LD_") {
                env.push(format!("{name}={value}"));
            }
        }
    }
    for path in &args.env_file {
        read_env_file(path, &mut env)?;
    }
    for entry in &args.env {
        if !add_variable(entry, &mut env)? {
            env.push(entry.clone());
        }
    }
    Ok(env)
}

/// `false` for a bare name that the caller has no value of.
pub fn add_variable(entry: &str, env: &mut Vec<String>) -> Result<bool, Failure> {
    let name = entry.split('=').next().unwrap_or_default();
    if name.is_empty() {
        return Err(Spelling::new(format!("invalid environment variable '{entry}'"))
            .with_hint("write NAME=VALUE, or NAME to pass on the caller's")
            .into());
    }
    if entry.contains('=') {
        env.push(entry.to_owned());
    } else if let Ok(value) = std::env::var(name) {
        env.push(format!("{name}={value}"));
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// Docker's format: a variable a line, `#` begins a comment line, nothing is unquoted.
pub fn read_env_file(path: &Path, env: &mut Vec<String>) -> Result<(), Failure> {
    for_each_line(path, "variables", |number, line| {
        let name = line.split('=').next().unwrap_or_default();
        if name.contains(char::is_whitespace) || name.is_empty() {
            return Err(Failure::new(format!(
                "{}:{number}: variable '{name}' contains white space",
                path.display(),
            ))
            .with_hint("a line is NAME=VALUE or NAME, without spaces around the equals sign"));
        }
        add_variable(line, env).map(drop)
    })
}

/// Lines that say something, with their numbers.
pub(super) fn for_each_line(
    path: &Path,
    what: &str,
    mut each: impl FnMut(usize, &str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    const LONGEST: u64 = 16 << 20;
    let fail = |e: &io::Error| Failure::because(format!("cannot read {what} from '{}'", path.display()), e);
    let file = File::open(path).map_err(|e| fail(&e))?;
    for (number, line) in BufReader::new(io::Read::take(file, LONGEST)).lines().enumerate() {
        let line = line.map_err(|e| fail(&e))?;
        let line = line.trim_start_matches('\u{feff}').trim_start();
        if !line.is_empty() && !line.starts_with('#') {
            each(number + 1, line)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_variables() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# note\n\nA=1\n  B=x # kept\nNOT_SET_ANYWHERE_7\nC=\"q\"\n").unwrap();
        let mut env = Vec::new();
        read_env_file(&file, &mut env).unwrap();
        assert_eq!(env, ["A=1", "B=x # kept", "C=\"q\""]);
        std::fs::write(&file, "A B=1\n").unwrap();
        assert!(read_env_file(&file, &mut env).unwrap_err().message.contains("env:1"));
    }
}

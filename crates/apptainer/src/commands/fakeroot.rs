//! `apptainer config fakeroot`: ranges of subordinate IDs, which `--fakeroot` maps where a user has one.
//!
//! Specification: subuid(5), subgid(5). A line that begins with `!` is one that Apptainer has switched off; to all other
//! programs it is the line of a user that there is not. Both files are changed under the lock that useradd(8) takes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::caller::Caller;
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::text_file;

use super::config::replace;

static ADD: Flag = Flag::switch("add", "give a user a range of IDs").short('a');
static REMOVE: Flag = Flag::switch("remove", "take it away").short('r');
static ENABLE: Flag = Flag::switch("enable", "let a user have their range again").short('e');
static DISABLE: Flag = Flag::switch("disable", "switch a user's range off").short('d');

pub static COMMAND: Command = Command {
    usage: "fakeroot <option> <user>",
    short: "Edit the ranges of IDs in /etc/subuid and /etc/subgid (root only)",
    long: "Without a range --fakeroot works as well: all files in the container are then its root's.",
    examples: "apptainer config fakeroot --add ada",
    flags: &[&[&ADD, &REMOVE, &ENABLE, &DISABLE]],
    arity: Arity::Exactly(1),
    interspersed: true,
    run,
    ..Command::EMPTY
};

const FILES: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// The largest that is read.
const LIMIT: u64 = 16 << 20;
/// Where ranges begin, and how long they are, as useradd(8) has it.
const FIRST: u64 = 100_000;
const LENGTH: u64 = 65_536;
const END: u64 = 1 << 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Add,
    Remove,
    Enable,
    Disable,
}

fn run(cx: &Context<'_>) -> Result<u8, Failure> {
    let all = [
        (&ADD, Action::Add),
        (&REMOVE, Action::Remove),
        (&ENABLE, Action::Enable),
        (&DISABLE, Action::Disable),
    ];
    let wanted: Vec<Action> =
        all.iter().filter(|(flag, _)| cx.values.is(flag)).map(|(_, action)| *action).collect();
    let [action] = wanted[..] else {
        return Err(Failure::usage("you must specify one of --add, --remove, --enable or --disable"));
    };
    let user = cx.arguments[0].as_str();
    let uid = match Caller::named(user) {
        Some((uid, _)) => uid.to_string(),
        None if action == Action::Remove => user.to_owned(),
        None => return Err(Failure::new(format!("there is no user '{user}' in /etc/passwd"))),
    };
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::new("only root may change /etc/subuid and /etc/subgid"));
    }
    let mut locks = Vec::new();
    for path in FILES {
        locks.push(Lock::take(Path::new(path))?);
    }
    let mut texts = Vec::new();
    for path in FILES {
        let text = text_file::read(Path::new(path), LIMIT, "cannot read")?.unwrap_or_default();
        let text = edited(&text, user, &uid, action).map_err(|why| Failure::new(format!("{path}: {why}")))?;
        texts.push(text);
    }
    for (path, text) in FILES.iter().zip(texts) {
        replace(Path::new(path), &text).map_err(|e| Failure::because(format!("cannot write {path}"), &e))?;
    }
    Ok(0)
}

/// One of the two files after an action for a user, who may stand there by name or by ID.
fn edited(text: &str, user: &str, uid: &str, action: Action) -> Result<String, String> {
    let owner = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let is_on = |line: &&str| [user, uid].contains(&owner(line).as_str());
    let is_off = |line: &&str| owner(line).strip_prefix('!').is_some_and(|name| [user, uid].contains(&name));
    let (on, off) = (text.lines().any(|line| is_on(&line)), text.lines().any(|line| is_off(&line)));
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match action {
        Action::Enable if !on && !off => return Err(format!("{user} has no range; --add gives one")),
        Action::Disable | Action::Remove if !on && !off => return Err(format!("{user} has no range")),
        Action::Add if !on && !off => {
            let start = free(text).ok_or("there are no IDs left")?;
            lines.push(format!("{user}:{start}:{LENGTH}"));
        }
        Action::Add | Action::Enable => {
            for line in lines.iter_mut().filter(|line| is_off(&line.as_str())) {
                line.remove(0);
            }
        }
        Action::Disable => {
            for line in lines.iter_mut().filter(|line| is_on(&line.as_str())) {
                line.insert(0, '!');
            }
        }
        Action::Remove => lines.retain(|line| !is_on(&line.as_str()) && !is_off(&line.as_str())),
    }
    Ok(lines.iter().map(|line| format!("{line}\n")).collect())
}

/// The first range that is nobody's.
fn free(text: &str) -> Option<u64> {
    let mut taken: Vec<(u64, u64)> = text
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split(':').skip(1).map(|word| word.trim().parse::<u32>().ok());
            let (start, length) = (numbers.next()??, numbers.next()??);
            Some((start.into(), u64::from(start) + u64::from(length)))
        })
        .collect();
    taken.sort_unstable();
    let mut start = FIRST;
    for (from, to) in taken {
        if from >= start + LENGTH {
            break;
        }
        start = start.max(to);
    }
    (start + LENGTH < END).then_some(start)
}

/// The lock file beside one of the files, with the number of the process that holds it.
struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> Result<Lock, Failure> {
        let mut name = path.as_os_str().to_owned();
        name.push(".lock");
        let lock = PathBuf::from(name);
        let failed = |e: &io::Error| Failure::because(format!("cannot lock {}", path.display()), e);
        for _ in 0..2 {
            match File::options().write(true).create_new(true).open(&lock) {
                Ok(mut file) => {
                    let held = Lock(lock);
                    file.write_all(std::process::id().to_string().as_bytes()).map_err(|e| failed(&e))?;
                    return Ok(held);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    // Who was killed left theirs behind.
                    let holder = fs::read_to_string(&lock).unwrap_or_default();
                    let holder = holder.trim_matches(['\0', '\n', ' ']).parse::<u32>();
                    if !holder.is_ok_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                        break;
                    }
                    fs::remove_file(&lock).map_err(|e| failed(&e))?;
                }
                Err(e) => return Err(failed(&e)),
            }
        }
        Err(Failure::new(format!("somebody else is changing {}", path.display())).with_hint(format!(
            "try again; where nobody is, {} was left behind and can be removed",
            lock.display()
        )))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_ranges() {
        use Action::{Add, Disable, Enable, Remove};
        let one = "ada:100000:65536\n";
        for (text, action, after) in [
            ("", Add, Ok("bob:100000:65536\n")),
            (one, Add, Ok("ada:100000:65536\nbob:165536:65536\n")),
            ("a:165536:65536\nb:300000:10\n", Add, Ok("a:165536:65536\nb:300000:10\nbob:100000:65536\n")),
            ("a:100001:9\n", Add, Ok("a:100001:9\nbob:100010:65536\n")),
            ("bob:5:9\n", Add, Ok("bob:5:9\n")),
            ("# note\n!bob:5:9\n", Add, Ok("# note\nbob:5:9\n")),
            ("a:4294900000:9\na:100000:4294850000", Add, Err("there are no IDs left")),
            ("1001:5:9\nbobby:1:2\n", Disable, Ok("!1001:5:9\nbobby:1:2\n")),
            ("!1001:5:9\nbob:7:7\n", Enable, Ok("1001:5:9\nbob:7:7\n")),
            ("!bob:5:9\n", Disable, Ok("!bob:5:9\n")),
            ("!bob:5:9\n1001:7:7\nada:1:1", Remove, Ok("ada:1:1\n")),
            (one, Remove, Err("bob has no range")),
            (one, Enable, Err("bob has no range; --add gives one")),
        ] {
            let said = edited(text, "bob", "1001", action);
            assert_eq!(said.as_deref().map_err(String::as_str), after, "{action:?} {text:?}");
        }
    }

    #[test]
    fn one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("subuid");
        let held = Lock::take(&path).unwrap();
        assert!(Lock::take(&path).is_err());
        drop(held);
        // Of a process that is gone.
        fs::write(folder.path().join("subuid.lock"), "4294967295\0").unwrap();
        assert!(Lock::take(&path).is_ok());
    }
}

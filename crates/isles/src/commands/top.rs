//! `isles top`

use isles_engine::{Process, TICKS};
use isles_spec::time::rfc3339;

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::table::Table;

/// List the processes of a container, as the host sees them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles top web\n  isles top web -o pid,user,rss,args\n\nNo program is run for it; columns of ps(1) that are known: uid, user, pid, ppid, stat, tty, time, stime, rss, vsz, nlwp, comm, args."
)]
pub struct Args {
    /// Its name or ID.
    container: String,
    /// -ef (the default), aux, or -o with columns.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

const EF: &str = "user,pid,ppid,stime,tty,time,args";
const AUX: &str = "user,pid,vsz,rss,tty,stat,stime,time,args";

/// Prints them.
pub fn cmd_top(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let columns = columns(&args.options)?;
    let processes = cx.engine()?.processes(&args.container)?;
    let boot = boot_time();
    let headings: Vec<&'static str> = columns.iter().map(|column| heading(column)).collect();
    let mut table = Table::new(&headings);
    for process in &processes {
        table.row(columns.iter().map(|column| cell(process, column, boot)).collect());
    }
    cx.ui.bytes(table.to_string().as_bytes())?;
    Ok(Code::SUCCESS)
}

const KNOWN: [(&str, &str); 15] = [
    ("uid", "UID"),
    ("user", "USER"),
    ("pid", "PID"),
    ("ppid", "PPID"),
    ("stat", "STAT"),
    ("tty", "TTY"),
    ("time", "TIME"),
    ("stime", "STIME"),
    ("rss", "RSS"),
    ("vsz", "VSZ"),
    ("nlwp", "NLWP"),
    ("comm", "COMMAND"),
    ("args", "CMD"),
    ("cmd", "CMD"),
    ("command", "COMMAND"),
];

fn heading(column: &str) -> &'static str {
    KNOWN.iter().find(|(name, _)| *name == column).map_or("", |(_, heading)| heading)
}

fn columns(options: &[String]) -> Result<Vec<String>, Failure> {
    let words: Vec<&str> = options.iter().map(String::as_str).collect();
    let list = match words.as_slice() {
        [] | ["-ef"] => EF,
        ["aux" | "-aux"] => AUX,
        ["-o" | "-eo" | "o", list] => list,
        [one] if one.starts_with("-o") => &one[2..],
        _ => {
            return Err(Failure::new(format!("unknown options of ps: {}", options.join(" ")))
                .with_hint("known are -ef, aux and -o COLUMN,…"));
        }
    };
    let columns: Vec<String> = list.split(',').map(str::to_ascii_lowercase).collect();
    match columns.iter().find(|column| heading(column).is_empty()) {
        Some(unknown) => Err(Failure::new(format!("unknown column '{unknown}'"))
            .with_hint("'isles top --help' lists those that are known")),
        None => Ok(columns),
    }
}

fn cell(process: &Process, column: &str, boot: u64) -> String {
    match column {
        "uid" | "user" => process.uid.to_string(),
        "pid" => process.pid.to_string(),
        "ppid" => process.parent.to_string(),
        "stat" => process.state.to_string(),
        "tty" => terminal(process.terminal),
        "time" => {
            let seconds = process.ticks / TICKS;
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
        }
        "stime" => {
            let began = rfc3339((boot + process.began / TICKS).cast_signed());
            began.get(11..16).unwrap_or_default().to_owned()
        }
        "rss" => (process.resident >> 10).to_string(),
        "vsz" => (process.virtual_size >> 10).to_string(),
        "nlwp" => process.threads.to_string(),
        "comm" => process.name.clone(),
        _ => process.command.clone(),
    }
}

/// A terminal by its device number (proc_pid_stat(5)): those of containers are pseudo-terminals.
fn terminal(number: i32) -> String {
    const PSEUDO: i32 = 136;
    let (major, minor) = ((number >> 8) & 0xfff, (number & 0xff) | ((number >> 12) & 0xf_ff00));
    match number {
        0 => "?".into(),
        _ if (PSEUDO..PSEUDO + 8).contains(&major) => format!("pts/{}", minor + ((major - PSEUDO) << 8)),
        _ => format!("{major}:{minor}"),
    }
}

fn boot_time() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_ps() {
        let of = |text: &str| {
            columns(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).ok().map(|c| c.join(","))
        };
        assert_eq!(of("").as_deref(), Some(EF));
        assert_eq!(of("aux").as_deref(), Some(AUX));
        assert_eq!(of("-o PID,args").as_deref(), Some("pid,args"));
        assert_eq!(of("-opid").as_deref(), Some("pid"));
        for bad in ["-o color", "-x", "-o pid x", "-o"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }

    #[test]
    fn terminals() {
        for (number, name) in
            [(0, "?"), (136 << 8 | 3, "pts/3"), (137 << 8 | 1, "pts/257"), (4 << 8 | 1, "4:1")]
        {
            assert_eq!(terminal(number), name);
        }
    }
}

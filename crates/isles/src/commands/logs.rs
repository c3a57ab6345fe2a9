//! `isles logs`

use std::collections::BTreeMap;
use std::io::{self, Write};

use isles_engine::log::{AnyReader, Selection};
use isles_spec::quantity::parse_duration;
use isles_spec::time::parse_rfc3339_nanoseconds;
use isles_spec::{Error as Spelling, LogDriver};

use crate::context::Context;
use crate::failure::{Code, Failure};

/// Print what a container in the background has printed.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  isles logs web\n  isles logs -f --tail 20 web\n  isles logs --since 10m --timestamps web\n\nTimes are RFC 3339, seconds since 1970 with decimals, or a duration such as 1h30m before now."
)]
pub struct Args {
    /// Go on with what it prints from now on.
    #[arg(short, long)]
    follow: bool,
    /// Only what it printed since then.
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what it printed until then.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Only so many of the last lines; all for all.
    #[arg(short = 'n', long, value_name = "NUMBER", default_value = "all", allow_hyphen_values = true)]
    tail: String,
    /// Print the time before each line.
    #[arg(short, long)]
    timestamps: bool,
    /// Print what goes along with each line: labels and variables of --log-opt.
    #[arg(long)]
    details: bool,
    /// Its name or ID.
    container: String,
}

/// Prints them as they came: standard output there, standard error there.
pub fn cmd_logs(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let now = isles_engine::now();
    let time = |text: &Option<String>| text.as_deref().map(|text| time(text, now)).transpose();
    let selection = Selection {
        since: time(&args.since)?,
        until: time(&args.until)?,
        tail: match args.tail.as_str() {
            "all" | "-1" | "" => None,
            // Docker takes what is no number for all.
            number => Some(number.parse().map_err(|_| {
                Spelling::new(format!("invalid number of lines '{number}'"))
                    .with_hint("write a number, or all")
            })?),
        },
        follow: args.follow,
    };
    let found = engine.find(&args.container)?;
    if found.record.workload.log.driver == LogDriver::None {
        return Err(Failure::new(format!("container {} keeps no log", args.container))
            .with_hint("it was made with --log-driver none"));
    }
    let state = &found.state;
    let folder = engine.folder_of(&found.record.id)?;
    if state.started.is_some() && !state.detached && !folder.join("log").exists() {
        let name = args.container.clone();
        return Err(isles_engine::Error::HasNoStreams { name, doing: "reading the log of" }.into());
    }
    let lives = || engine.is_alive(&found.record.id);
    let failed = |e: io::Error| Failure::because(format!("cannot read the log of {}", args.container), &e);
    let mut reader = AnyReader::open(&found.record, &folder, selection, &lives).map_err(failed)?;
    let mut stdout = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let mut stderr = io::stderr().lock();
    loop {
        let entry = match reader.next_ready().map_err(failed)? {
            Some(entry) => Some(entry),
            None => {
                // Who follows wants to see what there is.
                if !written(stdout.flush())? {
                    return Ok(Code::SUCCESS);
                }
                reader.next_entry().map_err(failed)?
            }
        };
        let Some(entry) = entry else { break };
        let mut before = Vec::new();
        if args.timestamps {
            before.extend_from_slice(entry.time.as_bytes());
            before.push(b' ');
        }
        if args.details {
            before.extend_from_slice(details(&entry.attributes).as_bytes());
            before.push(b' ');
        }
        let done = match entry.stream.is_stderr() {
            true => {
                stdout.flush().and_then(|()| stderr.write_all(&[&before, entry.text.as_slice()].concat()))
            }
            false => stdout.write_all(&before).and_then(|()| stdout.write_all(&entry.text)),
        };
        if !written(done)? {
            return Ok(Code::SUCCESS);
        }
    }
    written(stdout.flush())?;
    Ok(Code::SUCCESS)
}

/// As docker prints them: in their order, with what could be taken for another one written as in a query of a URL.
fn details(attributes: &BTreeMap<String, String>) -> String {
    let quoted = |text: &str| {
        let mut out = String::with_capacity(text.len());
        for byte in text.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte.into()),
                b' ' => out.push('+'),
                other => out.push_str(&format!("%{other:02X}")),
            }
        }
        out
    };
    let all: Vec<String> = attributes.iter().map(|(k, v)| format!("{}={}", quoted(k), quoted(v))).collect();
    all.join(",")
}

/// `false` where nobody reads any more.
fn written(done: io::Result<()>) -> Result<bool, Failure> {
    match done {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Failure::because("cannot print", &e)),
    }
}

/// Nanoseconds since 1970.
pub fn time(text: &str, now: u64) -> Result<u64, Failure> {
    const SECOND: f64 = 1e9;
    if let Some(time) = parse_rfc3339_nanoseconds(text) {
        return Ok(time);
    }
    // Docker fills up what is left out.
    if let Some(time) = ["Z", ":00Z", "T00:00:00Z"]
        .iter()
        .find_map(|rest| parse_rfc3339_nanoseconds(&format!("{text}{rest}")))
    {
        return Ok(time);
    }
    if let Some(seconds) = text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
        return Ok((seconds * SECOND) as u64);
    }
    if let Ok(before) = parse_duration(text) {
        return Ok(now.saturating_sub(u64::try_from(before.as_nanos()).unwrap_or(u64::MAX)));
    }
    Err(Spelling::new(format!("invalid time '{text}'"))
        .with_hint("write 2026-01-31T12:00:00Z, seconds since 1970, or a duration such as 10m")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_along() {
        let all = [("b", "x y"), ("a", "1=2,3"), ("é", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(details(&all.into()), "a=1%3D2%2C3,b=x+y,%C3%A9=");
        assert_eq!(details(&BTreeMap::new()), "");
    }

    #[test]
    fn times() {
        const NOW: u64 = 1_000_000_000_000_000_000;
        for (text, expected) in [
            ("1970-01-01T00:00:01Z", Some(1_000_000_000)),
            ("1970-01-01T00:00:01.5Z", Some(1_500_000_000)),
            ("1970-01-01T00:00:01", Some(1_000_000_000)),
            ("1970-01-02", Some(86_400_000_000_000)),
            ("1.25", Some(1_250_000_000)),
            ("10m", Some(NOW - 600_000_000_000)),
            ("yesterday", None),
            ("-1", None),
        ] {
            assert_eq!(time(text, NOW).ok(), expected, "{text}");
        }
    }
}

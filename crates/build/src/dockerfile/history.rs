//! How instructions read in an image's history: BuildKit's wording, since tools look for it.

use isles_spec::image::Healthcheck;

use super::syntax::quote;

/// What BuildKit adds to an instruction that made a layer with a program or with files.
const MARK: &str = " # buildkit";

/// `RUN |1 A=b /bin/sh -c make # buildkit`.
pub fn run(prefix: &str, argv: &[String]) -> String {
    format!("RUN {prefix}{}{MARK}", argv.join(" "))
}

/// `COPY --chown=1 a b /c/ # buildkit`.
pub fn copy(keyword: &str, flags: &[(&str, Option<&str>)], words: &[String]) -> String {
    let mut out = keyword.to_owned();
    for (flag, value) in flags {
        match value {
            Some(value) => out.push_str(&format!(" --{flag}={value}")),
            None => out.push_str(&format!(" --{flag}")),
        }
    }
    format!("{out} {}{MARK}", words.join(" "))
}

/// `ENV A=1 B=2`, and LABEL alike.
pub fn pairs(keyword: &str, pairs: &[(String, String)]) -> String {
    pairs.iter().fold(keyword.to_owned(), |out, (name, value)| format!("{out} {name}={value}"))
}

/// `CMD ["/bin/sh" "-c" "x"]`, as Go prints a list of quoted words.
pub fn quoted(keyword: &str, words: &[String]) -> String {
    format!("{keyword} [{}]", words.iter().map(|w| quote(w)).collect::<Vec<_>>().join(" "))
}

/// `VOLUME [/a /b]`, as Go prints a list.
pub fn listed(keyword: &str, words: &[String]) -> String {
    format!("{keyword} [{}]", words.join(" "))
}

/// `HEALTHCHECK &{["CMD" "x"] "5s" …}`, as Go prints the structure.
pub fn healthcheck(check: &Healthcheck) -> String {
    let words: Vec<_> = check.test.iter().map(|w| quote(w)).collect();
    let times = [check.interval, check.timeout, check.start_period, check.start_interval];
    let times: Vec<_> = times.iter().map(|t| format!("\"{}\"", duration(*t))).collect();
    let retries = match u32::try_from(check.retries).ok().and_then(char::from_u32) {
        Some(c) if (' '..='~').contains(&c) && c != '\'' && c != '\\' => format!("'{c}'"),
        _ => match check.retries {
            7 => "'\\a'".into(),
            8 => "'\\b'".into(),
            9 => "'\\t'".into(),
            10 => "'\\n'".into(),
            11 => "'\\v'".into(),
            12 => "'\\f'".into(),
            13 => "'\\r'".into(),
            39 => "'\\''".into(),
            92 => "'\\\\'".into(),
            n => format!("'\\x{n:02x}'"),
        },
    };
    format!("HEALTHCHECK &{{[{}] {} {retries}}}", words.join(" "), times.join(" "))
}

/// Nanoseconds as Go's `time.Duration` prints them: `1h0m0s`, `1.5s`, `20ms`.
fn duration(nanos: u64) -> String {
    let decimal = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match nanos {
        0 => "0s".into(),
        n if n < 1_000 => format!("{n}ns"),
        n if n < 1_000_000 => format!("{}µs", decimal(n, 1_000)),
        n if n < 1_000_000_000 => format!("{}ms", decimal(n, 1_000_000)),
        n => {
            let minutes = n / 60_000_000_000;
            let seconds = decimal(n % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, m) => format!("{m}m{seconds}s"),
                (h, m) => format!("{h}h{m}m{seconds}s"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &[&str]) -> Vec<String> {
        text.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn wording() {
        assert_eq!(run("|1 A=b ", &words(&["/bin/sh", "-c", "x y"])), "RUN |1 A=b /bin/sh -c x y # buildkit");
        assert_eq!(
            copy("COPY", &[("parents", None), ("chown", Some("1"))], &words(&["a", "b", "/c/"])),
            "COPY --parents --chown=1 a b /c/ # buildkit"
        );
        assert_eq!(
            quoted("CMD", &words(&["/bin/sh", "-c", "echo \"x\""])),
            "CMD [\"/bin/sh\" \"-c\" \"echo \\\"x\\\"\"]"
        );
        assert_eq!(listed("VOLUME", &words(&["/a", "/b"])), "VOLUME [/a /b]");
        assert_eq!(pairs("ENV", &[("A".into(), "1 2".into()), ("B".into(), String::new())]), "ENV A=1 2 B=");
        let check = Healthcheck {
            test: words(&["CMD-SHELL", "true"]),
            interval: 90_000_000_000,
            timeout: 1_500_000_000,
            start_period: 20_000_000,
            retries: 3,
            ..Default::default()
        };
        assert_eq!(
            healthcheck(&check),
            "HEALTHCHECK &{[\"CMD-SHELL\" \"true\"] \"1m30s\" \"1.5s\" \"20ms\" \"0s\" '\\x03'}"
        );
        assert_eq!(duration(3_600_000_000_000), "1h0m0s");
    }
}

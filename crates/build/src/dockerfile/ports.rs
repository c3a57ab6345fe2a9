//! The small languages of EXPOSE and STOPSIGNAL.

/// `8080`, `53/udp`, `8000-8002/tcp`: the ports, each as `number/protocol`.
pub fn parse(text: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("'{text}' has no known protocol; tcp, udp and sctp are"));
    }
    // An address or a host's port before it means nothing in an image.
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let number =
        |t: &str| t.parse::<u16>().map_err(|_| format!("'{t}' is no port, which is a number up to 65535"));
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(ports)?, number(ports)?),
    };
    if first > last {
        return Err(format!("the range {first}-{last} of ports ends before it begins"));
    }
    Ok((first..=last).map(|p| format!("{p}/{protocol}")).collect())
}

const SIGNALS: [&str; 34] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE",
    "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU",
    "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// Whether a text names a signal (signal(7)), by name with or without SIG, or by number.
pub fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<u8>() {
        return (1..=64).contains(&number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = name.strip_prefix("RTMIN").map(|r| r.strip_prefix('+').unwrap_or(r));
    let real_time =
        real_time.or_else(|| name.strip_prefix("RTMAX").map(|r| r.strip_prefix('-').unwrap_or(r)));
    SIGNALS.contains(&name)
        || real_time.is_some_and(|r| r.is_empty() || r.parse::<u8>().is_ok_and(|n| n <= 30))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        assert_eq!(parse("80").unwrap(), ["80/tcp"]);
        assert_eq!(parse("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(parse("8000-8001").unwrap(), ["8000/tcp", "8001/tcp"]);
        assert_eq!(parse("127.0.0.1:80:8080").unwrap(), ["8080/tcp"]);
        for bad in ["", "x", "70000", "9-1", "80/icmp", "-1"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals() {
        for good in ["SIGTERM", "term", "9", "SIGRTMIN+3", "rtmax-1", "64"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["", "0", "65", "SIGNOTHING", "RTMIN+99", "-9"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}

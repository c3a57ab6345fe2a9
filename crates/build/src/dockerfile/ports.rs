//! The small languages of EXPOSE and STOPSIGNAL.

/// `8080`, `53/udp`, `8000-8002/tcp`: the ports, each as `number/protocol`. An address and a port of the host
/// before them mean nothing in an image, and must make sense all the same.
pub fn parse(text: &str) -> Result<Vec<String>, String> {
    let (before, container) = text.rsplit_once(':').map_or((None, text), |(b, c)| (Some(b), c));
    let (ports, protocol) = container.split_once('/').unwrap_or((container, ""));
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("'{text}' has no known protocol; tcp, udp and sctp are"));
    }
    let (first, last) = range(ports)?;
    if let Some(before) = before {
        let (address, host) = before.rsplit_once(':').unwrap_or(("", before));
        let plain = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
        if !plain.is_empty() && plain.parse::<std::net::IpAddr>().is_err() {
            return Err(format!("'{address}' is no address"));
        }
        if !host.is_empty() {
            let (low, high) = range(host)?;
            if first != last && high - low != last - first {
                return Err(format!("the ranges {host} and {ports} of ports differ in length"));
            }
        }
    }
    Ok((first..=last).map(|p| format!("{p}/{protocol}")).collect())
}

/// `80`, `80-90`
fn range(text: &str) -> Result<(u16, u16), String> {
    let number =
        |t: &str| t.parse::<u16>().map_err(|_| format!("'{t}' is no port, which is a number up to 65535"));
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("the range {first}-{last} of ports ends before it begins"));
    }
    Ok((first, last))
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
        assert_eq!(parse("80/").unwrap(), ["80/tcp"]);
        assert_eq!(parse("0-1/Sctp").unwrap(), ["0/sctp", "1/sctp"]);
        for good in ["127.0.0.1:80:8080", "[::1]:80:8080", "::1:80:8080", "127.0.0.1::8080", "70-80:8080"] {
            assert_eq!(parse(good).unwrap(), ["8080/tcp"], "{good}");
        }
        for bad in
            ["", "x", "70000", "9-1", "80/icmp", "-1", "h:80:80", "x:80", "80:", "80-90:80-91", "/tcp", "1-"]
        {
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

//! Resource limits by name (setrlimit(2)): `nofile` is `RLIMIT_NOFILE`.

const NAMES: [(&str, u32); 16] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("locks", libc::RLIMIT_LOCKS),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("msgqueue", libc::RLIMIT_MSGQUEUE),
    ("nice", libc::RLIMIT_NICE),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("rss", libc::RLIMIT_RSS),
    ("rtprio", libc::RLIMIT_RTPRIO),
    ("rttime", libc::RLIMIT_RTTIME),
    ("sigpending", libc::RLIMIT_SIGPENDING),
    ("stack", libc::RLIMIT_STACK),
];

/// The number of a limit by its short name.
pub fn number(name: &str) -> Option<u32> {
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
}

/// The short name of a limit.
pub fn name(number: u32) -> Option<&'static str> {
    NAMES.iter().find(|(_, known)| *known == number).map(|(name, _)| *name)
}

/// The number of a limit as the OCI spells it, `RLIMIT_NOFILE`.
pub(crate) fn from_oci(text: &str) -> Option<u32> {
    let short = text.strip_prefix("RLIMIT_")?;
    NAMES.iter().find(|(known, _)| known.to_ascii_uppercase() == short).map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (short, value) in NAMES {
            assert_eq!((number(short), name(value)), (Some(value), Some(short)));
            assert_eq!(from_oci(&format!("RLIMIT_{}", short.to_ascii_uppercase())), Some(value));
        }
        assert_eq!(
            (number("files"), name(99), from_oci("nofile"), from_oci("RLIMIT_nofile")),
            (None, None, None, None)
        );
    }
}

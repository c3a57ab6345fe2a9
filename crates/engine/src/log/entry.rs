//! One entry of a log as a line of its file: docker's json-file, and the form of Kubernetes' CRI
//! (kubernetes/design-proposals, kubelet-cri-logging).
//!
//! JSON has no bytes that are no text. An entry that is not UTF-8 has its replacement in `log`, as docker writes it, and
//! all its bytes in `raw`, in base64, so that none is lost.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isles_spec::LogDriver;
use serde::Deserialize;

use super::Stream;

/// An entry that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// RFC 3339, as it was written.
    pub time: String,
    /// What the program printed, with the line's end where it came.
    pub text: Vec<u8>,
}

/// Which bytes JSON writes otherwise in a string.
const PLAIN: [bool; 256] = {
    let mut plain = [true; 256];
    let mut byte = 0;
    while byte < 0x20 {
        plain[byte] = false;
        byte += 1;
    }
    plain[b'"' as usize] = false;
    plain[b'\\' as usize] = false;
    plain
};

/// Adds an entry to a file's text. `whole` says that the text ends a line.
pub fn write(out: &mut Vec<u8>, driver: LogDriver, stream: Stream, time: &str, text: &[u8], whole: bool) {
    match driver {
        LogDriver::None => {}
        LogDriver::JsonFile => {
            out.extend_from_slice(b"{\"log\":\"");
            let raw = match std::str::from_utf8(text) {
                Ok(_) => {
                    escape(out, text);
                    None
                }
                Err(_) => {
                    escape(out, String::from_utf8_lossy(text).as_bytes());
                    Some(text)
                }
            };
            if whole {
                out.extend_from_slice(b"\\n");
            }
            out.extend_from_slice(b"\",\"stream\":\"");
            out.extend_from_slice(stream.name().as_bytes());
            if let Some(raw) = raw {
                out.extend_from_slice(b"\",\"raw\":\"");
                out.extend_from_slice(STANDARD.encode(raw).as_bytes());
            }
            out.extend_from_slice(b"\",\"time\":\"");
            out.extend_from_slice(time.as_bytes());
            out.extend_from_slice(b"\"}\n");
        }
        LogDriver::Cri => {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
            out.extend_from_slice(stream.name().as_bytes());
            out.extend_from_slice(if whole { b" F " } else { b" P " });
            out.extend_from_slice(text);
            out.push(b'\n');
        }
    }
}

fn escape(out: &mut Vec<u8>, text: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut rest = text;
    while let Some(at) = rest.iter().position(|byte| !PLAIN[usize::from(*byte)]) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                let digits = [DIGITS[usize::from(other >> 4)], DIGITS[usize::from(other & 15)]];
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&digits);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Reads a line of a file, without its end; `None` where it is no entry.
pub fn read(line: &[u8]) -> Option<Entry> {
    if line.first() == Some(&b'{') { read_json(line) } else { read_cri(line) }
}

fn read_json(line: &[u8]) -> Option<Entry> {
    #[derive(Deserialize)]
    struct Line {
        log: String,
        stream: String,
        time: String,
        raw: Option<String>,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let text = match line.raw {
        None => line.log.into_bytes(),
        Some(raw) => {
            let mut bytes = STANDARD.decode(raw).ok()?;
            if line.log.ends_with('\n') {
                bytes.push(b'\n');
            }
            bytes
        }
    };
    Some(Entry { stream: stream(line.stream.as_bytes())?, time: line.time, text })
}

fn read_cri(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let stream = stream(parts.next()?)?;
    let whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let mut text = parts.next()?.to_vec();
    if whole {
        text.push(b'\n');
    }
    Some(Entry { stream, time, text })
}

fn stream(name: &[u8]) -> Option<Stream> {
    match name {
        b"stdout" => Some(Stream::Stdout),
        b"stderr" => Some(Stream::Stderr),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_they_were() {
        for driver in [LogDriver::JsonFile, LogDriver::Cri] {
            for (text, whole) in [
                (&b""[..], true),
                (b"hello", true),
                (b"a \"quote\" \\ and \t\r\x01\x1f", true),
                ("für ἅ".as_bytes(), false),
                (b"\xff\xfe binary \x00", true),
                (b"\xff", false),
                (b"F P stdout", true),
            ] {
                let mut out = Vec::new();
                write(&mut out, driver, Stream::Stderr, "2026-01-02T03:04:05.6Z", text, whole);
                assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
                let entry = read(out.strip_suffix(b"\n").unwrap()).unwrap();
                let expected = [text, if whole { b"\n" } else { b"" }].concat();
                assert_eq!(entry.text, expected, "{driver:?}");
                assert_eq!((entry.stream, entry.time.as_str()), (Stream::Stderr, "2026-01-02T03:04:05.6Z"));
            }
        }
    }

    #[test]
    fn the_form_is_dockers() {
        let mut out = Vec::new();
        write(&mut out, LogDriver::JsonFile, Stream::Stdout, "T", b"a\"b", true);
        assert_eq!(out, b"{\"log\":\"a\\\"b\\n\",\"stream\":\"stdout\",\"time\":\"T\"}\n");
        out.clear();
        write(&mut out, LogDriver::Cri, Stream::Stdout, "T", b"ab", false);
        assert_eq!(out, b"T stdout P ab\n");
    }

    #[test]
    fn what_is_no_entry() {
        for line in [
            "",
            "{",
            "{}",
            "{\"log\":1}",
            "T stdout",
            "T stdout X a",
            "T other F a",
            "\0",
            "{\"log\":\"\",\"stream\":\"x\",\"time\":\"\"}",
        ] {
            assert_eq!(read(line.as_bytes()), None, "{line}");
        }
    }
}

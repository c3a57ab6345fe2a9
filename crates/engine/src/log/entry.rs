//! One entry of a log as a line of its file: docker's json-file, and the form of Kubernetes' CRI
//! (kubernetes/design-proposals, kubelet-cri-logging).
//!
//! JSON has no bytes that are no text. An entry that is not UTF-8 has its replacement in `log`, as docker writes it, and
//! all its bytes in `raw`, in base64, so that none is lost.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use isles_spec::LogDriver;
use serde::Deserialize;

use super::Stream;

/// An entry that was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// RFC 3339, as it was written.
    pub time: String,
    /// What the program printed, with the line's end where it came.
    pub text: Vec<u8>,
    /// What goes along with it, by name.
    pub attributes: BTreeMap<String, String>,
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

/// An entry that is to be written.
#[derive(Debug, Clone, Copy)]
pub struct Said<'a> {
    pub stream: Stream,
    /// RFC 3339.
    pub time: &'a str,
    pub text: &'a [u8],
    /// The text ends a line.
    pub whole: bool,
}

/// Adds an entry to a file's text. `attributes` are those of [`attributes`], in JSON only.
pub fn write(out: &mut Vec<u8>, driver: LogDriver, said: Said<'_>, attributes: &[u8]) {
    let Said { stream, time, text, whole } = said;
    match driver {
        LogDriver::None | LogDriver::Journald => {}
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
            out.push(b'"');
            out.extend_from_slice(attributes);
            out.extend_from_slice(b",\"time\":\"");
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

/// What goes along with each entry, as docker writes it.
pub fn attributes(all: &[(String, String)]) -> Vec<u8> {
    if all.is_empty() {
        return Vec::new();
    }
    let map: BTreeMap<&str, &str> = all.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    // A map of texts is always JSON.
    let text = serde_json::to_vec(&map).unwrap_or_else(|_| b"{}".to_vec());
    [b",\"attrs\":", text.as_slice()].concat()
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

/// Reads a line of a file, without its end, into an entry whose memory is used again; `None` where it is none.
pub fn read(line: &[u8], into: &mut Entry) -> Option<()> {
    if line.first() != Some(&b'{') {
        return read_cri(line, into);
    }
    if read_own(line, into).is_none() {
        *into = read_json(line)?;
    }
    Some(())
}

/// Reads an entry as docker and we write it, all of whose text is ASCII or stands for itself; `None` where it is another one.
fn read_own(line: &[u8], into: &mut Entry) -> Option<()> {
    let mut rest = line.strip_prefix(b"{\"log\":\"")?;
    into.text.clear();
    into.attributes.clear();
    loop {
        let at = memchr::memchr2(b'"', b'\\', rest)?;
        into.text.extend_from_slice(&rest[..at]);
        let escaped = rest[at] == b'\\';
        rest = &rest[at + 1..];
        if !escaped {
            break;
        }
        let (byte, length) = match rest.first()? {
            b'n' => (b'\n', 1),
            b'r' => (b'\r', 1),
            b't' => (b'\t', 1),
            same @ (b'"' | b'\\' | b'/') => (*same, 1),
            b'u' => {
                let digits = std::str::from_utf8(rest.get(1..5)?).ok()?;
                let code = u32::from_str_radix(digits, 16).ok()?;
                (u8::try_from(code).ok().filter(u8::is_ascii)?, 5)
            }
            _ => return None,
        };
        into.text.push(byte);
        rest = &rest[length..];
    }
    rest = rest.strip_prefix(b",\"stream\":\"")?;
    let end = memchr::memchr(b'"', rest)?;
    into.stream = stream(&rest[..end])?;
    let time = rest[end..].strip_prefix(b"\",\"time\":\"")?.strip_suffix(b"\"}")?;
    if memchr::memchr2(b'"', b'\\', time).is_some() {
        return None;
    }
    into.time.clear();
    into.time.push_str(std::str::from_utf8(time).ok()?);
    // What serde would not take is none.
    std::str::from_utf8(&into.text).ok().map(drop)
}

fn read_json(line: &[u8]) -> Option<Entry> {
    #[derive(Deserialize)]
    struct Line {
        log: String,
        stream: String,
        time: String,
        raw: Option<String>,
        #[serde(default)]
        attrs: BTreeMap<String, String>,
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
    Some(Entry { stream: stream(line.stream.as_bytes())?, time: line.time, text, attributes: line.attrs })
}

fn read_cri(line: &[u8], into: &mut Entry) -> Option<()> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = stream(parts.next()?)?;
    let whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    into.stream = stream;
    into.time.clear();
    into.time.push_str(time);
    into.attributes.clear();
    into.text.clear();
    into.text.extend_from_slice(parts.next()?);
    if whole {
        into.text.push(b'\n');
    }
    Some(())
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
        // What was there before does not shine through.
        let mut entry = Entry { text: b"before".to_vec(), time: "before".into(), ..Entry::default() };
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
                let time = "2026-01-02T03:04:05.6Z";
                write(&mut out, driver, Said { stream: Stream::Stderr, time, text, whole }, b"");
                assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
                read(out.strip_suffix(b"\n").unwrap(), &mut entry).unwrap();
                let expected = [text, if whole { b"\n" } else { b"" }].concat();
                assert_eq!(entry.text, expected, "{driver:?}");
                assert_eq!((entry.stream, entry.time.as_str()), (Stream::Stderr, "2026-01-02T03:04:05.6Z"));
            }
        }
    }

    #[test]
    fn the_form_is_dockers() {
        let mut out = Vec::new();
        let said = Said { stream: Stream::Stdout, time: "T", text: b"a\"b", whole: true };
        write(&mut out, LogDriver::JsonFile, said, b"");
        assert_eq!(out, b"{\"log\":\"a\\\"b\\n\",\"stream\":\"stdout\",\"time\":\"T\"}\n");
        out.clear();
        let along = attributes(&[("b".into(), "\"".into()), ("a".into(), "1".into())]);
        write(&mut out, LogDriver::JsonFile, Said { text: b"a", ..said }, &along);
        let line = r#"{"log":"a\n","stream":"stdout","attrs":{"a":"1","b":"\""},"time":"T"}"#;
        assert_eq!(String::from_utf8(out.clone()).unwrap().trim_end(), line);
        let mut entry = Entry::default();
        read(line.as_bytes(), &mut entry).unwrap();
        assert_eq!((entry.text.as_slice(), entry.attributes["b"].as_str()), (&b"a\n"[..], "\""));
        read(br#"{"log":"a","stream":"stdout","time":"T"}"#, &mut entry).unwrap();
        assert!(entry.attributes.is_empty(), "those of the one before");
        out.clear();
        write(&mut out, LogDriver::Cri, Said { text: b"ab", whole: false, ..said }, &along);
        assert_eq!(out, b"T stdout P ab\n");
    }

    #[test]
    fn entries_that_others_wrote() {
        for (line, text) in [
            (r#"{"log":"a\u00e9\u0041\/\n","stream":"stdout","time":"T"}"#, "a\u{e9}A/\n"),
            (r#"{"stream":"stdout","log":"b","time":"T"}"#, "b"),
            (r#"{"log":"\ud83d\ude00","stream":"stdout","time":"T"}"#, "\u{1f600}"),
            (r#"{"log":"c","stream":"stdout","attrs":{"x":"y"},"time":"T"}"#, "c"),
            (r#"{ "log": "d", "stream": "stdout", "time": "T" }"#, "d"),
            (r#"{"log":"\b\f","stream":"stdout","time":"T"}"#, "\u{8}\u{c}"),
        ] {
            let mut entry = Entry::default();
            read(line.as_bytes(), &mut entry).unwrap();
            assert_eq!(String::from_utf8(entry.text).unwrap(), text, "{line}");
            assert_eq!(entry.time, "T");
        }
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
            assert_eq!(read(line.as_bytes(), &mut Entry::default()), None, "{line}");
        }
    }
}

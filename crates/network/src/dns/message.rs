//! Questions and answers of the domain name system (RFC 1035), as far as names of containers need them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const HEADER: usize = 12;
/// What a name may have (RFC 1035, section 3.1).
const LONGEST_NAME: usize = 255;
const LONGEST_LABEL: u8 = 63;
/// A container may have another address soon.
const TIME_TO_LIVE: u32 = 1;

pub const A: u16 = 1;
pub const PTR: u16 = 12;
pub const AAAA: u16 = 28;
pub const ANY: u16 = 255;
const INTERNET: u16 = 1;
/// The kind of the record by which a client says how long an answer it takes (RFC 6891).
const OPTIONS: u16 = 41;
/// What everybody takes over UDP (RFC 1035, section 2.3.4).
const SHORTEST: u16 = 512;
/// Over TCP.
pub const LONGEST: usize = u16::MAX as usize;
/// A record's bytes beside its data, where its name points to the question.
const RECORD: usize = 12;

/// A question with its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    /// In lower case, with dots between the labels and none at the end.
    pub name: String,
    pub kind: u16,
    /// The header's second word.
    flags: u16,
    /// The question as it stands in the message.
    wire: Vec<u8>,
    /// So long an answer over UDP the client takes.
    pub longest: usize,
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Name(String),
}

/// Codes of answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    Fine = 0,
    ServerFailure = 2,
}

impl Question {
    /// Reads a message with one question of the Internet's class; `None` where it is another one, or malformed.
    pub fn parse(message: &[u8]) -> Option<Question> {
        let word = |at: usize| Some(u16::from_be_bytes([*message.get(at)?, *message.get(at + 1)?]));
        let (id, flags) = (word(0)?, word(2)?);
        let is_question = flags >> 15 == 0;
        let is_usual = flags >> 11 & 15 == 0;
        if !is_question || !is_usual || word(4)? != 1 {
            return None;
        }
        let mut at = HEADER;
        let mut labels: Vec<String> = Vec::new();
        loop {
            let length = *message.get(at)?;
            at += 1;
            if length == 0 {
                break;
            }
            // A question has nothing before it that it could point to.
            if length > LONGEST_LABEL || at - HEADER > LONGEST_NAME {
                return None;
            }
            let label = message.get(at..at + usize::from(length))?;
            // A dot or a byte that is no text makes it a name that nobody here has.
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase().replace('.', "\\."));
            at += usize::from(length);
        }
        let (kind, class) = (word(at)?, word(at + 2)?);
        if class != INTERNET {
            return None;
        }
        let wire = message.get(HEADER..at + 4)?.to_vec();
        at += 4;
        // Alone behind the question, at the root, as clients send it.
        let additional = word(6)? == 0 && word(8)? == 0 && word(10)? == 1;
        let options = additional && message.get(at) == Some(&0) && word(at + 1) == Some(OPTIONS);
        let taken = if options { word(at + 3).unwrap_or(SHORTEST) } else { SHORTEST };
        let longest = usize::from(taken.max(SHORTEST));
        Some(Question { id, name: labels.join("."), kind, flags, wire, longest })
    }

    /// The message that answers it. What does not fit the kind that was asked for is left out, and what would make it
    /// longer than `longest`, which the message says then (RFC 2181, section 9).
    pub fn answer(&self, answer: Option<&Answer>, code: Code, longest: usize) -> Vec<u8> {
        let mut records: Vec<(u16, Vec<u8>)> = Vec::new();
        match answer {
            Some(Answer::Addresses(addresses)) => {
                for address in addresses {
                    match address {
                        IpAddr::V4(address) if matches!(self.kind, A | ANY) => {
                            records.push((A, address.octets().to_vec()));
                        }
                        IpAddr::V6(address) if matches!(self.kind, AAAA | ANY) => {
                            records.push((AAAA, address.octets().to_vec()));
                        }
                        _ => {}
                    }
                }
            }
            Some(Answer::Name(name)) if matches!(self.kind, PTR | ANY) => {
                records.push((PTR, wire_name(name)))
            }
            Some(Answer::Name(_)) | None => {}
        }
        let mut length = HEADER + self.wire.len();
        let all = records.len();
        let fits = records.iter().take_while(|(_, data)| {
            length += RECORD + data.len();
            length <= longest
        });
        let fitting = fits.count();
        records.truncate(fitting);
        let truncated = if fitting < all { 0x0200 } else { 0 };
        // A response, with what was wished for of recursion, which is available.
        let flags = 0x8080 | (self.flags & 0x0100) | truncated | code as u16;
        let mut out = Vec::with_capacity(HEADER + self.wire.len() + records.len() * 28);
        for word in [self.id, flags, 1, records.len() as u16, 0, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.wire);
        for (kind, data) in records {
            // The name stands where the question begins.
            out.extend_from_slice(&(0xc000 | HEADER as u16).to_be_bytes());
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&INTERNET.to_be_bytes());
            out.extend_from_slice(&TIME_TO_LIVE.to_be_bytes());
            out.extend_from_slice(&(data.len() as u16).to_be_bytes());
            out.extend_from_slice(&data);
        }
        out
    }

    /// The address that a reverse question is about.
    pub fn reverse(&self) -> Option<IpAddr> {
        if let Some(digits) = self.name.strip_suffix(".in-addr.arpa") {
            let mut octets: Vec<u8> = digits.split('.').map(|n| n.parse().ok()).collect::<Option<_>>()?;
            octets.reverse();
            return <[u8; 4]>::try_from(octets).ok().map(|octets| IpAddr::V4(Ipv4Addr::from(octets)));
        }
        let digits = self.name.strip_suffix(".ip6.arpa")?;
        let one = |digit: &str| (digit.len() == 1).then(|| u8::from_str_radix(digit, 16).ok()).flatten();
        let mut digits: Vec<u8> = digits.split('.').map(one).collect::<Option<_>>()?;
        digits.reverse();
        let octets: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::V6(Ipv6Addr::from(octets)))
    }
}

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len() + 2);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(usize::from(LONGEST_LABEL))];
        if out.len() + label.len() + 2 > LONGEST_NAME {
            break;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.push(0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(name: &str, kind: u16) -> Vec<u8> {
        let mut out = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        out.extend(wire_name(name));
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(&[0, 1]);
        out
    }

    #[test]
    fn questions_and_answers() {
        let question = Question::parse(&ask("Web.Example", A)).unwrap();
        assert_eq!((question.id, question.name.as_str(), question.kind), (0x1234, "web.example", A));
        let both = Answer::Addresses(vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()]);
        let wire = question.answer(Some(&both), Code::Fine, LONGEST);
        assert_eq!(wire[..12], [0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        assert_eq!(wire[wire.len() - 16..], [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 10, 0, 0, 2]);
        // The name is there, and has none of that kind.
        let only4 = Answer::Addresses(vec!["10.0.0.2".parse().unwrap()]);
        let wire = Question::parse(&ask("web", AAAA)).unwrap().answer(Some(&only4), Code::Fine, LONGEST);
        assert_eq!(wire[2..8], [0x81, 0x80, 0, 1, 0, 0]);
        let failed = Question::parse(&ask("web", A)).unwrap().answer(None, Code::ServerFailure, LONGEST);
        assert_eq!(failed[3] & 15, 2);
        let wire = Question::parse(&ask("2.0.0.10.in-addr.arpa", PTR)).unwrap().answer(
            Some(&Answer::Name("web.one".into())),
            Code::Fine,
            LONGEST,
        );
        assert!(wire.ends_with(b"\x03web\x03one\x00"));
    }

    #[test]
    fn answers_that_are_too_long_say_so() {
        let many = Answer::Addresses((1..=100).map(|n| [10, 0, 0, n].into()).collect());
        let question = Question::parse(&ask("web", A)).unwrap();
        assert_eq!(question.longest, 512);
        let wire = question.answer(Some(&many), Code::Fine, question.longest);
        let records = usize::from(wire[7]);
        assert!(wire.len() <= 512 && wire.len() + 16 > 512 && wire[2] & 2 == 2, "{}", wire.len());
        assert_eq!(wire.len(), 12 + 9 + records * 16);
        let wire = question.answer(Some(&many), Code::Fine, LONGEST);
        assert_eq!((wire[7], wire[2] & 2), (100, 0));
        // Who says that it takes more gets more (EDNS); who says that it takes less is not believed.
        for (says, longest) in [(4096u16, 4096), (100, 512)] {
            let mut message = ask("web", A);
            message[11] = 1;
            message.extend_from_slice(&[0, 0, 41]);
            message.extend_from_slice(&says.to_be_bytes());
            message.extend_from_slice(&[0; 6]);
            assert_eq!(Question::parse(&message).unwrap().longest, longest);
        }
    }

    #[test]
    fn reverse_names() {
        let address = |name: &str| Question::parse(&ask(name, PTR)).unwrap().reverse().map(|a| a.to_string());
        assert_eq!(address("2.0.0.10.in-addr.arpa").as_deref(), Some("10.0.0.2"));
        let zeroes = "0.".repeat(28);
        assert_eq!(address(&format!("2.{zeroes}0.d.f.ip6.arpa")).as_deref(), Some("fd00::2"));
        for bad in
            ["0.0.10.in-addr.arpa", "x.0.0.10.in-addr.arpa", "256.0.0.10.in-addr.arpa", "2.0.ip6.arpa", "web"]
        {
            assert_eq!(address(bad), None, "{bad}");
        }
    }

    #[test]
    fn nothing_makes_it_stumble() {
        let good = ask("a.b.c", A);
        for cut in 0..good.len() {
            assert_eq!(Question::parse(&good[..cut]), None);
        }
        let mut state = 7u64;
        for round in 0..20_000 {
            let mut message = good.clone();
            for _ in 0..1 + round % 4 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % message.len();
                message[at] = (state >> 20) as u8;
            }
            if let Some(question) = Question::parse(&message) {
                let answer = Answer::Name(question.name.clone());
                question.answer(Some(&answer), Code::Fine, LONGEST);
                question.reverse();
            }
        }
    }
}

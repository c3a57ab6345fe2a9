//! The order of package versions (Debian Policy, section 5.6.12; deb-version(7)).

use std::cmp::Ordering;

/// Compares two versions, `[epoch:]upstream[-revision]`.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (Parts::of(a), Parts::of(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| compare_part(a.upstream, b.upstream))
        .then_with(|| compare_part(a.revision, b.revision))
}

struct Parts<'a> {
    epoch: u64,
    upstream: &'a [u8],
    revision: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(version: &'a str) -> Self {
        let (epoch, rest) = match version.split_once(':') {
            Some((epoch, rest)) => (epoch.parse().unwrap_or(0), rest),
            None => (0, version),
        };
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Parts { epoch, upstream: upstream.as_bytes(), revision: revision.as_bytes() }
    }
}

/// Runs of other characters and runs of digits take turns; `~` sorts before everything, even the end.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        loop {
            let left = a.first().filter(|c| !c.is_ascii_digit());
            let right = b.first().filter(|c| !c.is_ascii_digit());
            if left.is_none() && right.is_none() {
                break;
            }
            match weight(left).cmp(&weight(right)) {
                Ordering::Equal => (a, b) = (&a[1..], &b[1..]),
                different => return different,
            }
        }
        let (left, right);
        (left, a) = number(a);
        (right, b) = number(b);
        match left.len().cmp(&right.len()).then_with(|| left.cmp(right)) {
            Ordering::Equal => {}
            different => return different,
        }
    }
    Ordering::Equal
}

/// The rank of a character that is no digit. The end and a digit rank alike.
fn weight(c: Option<&u8>) -> i32 {
    match c {
        None => 0,
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

/// The digits at the beginning, without leading zeros, and the rest.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|c| **c == b'0').count();
    (&digits[zeros..], rest)
}

/// How a dependency bounds a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Earlier,
    EarlierOrEqual,
    Equal,
    LaterOrEqual,
    Later,
}

impl Relation {
    /// The relation that is written so. The single `<` and `>` are the old way to write `<=` and `>=`.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "<<" => Relation::Earlier,
            "<=" | "<" => Relation::EarlierOrEqual,
            "=" => Relation::Equal,
            ">=" | ">" => Relation::LaterOrEqual,
            ">>" => Relation::Later,
            _ => return None,
        })
    }

    /// Whether `version` is within this bound of `bound`.
    pub fn holds(self, version: &str, bound: &str) -> bool {
        let order = compare(version, bound);
        match self {
            Relation::Earlier => order.is_lt(),
            Relation::EarlierOrEqual => order.is_le(),
            Relation::Equal => order.is_eq(),
            Relation::LaterOrEqual => order.is_ge(),
            Relation::Later => order.is_gt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_versions() {
        for (a, expected, b) in [
            ("1", "=", "1"),
            ("1.0", "=", "1.0"),
            ("1.0", "<", "1.0.1"),
            ("1.9", "<", "1.10"),
            ("1.09", "=", "1.9"),
            ("0", "=", ""),
            ("1.0-1", ">", "1.0"),
            ("1.0-0", "=", "1.0"),
            ("1.0-1", "<", "1.0-1.1"),
            ("1.0~rc1", "<", "1.0"),
            ("1.0~rc1-1", "<", "1.0~rc1-2"),
            ("1.0~~", "<", "1.0~"),
            ("1.0~~a", "<", "1.0~"),
            ("1.0~", "<", "1.0"),
            ("1.0", "<", "1.0a"),
            ("1.0a", "<", "1.0+"),
            ("1.0a", "<", "1.0b"),
            ("1.0Z", "<", "1.0a"),
            ("1:0.1", ">", "9.9"),
            ("0:1", "=", "1"),
            ("2:1", "<", "10:1"),
            ("1-2-3", ">", "1-1-9"),
            ("2.36-9+deb12u10", ">", "2.36-9+deb12u9"),
            ("2.36-9+deb12u10", ">", "2.36-9"),
            ("5.36.0-7+deb12u2", "<", "5.36.0-7+deb12u10"),
            ("1.2.3", "<", "1.2.3-0ubuntu1"),
            ("99999999999999999999999", "<", "100000000000000000000000"),
            ("1.0-1~bpo12+1", "<", "1.0-1"),
            ("3.0.0~alpha", "<", "3.0.0~beta"),
        ] {
            let sign = |o: Ordering| match o {
                Ordering::Less => "<",
                Ordering::Equal => "=",
                Ordering::Greater => ">",
            };
            assert_eq!(sign(compare(a, b)), expected, "{a} {b}");
            assert_eq!(sign(compare(b, a).reverse()), expected, "{b} {a}");
        }
    }

    #[test]
    fn bounds() {
        for (version, relation, bound, holds) in [
            ("1", "<<", "2", true),
            ("2", "<<", "2", false),
            ("2", "<=", "2", true),
            ("2", "=", "2-0", true),
            ("1:1", ">>", "2", true),
            ("1~", ">=", "1", false),
            ("3", ">", "3", true),
        ] {
            let relation = Relation::parse(relation).unwrap();
            assert_eq!(relation.holds(version, bound), holds, "{version} {relation:?} {bound}");
        }
        assert_eq!(Relation::parse("=="), None);
    }
}

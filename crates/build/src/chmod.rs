//! `--chmod`: an octal number, or the symbolic form of chmod(1) with an empty umask (POSIX.1-2024, chmod).

/// A change of permission bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chmod {
    Octal(u32),
    Symbolic(Vec<Clause>),
}

/// `ug+rX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// Which of the three groups of bits.
    who: u32,
    operator: char,
    read: bool,
    write: bool,
    execute: bool,
    /// `X`: execute for directories and what somebody may execute already.
    execute_where_sensible: bool,
    set_id: bool,
    sticky: bool,
    /// Takes the bits of another group: `g=u`.
    copy: Option<u32>,
}

impl Chmod {
    pub fn parse(text: &str) -> Option<Chmod> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o7777).map(Chmod::Octal);
        }
        text.split(',').map(clauses).collect::<Option<Vec<_>>>().map(|c| Chmod::Symbolic(c.concat()))
    }

    /// The bits of a file that had `mode`.
    pub fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            Chmod::Octal(mode) => *mode,
            Chmod::Symbolic(clauses) => clauses.iter().fold(mode, |mode, c| c.apply(mode, directory)),
        }
    }
}

/// One part between commas, which may hold several operators: `u+r-w`.
fn clauses(text: &str) -> Option<Vec<Clause>> {
    let operator = text.find(['+', '-', '='])?;
    let mut who = 0;
    for c in text[..operator].chars() {
        who |= match c {
            'u' => 0o700,
            'g' => 0o070,
            'o' => 0o007,
            'a' => 0o777,
            _ => return None,
        };
    }
    let who = if who == 0 { 0o777 } else { who };
    let mut out = Vec::new();
    for c in text[operator..].chars() {
        if matches!(c, '+' | '-' | '=') {
            out.push(Clause {
                who,
                operator: c,
                read: false,
                write: false,
                execute: false,
                execute_where_sensible: false,
                set_id: false,
                sticky: false,
                copy: None,
            });
            continue;
        }
        let clause = out.last_mut()?;
        match c {
            'r' => clause.read = true,
            'w' => clause.write = true,
            'x' => clause.execute = true,
            'X' => clause.execute_where_sensible = true,
            's' => clause.set_id = true,
            't' => clause.sticky = true,
            'u' => clause.copy = Some(6),
            'g' => clause.copy = Some(3),
            'o' => clause.copy = Some(0),
            _ => return None,
        }
    }
    Some(out)
}

impl Clause {
    fn set_id_bits(&self) -> u32 {
        let of = |group: u32, bit: u32| if self.who & group != 0 { bit } else { 0 };
        of(0o700, 0o4000) | of(0o070, 0o2000)
    }

    fn apply(&self, mode: u32, directory: bool) -> u32 {
        let mut one = 0;
        if let Some(shift) = self.copy {
            one |= mode >> shift & 7;
        }
        let sensible = self.execute_where_sensible && (directory || mode & 0o111 != 0);
        one |= u32::from(self.read) * 4 + u32::from(self.write) * 2 + u32::from(self.execute || sensible);
        let mut bits = (one << 6 | one << 3 | one) & self.who;
        if self.set_id {
            bits |= self.set_id_bits();
        }
        if self.sticky {
            bits |= 0o1000;
        }
        match self.operator {
            '+' => mode | bits,
            '-' => mode & !bits,
            // Of directories chmod(1) leaves these bits alone.
            _ if directory => mode & !self.who | bits,
            _ => mode & !(self.who | self.set_id_bits()) | bits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (text, mode, directory, expected) in [
            ("755", 0o644, false, 0o755),
            ("4755", 0o644, false, 0o4755),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("a+x", 0o644, false, 0o755),
            ("+x", 0o644, false, 0o755),
            ("go-rwx", 0o777, false, 0o700),
            ("u+s", 0o755, false, 0o4755),
            ("g=u", 0o750, false, 0o770),
            ("u+r-w", 0o200, false, 0o400),
            ("o=", 0o777, false, 0o770),
            ("u=rwx", 0o4644, false, 0o744),
            ("u=rwx", 0o4644, true, 0o4744),
        ] {
            assert_eq!(Chmod::parse(text).unwrap().apply(mode, directory), expected, "{text} {mode:o}");
        }
        for bad in ["", "9", "17777", "u", "z+x", "u+q", "rwx", "u+r,,g+r"] {
            assert_eq!(
                Chmod::parse(bad).map(|c| c.apply(0, false)).filter(|_| !bad.is_empty()),
                None,
                "{bad}"
            );
        }
    }
}

//! Where the entries of an archive go in a tree that is in use, and to whom.

/// Who gets what an archive brings to a tree that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NewOwners {
    /// Those whom the archive names, where this process may give files away.
    Archive,
    /// This user and group.
    All(u32, u32),
    /// Whoever unpacks it.
    Own,
}

/// Where and how an archive is unpacked into a tree that is in use.
#[derive(Debug, Clone)]
pub struct Placing {
    /// A path below the root, without slashes at its ends, that entries are put below. It may go through links.
    pub prefix: Vec<u8>,
    /// The first name of every path stands for the prefix itself.
    pub replaces_top: bool,
    /// A folder that stands at the prefix stays as it is.
    pub keeps_top: bool,
    pub owners: NewOwners,
}

impl Placing {
    /// Where a clean path of the archive goes.
    pub(crate) fn place(&self, path: &[u8]) -> Vec<u8> {
        let rest = match (self.replaces_top, path.iter().position(|b| *b == b'/')) {
            (false, _) => path,
            (true, Some(slash)) => &path[slash + 1..],
            (true, None) => b"",
        };
        match (self.prefix.is_empty(), rest.is_empty()) {
            (true, _) => rest.to_vec(),
            (_, true) => self.prefix.clone(),
            _ => [&self.prefix[..], b"/", rest].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_go_below_the_prefix() {
        for (prefix, replaces_top, path, expected) in [
            ("", false, "a/b", "a/b"),
            ("", true, "a/b", "b"),
            ("", true, "a", ""),
            ("x/y", false, "a", "x/y/a"),
            ("x/y", false, "", "x/y"),
            ("x/y", true, "a", "x/y"),
            ("x/y", true, "a/b/c", "x/y/b/c"),
        ] {
            let prefix = prefix.as_bytes().to_vec();
            let placing = Placing { prefix, replaces_top, keeps_top: false, owners: NewOwners::Own };
            assert_eq!(placing.place(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }
}

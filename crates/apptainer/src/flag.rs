//! What a flag is: its names, what its value is, and the variables that set it as well.

/// What is written after a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing, or `=true` and `=false`.
    Switch,
    /// A word; the last one counts.
    Text,
    /// A whole number.
    Number,
    /// A list with commas, quoted as in CSV; every mention adds to it.
    Words,
    /// A word that is kept as it is, commas and all; every mention adds one.
    Lines,
    /// `NAME=VALUE`, or a list of them with commas; every mention adds to it.
    Pairs,
}

/// One flag of a command. Commands name it by its static, so that a misspelled one does not compile.
#[derive(Debug)]
pub struct Flag {
    /// Without the dashes.
    pub name: &'static str,
    pub short: Option<char>,
    pub kind: Kind,
    /// What help calls the value.
    pub tag: &'static str,
    pub about: &'static str,
    /// Variables that set it, without `APPTAINER_` or `SINGULARITY_`; flags on the command line win over them.
    pub variables: &'static [&'static str],
    /// The variables are read without a prefix, too.
    pub bare: bool,
    /// The variable adds to what the command line says.
    pub adds: bool,
    pub hidden: bool,
    /// What to do instead of using it.
    pub deprecated: Option<&'static str>,
}

impl Flag {
    const fn new(name: &'static str, kind: Kind, tag: &'static str, about: &'static str) -> Flag {
        Flag {
            name,
            short: None,
            kind,
            tag,
            about,
            variables: &[],
            bare: false,
            adds: false,
            hidden: false,
            deprecated: None,
        }
    }

    pub const fn switch(name: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Switch, "", about)
    }

    pub const fn text(name: &'static str, tag: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Text, tag, about)
    }

    pub const fn number(name: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Number, "int", about)
    }

    pub const fn words(name: &'static str, tag: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Words, tag, about)
    }

    pub const fn lines(name: &'static str, tag: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Lines, tag, about)
    }

    pub const fn pairs(name: &'static str, tag: &'static str, about: &'static str) -> Flag {
        Flag::new(name, Kind::Pairs, tag, about)
    }

    pub const fn short(mut self, short: char) -> Flag {
        self.short = Some(short);
        self
    }

    pub const fn env(mut self, variables: &'static [&'static str]) -> Flag {
        self.variables = variables;
        self
    }

    pub const fn bare(mut self) -> Flag {
        self.bare = true;
        self
    }

    pub const fn adds(mut self) -> Flag {
        self.adds = true;
        self
    }

    pub const fn hidden(mut self) -> Flag {
        self.hidden = true;
        self
    }

    pub const fn deprecated(mut self, instead: &'static str) -> Flag {
        self.deprecated = Some(instead);
        self
    }

    /// As errors name it: `-B, --bind`, or `--mount`.
    pub fn both_names(&self) -> String {
        match self.short {
            Some(short) => format!("-{short}, --{}", self.name),
            None => format!("--{}", self.name),
        }
    }
}

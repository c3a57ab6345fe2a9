//! Which rules hold: `skip=A,B;error=true;experimental=all`, as `# check=` at the top of a file, in a comment
//! above one instruction, or as the build argument `BUILDKIT_DOCKERFILE_CHECK`.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::rules::{self, Rule};
use crate::dockerfile::lines::checks_of_comment;

/// Which rules hold, and whether what they find is an error.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    skip_all: bool,
    skip: BTreeSet<&'static str>,
    experimental_all: bool,
    experimental: BTreeSet<&'static str>,
    /// A finding fails the build.
    pub error: bool,
}

impl Config {
    /// Reads the options. Names of rules that do not exist have no effect: a newer docker may know them.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(text: &str) -> Result<Config, String> {
        let mut config = Config::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for option in text.splitn(3, ';') {
            let (name, value) = option.split_once('=').ok_or_else(|| format!("'{option}' has no '='"))?;
            let value = value.trim();
            let known = |n: &str| rules::ALL.iter().map(|r| r.name).find(|name| *name == n.trim());
            let names = || value.split(',').filter_map(known).collect();
            match name.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = names(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = names(),
                "error" => {
                    config.error = match value {
                        "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
                        "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
                        _ => return Err(format!("error is true or false, not '{value}'")),
                    }
                }
                other => return Err(format!("there is no option '{other}'")),
            }
        }
        Ok(config)
    }

    /// What holds for an instruction with these comments above it: the first `check=` among them is added, if
    /// it can be read.
    pub fn with_comments(&self, comments: &[String]) -> Cow<'_, Config> {
        let mut options = comments.iter().filter_map(|c| checks_of_comment(c));
        match options.next().map(Config::parse) {
            Some(Ok(more)) => {
                let mut config = self.clone();
                config.skip_all |= more.skip_all;
                config.skip.extend(more.skip);
                config.experimental_all |= more.experimental_all;
                config.experimental.extend(more.experimental);
                Cow::Owned(config)
            }
            _ => Cow::Borrowed(self),
        }
    }

    /// Whether a rule holds.
    pub fn wants(&self, rule: &Rule) -> bool {
        if rule.experimental {
            self.experimental_all || self.experimental.contains(rule.name)
        } else {
            !self.skip_all && !self.skip.contains(rule.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dockerfile::checks::rules::{
        INVALID_DEFINITION_DESCRIPTION, STAGE_NAME_CASING, UNDEFINED_VAR,
    };

    #[test]
    fn options() {
        for (text, wants, error) in [
            ("", [true, true, false], false),
            ("skip=all", [false, false, false], false),
            ("skip=UndefinedVar, Other ;error=1", [true, false, false], true),
            ("skip=undefinedvar", [true, true, false], false),
            ("experimental=all;skip=all", [false, false, true], false),
            ("experimental=InvalidDefinitionDescription", [true, true, true], false),
        ] {
            let config = Config::parse(text).unwrap();
            let got = [&STAGE_NAME_CASING, &UNDEFINED_VAR, &INVALID_DEFINITION_DESCRIPTION]
                .map(|r| config.wants(r));
            assert_eq!((got, config.error), (wants, error), "{text}");
        }
        for (text, part) in
            [("skip", "no '='"), ("skip=all;", "no '='"), ("error=maybe", "maybe"), ("jump=all", "jump")]
        {
            let error = Config::parse(text);
            assert!(error.as_ref().is_err_and(|e| e.contains(part)), "{text}: {error:?}");
        }
    }

    #[test]
    fn comments_add_to_the_file() {
        let file = Config::parse("skip=UndefinedVar;error=true").unwrap();
        let own = |comments: &[&str]| {
            let comments: Vec<String> = comments.iter().map(|c| (*c).to_owned()).collect();
            file.with_comments(&comments).into_owned()
        };
        assert!(!own(&["about it", "check=skip=StageNameCasing // why"]).wants(&STAGE_NAME_CASING));
        assert!(!own(&["check=skip=StageNameCasing"]).wants(&UNDEFINED_VAR));
        assert!(own(&["check=error=false"]).error, "only the file says whether findings are errors");
        assert_eq!(own(&["check=nonsense", "check=skip=all"]), file);
        assert_eq!(own(&[]), file);
    }
}

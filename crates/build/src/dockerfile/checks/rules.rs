//! The rules by which Dockerfiles are checked. Their names are the reference's, because people switch them
//! off by name; what they say is said in our words.

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    pub name: &'static str,
    /// What it wants, in one line.
    pub description: &'static str,
    /// Off where nobody asks for it by `experimental=`.
    pub experimental: bool,
}

const fn rule(name: &'static str, description: &'static str) -> Rule {
    Rule { name, description, experimental: false }
}

pub static STAGE_NAME_CASING: Rule = rule("StageNameCasing", "names of stages are written in lower case");
pub static FROM_AS_CASING: Rule =
    rule("FromAsCasing", "AS is written as FROM is: both in upper or in lower case");
pub static NO_EMPTY_CONTINUATION: Rule =
    rule("NoEmptyContinuation", "no blank line stands inside an instruction; docker will refuse it some day");
pub static CONSISTENT_INSTRUCTION_CASING: Rule =
    rule("ConsistentInstructionCasing", "all keywords are written in the same case");
pub static DUPLICATE_STAGE_NAME: Rule = rule("DuplicateStageName", "no two stages have the same name");
pub static RESERVED_STAGE_NAME: Rule =
    rule("ReservedStageName", "no stage has a name that means something else (context, scratch)");
pub static JSON_ARGS_RECOMMENDED: Rule = rule(
    "JSONArgsRecommended",
    "CMD and ENTRYPOINT are JSON arrays; a shell between would keep signals from the program",
);
pub static MAINTAINER_DEPRECATED: Rule =
    rule("MaintainerDeprecated", "the author is named by a label; MAINTAINER is deprecated");
pub static UNDEFINED_ARG_IN_FROM: Rule =
    rule("UndefinedArgInFrom", "FROM uses only variables that an ARG before the first FROM declares");
pub static WORKDIR_RELATIVE_PATH: Rule = rule(
    "WorkdirRelativePath",
    "a relative WORKDIR has an absolute one before it, so that it does not depend on the base image",
);
pub static UNDEFINED_VAR: Rule = rule("UndefinedVar", "variables are set before they are used");
pub static MULTIPLE_INSTRUCTIONS_DISALLOWED: Rule = rule(
    "MultipleInstructionsDisallowed",
    "CMD, ENTRYPOINT and HEALTHCHECK stand once in a stage, as only the last one counts",
);
pub static LEGACY_KEY_VALUE_FORMAT: Rule =
    rule("LegacyKeyValueFormat", "ENV and LABEL have '=' between name and value");
pub static INVALID_BASE_IMAGE_PLATFORM: Rule =
    rule("InvalidBaseImagePlatform", "a base image is for the platform that is built for");
pub static REDUNDANT_TARGET_PLATFORM: Rule =
    rule("RedundantTargetPlatform", "FROM does not ask for $TARGETPLATFORM, which it takes anyway");
pub static SECRETS_USED_IN_ARG_OR_ENV: Rule =
    rule("SecretsUsedInArgOrEnv", "no secret is in ARG or ENV, because everyone can read them in the image");
pub static INVALID_DEFAULT_ARG_IN_FROM: Rule =
    rule("InvalidDefaultArgInFrom", "FROM names a valid image also where no build argument is given");
pub static FROM_PLATFORM_FLAG_CONST_DISALLOWED: Rule =
    rule("FromPlatformFlagConstDisallowed", "the --platform of FROM is not a constant");
pub static COPY_IGNORED_FILE: Rule =
    rule("CopyIgnoredFile", "nothing is copied that .dockerignore leaves out of the context");
pub static INVALID_DEFINITION_DESCRIPTION: Rule = Rule {
    experimental: true,
    ..rule(
        "InvalidDefinitionDescription",
        "the comment above a named stage or an ARG begins with its name: # NAME DESCRIPTION",
    )
};
pub static EXPOSE_PROTO_CASING: Rule =
    rule("ExposeProtoCasing", "protocols in EXPOSE are written in lower case");
pub static EXPOSE_INVALID_FORMAT: Rule = rule(
    "ExposeInvalidFormat",
    "EXPOSE names ports of the container only; docker will refuse addresses and ports of the host some day",
);

/// All of them.
pub static ALL: [&Rule; 22] = [
    &STAGE_NAME_CASING,
    &FROM_AS_CASING,
    &NO_EMPTY_CONTINUATION,
    &CONSISTENT_INSTRUCTION_CASING,
    &DUPLICATE_STAGE_NAME,
    &RESERVED_STAGE_NAME,
    &JSON_ARGS_RECOMMENDED,
    &MAINTAINER_DEPRECATED,
    &UNDEFINED_ARG_IN_FROM,
    &WORKDIR_RELATIVE_PATH,
    &UNDEFINED_VAR,
    &MULTIPLE_INSTRUCTIONS_DISALLOWED,
    &LEGACY_KEY_VALUE_FORMAT,
    &INVALID_BASE_IMAGE_PLATFORM,
    &REDUNDANT_TARGET_PLATFORM,
    &SECRETS_USED_IN_ARG_OR_ENV,
    &INVALID_DEFAULT_ARG_IN_FROM,
    &FROM_PLATFORM_FLAG_CONST_DISALLOWED,
    &COPY_IGNORED_FILE,
    &INVALID_DEFINITION_DESCRIPTION,
    &EXPOSE_PROTO_CASING,
    &EXPOSE_INVALID_FORMAT,
];

impl Rule {
    /// Where docker's manual explains the rule; empty for the one that it has no page of.
    pub fn url(&self) -> String {
        if *self == INVALID_BASE_IMAGE_PLATFORM {
            return String::new();
        }
        let letters: Vec<char> = self.name.chars().collect();
        let mut page = String::new();
        for (i, c) in letters.iter().enumerate() {
            let after_lower = i > 0 && letters[i - 1].is_ascii_lowercase();
            let before_lower = i > 0 && letters.get(i + 1).is_some_and(char::is_ascii_lowercase);
            if c.is_ascii_uppercase() && (after_lower || before_lower) {
                page.push('-');
            }
            page.push(c.to_ascii_lowercase());
        }
        format!("https://docs.docker.com/go/dockerfile/rule/{page}/")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_the_manual() {
        for (rule, page) in [
            (&JSON_ARGS_RECOMMENDED, "https://docs.docker.com/go/dockerfile/rule/json-args-recommended/"),
            (&UNDEFINED_VAR, "https://docs.docker.com/go/dockerfile/rule/undefined-var/"),
            (&FROM_AS_CASING, "https://docs.docker.com/go/dockerfile/rule/from-as-casing/"),
            (&INVALID_BASE_IMAGE_PLATFORM, ""),
        ] {
            assert_eq!(rule.url(), page);
        }
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|r| r.name).collect();
        assert_eq!(names.len(), 22);
        assert_eq!(ALL.iter().filter(|r| r.experimental).count(), 1);
    }
}

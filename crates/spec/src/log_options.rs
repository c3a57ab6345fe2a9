//! How what a container prints is kept: docker's `--log-driver` and `--log-opt`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where the output of a container goes that has a monitor, besides to those who are attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogOptions {
    pub driver: LogDriver,
    /// Bytes after which a file of the log is put aside.
    pub max_size: u64,
    /// Files of the log, the current one included.
    pub max_file: u32,
    /// Labels and variables of the container that go along with each entry.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// By what entries are known; see [`Tag`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
}

impl LogOptions {
    /// Nobody's disk fills up with what nobody reads.
    const MAX_SIZE: u64 = 10 << 20;
    const MAX_FILE: u32 = 3;
    /// One entry has to fit in.
    const LEAST_SIZE: u64 = 64 << 10;

    /// Reads a driver's name, and options of the form `max-size=10m`, `max-file=3`, `labels=A,B`, `env=A,B` and
    /// `tag=TEMPLATE`.
    ///
    /// # Errors
    /// The driver or an option is not known, or a value is not possible.
    pub fn parse(driver: Option<&str>, options: &[String]) -> Result<Self> {
        let mut out =
            LogOptions { driver: LogDriver::parse(driver.unwrap_or("json-file"))?, ..Self::default() };
        let has_files = matches!(out.driver, LogDriver::JsonFile | LogDriver::Cri);
        let has_attributes = matches!(out.driver, LogDriver::JsonFile | LogDriver::Journald);
        for option in options {
            let bad = |why: &str| {
                Error::new(format!("invalid log option '{option}': {why}")).with_hint(
                    "known are max-size=BYTES, such as 10m, max-file=NUMBER, labels=NAME,…, env=NAME,… and tag=TEMPLATE",
                )
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            match name {
                _ if out.driver == LogDriver::None => {
                    return Err(bad("nothing is kept with the driver none"));
                }
                "max-size" | "max-file" if !has_files => {
                    return Err(bad("how much is kept is a matter of journald.conf(5)"));
                }
                "labels" | "env" | "tag" if !has_attributes => {
                    return Err(bad("the form cri has no place for it"));
                }
                "max-size" if value == "-1" => out.max_size = u64::MAX,
                "max-size" if !value.is_empty() => {
                    out.max_size = crate::quantity::parse_bytes(value)?;
                    if out.max_size < Self::LEAST_SIZE {
                        return Err(bad("the least size is 64k"));
                    }
                }
                "max-file" => {
                    let number = value.parse().ok().filter(|n| (1..=1000).contains(n));
                    out.max_file = number.ok_or_else(|| bad("a number from 1 to 1000 is needed"))?;
                }
                "labels" => out.labels = names(value),
                "env" => out.env = names(value),
                "tag" => out.tag = Some(Tag::parse(value)?),
                _ => return Err(bad("it is not known")),
            }
        }
        Ok(out)
    }
}

fn names(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            driver: LogDriver::default(),
            max_size: Self::MAX_SIZE,
            max_file: Self::MAX_FILE,
            labels: Vec::new(),
            env: Vec::new(),
            tag: None,
        }
    }
}

/// The form in which a log is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Docker's: a JSON object an entry.
    #[default]
    JsonFile,
    /// Kubernetes': time, stream, `F` or `P`, text.
    Cri,
    /// The host's journal has it (systemd-journald.service(8)).
    Journald,
    /// Nothing is kept.
    None,
}

impl LogDriver {
    /// Reads a driver's name.
    pub fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "json-file" => LogDriver::JsonFile,
            "cri" | "k8s-file" => LogDriver::Cri,
            "journald" => LogDriver::Journald,
            "none" => LogDriver::None,
            _ => {
                return Err(Error::new(format!("unknown log driver '{name}'"))
                    .with_hint("known are json-file, cri, journald and none"));
            }
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            LogDriver::JsonFile => "json-file",
            LogDriver::Cri => "cri",
            LogDriver::Journald => "journald",
            LogDriver::None => "none",
        }
    }
}

/// By what entries of a container are known: text with docker's words for what is known of the container, such as
/// `{{.Name}}/{{.ID}}` (docker docs, "Customize log driver output").
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tag(String);

/// What a [`Tag`] can tell of a container.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tagged<'a> {
    pub id: &'a str,
    pub name: &'a str,
    /// The digest of its image, where it has one.
    pub image_id: &'a str,
    pub image_name: &'a str,
}

impl Tag {
    /// Docker's, where nothing else is said.
    pub fn usual() -> Tag {
        Tag("{{.ID}}".to_owned())
    }

    /// # Errors
    /// It has a word that is not known.
    pub fn parse(text: &str) -> Result<Tag> {
        filled(text, &Tagged::default())?;
        Ok(Tag(text.to_owned()))
    }

    pub fn of(&self, container: &Tagged<'_>) -> String {
        // What was written down was understood when it was.
        filled(&self.0, container).unwrap_or_else(|_| self.0.clone())
    }
}

fn filled(text: &str, container: &Tagged<'_>) -> Result<String> {
    const SHORT: usize = 12;
    let short = |id: &str| id.rsplit(':').next().unwrap_or_default().chars().take(SHORT).collect::<String>();
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let bad = || {
            Error::new(format!("invalid tag '{text}'")).with_hint(
                "known are {{.ID}}, {{.FullID}}, {{.Name}}, {{.ImageID}}, {{.ImageFullID}}, {{.ImageName}} and {{.DaemonName}}",
            )
        };
        let (word, after) = after.split_once("}}").ok_or_else(bad)?;
        out.push_str(before);
        match word.trim() {
            ".ID" => out.push_str(&short(container.id)),
            ".FullID" => out.push_str(container.id),
            ".Name" => out.push_str(container.name),
            ".ImageID" => out.push_str(&short(container.image_id)),
            ".ImageFullID" => out.push_str(container.image_id),
            ".ImageName" => out.push_str(container.image_name),
            ".DaemonName" => out.push_str("isles"),
            _ => return Err(bad()),
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let parse = |driver: &str, words: &str| {
            LogOptions::parse(Some(driver), &words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let found = parse("json-file", "max-size=1m max-file=2 labels=a,,b env=C tag={{.Name}}").unwrap();
        assert_eq!((found.max_size, found.max_file), (1 << 20, 2));
        assert_eq!((found.labels, found.env), (vec!["a".into(), "b".into()], vec!["C".into()]));
        assert_eq!(parse("json-file", "max-size=-1").unwrap().max_size, u64::MAX);
        assert_eq!(parse("journald", "labels=a").unwrap().driver, LogDriver::Journald);
        for (driver, words, word) in [
            ("fluentd", "", "'fluentd'"),
            ("json-file", "max-size=1", "64k"),
            ("json-file", "max-size", "not known"),
            ("json-file", "max-file=0", "1 to 1000"),
            ("json-file", "labels-regex=x", "not known"),
            ("json-file", "tag={{.Moon}}", "{{.Moon}}"),
            ("json-file", "tag={{.ID", "{{.ID"),
            ("cri", "labels=a", "cri"),
            ("journald", "max-size=1m", "journald.conf"),
            ("none", "tag=x", "none"),
        ] {
            let error = parse(driver, words).unwrap_err();
            assert!(error.to_string().contains(word), "{driver} {words}: {error}");
        }
    }

    #[test]
    fn tags() {
        let container = Tagged {
            id: "0123456789abcdef0123",
            name: "web",
            image_id: "sha256:fedcba9876543210",
            image_name: "nginx:1",
        };
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("{{.Name}}/{{ .ID }}", "web/0123456789ab"),
            ("{{.FullID}}", "0123456789abcdef0123"),
            ("{{.ImageName}} {{.ImageID}}!", "nginx:1 fedcba987654!"),
            ("{{.ImageFullID}}", "sha256:fedcba9876543210"),
        ] {
            assert_eq!(Tag::parse(text).unwrap().of(&container), expected, "{text}");
        }
        assert_eq!(Tag::usual().of(&container), "0123456789ab");
    }
}

//! Labels: those of a recipe and of its base, and what Apptainer notes about every build beside them.

use std::collections::BTreeMap;

use isles_spec::Platform;
use isles_spec::time::rfc3339;

pub type Labels = BTreeMap<String, String>;

const SCHEMA: &str = "org.label-schema.";
const HEADER: &str = "org.label-schema.usage.singularity.deffile.";

/// Where an image is from and when it was built, which its labels tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Fields of the recipe's header, with keys in lower case: `bootstrap`, `from` and the like.
    pub header: BTreeMap<String, String>,
    /// Seconds since 1970.
    pub built: i64,
}

impl Origin {
    /// Of an image that was pulled by a name: agent (`docker`) and name.
    pub fn of_image(agent: &str, name: &str, built: i64) -> Origin {
        let header = [("bootstrap", agent), ("from", name)];
        Origin { header: header.map(|(k, v)| (k.to_owned(), v.to_owned())).into(), built }
    }
}

/// What is noted about a build. `help` is whether the recipe brings a help text.
pub fn of_build(origin: &Origin, platform: &Platform, help: bool) -> Labels {
    let mut labels: Labels = origin.header.iter().map(|(k, v)| (format!("{HEADER}{k}"), v.clone())).collect();
    let mut set = |name: &str, value: String| drop(labels.insert(format!("{SCHEMA}{name}"), value));
    set("schema-version", "1.0".into());
    set("build-date", date(origin.built));
    set("build-arch", platform.architecture.clone());
    set("usage.isles.version", env!("CARGO_PKG_VERSION").into());
    if help {
        set("usage", "/.singularity.d/runscript.help".into());
        set("usage.apptainer.runscript.help", "/.singularity.d/runscript.help".into());
    }
    labels
}

/// Whether a label is one that [`of_build`] makes, and so says nothing about another image.
pub fn is_of_build(name: &str) -> bool {
    name.strip_prefix(SCHEMA).is_some_and(|rest| {
        matches!(rest, "schema-version" | "build-date" | "build-arch")
            || rest == "usage"
            || rest.starts_with("usage.")
    })
}

/// `Thursday_26_November_2026_4:23:42_UTC`
fn date(seconds: i64) -> String {
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    // YYYY-MM-DDThh:mm:ss
    let text = rfc3339(seconds);
    let number =
        |at: usize, len: usize| text.get(at..at + len).and_then(|t| t.parse().ok()).unwrap_or(0usize);
    let weekday = DAYS[(seconds.div_euclid(86400)).rem_euclid(7) as usize];
    let month = MONTHS[number(5, 2).clamp(1, 12) - 1];
    let (year, day) = (text.get(..4).unwrap_or("1970"), number(8, 2));
    let (hour, minute, second) = (number(11, 2), number(14, 2), number(17, 2));
    format!("{weekday}_{day}_{month}_{year}_{hour}:{minute}:{second}_UTC")
}

/// `%labels`, and what `%post` writes to `$APPTAINER_LABELS`: a name, a blank, and the value.
pub fn of_section(body: &str) -> Vec<(String, String)> {
    let line = |line: &str| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        Some((name.trim().to_owned(), value.trim().to_owned()))
    };
    body.lines().filter_map(line).collect()
}

/// The file that `inspect` reads.
pub fn file(labels: &Labels) -> String {
    let mut out = Vec::new();
    let tabs = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut writer = serde_json::Serializer::with_formatter(&mut out, tabs);
    // Writing strings to memory does not fail.
    let _ = serde::Serialize::serialize(labels, &mut writer);
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_as_apptainer_writes_them() {
        for (seconds, text) in [
            (0, "Thursday_1_January_1970_0:0:0_UTC"),
            (951_827_696, "Tuesday_29_February_2000_12:34:56_UTC"),
            (-1, "Wednesday_31_December_1969_23:59:59_UTC"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }

    #[test]
    fn labels_of_sections() {
        let found = of_section("# no\nAuthor  Ann B\nEmpty\n\n  Tab\tx y\n");
        let expected = [("Author", "Ann B"), ("Empty", ""), ("Tab\tx", "y")];
        assert_eq!(found, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_a_build_notes_is_known_again() {
        let origin = Origin::of_image("docker", "debian:12", 0);
        let labels = of_build(&origin, &Platform::new("linux", "amd64", None), true);
        assert_eq!(labels["org.label-schema.usage.singularity.deffile.from"], "debian:12");
        assert_eq!(labels["org.label-schema.build-arch"], "amd64");
        assert!(labels.keys().all(|name| is_of_build(name)), "{labels:?}");
        assert!(!is_of_build("org.label-schema.name") && !is_of_build("usage"));
        assert_eq!(file(&Labels::from([("a".into(), "b".into())])), "{\n\t\"a\": \"b\"\n}");
    }
}

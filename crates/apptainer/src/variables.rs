//! Variables that stand for flags: `APPTAINER_X`, and the older `SINGULARITY_X`.
//!
//! The command line wins over both, but for flags that a variable adds to; the newer variable wins over the older one,
//! with a warning where they differ. A variable of white space is none.

use crate::flag::{Flag, Kind};
use crate::parse::Values;
use crate::talk::Talk;

pub const NEW: &str = "APPTAINER_";
pub const OLD: &str = "SINGULARITY_";

/// Sets the flags of which a variable speaks. `look` finds a variable.
pub fn apply(
    flags: &[&'static Flag],
    values: &mut Values,
    look: &dyn Fn(&str) -> Option<String>,
    talk: &Talk,
) -> Result<(), String> {
    // Of the newer family first: once it has set a flag, the older one does not.
    let mut found: Vec<(&str, String)> = Vec::new();
    let on_line: Vec<bool> = flags.iter().map(|flag| values.has(flag)).collect();
    let mut by_variable = vec![false; flags.len()];
    for (prefix, old) in [(NEW, false), (OLD, true)] {
        for (at, flag) in flags.iter().enumerate() {
            for key in flag.variables {
                let name = format!("{prefix}{key}");
                let (value, bare) = match look(&name) {
                    Some(value) => (value, false),
                    None if flag.bare && !old => match look(key) {
                        Some(value) => (value, true),
                        None => continue,
                    },
                    None => continue,
                };
                if old {
                    match found.iter().find(|(known, _)| known == key) {
                        Some((_, newer)) if *newer == value => continue,
                        Some(_) => {
                            talk.warning(&format!(
                                "{name} and {NEW}{key} have different values, using the latter"
                            ));
                            continue;
                        }
                        None => talk.info(&format!(
                            "Environment variable {name} is set, but {NEW}{key} is preferred"
                        )),
                    }
                } else if !bare {
                    found.push((key, value.clone()));
                }
                let taken = (on_line[at] || by_variable[at]) && !flag.adds;
                if value.trim().is_empty() || taken {
                    continue;
                }
                by_variable[at] = true;
                let value = match flag.kind {
                    Kind::Words => value.trim().split(',').map(str::trim).collect::<Vec<_>>().join(","),
                    _ if flag.adds => value,
                    _ => value.trim().to_owned(),
                };
                values
                    .set(flag, &value)
                    .map_err(|why| format!("unable to set flag {} to value {value}: {why}", flag.name))?;
            }
        }
    }
    Ok(())
}

/// A variable by either prefix, for what no flag stands for.
pub fn look(key: &str) -> Option<String> {
    [NEW, OLD]
        .iter()
        .find_map(|prefix| std::env::var(format!("{prefix}{key}")).ok().filter(|v| !v.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::talk::Level;

    static CONTAIN: Flag = Flag::switch("contain", "").env(&["CONTAIN"]);
    static BIND: Flag = Flag::lines("bind", "", "").env(&["BIND", "BINDPATH"]).adds();
    static OVERLAY: Flag = Flag::words("overlay", "", "").env(&["OVERLAY", "OVERLAYIMAGE"]);
    static USER: Flag = Flag::text("docker-username", "", "").env(&["DOCKER_USERNAME"]).bare();
    const FLAGS: [&Flag; 4] = [&CONTAIN, &BIND, &OVERLAY, &USER];

    fn with(line: &[(&Flag, &str)], variables: &[(&str, &str)]) -> Result<Values, String> {
        let mut values = Values::default();
        for (flag, value) in line {
            values.set(flag, value).unwrap();
        }
        let look = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        apply(&FLAGS, &mut values, &look, &Talk::new(Level::Fatal, false))?;
        Ok(values)
    }

    #[test]
    fn the_line_wins_then_the_newer_name() {
        assert!(with(&[], &[("APPTAINER_CONTAIN", "1")]).unwrap().is(&CONTAIN));
        assert!(with(&[], &[("SINGULARITY_CONTAIN", "TRUE")]).unwrap().is(&CONTAIN));
        assert!(!with(&[(&CONTAIN, "false")], &[("APPTAINER_CONTAIN", "1")]).unwrap().is(&CONTAIN));
        let both = [("SINGULARITY_CONTAIN", "0"), ("APPTAINER_CONTAIN", "1")];
        assert!(with(&[], &both).unwrap().is(&CONTAIN));
        assert!(!with(&[], &[("APPTAINER_CONTAIN", " ")]).unwrap().has(&CONTAIN));
        assert!(with(&[], &[("APPTAINER_CONTAIN", "maybe")]).unwrap_err().contains("contain"));
    }

    #[test]
    fn lists_add_or_are_replaced() {
        let values = with(&[(&BIND, "/a")], &[("APPTAINER_BIND", "/b"), ("SINGULARITY_BINDPATH", "/c")]);
        assert_eq!(values.unwrap().list(&BIND), ["/a", "/b", "/c"]);
        let values = with(&[], &[("APPTAINER_OVERLAY", " /a , /b:ro"), ("SINGULARITY_OVERLAYIMAGE", "/c")]);
        assert_eq!(values.unwrap().list(&OVERLAY), ["/a", "/b:ro"]);
        assert_eq!(with(&[], &[("DOCKER_USERNAME", "u")]).unwrap().text(&USER), Some("u"));
    }
}

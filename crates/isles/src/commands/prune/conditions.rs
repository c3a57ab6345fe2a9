//! What filters of the commands that prune say: how old what goes is at least, and which labels it has and has not. All of
//! them have to be met. One table holds them for all these commands (docker-container-prune(1) and its kin).

use std::collections::BTreeMap;

use crate::commands::logs::time;
use crate::failure::Failure;
use crate::filter::{Filter, has_label};
use crate::ui::age::now;

/// Conditions on what goes.
#[derive(Debug, Default)]
pub struct Conditions<'a> {
    /// Only what was made before this time, in seconds.
    pub before: Option<i64>,
    /// Labels that it has, and that it has not.
    labels: Vec<(&'a str, bool)>,
}

impl<'a> Conditions<'a> {
    /// # Errors
    /// A filter is none, or has a value that is none.
    pub fn of(filters: &'a [Filter]) -> Result<Conditions<'a>, Failure> {
        let mut conditions = Conditions::default();
        for filter in filters {
            match filter.key.as_str() {
                "until" if conditions.before.is_some() => {
                    return Err(Failure::new("more than one filter 'until'").with_hint("give one of them"));
                }
                "until" => conditions.before = Some(moment(&filter.value)?),
                "label" | "label!" if filter.value.split('=').next().unwrap_or_default().is_empty() => {
                    return Err(Failure::new(format!("invalid filter '{}={}'", filter.key, filter.value))
                        .with_hint("write label=KEY, label=KEY=VALUE, or the same with label!"));
                }
                "label" => conditions.labels.push((&filter.value, true)),
                "label!" => conditions.labels.push((&filter.value, false)),
                _ => return Err(filter.unknown("until, label and label!")),
            }
        }
        Ok(conditions)
    }

    /// Whether something meets all of them. `made` is in seconds; what does not say when it was made is not old enough.
    pub fn met(&self, made: Option<i64>, labels: &BTreeMap<String, String>) -> bool {
        self.before.is_none_or(|before| made.is_some_and(|made| made < before))
            && self.labels.iter().all(|(label, wanted)| has_label(labels, label) == *wanted)
    }

    /// Whether what cannot have labels meets those conditions that are about them.
    pub fn met_without_labels(&self) -> bool {
        self.labels.iter().all(|(_, wanted)| !wanted)
    }

    /// Whether none is about labels.
    pub fn are_without_labels(&self) -> bool {
        self.labels.is_empty()
    }
}

/// The moment of a filter `until`, in seconds: a time, or how long ago it was.
pub fn moment(text: &str) -> Result<i64, Failure> {
    const SECOND: u64 = 1_000_000_000;
    let now = u64::try_from(now()).unwrap_or(0).saturating_mul(SECOND);
    Ok(time(text, now)?.div_euclid(SECOND).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters() {
        let labels: BTreeMap<String, String> =
            [("keep", ""), ("stage", "test")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let hour_ago = Some(now() - 3600);
        for (filters, expected) in [
            (&[][..], true),
            (&["label=keep"], true),
            (&["label=keep="], true),
            (&["label=keep=no"], false),
            (&["label=stage=test", "label=keep"], true),
            (&["label=stage=test", "label=other"], false),
            (&["label!=keep"], false),
            (&["label!=stage=live"], true),
            (&["label!=stage=live", "label!=keep"], false),
            (&["LABEL=keep"], true),
            (&["until=30m"], true),
            (&["until=1h30m"], false),
            (&["until=2020-01-01"], false),
            (&["until=2200-01-01T00:00:00"], true),
            (&["until=2200-01-01T00:00:00+02:00", "label=keep"], true),
            (&["until=30m", "label!=keep"], false),
            (&["until=0"], false),
        ] {
            let filters: Vec<Filter> = filters.iter().map(|filter| filter.parse().unwrap()).collect();
            assert_eq!(Conditions::of(&filters).unwrap().met(hour_ago, &labels), expected, "{filters:?}");
        }
        for bad in
            [&["color=red"][..], &["until=soon"], &["until=1h", "until=2h"], &["label="], &["label!==x"]]
        {
            let filters: Vec<Filter> = bad.iter().map(|filter| filter.parse().unwrap()).collect();
            assert!(Conditions::of(&filters).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_says_less_stays() {
        let of = |text: &str| vec![text.parse::<Filter>().unwrap()];
        for (filter, without_age, without_labels) in
            [("until=1h", false, true), ("label=a", false, false), ("label!=a", true, true)]
        {
            let filters = of(filter);
            let conditions = Conditions::of(&filters).unwrap();
            assert_eq!(conditions.met(None, &BTreeMap::new()), without_age, "{filter}");
            assert_eq!(conditions.met_without_labels(), without_labels, "{filter}");
        }
    }
}

//! Who may do what: the rules of the configuration.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::glob::fits;

/// What can be done with a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    Pull,
    Push,
    Delete,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Pull => "pull",
            Action::Push => "push",
            Action::Delete => "delete",
        }
    }

    pub fn of(name: &str) -> Option<Action> {
        [Action::Pull, Action::Push, Action::Delete].into_iter().find(|a| a.name() == name)
    }
}

/// A line of the configuration's `[[access]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// A pattern of repositories; `{user}` stands for the name of who asks.
    pub repositories: String,
    /// Names, `@group`, `*` for whoever has logged in, `anonymous` for everybody.
    pub users: Vec<String>,
    pub allow: Vec<Action>,
}

/// All rules, and what holds where there are none.
#[derive(Debug, Clone, Default)]
pub struct Access {
    pub rules: Vec<Rule>,
    pub groups: BTreeMap<String, Vec<String>>,
    /// Whether there are users at all; without, everybody may do everything unless rules say otherwise.
    pub users: bool,
    pub anonymous_pull: bool,
    /// Prefixes of repositories that only some may have anything of, whatever else is said.
    pub closed: Vec<(String, Vec<String>)>,
}

impl Access {
    /// Whether everybody may do everything.
    pub fn is_open(&self) -> bool {
        !self.users && self.rules.is_empty()
    }

    /// Whether `user` (nobody in particular where `None`) may do this with a repository.
    pub fn allows(&self, user: Option<&str>, repository: &str, action: Action) -> bool {
        let below = |prefix: &str| {
            prefix.is_empty() || repository.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
        };
        let shut = |(prefix, users): &(String, Vec<String>)| {
            below(prefix) && !users.iter().any(|who| self.is(who, user))
        };
        if self.closed.iter().any(shut) {
            return false;
        }
        if self.is_open() || (self.anonymous_pull && action == Action::Pull) {
            return true;
        }
        if self.rules.is_empty() {
            return user.is_some();
        }
        self.rules.iter().any(|rule| {
            rule.allow.contains(&action)
                && rule.users.iter().any(|who| self.is(who, user))
                && self.covers(&rule.repositories, user, repository)
        })
    }

    fn is(&self, who: &str, user: Option<&str>) -> bool {
        match (who, user) {
            ("anonymous", _) => true,
            (_, None) => false,
            ("*", Some(_)) => true,
            (who, Some(user)) => match who.strip_prefix('@') {
                Some(group) => {
                    self.groups.get(group).is_some_and(|members| members.iter().any(|m| m == user))
                }
                None => who == user,
            },
        }
    }

    fn covers(&self, pattern: &str, user: Option<&str>, repository: &str) -> bool {
        if !pattern.contains("{user}") {
            return fits(pattern, repository);
        }
        // A name with the characters of patterns would be more than a name.
        match user.filter(|u| !u.contains(['*', '?', '/'])) {
            Some(user) => fits(&pattern.replace("{user}", user), repository),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(repositories: &str, users: &[&str], allow: &[Action]) -> Rule {
        Rule {
            repositories: repositories.into(),
            users: users.iter().map(|u| (*u).to_owned()).collect(),
            allow: allow.to_vec(),
        }
    }

    #[test]
    fn without_rules() {
        let open = Access::default();
        assert!(open.allows(None, "a", Action::Delete));
        let mut closed = Access { users: true, ..Access::default() };
        assert!(!closed.allows(None, "a", Action::Pull) && closed.allows(Some("u"), "a", Action::Delete));
        closed.anonymous_pull = true;
        assert!(closed.allows(None, "a", Action::Pull) && !closed.allows(None, "a", Action::Push));
    }

    #[test]
    fn closed_prefixes() {
        let closed = vec![("paid".into(), vec!["ann".into()])];
        let access = Access { closed, users: true, anonymous_pull: true, ..Access::default() };
        for (user, repository, yes) in [
            (Some("ann"), "paid/x", true),
            (Some("bob"), "paid/x", false),
            (None, "paid/x/y", false),
            (None, "paidx", true),
            (None, "other/paid/x", true),
        ] {
            assert_eq!(access.allows(user, repository, Action::Pull), yes, "{user:?} {repository}");
        }
        let closed = vec![(String::new(), vec!["*".into()])];
        let all = Access { closed, ..Access::default() };
        assert!(!all.allows(None, "x", Action::Pull) && all.allows(Some("u"), "x", Action::Pull));
    }

    #[test]
    fn rules() {
        use Action::{Delete, Pull, Push};
        let access = Access {
            rules: vec![
                rule("course/**", &["anonymous"], &[Pull]),
                rule("course/**", &["@staff"], &[Push, Delete]),
                rule("home/{user}/**", &["*"], &[Pull, Push]),
                rule("lab", &["eve"], &[Pull]),
            ],
            groups: BTreeMap::from([("staff".into(), vec!["ann".into()])]),
            users: true,
            anonymous_pull: false,
            closed: Vec::new(),
        };
        for (user, repository, action, yes) in [
            (None, "course/a", Pull, true),
            (None, "course/a", Push, false),
            (None, "lab", Pull, false),
            (Some("ann"), "course/a/b", Push, true),
            (Some("bob"), "course/a/b", Push, false),
            (Some("bob"), "course/a/b", Pull, true),
            (Some("bob"), "home/bob/x", Push, true),
            (Some("bob"), "home/bob/x", Delete, false),
            (Some("bob"), "home/ann/x", Pull, false),
            (Some("*"), "home/ann/x", Pull, false),
            (Some("**"), "home/ann/x", Pull, false),
            (Some("eve"), "lab", Pull, true),
            (Some("eve"), "lab/x", Pull, false),
            (Some("anonymous"), "lab", Pull, false),
            (Some("@staff"), "course/a", Push, false),
        ] {
            assert_eq!(access.allows(user, repository, action), yes, "{user:?} {repository} {action:?}");
        }
    }
}

//! What stays and what goes: retention of tags, and collecting while the server serves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use isles_store::{HostedCollected, HostedPolicy, HostedTag, Store};

use crate::Result;
use crate::config::Retention;
use crate::glob::fits;
use crate::server::Server;

/// What is younger stays, where nothing else is said: pushes take their time.
const GRACE: Duration = Duration::from_secs(3600);
/// Uploads that nobody continues go after this time.
const UPLOADS: Duration = Duration::from_secs(24 * 3600);

/// The line that decides about a tag.
fn rule<'a>(rules: &'a [Retention], repository: &str, tag: &str) -> Option<&'a Retention> {
    let fit = |pattern: &Option<String>, name: &str| pattern.as_ref().is_none_or(|p| fits(p, name));
    rules.iter().find(|r| fit(&r.repositories, repository) && fit(&r.tags, tag))
}

/// Whether a tag never changes once it is there.
pub fn is_immutable(rules: &[Retention], repository: &str, tag: &str) -> bool {
    rule(rules, repository, tag).is_some_and(|r| r.immutable)
}

/// Whether some tags never change.
pub fn has_immutable(rules: &[Retention]) -> bool {
    rules.iter().any(|r| r.immutable)
}

/// The tags that go, of those of a repository with their times, the newest first. Of each line's tags the newest stay
/// as far as it says so, and of the others those that are young enough or in use; a line that says nothing keeps all.
fn expired(rules: &[Retention], repository: &str, tags: &[HostedTag], now: SystemTime) -> Vec<String> {
    let mut seen = vec![0usize; rules.len()];
    let mut gone = Vec::new();
    for HostedTag { tag, pushed, pulled } in tags {
        let Some(rule) = rule(rules, repository, tag).filter(|r| !r.immutable) else { continue };
        let place = rules.iter().position(|r| std::ptr::eq(r, rule)).unwrap_or_default();
        seen[place] += 1;
        let among_newest = rule.keep_last.is_some_and(|n| seen[place] <= n);
        let within = |time: SystemTime, age: Duration| now.duration_since(time).unwrap_or_default() < age;
        let young = rule.max_age.is_some_and(|age| within(*pushed, age));
        let used = rule.unpulled.is_some_and(|age| within(pulled.unwrap_or(*pushed).max(*pushed), age));
        let says = rule.keep_last.is_some() || rule.max_age.is_some() || rule.unpulled.is_some();
        if says && !among_newest && !young && !used {
            gone.push(tag.clone());
        }
    }
    gone
}

/// After what time manifests without tags go from a repository.
fn untagged(rules: &[Retention], repository: &str) -> Option<Duration> {
    let fit = |r: &&Retention| r.repositories.as_ref().is_none_or(|p| fits(p, repository));
    rules.iter().filter(fit).filter_map(|r| r.untagged).min()
}

/// Takes away what retention says and what nothing needs. `grace` is that of the command or of the configuration.
pub fn collect(
    store: &Store,
    rules: &[Retention],
    all_untagged: bool,
    grace: Option<Duration>,
    dry_run: bool,
) -> Result<HostedCollected> {
    let now = SystemTime::now();
    let untagged = |name: &str| if all_untagged { Some(Duration::ZERO) } else { untagged(rules, name) };
    let policy = HostedPolicy {
        grace: grace.unwrap_or(GRACE),
        uploads: UPLOADS,
        untagged: &untagged,
        expired: &|name, tags| expired(rules, name, tags, now),
        dry_run,
    };
    Ok(store.collect_hosted(&policy)?)
}

/// Collects as often as the configuration says. What one process does, others find done.
pub async fn collect_now_and_then(server: Arc<Server>) {
    let Some(every) = server.config.collect.every else { return };
    loop {
        tokio::time::sleep(every).await;
        let server = server.clone();
        let done = tokio::task::spawn_blocking(move || {
            let config = &server.config;
            collect(&server.store, &config.retention, false, config.collect.grace, false)
        });
        if let Ok(Err(e)) = done.await {
            eprintln!("isles registry: collecting: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn days(n: u64) -> Duration {
        Duration::from_secs(n * 86400)
    }

    #[test]
    fn which_tags_go() {
        let now = SystemTime::now();
        let tags: Vec<HostedTag> =
            [("ci-5", 1), ("v2", 2), ("ci-4", 10), ("ci-3", 20), ("v1", 400), ("x", 500)]
                .map(|(tag, age)| HostedTag {
                    tag: tag.to_owned(),
                    pushed: now - days(age),
                    pulled: (tag == "v1").then(|| now - days(3)),
                })
                .to_vec();
        let rule = |tags: &str| Retention { tags: Some(tags.into()), ..Retention::default() };
        let all = || Retention::default();
        for (rules, gone) in [
            (vec![], vec![]),
            (vec![rule("ci-*")], vec![]),
            (vec![Retention { keep_last: Some(1), ..rule("ci-*") }], vec!["ci-4", "ci-3"]),
            (vec![Retention { max_age: Some(days(15)), ..rule("ci-*") }], vec!["ci-3"]),
            (vec![Retention { keep_last: Some(1), max_age: Some(days(15)), ..rule("ci-*") }], vec!["ci-3"]),
            (
                vec![
                    Retention { immutable: true, max_age: Some(days(1)), ..rule("v*") },
                    Retention { max_age: Some(days(300)), ..all() },
                ],
                vec!["x"],
            ),
            (vec![Retention { repositories: Some("other/**".into()), keep_last: Some(0), ..all() }], vec![]),
            (vec![Retention { keep_last: Some(0), ..rule("x") }], vec!["x"]),
            (vec![Retention { unpulled: Some(days(15)), ..all() }], vec!["ci-3", "x"]),
            (vec![Retention { unpulled: Some(days(3)), ..all() }], vec!["ci-4", "ci-3", "v1", "x"]),
            (vec![Retention { unpulled: Some(days(15)), keep_last: Some(4), ..all() }], vec!["x"]),
        ] {
            assert_eq!(expired(&rules, "r", &tags, now), gone, "{rules:?}");
        }
    }

    #[test]
    fn the_first_line_that_fits_decides() {
        let rules = vec![
            Retention { tags: Some("v*-rc*".into()), ..Retention::default() },
            Retention {
                tags: Some("v*".into()),
                immutable: true,
                untagged: Some(days(2)),
                ..Retention::default()
            },
        ];
        assert!(is_immutable(&rules, "r", "v1") && !is_immutable(&rules, "r", "v1-rc1"));
        assert!(!is_immutable(&rules, "r", "latest"));
        assert_eq!(untagged(&rules, "r"), Some(days(2)));
    }
}

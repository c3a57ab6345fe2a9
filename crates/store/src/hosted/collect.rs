//! Which links of repositories go: those that no manifest needs, and what retention says. Pushes under way keep
//! theirs, because a link is made new when somebody asks for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use isles_spec::Digest;

use super::{Hosted, HostedManifest};
use crate::gc::Sizes;
use crate::refs::names_in;
use crate::{Pruned, Result, Store};

/// A tag, and when something was done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedTag {
    pub tag: String,
    pub pushed: SystemTime,
    /// When what it stands for was last pulled, to the hour.
    pub pulled: Option<SystemTime>,
}

/// Chooses tags of a repository, by its name and theirs.
type Expired<'a> = dyn Fn(&str, &[HostedTag]) -> Vec<String> + 'a;

/// What a collection takes away from repositories.
#[derive(Clone, Copy)]
pub struct HostedPolicy<'a> {
    /// What is younger stays: links, manifests without a tag, unfinished uploads.
    pub grace: Duration,
    /// For how long uploads that nobody continues stay.
    pub uploads: Duration,
    /// After what time manifests go that have no tag, that no index names, and whose subject is not here; never
    /// where nothing. Asked with the repository's name.
    pub untagged: &'a dyn Fn(&str) -> Option<Duration>,
    /// The tags that are to go. Asked with the repository's name and its tags with their times, the newest first.
    pub expired: &'a Expired<'a>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What went from repositories, or would go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostedCollected {
    /// As `repository:tag`.
    pub tags: Vec<String>,
    /// As `repository@digest`.
    pub manifests: Vec<String>,
    /// Links to blobs.
    pub links: u64,
    pub uploads: u64,
    /// Bytes that are free on disk now; of a dry run, those of the blobs that no repository would have.
    pub freed: u64,
}

/// What a repository has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostedUsage {
    pub tags: u64,
    pub manifests: u64,
    pub blobs: u64,
    /// Bytes of manifests and blobs; what several repositories have counts in each.
    pub bytes: u64,
    /// Bytes of unfinished uploads.
    pub uploads: u64,
}

fn age(path: &Path) -> Duration {
    let modified = fs::metadata(path).and_then(|m| m.modified());
    // What is gone, or comes from the future, is new.
    modified.ok().and_then(|t| t.elapsed().ok()).unwrap_or_default()
}

impl Store {
    /// Takes away what retention says and what no manifest needs, repository by repository, and then what nothing
    /// else in the store needs of it. Runs beside everything else; stops others for moments only.
    pub fn collect_hosted(&self, policy: &HostedPolicy<'_>) -> Result<HostedCollected> {
        let mut done = HostedCollected::default();
        let mut gone = HashSet::new();
        let mut stay = HashSet::new();
        for name in self.hosted_names()? {
            let hosted = self.hosted(&name)?;
            let _alone = if policy.dry_run { None } else { Some(self.exclude()?) };
            hosted.collect(policy, &mut done, &mut gone, &mut stay)?;
        }
        if policy.dry_run {
            let size = |digest: &Digest| self.blob_size(digest).unwrap_or_default();
            done.freed += gone.difference(&stay).map(size).sum::<u64>();
            return Ok(done);
        }
        let mut pruned = Pruned::default();
        self.sweep(Duration::ZERO, Some(&gone), &mut Sizes::default(), &mut pruned)?;
        done.freed += pruned.freed;
        Ok(done)
    }
}

impl Hosted {
    /// Bytes of its manifests and blobs, without one of them.
    pub fn bytes(&self, without: Option<&Digest>) -> Result<u64> {
        let all: HashSet<Digest> = self.manifests()?.into_iter().chain(self.blobs()?).collect();
        Ok(all.iter().filter(|d| Some(*d) != without).filter_map(|d| self.store.blob_size(d)).sum())
    }

    /// What this repository has.
    pub fn usage(&self) -> Result<HostedUsage> {
        let mut usage = HostedUsage { tags: self.tags()?.len() as u64, ..HostedUsage::default() };
        usage.manifests = self.manifests()?.len() as u64;
        usage.blobs = self.blobs()?.len() as u64;
        usage.bytes = self.bytes(None)?;
        usage.uploads = self.unfinished()?;
        Ok(usage)
    }

    /// Bytes that have come of its unfinished uploads.
    pub fn unfinished(&self) -> Result<u64> {
        let uploads = self.dir.join("uploads");
        let size = |name: &String| fs::metadata(uploads.join(name)).map(|m| m.len()).unwrap_or_default();
        Ok(names_in(&uploads)?.iter().map(size).sum())
    }

    fn collect(
        &self,
        policy: &HostedPolicy<'_>,
        done: &mut HostedCollected,
        gone: &mut HashSet<Digest>,
        stay: &mut HashSet<Digest>,
    ) -> Result<()> {
        let tagged = self.retain_tags(policy, done)?;
        let manifests = self.retain_manifests(policy, &tagged, done, gone)?;
        let needed: HashSet<&Digest> = manifests.values().flat_map(|m| &m.blobs).collect();
        stay.extend(manifests.keys().cloned());
        for digest in self.blobs()? {
            let link = self.blob_link(&digest);
            if needed.contains(&digest) || age(&link) < policy.grace {
                stay.insert(digest);
                continue;
            }
            done.links += 1;
            if !policy.dry_run {
                super::remove(&link)?;
            }
            gone.insert(digest);
        }
        let uploads = self.dir.join("uploads");
        for name in names_in(&uploads)? {
            let path = uploads.join(name);
            if age(&path) < policy.uploads.max(policy.grace) {
                continue;
            }
            done.uploads += 1;
            done.freed += fs::metadata(&path).map(|m| m.len()).unwrap_or_default();
            if !policy.dry_run {
                super::remove(&path)?;
            }
        }
        if !policy.dry_run && age(&self.dir) >= policy.grace {
            self.remove_empty();
        }
        Ok(())
    }

    /// Removes the tags that are to go. Returns what the others stand for.
    fn retain_tags(&self, policy: &HostedPolicy<'_>, done: &mut HostedCollected) -> Result<HashSet<Digest>> {
        let mut tags: Vec<HostedTag> = Vec::new();
        for tag in self.tags()? {
            let pushed = self.tagged(&tag).unwrap_or_else(SystemTime::now);
            let pulled = self.tag(&tag)?.and_then(|target| self.pulled(&target));
            tags.push(HostedTag { tag, pushed, pulled });
        }
        tags.sort_by(|a, b| b.pushed.cmp(&a.pushed).then_with(|| a.tag.cmp(&b.tag)));
        let expired: HashSet<String> = (policy.expired)(&self.name, &tags).into_iter().collect();
        let mut targets = HashSet::new();
        for HostedTag { tag, .. } in &tags {
            if !expired.contains(tag) {
                targets.extend(self.tag(tag)?);
                continue;
            }
            done.tags.push(format!("{}:{tag}", self.name));
            if !policy.dry_run {
                self.remove_tag(tag)?;
            }
        }
        Ok(targets)
    }

    /// Removes the manifests that are to go. Returns the others.
    fn retain_manifests(
        &self,
        policy: &HostedPolicy<'_>,
        tagged: &HashSet<Digest>,
        done: &mut HostedCollected,
        gone: &mut HashSet<Digest>,
    ) -> Result<BTreeMap<Digest, HostedManifest>> {
        let mut all = BTreeMap::new();
        for digest in self.manifests()? {
            if let Some(manifest) = self.manifest(&digest)? {
                all.insert(digest, manifest);
            }
        }
        let Some(untagged) = (policy.untagged)(&self.name) else { return Ok(all) };
        let mut about: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
        for (digest, manifest) in &all {
            if let Some(subject) = &manifest.subject {
                about.entry(subject).or_default().push(digest);
            }
        }
        let young = |digest: &Digest| age(&self.manifest_record(digest)) < untagged.max(policy.grace);
        let mut todo: Vec<Digest> = all.keys().filter(|d| tagged.contains(d) || young(d)).cloned().collect();
        let mut reached = HashSet::new();
        while let Some(digest) = todo.pop() {
            if !reached.insert(digest.clone()) {
                continue;
            }
            todo.extend(about.get(&digest).into_iter().flatten().map(|d| (*d).clone()));
            todo.extend(all.get(&digest).into_iter().flat_map(|m| m.manifests.iter().cloned()));
        }
        let going: Vec<Digest> = all.keys().filter(|d| !reached.contains(d)).cloned().collect();
        for digest in going {
            done.manifests.push(format!("{}@{digest}", self.name));
            if !policy.dry_run {
                self.remove_manifest(&digest)?;
            }
            all.remove(&digest);
            gone.insert(digest);
        }
        Ok(all)
    }

    /// Removes folders in which nothing is left; those that are not empty refuse by themselves.
    fn remove_empty(&self) {
        for subject in names_in(&self.dir.join("referrers")).unwrap_or_default() {
            let _ = fs::remove_dir(self.dir.join("referrers").join(subject));
        }
        for name in names_in(&self.dir).unwrap_or_default() {
            let _ = fs::remove_dir(self.dir.join(name));
        }
        let _ = fs::remove_dir(&self.dir);
    }
}

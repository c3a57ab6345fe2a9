//! Finding a container by its name without looking at all others: `names/NAME` is a link to the ID. Names that were made of an
//! ID need none, since they tell the beginning of it.
//!
//! What a link says is believed only where the container says the same, so one that a crash has left is none. Links are made
//! and removed under the lock of names. A state directory from before there were links has them made once.

use std::fs;
use std::io;
use std::path::PathBuf;

use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::name;
use crate::record::{Info, Record, gone, info};

/// Says that all names are there.
const COMPLETE: &str = ".complete";

impl Engine {
    fn names(&self) -> PathBuf {
        self.store.root().join("names")
    }

    /// Finds a container by its name, its ID, or the beginning of its ID.
    pub fn find(&self, name: &str) -> Result<Info> {
        if name.len() == 64
            && let Some(found) = self.with_id(name)?
        {
            return Ok(found);
        }
        if let Some(found) = self.named(name)? {
            return Ok(found);
        }
        let ids = self.store.containers()?;
        let mut close = ids.iter().filter(|id| !name.is_empty() && id.starts_with(name));
        match (close.next(), close.next()) {
            (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
            (Some(only), None) => self.with_id(only)?.ok_or_else(|| Error::NoContainer(name.to_owned())),
            (None, _) => Err(Error::NoContainer(name.to_owned())),
        }
    }

    /// The container of an ID; `None` where there is none, or it is only just being made.
    fn with_id(&self, id: &str) -> Result<Option<Info>> {
        let found = self.store.container(id).map_err(Error::from).and_then(|container| info(&container));
        match found {
            Err(Error::Store(e)) if gone(&e) => Ok(None),
            // As for those who list all: one that cannot be read is none.
            Err(Error::Spelling(_) | Error::BadState { .. }) => Ok(None),
            other => other,
        }
    }

    /// The container of exactly that name.
    pub(crate) fn named(&self, name: &str) -> Result<Option<Info>> {
        if name::check(name).is_err() {
            return Ok(None);
        }
        let dir = self.names();
        let is_it = |id: &str| -> Result<Option<Info>> {
            Ok(self.with_id(id)?.filter(|found| found.record.name == name))
        };
        let linked = |dir: &PathBuf| fs::read_link(dir.join(name)).ok()?.into_os_string().into_string().ok();
        if let Some(found) = linked(&dir).map(|id| is_it(&id)).transpose()?.flatten() {
            return Ok(Some(found));
        }
        if let Some((_, digits)) = name.rsplit_once('_').filter(|(_, digits)| digits.len() == 4) {
            for id in self.store.containers()?.iter().filter(|id| id.starts_with(digits)) {
                if let Some(found) = is_it(id)? {
                    return Ok(Some(found));
                }
            }
        }
        if dir.join(COMPLETE).exists() {
            return Ok(None);
        }
        Ok(self.containers()?.into_iter().find(|found| found.record.name == name))
    }

    /// Writes down whose a name is. The lock of names is held.
    pub(crate) fn put_name(&self, name: &str, id: &str) -> Result<()> {
        if name == name::of(id) {
            return Ok(());
        }
        let dir = self.names();
        let failed = |e| Error::file("write", dir.join(name), e);
        let link = || std::os::unix::fs::symlink(id, dir.join(name));
        match link() {
            // The first one of this state directory, or the first since there are links.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(&dir).map_err(failed)?;
                for found in self.containers()? {
                    let of = found.record;
                    if of.name != name::of(&of.id) && of.id != id {
                        let _ = std::os::unix::fs::symlink(&of.id, dir.join(&of.name));
                    }
                }
                fs::write(dir.join(COMPLETE), "").map_err(failed)?;
                link().map_err(failed)
            }
            // One that a crash has left: who holds the lock has looked whether the name is given.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(dir.join(name)).and_then(|()| link()).map_err(failed)
            }
            other => other.map_err(failed),
        }
    }

    /// Forgets whose a name was, when the container is gone. What cannot be done is done by the next collection.
    pub(crate) fn forget_name(&self, record: &Record) {
        if record.name == name::of(&record.id) {
            return;
        }
        let Ok(_lock) = self.store.lock_names() else { return };
        let link = self.names().join(&record.name);
        if fs::read_link(&link).is_ok_and(|id| id.as_os_str() == record.id.as_str()) {
            let _ = fs::remove_file(link);
        }
    }

    /// Removes names of containers that are gone.
    pub(crate) fn collect_names(&self) -> Result<()> {
        let dir = self.names();
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(()) };
        let stale = |link: &PathBuf| {
            let id = fs::read_link(link).ok().and_then(|id| id.into_os_string().into_string().ok());
            id.is_some_and(|id| self.store.container(&id).is_err())
        };
        let links: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(stale).collect();
        if links.is_empty() {
            return Ok(());
        }
        let _lock = self.store.lock_names()?;
        for link in links.iter().filter(|link| stale(link)) {
            let _ = fs::remove_file(link);
        }
        Ok(())
    }
}

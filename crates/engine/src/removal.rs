//! Removing several containers at once: what they wrote is deleted by a few threads while the next one ends. A file system that
//! tells its disk what is free (ext4's `discard`) waits for the disk with each file, some ten of which each container has.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use isles_store::Remains;

use crate::engine::Engine;
use crate::error::Result;

/// More threads than this do not make a disk faster.
const MOST_THREADS: usize = 8;
/// What a thread needs that deletes.
const STACK: usize = 256 << 10;

impl Engine {
    /// Removes containers as [`Engine::remove`], with the volumes that nobody named where `volumes` says so. `told` hears of
    /// each container when nobody knows it any more, and once more where not all that it wrote could be deleted. Comes back
    /// when all is deleted.
    pub fn remove_all(
        &self,
        names: &[String],
        force: bool,
        volumes: bool,
        told: &mut dyn FnMut(&str, Result<()>),
    ) {
        let (hand_over, handed) = channel();
        let handed = Mutex::new(handed);
        let helpers = names.len().saturating_sub(1).min(MOST_THREADS);
        let failed = thread::scope(|scope| {
            let start = |_| thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || delete(&handed));
            // Where there are none to have, this one does it.
            let helpers: Vec<_> = (0..helpers).map_while(|number| start(number).ok()).collect();
            for name in names {
                let removed = self.remove_one(name, force, volumes).and_then(|remains| {
                    if helpers.is_empty() {
                        return Ok(remains.delete()?);
                    }
                    // The other end is held until this one is gone.
                    drop(hand_over.send((name.as_str(), remains)));
                    Ok(())
                });
                told(name, removed);
            }
            drop(hand_over);
            helpers.into_iter().flat_map(|helper| helper.join().unwrap_or_default()).collect::<Vec<_>>()
        });
        for (name, error) in failed {
            told(name, Err(error.into()));
        }
    }

    fn remove_one(&self, name: &str, force: bool, volumes: bool) -> Result<Remains> {
        let workload = self.find(name).ok().filter(|_| volumes).map(|info| info.record.workload);
        let (_, remains) = self.set_aside(name, force)?;
        workload.map_or(Ok(()), |workload| self.release_volumes(&workload))?;
        Ok(remains)
    }
}

/// Deletes what comes, until nothing does. Returns what went wrong.
fn delete<'a>(handed: &Mutex<Receiver<(&'a str, Remains)>>) -> Vec<(&'a str, isles_store::Error)> {
    let next = || handed.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let mut failed = Vec::new();
    while let Ok((name, remains)) = next() {
        if let Err(e) = remains.delete() {
            failed.push((name, e));
        }
    }
    failed
}

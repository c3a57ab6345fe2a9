//! The stages of a recipe, built side by side: each when somebody needs it, once.
//!
//! A stage may need earlier ones only, so whoever waits for a stage waits for one that somebody works on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// What stages have given so far.
pub struct Stages<'m, T> {
    slots: Mutex<Vec<Slot<T>>>,
    changed: Condvar,
    failure: Mutex<Option<Error>>,
    make: &'m Make<'m, T>,
}

/// Builds the stage of a number; others are had by [`Stages::get`].
type Make<'m, T> = dyn Fn(usize, &Stages<'m, T>) -> Result<T> + Sync + 'm;

enum Slot<T> {
    Waiting,
    Busy,
    Done(Arc<T>),
    Failed,
}

/// Builds the stages `wanted`, in ascending order, of which the last is the one that is asked for. Others are
/// built where these turn out to need them.
pub fn build<'m, T: Send + Sync + 'm>(
    count: usize,
    wanted: &[usize],
    make: &'m (impl Fn(usize, &Stages<'m, T>) -> Result<T> + Sync),
) -> Result<Arc<T>> {
    let slots = Mutex::new((0..count).map(|_| Slot::Waiting).collect());
    let stages = Stages { slots, changed: Condvar::new(), failure: Mutex::new(None), make };
    let Some(target) = wanted.last() else { return Err(Error::Stopped) };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len());
    if threads > 1 {
        let next = Mutex::new(wanted.iter());
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(stage) = { lock(&next).next() } {
                        if stages.get(*stage).is_err() {
                            return;
                        }
                    }
                });
            }
        });
    }
    let result = stages.get(*target);
    match stages.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => result,
    }
}

impl<T> Stages<'_, T> {
    /// What a stage gives; builds it where nobody has, waits where somebody does.
    ///
    /// # Errors
    /// It failed, or the build is being stopped because another one did ([`Error::Stopped`]).
    pub fn get(&self, stage: usize) -> Result<Arc<T>> {
        let mut slots = lock(&self.slots);
        loop {
            match &slots[stage] {
                Slot::Done(done) => return Ok(done.clone()),
                Slot::Failed => return Err(Error::Stopped),
                Slot::Busy => slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner),
                Slot::Waiting if lock(&self.failure).is_some() => return Err(Error::Stopped),
                Slot::Waiting => break,
            }
        }
        slots[stage] = Slot::Busy;
        drop(slots);
        let made = (self.make)(stage, self).map(Arc::new);
        let mut slots = lock(&self.slots);
        slots[stage] = match &made {
            Ok(done) => Slot::Done(done.clone()),
            Err(_) => Slot::Failed,
        };
        self.changed.notify_all();
        drop(slots);
        made.map_err(|e| {
            if !matches!(e, Error::Stopped) {
                lock(&self.failure).get_or_insert(e);
            }
            Error::Stopped
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_stage_is_built_once_and_only_where_it_is_needed() {
        let built: Vec<AtomicUsize> = (0..6).map(|_| AtomicUsize::new(0)).collect();
        // 5 needs 4 and 3, 4 needs 1 without anybody knowing before, 2 is not needed.
        let sum = build(6, &[3, 4, 5], &|stage, stages: &Stages<'_, usize>| {
            built[stage].fetch_add(1, Ordering::Relaxed);
            Ok(match stage {
                5 => *stages.get(4)? + *stages.get(3)?,
                4 => *stages.get(1)? + 10,
                n => n,
            })
        });
        assert_eq!(*sum.unwrap(), 14);
        let counts: Vec<_> = built.iter().map(|b| b.load(Ordering::Relaxed)).collect();
        assert_eq!(counts, [0, 1, 0, 1, 1, 1]);
    }

    #[test]
    fn the_error_is_that_of_the_stage_that_failed() {
        let result = build(3, &[0, 1, 2], &|stage, stages: &Stages<'_, ()>| match stage {
            0 => Err(isles_spec::Error::new("zero").into()),
            n => stages.get(n - 1).map(drop),
        });
        assert_eq!(result.unwrap_err().to_string(), "zero");
    }
}

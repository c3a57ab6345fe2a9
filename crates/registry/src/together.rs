//! Several connections at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Result;
use crate::http::lock;

/// Does `work` with each thing that `next` gives, on so many threads, this one among them. When some of it fails, `stop` is
/// set, nothing else begins, and the first failure is told: the others only follow it.
pub(crate) fn each<T>(
    threads: usize,
    stop: &AtomicBool,
    next: &(dyn Fn() -> Option<T> + Sync),
    work: &(dyn Fn(T) -> Result<()> + Sync),
) -> Result<()> {
    let failed = Mutex::new(None);
    let run = || {
        while let Some(thing) = next() {
            if let Err(e) = work(thing) {
                stop.store(true, Ordering::Relaxed);
                lock(&failed).get_or_insert(e);
            }
            if stop.load(Ordering::Relaxed) {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
    failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}

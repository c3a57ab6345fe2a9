//! A pool of threads over cores, memory and slots.
//!
//! Work is taken in the order in which it came, and what is small enough may pass what is still too big, up to a bound,
//! so that big work is not kept waiting for ever. Threads are made when there is work for them and stay. Work that needs
//! no more of what it holds [says so](Hold::release), and other work begins while it puts things in order.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a piece of work occupies while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Need {
    pub cores: f64,
    /// Of memory.
    pub mebibytes: u64,
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    pub cores: f64,
    /// Of memory.
    pub mebibytes: u64,
    /// Pieces of work at once, whatever they need.
    pub slots: usize,
}

impl Limits {
    /// The processors that this process may use, and the memory of the machine.
    pub fn of_this_machine() -> Limits {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let info = rustix::system::sysinfo();
        let bytes = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit.max(1)));
        Limits { cores: cores as f64, mebibytes: bytes >> 20, slots: 512 }
    }
}

/// Work that needs more than there is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TooBig {
    pub need: Need,
    pub limits: Limits,
}

impl std::fmt::Display for TooBig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.need.cores > self.limits.cores {
            return write!(f, "it needs {} cores, and there are {}", self.need.cores, self.limits.cores);
        }
        write!(f, "it needs {} MiB of memory, and there are {}", self.need.mebibytes, self.limits.mebibytes)
    }
}

impl std::error::Error for TooBig {}

type Work = Box<dyn FnOnce(&Hold<'_>) + Send>;

/// What a piece of work holds while it runs.
pub struct Hold<'a> {
    shared: &'a Arc<Shared>,
    need: Need,
    released: Cell<bool>,
}

impl Hold<'_> {
    /// Gives back what the work needed, as the little that is left of it needs none. It is kept where as much work as there
    /// are cores is in that state.
    pub fn release(&self) {
        let mut state = self.shared.lock();
        if self.released.get() || state.ending as f64 >= self.shared.limits.cores {
            return;
        }
        self.released.set(true);
        state.ending += 1;
        state.free(self.need);
        self.shared.rouse(&mut state);
    }
}

/// So many pieces of work may be looked at behind the first that does not fit.
const LOOK_BEHIND: usize = 64;
/// So often the first in line may be passed before everything waits for it.
const PATIENCE: usize = 256;

struct State {
    queue: VecDeque<(Need, Work)>,
    cores: f64,
    mebibytes: u64,
    running: usize,
    /// Pieces of work that hold nothing any more.
    ending: usize,
    idle: usize,
    threads: Vec<std::thread::JoinHandle<()>>,
    passed: usize,
    closing: bool,
}

impl State {
    fn free(&mut self, need: Need) {
        self.cores = (self.cores - need.cores).max(0.0);
        self.mebibytes -= need.mebibytes;
        self.running -= 1;
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    limits: Limits,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a thread look for work where there may be some for it.
    fn rouse(self: &Arc<Shared>, state: &mut State) {
        if next(state, &self.limits, true).is_none() {
            return;
        }
        if state.idle > 0 {
            self.wake.notify_one();
        } else if state.threads.len() < self.limits.slots && !state.closing {
            let shared = self.clone();
            let made = std::thread::Builder::new().name("isles-flow".into()).spawn(move || serve(&shared));
            // Without another thread those that there are do the work.
            if let Ok(thread) = made {
                state.threads.push(thread);
            }
        }
    }
}

/// The pool. Dropping it lets running work end, and forgets what waits.
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    pub fn new(limits: Limits) -> Pool {
        let state = State {
            queue: VecDeque::new(),
            cores: 0.0,
            mebibytes: 0,
            running: 0,
            ending: 0,
            idle: 0,
            threads: Vec::new(),
            passed: 0,
            closing: false,
        };
        Pool { shared: Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new(), limits }) }
    }

    pub fn limits(&self) -> Limits {
        self.shared.limits
    }

    /// Puts work in line. It runs on a thread of the pool as soon as what it needs is free.
    ///
    /// # Errors
    /// It needs more than there is, so it would never run.
    pub fn submit(&self, need: Need, work: Work) -> Result<(), TooBig> {
        let limits = self.shared.limits;
        if need.cores > limits.cores || need.mebibytes > limits.mebibytes {
            return Err(TooBig { need, limits });
        }
        let mut state = self.shared.lock();
        state.queue.push_back((need, work));
        self.shared.rouse(&mut state);
        Ok(())
    }

    /// Work that waits or runs.
    pub fn pending(&self) -> usize {
        let state = self.shared.lock();
        state.queue.len() + state.running + state.ending
    }

    /// Forgets what has not begun.
    pub fn clear(&self) {
        self.shared.lock().queue.clear();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let threads = {
            let mut state = self.shared.lock();
            state.closing = true;
            state.queue.clear();
            std::mem::take(&mut state.threads)
        };
        self.shared.wake.notify_all();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// The place in line of what may run now. `look` changes nothing.
fn next(state: &mut State, limits: &Limits, look: bool) -> Option<usize> {
    if state.running >= limits.slots {
        return None;
    }
    let fits = |need: &Need| {
        state.running == 0
            || (state.cores + need.cores <= limits.cores + 1e-9
                && state.mebibytes + need.mebibytes <= limits.mebibytes)
    };
    let reach = if state.passed >= PATIENCE { 1 } else { LOOK_BEHIND };
    let found = state.queue.iter().take(reach).position(|(need, _)| fits(need))?;
    if !look {
        state.passed = if found == 0 { 0 } else { state.passed + 1 };
    }
    Some(found)
}

fn serve(shared: &Arc<Shared>) {
    let mut state = shared.lock();
    loop {
        if state.closing {
            return;
        }
        let Some(place) = next(&mut state, &shared.limits, false) else {
            state.idle += 1;
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
            continue;
        };
        let Some((need, work)) = state.queue.remove(place) else { continue };
        state.cores += need.cores;
        state.mebibytes += need.mebibytes;
        state.running += 1;
        if state.idle > 0 {
            shared.rouse(&mut state);
        }
        drop(state);
        let hold = Hold { shared, need, released: Cell::new(false) };
        // A panic of one piece of work is no reason to keep its resources for ever.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&hold)));
        state = shared.lock();
        if hold.released.get() {
            state.ending -= 1;
        } else {
            state.free(need);
        }
        // This thread looks for work itself; another one may find some, too.
        if state.idle > 0 && !state.queue.is_empty() {
            shared.wake.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;

    const NEED: Need = Need { cores: 1.0, mebibytes: 10 };

    #[test]
    fn no_more_runs_at_once_than_there_is_room_for() {
        let pool = Pool::new(Limits { cores: 3.0, mebibytes: 25, slots: 8 });
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let (done, finished) = channel();
        for _ in 0..200 {
            let (now, most, done) = (now.clone(), most.clone(), done.clone());
            let work = move |_: &Hold<'_>| {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                std::thread::yield_now();
                now.fetch_sub(1, Ordering::SeqCst);
                done.send(()).unwrap();
            };
            pool.submit(NEED, Box::new(work)).unwrap();
        }
        for _ in 0..200 {
            finished.recv().unwrap();
        }
        assert!(most.load(Ordering::SeqCst) <= 2, "memory is for two");
    }

    #[test]
    fn big_work_is_not_passed_for_ever() {
        let pool = Arc::new(Pool::new(Limits { cores: 2.0, mebibytes: 100, slots: 8 }));
        let (done, finished) = channel();
        let small = Need { cores: 1.0, mebibytes: 0 };
        for i in 0..2000 {
            let done = done.clone();
            let need = if i == 10 { Need { cores: 2.0, mebibytes: 0 } } else { small };
            pool.submit(need, Box::new(move |_| done.send(i).unwrap())).unwrap();
        }
        let order: Vec<i32> = (0..2000).map(|_| finished.recv().unwrap()).collect();
        let place = order.iter().position(|i| *i == 10).unwrap();
        assert!(place < 10 + PATIENCE + LOOK_BEHIND, "{place}");
    }

    #[test]
    fn what_is_given_back_early_is_free_for_others() {
        let pool = Pool::new(Limits { cores: 1.0, mebibytes: 10, slots: 8 });
        let (begun, begins) = channel();
        let (go, goes) = channel::<()>();
        let goes = Arc::new(Mutex::new(goes));
        for i in 0..3 {
            let (begun, goes) = (begun.clone(), goes.clone());
            let work = move |hold: &Hold<'_>| {
                hold.release();
                // Twice is as good as once.
                hold.release();
                begun.send(i).unwrap();
                goes.lock().unwrap().recv().unwrap();
            };
            pool.submit(NEED, Box::new(work)).unwrap();
        }
        // One has given back what it held, and the next keeps it, since as many as there are cores end already.
        assert_eq!((begins.recv(), begins.recv()), (Ok(0), Ok(1)));
        assert_eq!(pool.pending(), 3);
        assert!(begins.recv_timeout(std::time::Duration::from_millis(20)).is_err());
        (0..3).for_each(|_| go.send(()).unwrap());
        assert_eq!(begins.recv(), Ok(2));
        drop(pool);
    }

    #[test]
    fn what_can_never_run_is_refused_and_a_panic_keeps_nothing() {
        let pool = Pool::new(Limits { cores: 1.0, mebibytes: 10, slots: 1 });
        assert!(pool.submit(Need { cores: 2.0, mebibytes: 1 }, Box::new(|_| ())).is_err());
        assert!(pool.submit(Need { cores: 1.0, mebibytes: 11 }, Box::new(|_| ())).is_err());
        pool.submit(NEED, Box::new(|_| panic!("on purpose"))).unwrap();
        let (done, finished) = channel();
        pool.submit(NEED, Box::new(move |_| done.send(()).unwrap())).unwrap();
        finished.recv().unwrap();
    }
}

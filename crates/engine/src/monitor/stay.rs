//! The loop of a monitor: from a program that runs to one that has ended, and on to the next run or to the end.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use isles_network::dns::{Resolver, Token};
use isles_network::user::door::{Door, Passing};
use isles_sandbox::signals::Signals;
use isles_spec::RestartPolicy;
use isles_store::Container;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};

use super::client::{Client, Passed, Said};
use super::frames::Kind;
use super::probe::Probes;
use super::restart::{self, Run};
use super::{DOOMED, RESTARTS, Running, STOPPED, go_on};
use crate::background::said;
use crate::engine::Engine;
use crate::log::{About, Stream, Writer};
use crate::networks::serve_doors;
use crate::process;
use crate::record::{Record, State, age, now};
use crate::run::{Created, Foreground};
use crate::start::Fence;
use crate::step::Exit;

/// So much is read at once: more leaves the processor's caches before it is written.
pub(super) const PIECE: usize = 64 << 10;
/// Input that the program has not taken yet.
pub(super) const INPUT: usize = 64 << 10;
/// So many may be attached.
const MOST_CLIENTS: usize = 64;
/// What other processes hold open when the program has ended is not waited for longer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Stays with a container until nobody has to any more. Returns the exit code of the process.
pub(crate) fn stay_with(mut running: Running) -> u8 {
    // The container may do without either; `inspect` says why it does.
    let mut wrong = Vec::new();
    let served = running.network.take().and_then(|network| {
        let dns = &running.record.workload.dns;
        network.serve(&running.engine, dns).map_err(|e| wrong.push(format!("it has no network: {e}"))).ok()
    });
    let log = open_log(&running.engine, &running.folder, &running.record);
    let log = log.map_err(|e| wrong.push(format!("it has no log: {e}"))).ok();
    reserve(&running.folder);
    if !wrong.is_empty() {
        running.state.error = wrong.join("; ");
        let _ = running.state.save(&running.folder);
    }
    let mut desk = Desk::new(&mut running, log);
    let code = desk.run(&mut running);
    let Desk { clients, log, passing, doors, .. } = desk;
    if let Some(mut log) = log {
        let _ = log.finish(now());
    }
    // Whoever hears of its end may have its ports.
    drop((served, passing, doors));
    let store = running.engine.store().clone();
    let code = finish(running, code, clients);
    // Who started this was perhaps killed, and this process had a part in what it held until it executed itself anew.
    let _ = store.forget_dead_leases();
    code
}

fn open_log(engine: &Engine, folder: &Container, record: &Record) -> io::Result<Writer> {
    let options = &record.workload.log;
    // What most logs need nothing of is not read for them.
    let of_image = !options.labels.is_empty() || !options.env.is_empty();
    let image = of_image.then(|| engine.image_of(record).ok().flatten()).flatten();
    let config = image.map(|image| image.config.config).unwrap_or_default();
    Writer::open(folder.path(), options, &About::of(record, &config))
}

/// So long takes the deletion of what most containers wrote.
const TO_DELETE: Duration = Duration::from_millis(20);
/// A file that takes as much room as the last words on a container need: on a full disk it makes way for them.
const RESERVE: &str = "reserve";
const RESERVED: u64 = 16 << 10;

fn reserve(folder: &Container) {
    // Without it there may be room all the same.
    let _ = File::create(folder.path().join(RESERVE))
        .map(|file| rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, RESERVED));
}

/// What a loop works with.
struct Desk {
    log: Option<Writer>,
    clients: Vec<Client>,
    /// For the program.
    input: VecDeque<u8>,
    input_ends: bool,
    piece: Vec<u8>,
    terminal: bool,
    /// When a program that was asked to end is killed.
    kill_at: Option<Instant>,
    /// Looks at the container's health.
    probes: Option<Probes>,
    /// Ports by which nobody has come yet.
    doors: Vec<Door>,
    passing: Option<Passing>,
}

/// Where something may come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum From {
    Signals,
    Program,
    Control,
    Stdout,
    Stderr,
    Terminal,
    Stdin,
    Client(usize),
    Names(Token),
    Probe,
    Door,
}

impl Desk {
    fn new(running: &mut Running, log: Option<Writer>) -> Desk {
        let terminal = running.ends.terminal.is_some();
        let ends = &running.ends;
        for end in [&ends.stdin, &ends.stdout, &ends.stderr, &ends.terminal].into_iter().flatten() {
            // One that waits would wait for ever, and hear nobody.
            let _ = rustix::io::ioctl_fionbio(end, true);
        }
        let first = running.first.take().and_then(|socket| Client::first(socket, terminal).ok());
        Desk {
            log,
            clients: first.into_iter().collect(),
            input: VecDeque::new(),
            input_ends: false,
            piece: Vec::new(),
            terminal,
            kill_at: None,
            probes: Probes::new(running.record.health.as_ref(), &running.folder),
            doors: std::mem::take(&mut running.doors),
            passing: None,
        }
    }

    /// Until the program has ended, and all that it printed was read. Returns how it ended.
    fn run(&mut self, running: &mut Running) -> Option<Exit> {
        let mut exit = None;
        let mut give_up: Option<Instant> = None;
        loop {
            let ends = &running.ends;
            let open = ends.stdout.is_some() || ends.stderr.is_some() || ends.terminal.is_some();
            if exit.is_some() && (!open || give_up.is_some_and(|at| Instant::now() >= at)) {
                return exit;
            }
            let mut questions = Vec::new();
            let ready = match self.wait(running, exit.is_none(), give_up) {
                Ok(ready) => ready,
                // Nothing can be waited for: whatever that is, it will not get better.
                Err(_) => return exit.or_else(|| running.child.wait().ok().map(Exit::from)),
            };
            for (from, flags) in ready {
                match from {
                    From::Signals => self.signals(running),
                    From::Program => {
                        if let Ok(Some(status)) = running.child.try_wait() {
                            exit = Some(Exit::from(status));
                            give_up = Some(Instant::now() + LAST_WORDS);
                        }
                    }
                    From::Control => self.welcome(running),
                    From::Stdout => {
                        let open = self.take(running.ends.stdout.as_ref(), Stream::Stdout);
                        if !open {
                            running.ends.stdout = None;
                        }
                    }
                    From::Stderr => {
                        let open = self.take(running.ends.stderr.as_ref(), Stream::Stderr);
                        if !open {
                            running.ends.stderr = None;
                        }
                    }
                    From::Terminal => {
                        if flags.contains(PollFlags::OUT) {
                            self.feed(running);
                        }
                        let more = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
                        if flags.intersects(more)
                            && !self.take(running.ends.terminal.as_ref(), Stream::Stdout)
                        {
                            running.ends.terminal = None;
                        }
                    }
                    From::Stdin => self.feed(running),
                    From::Client(number) => {
                        if flags.contains(PollFlags::OUT)
                            && let Some(client) = self.clients.get_mut(number)
                        {
                            client.unblock();
                        }
                        self.hear(number, running);
                    }
                    From::Names(token) => questions.push(token),
                    From::Probe => {}
                    From::Door => {
                        let doors = std::mem::take(&mut self.doors);
                        // Without a thread for them nobody is led there; all others are, by the firewall.
                        if !doors.is_empty() {
                            self.passing =
                                serve_doors(&running.engine, &running.record.id, doors).unwrap_or_default();
                        }
                    }
                }
            }
            if let Some(probes) = self.probes.as_mut().filter(|_| exit.is_none()) {
                probes.advance(&running.engine, &running.folder, &running.record);
            }
            if let Some(resolver) = &mut running.resolver {
                resolver.advance(&questions);
            }
            if self.kill_at.is_some_and(|at| Instant::now() >= at) {
                self.kill_at = None;
                let _ = running.child.kill(libc::SIGKILL);
            }
            let mut hung_up = false;
            self.clients.retain_mut(|client| {
                let sent = client.send();
                // One that takes nothing is there still.
                let gone = sent.as_ref().is_err_and(|e| e.kind() != io::ErrorKind::TimedOut);
                hung_up |= gone && client.owns() && !client.is_let_go();
                sent.is_ok()
            });
            if hung_up && exit.is_none() {
                self.hang_up(running);
            }
        }
    }

    /// Waits until something can be done.
    fn wait(
        &self,
        running: &Running,
        lives: bool,
        give_up: Option<Instant>,
    ) -> io::Result<Vec<(From, PollFlags)>> {
        let full = self.clients.iter().any(Client::is_full);
        let mut fds: Vec<(From, PollFd<'_>)> = Vec::with_capacity(8 + self.clients.len());
        let mut add = |from, fd: BorrowedFd<'_>, flags: PollFlags| {
            if !flags.is_empty() {
                // SAFETY: the descriptors are of `running` and of clients, which outlive the wait.
                let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&fd)) };
                fds.push((from, PollFd::from_borrowed_fd(fd, flags)));
            }
        };
        add(From::Signals, running.signals.as_fd(), PollFlags::IN);
        if lives {
            add(From::Program, running.child.pidfd(), PollFlags::IN);
        }
        if self.clients.len() < MOST_CLIENTS {
            add(From::Control, running.control.as_fd(), PollFlags::IN);
        }
        let ends = &running.ends;
        for (from, end) in [(From::Stdout, &ends.stdout), (From::Stderr, &ends.stderr)] {
            if let Some(end) = end.as_ref().filter(|_| !full) {
                add(from, end.as_fd(), PollFlags::IN);
            }
        }
        let has_input = !self.input.is_empty();
        if let Some(terminal) = &ends.terminal {
            let mut flags = if full { PollFlags::empty() } else { PollFlags::IN };
            flags.set(PollFlags::OUT, has_input);
            add(From::Terminal, terminal.as_fd(), flags);
        }
        if let Some(stdin) = ends.stdin.as_ref().filter(|_| has_input) {
            add(From::Stdin, stdin.as_fd(), PollFlags::OUT);
        }
        let input_is_full = self.input.len() >= INPUT;
        for (number, client) in self.clients.iter().enumerate() {
            add(From::Client(number), client.socket().as_fd(), client.awaits(input_is_full));
        }
        for (token, fd, flags) in running.resolver.iter().flat_map(Resolver::awaits) {
            add(From::Names(token), fd, flags);
        }
        let probes = self.probes.as_ref().filter(|_| lives);
        for fd in probes.iter().flat_map(|probes| probes.awaits()) {
            add(From::Probe, fd, PollFlags::IN);
        }
        for door in &self.doors {
            add(From::Door, door.socket.as_fd(), PollFlags::IN);
        }
        let patience = self.clients.iter().filter_map(Client::patience_ends);
        let names = running.resolver.as_ref().and_then(Resolver::deadline);
        let until = patience
            .chain(give_up)
            .chain(self.kill_at)
            .chain(names)
            .chain(probes.map(Probes::deadline))
            .min();
        let timeout = until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let (whom, mut fds): (Vec<From>, Vec<PollFd<'_>>) = fds.into_iter().unzip();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(e) => return Err(e.into()),
        }
        let ready = whom.into_iter().zip(fds).map(|(from, fd)| (from, fd.revents()));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn signals(&mut self, running: &Running) {
        while let Ok(Some((signal, _))) = running.signals.next() {
            // The machine goes down, or somebody means the container: it may end in its own way, and nobody asked for
            // it to stay away.
            if matches!(signal, libc::SIGTERM | libc::SIGINT) && self.kill_at.is_none() {
                let _ = running.child.kill(running.record.stop_signal());
                self.kill_at = Some(Instant::now() + running.record.stop_timeout());
            }
        }
    }

    fn welcome(&mut self, running: &Running) {
        while let Ok((socket, _)) = running.control.accept() {
            if self.clients.len() >= MOST_CLIENTS {
                return;
            }
            self.clients.extend(Client::new(OwnedFd::from(socket), self.terminal));
        }
    }

    /// Takes what the program has printed. `false` at the end of it.
    fn take(&mut self, end: Option<&OwnedFd>, stream: Stream) -> bool {
        let Some(end) = end else { return false };
        let kind = if stream.is_stderr() { Kind::Stderr } else { Kind::Stdout };
        // What one person gets and nobody keeps need not be looked at.
        if let ([client], false, false) =
            (self.clients.as_mut_slice(), self.terminal, self.log.as_ref().is_some_and(Writer::keeps))
            && client.pass(kind, end) != Passed::Nothing
        {
            return true;
        }
        if self.piece.is_empty() {
            self.piece = vec![0; PIECE];
        }
        match rustix::io::read(end, &mut self.piece[..]) {
            // The other side of a terminal closes with an error (EIO).
            Ok(0) | Err(Errno::IO) => false,
            Ok(n) => {
                self.clients.iter_mut().for_each(|client| client.tell(kind, &self.piece[..n]));
                if let Some(log) = &mut self.log {
                    // A full disk must not end a container; what does not fit is lost, and later entries are not.
                    let _ = log.write(stream, &self.piece[..n], now());
                }
                true
            }
            Err(Errno::INTR | Errno::AGAIN) => true,
            Err(_) => false,
        }
    }

    /// Gives the program what waits for it.
    fn feed(&mut self, running: &mut Running) {
        let ends = &mut running.ends;
        let Some(end) = ends.terminal.as_ref().or(ends.stdin.as_ref()) else {
            self.input.clear();
            return;
        };
        while !self.input.is_empty() {
            match rustix::io::write(end, self.input.as_slices().0) {
                Ok(n) => drop(self.input.drain(..n)),
                Err(Errno::AGAIN | Errno::INTR) => return,
                // It does not read any more.
                Err(_) => {
                    self.input.clear();
                    ends.stdin = None;
                    return;
                }
            }
        }
        if self.input_ends {
            ends.stdin = None;
        }
    }

    /// Whose the program is has gone without a word: it ends as with a terminal that was closed.
    fn hang_up(&mut self, running: &Running) {
        let pid = running.child.pid();
        let minds = process::minds(pid, libc::SIGHUP);
        let _ = running.child.kill(if minds { libc::SIGHUP } else { libc::SIGKILL });
        self.kill_at.get_or_insert(Instant::now() + running.record.stop_timeout());
    }

    fn hear(&mut self, number: usize, running: &mut Running) {
        let Some(client) = self.clients.get_mut(number) else { return };
        let Ok(said) = client.hear() else {
            client.let_go();
            if client.owns() {
                self.hang_up(running);
            }
            return;
        };
        let mut goes = false;
        for what in said {
            match what {
                Said::Input(bytes) => self.input.extend(bytes),
                Said::EndOfInput if self.terminal => {}
                Said::EndOfInput if running.record.workload.stdin_once => self.input_ends = true,
                Said::EndOfInput => {}
                Said::Resize { rows, columns } => {
                    if let Some(terminal) = &running.ends.terminal {
                        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                        let _ = tcsetwinsize(terminal, size);
                    }
                }
                Said::LetGo => goes = true,
            }
        }
        if goes && let Some(client) = self.clients.get_mut(number) {
            client.let_go();
        }
        self.feed(running);
    }
}

/// Writes down how the container ended, tells those who are attached, and starts it again or lets go of it.
fn finish(mut running: Running, exit: Option<Exit>, mut clients: Vec<Client>) -> u8 {
    let code = exit.map_or(255, Exit::code);
    let ended = now();
    if let Ok(mut fence) = Fence::leftover(&running.engine.group_name(&running.record.id)) {
        // As docker has it: whichever of its processes the kernel has killed.
        running.state.out_of_memory = fence.oom_kills() > 0;
        let _ = fence.remove();
    }
    running.ends = super::Ends::default();
    // The sockets that keep its ports go with what is kept.
    let _ = running.engine.release_networks(&running.record.id);
    running.kept.clear();
    running.resolver = None;
    running.engine.note_end(&running.record, code, running.state.out_of_memory, running.state.pid_start);
    // It may have another policy by now.
    if let Ok(Some(record)) = Record::load(&running.folder) {
        running.record = record;
    }
    let run = Run {
        exit_code: code,
        lasted: running.state.pid_start.map(age).unwrap_or_default(),
        restarts: running.state.restarts,
        delay: running.delay,
        stopped: is_stopped(&running.folder),
    };
    let next = restart::next(running.record.workload.restart, run);
    let restarts = running.folder.path().join(RESTARTS).exists();
    let remove = running.record.workload.remove && next.is_none() && !restarts;
    running.state.finished = Some(ended);
    running.state.exit_code = Some(code);
    running.state.restarting = next.is_some();
    if running.state.save(&running.folder).is_err() {
        let _ = running.folder.forget(RESERVE);
        // Where that does not help, the lock that is let go of says at least that it has ended.
        let _ = running.state.save(&running.folder);
    }
    say_goodbye(&mut clients, code);
    let Running { engine, folder, record, state, control, signals, tree, .. } = running;
    let waiting = Waiting { engine, folder, record, state, control, signals };
    match next {
        Some(delay) => {
            drop(tree);
            start_again(waiting, delay)
        }
        None => end(waiting, tree, remove),
    }
}

/// A container that does not run, and is not let go of.
struct Waiting {
    engine: Engine,
    folder: Container,
    record: Record,
    state: State,
    control: UnixListener,
    signals: Signals,
}

fn is_stopped(folder: &Container) -> bool {
    folder.path().join(STOPPED).exists()
}

/// Whether somebody waits for its end to remove it.
fn is_doomed(folder: &Container) -> bool {
    let said = folder.read(STOPPED).ok().flatten().unwrap_or_default();
    said.split(|byte| *byte == b'\n').any(|line| line == DOOMED.as_bytes())
}

/// Tells those who are attached the exit code, and waits until they have heard it.
pub(super) fn say_goodbye(clients: &mut Vec<Client>, code: u8) {
    clients.iter_mut().for_each(|client| client.tell(Kind::Exit, &[code]));
    loop {
        clients.retain_mut(|client| client.send().is_ok() && client.has_waiting());
        let until = clients.iter().filter_map(Client::patience_ends).min();
        if clients.is_empty() {
            return;
        }
        let timeout = until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let mut fds: Vec<PollFd<'_>> =
            clients.iter().map(|client| PollFd::new(client.socket(), PollFlags::OUT)).collect();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Lets go of the container.
fn end(waiting: Waiting, tree: Option<OwnedFd>, remove: bool) -> u8 {
    let Waiting { engine, folder, record, control, state, .. } = waiting;
    if remove {
        // What cannot be done now is done by the next collection.
        engine.note(&record, "destroy", &[]);
        let _ = folder.remove();
        engine.forget_name(&record);
        let _ = engine.release_volumes(&record.workload);
        // Who came too late to hear it from the loop, and too early to find nobody.
        let code = state.exit_code.unwrap_or(0);
        let late = std::iter::from_fn(|| control.accept().ok());
        let mut late = late.filter_map(|(socket, _)| Client::new(socket.into(), false).ok()).collect();
        say_goodbye(&mut late, code);
    } else {
        let _ = std::fs::remove_file(folder.path().join(super::frames::SOCKET));
        // Whoever starts it again begins with what is on the disk; whoever removes it need not wait for that, and is done sooner
        // where nobody else keeps the disk busy.
        if is_doomed(&folder) {
            drop(folder);
            std::thread::sleep(TO_DELETE);
            drop(tree);
        } else {
            drop(tree);
            drop(folder);
        }
    }
    0
}

/// Starts the container once more after a time, unless somebody asks for its end meanwhile.
fn start_again(mut waiting: Waiting, mut delay: Duration) -> u8 {
    loop {
        if !time_comes(&waiting, Instant::now() + delay) {
            waiting.state.restarting = false;
            let _ = waiting.state.save(&waiting.folder);
            return end(waiting, None, false);
        }
        let Waiting { engine, folder, record, mut state, .. } = waiting;
        let restarts = state.restarts + 1;
        let id = record.id.clone();
        let again = engine.image_of(&record).and_then(|image| {
            let foreground = Foreground { image: image.as_ref(), ..Foreground::default() };
            engine.start_behind(Created { folder, record }, &foreground, None, delay, restarts)
        });
        let error = match again {
            Ok((running, serves)) => return go_on(running, serves),
            Err(e) => e,
        };
        // The lock went with what was tried.
        let Some(taken) = take_back(engine, &id) else { return 0 };
        waiting = taken;
        state.restarts = restarts;
        state.exit_code = Some(error.exit_code());
        state.finished = Some(now());
        state.error = said(&error);
        let run = Run {
            exit_code: error.exit_code(),
            lasted: Duration::ZERO,
            restarts,
            delay,
            stopped: is_stopped(&waiting.folder),
        };
        let next = restart::next(waiting.record.workload.restart, run);
        state.restarting = next.is_some();
        let _ = state.save(&waiting.folder);
        waiting.state = state;
        let Some(longer) = next else { return end(waiting, None, false) };
        delay = longer;
    }
}

/// Takes hold of a container whose start has failed. `None` where it is gone, or somebody else's by now.
fn take_back(engine: Engine, id: &str) -> Option<Waiting> {
    let mut folder = engine.store().container(id).ok()?;
    if !folder.try_lock().ok()? {
        return None;
    }
    let record = Record::load(&folder).ok()??;
    let control = super::listen(folder.path()).ok()?;
    let signals = Signals::block().ok()?;
    Some(Waiting { engine, record, control, signals, folder, state: State::default() })
}

/// Waits until it is time. `false` where the container is not to be started any more.
fn time_comes(waiting: &Waiting, time: Instant) -> bool {
    loop {
        let policy = Record::load(&waiting.folder).ok().flatten().map(|record| record.workload.restart);
        if is_stopped(&waiting.folder) || policy.is_none_or(|policy| policy == RestartPolicy::No) {
            return false;
        }
        let left = time.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        let mut fds =
            [PollFd::new(&waiting.signals, PollFlags::IN), PollFd::new(&waiting.control, PollFlags::IN)];
        if poll(&mut fds, Some(&timespec(left))).is_err() {
            continue;
        }
        // Nothing runs that anybody could be attached to.
        while let Ok((socket, _)) = waiting.control.accept() {
            drop(socket);
        }
        // Another one, such as [`super::WAKE`], only says that something has changed.
        while let Ok(Some((signal, _))) = waiting.signals.next() {
            if matches!(signal, libc::SIGTERM | libc::SIGINT) {
                return false;
            }
        }
    }
}

pub(super) fn timespec(time: Duration) -> Timespec {
    Timespec { tv_sec: time.as_secs().cast_signed(), tv_nsec: time.subsec_nanos().into() }
}

//! Looks at a container's health: a process of ours that runs the test in the container, what it prints, and its end. One
//! that takes too long is killed with all that it has started.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use isles_spec::image::Healthcheck;
use isles_spec::time::rfc3339_nanoseconds;
use isles_store::Container;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::engine::Engine;
use crate::health::{Checks, FILE, Look, OUTPUT};
use crate::record::{Record, now};
use crate::usage::children;

/// So deep no test nests its processes, and so many it does not start.
const MOST_PROCESSES: usize = 4096;

/// The looks at one container.
pub(super) struct Probes {
    checks: Checks,
    /// When the container's program began.
    began: Instant,
    next: Instant,
    running: Option<Running>,
}

struct Running {
    child: Child,
    /// Closed when nobody of the test can print any more.
    output: Option<ChildStdout>,
    pidfd: OwnedFd,
    text: Vec<u8>,
    began: Instant,
    time: u64,
    until: Instant,
    killed: bool,
}

impl Probes {
    /// `None` where the container wants no looks.
    pub fn new(check: Option<&Healthcheck>, folder: &Container) -> Option<Probes> {
        let checks = Checks::new(check?)?;
        let began = Instant::now();
        let next = began + checks.wait(Duration::ZERO);
        let probes = Probes { checks, began, next, running: None };
        probes.save(folder);
        Some(probes)
    }

    fn save(&self, folder: &Container) {
        if let Ok(text) = serde_json::to_vec(&self.checks.health) {
            // Where the disk is full, the verdict before stays.
            let _ = folder.write_volatile(FILE, &text);
        }
    }

    /// When something is to be done.
    pub fn deadline(&self) -> Instant {
        self.running.as_ref().map_or(self.next, |running| running.until)
    }

    /// What to wait for.
    pub fn awaits(&self) -> Vec<BorrowedFd<'_>> {
        let Some(running) = &self.running else { return Vec::new() };
        let output = running.output.as_ref().map(AsFd::as_fd);
        output.into_iter().chain([running.pidfd.as_fd()]).collect()
    }

    /// Does what is due.
    pub fn advance(&mut self, engine: &Engine, folder: &Container, record: &Record) {
        let now = Instant::now();
        if let Some(running) = &mut self.running {
            running.read();
            if now >= running.until && !running.killed {
                running.kill();
            }
            if let Some(exit_code) = running.ended() {
                self.looked(exit_code, engine, folder, record);
            }
        } else if now >= self.next {
            self.running = Running::start(engine, record, &self.checks).ok();
            if self.running.is_none() {
                self.next = now + self.checks.wait(now - self.began);
            }
        }
    }

    fn looked(&mut self, exit_code: i32, engine: &Engine, folder: &Container, record: &Record) {
        let Some(running) = self.running.take() else { return };
        let output = match running.killed {
            true => format!("Health check exceeded timeout ({:?})", self.checks.timeout),
            false => String::from_utf8_lossy(&running.text).into_owned(),
        };
        let (start, end) = (rfc3339_nanoseconds(running.time), rfc3339_nanoseconds(now()));
        let age = running.began - self.began;
        if self.checks.looked(Look { start, end, exit_code, output }, age) {
            let action = format!("health_status: {}", self.checks.health.status.name());
            engine.note(record, &action, &[]);
        }
        self.save(folder);
        let now = Instant::now();
        self.next = now + self.checks.wait(now - self.began);
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        if let Some(running) = &mut self.running {
            running.kill();
            let _ = running.child.wait();
        }
    }
}

impl Running {
    fn start(engine: &Engine, record: &Record, checks: &Checks) -> io::Result<Running> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("--root").arg(engine.store().root()).arg("exec").arg(&record.id).args(&checks.command);
        // What it prints comes in the order in which it was printed.
        let (reader, writer) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        drop(command);
        let pid = Pid::from_raw(child.id().cast_signed()).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e.into());
            }
        };
        rustix::io::ioctl_fionbio(&reader, true)?;
        let began = Instant::now();
        Ok(Running {
            child,
            output: Some(ChildStdout::from(OwnedFd::from(reader))),
            pidfd,
            text: Vec::new(),
            began,
            time: now(),
            until: began + checks.timeout,
            killed: false,
        })
    }

    fn read(&mut self) {
        let mut piece = [0u8; 4096];
        while let Some(output) = &mut self.output {
            match output.read(&mut piece) {
                Ok(0) => self.output = None,
                // The rest is read, so that nobody waits for it to be, and not kept.
                Ok(n) => {
                    let room = OUTPUT.saturating_sub(self.text.len());
                    self.text.extend_from_slice(&piece[..n.min(room)]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.output = None,
            }
        }
    }

    /// The exit code, when it has ended; -1 where it was killed here.
    fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().ok()??;
        self.read();
        Some(if self.killed { -1 } else { status.code().unwrap_or(-1) })
    }

    /// Kills the process and all that it has started: those in the container first, who have no other parent then.
    fn kill(&mut self) {
        self.killed = true;
        let mut all = vec![self.child.id().cast_signed()];
        let mut at = 0;
        while at < all.len() && all.len() < MOST_PROCESSES {
            all.extend(children(all[at]));
            at += 1;
        }
        for pid in all.into_iter().rev() {
            if let Some(pid) = Pid::from_raw(pid)
                && let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty())
            {
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            }
        }
    }
}

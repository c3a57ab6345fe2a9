//! A container that was started without any network that it shares, and joins one while it runs. What others start with,
//! ears for its neighbours and answers to its questions for names, is made then: most containers never need it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use isles_sandbox::network::Entered;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::neighbour;
use super::serve::Kind;
use crate::dns::{Resolver, Sockets, Token};

/// The stack of the thread that answers for names.
const STACK: usize = 128 << 10;

/// Makes what answers a container's questions, and lets the container know where to ask.
pub type Names = Box<dyn FnOnce(Sockets) -> io::Result<Resolver> + Send>;

/// What is made of a container when it joins its first network.
pub struct Late {
    /// The container's folder, where others look for it.
    pub folder: PathBuf,
    pub names: Names,
}

impl Late {
    /// What answers its questions, from sockets in its network. Where they cannot be had it keeps the servers that it has,
    /// and knows the others of its networks by their addresses only. Those who look for it find it when it listens, so this comes
    /// first.
    pub(super) fn resolver(&mut self, entered: &Entered) -> Option<Resolver> {
        let names = std::mem::replace(&mut self.names, Box::new(|_| Err(io::ErrorKind::NotFound.into())));
        names(Sockets::of_entered(entered).ok()?).ok()
    }

    /// Listens for its neighbours.
    pub(super) fn listeners(&self) -> io::Result<[(OwnedFd, Kind); 2]> {
        let hear = |kind| Ok::<_, io::Error>((neighbour::hear(&self.folder, kind)?, kind));
        // Who waits for them waits for the second one.
        Ok([hear(Kind::Stream)?, hear(Kind::Datagrams)?])
    }
}

/// Answers questions by a thread of its own, until `end` can be read.
pub(super) fn answer_names(mut resolver: Resolver, end: Arc<OwnedFd>) {
    let answers = move || {
        loop {
            let until = resolver.deadline().map(|at| at.saturating_duration_since(Instant::now()));
            let until = until
                .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let awaits = resolver.awaits();
            let mut fds = vec![PollFd::new(&*end, PollFlags::IN)];
            fds.extend(awaits.iter().map(|(_, fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
            match poll(&mut fds, until.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            if !fds[0].revents().is_empty() {
                return;
            }
            let ready = awaits.iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty());
            let ready: Vec<Token> = ready.map(|((token, ..), _)| *token).collect();
            drop((fds, awaits));
            resolver.advance(&ready);
        }
    };
    // Without it the container is asked for, and asks nobody.
    let _ = std::thread::Builder::new().name("names".to_owned()).stack_size(STACK).spawn(answers);
}

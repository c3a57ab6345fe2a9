//! A program with a terminal in a container, beside the container's own, whose caller may let go of it.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use isles_sandbox::Child;
use isles_sandbox::signals::Signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{Winsize, tcsetwinsize};

use super::client::{Client, Said};
use super::frames::Kind;
use super::stay::{INPUT, PIECE, say_goodbye, timespec};
use crate::step::Exit;

/// Stays with the program until it ends. Whoever is at the other end of the socket gets what it prints; when they go without
/// a word, its terminal hangs up. Returns its exit code.
pub(crate) fn with_terminal(mut child: Child, socket: UnixStream, signals: &Signals) -> u8 {
    let mut master = child.terminal.take();
    if let Some(master) = &master {
        let _ = rustix::io::ioctl_fionbio(master, true);
    }
    let mut client = Client::first(socket.into(), true).ok();
    let mut input: VecDeque<u8> = VecDeque::new();
    let mut piece = vec![0; PIECE];
    let mut let_go = false;
    let mut ended = false;
    loop {
        if client.is_none() && !let_go {
            master = None;
        }
        let mut fds = vec![PollFd::new(signals, PollFlags::IN)];
        let full = client.as_ref().is_some_and(Client::is_full);
        let of_child = if ended { PollFlags::empty() } else { PollFlags::IN };
        fds.push(PollFd::from_borrowed_fd(child.pidfd(), of_child));
        if let Some(master) = &master {
            let mut flags = if full { PollFlags::empty() } else { PollFlags::IN };
            flags.set(PollFlags::OUT, !input.is_empty());
            fds.push(PollFd::new(master, flags));
        }
        let of_master = master.is_some().then_some(2);
        if let Some(client) = &client {
            fds.push(PollFd::new(client.socket(), client.awaits(input.len() >= INPUT)));
        }
        // What it has printed last is in its terminal by now.
        let at_once = (ended && !full).then(Instant::now);
        let until = at_once.or(client.as_ref().and_then(Client::patience_ends));
        let timeout = until.map(|at| timespec(at.saturating_duration_since(Instant::now())));
        let ready: Vec<PollFlags> = match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => fds.iter().map(PollFd::revents).collect(),
            Err(Errno::INTR) => continue,
            // Nothing can be waited for: whatever that is, it will not get better.
            Err(_) => break,
        };
        drop(fds);
        // They are those of this process, and of nobody's terminal.
        while let Ok(Some(_)) = signals.next() {}
        ended |= !ready[1].is_empty();
        let mut more = false;
        if let (Some(at), Some(terminal)) = (of_master, &master) {
            if ready[at].contains(PollFlags::OUT) {
                feed(terminal, &mut input);
            }
            if ready[at].intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                more = true;
                match rustix::io::read(terminal, &mut piece[..]) {
                    // The other side of a terminal closes with an error (EIO).
                    Ok(0) | Err(Errno::IO) => master = None,
                    Ok(n) => client.iter_mut().for_each(|client| client.tell(Kind::Stdout, &piece[..n])),
                    Err(_) => {}
                }
            }
        }
        let of_client = 2 + usize::from(of_master.is_some());
        if let Some(heard) = client.as_mut().filter(|_| ready.get(of_client).is_some_and(|f| !f.is_empty())) {
            match heard.hear() {
                Ok(all) => {
                    for said in all {
                        match said {
                            Said::Input(bytes) => input.extend(bytes),
                            Said::EndOfInput => {}
                            Said::Resize { rows, columns } => {
                                let size =
                                    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                                let _ = master.as_ref().map(|master| tcsetwinsize(master, size));
                            }
                            Said::LetGo => let_go = true,
                        }
                    }
                }
                Err(_) => heard.let_go(),
            }
        }
        if let_go || client.as_mut().is_some_and(|client| client.send().is_err() || client.is_silent()) {
            client = None;
        }
        if ended && (!more || master.is_none()) && !full {
            break;
        }
    }
    let code = child.wait().map_or(255, |status| Exit::from(status).code());
    say_goodbye(&mut client.into_iter().collect(), code);
    code
}

fn feed(terminal: impl AsFd, input: &mut VecDeque<u8>) {
    while !input.is_empty() {
        match rustix::io::write(&terminal, input.as_slices().0) {
            Ok(n) => drop(input.drain(..n)),
            Err(Errno::AGAIN | Errno::INTR) => return,
            // It does not read any more.
            Err(_) => input.clear(),
        }
    }
}

//! A blob that is being fetched: whoever asks for it meanwhile reads what has come, as it comes.
//!
//! The last byte is handed out when the digest is right, so nobody has a wrong blob whole.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::watch;

/// Bytes that are handed out at once.
const CHUNK: u64 = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// So many bytes are there.
    Coming(u64),
    Whole,
    Failed,
}

/// What those share who fetch a blob and who read it.
#[derive(Debug)]
pub struct Flight {
    pub size: u64,
    file: File,
    state: watch::Sender<State>,
}

impl Flight {
    pub fn new(file: File, size: u64, there: u64) -> Flight {
        Flight { size, file, state: watch::Sender::new(State::Coming(there)) }
    }

    pub fn tell(&self, state: State) {
        self.state.send_replace(state);
    }

    /// Waits for the end; whether the blob is whole.
    pub fn wait(&self) -> bool {
        let mut state = self.state.subscribe();
        let ended =
            tokio::runtime::Handle::current().block_on(state.wait_for(|s| !matches!(s, State::Coming(_))));
        ended.is_ok_and(|state| *state == State::Whole)
    }

    /// The next bytes from `at` on, when they are there.
    pub async fn next(self: Arc<Self>, at: u64) -> io::Result<Bytes> {
        let mut state = self.state.subscribe();
        let ready = |state: &State| match state {
            State::Coming(there) => readable(*there, self.size) > at,
            State::Whole | State::Failed => true,
        };
        let state = *state.wait_for(ready).await.map_err(io::Error::other)?;
        let end = match state {
            State::Coming(there) => readable(there, self.size),
            State::Whole => self.size,
            State::Failed => return Err(io::Error::other("the blob could not be fetched")),
        };
        let count = CHUNK.min(end.saturating_sub(at)) as usize;
        let flight = self.clone();
        let read = move || {
            let mut bytes = vec![0; count];
            flight.file.read_exact_at(&mut bytes, at).map(|()| Bytes::from(bytes))
        };
        tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
    }
}

/// How much of what is there may be handed out before the digest is known.
fn readable(there: u64, size: u64) -> u64 {
    there.min(size.saturating_sub(1))
}

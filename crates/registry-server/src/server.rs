//! The server as a whole: what requests share, the sockets, and one task for each connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use isles_store::{RunningHash, Store};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::access::Access;
use crate::config::Config;
use crate::connection::{Clock, Patient};
use crate::identity::Logins;
use crate::log::{Log, LogTo};
use crate::metrics::Metrics;
use crate::mirror::Mirrors;
use crate::passwords::Passwords;
use crate::sendfile::{Files, Sending};
use crate::tls::{OwnCertificate, Tls};
use crate::token::Tokens;
use crate::{Error, Result, handle, retention};

/// After so long without a byte a connection is closed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The headers of a request may take so long.
const HEADERS: Duration = Duration::from_secs(30);
/// Connections beyond are closed at once.
const MOST_CONNECTIONS: usize = 4096;
/// Running hashes that are remembered; each takes some 300 bytes.
const MOST_HASHES: usize = 1024;
/// Lists of names that are remembered.
const MOST_LISTS: usize = 32;
/// A list is remembered when it has not changed for so long before it was read: clocks of file systems tick slowly.
const SETTLED: Duration = Duration::from_millis(100);
/// Bytes that a connection reads or writes at once.
const BUFFER: usize = 512 << 10;

/// Names, and when the folder that they are in changed.
type List = (SystemTime, Arc<Vec<String>>);

/// A registry over one store. Any number of them may serve the same one.
pub struct Server {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) access: Access,
    pub(crate) passwords: Option<Arc<Passwords>>,
    pub(crate) tokens: Tokens,
    pub(crate) logins: Logins,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) log: Log,
    pub(crate) mirrors: Mirrors,
    hashes: Mutex<HashMap<String, RunningHash>>,
    lists: Mutex<HashMap<String, List>>,
    connections: AtomicUsize,
}

impl Server {
    /// A server that is ready to listen. Reads the files that the configuration names.
    pub fn new(store: Store, config: Config, log: &LogTo) -> Result<Server> {
        let passwords = config.htpasswd.as_deref().map(Passwords::open).transpose()?.map(Arc::new);
        Ok(Server {
            tokens: Tokens::new(&secret(&store)?),
            access: config.access(),
            mirrors: Mirrors::new(&config.mirror)?,
            passwords,
            store,
            config,
            logins: Logins::default(),
            metrics: Arc::default(),
            log: Log::open(log)?,
            hashes: Mutex::default(),
            lists: Mutex::default(),
            connections: AtomicUsize::new(0),
        })
    }

    /// Serves until the process is told to end (SIGTERM or SIGINT), then lets requests under way come to their end
    /// for some seconds. `ready` is told the URLs, and of the certificate where it was made here.
    pub fn serve(self, ready: &dyn Fn(&str, Option<OwnCertificate<'_>>)) -> Result<()> {
        let failed = |source| Error::Io { doing: "start", object: "the server".into(), source };
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(4);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(512)
            .thread_keep_alive(Duration::from_secs(5))
            .thread_stack_size(512 << 10)
            .enable_all()
            .build()
            .map_err(failed)?;
        let server = Arc::new(self);
        let tls = server.config.tls.as_ref().map(|tls| Tls::open(tls, server.store.root())).transpose()?;
        let tls = tls.map(Arc::new);
        runtime.block_on(async {
            let (stop, stopped) = tokio::sync::watch::channel(false);
            let mut sockets = Vec::new();
            for address in server.config.addresses() {
                let bad = |source| Error::Io { doing: "listen on", object: address.clone(), source };
                let listener = TcpListener::bind(&address).await.map_err(bad)?;
                let local = listener.local_addr().map_err(bad)?;
                let scheme = if tls.is_some() { "https" } else { "http" };
                ready(&format!("{scheme}://{local}"), tls.as_ref().and_then(|t| t.own()));
                sockets.push(listener);
            }
            let running = sockets
                .into_iter()
                .map(|listener| tokio::spawn(accept(server.clone(), listener, tls.clone(), stopped.clone())));
            let running: Vec<_> = running.collect();
            let collector = tokio::spawn(retention::collect_now_and_then(server.clone()));
            asked_to_end().await.map_err(failed)?;
            let _ = stop.send(true);
            collector.abort();
            for task in running {
                let _ = task.await;
            }
            let begun = tokio::time::Instant::now();
            while server.connections.load(Ordering::Relaxed) > 0 && begun.elapsed() < Duration::from_secs(10)
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Ok::<(), Error>(())
        })?;
        // What still reads or writes a file is not waited for; nothing that counts is half done by it.
        runtime.shutdown_background();
        Ok(())
    }

    /// What is known of the hash of an upload.
    pub(crate) fn take_hash(&self, id: &str) -> Option<RunningHash> {
        self.hashes.lock().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    pub(crate) fn keep_hash(&self, id: &str, hash: RunningHash) {
        let mut hashes = self.hashes.lock().unwrap_or_else(PoisonError::into_inner);
        if hashes.len() >= MOST_HASHES {
            // They only spare reading once more.
            hashes.clear();
        }
        hashes.insert(id.to_owned(), hash);
    }

    /// A sorted list of names, remembered for as long as the folder behind it does not change.
    pub(crate) fn list(
        &self,
        key: &str,
        changed: Option<SystemTime>,
        read: &dyn Fn() -> isles_store::Result<Vec<String>>,
    ) -> isles_store::Result<Arc<Vec<String>>> {
        let lists = || self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(changed) = changed
            && let Some((at, list)) = lists().get(key)
            && *at == changed
        {
            return Ok(list.clone());
        }
        let list = Arc::new(read()?);
        if let Some(changed) = changed
            && changed.elapsed().is_ok_and(|age| age > SETTLED)
        {
            let mut lists = lists();
            if lists.len() >= MOST_LISTS {
                lists.clear();
            }
            lists.insert(key.to_owned(), (changed, list.clone()));
        }
        Ok(list)
    }
}

/// The key that signs tokens, made where it is missing. Of several processes that make it, one wins.
fn secret(store: &Store) -> Result<Vec<u8>> {
    let path = store.root().join("registry-token-key");
    loop {
        match std::fs::read(&path) {
            Ok(key) if key.len() == 32 => return Ok(key),
            Ok(_) => return Err(Error::config(path.display(), "it has not 32 bytes")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io("read", &path, e)),
        }
        let mut key = [0; 32];
        SystemRandom::new()
            .fill(&mut key)
            .map_err(|_| Error::config("the key of tokens", "the system has no random numbers"))?;
        write_secret(&path, &key)?;
    }
}

/// Writes a file that only its owner may read, unless it is there already.
pub(crate) fn write_secret(path: &Path, content: &[u8]) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |e| Error::io("write", path, e);
    if let Some(folder) = path.parent() {
        use std::os::unix::fs::DirBuilderExt as _;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
    }
    let aside = path.with_extension(format!("new-{}", isles_store::random_name()));
    let written = (|| {
        let mut file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        match std::fs::hard_link(&aside, path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
            _ => Ok(()),
        }
    })();
    let _ = std::fs::remove_file(&aside);
    written.map_err(failed)
}

/// Which of two was done first.
enum First<A, B> {
    A(A),
    B(B),
}

/// Waits for one of two; the other is given up.
async fn first<A: Future, B: Future>(a: A, b: B) -> First<A::Output, B::Output> {
    let (mut a, mut b) = (pin!(a), pin!(b));
    std::future::poll_fn(|cx| match a.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(First::A(done)),
        Poll::Pending => b.as_mut().poll(cx).map(First::B),
    })
    .await
}

async fn asked_to_end() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    first(term.recv(), int.recv()).await;
    Ok(())
}

/// Takes connections until the server stops.
async fn accept(
    server: Arc<Server>,
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    loop {
        let (stream, peer) = match first(listener.accept(), stopped.changed()).await {
            First::B(_) => return,
            First::A(Ok(accepted)) => accepted,
            First::A(Err(_)) => {
                // Too many open files, most likely: others will end.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        if server.connections.load(Ordering::Relaxed) >= MOST_CONNECTIONS {
            continue;
        }
        let _ = stream.set_nodelay(true);
        let (server, acceptor, stopped) =
            (server.clone(), tls.as_ref().map(|t| t.acceptor()), stopped.clone());
        tokio::spawn(async move {
            let _one = Connected::new(&server);
            match acceptor {
                None => {
                    let files = Arc::<Files>::default();
                    let stream = Sending::new(stream, files.clone());
                    converse(&server, stream, peer, Some(files), stopped).await;
                }
                Some(acceptor) => secure(&server, acceptor, stream, peer, stopped).await,
            }
        });
    }
}

/// Counts a connection for as long as it lives.
struct Connected<'a>(&'a Server);

impl<'a> Connected<'a> {
    fn new(server: &'a Server) -> Self {
        server.connections.fetch_add(1, Ordering::Relaxed);
        server.metrics.connected(1);
        Connected(server)
    }
}

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connected(-1);
    }
}

async fn secure(
    server: &Arc<Server>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    stopped: tokio::sync::watch::Receiver<bool>,
) {
    if let Ok(Ok(stream)) = tokio::time::timeout(HEADERS, acceptor.accept(stream)).await {
        converse(server, stream, peer, None, stopped).await;
    }
}

/// Answers the requests of one connection, one after the other. `files` goes to a stream without TLS.
async fn converse<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    server: &Arc<Server>,
    stream: S,
    peer: SocketAddr,
    files: Option<Arc<Files>>,
    mut stopped: tokio::sync::watch::Receiver<bool>,
) {
    let service = service_fn(|request| {
        let (server, files) = (server.clone(), files.clone());
        async move { Ok::<_, Infallible>(handle::answer(server, request, peer, files).await) }
    });
    let patience = server.config.idle.unwrap_or(PATIENCE);
    let connection = http1::Builder::new()
        .timer(Clock)
        .header_read_timeout(HEADERS.min(patience))
        .max_buf_size(BUFFER)
        .serve_connection(Patient::new(stream, patience), service);
    let mut connection = pin!(connection);
    // An error is the client's going away, or its breaking the protocol; either way there is nobody to tell.
    if let First::B(_) = first(connection.as_mut(), stopped.changed()).await {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}

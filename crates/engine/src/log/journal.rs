//! The host's journal as a log: a datagram of fields for each entry, with the names that docker's driver gives them
//! (systemd's "Native Journal Protocol"; docker docs, "Journald logging driver").

use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, sendmsg_addr, socket_with, sockopt,
};

use super::entry::Said;
use super::{About, Stream};

/// Where the journal listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
/// How long one entry may keep the container waiting; after that none does until the journal takes some again.
const PATIENCE: Duration = Duration::from_secs(1);
/// syslog(3): what is an error, and what is none.
const ERROR: u8 = 3;
const INFORMATION: u8 = 6;

/// Whether a journal is there.
pub fn is_there() -> bool {
    Path::new(SOCKET).exists()
}

/// The way to the journal. A journal that is started anew is found again, since no connection is kept.
#[derive(Debug)]
pub struct Journal {
    socket: OwnedFd,
    path: PathBuf,
    /// Fields that are the same in each entry.
    always: Vec<u8>,
    /// It did not take the last one in time.
    slow: bool,
}

impl Journal {
    pub fn open(about: &About) -> io::Result<Journal> {
        Self::at(Path::new(SOCKET), about)
    }

    fn at(path: &Path, about: &About) -> io::Result<Journal> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(PATIENCE))?;
        let mut always = Vec::new();
        let short: String = about.id.chars().take(12).collect();
        for (name, value) in [
            ("CONTAINER_ID", short.as_str()),
            ("CONTAINER_ID_FULL", &about.id),
            ("CONTAINER_NAME", &about.name),
            ("CONTAINER_TAG", &about.tag),
            ("IMAGE_NAME", &about.image),
            ("SYSLOG_IDENTIFIER", &about.tag),
        ] {
            field(&mut always, name, value.as_bytes());
        }
        for (name, value) in &about.attributes {
            // Docker's driver has the tag by other names.
            if let Some(name) = name_of_field(name).filter(|name| name != "TAG") {
                field(&mut always, &name, value.as_bytes());
            }
        }
        Ok(Journal { socket, path: path.to_owned(), always, slow: false })
    }

    /// Sends one entry.
    ///
    /// # Errors
    /// Nobody takes it.
    pub fn send(&mut self, said: Said<'_>) -> io::Result<()> {
        let mut fields = Vec::with_capacity(self.always.len() + said.text.len() + 128);
        fields.extend_from_slice(&self.always);
        let priority = if said.stream == Stream::Stderr { ERROR } else { INFORMATION };
        field(&mut fields, "PRIORITY", priority.to_string().as_bytes());
        field(&mut fields, "SYSLOG_TIMESTAMP", said.time.as_bytes());
        if !said.whole {
            field(&mut fields, "CONTAINER_PARTIAL_MESSAGE", b"true");
        }
        field(&mut fields, "MESSAGE", said.text);
        let address = SocketAddrUnix::new(&self.path)?;
        let flags = SendFlags::NOSIGNAL | if self.slow { SendFlags::DONTWAIT } else { SendFlags::empty() };
        let send = |content: &[u8], along: &mut SendAncillaryBuffer<'_, '_, '_>| loop {
            match sendmsg_addr(&self.socket, &address, &[IoSlice::new(content)], along, flags) {
                Err(Errno::INTR) => {}
                other => return other,
            }
        };
        let sent = match send(&fields, &mut SendAncillaryBuffer::default()) {
            // What is longer than a datagram goes in a file that nobody can change any more.
            Err(Errno::MSGSIZE | Errno::NOBUFS) => {
                let file = sealed(&fields)?;
                let mut room = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut along = SendAncillaryBuffer::new(&mut room);
                let fds = [file.as_fd()];
                along.push(SendAncillaryMessage::ScmRights(&fds));
                send(&[], &mut along)
            }
            other => other,
        };
        self.slow = matches!(sent, Err(Errno::AGAIN));
        Ok(sent.map(drop)?)
    }
}

fn sealed(content: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create("journal", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut file = std::fs::File::from(file);
    file.write_all(content)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Adds a field: `NAME=value`, or, for what has several lines, the name, the length as eight bytes, and the value.
fn field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    if memchr::memchr(b'\n', value).is_some() {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value);
    out.push(b'\n');
}

/// The name that an attribute has as a field: the journal takes capital letters, digits and `_`, and keeps names that begin
/// with `_` for itself. `None` where nothing is left.
fn name_of_field(name: &str) -> Option<String> {
    const LONGEST: usize = 64;
    let upper = name.chars().map(|c| match c.to_ascii_uppercase() {
        c @ ('A'..='Z' | '0'..='9') => c,
        _ => '_',
    });
    let name: String = upper.skip_while(|c| *c == '_').take(LONGEST).collect();
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::os::unix::net::UnixDatagram;

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    use super::*;

    fn about() -> About {
        About {
            id: "0123456789abcdef".into(),
            name: "web".into(),
            image: "nginx:1".into(),
            tag: "t".into(),
            attributes: vec![
                ("a.b".into(), "1".into()),
                ("tag".into(), "t".into()),
                ("__".into(), "x".into()),
            ],
        }
    }

    const ALWAYS: &str = "CONTAINER_ID=0123456789ab\nCONTAINER_ID_FULL=0123456789abcdef\nCONTAINER_NAME=web\n\
                          CONTAINER_TAG=t\nIMAGE_NAME=nginx:1\nSYSLOG_IDENTIFIER=t\nA_B=1\n";

    #[test]
    fn entries_are_datagrams() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut journal = Journal::at(&path, &about()).unwrap();
        let said = Said { stream: Stream::Stdout, time: "T", text: b"hello", whole: true };
        assert!(journal.send(said).is_err(), "there is none");
        let listens = UnixDatagram::bind(&path).unwrap();
        let heard = || {
            let mut piece = [0; 4096];
            let n = listens.recv(&mut piece).unwrap();
            String::from_utf8(piece[..n].to_vec()).unwrap()
        };
        journal.send(said).unwrap();
        assert_eq!(heard(), format!("{ALWAYS}PRIORITY=6\nSYSLOG_TIMESTAMP=T\nMESSAGE=hello\n"));
        journal.send(Said { stream: Stream::Stderr, text: b"a\nb", whole: false, ..said }).unwrap();
        assert_eq!(
            heard(),
            format!(
                "{ALWAYS}PRIORITY=3\nSYSLOG_TIMESTAMP=T\nCONTAINER_PARTIAL_MESSAGE=true\n\
                 MESSAGE\n\u{3}\0\0\0\0\0\0\0a\nb\n"
            )
        );
        // A journal that was started anew.
        drop(listens);
        std::fs::remove_file(&path).unwrap();
        let listens = UnixDatagram::bind(&path).unwrap();
        journal.send(said).unwrap();
        assert!(listens.recv(&mut [0; 4096]).unwrap() > ALWAYS.len());
    }

    #[test]
    fn long_ones_are_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listens = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path, &about()).unwrap();
        let text = vec![b'x'; 4 << 20];
        journal.send(Said { stream: Stream::Stdout, time: "T", text: &text, whole: true }).unwrap();
        let mut room = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut along = RecvAncillaryBuffer::new(&mut room);
        recvmsg(&listens, &mut [], &mut along, RecvFlags::empty()).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut fds)) = along.drain().next() else { panic!("no file") };
        let mut file = std::fs::File::from(fds.next().unwrap());
        file.rewind().unwrap();
        let mut content = Vec::new();
        file.read_to_end(&mut content).unwrap();
        assert!(content.starts_with(ALWAYS.as_bytes()) && content.ends_with(b"xx\n"));
        assert!(content.len() > text.len() && file.set_len(0).is_err(), "it cannot be changed");
    }

    #[test]
    fn who_takes_nothing_is_waited_for_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listens = UnixDatagram::bind(&path).unwrap();
        let mut journal = Journal::at(&path, &about()).unwrap();
        sockopt::set_socket_timeout(&journal.socket, sockopt::Timeout::Send, Some(Duration::from_millis(10)))
            .unwrap();
        let said = Said { stream: Stream::Stdout, time: "T", text: b"hello", whole: true };
        let mut sent = 0;
        while journal.send(said).is_ok() {
            sent += 1;
            assert!(sent < 100_000);
        }
        assert!(journal.slow && journal.send(said).is_err());
        listens.recv(&mut [0; 4096]).unwrap();
        journal.send(said).unwrap();
        assert!(!journal.slow);
    }

    #[test]
    fn names_of_fields() {
        for (name, field) in [
            ("com.example.Part", Some("COM_EXAMPLE_PART")),
            ("__a", Some("A")),
            ("é", None),
            ("", None),
            ("1a", None),
        ] {
            assert_eq!(name_of_field(name).as_deref(), field, "{name}");
        }
    }
}

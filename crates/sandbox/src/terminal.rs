//! A terminal from the container's own devpts: made in the child, its master sent to the parent (pty(7)).

use crate::sys::{self, Errno, Fd, mount as m, process as p};

const TIOCGPTPEER: libc::Ioctl = 0x5441;

/// Makes a terminal of the given size the controlling one and the three standard streams, sends the master
/// over `socket`, and binds it at /dev/console where that is wanted.
pub(crate) fn in_child(socket: i32, rows: u16, columns: u16, at_console: bool) -> sys::Result<()> {
    let master = sys::open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let unlock = 0i32;
    // SAFETY: the request reads an int, which lives.
    sys::check(unsafe { libc::ioctl(master.0, libc::TIOCSPTLCK, &raw const unlock) }.into())?;
    // The peer comes from the master itself, so nothing in the container can put another in its place.
    // SAFETY: the request takes open flags as a number.
    let slave = sys::check(
        unsafe { libc::ioctl(master.0, TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC) }.into(),
    )
    .map(|fd| Fd(fd as i32))?;
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the request reads a winsize, which lives.
    sys::check(unsafe { libc::ioctl(slave.0, libc::TIOCSWINSZ, &raw const size) }.into())?;
    send(socket, b't', master.0)?;
    // SAFETY: the request takes a number.
    sys::check(unsafe { libc::ioctl(slave.0, libc::TIOCSCTTY, 0) }.into())?;
    if at_console {
        console(&slave)?;
    }
    for target in 0..3 {
        p::dup_to(slave.0, target)?;
    }
    if slave.0 < 3 {
        std::mem::forget(slave);
    }
    Ok(())
}

/// /dev/console is the terminal, where /dev is the container's own and can be written to.
fn console(slave: &Fd) -> sys::Result<()> {
    let dev = match sys::open_in_root_no_links(libc::AT_FDCWD, c"/dev", libc::O_PATH | libc::O_DIRECTORY, 0) {
        Ok(dev) => dev,
        Err(_) => return Ok(()),
    };
    let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_NOFOLLOW | libc::O_NONBLOCK;
    match sys::openat(dev.0, c"console", flags, 0o600) {
        Ok(_) => {}
        Err(Errno(libc::EROFS | libc::EACCES | libc::EPERM | libc::ENXIO | libc::ENODEV | libc::EIO)) => {
            return Ok(());
        }
        Err(e) => return Err(e),
    }
    let place = sys::open_in_root_no_links(dev.0, c"console", libc::O_PATH, 0)?;
    let copy = m::clone_tree(slave.0, c"", false)?;
    m::attach(&copy, place.0)
}

/// Room for one descriptor in a control message, with the alignment of cmsghdr.
#[repr(C, align(8))]
struct Control([u8; 24]);

/// Sends one byte and a descriptor over a socket (unix(7), SCM_RIGHTS).
pub(crate) fn send(socket: i32, word: u8, fd: i32) -> sys::Result<()> {
    let mut word = [word];
    let mut vector = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; 24]);
    // SAFETY: all zeroes is a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    // SAFETY: the control buffer has room for a header and one descriptor and is aligned for it; everything that
    // the message points to lives until after the call.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        std::ptr::copy_nonoverlapping(fd.to_ne_bytes().as_ptr(), libc::CMSG_DATA(header), 4);
        sys::check(libc::sendmsg(socket, &message, 0) as libc::c_long).map(drop)
    }
}

/// Receives one byte and, where one came along, a descriptor. `None` at the end of the stream.
pub(crate) fn receive(socket: i32) -> sys::Result<Option<(u8, Option<Fd>)>> {
    let mut word = [0u8];
    let mut vector = libc::iovec { iov_base: word.as_mut_ptr().cast(), iov_len: 1 };
    let mut control = Control([0; 24]);
    loop {
        // SAFETY: all zeroes is a valid msghdr.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len() as _;
        // SAFETY: everything that the message points to lives until after the call.
        let answer = unsafe { libc::recvmsg(socket, &mut message, libc::MSG_CMSG_CLOEXEC) };
        match sys::check(answer as libc::c_long) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(Errno(libc::EINTR)) => continue,
            Err(e) => return Err(e),
        }
        // SAFETY: the kernel filled the control buffer as far as msg_controllen says; a header of the right kind
        // is followed by one descriptor, because the buffer has no room for more.
        let fd = unsafe {
            let header = libc::CMSG_FIRSTHDR(&message);
            if !header.is_null()
                && (*header).cmsg_level == libc::SOL_SOCKET
                && (*header).cmsg_type == libc::SCM_RIGHTS
            {
                let mut bytes = [0u8; 4];
                std::ptr::copy_nonoverlapping(libc::CMSG_DATA(header), bytes.as_mut_ptr(), 4);
                Some(Fd(i32::from_ne_bytes(bytes)))
            } else {
                None
            }
        };
        return Ok(Some((word[0], fd)));
    }
}

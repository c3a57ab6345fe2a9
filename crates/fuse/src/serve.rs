//! The loop of one thread that serves.

use std::io;
use std::os::fd::AsFd;

use rustix::io::Errno;

use crate::file_system::FileSystem;
use crate::message::REQUEST_ROOM;
use crate::reply::Reply;
use crate::server::Server;

/// Answers requests from `device`, a descriptor of `/dev/fuse` that has been mounted, until that mount is gone. Several
/// threads may do so at once, with one descriptor or with one each (`FUSE_DEV_IOC_CLONE`).
pub fn serve<F: FileSystem>(server: &Server<F>, device: impl AsFd) -> io::Result<()> {
    let mut request = vec![0u8; REQUEST_ROOM];
    let mut reply = Reply::default();
    loop {
        let length = match rustix::io::read(&device, &mut request[..]) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            // The mount is gone, or was given up.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
            // NOENT: whoever asked does not wait any more.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => continue,
            Err(e) => return Err(e.into()),
        };
        let Some(answer) = server.answer(&request[..length], &mut reply) else { continue };
        loop {
            match rustix::io::write(&device, answer) {
                Err(Errno::INTR) => {}
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(()),
                // The kernel refuses an answer that it cannot read; whoever asked hears of it from the kernel.
                Ok(_) | Err(Errno::NOENT | Errno::INVAL) => break,
                Err(e) => return Err(e.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use rustix::fs::CWD;
    use rustix::mount as m;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileTypeExt;

    /// The kernel as the other side: only root may mount without a user namespace, which a test with threads cannot make.
    #[test]
    fn the_kernel_reads_what_is_served() {
        if !rustix::process::geteuid().is_root() {
            println!("skip: not root");
            return;
        }
        let Ok(device) = fs::File::options().read(true).write(true).open("/dev/fuse") else {
            println!("skip: there is no /dev/fuse");
            return;
        };
        let server = Server::new(Memory::example());
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path();
        std::thread::scope(|scope| {
            // The mounts of this thread only.
            // SAFETY: a mount namespace of its own changes nothing that other threads rely on.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
            m::mount_change("/", m::MountPropagationFlags::PRIVATE | m::MountPropagationFlags::REC).unwrap();
            let context = m::fsopen("fuse", m::FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            let option = |key: &str, value: &str| m::fsconfig_set_string(&context, key, value).unwrap();
            option("fd", &device.as_raw_fd().to_string());
            option("rootmode", "40000");
            option("user_id", "0");
            option("group_id", "0");
            m::fsconfig_create(&context).unwrap();
            // Not earlier: a descriptor of no mount cannot be read.
            let (server, served) = (&server, device.try_clone().unwrap());
            let other = served.try_clone().unwrap();
            let threads =
                [scope.spawn(move || serve(server, &served)), scope.spawn(move || serve(server, &other))];
            let flags = (m::FsMountFlags::FSMOUNT_CLOEXEC, m::MountAttrFlags::empty());
            let mount = m::fsmount(&context, flags.0, flags.1).unwrap();
            m::move_mount(&mount, "", CWD, place, m::MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
            drop((mount, context, device));

            assert_eq!(fs::read_to_string(place.join("link")).unwrap(), "hello\n");
            let big = fs::read(place.join("big")).unwrap();
            assert!(big.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
            assert_eq!(big.len(), 3_000_000);
            for _ in 0..2 {
                let entries: Vec<_> = fs::read_dir(place.join("many")).unwrap().map(|e| e.unwrap()).collect();
                assert_eq!(entries.len(), 1000);
                assert!(entries.iter().all(|entry| entry.metadata().unwrap().len() == 6));
            }
            assert!(fs::metadata(place.join("null")).unwrap().file_type().is_char_device());
            let missing = fs::metadata(place.join("etc/nothing")).unwrap_err();
            assert_eq!(missing.kind(), io::ErrorKind::NotFound);
            let refused = fs::write(place.join("etc/hello"), "x").unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(Errno::ROFS.raw_os_error()));
            let mut value = [0u8; 16];
            let length = rustix::fs::getxattr(place.join("etc/hello"), "user.one", &mut value[..]).unwrap();
            assert_eq!(&value[..length], b"value");
            m::unmount(place, m::UnmountFlags::DETACH).unwrap();
            for thread in threads {
                thread.join().unwrap().unwrap();
            }
        });
    }
}

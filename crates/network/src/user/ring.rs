//! The link to a network namespace: a packet(7) socket on the outer end of its pair of devices.
//!
//! What comes lies in memory that the kernel shares (PACKET_RX_RING, Documentation/networking/packet_mmap.rst): a socket's
//! own queue has room for six frames of 64 KiB. Segments stay together and checksums unmade in both directions
//! (PACKET_VNET_HDR), as between devices of one machine.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mm::{MapFlags, ProtFlags};

use super::inside::OUTSIDE;
use super::link::Link;
use super::packet::{Headers, WORDS};

/// Options of the socket (linux/if_packet.h).
const RX_RING: libc::c_int = 5;
const VERSION: libc::c_int = 10;
const VNET_HEADER: libc::c_int = 15;
const IGNORE_OUTGOING: libc::c_int = 23;
/// TPACKET_V2.
const SECOND: libc::c_int = 1;

/// A frame has so much room, with what the kernel says of it; and so many have it.
const SLOT: usize = 64 << 10;
const SLOTS: usize = 64;
/// The kernel takes memory in pieces of so many slots.
const SLOTS_TOGETHER: usize = 2;

/// TP_STATUS_USER: the slot is ours.
const OURS: u32 = 1;
/// struct tpacket2_hdr: length as captured, and where Ethernet's header is.
const CAPTURED: usize = 8;
const PLACE: usize = 12;

/// struct tpacket_req.
#[repr(C)]
struct Request {
    block_size: u32,
    blocks: u32,
    frame_size: u32,
    frames: u32,
}

/// A link, with what has come over it.
#[derive(Debug)]
pub struct Ring {
    socket: OwnedFd,
    memory: Arc<Memory>,
    next: usize,
    /// Of the container's device.
    mac: [u8; 6],
}

/// What is shared with the kernel.
#[derive(Debug)]
struct Memory(NonNull<u8>);

// SAFETY: nothing in it is this process's alone but the slots that [`Frame`]s have, one each.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Ring {
    /// Of a socket of packets that is bound to nothing yet, in the namespace with the pair of devices, of which the
    /// container's has the address `mac`.
    pub fn new(socket: OwnedFd, mac: [u8; 6]) -> io::Result<Ring> {
        set(&socket, VERSION, &SECOND)?;
        set(&socket, VNET_HEADER, &1i32)?;
        // Kernels before Linux 4.20 have it not; what we sent has a source that is not a container's.
        let _ = set(&socket, IGNORE_OUTGOING, &1i32);
        let request = Request {
            block_size: (SLOT * SLOTS_TOGETHER) as u32,
            blocks: (SLOTS / SLOTS_TOGETHER) as u32,
            frame_size: SLOT as u32,
            frames: SLOTS as u32,
        };
        set(&socket, RX_RING, &request)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let memory =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), SLOT * SLOTS, protection, flags, &socket, 0) }?;
        let memory = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let ring = Ring { socket, memory: Arc::new(Memory(memory)), next: 0, mac };
        ring.bind()?;
        Ok(ring)
    }

    fn bind(&self) -> io::Result<()> {
        // SAFETY: all zeroes is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = OUTSIDE as i32;
        let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address lives and has the length that is given.
        match unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), length) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The next frame that has come. The slots are used in turn, so frames are read and given back one after the other.
    pub fn receive(&mut self) -> Option<Frame> {
        if self.memory.status(self.next).load(Ordering::Acquire) & OURS == 0 {
            return None;
        }
        let frame = Frame { memory: self.memory.clone(), number: self.next };
        self.next = (self.next + 1) % SLOTS;
        Some(frame)
    }
}

impl Memory {
    fn slot(&self, number: usize) -> NonNull<u8> {
        // SAFETY: the memory has SLOTS slots, and the number is below that.
        unsafe { self.0.add(number % SLOTS * SLOT) }
    }

    fn status(&self, number: usize) -> &AtomicU32 {
        // SAFETY: a slot begins with its status, is aligned for it, and lives as long as this value. The kernel changes
        // it at any time, which atomics are for.
        unsafe { self.slot(number).cast().as_ref() }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's, and nothing of it is borrowed any more.
        let _ = unsafe { rustix::mm::munmap(self.0.as_ptr().cast(), SLOT * SLOTS) };
    }
}

/// A frame in its slot, with the kernel's words before it. The kernel has the slot again when this is dropped.
#[derive(Debug)]
pub struct Frame {
    memory: Arc<Memory>,
    number: usize,
}

impl std::ops::Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.memory.slot(self.number);
        // SAFETY: both are within the header of the slot, and aligned.
        let (captured, place) = unsafe {
            (
                start.add(CAPTURED).cast::<u32>().read() as usize,
                usize::from(start.add(PLACE).cast::<u16>().read()),
            )
        };
        if !(WORDS..=SLOT).contains(&place) || captured > SLOT - place {
            return &[];
        }
        // SAFETY: within the slot, which is ours until this is dropped.
        unsafe { std::slice::from_raw_parts(start.add(place - WORDS).as_ptr(), captured + WORDS) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.memory.status(self.number).store(0, Ordering::Release);
    }
}

impl Link for Ring {
    fn send(&mut self, headers: &Headers, data: &[u8]) {
        // A frame begins with the address of the device that it is for.
        let (words, rest) = headers.split_at(WORDS);
        let rest = rest.get(self.mac.len()..).unwrap_or_default();
        let parts = [words, &self.mac, rest, data].map(IoSlice::new);
        // What cannot be sent is lost, and sent again by those who care.
        let _ = rustix::io::writev(&self.socket, &parts);
    }

    fn belongs_to(&mut self, mac: [u8; 6]) {
        self.mac = mac;
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn set<T>(socket: &OwnedFd, option: libc::c_int, value: &T) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value lives and has the length that is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const *value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

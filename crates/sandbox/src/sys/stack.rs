//! A stack for a process that shares its maker's memory.

use super::{Errno, Result, check};

/// Room for a start, with a lot to spare: its buffers are paths.
pub const SIZE: usize = 256 << 10;
/// Below it, what nobody may touch.
const GUARD: usize = 16 << 10;

/// Memory that is only taken where it is used.
#[derive(Debug)]
pub struct Stack {
    base: *mut libc::c_void,
}

impl Stack {
    pub fn new() -> Result<Stack> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_STACK;
        // SAFETY: a new mapping, where nothing else is.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), GUARD + SIZE, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let stack = Stack { base };
        // SAFETY: the range is a part of the mapping that was just made.
        let opened =
            unsafe { libc::mprotect(stack.bottom().cast(), SIZE, libc::PROT_READ | libc::PROT_WRITE) };
        check(opened.into())?;
        Ok(stack)
    }

    /// The lowest byte of it, a page's first.
    pub fn bottom(&self) -> *mut u8 {
        self.base.cast::<u8>().wrapping_add(GUARD)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's alone, and whoever ran on it has ended or has memory of its own by now.
        unsafe { libc::munmap(self.base, GUARD + SIZE) };
    }
}

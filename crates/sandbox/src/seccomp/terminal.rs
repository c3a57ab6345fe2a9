//! The terminal of a caller who lends it to a container: what the container says on it is its own, but it may not type there,
//! as if it was the caller (TIOCSTI, CVE-2017-5226), nor paste (TIOCLINUX). Kernels since 6.2 can be built without either.

use std::borrow::Cow;

use super::{Action, Arch, Compare, Condition, Profile, Rule};

/// Of ioctl_tty(2) and ioctl_console(2); x86 and ARM have the same numbers.
const TYPES: [u64; 2] = [0x5412, 0x541c];

impl Profile {
    /// A profile that allows all, for every interface of a processor.
    pub fn allow_all(arch: Arch) -> Profile {
        let mut profile = Profile::new(arch, Action::Allow);
        if arch == Arch::X86_64 {
            profile.arches.extend([Arch::X86, Arch::X32]);
        }
        profile
    }

    /// Refuses to type on terminals, whatever the rules say.
    pub fn protect_terminal(&mut self) {
        for value in TYPES {
            // The kernel looks at 32 bits of the number.
            let compare = Compare::MaskedEq { mask: 0xffff_ffff };
            let conditions = vec![Condition { index: 1, compare, value }];
            let action = Action::Errno(libc::EPERM as u16);
            self.overrides.push(Rule { names: vec![Cow::Borrowed("ioctl")], action, conditions });
        }
    }
}

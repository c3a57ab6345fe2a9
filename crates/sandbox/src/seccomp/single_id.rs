//! Changes of owner that succeed without effect, for a user namespace that has one id.
//!
//! Where only one user and one group id exist, every chown(2) to another one and every change of identity
//! fails with EINVAL, and devices cannot be made at all. Package managers and archivers take that for
//! an error, although nothing in a one-id root file system depends on it. The filter answers such calls
//! with success. The method is known from Charliecloud and needs neither a tracer nor a preloaded library.
//!
//! Its limits, which a caller must know: programs that look after what they did see the truth. apt's
//! `_apt` sandbox does (set `APT::Sandbox::User "root"`), and so does `tar` for a device it believes to
//! have made. Extended attributes are left alone: a filter cannot read their name, `user.*` and
//! `security.capability` work in such a namespace, and the others are warnings to those who set them.

use std::borrow::Cow;

use isles_spec::Result;

use super::profile::{Action, Compare, Condition, Profile, Rule};
use super::{Arch, Bpf, compile};

/// Calls whose only purpose is an owner or an identity.
const OWNERS: &str = "chown chown32 fchown fchown32 fchownat lchown lchown32 setfsgid setfsgid32 setfsuid \
    setfsuid32 setgid setgid32 setgroups setgroups32 setregid setregid32 setresgid setresgid32 setresuid \
    setresuid32 setreuid setreuid32 setuid setuid32";

/// Calls that make a device when the type bits of their mode, the argument named here, say so.
const DEVICES: [(&str, u8); 2] = [("mknod", 1), ("mknodat", 2)];

impl Profile {
    /// Lets changes of owner and identity, and making devices, succeed without effect, whatever the rules say.
    pub fn emulate_owners(&mut self) {
        let success = Action::Errno(0);
        let owners = OWNERS.split_ascii_whitespace().map(Cow::Borrowed).collect();
        self.overrides.push(Rule { names: owners, action: success, conditions: vec![] });
        for (name, index) in DEVICES {
            for kind in [libc::S_IFCHR, libc::S_IFBLK] {
                let compare = Compare::MaskedEq { mask: u64::from(libc::S_IFMT) };
                let conditions = vec![Condition { index, compare, value: u64::from(kind) }];
                self.overrides.push(Rule { names: vec![Cow::Borrowed(name)], action: success, conditions });
            }
        }
    }
}

/// A filter that does nothing but [`Profile::emulate_owners`], to stand beside another filter or alone.
///
/// # Errors
/// None in practice; the program is far shorter than the kernel's limit.
pub fn single_id_emulation(arch: Arch) -> Result<Bpf> {
    let mut profile = Profile::allow_all(arch);
    profile.emulate_owners();
    compile(&profile)
}

//! Which system calls a process may make: profiles in, BPF for the kernel out (seccomp(2)).
//!
//! [`Profile`] is read from Docker's JSON form or from `linux.seccomp` of an OCI config.json, or is the
//! built-in default. [`compile`] makes one classic BPF program of it: a balanced tree over *ranges* of
//! system call numbers. When a filter is installed the kernel walks it once for every number to see which
//! calls are always allowed, so the depth of the tree is what a container start pays; a linear list
//! costs twenty times as much. Verdicts are those of libseccomp, with one addition of runc's: a call
//! younger than the profile fails with ENOSYS, so that programs fall back to what they used before.
//!
//! Compiling the default profile takes less time than reading a cached program from disk would, so
//! there is no cache.

mod bpf;
mod compile;
mod default;
mod profile;
mod single_id;
mod syscalls;
mod terminal;
#[cfg(test)]
mod tests;

pub use bpf::Bpf;
pub use compile::compile;
pub use default::default_profile;
pub use profile::{Action, Compare, Condition, Flags, Host, Profile, Rule};
pub use single_id::single_id_emulation;

/// A processor's system call interface, as seccomp tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    X86_64,
    /// 32-bit programs on x86.
    X86,
    /// 64-bit programs with 32-bit pointers.
    X32,
    Aarch64,
}

impl Arch {
    /// The interface that this program was built for; `None` on a processor without a table.
    pub fn native() -> Option<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Arch::X86_64),
            "x86" => Some(Arch::X86),
            "aarch64" => Some(Arch::Aarch64),
            _ => None,
        }
    }

    /// From libseccomp's name, `SCMP_ARCH_X86_64`; `None` for those without a table here.
    fn from_scmp(name: &str) -> Option<Arch> {
        Some(match name {
            "SCMP_ARCH_X86_64" => Arch::X86_64,
            "SCMP_ARCH_X86" => Arch::X86,
            "SCMP_ARCH_X32" => Arch::X32,
            "SCMP_ARCH_AARCH64" => Arch::Aarch64,
            _ => return None,
        })
    }

    fn scmp(self) -> &'static str {
        match self {
            Arch::X86_64 => "SCMP_ARCH_X86_64",
            Arch::X86 => "SCMP_ARCH_X86",
            Arch::X32 => "SCMP_ARCH_X32",
            Arch::Aarch64 => "SCMP_ARCH_AARCH64",
        }
    }

    /// The name that Docker's profiles use in `includes` and `excludes` (Go's, and `x86`).
    fn goarch(self) -> &'static str {
        match self {
            Arch::X86_64 => "amd64",
            Arch::X86 => "x86",
            Arch::X32 => "x32",
            Arch::Aarch64 => "arm64",
        }
    }

    /// `AUDIT_ARCH_*`, as `seccomp_data.arch` has it. x32 shares that of x86_64.
    fn audit(self) -> u32 {
        match self {
            Arch::X86_64 | Arch::X32 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    fn column(self) -> usize {
        match self {
            Arch::X86_64 => syscalls::X86_64,
            Arch::X86 => syscalls::I386,
            Arch::X32 => syscalls::X32,
            Arch::Aarch64 => syscalls::AARCH64,
        }
    }

    /// Whether arguments are compared with all their 64 bits.
    fn wide(self) -> bool {
        matches!(self, Arch::X86_64 | Arch::Aarch64)
    }
}

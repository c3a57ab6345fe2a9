//! Linux capabilities by name and as a set of bits (capabilities(7), `linux/capability.h`).

use std::fmt;

/// Names without `CAP_`, at the index of their bit.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities, one bit each as the kernel counts them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(pub u64);

impl CapabilitySet {
    pub const EMPTY: CapabilitySet = CapabilitySet(0);
    /// Every capability that has a name.
    pub const ALL: CapabilitySet = CapabilitySet((1 << NAMES.len()) - 1);
    /// What Docker and podman give a container that asks for nothing.
    pub const CONTAINER: CapabilitySet = CapabilitySet(0xa804_25fb);

    /// The bit of a name, with or without `CAP_`, in any case.
    pub fn bit(name: &str) -> Option<u8> {
        let bare = match name.get(..4) {
            Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name[4..],
            _ => name,
        };
        NAMES.iter().position(|n| n.eq_ignore_ascii_case(bare)).map(|bit| bit as u8)
    }

    pub fn has(self, bit: u8) -> bool {
        bit < 64 && self.0 >> bit & 1 == 1
    }

    pub fn with(self, bit: u8) -> Self {
        CapabilitySet(self.0 | 1 << bit)
    }

    /// The members' names with `CAP_`, lowest bit first; bits without a name are left out.
    pub fn names(self) -> impl Iterator<Item = String> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(bit, _)| self.has(*bit as u8))
            .map(|(_, name)| format!("CAP_{name}"))
    }

    /// The names of all capabilities with `CAP_`, lowest bit first.
    pub fn all_names() -> impl Iterator<Item = String> {
        CapabilitySet::ALL.names()
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapabilitySet({:#x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_bits() {
        for (name, bit) in
            [("CAP_CHOWN", 0), ("sys_admin", 21), ("cap_Net_Raw", 13), ("CAP_CHECKPOINT_RESTORE", 40)]
        {
            assert_eq!(CapabilitySet::bit(name), Some(bit), "{name}");
        }
        for bad in ["", "CAP_", "CAP_CAP_CHOWN", "ALL", "CHOWN "] {
            assert_eq!(CapabilitySet::bit(bad), None, "{bad}");
        }
        let docker: Vec<String> = CapabilitySet::CONTAINER.names().collect();
        assert_eq!(docker.len(), 14);
        assert!(docker.contains(&"CAP_AUDIT_WRITE".to_owned()));
        assert!(!CapabilitySet::ALL.has(41));
    }
}

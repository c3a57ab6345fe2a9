//! The nouns of Isles: plain data that every other room shares.
//!
//! Nothing here reads a file, opens a socket or starts a process. A door translates its own format
//! into these types; `engine`, `build` and `store` act on them. Where a door needs something that the
//! nouns cannot say, the noun grows here.
//!
//! Specifications: OCI image-spec 1.1 (documents in [`image`]), the reference grammar of
//! distribution/reference, Docker's units and option spellings.

pub mod digest;
pub mod error;
pub mod image;
mod log_options;
pub mod markup;
pub mod mount;
pub mod nearest;
mod network_use;
mod nullable;
pub mod percent;
pub mod platform;
pub mod port;
pub mod progress;
pub mod quantity;
pub mod reference;
mod resources;
pub mod source;
pub mod time;
pub mod volume;
pub mod workload;

pub use digest::{Algorithm, Digest};
pub use error::{Error, Hint, Result, causes};
pub use log_options::{LogDriver, LogOptions, Tag, Tagged};
pub use network_use::{NetworkUse, parse_mac};
pub use nullable::null_default;
pub use platform::Platform;
pub use port::{Port, Protocol};
pub use progress::{Progress, Quiet};
pub use reference::Reference;
pub use resources::{BlockRate, BlockTraffic, BlockWeight, DeviceRule, Resources, Rlimit};
pub use source::{OnDisk, Source};
pub use volume::VolumeSpec;
pub use workload::{
    CapabilityBase, Device, Dns, FileSystemKind, IdMapping, ImageFile, ImageMount, Isolation, Mount,
    MountKind, NamespaceMode, NetworkMode, Overlay, Owners, Pod, PodShares, Propagation, PullPolicy,
    RestartPolicy, Root, RunAs, SeccompChoice, Security, SystemFiles, SystemMount, UserNamespace, Workload,
    Writable,
};

//! Runs one process tree between Linux namespaces, and ends it.
//!
//! The one idea is **plan, then act**. A [`Setup`] says everything about a container: its root file system, mounts,
//! namespaces, limits and process. [`spawn`] first makes a flat plan of it, in which every string is terminated and every
//! decision taken; then one clone3(2) makes the process with all its namespaces, already in its control group. That
//! process carries the plan out step by step and becomes the program. Where nothing of that needs the calling thread, it
//! does so in the caller's own memory, and that thread waits, as with vfork(2). In between it allocates nothing, takes no lock
//! and looks nothing up, so the caller may have threads; what fails comes back as a [`Step`] and the kernel's error.
//! The steps are listed in the order in which they happen in one function, `steps` in `child.rs`.
//!
//! Below the container's root a path is resolved once, as if that root were `/`, and is a descriptor from then on:
//! whatever an image or a container puts in the way, nothing of the host is mounted on or written to.
//!
//! ```no_run
//! use isles_sandbox::setup::{Mount, MountFlags, MountSource, RootFs};
//! use isles_sandbox::{Setup, spawn};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut setup = Setup::new(RootFs::Directory("/srv/debian".into()), &["ls", "/data"]);
//! setup.hostname = Some("isle".into());
//! setup.mounts.push(Mount {
//!     flags: MountFlags { recursive_read_only: true, ..MountFlags::default() },
//!     ..Mount::new("/data", MountSource::Bind { source: "/srv/data".into(), recursive: true })
//! });
//! let status = spawn(&setup)?.wait()?;
//! std::process::exit(status.code().into());
//! # }
//! ```
//!
//! | module | for |
//! |---|---|
//! | [`setup`] | what a container is to be |
//! | [`cgroup`] | its limits and what it uses: cgroup v1, v2 and both at once |
//! | [`seccomp`] | profiles of docker's form to the kernel's filters |
//! | [`capability`] | sets of capabilities by name |
//! | [`identity`] | which users and groups this process may map |
//! | [`fuse`], [`loop_device`] | images that are mounted: by a server of the caller's, and by the kernel |
//! | [`mount_program`] | programs of the host that mount and serve a file system |
//! | [`network`] | sockets of a network namespace, for those who are not in it |
//! | [`explain`] | why a program did not start, in words |
//! | [`device_program`] | programs of the host that serve a mount of a container's |
//! | [`background`] | processes that go on when their caller has ended |
//! | [`visit`] | a look into the mount namespace of a process |
//! | [`oci`] | the OCI runtime: bundles and the life of a container over several commands |
//!
//! Linux 5.12 or later (mount_setattr(2)); on older ones a start fails and names the step. With root everything works,
//! without root everything but limits that nobody has delegated: a user namespace of one ID is enough.

pub mod aside;
pub mod background;
pub mod beside;
pub mod capability;
pub mod cgroup;
mod child;
mod copy_up;
mod credentials;
mod dev;
pub mod device_program;
mod error;
pub mod explain;
pub mod fuse;
pub mod identity;
mod idmap;
mod init;
mod interpreter;
pub mod loop_device;
pub mod mount_program;
pub mod network;
pub mod oci;
mod own_program;
mod plan;
mod prepared;
mod proc_file;
pub mod rlimit;
mod root;
pub mod seccomp;
pub mod setup;
pub mod signals;
mod spawn;
mod sys;
mod terminal;
pub mod visit;
mod warm;

pub use error::{SpawnError, Step};
pub use own_program::{execute_again, protect_own_program};
pub use setup::Setup;
pub use spawn::{Child, ExitStatus, Pending, late_failure, spawn};
pub use warm::{WarmKind, WarmSandbox};

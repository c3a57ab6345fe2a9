//! Life cycle of containers over the sandbox: create, start, wait, remove, collect.
//!
//! The engine merges a [`isles_spec::Workload`] with the configuration of its image ([`plan`]), keeps the state
//! of the container as files ([`record`]), and is the monitor of what it runs in the foreground ([`run`]) or, as a process
//! of its own, in the background ([`background`]). A step of a build ([`step`]) is the same without a state. It does not know who asks.

mod attach;
mod background;
mod bare_root;
mod caller;
pub mod cdi;
mod control;
mod copy;
mod detach;
mod devices;
mod engine;
mod error;
mod events;
mod exec;
mod file_image;
pub mod foreign;
mod fuse_programs;
mod health;
mod host_view;
mod hosts;
pub mod image_file;
mod image_mount;
mod inside;
mod join;
mod kept_blocks;
mod layers;
pub mod log;
mod membership;
pub mod monitor;
mod name;
mod names;
mod namespaces;
mod networks;
mod overlay_programs;
mod owners;
mod places;
mod plan;
mod pods;
mod process;
mod record;
mod removal;
mod run;
mod start;
mod step;
mod step_share;
mod terminal;
mod usage;
mod user;
mod user_network;
mod view;
mod volumes;
mod watch;
mod written;

pub use attach::{Parted, Wishes};
pub use background::{Started, Target};
pub use caller::home;
pub use control::Condition;
pub use copy::{CopyOptions, From as CopyFrom, PathStat, To as CopyTo};
pub use engine::Engine;
pub use error::{Error, Result};
pub use events::{Actor, Event};
pub use exec::Exec;
pub use health::{Health, Look as HealthLook, Verdict};
pub use inside::Inside;
pub use networks::{Mode, modes as network_modes};
pub use pods::{PodInfo, PodStatus};
pub use record::{Info, Record, State, Status, now};
pub use run::Foreground;
pub use step::{
    Exit, Step, StepInput, StepNames, StepOutcome, StepOutput, StepRoot, StepStreams, host_ca_wanted,
};
pub use usage::{Process, TICKS, Usage, in_namespace_of};
pub use user::User;
pub use view::Look;
pub use volumes::{ANONYMOUS, mountpoint};

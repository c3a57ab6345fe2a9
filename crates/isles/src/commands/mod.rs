//! One file per command.

pub mod apptainer;
pub mod build;
pub mod builder;
pub mod completion;
pub mod df;
pub mod doctor;
pub mod history;
pub mod images;
pub mod inspect;
pub mod load;
pub mod login;
pub mod logout;
pub mod man;
pub mod oci;
pub mod prune;
pub mod ps;
pub mod pull;
pub mod push;
pub mod rm;
pub mod rmi;
pub mod run;
pub mod save;
pub mod tag;
pub mod verify;
pub mod version;
pub mod volume;

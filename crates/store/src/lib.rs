//! Images at rest: content-addressed blobs, references, unpacked layers, writable layers.
//!
//! One idea: everything is a plain file under one directory, and every change is one atomic rename or
//! link. There is no database and no daemon; several processes use one store at once, and a process that
//! is killed leaves garbage at most, which the next one collects.
//!
//! ```text
//! version                      the layout below is "1"
//! blobs/sha256/ab/<hex>        manifests, configurations, layers as they were fetched or committed
//! layers/<diff-id>[.flavour]/  root/ is the unpacked layer, layer.json says where it came from
//! images/<alg>-<hex>           one small record per complete image, by manifest digest
//! refs/<registry>/<repo>/<tag> which manifest or index a name stands for
//! containers/<id>/             upper/ work/ config.json state.json lock
//! volumes/<name>/              _data/ volume.json
//! cache/                       build records, downloads, cache mounts, digests of files; by last use
//! registry/<repo>/             what a registry serves from here: links to blobs, manifests, tags, uploads
//! leases/                      what running processes hold against garbage collection
//! partial/                     downloads that can be resumed
//! tmp/                         work in progress
//! ```
//!
//! Specifications: OCI image-spec 1.1 (layer.md, image-layout.md), docker-archive as written by
//! `docker save`, kernel Documentation/filesystems/overlayfs.rst for the layers' markers.

mod atomic;
mod blob;
mod bounded;
mod cache;
mod cache_mount;
mod changes;
mod commit;
mod compare;
mod compress;
mod container;
mod content;
mod decompress;
mod dirs;
mod error;
mod evict;
mod export;
mod gc;
mod hash;
mod hosted;
mod image;
mod import;
mod ingest;
mod layer;
mod layout;
mod lease;
mod merged;
mod pack;
mod pipe;
mod placing;
mod refs;
mod remove;
mod shrink;
mod sif;
mod store;
mod sys;
pub mod tar;
mod unpack;
mod verify;
mod volume;
mod xattr;

pub use atomic::random_name;
pub use blob::BlobWriter;
pub use bounded::read_bounded;
pub use cache::{BuildRecord, Memory};
pub use cache_mount::{CacheLock, CacheMount};
pub use changes::{Change, changes, left_by_mounts};
pub use commit::{CommitOptions, CommittedLayer};
pub use compress::Compression;
pub use container::{Container, Remains};
pub use decompress::Encoding;
pub use error::{Error, Result};
pub use export::{ExportFormat, LayoutPlace};
pub use gc::{DiskUsage, PruneOptions, Pruned, UsageLine, disk_bytes};
pub use hash::{Hasher, digest_of as digest_of_bytes, digest_of_file};
pub use hosted::{
    Hosted, HostedCollected, HostedManifest, HostedPolicy, HostedProblem, HostedReport, HostedTag,
    HostedUsage, NewManifest, Offer, RunningHash, Upload, WholeUpload, is_repository_name, is_tag,
};
pub use image::{Image, ImageSummary, NewImage};
pub use import::Imported;
pub use ingest::{Fetch, Ingested};
pub use isles_sif::NewFile;
pub use layer::{LayerInfo, Skipped, boot_id};
pub use layout::{DockerArchiveWriter, Layout, LayoutBlob, LayoutWriter};
pub use lease::Lease;
pub use merged::{DirEntry, FileKind, Merged, Stat};
pub use pack::{Held, write_archive};
pub use placing::{NewOwners, Placing};
pub use remove::tree as remove_tree;
pub use shrink::{CacheEntry, CacheKind, Shrinking};
pub use sif::{Added, EncryptedForm, Encryption, FileTree, NewSifImage, Secret, SifMade, SifSource};
pub use store::{Limits, Ownership, Store};
pub use sys::is_kernels;
pub use unpack::extract;
pub use verify::{Cure, Depth, Problem, VerifyOptions, VerifyReport};
pub use volume::{Volume, VolumeRecord};
pub use xattr::record_owner;

//! Cache mounts as things of their own: found by what recipes call them, taken elsewhere and brought back.

use std::io::{Read, Write};

use isles_spec::Digest;
use isles_store::{CacheEntry, CacheKind, CacheLock, CacheMount, Store};

use crate::error::Result;

/// So much of a name is enough to tell which is meant.
const SHORTEST: usize = 4;

/// What the store calls the cache mount of an ID; private ones of the same ID have other numbers.
pub(crate) fn name(id: &str, number: u64) -> String {
    let text = format!("{number}:{id}");
    isles_spec::digest::hex(&<sha2::Sha256 as sha2::Digest>::digest(text.as_bytes()))
}

/// An ID with what tells its caches apart, for [`name`].
pub(crate) fn which(id: &str, base: Option<&Digest>) -> String {
    base.map_or_else(|| id.to_owned(), |base| format!("{id}\0{base}"))
}

/// Writes the cache mount of an ID, or of the beginning of a name that the store has, as a tar stream.
pub fn export(store: &Store, id: &str, out: &mut dyn Write) -> Result<()> {
    let known: Vec<CacheEntry> =
        store.cache_entries()?.into_iter().filter(|e| e.kind == CacheKind::Mount).collect();
    let own = name(id, 0);
    let by_id = known.iter().find(|e| e.id == own).or_else(|| known.iter().find(|e| e.about == id));
    let by_name =
        || known.iter().filter(|e| id.len() >= SHORTEST && e.id.starts_with(id)).collect::<Vec<_>>();
    let found = match (by_id, by_name().as_slice()) {
        (Some(found), _) => &found.id,
        (None, [found]) => &found.id,
        (None, []) => {
            return Err(isles_spec::Error::new(format!("no cache mount is called '{id}'"))
                .with_hint("`isles builder df --filter type=exec.cachemount` lists them")
                .into());
        }
        (None, several) => {
            let count = several.len();
            return Err(isles_spec::Error::new(format!("'{id}' stands for {count} cache mounts"))
                .with_hint("write more of the name")
                .into());
        }
    };
    let mount = lock(store, found, CacheLock::Shared)?;
    Ok(store.export_cache_mount(&mount, out)?)
}

/// Fills the cache mount that recipes call `id` from a tar stream, plain or compressed. What it held goes.
pub fn import(store: &Store, id: &str, tar: &mut (dyn Read + Send)) -> Result<()> {
    let mount = lock(store, &name(id, 0), CacheLock::Exclusive)?;
    mount.describe(id);
    Ok(store.import_cache_mount(&mount, tar)?)
}

/// Waits until steps that use it otherwise are over.
fn lock(store: &Store, name: &str, how: CacheLock) -> Result<CacheMount> {
    loop {
        if let Some(mount) = store.cache_mount(name, how)? {
            return Ok(mount);
        }
    }
}

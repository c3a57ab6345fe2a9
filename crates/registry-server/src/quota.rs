//! How much repositories may have, and users may bring.
//!
//! The look and the act are one: whoever adds something holds the lock of all repositories from the one to the other,
//! so pushes at the same time, of whatever process, never have more together than the quotas say. Uploads count when they
//! are finished; none may grow beyond any of the quotas. Those that are not finished may have as much again, of a repository
//! and in all, so that the disk is bounded by twice what the quotas say.

use isles_spec::Digest;
use isles_spec::quantity::human_bytes;
use isles_store::Hosted;

use crate::handle::failed;
use crate::reply::Reply;
use crate::server::Server;

/// Bytes that an upload grows by until unfinished uploads are looked at again; they may have so much more than a quota.
pub const LOOK: u64 = 64 << 20;

/// Adds a blob or a manifest of so many bytes to a repository by what `add` does, where the quotas leave room for it.
/// `user` is who sends it, where that is a blob.
pub fn within<T>(
    server: &Server,
    hosted: &Hosted,
    user: Option<&str>,
    what: &Digest,
    bytes: u64,
    add: impl FnOnce() -> Result<T, Reply>,
) -> Result<T, Reply> {
    if most(server, user).is_none() {
        return add();
    }
    let _alone = server.store.lock_hosted().map_err(|e| failed(&e))?;
    room(server, hosted, user, Some(what), bytes)?;
    add()
}

/// Bytes that no upload can be kept with.
pub fn most(server: &Server, user: Option<&str>) -> Option<u64> {
    let quota = &server.config.quota;
    let of_user = user.and(quota.user);
    [quota.repository, of_user, quota.total].into_iter().flatten().min()
}

/// Refuses a push that has just begun where the quotas are used up.
pub fn room_for_more(
    server: &Server,
    hosted: &Hosted,
    user: Option<&str>,
    what: Option<&Digest>,
) -> Result<(), Reply> {
    // What is here already needs none.
    if what.is_some_and(|what| hosted.blob(what).is_some()) {
        return Ok(());
    }
    room(server, hosted, user, what, 1)
}

/// Refuses that an upload grows where the unfinished ones have more than all that could be finished.
pub fn room_for_unfinished(server: &Server, hosted: &Hosted) -> Result<(), Reply> {
    let check = |whose: &str, limit: u64, unfinished: isles_store::Result<u64>| {
        let bytes = unfinished.map_err(|e| failed(&e))?;
        if bytes <= limit.saturating_add(LOOK) {
            return Ok(());
        }
        let text =
            format!("unfinished uploads to {whose} have {}; cancel or finish some", human_bytes(bytes));
        Err(Reply::error(403, "DENIED", text))
    };
    let quota = &server.config.quota;
    if let Some(limit) = quota.repository {
        check(&format!("'{}'", hosted.name()), limit, hosted.unfinished())?;
    }
    if let Some(limit) = quota.total {
        check("the registry", limit, server.store.hosted_unfinished())?;
    }
    Ok(())
}

/// `what` is not counted beside its bytes: what is here already takes no more when it is pushed again.
fn room(
    server: &Server,
    hosted: &Hosted,
    user: Option<&str>,
    what: Option<&Digest>,
    bytes: u64,
) -> Result<(), Reply> {
    let full = |whose: &str, limit: u64| {
        Err(Reply::error(403, "DENIED", format!("{whose} may have {} and is full", human_bytes(limit))))
    };
    let quota = &server.config.quota;
    if let Some(limit) = quota.repository {
        let used = hosted.bytes(what).map_err(|e| failed(&e))?;
        if used.saturating_add(bytes) > limit {
            return full(&format!("'{}'", hosted.name()), limit);
        }
    }
    if let (Some(limit), Some(user)) = (quota.user, user) {
        let used = server.store.credited(user, what).map_err(|e| failed(&e))?;
        if used.saturating_add(bytes) > limit {
            return full(&format!("the user '{user}'"), limit);
        }
    }
    if let Some(limit) = quota.total {
        let used = server.store.hosted_bytes(what).map_err(|e| failed(&e))?;
        if used.saturating_add(bytes) > limit {
            return full("the registry", limit);
        }
    }
    Ok(())
}

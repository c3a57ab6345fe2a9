//! Nothing that is needed is collected, and everything else is.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use isles_spec::{Digest, Quiet};
use isles_store::{BuildRecord, CacheLock, Error, Memory, Ownership, PruneOptions, Store};
use support::*;

#[test]
fn ordinary_user() {
    again_as_ordinary_user();
}

fn prune(store: &Store) -> isles_store::Pruned {
    store.prune(&PruneOptions::default()).unwrap()
}

fn layers(home: &Home, names: &[&str]) -> Vec<isles_store::CommittedLayer> {
    let lease = home.lease();
    names.iter().map(|n| small_layer(&home.store, &lease, n, n)).collect()
}

#[test]
fn what_holds_a_layer() {
    let home = Home::new();
    let store = &home.store;
    let made = layers(&home, &["named", "nameless", "container", "leased", "cached", "loose"]);
    let id = |n: usize| made[n].diff_id.clone();
    let lease = home.lease();
    image(store, &lease, &made[..1], &["app:1"], "1");
    image(store, &lease, &made[1..2], &[], "2");
    let container = store.create_container("c1", &[id(2)], false).unwrap();
    drop(lease);
    let lease = home.lease();
    lease.hold(&id(3)).unwrap();
    let key = Store::cache_key([&b"step"[..]]);
    store.put_build_record(&key, &BuildRecord { holds: vec![id(4)], value: serde_json::json!(1) }).unwrap();
    let here =
        || made.iter().map(|l| store.has_layer(&l.diff_id) && store.has_blob(&l.diff_id)).collect::<Vec<_>>();

    let would = store.prune(&PruneOptions { dry_run: true, ..Default::default() }).unwrap();
    assert_eq!(here(), [true; 6]);
    let pruned = prune(store);
    assert_eq!(here(), [true, false, true, true, true, false]);
    assert_eq!((would.layers.len(), would.blobs.len()), (pruned.layers.len(), pruned.blobs.len()));
    assert_eq!(would.freed, pruned.freed);
    assert!(pruned.freed > 0);
    assert_eq!(pruned.images.len(), 1, "the nameless one");
    assert_eq!(prune(store), Default::default(), "once is enough");

    // Each lets go in turn.
    drop(lease);
    prune(store);
    assert_eq!(here(), [true, false, true, false, true, false]);
    container.remove().unwrap();
    prune(store);
    assert_eq!(here(), [true, false, false, false, true, false]);
    let all = PruneOptions { cache: true, ..Default::default() };
    assert_eq!(store.prune(&all).unwrap().build_records, 1);
    assert_eq!(here(), [true, false, false, false, false, false]);
    let all = PruneOptions { all_images: true, ..Default::default() };
    assert_eq!(store.prune(&all).unwrap().images, ["app:1"]);
    assert_eq!(store.disk_usage().unwrap(), Default::default());
    let tmp = fs::read_dir(store.root().join("tmp")).unwrap().map(|e| e.unwrap().path());
    let left: Vec<_> = tmp.flat_map(|worker| fs::read_dir(worker).unwrap()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn images_that_containers_stand_on() {
    let home = Home::new();
    let store = &home.store;
    let made = layers(&home, &["a"]);
    let image = image(store, &home.lease(), &made, &["app:1", "app:2"], "1");
    let container =
        store.create_container("c1", std::slice::from_ref(&image.manifest_digest), false).unwrap();
    let id = image.id().to_string();
    store.remove_image("app:2", false).unwrap();
    assert!(matches!(store.remove_image("app:1", false), Err(Error::InUse { .. })));
    assert!(matches!(store.remove_image(&id, false), Err(Error::InUse { .. })));
    store.remove_image("app:1", true).unwrap();
    store.prune(&PruneOptions { all_images: true, ..Default::default() }).unwrap();
    assert!(store.has_layer(&made[0].diff_id), "the container stands on it");
    container.remove().unwrap();
    store.remove_image(&id, false).unwrap();
    assert!(!store.has_layer(&made[0].diff_id));
    assert!(matches!(store.remove_image(&id, false), Err(Error::NoImage { .. })));
}

#[test]
fn what_several_images_share_stays() {
    let home = Home::new();
    let store = &home.store;
    let made = layers(&home, &["base", "one", "two"]);
    let lease = home.lease();
    image(store, &lease, &[made[0].clone(), made[1].clone()], &["one"], "1");
    image(store, &lease, &[made[0].clone(), made[2].clone()], &["two"], "2");
    drop(lease);
    let gone = store.remove_image("one", false).unwrap();
    assert_eq!(
        (gone.images.as_slice(), gone.layers.as_slice()),
        (&["one:latest".to_owned()][..], &[made[1].diff_id.clone()][..])
    );
    assert!(store.has_layer(&made[0].diff_id) && !store.has_blob(&made[1].diff_id));
    assert!(store.is_whole(&store.resolve("two", None).unwrap()));
}

#[test]
fn young_things_stay_where_asked() {
    let home = Home::new();
    let made = layers(&home, &["a"]);
    let old = PruneOptions { grace: Duration::from_secs(3600), ..Default::default() };
    assert_eq!(home.store.prune(&old).unwrap(), Default::default());
    let past = SystemTime::now() - Duration::from_secs(7200);
    let record = home.store.layer_path(&made[0].diff_id).unwrap().parent().unwrap().join("layer.json");
    for path in [record, home.store.blob_path(&made[0].diff_id)] {
        fs::File::open(path).unwrap().set_modified(past).unwrap();
    }
    assert_eq!(home.store.prune(&old).unwrap().layers.len(), 1);
}

#[test]
fn the_cache_has_a_budget() {
    let home = Home::new();
    let store = &home.store;
    let lease = home.lease();
    let big = "x".repeat(200_000);
    let mut keys: Vec<Digest> = Vec::new();
    for n in 0..5u8 {
        let layer = small_layer(store, &lease, &format!("f{n}"), &format!("{n}{big}"));
        let key = Store::cache_key([&[n][..]]);
        store
            .put_build_record(&key, &BuildRecord { holds: vec![layer.diff_id], value: serde_json::json!(n) })
            .unwrap();
        let file = store.root().join("cache/build").join(format!("sha256-{}", key.hex()));
        let time = SystemTime::now() - Duration::from_secs(1000 - u64::from(n));
        fs::File::open(file).unwrap().set_modified(time).unwrap();
        keys.push(key);
    }
    drop(lease);
    // Looking it up makes the oldest the youngest.
    assert!(store.build_record(&home.lease(), &keys[0]).unwrap().is_some());
    let options = PruneOptions { cache: true, cache_budget: 1_000_000, ..Default::default() };
    let pruned = store.prune(&options).unwrap();
    let lease = home.lease();
    let left: Vec<bool> = keys.iter().map(|k| store.build_record(&lease, k).unwrap().is_some()).collect();
    assert_eq!(left, [true, false, false, false, true], "{pruned:?}");
    assert_eq!((pruned.build_records, pruned.layers.len()), (3, 3));
    let usage = store.disk_usage().unwrap().build_cache;
    assert!(usage.count == 2 && usage.bytes <= 1_000_000, "{usage:?}");
    // A record whose layer is gone counts as absent.
    drop(lease);
    isles_store::remove_tree(&store.root().join("layers")).unwrap();
    isles_store::remove_tree(&store.root().join("blobs")).unwrap();
    assert_eq!(store.build_record(&home.lease(), &keys[0]).unwrap(), None);
}

#[test]
fn cache_mounts_and_what_spares_time_are_cache() {
    let home = Home::new();
    let store = &home.store;
    let other = Store::open(store.root(), ownership()).unwrap();
    store.remember(Memory::Files, "digests", &[b'x'; 10_000]).unwrap();
    store.remember(Memory::Indices, "index", &[b'x'; 10_000]).unwrap();
    let make = |name: &str| {
        let mount = store.cache_mount(name, CacheLock::Shared).unwrap().unwrap();
        fs::create_dir_all(mount.folder.join("sub")).unwrap();
        fs::write(mount.folder.join("sub/file"), vec![b'x'; 200_000]).unwrap();
        mount
    };
    let (used, old, young) = (make("used"), make("old"), make("young"));
    let folders = [used.folder.clone(), old.folder.clone(), young.folder.clone()];
    let here = || folders.each_ref().map(|f| f.join("sub/file").exists());
    drop((old, young));
    for (n, name) in ["used", "old", "young"].iter().enumerate() {
        let lock = store.root().join(format!("cache/mounts/{name}.lock"));
        let time = SystemTime::now() - Duration::from_secs(1000 - n as u64);
        fs::File::open(lock).unwrap().set_modified(time).unwrap();
    }
    assert!(other.cache_mount("used", CacheLock::IfFree).unwrap().is_none());
    assert!(other.cache_mount("used", CacheLock::Shared).unwrap().is_some());
    let usage = store.disk_usage().unwrap().build_cache;
    assert_eq!(usage.count, 5);
    assert!(usage.bytes > 620_000 && usage.bytes - usage.reclaimable >= 200_000, "{usage:?}");

    // The last use decides; what was just used above is the youngest.
    let options = PruneOptions { cache: true, cache_budget: 600_000, ..Default::default() };
    let would = other.prune(&PruneOptions { dry_run: true, ..options.clone() }).unwrap();
    assert_eq!(here(), [true; 3]);
    assert_eq!(other.prune(&options).unwrap(), would);
    assert_eq!((would.cache_mounts, would.memories), (1, 0), "{would:?}");
    assert!(would.freed >= 200_000);
    assert_eq!(here(), [true, false, true]);

    // A lock that somebody holds keeps its folder, whatever the budget.
    let everything = PruneOptions { cache: true, ..Default::default() };
    let would = other.prune(&PruneOptions { dry_run: true, ..everything.clone() }).unwrap();
    assert_eq!(other.prune(&everything).unwrap(), would);
    assert_eq!((would.cache_mounts, would.memories), (1, 2));
    assert_eq!(here(), [true, false, false]);
    assert_eq!(store.remembered(Memory::Files, "digests").unwrap(), None);
    drop(used);
    other.prune(&everything).unwrap();
    assert_eq!(here(), [false; 3]);
    assert_eq!(fs::read_dir(store.root().join("cache/mounts")).unwrap().count(), 0);
    assert_eq!(store.disk_usage().unwrap(), Default::default());
}

/// Steps take a cache mount while collections take it away.
#[test]
fn a_cache_mount_is_never_taken_from_a_step() {
    let home = Home::new();
    let root = home.store.root();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let store = Store::open(root, ownership()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                store.prune(&PruneOptions { cache: true, ..Default::default() }).unwrap();
            }
        });
        let workers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let store = Store::open(root, ownership()).unwrap();
                    for round in 0..100u32 {
                        let mount = store.cache_mount("m", CacheLock::Exclusive).unwrap().unwrap();
                        fs::create_dir_all(&mount.folder).unwrap();
                        let file = mount.folder.join("f");
                        fs::write(&file, round.to_le_bytes()).unwrap();
                        assert_eq!(fs::read(&file).unwrap(), round.to_le_bytes());
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|r| r.unwrap());
    });
}

#[test]
fn what_a_killed_build_left_is_counted_and_goes() {
    let home = Home::new();
    let store = &home.store;
    let scratch = store.scratch_dir().unwrap();
    fs::write(scratch.join("file"), vec![b'x'; 100_000]).unwrap();
    let other = Store::open(store.root(), ownership()).unwrap();
    assert_eq!(other.disk_usage().unwrap().leftovers, 0, "it is work in progress");
    assert_eq!(prune(&other).freed, 0);
    // As if nobody held the lock.
    let dead = store.root().join("tmp/work-dead");
    fs::create_dir(&dead).unwrap();
    fs::rename(&scratch, dead.join("layer")).unwrap();
    let left = other.disk_usage().unwrap().leftovers;
    assert!(left >= 100_000);
    let would = other.prune(&PruneOptions { dry_run: true, ..Default::default() }).unwrap();
    assert_eq!(would.freed, left);
    assert_eq!(prune(&other), would);
    assert!(!dead.exists());
}

/// An import that is stopped half-way while a collection runs.
#[test]
fn a_collection_beside_an_ingest() {
    let home = Home::new();
    let store = &home.store;
    let tar = Tar::new().file("a", &"1".repeat(300_000)).done();
    let blob = gzip(&tar);
    let lease = home.lease();
    let (at_half, go_on) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let ingest = scope.spawn(|| {
            let mut open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
                let wait = Wait { at_half: &at_half, go_on: &go_on };
                let half = &blob[offset as usize..blob.len() / 2];
                Ok(Box::new(half.chain(wait).chain(&blob[blob.len() / 2..])))
            };
            store.ingest_layer(&lease, &descriptor(&blob), &sha256(&tar), &mut open, &Quiet).unwrap()
        });
        while !at_half.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        // From another process's point of view.
        let other = Store::open(store.root(), ownership()).unwrap();
        prune(&other);
        other.collect().unwrap();
        go_on.store(true, Ordering::Release);
        ingest.join().unwrap();
        prune(&other);
    });
    assert!(store.has_layer(&sha256(&tar)) && store.has_blob(&sha256(&blob)));
    drop(lease);
    assert_eq!(prune(store).layers.len(), 1);
}

struct Wait<'a> {
    at_half: &'a AtomicBool,
    go_on: &'a AtomicBool,
}

impl Read for Wait<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.at_half.store(true, Ordering::Release);
        while !self.go_on.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        Ok(0)
    }
}

/// Images come and go while collections run without a pause.
#[test]
fn collections_beside_everything() {
    let home = Home::new();
    let store = &home.store;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let other = Store::open(store.root(), ownership()).unwrap();
                prune(&other);
                other.collect().unwrap();
            }
        });
        let workers: Vec<_> = (0..3)
            .map(|worker| {
                scope.spawn(move || {
                    let store = Store::open(store.root(), ownership()).unwrap();
                    for round in 0..25 {
                        let lease = store.lease().unwrap();
                        let shared = small_layer(&store, &lease, "shared", "1");
                        let own = small_layer(&store, &lease, "own", &format!("{worker}-{round}"));
                        let name = format!("app{worker}:1");
                        let made =
                            image(&store, &lease, &[shared, own], &[&name], &format!("{worker}-{round}"));
                        drop(lease);
                        let found = store.resolve(&name, None).unwrap();
                        assert_eq!(found.id(), made.id());
                        assert!(store.is_whole(&found));
                        if round % 3 == 0 {
                            store.remove_image(&name, false).unwrap();
                        }
                    }
                })
            })
            .collect();
        let results: Vec<_> = workers.into_iter().map(|w| w.join()).collect();
        stop.store(true, Ordering::Relaxed);
        results.into_iter().for_each(|r| r.unwrap());
    });
    let options = isles_store::VerifyOptions { depth: isles_store::Depth::Full, repair: false };
    let report = store.verify(&options, &Quiet).unwrap();
    assert!(report.problems.is_empty(), "{:?}", report.problems);
}

#[test]
fn containers_come_and_go() {
    let home = Home::new();
    let store = &home.store;
    let kept = store.create_container("abc123", &[], false).unwrap();
    assert!(matches!(store.create_container("abc123", &[], false), Err(Error::Exists { .. })));
    for id in ["", "..", "a/b", ".x", "-x", &"x".repeat(200)] {
        assert!(store.create_container(id, &[], false).is_err(), "{id}");
    }
    let mine = store.create_container("abd456", &[], true).unwrap();
    assert_eq!(store.find_container("abc").unwrap().id(), "abc123");
    assert!(matches!(store.find_container("ab"), Err(Error::Ambiguous { .. })));
    assert!(matches!(store.find_container("x"), Err(Error::NoContainer { .. })));
    mine.write("state.json", b"{}").unwrap();
    assert_eq!(mine.read("state.json").unwrap().as_deref(), Some(&b"{}"[..]));
    assert_eq!(mine.read("other").unwrap(), None);
    assert_eq!(store.collect().unwrap(), Vec::<String>::new(), "it is locked");
    let mut second = store.container("abd456").unwrap();
    assert!(!second.try_lock().unwrap());
    assert!(matches!(store.container("abd456").unwrap().remove(), Err(Error::InUse { .. })));
    drop(mine);
    assert_eq!(store.collect().unwrap(), ["abd456"]);
    drop(kept);
    assert_eq!(store.collect().unwrap(), Vec::<String>::new(), "it is not ephemeral");
    assert_eq!(store.containers().unwrap(), ["abc123"]);
    store.container("abc123").unwrap().remove().unwrap();
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn downloads_are_whole_or_not_there() {
    let home = Home::new();
    let content = b"what nobody knew the digest of";
    let (digest, mut file) = home.store.add_download("http://h/f", &mut &content[..], 100).unwrap();
    assert_eq!(digest, sha256(content));
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut read).unwrap();
    assert_eq!(read, content);
    assert!(home.store.download(&digest).unwrap().is_some());
    struct Breaks;
    impl std::io::Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    let broken = home.store.add_download("http://h/f", &mut std::io::Read::chain(&b"part"[..], Breaks), 100);
    assert!(broken.unwrap_err().to_string().contains("http://h/f"));
    let long = home.store.add_download("http://h/f", &mut std::io::repeat(0), 1000).unwrap_err();
    assert!(matches!(long, isles_store::Error::Limit { .. }), "{long}");
    let other = home.store.put_download(&sha256(b"other"), &mut &content[..], 100).unwrap_err();
    assert!(matches!(other, isles_store::Error::WrongDigest { .. }), "{other}");
    assert!(home.store.download(&sha256(b"other")).unwrap().is_none());
    let left = std::fs::read_dir(home.store.root().join("tmp")).unwrap().flatten();
    let left: usize = left.map(|work| std::fs::read_dir(work.path()).map_or(0, |d| d.count())).sum();
    assert_eq!(left, 0, "nothing of what failed is left");
}

#[test]
fn a_collector_never_takes_a_part_of_a_container_that_is_being_made() {
    let home = Home::new();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    home.store.collect().unwrap();
                }
            });
        }
        let makers: Vec<_> = (0..2)
            .map(|maker| {
                let store = &home.store;
                scope.spawn(move || {
                    for n in 0..400 {
                        let made = store.create_container(&format!("c{maker}-{n}"), &[], true).unwrap();
                        for name in ["lock", "upper", "work", "holds", "ephemeral"] {
                            if !made.path().join(name).exists() {
                                return Err(format!("container {n} has no '{name}'"));
                            }
                        }
                        made.remove().unwrap();
                    }
                    Ok(())
                })
            })
            .collect();
        let results: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(results, [Ok(()), Ok(())]);
    });
}

#[test]
fn of_what_was_remembered_the_least_recently_used_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), Ownership::Single).unwrap();
    assert!(store.remembered_file(Memory::Blocks, "a").is_none());
    let folder = store.root().join("cache/blocks");
    for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
        store.remember_by(Memory::Blocks, name, |file| file.write_all(&[b'x'; 100_000])).unwrap();
        let time = SystemTime::now() - Duration::from_secs(9000 - n as u64);
        fs::File::open(folder.join(name)).unwrap().set_modified(time).unwrap();
    }
    // Using it makes it the youngest.
    assert_eq!(store.remembered_file(Memory::Blocks, "a").unwrap().metadata().unwrap().len(), 100_000);
    store.shrink_memory(Memory::Blocks, 250_000).unwrap();
    let there = |name| store.remembered_file(Memory::Blocks, name).is_some();
    assert_eq!([there("a"), there("b"), there("c")], [true, false, true]);
    std::os::unix::fs::symlink("a", folder.join("link")).unwrap();
    assert!(!there("link"));
    let failed = store.remember_by(Memory::Blocks, "d", |_| Err(std::io::Error::other("no")));
    assert!(failed.is_err() && !there("d"));
}

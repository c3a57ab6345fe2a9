//! Decompressed blocks, kept up to a fixed number of bytes.
//!
//! One idea: many small locks, each held for a lookup only. Two threads that miss the same block both
//! decompress it, and the second result is dropped; nobody ever waits for somebody else's decompression.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A decompressed block.
#[derive(Debug)]
pub(crate) struct Block {
    pub data: Vec<u8>,
    /// Where the next metadata block begins; unused for data.
    pub next: u64,
}

/// The position of a block in the image and its size as written there: in a damaged image one position can
/// be claimed with several sizes.
pub(crate) type Key = (u64, u32);

/// Beyond the data: the slot, the key twice, and the allocator's part.
const OVERHEAD: usize = 128;

#[derive(Debug)]
pub(crate) struct Cache {
    shards: Vec<Mutex<Shard>>,
    /// Bytes that each shard may hold.
    budget: usize,
}

/// Second chance ("clock"): a block that was used since the hand last came by stays for one more round.
#[derive(Debug, Default)]
struct Shard {
    places: HashMap<Key, usize>,
    slots: Vec<Slot>,
    hand: usize,
    used: usize,
}

#[derive(Debug)]
struct Slot {
    key: Key,
    block: Arc<Block>,
    again: bool,
}

impl Cache {
    /// A cache of `budget` bytes for blocks of up to `largest` bytes.
    pub(crate) fn new(budget: usize, largest: usize) -> Cache {
        // With few blocks in each, some would be full while others are empty.
        let shards = (budget / (8 * (largest + OVERHEAD))).clamp(1, 16);
        Cache { shards: (0..shards).map(|_| Mutex::default()).collect(), budget: budget / shards }
    }

    fn shard(&self, key: Key) -> MutexGuard<'_, Shard> {
        // Positions of neighbours differ in their low bits, which a multiplication carries upwards.
        let mixed = key.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let shard = &self.shards[mixed as usize % self.shards.len()];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: Key) -> Option<Arc<Block>> {
        let mut shard = self.shard(key);
        let place = *shard.places.get(&key)?;
        let slot = &mut shard.slots[place];
        slot.again = true;
        Some(slot.block.clone())
    }

    pub(crate) fn insert(&self, key: Key, block: Arc<Block>) {
        let cost = cost(&block);
        if cost > self.budget {
            return;
        }
        let mut shard = self.shard(key);
        if shard.places.contains_key(&key) {
            return;
        }
        while shard.used + cost > self.budget {
            shard.evict();
        }
        shard.used += cost;
        let place = shard.slots.len();
        shard.places.insert(key, place);
        shard.slots.push(Slot { key, block, again: false });
    }

    /// All blocks that are there.
    pub(crate) fn all(&self) -> Vec<(Key, Arc<Block>)> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.slots.iter().map(|slot| (slot.key, slot.block.clone())));
        }
        all
    }

    /// Bytes in use now.
    #[cfg(test)]
    fn used(&self) -> usize {
        self.shards.iter().map(|s| s.lock().unwrap().used).sum()
    }
}

fn cost(block: &Block) -> usize {
    block.data.capacity() + OVERHEAD
}

impl Shard {
    /// Drops one block. There is one, since something is used.
    fn evict(&mut self) {
        loop {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let slot = &mut self.slots[self.hand];
            if std::mem::take(&mut slot.again) {
                self.hand += 1;
                continue;
            }
            let gone = self.slots.swap_remove(self.hand);
            self.used -= cost(&gone.block);
            self.places.remove(&gone.key);
            if let Some(moved) = self.slots.get(self.hand) {
                self.places.insert(moved.key, self.hand);
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(byte: u8, len: usize) -> Arc<Block> {
        Arc::new(Block { data: vec![byte; len], next: 0 })
    }

    #[test]
    fn the_budget_holds_and_what_is_used_stays() {
        let cache = Cache::new(64 << 10, 8192);
        for n in 0..1000u64 {
            cache.insert((n, 0), block(n as u8, 1000));
            assert!(cache.get((n, 0)).is_some_and(|b| b.data[0] == n as u8));
            // Used between all insertions, so the hand never finds it unused.
            cache.insert((5000, 0), block(7, 1000));
            assert!(cache.get((5000, 0)).is_some());
            assert!(cache.used() <= 64 << 10, "{} bytes", cache.used());
        }
        assert!((0..1000).filter(|n| cache.get((*n, 0)).is_some()).count() > 20);
    }

    #[test]
    fn the_written_size_is_part_of_the_key_and_giants_are_not_kept() {
        let cache = Cache::new(64 << 10, 8192);
        cache.insert((1, 1), block(1, 10));
        assert!(cache.get((1, 2)).is_none());
        cache.insert((2, 2), block(1, 1 << 20));
        assert!(cache.get((2, 2)).is_none());
    }
}

//! Keys of the build cache: everything that a step depends on, part after part, each with its name.

use isles_spec::{Algorithm, Digest};
use sha2::{Digest as _, Sha256};

/// Changes when the same instruction starts to give another layer.
const GENERATION: &str = "isles build 1";

/// A key under construction.
#[derive(Clone)]
pub struct Key {
    hash: Sha256,
}

impl Key {
    /// A key for one kind of step.
    pub fn new(kind: &str) -> Key {
        Key { hash: Sha256::new() }.with("generation", GENERATION).with("kind", kind)
    }

    /// Adds a part.
    pub fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Key {
        self.add(name, value);
        self
    }

    /// Adds a list; its length is part of it.
    pub fn with_list<T: AsRef<[u8]>>(mut self, name: &str, values: impl IntoIterator<Item = T>) -> Key {
        let mut count = 0u64;
        for value in values {
            self.add(name, value);
            count += 1;
        }
        self.add("count", count.to_le_bytes());
        self
    }

    /// Adds a part.
    pub fn add(&mut self, name: &str, value: impl AsRef<[u8]>) {
        for part in [name.as_bytes(), value.as_ref()] {
            self.hash.update((part.len() as u64).to_le_bytes());
            self.hash.update(part);
        }
    }

    pub fn finish(self) -> Digest {
        Digest::from_bytes(Algorithm::Sha256, &self.hash.finalize())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_together() {
        let key = |parts: &[(&str, &str)]| {
            parts.iter().fold(Key::new("x"), |key, (name, value)| key.with(name, value)).finish()
        };
        assert_eq!(key(&[("a", "b")]), key(&[("a", "b")]));
        assert_ne!(key(&[("a", "bc")]), key(&[("ab", "c")]));
        assert_ne!(key(&[("a", "")]), key(&[]));
        assert_ne!(
            Key::new("x").with_list("l", ["a", "b"]).finish(),
            Key::new("x").with_list("l", ["ab"]).finish()
        );
    }
}

//! A file of users as Apache's `htpasswd -B` writes it: lines of `name:bcrypt`.
//!
//! The file is read again when it changes. A password that was right is remembered for some minutes as a keyed
//! hash, since bcrypt is slow on purpose and clients send it with every request.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use blowfish::Blowfish;
use ring::hmac;
use ring::rand::SystemRandom;

use crate::{Error, Result};

const LIMIT: u64 = 16 << 20;
/// bcrypt's alphabet for base 64, most significant bits first.
const ALPHABET: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// A hash of nothing that anyone knows, tried for unknown users, so that they take as long as known ones.
const NOBODYS: &str = "$2y$10$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZabcde";
const REMEMBERED: Duration = Duration::from_secs(300);
const MOST_REMEMBERED: usize = 4096;
/// A cost above it would keep a processor busy for a minute.
const MOST_COST: u32 = 16;

/// The users of a file.
pub struct Passwords {
    path: PathBuf,
    state: Mutex<State>,
    key: hmac::Key,
}

struct State {
    read: Option<(SystemTime, u64)>,
    users: Arc<HashMap<String, String>>,
    right: HashMap<Vec<u8>, Instant>,
}

impl Passwords {
    /// Reads the file.
    pub fn open(path: &Path) -> Result<Passwords> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| Error::config("the passwords", "the system has no random numbers"))?;
        let state = State { read: None, users: Arc::default(), right: HashMap::new() };
        let passwords = Passwords { path: path.to_owned(), state: Mutex::new(state), key };
        passwords.users()?;
        Ok(passwords)
    }

    /// Whether this is the user's password. Takes as long as bcrypt does, for users that do not exist too.
    pub fn check(&self, user: &str, password: &str) -> bool {
        // A file that is being written anew keeps the users that were there.
        let users = match self.users() {
            Ok(users) => users,
            Err(_) => self.lock().users.clone(),
        };
        let hash = users.get(user);
        let proof = hash.map(|hash| {
            let mut context = hmac::Context::with_key(&self.key);
            for part in [hash, user, password] {
                context.update(&(part.len() as u64).to_le_bytes());
                context.update(part.as_bytes());
            }
            context.sign().as_ref().to_vec()
        });
        if let Some(proof) = &proof
            && self.lock().right.get(proof).is_some_and(|at| at.elapsed() < REMEMBERED)
        {
            return true;
        }
        let right = is_right(password, hash.map_or(NOBODYS, String::as_str));
        match proof {
            Some(proof) if right => {
                let mut state = self.lock();
                if state.right.len() >= MOST_REMEMBERED {
                    state.right.clear();
                }
                state.right.insert(proof, Instant::now());
                true
            }
            _ => false,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn users(&self) -> Result<Arc<HashMap<String, String>>> {
        let failed = |e| Error::io("read", &self.path, e);
        let meta = std::fs::metadata(&self.path).map_err(failed)?;
        let stamp = Some((meta.modified().map_err(failed)?, meta.len()));
        let mut state = self.lock();
        if state.read != stamp {
            let file = std::fs::File::open(&self.path).map_err(failed)?;
            let bytes = isles_store::read_bounded(file, LIMIT).map_err(failed)?;
            let text = bytes.map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
            state.users = Arc::new(parse(&self.path, &text)?);
            state.right.clear();
            state.read = stamp;
        }
        Ok(state.users.clone())
    }
}

fn parse(path: &Path, text: &str) -> Result<HashMap<String, String>> {
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = || format!("{} line {}", path.display(), number + 1);
        let Some((name, hash)) = line.split_once(':') else {
            return Err(Error::config(place(), "it is not NAME:HASH, as `htpasswd -B` writes it"));
        };
        if parts(hash).is_none() {
            return Err(Error::config(place(), "its hash is not bcrypt; write it with `htpasswd -B`"));
        }
        users.insert(name.to_owned(), hash.to_owned());
    }
    Ok(users)
}

/// Cost, salt and the 31 characters of the hash.
fn parts(hash: &str) -> Option<(u32, [u8; 16], &str)> {
    let rest = ["$2y$", "$2b$", "$2a$"].iter().find_map(|p| hash.strip_prefix(p))?;
    let (cost, rest) = rest.split_once('$')?;
    let cost: u32 = cost.parse().ok().filter(|c| (4..=MOST_COST).contains(c))?;
    if rest.len() != 53 || !rest.bytes().all(|b| ALPHABET.contains(&b)) {
        return None;
    }
    Some((cost, decoded(&rest.as_bytes()[..22])?, &rest[22..]))
}

fn decoded(text: &[u8]) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    let (mut bits, mut have, mut n) = (0u32, 0, 0);
    for c in text {
        bits = bits << 6 | ALPHABET.iter().position(|a| a == c)? as u32;
        have += 6;
        if have >= 8 && n < out.len() {
            have -= 8;
            out[n] = (bits >> have) as u8;
            n += 1;
        }
    }
    (n == out.len()).then_some(out)
}

fn encoded(bytes: &[u8]) -> String {
    let mut out = String::new();
    let (mut bits, mut have) = (0u32, 0);
    for b in bytes {
        bits = bits << 8 | u32::from(*b);
        have += 8;
        while have >= 6 {
            have -= 6;
            out.push(char::from(ALPHABET[(bits >> have & 63) as usize]));
        }
    }
    if have > 0 {
        out.push(char::from(ALPHABET[(bits << (6 - have) & 63) as usize]));
    }
    out
}

/// bcrypt (Provos and Mazières, "A Future-Adaptable Password Scheme", 1999), of which 23 bytes are kept.
fn bcrypt(password: &str, cost: u32, salt: &[u8; 16]) -> [u8; 23] {
    // With its ending zero, and of what is longer than 72 bytes only the beginning.
    let mut key: Vec<u8> = password.bytes().chain([0]).collect();
    key.truncate(72);
    let mut state: Blowfish = Blowfish::bc_init_state();
    state.salted_expand_key(salt, &key);
    for _ in 0..1u64 << cost {
        state.bc_expand_key(&key);
        state.bc_expand_key(salt);
    }
    let mut out = [0; 24];
    for (chunk, text) in out.chunks_exact_mut(8).zip(b"OrpheanBeholderScryDoubt".chunks_exact(8)) {
        let word = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
        let mut pair = [word(&text[..4]), word(&text[4..])];
        for _ in 0..64 {
            pair = state.bc_encrypt(pair);
        }
        chunk[..4].copy_from_slice(&pair[0].to_be_bytes());
        chunk[4..].copy_from_slice(&pair[1].to_be_bytes());
    }
    let mut kept = [0; 23];
    kept.copy_from_slice(&out[..23]);
    kept
}

fn is_right(password: &str, hash: &str) -> bool {
    let Some((cost, salt, expected)) = parts(hash) else { return false };
    let actual = encoded(&bcrypt(password, cost, &salt));
    // In a time that does not tell how much of it is right.
    let differ = actual.bytes().zip(expected.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    differ == 0 && actual.len() == expected.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_that_others_wrote() {
        // Of the test vectors that came with crypt_blowfish, and of htpasswd.
        for (password, hash, right) in [
            ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", true),
            ("U*U*", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.VGOzA784oUp/Z0DY336zx7pLYAy0lwK", true),
            ("", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.7uG0VCzI2bS7j6ymqJi9CdcdxiRTWNy", true),
            ("secret", "$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm", true),
            ("secreT", "$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm", false),
            ("", "$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm", false),
            ("secret", "$apr1$x$y", false),
            ("secret", "", false),
        ] {
            assert_eq!(is_right(password, hash), right, "{password} {hash}");
        }
        assert!(parts(NOBODYS).is_some());
    }

    #[test]
    fn the_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        let me = "me:$2b$04$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm";
        std::fs::write(&path, format!("# staff\n\n{me}\n")).unwrap();
        let passwords = Passwords::open(&path).unwrap();
        for _ in 0..2 {
            assert!(passwords.check("me", "secret"));
            assert!(!passwords.check("me", "wrong") && !passwords.check("you", "secret"));
        }
        std::fs::write(&path, "nobody is left").unwrap();
        assert!(passwords.check("me", "secret"), "a broken file keeps who was there");
        std::fs::write(&path, "").unwrap();
        assert!(!passwords.check("me", "secret"));
        for bad in ["me", "me:plain", "me:$2y$31$51LZMXTseuzFG2ON5viWQe9UA2RPR.inhzunDJRO0yHXDvc3XTwtm"] {
            std::fs::write(&path, bad).unwrap();
            assert!(Passwords::open(&path).is_err(), "{bad}");
        }
        assert!(Passwords::open(&dir.path().join("none")).is_err());
    }
}
